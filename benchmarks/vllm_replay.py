"""Does the engine queue and batch as vLLM does? Two real request logs replayed, step times fitted on their early part.

    python benchmarks/vllm_replay.py --data ../shared/data

Each log (vLLM 0.19 on RTX PRO 6000, 300 requests) gives arrivals and lengths, which are inputs, and first and last token
times, which are outcomes. Five non-negative coefficients of a step (fixed, per prompt token, per sequence, per token of
context, per attended pair) are fitted to the outcomes of the first third of the requests alone; the outcomes of the
others are then predicted. Nothing else is fitted: batching, chunking and queueing are the engine's. The second run
is data-parallel with experts in common: its two engines step in lockstep, so they are one replica of twice the limits.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from hsim.costs.shapes import Segment, StepCosts, StepShape
from hsim.drivers.replay import Limits
from hsim.drivers.replay import replay as replay_tasks
from hsim.workload.tasks import Round, Task

EARLY = 1 / 3
KV_TOKENS = 400_000  # of one replica: more than these logs ever hold, so that it does not matter
QUANTITIES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True)
class LinearSteps:
    """Seconds of a step, linear in what it does: StepCosts."""

    fixed_s: float
    prompt_token_s: float
    sequence_s: float
    context_token_s: float
    pair_s: float

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts."""
        sequences = shape.decodes + shape.chunks
        seconds = self.fixed_s + self.prompt_token_s * shape.chunk_tokens + self.sequence_s * sequences
        seconds += self.context_token_s * shape.context_tokens + self.pair_s * shape.pairs
        growth = self.context_token_s * shape.decodes + self.pair_s * shape.pairs_growth
        return Segment(seconds, growth, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class RequestLog:
    """One run: what was asked, and what came of it. Shapes (requests,), seconds and tokens, in order of arrival."""

    name: str
    max_num_seqs: int
    max_num_batched_tokens: int
    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    measured: dict[str, NDArray[np.float64]]


def read_logs(file: Path) -> list[RequestLog]:
    """The runs of request_level_vllm.csv.gz."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = dict.fromkeys(row["run"] for row in rows)
    by_run = ([row for row in rows if row["run"] == name] for name in names)
    return [log_of(sorted(mine, key=lambda row: float(row["arrival_s"]))) for mine in by_run]


def log_of(rows: Sequence[Mapping[str, Any]]) -> RequestLog:
    """The log of one run's rows, in order of arrival."""

    def column(key: str, scale: float = 1.0) -> NDArray[np.float64]:
        return np.array([float(row[key]) for row in rows]) * scale

    first = rows[0]
    return RequestLog(
        str(first["run"]),
        int(first["dp"]) * int(first["max_num_seqs"]),
        int(first["dp"]) * int(first["max_num_batched_tokens"]),
        column("arrival_s"),
        column("input_tokens").astype(np.int64),
        column("output_tokens").astype(np.int64),
        {quantity: column(f"{quantity}_ms", 1e-3) for quantity in QUANTITIES},
    )


def replay(log: RequestLog, costs: StepCosts) -> dict[str, NDArray[np.float64]]:
    """The log's requests through the engine. Shapes (requests,)."""
    lengths = zip(log.arrival_s, log.input_tokens, log.output_tokens, strict=True)
    tasks = [
        Task(i, float(at), "request", 0, int(n_out), (Round(None, int(n_in), int(n_out)),))
        for i, (at, n_in, n_out) in enumerate(lengths)
    ]
    rows = replay_tasks(tasks, costs, Limits(log.max_num_seqs, log.max_num_batched_tokens, KV_TOKENS))
    later = np.maximum(1, rows["output_tokens"] - 1)
    return {
        "ttft": rows["first_token_s"] - rows["ready_s"],
        "tpot": (rows["served_s"] - rows["first_token_s"]) / later,
        "e2e": rows["served_s"] - rows["ready_s"],
    }


def fitted(log: RequestLog, early: int) -> LinearSteps:
    """Coefficients from the outcomes of the first requests: relative errors of TTFT and TPOT, outliers damped."""
    start = np.log([8e-3, 2e-5, 5e-5, 3e-8, 1e-9])

    def errors(logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
        predicted = replay(log, LinearSteps(*np.exp(logarithms)))
        parts = [np.log(predicted[q][:early] / log.measured[q][:early]) for q in ("ttft", "tpot")]
        return np.concatenate(parts)

    found = least_squares(errors, start, loss="soft_l1", f_scale=0.1, diff_step=0.05, max_nfev=40)
    return LinearSteps(*np.exp(found.x))


def score(log: RequestLog) -> Sequence[tuple[str, str, float, float]]:
    """(quantity, statistic, predicted, measured) over the requests whose outcomes the fit did not see."""
    early = int(EARLY * len(log.arrival_s))
    costs = fitted(log, early)
    print(
        f"\n{log.name}: {len(log.arrival_s) - early} requests predicted from {early}; a step takes {costs.fixed_s * 1e3:.2f} ms"
        f" + {costs.prompt_token_s * 1e6:.1f} us a prompt token + {costs.sequence_s * 1e6:.1f} us a sequence"
        f" + {costs.context_token_s * 1e9:.1f} ns a context token + {costs.pair_s * 1e9:.3f} ns a pair"
    )
    predicted = replay(log, costs)
    alone = replay(replace(log, arrival_s=log.arrival_s * 1e3), costs)  # nobody meets anybody: what queueing adds
    print(f"without queueing or batching e2e would be {alone['e2e'][early:].mean():.2f} s")
    rows = []
    for quantity in QUANTITIES:
        ours, theirs = predicted[quantity][early:], log.measured[quantity][early:]
        rows.append((quantity, "mean", float(ours.mean()), float(theirs.mean())))
        rows += [(quantity, f"p{p}", *(float(np.percentile(x, p)) for x in (ours, theirs))) for p in (50, 90)]
    return rows


def main() -> None:
    """Print predicted beside measured for every run of the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of request_level_vllm.csv.gz")
    options = parser.parse_args()
    for log in read_logs(options.data / "request_level_vllm.csv.gz"):
        for quantity, statistic, ours, theirs in score(log):
            print(f"{quantity:<6}{statistic:<6}{ours * 1e3:>12.1f} ms{theirs * 1e3:>12.1f} ms{ours / theirs - 1:>9.1%}")


if __name__ == "__main__":
    main()
