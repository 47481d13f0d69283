"""One path: alone, or as a replication of a study in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hsim.description.scenario import ClosedArrivals, load
from hsim.description.system import System, resolve
from hsim.drivers.offered import offered_load
from hsim.drivers.prepared import Prepared, prepare
from hsim.drivers.simulated import run
from hsim.log import Log
from hsim.metrics.accounts import Accounts
from hsim.metrics.economics import bills_in
from hsim.metrics.measured import Cohort, Lens, measure
from hsim.metrics.notes import beyond_measured
from hsim.metrics.result import Result
from hsim.metrics.study import Replication
from hsim.metrics.summarise import summarise
from hsim.metrics.vllm_bench import vllm_bench

# Tasks drawn over those that are followed, and at least: the first that last until those have ended. Later draws move no
# earlier one, so that which it is shows in nothing but the time it takes: drawing two thousand takes less of it than
# running few hundred twice.
DRAWN_BEYOND = ((1.5, 2000), (4.0, 2000))


def system_of(scenario: str | Path, settings: Sequence[str] = (), allow_code: bool = False) -> System:
    """A scenario (a path, or the name of a shipped one) with `path=value` settings applied, and all that it names.

    Policies of the user's own are executed where code is allowed. Raises DescriptionError for what is not right in it.
    """
    return replace(resolve(*load(scenario, settings)), allow_code=allow_code)


def path_of(system: System, stepwise: bool = False) -> Result:
    """One terminating path of a system: all its tasks, from an empty system to an empty one.

    Raises DescriptionError before time zero for anything that cannot run.
    """
    prepared = prepare(drawing(system, None))
    return summarise(run(prepared, stepwise), prepared.system, prepared.accounts, prepared.drawn)


def simulate(scenario: str | Path, settings: Sequence[str] = (), stepwise: bool = False) -> Result:
    """One terminating path of a scenario (a path, or the name of a shipped one) with settings applied."""
    return path_of(system_of(scenario, settings), stepwise)


def vllm_bench_of(system: System, stepwise: bool = False) -> dict[str, Any]:
    """One terminating path of a system in the words of vLLM's benchmark."""
    prepared = prepare(drawing(system, None))
    return vllm_bench(run(prepared, stepwise), system.scenario)


@dataclass(frozen=True)
class Job:
    """A replication to be run: a system whose seed is its own, what to follow, and books of other worlds to keep."""

    system: System
    number: int
    cohort: Cohort | None
    books: tuple[Accounts, ...] = ()
    stepwise: bool = False


def seed_of(seed: int, number: int) -> int:
    """The seed of a replication; replication 0 is the one path that the seed itself gives.

    It depends on nothing else, so that every scenario with this seed sees the same tasks in the same replication.
    """
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])


def seeded(system: System, number: int) -> System:
    """The system of one replication."""
    scenario = system.scenario.model_copy(update={"seed": seed_of(system.scenario.seed, number)})
    return replace(system, scenario=scenario)


def replicate(job: Job) -> Replication:
    """Run one replication. Depends on the job alone."""
    prepared, log = path_log(job)
    system = prepared.system
    workload = system.scenario.workload
    arrivals = workload.arrivals
    users = arrivals.users if isinstance(arrivals, ClosedArrivals) and workload.measure == "steady" else None
    path = measure(log, Lens(prepared.accounts, system.scenario.slo, job.cohort, users))
    offered = {}
    if job.cohort is not None:
        followed = prepared.drawn.tasks[job.cohort.skipped : job.cohort.end]
        offered = offered_load(prepared, followed, path.window.seconds, log.pools)
    return Replication(
        job.number,
        path,
        offered,
        prepared.drawn.truncated,
        (*prepared.drawn.notes, *beyond_measured(log, system)),
        bills_in(job.books, prepared.accounts, path.ledger, log),
    )


def path_log(job: Job) -> tuple[Prepared, Log]:
    """The log of a path: of all tasks, or of those that arrive until the cohort has ended."""
    if job.cohort is None:
        prepared = prepare(drawing(job.system, None))
        return prepared, run(prepared, job.stepwise)
    followed = job.cohort.end
    for count in sorted({max(int(beyond * followed), least) for beyond, least in DRAWN_BEYOND}):
        prepared = prepare(drawing(job.system, count))
        log = run(prepared, job.stepwise, followed)
        if len(log.tasks) < len(prepared.drawn.tasks):
            break  # not all were needed
    return prepared, log


def drawing(system: System, tasks: int | None) -> System:
    """The system with so many tasks to draw, and figures that nobody has read yet."""
    figures = system.figures.unread()
    if tasks is None:
        return replace(system, figures=figures)
    workload = system.scenario.workload.model_copy(update={"tasks": tasks})
    return replace(system, scenario=system.scenario.model_copy(update={"workload": workload}), figures=figures)
