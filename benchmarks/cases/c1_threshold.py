"""C1: queries of few tokens on an M1 Pro, longer ones on an A100 (Wilkins et al., arXiv 2407.00010)."""

from __future__ import annotations

from functools import cache
from math import erf, log, sqrt

from cases import Case, Row, scenario
from hsim import load, simulate_path

M1_PRO = [
    "architecture=m1-pro",
    "assume={m1-pro: {memory_bytes_per_s: 200e9, peak_flops_per_s.bf16: 5.2e12, power: {loaded_idle_w: 1, "
    "floor_w: 31, cap_w: 34, joules_per_byte: 0, joules_per_flop: 0, joules_per_output_token: 0}}, "
    "apple-m1-pro-cpu: {idle_w: 0, max_w: 0}, mac-m1-pro: {base_w: 0, psu_efficiency: 1}, vllm-0.5: {request_latency_s: 0}}",
]
A100 = ["assume={vllm-0.5: {request_latency_s: 0}}"]
LENGTHS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
OTHER = 32  # tokens of the other side while one is swept, as theirs
# Alpaca is not shipped. Its card gives 918 bytes a row, in which every text stands twice: about 20 tokens in, 65 out.
MEDIANS, SPREAD = {"in": 17.0, "out": 45.0}, {"in": 0.55, "out": 0.86}


@cache
def joules(machine: str, input_tokens: int, output_tokens: int) -> tuple[float, float]:
    """Joules of GPU and CPUs for one query alone on a machine, and its seconds."""
    prompt = round(input_tokens + (output_tokens - 1) / 2)
    told = [f"workload.classes.query.rounds={output_tokens}", f"workload.classes.query.input_tokens={prompt}"]
    result = simulate_path(load(scenario("c1-threshold"), [*(M1_PRO if machine == "m1" else A100), *told]))
    assert result.energy is not None
    apart = ("power supplies", "site (PUE)", "node spare accelerators", "node servers: fans, memory, network")
    return sum(j for account, _, j in result.energy.accounts if account not in apart), result.window_s


def query(machine: str, side: str, tokens: int) -> tuple[float, float]:
    """A query with so many tokens on one side and 32 on the other."""
    return joules(machine, tokens, OTHER) if side == "in" else joules(machine, OTHER, tokens)


def shares(side: str) -> dict[int, float]:
    """What part of the queries has a length, by the bins that end at LENGTHS: lognormal, since Alpaca is not shipped."""
    below = [0.5 * (1 + erf(log(length / MEDIANS[side]) / SPREAD[side] / sqrt(2))) for length in LENGTHS]
    return {length: high - low for length, low, high in zip(LENGTHS, [0.0, *below], below, strict=False)}


def threshold(side: str) -> tuple[int, float, float]:
    """The longest length that takes fewer joules on the M1 Pro; then the saving and the added time of all queries, in per cent."""
    found = {length: (query("m1", side, length), query("a100", side, length)) for length in LENGTHS}
    part = shares(side)

    def total(limit: int, which: int) -> float:
        return sum(part[n] * (m1 if n <= limit else a100)[which] for n, (m1, a100) in found.items())

    best = min((0, *LENGTHS), key=lambda limit: total(limit, 0))
    return best, 100 * (1 - total(best, 0) / total(0, 0)), 100 * (total(best, 1) / total(0, 1) - 1)


def case() -> Case:
    """Thresholds and savings of both sweeps."""
    rows = []
    for side, name in (("in", "prompts"), ("out", "answers")):
        best, saving, slower = threshold(side)
        rows.append(Row(f"best threshold of {name}", 32.0, float(best), "tokens", WHY[side]))
        rows.append(Row(f"saving at it, by {name}", 7.5, saving, "%", WHY_SAVING))
        rows.append(Row(f"time added at it, by {name} (published: rises)", None, slower, "%", WHY_SLOWER))
    return Case("C1", "A hybrid cluster by token threshold", "c1-threshold", "arXiv 2407.00010", tuple(rows))


CROSSING = (
    "Inside, as theirs: the curves cross where a prefill's FLOPs fill the M1 Pro, whose 200 GB/s, 5.2 TFLOP/s and watts are assumed; "
    "vLLM 0.5 stands for Accelerate on the A100"
)
WHY = {"in": CROSSING, "out": CROSSING}
WHY_SAVING = "They publish one saving for both; Alpaca's lengths are assumed here, and 32 tokens on the other side for every query"
WHY_SLOWER = "They publish no number; a token takes the M1 Pro many times as long"
