"""hsim's decoder against transformers' Llama with the very same weights."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hsim.backends import decoder as decoder_module  # noqa: E402
from hsim.backends.decoder import Decoder, shared_calls  # noqa: E402
from hsim.backends.device import CpuDevice, open_device  # noqa: E402
from hsim.backends.hosts import DecoderSpec, StepItem, hugging_face_decoder, rope_of  # noqa: E402
from hsim.description.model import ModelArchitecture  # noqa: E402
from hsim.errors import BackendError, DescriptionError  # noqa: E402

pytestmark = pytest.mark.torch
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SLOTS, CONTEXT = 6, 200
# A short original context, so that sequences of the tests reach every branch of the scaling.
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def a_llama(**changes):
    """A small random Llama in fp32, its weights wide enough that no two logits are nearly equal."""
    settings = {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 211, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "initializer_range": 0.15, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**settings, **changes}))
    for name, weight in model.named_parameters():
        if "norm" in name:  # they begin as ones, which would hide a norm that is left out
            weight.data.uniform_(0.5, 1.5)
    return model.eval()


def as_hsim(model, folder, dtype="fp32", device="cpu"):
    """The decoder that hsim builds from the model's config.json, with the model's weights."""
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str), encoding="utf-8")
    spec = hugging_face_decoder(folder / "config.json", SLOTS, CONTEXT, dtype, device)
    decoder = Decoder(spec, open_device(device))
    decoder.load(model.state_dict())
    return decoder


def truth(model, tokens):
    """transformers' logits after each token of a sequence. Shape (tokens, vocabulary)."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0].float()


def a_schedule(seed, sequences=14):
    """Steps that mix decodes and chunks of sequences in all slots, each slot used again and again.

    Yields lists of (sequence, StepItem): all the tokens of the sequences are known, so each item can be checked.
    """
    rng = np.random.default_rng(seed)
    waiting = [rng.integers(0, 211, rng.integers(2, CONTEXT)).tolist() for _ in range(sequences)]
    texts, at, prompts, slots = list(waiting), {}, {}, {}
    while waiting or at:
        for slot in rng.permutation(SLOTS).tolist():
            if slot not in slots.values() and waiting and rng.random() < 0.6:
                text = waiting.pop()
                sequence = texts.index(text)
                at[sequence], slots[sequence] = 0, slot
                prompts[sequence] = int(rng.integers(1, len(text) + 1))
        step = []
        for sequence in rng.permutation(list(at)).tolist():
            left = prompts[sequence] - at[sequence]
            count = int(min(left, rng.integers(1, 60))) if left > 0 else 1
            if rng.random() < 0.85:
                start = at[sequence]
                step.append((sequence, StepItem(slots[sequence], start, texts[sequence][start : start + count])))
        for sequence, item in step:
            at[sequence] += item.new_tokens
            if at[sequence] == min(len(texts[sequence]), prompts[sequence] + 25):
                del at[sequence], slots[sequence]
        if step:
            yield texts, step


