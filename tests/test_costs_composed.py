"""Composed costs beyond dense models: each part against arithmetic done another way, and the physics that no step beats."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import generate_only, prepared_of, run

from hsim.costs.composed import ComposedCosts, Placement, check_runs
from hsim.costs.laws import ExpertsShape
from hsim.costs.memory import kv_capacity_tokens
from hsim.costs.shapes import StepShape
from hsim.description.catalogue import load_model, load_profile
from hsim.description.hardware import AcceleratorProfile, EngineProfile
from hsim.description.model import Experts, ModelArchitecture, Window
from hsim.description.system import Figures
from hsim.errors import DescriptionError

H100 = load_profile("h100-sxm", AcceleratorProfile, "test")[0]
H200 = load_profile("h200-sxm", AcceleratorProfile, "test")[0]
VLLM = load_profile("vllm", EngineProfile, "test")[0]
OLD_VLLM = load_profile("vllm-0.11.1", EngineProfile, "test")[0]
PLACEMENTS = {
    "gpt-oss-120b": ("gpt-oss-120b", 2, "mxfp4"), "deepseek-v3": ("deepseek-v3", 8, "fp8_block"), "qwen3-30b-a3b": ("qwen3-30b-a3b", 1, "bf16"),
    "gemma-3-12b": ("gemma-3-12b", 1, "bf16"), "nemotron-nano-9b-v2": ("nemotron-nano-9b-v2", 1, "bf16"), "llama-4-scout": ("llama-4-scout", 8, "bf16"),
    "llama-3.1-8b": ("llama-3.1-8b", 1, "bf16"),
}  # fmt: skip


def model(name: str) -> ModelArchitecture:
    return load_model(name, "test", Path())


def costs(name: str, chip: AcceleratorProfile = H200, engine: EngineProfile = VLLM, **more: Any) -> ComposedCosts:
    of, ways, precision = PLACEMENTS[name]
    return ComposedCosts(Placement(model(of), chip, engine, ways, precision, **more), Figures({}))  # type: ignore[arg-type]


shapes = st.builds(
    lambda decodes, context, chunks, size: StepShape(
        decodes, decodes * context, chunks, chunks * size, chunks * size, chunks * size * (size + 1) // 2, 0
    ),
    st.integers(0, 300), st.integers(1, 20_000), st.integers(0, 3), st.integers(1, 20_000),
).filter(lambda s: s.sequences > 0)  # fmt: skip


@pytest.mark.parametrize("name", PLACEMENTS)
def test_no_step_beats_the_peak_or_the_bandwidth(name: str) -> None:
    mine = costs(name)
    devices, reached = mine.placement.devices, Counter[str]()
    peak, bandwidth = H200.peak_flops_per_s["bf16"].value, H200.memory_bytes_per_s.value
    assert peak and bandwidth

    @settings(max_examples=60)
    @given(shapes)
    def law(shape: StepShape) -> None:
        n_bytes, flops, _ = mine.work(shape)
        seconds = mine.timing(shape).seconds
        assert seconds >= flops / (devices * peak)
        weights_once = n_bytes / (devices * bandwidth)
        assert seconds >= 0.9 * weights_once  # activations that stay in the cache are counted as bytes too
        reached["compute" if flops / peak > n_bytes / bandwidth else "memory"] += 1

    law()
    assert reached["compute"]
    assert reached["memory"]


def test_expected_experts_touched_is_what_random_routing_reaches() -> None:
    """E (1 - (1 - k/E)^m) is the mean over uniform routing: against drawing it."""
    kernel = costs("qwen3-30b-a3b")._experts
    assert kernel is not None
    shape, m, rng = ExpertsShape(128, 128, 8, 1, 1), 24, np.random.default_rng(0)
    drawn = np.mean([len({int(e) for _ in range(m) for e in rng.choice(128, 8, replace=False)}) for _ in range(400)])
    uniform = type(kernel)(**{f: getattr(kernel, f) for f in kernel.__slots__} | {"imbalance": 1.0})
    assert uniform.touched(m, shape) == pytest.approx(drawn, rel=0.01)
    assert kernel.touched(m, shape) < drawn  # routing in real models is uneven


@pytest.mark.parametrize("m", [1, 4, 16, 64])
@pytest.mark.parametrize("devices", [2, 8])
def test_the_busiest_device_has_what_random_routing_gives_it(m: int, devices: int) -> None:
    """Experts touched and rows on the device that has most of each: against drawing them, 128 experts, 8 a token."""
    kernel, rng, each = costs("qwen3-30b-a3b")._experts, np.random.default_rng(0), 128 // devices
    assert kernel is not None
    uniform = type(kernel)(**{f: getattr(kernel, f) for f in kernel.__slots__} | {"imbalance": 1.0})
    touched, rows = [], []
    for _ in range(300):
        chosen = np.array([rng.choice(128, 8, replace=False) for _ in range(m)])
        reached = np.unique(chosen)
        touched.append(np.bincount(reached // each, minlength=devices).max())
        rows.append(np.bincount(chosen.ravel() // each, minlength=devices).max())
    most, most_rows = uniform.busiest(m, ExpertsShape(128, each, 8, 1, 1))
    assert most == pytest.approx(np.mean(touched), rel=0.12)
    assert most_rows == pytest.approx(np.mean(rows), rel=0.12)
    assert uniform.busiest(m, ExpertsShape(128, 128, 8, 1, 1)) == pytest.approx(
        (uniform.touched(m, ExpertsShape(128, 128, 8, 1, 1)), 8 * m)
    )


def test_shared_experts_that_an_engine_fuses_are_experts_that_every_token_goes_to() -> None:
    """The same weights are read either way; two launches a layer are saved, and one expert in nine more is asked for."""
    fusing = VLLM.model_copy(update={"fused_shared_experts": ("experts-fused/latent",)})
    plain, fused = costs("deepseek-v3"), costs("deepseek-v3", engine=fusing)
    shape = StepShape(4096, 4096 * 10)
    assert fused.work(shape)[1] == pytest.approx(plain.work(shape)[1], rel=1e-3)
    assert fused.work(shape)[0] == pytest.approx(plain.work(shape)[0], rel=0.05)
    one = StepShape(1, 1000)
    assert fused.timing(one).seconds < plain.timing(one).seconds
    other = costs("qwen3-30b-a3b", engine=fusing)
    assert other.timing(one).seconds == costs("qwen3-30b-a3b").timing(one).seconds


@pytest.mark.parametrize("name", PLACEMENTS)
def test_parts_of_a_step_add_up_to_it_and_each_follows_its_cause(name: str) -> None:
    mine = costs(name)
    for shape in (
        StepShape(16, 16 * 700),
        StepShape(8, 8 * 300, 2, 900, 1000, 400_000),
        StepShape(0, 0, 1, 600, 600, 180_300),
    ):
        parts = mine.parts(shape)
        assert sum(parts.values()) == pytest.approx(mine.timing(shape).seconds, rel=1e-12)
        assert min(parts.values()) >= 0
        assert (parts["experts"] > 0) == (mine.placement.model.experts is not None)
        assert (parts["states"] > 0) == (mine.placement.model.state is not None)
        assert (parts["exchanges"] > 0) == (mine.placement.tensor_parallel > 1)
        assert (parts["prefill attention"] > 0) == (shape.chunks > 0)
        assert (parts["decode attention"] > 0) == (shape.decodes > 0)
    longer = mine.parts(StepShape(16, 16 * 1700))
    grown = [
        name for name, seconds in longer.items() if seconds > mine.parts(StepShape(16, 16 * 700))[name] * (1 + 1e-9)
    ]
    assert grown == ["decode attention"]


def test_experts_held_whole_or_sliced_move_the_same_weights() -> None:
    """Whichever way experts are shared out their weights are read once; slices read each token's activations again."""
    whole, sliced = costs("llama-4-scout", expert_parallel=True), costs("llama-4-scout")
    shape = StepShape(4096, 4096 * 10)  # enough tokens that every expert is reached
    one, other = whole.work(shape)[0], sliced.work(shape)[0]
    again = 7 * 4096 * 48 * 2 * 2 * 5120  # seven more devices read and write the hidden states of each token's expert
    assert other - one == pytest.approx(again, rel=0.02)


