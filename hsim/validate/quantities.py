"""What is compared of two runs of the same tasks: throughput, latencies, each stage's waiting and service."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.log import Log, Outcome, Stage, visits_table
from hsim.metrics.measured import samples_of

Quantities = dict[str, tuple[float, str]]
"""Value and unit by name."""

MIN_FOR_P95 = 200  # ten points beyond it
EDGE = 0.2  # of the tasks to end are left out at either end, where capacity is read
FEWEST_FOR_CAPACITY = 10


@dataclass(frozen=True)
class Accounted:
    """What became of every task of a run."""

    asked: int
    served: int
    timed_out: int
    shed: int
    failed: int

    @property
    def unfinished(self) -> int:
        """Begun or not, they had no end when the run was stopped."""
        return self.asked - self.served - self.timed_out - self.shed - self.failed


def accounted(log: Log, asked: int) -> Accounted:
    """What became of every task that a run was asked for."""
    counts = np.bincount(log.tasks.arrays()["outcome"].astype(np.int64), minlength=len(Outcome)).tolist()
    return Accounted(
        asked, *(counts[kind] for kind in (Outcome.SERVED, Outcome.TIMED_OUT, Outcome.SHED, Outcome.FAILED))
    )


def quantities(log: Log) -> Quantities:
    """What is compared of a run; empty where no task was served."""
    tables = log.arrays()
    tasks, visits = tables["tasks"], tables["visits"]
    served = tasks["outcome"] == Outcome.SERVED
    if not served.any():
        return {}
    window_s = float(tasks["ended_s"].max() - tasks["arrival_s"].min())
    tokens = float(visits["output_tokens"].sum())
    found: Quantities = {"tasks": (int(served.sum()) / window_s, "1/s"), "output tokens": (tokens / window_s, "1/s")}
    if (capacity := _middle_rate(tasks["ended_s"][served])) is not None:
        found["tasks, middle of the run"] = (capacity, "1/s")
    for name, sample in samples_of(tasks, visits).items():
        seconds = sample.seconds
        found[f"{name} mean"] = (float(seconds.mean()), "s")
        found[f"{name} p50"] = (float(np.quantile(seconds, 0.5)), "s")
        if len(seconds) >= MIN_FOR_P95:
            found[f"{name} p95"] = (float(np.quantile(seconds, 0.95)), "s")
    for stage in Stage:
        rows = visits["stage"] == stage
        if rows.any():
            waits_s = _mean(visits, rows, "queued_s", "started_s")
            if waits_s or stage is not Stage.GENERATE:  # an endpoint does not show what waits in it
                found[f"{stage.name.lower()} wait mean"] = (waits_s, "s")
            found[f"{stage.name.lower()} service mean"] = (_mean(visits, rows, "started_s", "served_s"), "s")
    return found


def as_clients_see(log: Log) -> Log:
    """The log with what an endpoint hides left out: a visit to the model is served from when it is ready."""
    visits = visits_table()
    columns = log.visits.arrays()
    inside = np.isin(columns["stage"], (Stage.PREFILL, Stage.GENERATE))
    for name in ("queued_s", "started_s"):
        columns[name] = np.where(inside, columns["ready_s"], columns[name])
    for row in zip(*(columns[name].tolist() for name in visits.columns), strict=True):
        visits.append(row)
    return replace(log, visits=visits)


def _middle_rate(ended_s: NDArray[np.float64]) -> float | None:
    """Tasks a second in the middle of a run, where a closed loop neither fills nor drains: its capacity."""
    ends = np.sort(ended_s)
    first, last = int(EDGE * len(ends)), int((1 - EDGE) * len(ends))
    if last - first < FEWEST_FOR_CAPACITY or ends[last] <= ends[first]:
        return None
    return float((last - first) / (ends[last] - ends[first]))


def _mean(visits: Any, rows: NDArray[np.bool_], start: str, end: str) -> float:
    return float((visits[end] - visits[start])[rows].mean())


PARTS = (
    ("transfer", "ready_s", "queued_s"),
    ("wait", "queued_s", "started_s"),
    ("service", "started_s", "served_s"),
    ("outside", "served_s", "ended_s"),
)


def parts_of_e2e(log: Log) -> dict[str, float]:
    """Mean seconds of each part of each stage in a served task's life: they add up to the mean end-to-end time."""
    tables = log.arrays()
    tasks, visits = tables["tasks"], tables["visits"]
    served = tasks["task"][tasks["outcome"] == Outcome.SERVED]
    mine = np.isin(visits["task"], served)
    found = {}
    for stage in Stage:
        rows = mine & (visits["stage"] == stage)
        for name, start, end in PARTS:
            if seconds := float((visits[end] - visits[start])[rows].sum()) / len(served):
                found[f"{stage.name.lower()} {name}"] = seconds
    return found
