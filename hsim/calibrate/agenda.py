"""What to measure on a device, in order of worth: the least that makes a profile first, refinements later."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from hsim.backends.couriers import Manner
from hsim.calibrate.work import Parameters, Unit
from hsim.description.hardware import Precision
from hsim.description.model import ModelArchitecture

ROUNDS = 4  # each point is measured again while the budget lasts: a later round is worth less
POWER_ROUNDS = 2
BETWEEN, HAND_OVER = "between", "hand-over"  # what the live loop takes between two steps, and to hand over a job
JOB = "products"  # what a core does there: its weights come from memory, as an encoder's do
LOOP_INPUT_TOKENS, LOOP_OUTPUT_TOKENS = 32, 24
LOOP_OUTPUT_TOKENS_PER_USER = (
    3  # beside many users each answer is longer, so that most steps have a sequence of every user
)
LOOP_JOBS = 96  # units of all users' jobs at most: were jobs longer, many users would wait for the core and not decode
LOOP_JOB_UNITS = 6  # about 10 ms, as an encoder takes for a short text
UNLIKE = 0.8  # contexts of a batch that is measured lie within this part of their mean
CHECKS, FIRST_CHECKS = 24, 6  # steps at random points, kept out of the table to test it
WINDOW_S = 6.0  # an energy counter that ticks every 0.1 s errs by 3 % over so long
RAMP_S = 2.0  # power and clocks settle before the window opens
MOST_CPU_FLOPS = 2e10  # larger products and attention take too long on a core
MOST_CPU_WEIGHTS = 1 << 27  # and larger matrices too much of its memory
KERNEL_S = {"cpu": 0.25, "cuda": 0.1}
STEP_S = {"cpu": 1.2, "cuda": 0.2}  # on a CPU with its rests
LOOP_S = 3.0
PAYLOAD_S = 0.6
OPERATION_S = 1.8  # with its rests
CONTENTION_S = 0.6  # without: cores that rested would not work at the same time
SELDOM = ("json-validate", "html-to-text", "bm25-search", "classify-intent", "summarise-lexrank")  # not in local.yaml
WAITING_OPERATIONS = ("http-call",)  # they wait for another process
SETUP_S = {"hnsw-search": 10.0, "encode-minilm": 5.0, "sql-aggregate": 2.0, "full-text-search": 2.0, "tokenise": 3.0}
ROWS = {"cpu": (1, 4, 16, 64, 256), "cuda": (1, 8, 32, 128, 512, 2048, 8192)}
SQUARES = {"cpu": (512, 1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192)}
BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 8, 64, 256)}
CONTEXTS = {"cpu": (128, 512, 2048), "cuda": (128, 1024, 8192)}
PROMPTS = {"cpu": (16, 64, 128, 256, 512, 1024), "cuda": (64, 512, 2048, 8192)}
COPIES_BYTES = (1 << 20, 1 << 24, 1 << 28)
REDUCED_BYTES = (1 << 13, 1 << 17, 1 << 21, 1 << 25)
PAYLOADS_BYTES = (1 << 10, 1 << 14, 1 << 18, 1 << 22)
MESSAGES = 16
PIECES = 64  # in which a transfer is made that is not batched
EXPERTS = (
    (128, 8, 2048, 768),
    (8, 2, 4096, 14336),
)  # experts, of them per token, widths: Qwen3-30B-A3B and Mixtral 8x7B
TRANSFERS_BYTES = (1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 28)


@dataclass(frozen=True)
class Served:
    """How hsim's decoder is set up while its steps are measured: the limits that its engine profile will name."""

    model: ModelArchitecture
    precision: Precision
    slots: int
    max_context_tokens: int
    max_num_batched_tokens: int


@dataclass(frozen=True)
class Target:
    """A device to be measured: the precisions that it has, what it serves, and models whose shapes matter.

    `operations` are CPU operations with the sizes to measure them at, `own` the code (its hash) of a person's own; `metered`
    says whether watts can be had. A CPU that is `host_only` does not generate: its kernels and steps are of no interest.
    `peers` are the devices of its kind, itself included.
    """

    device: str
    precisions: tuple[Precision, ...]
    served: Served
    shapes: tuple[ModelArchitecture, ...] = ()
    operations: tuple[tuple[str, tuple[int, ...]], ...] = ()
    cores: int = 1
    metered: bool = False
    host_only: bool = False
    own: Mapping[str, str] = field(default_factory=dict)
    peers: int = 1

    @property
    def kind(self) -> str:
        """Cpu or cuda: what grids are made for."""
        return self.device.split(":")[0]