def test_a_window_costs_what_full_attention_costs_until_it_fills_and_then_no_more() -> None:
    windowed = model("gemma-3-12b")
    assert windowed.window
    full = ComposedCosts(Placement(windowed.model_copy(update={"window": None}), H200, VLLM, 1, "bf16"), Figures({}))
    mine, tokens = costs("gemma-3-12b"), windowed.window.tokens
    below, at, beyond = (StepShape(8, 8 * c) for c in (tokens - 200, tokens, tokens + 1000))
    assert mine.segment(below).seconds == pytest.approx(full.segment(below).seconds, rel=1e-12)
    assert mine.segment(below).valid_steps == 200
    full_growth = full.segment(beyond).seconds - full.segment(at).seconds
    own_growth = mine.segment(beyond).seconds - mine.segment(at).seconds
    layers = windowed.attended_layers
    assert own_growth == pytest.approx(full_growth * (layers - windowed.window.layers) / layers, rel=1e-9)


@pytest.mark.parametrize("contexts", [[100, 900, 3000], [1000, 1020, 1023], [10]])
def test_window_context_given_by_the_engine_is_exact_for_unequal_sequences(contexts: list[int]) -> None:
    mine = costs("gemma-3-12b")
    window = mine.placement.model.window
    assert window

    def shape(k: int) -> StepShape:
        now = [c + k for c in contexts]
        growing = [c for c in now if c < window.tokens]
        steps = min((window.tokens - c for c in growing), default=math.inf)
        clipped = sum(min(c, window.tokens) for c in now)
        return StepShape(
            len(now), sum(now), window_context_tokens=clipped, window_growing=len(growing), window_steps=steps
        )

    segment = mine.segment(shape(0))
    for k in range(int(min(segment.valid_steps, 2000))):
        anew = mine.segment(shape(k))
        assert anew.seconds == pytest.approx(segment.seconds + k * segment.seconds_growth, rel=1e-9)
        assert anew.joules == pytest.approx(segment.joules + k * segment.joules_growth, rel=1e-9)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_segment_is_every_step_asked_for_anew(name: str) -> None:
    """While valid_steps holds, the form is the model, for every kind of architecture."""
    mine, reached = costs(name), Counter[str]()

    @settings(max_examples=60)
    @given(st.integers(1, 200), st.integers(1, 6000), st.data())
    def law(decodes: int, context: int, data: st.DataObject) -> None:
        segment = mine.segment(StepShape(decodes, decodes * context))
        k = data.draw(st.integers(0, int(min(segment.valid_steps - 1, 3000))))
        anew = mine.segment(StepShape(decodes, decodes * (context + k)))
        assert anew.seconds == pytest.approx(segment.seconds + k * segment.seconds_growth, rel=1e-9)
        assert anew.joules == pytest.approx(segment.joules + k * segment.joules_growth, rel=1e-9)
        reached["switches" if segment.valid_steps < math.inf else "holds"] += 1

    law()
    assert sum(reached.values())
    if mine.placement.model.window:
        assert reached["switches"]


