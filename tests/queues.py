"""Queues with known answers, many at once, as the paths that studies are made of: Lindley's recursion instead of hsim.

What is exercised is everything after the log: estimates, intervals, warm-up, stability and verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hsim.description.sites import HERE, Site
from hsim.metrics.accounts import Accounts
from hsim.metrics.economics import Bill
from hsim.metrics.ledger import Entry, Ledger, Window
from hsim.metrics.measured import Cohort, Measured, Objective
from hsim.metrics.service import InService
from hsim.metrics.study import Replication

IDLE_W, BUSY_W = 100.0, 200.0
ACCOUNTS = Accounts({}, {HERE: Site(pue=1.0)})


@dataclass(frozen=True)
class Queue:
    """An M/M/1 queue, first come first served, with mean service time 1; it draws 100 W, and 200 W more when busy."""

    load: float

    @property
    def mean_s(self) -> float:
        return 1 / (1 - self.load)

    def quantile_s(self, p: float) -> float:
        """Sojourn times are exponential."""
        return -np.log(1 - p) * self.mean_s

    @property
    def joules_per_task(self) -> float:
        return (IDLE_W + BUSY_W * self.load) / self.load


def replications(queue: Queue, cohort: Cohort, count: int, seed: int, limit_s: float) -> list[Replication]:
    """So many independent paths from an empty queue. `limit_s` is the objective of e2e."""
    random = np.random.default_rng(seed)
    shape = (cohort.end + 1, count)
    arrival_s = np.cumsum(random.exponential(1 / queue.load, shape), axis=0)
    service_s = random.exponential(1.0, shape)
    ended_s = np.empty(shape)
    last = np.zeros(count)
    for i in range(shape[0]):
        last = ended_s[i] = np.maximum(arrival_s[i], last) + service_s[i]
    return [
        Replication(i, _path(arrival_s[:, i], ended_s[:, i], service_s[:, i], cohort, limit_s), {}, 0, (), np.empty(0))
        for i in range(count)
    ]


def _path(
    arrival_s: np.ndarray, ended_s: np.ndarray, service_s: np.ndarray, cohort: Cohort, limit_s: float
) -> Measured:
    window = Window(float(arrival_s[cohort.skipped]), float(arrival_s[cohort.end]), float(arrival_s[cohort.end]))
    edges = (window.start_s, window.end_s)
    busy_s = float((np.clip(ended_s, *edges) - np.clip(ended_s - service_s, *edges)).sum())
    joules = IDLE_W * window.seconds + BUSY_W * busy_s
    sojourn_s = (ended_s - arrival_s)[cohort.skipped : cohort.end]
    completed = int(((ended_s > window.start_s) & (ended_s <= window.end_s)).sum())
    return Measured(
        window=window,
        cohort=cohort,
        covered=True,
        served=cohort.tasks,
        timed_out=0,
        shed=0,
        gave_up=0,
        completed=completed,
        good=completed,
        preemptions=0,
        output_tokens=float(completed),
        latency={"e2e": sojourn_s},
        objectives=(Objective("e2e", int((sojourn_s <= limit_s).sum()), cohort.tasks),),
        stages={"generate": np.array([cohort.tasks, 0, 0, service_s[: cohort.tasks].sum(), 0, 0, 0])},
        pools={},
        in_service=InService({}, 0, 0, 0.0, 0),
        records={},
        ledger=Ledger(window, (Entry("server", "idle", "accelerator", "tier", joules),), {}, {HERE: 1.0}),
        ledger_gap_fraction=0.0,
        bill=Bill(joules, 0.0, 0.0, 0.0),
        keeps=None,
        drain_j=0.0,
        arrival_s=arrival_s,
        ended_s=ended_s,
    )