def agenda(target: Target) -> list[Unit]:
    """Every unit worth measuring, best first; of equal worth a like part of every kind, wherever the budget ends."""
    beside = (_movement, _operations, _power)
    parts = (
        beside
        if target.host_only
        else (_steps, _loop, _gemms, _attention, _whole_layers, _experts, _all_reduces, *beside)
    )
    first = [unit for part in parts for unit in part(target)]
    rounds = [
        replace(
            unit,
            round=number,
            worth=unit.worth + _less(unit) * (number - 1),
            setup_s=unit.setup_s if number == 1 else 0.0,
        )
        for number in range(1, ROUNDS + 1)
        for unit in first
        if number <= _rounds_of(unit)
    ]
    return in_turn(rounds)


def in_turn(units: Sequence[Unit]) -> list[Unit]:
    """Units by worth, and within a worth each kind spread evenly over the whole."""
    groups: dict[tuple[int, str, str], list[Unit]] = {}
    for unit in units:
        groups.setdefault((unit.worth, unit.device, unit.kind), []).append(unit)
    placed = [(worth, i / len(group), unit) for (worth, *_), group in groups.items() for i, unit in enumerate(group)]
    return [unit for _, _, unit in sorted(placed, key=lambda place: place[:2])]


def _less(unit: Unit) -> int:
    """Levels that a later round is worth less: plain steps carry most of a prediction, and single ones meet slow seconds."""
    plain = unit.kind == "step" and unit.parameters["role"] in ("decode", "chunk")
    return 1 if unit.kind == "loop" or plain else 2


def _rounds_of(unit: Unit) -> int:
    return POWER_ROUNDS if unit.kind in ("idle", "power", "cpu-power") else ROUNDS


# ---- steps of hsim's decoder


def _step(target: Target, worth: int, at: Parameters) -> Unit:
    named = {"model": target.served.model.name, "dtype": target.served.precision}
    return Unit("step", target.device, {**named, **at}, worth, STEP_S[target.kind])