def test_latent_attention_reads_one_vector_for_all_heads_on_every_device() -> None:
    mine = costs("deepseek-v3")
    latent = mine.placement.model.latent
    assert latent
    growth = mine.work(StepShape(1, 2000))[0] - mine.work(StepShape(1, 1000))[0]
    layers, devices = mine.placement.model.layers, mine.placement.devices
    assert growth == pytest.approx(1000 * layers * devices * (latent.kv_rank + latent.rope_dim) * 2, rel=1e-9)


def test_state_layers_cost_the_same_at_any_context() -> None:
    mine = costs("nemotron-nano-9b-v2")
    state = mine.placement.model.state
    assert state
    short, long = (mine._sequences(64).bytes for _ in range(2))
    assert short == long
    assert short > 64 * state.layers * 2 * state.elements * state.element_bytes
    attended = mine.placement.model.attended_layers
    grown = mine.segment(StepShape(64, 64 * 4000)).seconds - mine.segment(StepShape(64, 64 * 3000)).seconds
    assert grown == pytest.approx(mine._factor * attended * 64 * 1000 * mine._context_s, rel=1e-6)


def test_eight_bit_keys_and_values_halve_what_context_costs_and_double_what_fits() -> None:
    plain, eight = costs("llama-3.1-8b"), costs("llama-3.1-8b", kv_precision="fp8")
    for shape in (StepShape(16, 16 * 4000),):
        assert eight.segment(shape).seconds_growth == pytest.approx(plain.segment(shape).seconds_growth / 2, rel=1e-9)
    fits = [kv_capacity_tokens(c.placement, 0.9, Figures({}), "test") for c in (plain, eight)]
    assert fits[1] == pytest.approx(2 * fits[0], abs=2)


def test_an_unmeasured_engine_path_is_flagged_and_a_measured_one_is_not() -> None:
    assert costs("llama-4-scout").notes
    assert "low confidence" in costs("llama-4-scout").notes[0]
    assert not costs("llama-4-scout", engine=OLD_VLLM).notes
    assert not costs("qwen3-30b-a3b").notes


