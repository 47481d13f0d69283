"""C9: tokens a joule against the context window at as many sequences as fit (arXiv 2603.17280)."""

from __future__ import annotations

from math import log2

from cases import Case, Row, boards_j, scenario
from hsim import load, simulate_path

PROMPT_TOKENS = 16
GPUS = 8
# window in tokens: (sequences that fit, tokens a joule), H100, as published.
THEIRS = {2048: (512, 35.0), 4096: (256, 17.6), 8192: (128, 8.97), 16384: (64, 4.69), 32768: (32, 2.58), 65536: (16, 1.50)}  # fmt: skip
B200_GAIN = 1.7  # H100 to B200, any window
B200_KV = 2.62  # as many sequences on the B200: their ratio of memory left for KV


def tokens_per_joule(window: int, users: int, settings: list[str]) -> float:
    """Output tokens for each joule of the boards while every user writes one window."""
    told = [f"workload.arrivals.users={users}", f"workload.tasks={users}"]
    told += [f"workload.classes.window.output_tokens={window - PROMPT_TOKENS}"]
    result = simulate_path(load(scenario("c9-context"), [*told, *settings]))
    return result.output_tokens / boards_j(result, "llm")


def case() -> Case:
    """The law's slope, its two ends, and the newer GPU."""
    ours = {window: tokens_per_joule(window, users, []) for window, (users, _) in THEIRS.items()}
    short, long = 4096, 65536
    doublings = log2(long / short)
    slope, theirs = ((at[short] / at[long]) ** (1 / doublings) for at in (ours, {w: t for w, (_, t) in THEIRS.items()}))
    rows = [Row("tokens a joule, factor of each doubling from 4K to 64K", theirs, slope, "", WHY_SLOPE)]
    for window in (short, long):
        users, theirs = THEIRS[window]
        what = f"tokens a joule, {users} windows of {window // 1024}K on 8 H100"
        rows.append(Row(what, theirs, ours[window], "tokens/J", WHY_LEVEL))
        each = f"the same, their watts taken {GPUS} times"
        rows.append(Row(each, theirs / GPUS, ours[window], "tokens/J", WHY_EIGHTH))
    newer = tokens_per_joule(short, round(THEIRS[short][0] * B200_KV), ["fleet.box.server=hgx-b200-8"])
    rows.append(Row("B200 over H100, windows of 4K", B200_GAIN, newer / ours[short], "", WHY_B200))
    rows.append(Row("two pools by length over one", 2.5, None, "", WHY_POOLS))
    return Case("C9", "The context law", "c9-context", "arXiv 2603.17280, table 1 and abstract", tuple(rows))


WHY_SLOPE = "The law says 2, its own table 1.85: power falls too. Ours rises from 1.27 (2K to 4K) to 1.88 (32K to 64K): at 256 sequences vLLM's host takes part of each step"
WHY_LEVEL = "Theirs divides the tokens of eight GPUs by the watts of one: 256 / 24.5 ms / 593 W is their 17.6"
WHY_EIGHTH = "A step takes 31.9 ms at 4K (host time, not in theirs) and 18.2 ms at 64K, theirs 24.5 ms at both: their scan of KV cache runs at 1.4 TB/s a GPU"
WHY_B200 = "The B200's kernels and watts are transferred from Hopper's; theirs are projected too"
WHY_POOLS = "A scenario has one pool that generates; requests cannot be told apart by length before it"