def _steps(target: Target) -> Iterator[Unit]:
    served = target.served
    longest = int(served.max_context_tokens / (1 + UNLIKE))
    yield from _checks(target)
    for decodes, one in _ladder(_batches(served.slots)):
        for context, other in _ladder((16, *_powers(longest // 16, longest, 4))):
            yield _step(target, max(one, other), {"role": "decode", "decodes": decodes, "context": context})
    for tokens, one in _ladder(_powers(2, served.max_num_batched_tokens, 4)):
        for share, other in ((0.0, 0), (0.25, 1), (0.7, 0)):
            history = int(share * (served.max_context_tokens - tokens))
            yield _step(target, max(one, other), {"role": "chunk", "tokens": tokens, "history": history})
    room = served.max_num_batched_tokens - served.slots
    for decodes, one in ((1, 1), (served.slots // 2, 0), (served.slots - 1, 1)):
        for tokens, other in ((8, 1), (room // 4, 0), (room, 0)):
            at: Parameters = {
                "role": "mixed",
                "decodes": decodes,
                "context": served.max_context_tokens // 8,
                "tokens": tokens,
            }
            yield _step(target, max(one, other), at)
    for chunks in (2, 4):
        yield _step(target, 1, {"role": "chunks", "tokens": room // chunks * chunks, "chunks": chunks})


def _loop(target: Target) -> Iterator[Unit]:
    """What the live loop itself takes, with one user, and with as many as there are slots. Of a round all is seen in one run."""
    slots, longest = target.served.slots, target.served.max_context_tokens - LOOP_INPUT_TOKENS
    for users in (1, slots, max(2, slots // 4)):
        tokens = min(max(LOOP_OUTPUT_TOKENS, LOOP_OUTPUT_TOKENS_PER_USER * users), longest)
        units = min(LOOP_JOB_UNITS, max(1, LOOP_JOBS // users))
        for role in (BETWEEN, HAND_OVER):
            at: Parameters = {"role": role, "users": users, "output_tokens": tokens, "job_units": units}
            yield Unit("loop", target.device, at, 1, LOOP_S if role == BETWEEN else 0.1)


def _checks(target: Target) -> Iterator[Unit]:
    """Steps of unlike sequences, as serving meets them: mixed contexts, many with a chunk or two."""
    served = target.served
    draw = random.Random(served.model.name)  # the same points on every machine, so that errors compare
    for number in range(CHECKS):
        chunks = number % 3
        decodes = draw.randint(0 if chunks else 1, max(1, served.slots - 2))
        contexts = [draw.randint(16, served.max_context_tokens - 1) for _ in range(decodes)]
        room = served.max_num_batched_tokens - decodes
        tokens = [draw.randint(2, max(2, room // max(1, chunks))) for _ in range(chunks)]
        history = [draw.choice((0, draw.randint(1, served.max_context_tokens - t))) for t in tokens]
        at = {"contexts": _listed(contexts), "tokens": _listed(tokens), "history": _listed(history)}
        yield _step(target, 1 if number < FIRST_CHECKS else 2, {"role": "check", **at})


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def step_parts(at: Parameters) -> tuple[list[int], list[tuple[int, int]]]:
    """Context tokens of each decode, and (tokens, tokens before them) of each chunk, of a step unit."""
    if at["role"] == "check":
        contexts, tokens, history = ([int(x) for x in str(at[k]).split()] for k in ("contexts", "tokens", "history"))
        return contexts, list(zip(tokens, history, strict=True))
    decodes = _unlike(int(at["decodes"]), int(at["context"])) if "decodes" in at else []
    if "tokens" not in at:
        return decodes, []
    count = int(at.get("chunks", 1))
    return decodes, [(int(at["tokens"]) // count, int(at.get("history", 0)))] * count


def _unlike(count: int, mean: int) -> list[int]:
    """So many contexts of that mean, evenly spread around it, in no order.

    Sequences that are served are unlike each other, and attention takes longer for them than for equal ones.
    """
    offsets = [int(UNLIKE * mean * (1 - (2 * i + 1) / count)) for i in range(count // 2)]
    contexts = [mean + o for o in offsets] + [mean - o for o in offsets] + [mean] * (count % 2)
    random.Random(count).shuffle(contexts)
    return contexts


# ---- kernels


def _products(model: ModelArchitecture) -> list[tuple[int, int]]:
    """(outputs, inputs) of a model's matrix products."""
    return [(product.outputs, product.inputs) for product in model.products]


def _gemms(target: Target) -> Iterator[Unit]:
    served, kind = target.served, target.kind
    own = {*_products(served.model), (served.model.vocabulary, served.model.hidden_size)}
    squares = {(size, size) for size in SQUARES[kind]}
    others = {shape for model in target.shapes for shape in (*_products(model), (model.vocabulary, model.hidden_size))}
    few, corners = (ROWS[kind][0], ROWS[kind][3]), {min(own), max(own)}
    for precision in sorted(target.precisions, key=lambda p: p != served.precision):
        extra = 0 if precision == served.precision else 1
        for shapes, worth in ((corners, 0), ((own | squares) - corners, 1), (others - own - squares, 2)):
            for n, k in sorted(shapes):
                for m in ROWS[kind]:
                    if kind == "cpu" and (2.0 * m * n * k > MOST_CPU_FLOPS or n * k > MOST_CPU_WEIGHTS):
                        continue
                    at = {"m": m, "n": n, "k": k, "dtype": precision}
                    yield Unit("gemm", target.device, at, worth + extra + (m not in few), KERNEL_S[kind])


def _heads(target: Target) -> list[tuple[tuple[int, int, int], int]]:
    """(heads, KV heads, head_dim) of the models that matter, each with how much less it is worth."""
    models = (target.served.model, *target.shapes)
    shapes = dict.fromkeys((m.attention_heads, m.kv_heads, m.head_dim) for m in models)
    return [(shape, int(i > 0)) for i, shape in enumerate(shapes)]


def _attention(target: Target) -> Iterator[Unit]:
    kind, precision = target.kind, target.served.precision
    for (heads, kv_heads, head_dim), less in _heads(target):
        shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "dtype": precision}
        for batch, one in _ladder(BATCHES[kind]):
            for context, other in _ladder(CONTEXTS[kind]):
                at = {"batch": batch, "context": context, **shape}
                yield Unit("decode-attention", target.device, at, less + max(one, other), KERNEL_S[kind])
        for i, tokens in enumerate(PROMPTS[kind]):
            if kind == "cpu" and 4.0 * heads * head_dim * tokens**2 > MOST_CPU_FLOPS:
                continue
            at = {"tokens": tokens, **shape}
            yield Unit("prefill-attention", target.device, at, less + i % 2, KERNEL_S[kind])


def _whole_layers(target: Target) -> Iterator[Unit]:
    """One layer of a model in hsim's own decoder: what its kernels' laws, added up, must give."""
    served = target.served
    models = (served.model,) if target.kind == "cpu" else (served.model, *target.shapes)
    longest = int(served.max_context_tokens / (1 + UNLIKE))
    for model in {one.name: one for one in models if is_plain(one)}.values():
        for decodes in sorted({1, served.slots // 4, served.slots}):
            at: Parameters = {
                "model": model.name,
                "dtype": served.precision,
                "role": "decode",
                "decodes": decodes,
                "context": longest // 4,
            }
            yield Unit("layer", target.device, at, 2, STEP_S[target.kind])


def is_plain(model: ModelArchitecture) -> bool:
    """Whether hsim's own decoder builds it, and all its layers are alike."""
    special = model.experts or model.latent or model.state or model.window or model.attention_layers or model.mlp_layers
    return not special and model.gated_mlp


def one_layer(model: ModelArchitecture) -> ModelArchitecture:
    """One layer of a model, with next to no vocabulary."""
    return model.model_copy(
        update={"name": f"one layer of {model.name}", "layers": 1, "vocabulary": 64, "tied_embeddings": True}
    )


def _experts(target: Target) -> Iterator[Unit]:
    """Routed experts, on accelerators only: a core takes seconds for them."""
    if target.kind == "cpu":
        return
    for experts, per_token, hidden, width in EXPERTS:
        shape = {"experts": experts, "per_token": per_token, "hidden": hidden, "width": width}
        for tokens, worth in _ladder(ROWS[target.kind][:-1]):
            at: Parameters = {"tokens": tokens, **shape, "dtype": target.served.precision}
            yield Unit("experts", target.device, at, 2 + worth, KERNEL_S[target.kind])


def _all_reduces(target: Target) -> Iterator[Unit]:
    """Sums over two devices and more: what tensor parallelism waits for, twice a layer."""
    for devices in _powers(2, target.peers, 2) if target.peers > 1 else ():
        for n_bytes, worth in _ladder(REDUCED_BYTES):
            at: Parameters = {"bytes": n_bytes, "devices": devices, "dtype": target.served.precision}
            yield Unit(
                "all-reduce",
                target.device,
                at,
                1 + worth,
                KERNEL_S[target.kind],
                setup_s=20.0 if n_bytes == REDUCED_BYTES[0] else 0.0,
            )


def _movement(target: Target) -> Iterator[Unit]:
    kind = target.kind
    for n_bytes in COPIES_BYTES:
        yield Unit("memory-copy", target.device, {"bytes": n_bytes}, 1, KERNEL_S[kind])
    yield Unit("launch", target.device, {}, 1, KERNEL_S[kind])
    if kind == "cpu":
        yield from _payloads(target)
    else:
        for memory in ("pinned", "pageable"):
            for direction in ("h2d", "d2h"):
                for n_bytes, worth in _ladder(TRANSFERS_BYTES):
                    at = {"bytes": n_bytes, "direction": direction, "memory": memory}
                    yield Unit("transfer", target.device, at, worth + 1, KERNEL_S[kind])
                at = {"bytes": TRANSFERS_BYTES[2], "direction": direction, "memory": memory, "pieces": PIECES}
                yield Unit("transfer", target.device, at, 2, KERNEL_S[kind])


def _payloads(target: Target) -> Iterator[Unit]:
    """What passes between stages, moved between two processes: alone, and many messages one after another."""
    for manner in get_args(Manner):
        for n_bytes, worth in _ladder(PAYLOADS_BYTES):
            at: Parameters = {"by": manner, "bytes": n_bytes, "messages": 1}
            yield Unit("payload", target.device, at, worth + 1, PAYLOAD_S)
        at = {"by": manner, "bytes": PAYLOADS_BYTES[0], "messages": MESSAGES}
        yield Unit("payload", target.device, at, 1, PAYLOAD_S)


# ---- CPU operations, and power


def _operations(target: Target) -> Iterator[Unit]:
    """Each operation at its sizes, resting in between; its middle one without rests, on one core and more at a time."""
    for name, sizes in target.operations:
        for units, worth in _ladder(sizes):
            at, first = _operation(target, name, units, sizes, 1), units == sizes[0]
            setup_s = SETUP_S.get(name, 0.0) if first else 0.0
            less = 0 if name in target.own else worth + 1 + (name in SELDOM)
            yield Unit("operation", target.device, at, less, OPERATION_S, setup_s=setup_s)
        for workers in (1, *_powers(2, target.cores, 2)) if target.cores > 1 else ():
            at = _operation(target, name, sizes[len(sizes) // 2], sizes, workers)
            yield Unit("contention", target.device, at, 2, CONTENTION_S, setup_s=SETUP_S.get(name, 0.0))


def _operation(target: Target, name: str, units: int, sizes: Sequence[int], workers: int) -> Parameters:
    # Full text looks at its whole collection, so that it is made anew for each size; the others for the largest.
    size = units if name == "full-text-search" else max(sizes)
    # Which code a person's own operation is: what another one took says nothing of it.
    code = {"code": target.own[name]} if name in target.own else {}
    return {"name": name, "units": units, "size": size, "workers": workers, **code}


def bare_idle(device: str) -> Unit:
    """The power of a device on which nothing was loaded yet: it must be measured before anything else."""
    return Unit("idle", device, {"state": "bare"}, -1, RAMP_S + WINDOW_S)


def _power(target: Target) -> Iterator[Unit]:
    if not target.metered:
        return
    served, each_s = target.served, RAMP_S + WINDOW_S
    if target.kind == "cpu":
        for busy, worth in _ladder((0, *_powers(1, target.cores, 2))):
            yield Unit("cpu-power", target.device, {"busy": busy}, worth + 1, each_s)
        return
    yield Unit("idle", target.device, {"state": "loaded"}, 0, each_s)
    named = {"model": served.model.name, "dtype": served.precision}
    context = served.max_context_tokens // 4
    at: Parameters
    for decodes, worth in _ladder(_powers(1, served.slots, 4)):
        at = {"of": "step", **named, "role": "decode", "decodes": decodes, "context": context}
        yield Unit("power", target.device, at, worth + 1, each_s)
    at = {"of": "step", **named, "role": "chunk", "tokens": served.max_num_batched_tokens, "history": 0}
    yield Unit("power", target.device, at, 1, each_s)
    size = SQUARES[target.kind][-1]
    for m, worth in ((1, 1), (128, 2), (512, 2), (8192, 1)):
        at = {"of": "gemm", "m": m, "n": size, "k": size, "dtype": served.precision}
        yield Unit("power", target.device, at, worth, each_s)
    yield Unit("power", target.device, {"of": "memory-copy", "bytes": COPIES_BYTES[-1]}, 2, each_s)


# ---- grids


def _powers(first: int, last: int, factor: int) -> tuple[int, ...]:
    """First, first * factor ... and last, whatever it is; two points close together say nothing of the slope."""
    values = []
    value = first
    while value * factor**0.5 <= last:
        values.append(value)
        value *= factor
    return (*values, last)


def _batches(slots: int) -> tuple[int, ...]:
    """Powers of two, and what lies before the last: products of 16 rows are quicker than of 15, and 9 to 15 take longer than
    between 8 and 16 in proportion.
    """
    return tuple(sorted({*_powers(1, slots, 2), max(1, 3 * slots // 4), max(1, slots - 1)}))


def _ladder(values: Sequence[int]) -> list[tuple[int, int]]:
    """Each value with its worth: the ends of a grid make a law, what lies between makes it better."""
    ends = (values[0], values[-1])
    return [(value, 0 if value in ends else 1) for value in values]
