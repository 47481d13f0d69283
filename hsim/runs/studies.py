"""Studies: replications of one scenario in parallel processes, for as long as its warm-up asks for more."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal, Protocol

from hsim.description.scenario import Workload
from hsim.description.system import System
from hsim.drivers.prepared import Prepared, prepare
from hsim.errors import WorkersError
from hsim.metrics.accounts import Accounts, accounts_of
from hsim.metrics.measured import Cohort
from hsim.metrics.result import Study, WarmUp
from hsim.metrics.rough import World, draw_worlds, of_the_books, rough_figures, system_in
from hsim.metrics.study import (
    FLOOR_FRACTION,
    Material,
    Replication,
    Worlds,
    cohort_after,
    overloaded_pools,
    stability_of,
    study_of,
    warm_up_of,
)
from hsim.processes import without_ctrl_c
from hsim.runs.cluster import cluster
from hsim.runs.overload import is_overloaded
from hsim.runs.paths import Job, replicate, seeded
from hsim.runs.store import Store, as_json, write_atomically

RANDOM = ("poisson", "gamma", "weibull", "on-off", "hourly")  # kinds of arrivals that leave something to chance
STATIONARY = ("poisson", "gamma", "weibull", "on-off", "uniform")  # kinds whose mean rate does not change
REPLICATIONS = 10
BOOK_WORLDS = 40
ROUNDS = 4  # in which the warm-up may grow
HEADROOM = 1.25  # asked for beyond what the series asked for, so that one more round is enough


@dataclass(frozen=True)
class Options:
    """How a study is done; none of it changes a replication.

    `processes` None takes every core. `worlds` simulates so many worlds of roughly known figures; 0 changes the books
    alone. `out` is where runs are kept. `cluster` is the address of a scheduler of dask.distributed, whose workers then run
    the replications instead of processes here.
    """

    replications: int = REPLICATIONS
    processes: int | None = None
    worlds: int = 0
    out: Path | None = None
    stepwise: bool = False
    cluster: str | None = None


def study(system: System, options: Options = Options()) -> Study:
    """Simulate replications of a system and report every figure with its interval.

    Ctrl-C ends it early: then the study is of the replications that were finished, and not complete. Raises
    DescriptionError before time zero for anything that cannot run.
    """
    with workers(options) as those:
        material, warm_up = gather(system, options, those, partial=True)
    found = study_of(material, warm_up)
    if options.out:
        write_atomically(options.out / "result.json", as_json(found))
    return found


class Workers(Protocol):
    """Those who run jobs, so many at a time."""

    @property
    def at_a_time(self) -> int:
        """How many jobs are run at once."""
        ...

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Replication]]:
        """Each replication with its place among the jobs, as it is finished."""
        ...

    def stop(self) -> None:
        """End at once."""
        ...


def is_steady(workload: Workload) -> bool:
    """Whether a run looks for a steady state; else all of it counts, from an empty system to an empty one."""
    return workload.measure == "steady" if workload.measure else workload.arrivals.kind in STATIONARY


def is_one_path(system: System) -> bool:
    """Whether a run from an empty system to an empty one leaves nothing to chance: one path is all that there is."""
    return not is_steady(system.scenario.workload) and not _leaves_something_to_chance(system)


def _leaves_something_to_chance(system: System) -> bool:
    return prepare(seeded(system, 0)).drawn.tasks != prepare(seeded(system, 1)).drawn.tasks


def gather(
    system: System, options: Options, workers: Workers, at_least: int = 0, partial: bool = False
) -> tuple[Material, WarmUp | None]:
    """All replications of a study, after a warm-up of `at_least` so many tasks; with `partial`, fewer after Ctrl-C."""
    gathering = _Gathering(prepare(system), options, workers, partial)
    workload = system.scenario.workload
    if not is_steady(workload):
        return gathering.whole("terminating"), None
    if workload.arrivals.kind == "closed":
        return gathering.whole("steady"), None
    return gathering.steady(at_least)


class _Gathering:
    """The replications of one system, run or found in its store."""

    def __init__(self, prepared: Prepared, options: Options, workers: Workers, partial: bool) -> None:
        self.prepared, self.system, self.options, self.workers = prepared, prepared.system, options, workers
        self.store = Store(options.out, self.system, prepared.drawn.tasks) if options.out else None
        self.partial, self.interrupted = partial, False
        chance = self.system.scenario.workload.arrivals.kind in RANDOM or _leaves_something_to_chance(self.system)
        self.wanted = options.replications if chance else 1
        rough, books = rough_figures(self.system), of_the_books(self.system)
        self._rough = rough
        self._held = tuple(name for name in rough if name not in books)
        self._book_figures = {name: use for name, use in rough.items() if name in books}
        self._book_accounts = self._accounts_in(draw_worlds(self._book_figures, BOOK_WORLDS, self.system.scenario.seed))

    def _accounts_in(self, worlds: Sequence[World]) -> tuple[Accounts, ...]:
        return tuple(accounts_of(system_in(self.system, world)) for world in worlds)

    def whole(self, kind: Literal["steady", "terminating"]) -> Material:
        """Runs of all tasks, from an empty system to an empty one."""
        return self._material(kind, self._replications(None), None)

    def steady(self, at_least: int) -> tuple[Material, WarmUp]:
        """Cohorts of a steady state. The warm-up grows until its own series, and a passage's time, ask for no more.

        It does not grow where tasks bring more work than can be done: there is no steady state to come to.
        """
        tasks = self.system.scenario.workload.tasks
        assert tasks is not None  # the schema refuses open arrivals without
        cohort = cohort_after(max(at_least, ceil(FLOOR_FRACTION * tasks)), tasks)
        for rounds_left in reversed(range(ROUNDS)):
            replications = self._replications(cohort)
            warm_up = warm_up_of([replication.path for replication in replications])
            # Before the pipes are full every system grows; after that, one that still does has no end of its warm-up.
            asked = warm_up.passage_tasks
            if asked <= cohort.skipped and not _grows_without_end(replications):
                asked = warm_up.asked_tasks
            if asked <= cohort.skipped or not rounds_left or self.interrupted or self._is_hopeless(replications):
                break
            cohort = cohort_after(ceil(HEADROOM * asked), tasks)
        return self._material("steady", replications, cohort), warm_up

    def _is_hopeless(self, replications: Sequence[Replication]) -> bool:
        """Whether tasks bring more work than can be done: these few show it, and many that are only drawn."""
        return _over(replications) and is_overloaded(self.system)

    def _replications(self, cohort: Cohort | None) -> list[Replication]:
        books, stepwise = self._book_accounts, self.options.stepwise
        jobs = {
            f"{number:04d}-{_called(cohort)}": Job(seeded(self.system, number), number, cohort, books, stepwise)
            for number in range(self.wanted)
        }
        finished = self._finish(jobs)
        if self.store:
            self.store.mark([jobs[name].number for name in finished], self.wanted)
        return list(finished.values())

    def _finish(self, jobs: dict[str, Job]) -> dict[str, Replication]:
        """What jobs give, by name, in their order: from the store, or run now and kept there."""
        found = {name: kept for name in jobs if self.store and (kept := self.store.get(name)) is not None}
        names = [name for name in jobs if name not in found]
        try:
            for place, replication in self.workers([jobs[name] for name in names]):
                found[names[place]] = replication
                if self.store:
                    self.store.put(names[place], replication)
        except KeyboardInterrupt:
            self.workers.stop()
            if not found or not self.partial:
                raise
            self.interrupted = True
        return {name: found[name] for name in jobs if name in found}

    def _material(
        self, kind: Literal["steady", "terminating"], replications: Sequence[Replication], cohort: Cohort | None
    ) -> Material:
        worlds = Worlds(self._book_accounts, tuple(self._book_figures), self._held)
        if self.options.worlds and self._rough and not self.interrupted:
            worlds = self._simulated_worlds(replications, cohort) or worlds
        return Material(self.system, self.prepared.accounts, kind, tuple(replications), self.wanted, worlds)

    def _simulated_worlds(self, replications: Sequence[Replication], cohort: Cohort | None) -> Worlds | None:
        """A path in each world, with the random numbers of a replication in turn; None after Ctrl-C."""
        jobs = {}
        drawn = draw_worlds(self._rough, self.options.worlds, self.system.scenario.seed)
        for k, world in enumerate(drawn):
            base = replications[k % len(replications)]
            system = system_in(seeded(self.system, base.number), world)
            name = f"world-{k:03d}-of-{len(drawn)}-{base.number:04d}-{_called(cohort)}"
            jobs[name] = Job(system, base.number, cohort, (), self.options.stepwise)
        paths = tuple((its.number, its.path) for its in self._finish(jobs).values())
        return None if self.interrupted else Worlds(self._accounts_in(drawn), tuple(self._rough), (), paths)


def _grows_without_end(replications: Sequence[Replication]) -> bool:
    return len(replications) > 1 and stability_of(replications).verdict == "unstable"


def _over(replications: Sequence[Replication]) -> bool:
    return len(replications) > 1 and bool(overloaded_pools(replications))


def _called(cohort: Cohort | None) -> str:
    return "whole" if cohort is None else f"after-{cohort.skipped}"


# ---- processes


class _Alone:
    """Workers: this process."""

    at_a_time = 1

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Replication]]:
        return ((place, replicate(job)) for place, job in enumerate(jobs))

    def stop(self) -> None:
        """Nothing goes on in the background."""


class _Processes:
    """Workers: the processes of a pool."""

    def __init__(self, pool: ProcessPoolExecutor, processes: int) -> None:
        self._pool, self.at_a_time = pool, processes

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Replication]]:
        try:
            with without_ctrl_c():  # the pool starts a process when it is given work
                places = {self._pool.submit(replicate, job): place for place, job in enumerate(jobs)}
            for future in as_completed(places):
                yield places[future], future.result()
        except BrokenProcessPool:
            what = "a process ended before its replication did; is memory short? use fewer --processes"
            raise WorkersError(what) from None

    def stop(self) -> None:
        """End at once: the pool then finds itself broken, and gives up what is left.

        Were that cancelled, Python 3.11's pool would stumble over it as it gives up, and the interpreter never end.
        """
        for process in list((self._pool._processes or {}).values()):
            process.terminate()


@contextmanager
def workers(options: Options) -> Iterator[Workers]:
    """Workers in so many processes, in this one, or on a cluster. What they give does not depend on which, or how many."""
    if options.cluster is not None:
        with cluster(options.cluster) as there:
            yield there
        return
    processes = options.processes or _cores()
    if processes == 1:
        yield _Alone()
        return
    # Spawned, not forked: a fork would inherit whatever threads and locks the caller has.
    context = multiprocessing.get_context("spawn")
    with _single_threaded(), ProcessPoolExecutor(processes, context) as pool:
        those = _Processes(pool, processes)
        try:
            yield those
        except BaseException:  # nobody waits for what is under way
            those.stop()
            raise


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Libraries in new processes use one thread each: the processes are the parallelism."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