CASES = {
    "grouped heads": {},
    "every head its own": {"num_key_value_heads": 8},
    "one KV head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "llama3 rope": {"rope_parameters": LLAMA3},
    "wide heads": {"head_dim": 32, "num_attention_heads": 4},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("call_tokens", [0, 40, 10**6], ids=["calls apart", "some shared", "one call"])
@pytest.mark.parametrize("case", CASES)
def test_any_schedule_gives_the_logits_of_transformers(tmp_path, monkeypatch, case, call_tokens, device):
    """Single, batched, chunked and mixed steps, slots reused: each item's logits are those of a plain full forward."""
    model = a_llama(**CASES[case])
    decoder = as_hsim(model, tmp_path, device=device)
    monkeypatch.setattr(decoder.device, "context_tokens_per_call", call_tokens, raising=False)
    seen = {"mixed": 0, "later chunk": 0, "shared": 0, "gap": 0, "unlike": 0, "alone": 0}
    batches = []
    plan = decoder._batch
    monkeypatch.setattr(decoder, "_batch", lambda items: batches.append(plan(items)) or batches[-1])
    expected, first_steps = {}, 0
    for texts, step in a_schedule(seed=7):
        logits = decoder.logits([item for _, item in step]).float().cpu()
        assert logits.shape == (len(step), 211)
        for (sequence, item), mine in zip(step, logits, strict=True):
            if sequence not in expected:
                expected[sequence] = truth(model, texts[sequence])
            theirs = expected[sequence][item.start + item.new_tokens - 1]
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
            first_steps += item.start == 0
        batch = batches[-1]
        seen["mixed"] += bool(batch.decodes and batch.chunks)
        seen["later chunk"] += any(chunk.mask is not None for chunk in batch.chunks)
        for call in batch.decodes:
            rows = call.rows.stop - call.rows.start
            seen["shared"] += rows > 1
            seen["alone"] += rows == 1
            seen["gap"] += call.places is not None
            seen["unlike"] += rows > 1 and call.mask is not None
    assert first_steps > 2 * SLOTS, "slots were not reused"
    wanted = {0: ["alone"], 40: ["alone", "shared", "unlike"], 10**6: ["shared", "gap", "unlike"]}[call_tokens]
    assert all(seen[state] for state in ["mixed", "later chunk", *wanted]), seen


@pytest.mark.parametrize(("dtype", "name"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_half_precision_errs_no_more_than_transformers_does(tmp_path, dtype, name):
    """Against fp32 truth, hsim's rounding is of the size of transformers' own in the same precision."""
    model = a_llama(rope_parameters=LLAMA3)
    half = a_llama(rope_parameters=LLAMA3).to(getattr(torch, name))
    decoder = as_hsim(model, tmp_path, dtype)
    mine_off, theirs_off, scale = [], [], []
    for texts, step in a_schedule(seed=8, sequences=8):
        logits = decoder.logits([item for _, item in step]).float()
        for (sequence, item), mine in zip(step, logits, strict=True):
            if item.start + item.new_tokens == len(texts[sequence]) or item.start == 0:
                upto = texts[sequence][: item.start + item.new_tokens]
                exact = truth(model, upto)[-1]
                mine_off.append((mine - exact).norm())
                theirs_off.append((truth(half, upto)[-1] - exact).norm())
                scale.append(exact.norm())
    assert len(mine_off) > 8
    assert sum(theirs_off) > 0
    assert sum(mine_off) < 1.5 * sum(theirs_off)
    assert sum(mine_off) < 0.05 * sum(scale)


def test_greedy_tokens_are_those_of_generate(tmp_path):
    model = a_llama(rope_parameters=LLAMA3)
    decoder = as_hsim(model, tmp_path)
    prompts = [np.random.default_rng(i).integers(0, 211, 5 + 17 * i).tolist() for i in range(4)]
    answers = [[] for _ in prompts]
    following = decoder.step([StepItem(i, 0, prompt) for i, prompt in enumerate(prompts)])
    for _ in range(24):
        for answer, token in zip(answers, following, strict=True):
            answer.append(token)
        following = decoder.step([StepItem(i, len(prompts[i]) + len(a) - 1, [a[-1]]) for i, a in enumerate(answers)])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert answer == theirs[0, len(prompt) :].tolist()


def test_linear_layers_run_once_over_all_tokens(monkeypatch):
    """What the cost model takes for granted: the products of a step do not depend on how many items share it."""
    decoder = Decoder(a_spec(), CpuDevice())
    rows = []
    linear = decoder_module.F.linear
    monkeypatch.setattr(decoder_module.F, "linear", lambda x, w: rows.append(len(x)) or linear(x, w))
    decoder.step([StepItem(slot, 0, 9) for slot in range(SLOTS)])
    rows.clear()
    decoder.step([StepItem(0, 9, [3]), StepItem(1, 9, 30), StepItem(2, 9, [4]), StepItem(5, 0, 17)])
    assert rows == [1 + 30 + 1 + 17] * (4 * decoder.spec.architecture.layers) + [4]


@given(
    contexts=st.lists(st.one_of(st.none(), st.integers(1, 3000)), min_size=1, max_size=40),
    call_tokens=st.integers(0, 5000),
)
def test_decodes_share_calls_only_where_that_is_cheap(contexts, call_tokens):
    """Each decode is in one call, in order; a call pads by at most call_tokens for each decode after its first."""
    decodes = [(slot, context) for slot, context in enumerate(contexts) if context]
    calls = shared_calls(decodes, call_tokens)
    assert [decode for call in calls for decode in call] == decodes
    for call in calls:
        read = (call[-1][0] - call[0][0] + 1) * max(context for _, context in call)
        assert read <= sum(context for _, context in call) + (len(call) - 1) * call_tokens


def a_spec(**changes):
    model = ModelArchitecture(
        name="tiny", layers=2, hidden_size=32, intermediate_size=48, attention_heads=4, kv_heads=2, head_dim=8,
        vocabulary=97, max_context_tokens=256, source="test",
    )  # fmt: skip
    return replace(DecoderSpec(model, SLOTS, CONTEXT), **changes)


def test_same_seed_gives_the_same_weights_and_tokens_and_another_does_not():
    plan = [StepItem(0, 0, 40), StepItem(1, 0, [1, 2, 3])]
    first, again, other = (Decoder(a_spec(seed=seed), CpuDevice()).logits(plan) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_weights_have_the_size_that_the_description_says():
    for tied in (False, True):
        spec = a_spec()
        spec = replace(spec, architecture=spec.architecture.model_copy(update={"tied_embeddings": tied}))
        weights = Decoder(spec, CpuDevice()).weights
        tensors = [weights.embedding, weights.norm, *([] if tied else [weights.head])]
        tensors += [part for layer in weights.layers for part in vars(layer).values()]
        assert sum(tensor.numel() for tensor in tensors) == spec.architecture.parameters


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        ([], "empty"),
        ([StepItem(6, 0, 3)], "no such slot"),
        ([StepItem(0, 10, 1), StepItem(0, 11, 1)], "twice"),
        ([StepItem(0, 11, 1)], "holds 10 tokens"),
        ([StepItem(1, 1, 1)], "holds 0 tokens"),
        ([StepItem(0, 10, 0)], "0 tokens"),
        ([StepItem(0, 10, [])], "0 tokens"),
        ([StepItem(0, 10, 191)], "191 tokens"),
        ([StepItem(0, 10, [97])], "vocabulary"),
        ([StepItem(0, 10, [-1, 3])], "vocabulary"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_and_changes_nothing(plan, problem):
    decoder, untouched = (Decoder(a_spec(), CpuDevice()) for _ in range(2))
    for each in (decoder, untouched):
        each.step([StepItem(0, 0, 10)])
    with pytest.raises(BackendError, match=problem):
        decoder.step(plan)
    after = [StepItem(0, 10, [5]), StepItem(1, 0, 4)]
    assert torch.equal(decoder.logits(after), untouched.logits(after))


def test_a_cache_beyond_memory_is_refused_before_it_is_allocated():
    with pytest.raises(BackendError, match=r"GB are free; use fewer slots"):
        Decoder(a_spec(slots=10**9), CpuDevice())
    with pytest.raises(BackendError, match="use 1 to 256"):
        Decoder(a_spec(max_context_tokens=257), CpuDevice())


def test_rope_is_read_as_old_and_new_configs_write_it():
    old = {"rope_theta": 10000.0, "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"}}
    assert rope_of(old, "old") == rope_of({"rope_parameters": LLAMA3}, "new")
    assert rope_of({"rope_theta": 7.0}, "plain").scaling is None
    with pytest.raises(DescriptionError, match="yarn"):
        rope_of({"rope_scaling": {"rope_type": "yarn"}}, "config.json")
    with pytest.raises(DescriptionError, match="low_freq_factor"):
        rope_of({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "config.json")


def test_devices_are_what_they_say():
    cpu = open_device("cpu")
    assert 0 < cpu.memory().free_bytes <= cpu.memory().total_bytes
    assert cpu.seconds(lambda: sum(range(1000))) > 0
    with pytest.raises(BackendError, match="use cpu, cuda or cuda:N"):
        open_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="CUDA"):
            open_device("cuda:0")
        return
    cuda = open_device("cuda")
    assert 0 < cuda.memory().free_bytes <= cuda.memory().total_bytes
    assert cuda.seconds(lambda: torch.ones(1000, device="cuda").sum()) > 0
    with pytest.raises(BackendError, match="count from cuda:0"):
        open_device("cuda:99")
