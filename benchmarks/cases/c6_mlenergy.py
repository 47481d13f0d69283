"""C6: joules a token against sequences at once, and where FP8 begins to save (ML.ENERGY leaderboard @0cd52da)."""

from __future__ import annotations

from cases import Case, Row, boards_w, scenario
from hsim import load, simulate

SOURCE = "ML.ENERGY leaderboard JSON @0cd52da (vLLM 0.11.1, watts of the boards)"
TASKS_EACH = 4
CHAT_70B = ["workload.classes.chat.output_tokens={kind: lognormal, median: 301, p95: 749}"]
GPQA = [
    "workload.classes.chat.input_tokens=300",
    "workload.classes.chat.output_tokens={kind: lognormal, median: 1527, p95: 3801}",
    "workload.classes.chat.max_output_tokens=16384",
]
LLAMA_70B = ["model=llama-3.1-70b", "pools.llm.tensor_parallel=4", *CHAT_70B]
GPT_OSS = ["model=gpt-oss-120b", "pools.llm.precision=mxfp4", *GPQA]
IN_SAMPLE = "In sample: the H100's joules and vLLM's host times were fitted on this run among 161"
WHY_FULL = (
    "Prompts of 250 tokens are assumed: 898 such do not fit in our KV cache, and wait; with 100 tokens ours is 0.394"
)
CURVES: tuple[tuple[str, list[str], int, float, str], ...] = (
    ("Llama 3.1 8B, 1 x H100, 8 sequences", [], 8, 0.455, IN_SAMPLE),
    ("the same, 64 sequences", [], 64, 0.119, IN_SAMPLE),
    ("the same, 255 sequences", [], 255, 0.077, IN_SAMPLE),
    ("the same, 511 sequences", [], 511, 0.070, IN_SAMPLE),
    ("Llama 3.1 70B, 4 x H100, 8 sequences", LLAMA_70B, 8, 3.76, IN_SAMPLE + "; 9 % more watts than metered here"),
    ("the same, 898 sequences", LLAMA_70B, 898, 0.373, WHY_FULL),
    ("gpt-oss-120b, 1 x H100, GPQA, 8 sequences", GPT_OSS, 8, 0.684, IN_SAMPLE),
)
# FP8 over BF16 in joules a token, Qwen3-235B-A22B, 8 x H100, by sequences at once.
CROSSOVER = {8: 1.56, 16: 1.22, 32: 0.95, 64: 0.88, 96: 0.89, 128: 0.92, 192: 0.96}
# Joules a token by sequences at once: FP8 on 4 x H100, BF16 on 8 x H100.
FEWER_GPUS = {8: (9.47, 7.29), 64: (1.741, 2.394), 192: (0.840, 1.149)}


def joules_per_token(name: str, users: int, settings: list[str]) -> float:
    """Joules of the boards for each output token in a closed loop of so many users."""
    loop = [f"workload.arrivals.users={users}", f"workload.tasks={TASKS_EACH * users}"]
    study = simulate(load(scenario(name), [*settings, *loop]), replications=1)
    assert study.output_tokens_per_s.value is not None
    return boards_w(study, "llm") / study.output_tokens_per_s.value


def curves() -> Case:
    """Joules a token of three models."""
    rows = [
        Row(what, theirs, joules_per_token("c6-mlenergy", users, settings), "J/token", why)
        for what, settings, users, theirs, why in CURVES
    ]
    return Case("C6", "Joules a token as batches grow", "c6-mlenergy", SOURCE, tuple(rows))


def crossover() -> Case:
    """FP8 beside BF16 on as many GPUs, and on half as many."""
    fp8 = ["pools.llm.precision=fp8_block"]
    bf16_j = {users: joules_per_token("c6-fp8-crossover", users, []) for users in CROSSOVER}
    rows = [
        Row(
            f"FP8 over BF16 in J/token, {users} sequences",
            theirs,
            joules_per_token("c6-fp8-crossover", users, fp8) / bf16_j[users],
            "",
            WHY_EQUAL,
        )
        for users, theirs in CROSSOVER.items()
    ]
    slow = [*fp8, f"assume.vllm-0.11.1.host_s_per_layer={fp8_layer_s(bf16_j[8])}"]
    for users, theirs in CROSSOVER.items():
        ours = joules_per_token("c6-fp8-crossover", users, slow) / bf16_j[users]
        what = f"the same with time a layer read off their row of 8, {users} sequences"
        rows.append(Row(what, theirs, ours, "", WHY_PUT_IN if users == 8 else WHY_SLOW))
    for users, (half, whole) in FEWER_GPUS.items():
        ours = joules_per_token("c6-fp8-crossover", users, [*fp8, "pools.llm.tensor_parallel=4"]) / bf16_j[users]
        rows.append(Row(f"FP8 on 4 over BF16 on 8 GPUs, {users} sequences", half / whole, ours, "", WHY_FEWER))
    return Case("C6b", "Where FP8 begins to save", "c6-fp8-crossover", SOURCE, tuple(rows))


def fp8_layer_s(bf16_j: float) -> float:
    """Host seconds a layer at which FP8 takes 1.56 times the joules of BF16 for 8 sequences, as theirs do."""
    low, high = 0.0, 2e-3
    while high - low > 1e-6:
        middle = (low + high) / 2
        told = ["pools.llm.precision=fp8_block", f"assume.vllm-0.11.1.host_s_per_layer={middle}"]
        over = joules_per_token("c6-fp8-crossover", 8, told) > CROSSOVER[8] * bf16_j
        low, high = (low, middle) if over else (middle, high)
    return middle


WHY_PUT_IN = "Put in"
WHY_SLOW = (
    "Near at once beyond 8, then too high: hsim adds host time to kernels, and theirs overlaps as steps grow longer"
)
WHY_EQUAL = (
    "Not found: hsim halves the bytes and adds microseconds of quantising. A step of theirs must take some 50 ms at 8 sequences "
    "(9.47 J/token on 4 GPUs); no kernel table shows why, and nothing was fitted on FP8 experts of this size"
)
WHY_FEWER = "As above: fewer GPUs do save, by too much here, and theirs loses at 8"
