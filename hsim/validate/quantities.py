"""What is compared of two runs of the same tasks: throughput, latencies, each stage's waiting and service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.log import Log, Outcome, Stage, Table, visits_table
from hsim.metrics.measured import samples_of
from hsim.metrics.meters import rows_of

Quantities = dict[str, tuple[float, str]]
"""Value and unit by name."""

Tasks = NDArray[np.float64]
"""Numbers of tasks. Shape (tasks,)."""

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


def served_in(log: Log) -> Tasks:
    """The tasks that a run served."""
    tasks = log.tasks.arrays()
    return np.unique(tasks["task"][tasks["outcome"] == Outcome.SERVED])


def served_in_all(logs: Sequence[Log]) -> Tasks:
    """The tasks that were served in each of these runs; one that served nobody does not count."""
    found = [served for log in logs if len(served := served_in(log))]
    return reduce(np.intersect1d, found) if found else np.empty(0)


def delivered(log: Log) -> tuple[int, float]:
    """Tasks that a run served, and output tokens of theirs."""
    served, visits = served_in(log), log.visits.arrays()
    return len(served), float(visits["output_tokens"][np.isin(visits["task"], served)].sum())


def only(log: Log, tasks: Tasks) -> Log:
    """The log with no other tasks than these, nor visits of others. Steps and all else stay."""
    return replace(
        log,
        tasks=_of_tasks(log.tasks, Table(*log.tasks.columns), tasks),
        visits=_of_tasks(log.visits, visits_table(), tasks),
    )


def _of_tasks(table: Table, empty: Table, tasks: Tasks) -> Table:
    """The rows of a table that belong to these tasks, put into an empty one."""
    return _filled(empty, rows_of(table.arrays(), np.isin(table.arrays()["task"], tasks)))


def _filled(table: Table, columns: Mapping[str, Any]) -> Table:
    """An empty table with these columns put into it."""
    for row in zip(*(columns[name].tolist() for name in table.columns), strict=True):
        table.append(row)
    return table


def quantities(log: Log, tasks: Tasks | None = None) -> Quantities:
    """What is compared of a run; empty where no task was served.

    Latencies, waits and services are of the served tasks alone, and of those among `tasks` where they are given. Which
    tasks fail is no accident (long answers time out first), so a mean over those that one run served is not comparable
    with a mean over those of another.

    Rates are of all that the run served, over all the time that it took, whatever `tasks` says: they belong to the run
    and not to its tasks. A rate of the tasks that several runs served would divide a part of the work by the time of
    all of it, and be right for none of them. So what failures cost is in the throughput, as it is for the users; where
    they were not predicted it is no error of the costs, and the verdict leaves it unjudged.
    """
    served = served_in(log)
    if not len(served):
        return {}
    return _rates(log) | _latencies(only(log, served if tasks is None else np.intersect1d(served, tasks)))


def _rates(log: Log) -> Quantities:
    """Tasks and tokens a second of a run that served some."""
    tasks, (served, tokens) = log.tasks.arrays(), delivered(log)
    window_s = float(tasks["ended_s"].max() - tasks["arrival_s"].min())
    found: Quantities = {"tasks": (served / window_s, "1/s"), "output tokens": (tokens / window_s, "1/s")}
    if (capacity := _middle_rate(tasks["ended_s"][tasks["outcome"] == Outcome.SERVED])) is not None:
        found["tasks, middle of the run"] = (capacity, "1/s")
    return found


def _latencies(log: Log) -> Quantities:
    """Latencies, and waits and services of each stage, of tasks that were all served."""
    found: Quantities = {}
    tables = log.arrays()
    tasks, visits = tables["tasks"], tables["visits"]
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
    columns = log.visits.arrays()
    inside = np.isin(columns["stage"], (Stage.PREFILL, Stage.GENERATE))
    for name in ("queued_s", "started_s"):
        columns[name] = np.where(inside, columns["ready_s"], columns[name])
    return replace(log, visits=_filled(visits_table(), columns))


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
    visits, served, found = log.visits.arrays(), served_in(log), dict[str, float]()
    if not len(served):
        return found
    mine = np.isin(visits["task"], served)
    for stage in Stage:
        rows = mine & (visits["stage"] == stage)
        for name, start, end in PARTS:
            if seconds := float((visits[end] - visits[start])[rows].sum()) / len(served):
                found[f"{stage.name.lower()} {name}"] = seconds
    return found