def test_unfused_experts_take_host_time_of_their_own() -> None:
    told = OLD_VLLM.model_copy(update={"host_s_per_expert_layer": {}})
    shape = StepShape(8, 8 * 500)
    difference = (
        costs("llama-4-scout", engine=OLD_VLLM).timing(shape).host_s
        - costs("llama-4-scout", engine=told).timing(shape).host_s
    )
    figure = OLD_VLLM.host_s_per_expert_layer["llama4"].value
    assert figure
    assert difference == pytest.approx(figure * model("llama-4-scout").expert_layers, rel=1e-9)


@pytest.mark.parametrize(
    ("field", "times"),
    [
        ("host_s_per_step", 1),
        ("host_s_per_layer", 32),
        ("host_s_per_sequence", 6),
        ("host_s_per_layer_and_sequence", 32 * 6),
    ],
)
def test_each_host_time_comes_as_often_as_its_name_says(field: str, times: int) -> None:
    figure = VLLM.host_s_per_layer
    with_it, without = (
        costs("llama-3.1-8b", engine=VLLM.model_copy(update={field: figure.model_copy(update={"value": value})}))
        for value in (3e-6, 0.0)
    )
    shape = StepShape(5, 5 * 700, 1, 300, 300, 45_150)  # five that decode and one prompt, through 32 layers
    assert with_it.timing(shape).host_s - without.timing(shape).host_s == pytest.approx(3e-6 * times, rel=1e-9)


def test_launching_kernel_by_kernel_is_a_floor_beyond_the_graphs() -> None:
    eager = VLLM.model_copy(
        update={"graph_tokens": 64, "eager_s_per_layer": VLLM.host_s_per_layer.model_copy(update={"value": 1e-3})}
    )
    plain, floored = costs("llama-3.1-8b"), costs("llama-3.1-8b", engine=eager)
    inside, outside = StepShape(64, 64 * 100), StepShape(65, 65 * 100)
    assert floored.segment(inside).seconds == plain.segment(inside).seconds
    layers = model("llama-3.1-8b").layers
    timing = floored.timing(outside)
    assert timing.seconds - timing.host_s == pytest.approx(layers * 1e-3, rel=1e-12)
    assert timing.growth_s == 0
    after = floored.timing(StepShape(65, int(65 * (100 + timing.valid_steps))))
    assert after.seconds > timing.seconds  # the kernels have become what takes longest


@pytest.mark.parametrize(
    ("name", "chip", "more", "says"),
    [
        ("llama-3.1-8b", "l4", {"tensor_parallel": 2}, "no all-reduce figures"),
        ("qwen3-30b-a3b", "m4-max", {"tensor_parallel": 1}, "no figures for experts"),
        ("nemotron-nano-9b-v2", "m4-max", {"tensor_parallel": 1}, "no figures for state layers"),
        ("llama-3.1-8b", "a100-80g-sxm", {"tensor_parallel": 1, "precision": "fp8"}, "no figures for fp8"),
        ("llama-3.1-8b", "h100-sxm", {"tensor_parallel": 1, "precision": "mxfp4"}, "no experts"),
    ],
)
def test_what_a_chip_has_no_figures_for_is_refused(name: str, chip: str, more: dict[str, Any], says: str) -> None:
    profile = load_profile(chip, AcceleratorProfile, "test")[0]
    placement = Placement(model(name), profile, VLLM, more["tensor_parallel"], more.get("precision", "bf16"))
    with pytest.raises(DescriptionError, match=says):
        check_runs(placement, "here")


def test_scenario_with_experts_and_a_window_runs_step_by_step_and_coalesced_alike() -> None:
    data = generate_only(tensor_parallel=2, precision="mxfp4") | {"model": "gpt-oss-120b"}
    coalesced, stepwise = (run(prepared_of(data), step) for step in (False, True))
    assert coalesced.visits["served_s"] == pytest.approx(stepwise.visits["served_s"], rel=1e-9)
    assert coalesced.visits["dynamic_j"] == pytest.approx(stepwise.visits["dynamic_j"], rel=1e-9)


def test_parts_that_contradict_each_other_are_refused() -> None:
    plain = model("llama-3.1-8b").model_dump()
    for parts, says in (
        ({"window": Window(layers=33, tokens=128)}, "more than the 32"),
        ({"experts": Experts(layers=32, count=8, per_token=2, intermediate_size=64)}, "write kind: moe"),
        ({"intermediate_size": 0}, "have a dense MLP"),
        ({"kv_heads": 3}, "does not divide"),
        ({"kind": "hybrid"}, "write kind: dense"),
    ):
        with pytest.raises(ValueError, match=says):
            ModelArchitecture.model_validate(plain | parts)
