"""C4: the cheapest mix of GPUs for short and long requests (Melange, arXiv 2404.14527, repository @d46ab43)."""

from __future__ import annotations

import csv
import gzip
from bisect import bisect_left
from functools import cache
from itertools import product
from pathlib import Path

from cases import Case, Row, scenario
from hsim import load, simulate
from hsim.plan.bounds import Solution, cheapest_mix

TOY_USD = (1.01, 3.67)  # A10G, A100
TOY_THROUGHPUT = (((2, 1), (5, 2)), ((20, 20), (40, 20)))  # requests/s by GPU, size of input and of output
TOY_MIX = ((0.2, 0.1), (0.5, 0.2))
TOY_RATE_PER_S = 30

GPUS = {"a10g-1": 1.01, "hgx-a100-8": 3.67, "hgx-h100-8": 12.29}  # USD an hour of one GPU
A10G_ONLY = ["assume={a10g: {peak_flops_per_s.bf16: 66e12}}"]
INPUTS, OUTPUTS = (64, 256, 1024, 3072), (64, 256, 1024)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SLICES = 4  # of each size, each of which goes to one kind of GPU
NEVER = 1e6  # GPUs that a slice would need of a kind that cannot serve it in time
RATES_PER_S = (1, 2, 4, 8, 16, 32)
SHORT, LONG = "sharegpt300_llmservingsim.csv.gz", "arxiv_summarization_lengths.csv.gz"
DATASETS = {"chat": (SHORT,), "documents": (LONG,), "mixed": (SHORT, LONG)}
# Savings in per cent beside the best and the worst single type, by objective for TPOT in seconds.
THEIRS = {
    ("chat", 0.12): (15.0, 77.0), ("chat", 0.04): (9.0, 68.0), ("documents", 0.12): (15.0, 33.0),
    ("documents", 0.04): (2.0, 22.0), ("mixed", 0.12): (13.0, 51.0), ("mixed", 0.04): (4.0, 51.0),
}  # fmt: skip


def solved(usd: tuple[float, ...], needed: list[list[float]]) -> Solution:
    """The cheapest mix; an assertion where there is none."""
    found = cheapest_mix(usd, needed)
    assert found is not None
    return found


def toy_rows() -> list[Row]:
    """Melange's own example, through hsim's MILP."""
    load_on = [
        [TOY_RATE_PER_S * TOY_MIX[i][j] / TOY_THROUGHPUT[gpu][i][j] for gpu in range(2)]
        for i, j in product(range(2), repeat=2)
    ]
    mix = solved(TOY_USD, load_on)
    alone = {gpu: solved((TOY_USD[gpu],), [[row[gpu]] for row in load_on]).cost for gpu in range(2)}
    exact = "Exact: the MILP is theirs, and so are the throughputs"
    return [
        Row("toy: 3 A10G and 1 A100", 6.70, mix.cost, "USD/h", exact),
        Row("toy: A100 alone", 7.34, alone[1], "USD/h", exact),
        Row("toy: A10G alone", 12.12, alone[0], "USD/h", exact),
    ]


@cache
def requests_per_s(server: str, tpot_s: float, tokens_in: int, tokens_out: int) -> float:
    """The most requests of one size that one GPU serves within a mean TPOT; 0 where it cannot serve one in time."""
    best = 0.0
    for users in USERS:
        told = [f"fleet.box.server={server}", f"workload.arrivals.users={users}", f"workload.tasks={3 * users}"]
        told += [f"workload.classes.size.input_tokens={tokens_in}", f"workload.classes.size.output_tokens={tokens_out}"]
        told += A10G_ONLY if server == "a10g-1" else ["assume={}"]
        study = simulate(load(scenario("c4-melange"), told), replications=1)
        mean_s, rate = study.latency["tpot"].mean_s.value, study.tasks_per_s.value
        assert mean_s is not None and rate is not None
        if mean_s > tpot_s or rate <= best:
            break
        best = rate
    return best


def mix_of(files: tuple[str, ...], data: Path) -> dict[tuple[int, int], float]:
    """What part of the requests has each size, rounded up; requests beyond the model's context are left out."""
    parts: dict[tuple[int, int], float] = {}
    for file in files:
        with gzip.open(data / "traces" / file, "rt") as lines:
            sizes = [(int(row["input_tokens"]), int(row["output_tokens"])) for row in csv.DictReader(lines)]
        fitting = [(i, o) for i, o in sizes if i <= INPUTS[-1] and o <= OUTPUTS[-1]]
        for i, o in fitting:
            size = (INPUTS[bisect_left(INPUTS, i)], OUTPUTS[bisect_left(OUTPUTS, o)])
            parts[size] = parts.get(size, 0.0) + 1 / len(fitting) / len(files)
    return parts


def savings(parts: dict[tuple[int, int], float], tpot_s: float) -> tuple[float, float]:
    """The least and the greatest saving of the mix, in per cent, over rates and single types that can serve all sizes."""
    usd, found = tuple(GPUS.values()), []
    able = {size: [requests_per_s(gpu, tpot_s, *size) for gpu in GPUS] for size in parts}
    for rate in RATES_PER_S:
        needed = [
            [rate * part / SLICES / each if each else NEVER for each in able[size]]
            for size, part in parts.items()
            for _ in range(SLICES)
        ]
        mix = solved(usd, needed).cost
        fit = [gpu for gpu in range(len(usd)) if all(able[size][gpu] for size in parts)]
        found += [100 * (1 - mix / solved((usd[gpu],), [[row[gpu]] for row in needed]).cost) for gpu in fit]
    return max(0.0, min(found)), max(found)


def per_dollar(size: tuple[int, int], tpot_s: float = 0.12) -> float:
    """Requests a dollar of an A10G over those of an A100."""
    small, large = (requests_per_s(gpu, tpot_s, *size) / GPUS[gpu] for gpu in ("a10g-1", "hgx-a100-8"))
    return small / large


def case(data: Path | None) -> Case:
    """The toy, tokens a dollar, and the savings of mixes where the lengths are at hand."""
    rows = toy_rows()
    ratios = {size: per_dollar(size) for size in product(INPUTS, OUTPUTS)}
    rows.append(Row("A10G over A100 in requests a dollar, at best", 1.72, max(ratios.values()), "", WHY_SMALL))
    rows.append(Row("A100 over A10G in requests a dollar, at best", 1.38, 1 / min(ratios.values()), "", WHY_LARGE))
    for (name, tpot_s), theirs in THEIRS.items():
        what = f"saving of the mix, {name}, TPOT {1000 * tpot_s:.0f} ms"
        ours = savings(mix_of(DATASETS[name], data), tpot_s) if data else None
        rows.append(Row(what, theirs, ours, "%", WHY_MIX if data else "needs --data: lengths of requests"))
    return Case("C4", "Melange: a mix of GPUs", "c4-melange", "arXiv 2404.14527, repository @d46ab43", tuple(rows))


WHY_SMALL = (
    "Short requests: bandwidth a dollar. The A10G's FLOP rate is assumed, its kernels are transferred from Hopper's"
)
WHY_LARGE = "Long requests: beside weights and 4 GB kept for CUDA (assumed for 80 GB cards) an A10G holds two of 4,096 tokens; theirs may hold more"
WHY_MIX = (
    "From the best single type at the kindest rate (0: it is the mix) to the worst; their L4 has no price here, the H100 is at AWS' "
    "12.29 USD, ShareGPT and arXiv stand for Arena and PubMed"
)
