"""Fleets simulated for the search: replications in processes, kept by content, so that a search goes on where it stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from hsim.description.system import System
from hsim.errors import DescriptionError, ResultError
from hsim.metrics.measured import Cohort
from hsim.metrics.result import Study, WarmUp
from hsim.metrics.study import PASSAGES, Material, Replication, cohort_after, stability_of, study_of
from hsim.plan.bounds import Conditions, Needs
from hsim.plan.problem import OWN, Problem
from hsim.plan.result import Verdict
from hsim.plan.search import Observation
from hsim.plan.spending import Spent, changes_by_the_hour, spent_in
from hsim.runs.paths import Job, seeded
from hsim.runs.store import run_key, write_atomically
from hsim.runs.studies import Options, Workers, gather, is_steady

SHORTEST = 100  # tasks of a cohort at least
BLOCK = 1_000_000  # replication numbers of one block of random numbers


@dataclass(frozen=True)
class Kept:
    """What is kept of a replication under one load. `missed` is by metric; an objective without points is not there."""

    missed: dict[str, float]
    spent: Spent = field(default_factory=Spent)


class Simulation:
    """The replication function of a search over a problem's fleets.

    How long a replication is: what counts towards a certificate are whole replications, however long, so they should be
    short; but each throws its warm-up away. A cohort as long as its warm-up wastes half, and no more.
    """

    def __init__(self, problem: Problem, conditions: Conditions, options: Options, workers: Workers) -> None:
        self.problem, self.conditions, self.options, self.workers = problem, conditions, options, workers
        self.system: Callable[[int, str], System] = problem.system
        self._base: int | None = None
        self._studies: dict[tuple[int, str], tuple[Material, WarmUp | None]] = {}
        self._keys: dict[tuple[int, str], str] = {}
        self._runs: dict[tuple[int, str, int, Cohort | None], dict[int, Kept]] = {}

    def of(self, system: Callable[[int, str], System], base: int) -> Simulation:
        """The same for other systems, that differ from a fleet of the problem by their load."""
        other = Simulation(self.problem, self.conditions, self.options, self.workers)
        other.system, other._base = system, base
        return other

    def replicate(self, fleet: int, block: int, numbers: range) -> list[Observation]:
        """What replications of a fleet showed under all loads, on the random numbers of a block."""
        kept = {load: self._observe(fleet, load, block, numbers) for load in self.problem.loads}
        observed = []
        for i in range(len(numbers)):
            missed = tuple(kept[o.load][i].missed.get(o.metric, 0.0) for o in self.problem.objectives)
            own = kept[OWN][i] if OWN in kept else Kept({})
            observed.append(Observation(missed, *own.spent.by(self.problem.planning.minimise)))
        return observed

    def gate(self, fleet: int, risk: float) -> tuple[Verdict, str]:
        """Whether a fleet has a steady state, by ten replications as long as the scenario's, under every load.

        They also say how long its warm-up is. FAIL but for that risk; UNDECIDED where it may be growing.
        """
        for load in self.problem.loads:
            if self._base is None and not self.problem.concerns(fleet, load):
                continue
            material, warm_up = self.material(fleet, load)
            if warm_up is None or len(material.replications) < 2:
                continue
            if (surely := stability_of(material.replications, 1 - risk)).verdict == "unstable":
                return "FAIL", f"UNSTABLE: {surely.reason}"
            if (judged := stability_of(material.replications)).verdict != "stable":
                return "UNDECIDED", f"may have no steady state: {judged.reason}"
        return "PASS", ""

    def material(self, fleet: int, load: str = OWN) -> tuple[Material, WarmUp | None]:
        """Replications as `hsim simulate` runs them."""
        if (fleet, load) not in self._studies:
            self._studies[fleet, load] = gather(self.system(fleet, load), self.options, self.workers)
        return self._studies[fleet, load]

    def study(self, fleet: int) -> Study:
        """The figures of a fleet under the scenario's own load."""
        return study_of(*self.material(fleet))

    # ---- one load

    def _cohort(self, fleet: int, load: str, block: int) -> Cohort | None:
        """Which tasks count: those after its warm-up, by a study.

        To refute a fleet by its latencies, where tasks are never faster than alone, a passage of tasks that are alone will do
        for a warm-up: it is too short, so that a fleet appears better than it is, and is refuted only the later. Where
        company helps, an empty fleet may be slower than a full one, and what it takes is always that of a full one.
        """
        system = self.system(fleet, load)
        workload = system.scenario.workload
        if not is_steady(workload) or workload.arrivals.kind == "closed":
            return None
        assert workload.tasks is not None
        needs = self._needs(fleet, load)
        if block or not needs.alone_s:
            _, warm_up = self.material(fleet, load)
            assert warm_up is not None
            skipped = warm_up.tasks
        else:
            skipped = math.ceil(PASSAGES * (needs.rate_per_s or 0.0) * needs.passage_s)
        if changes_by_the_hour(self.problem.planning.minimise, system):  # all hours of the scenario must be seen
            return cohort_after(skipped, workload.tasks)
        return cohort_after(skipped, min(workload.tasks, max(skipped, SHORTEST)))

    def _needs(self, fleet: int, load: str) -> Needs:
        place = self.problem.places[fleet if self._base is None else self._base]
        return self.conditions.needs[place.design, load]

    def _observe(self, fleet: int, load: str, block: int, numbers: range) -> list[Kept]:
        if self._base is None and not self.problem.concerns(fleet, load):
            return [Kept({})] * len(numbers)  # it has nothing of what is lost
        system, cohort = self.system(fleet, load), self._cohort(fleet, load, block)
        file = self._file(fleet, load, block, cohort)
        known = self._runs.setdefault((fleet, load, block, cohort), _read(file))
        missing = [number for number in numbers if number not in known]
        jobs = [Job(seeded(system, BLOCK * block + number), number, cohort) for number in missing]
        metrics = [o.metric for o in self.problem.objectives if o.load == load]
        try:
            for place, replication in self.workers(jobs):
                known[missing[place]] = _kept(replication, metrics, system)
        finally:
            if file and missing:
                rows = {str(number): asdict(known[number]) for number in sorted(known)}
                write_atomically(file, json.dumps(rows) + "\n")
        return [known[number] for number in numbers]

    def _file(self, fleet: int, load: str, block: int, cohort: Cohort | None) -> Path | None:
        """Where replications are kept: under a name that says all that they depend on."""
        if self.options.out is None:
            return None
        if (fleet, load) not in self._keys:
            needs = self._needs(fleet, load)
            self._keys[fleet, load] = run_key(self.system(fleet, load), needs.prepared.drawn.tasks)
        stem = Path(self.problem.document.file).stem
        length = f"{cohort.tasks}-after-{cohort.skipped}" if cohort else "whole"
        return self.options.out / "runs" / f"{stem}-{self._keys[fleet, load]}" / f"search-{block}-{length}.json"


def _kept(replication: Replication, metrics: Sequence[str], system: System) -> Kept:
    path = replication.path
    missed = {o.metric: 1 - o.within / o.points for o in path.objectives}
    if path.served == 0:  # nobody was served, and no latency has a point
        missed = dict.fromkeys(metrics, 1.0)
    return Kept(missed, spent_in(path, system))


def _read(file: Path | None) -> dict[int, Kept]:
    if file is None or not file.is_file():
        return {}
    try:
        rows = json.loads(file.read_text()).items()
        return {int(number): Kept(row["missed"], Spent(**row["spent"])) for number, row in rows}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ResultError(f"{file}: is not what a search of hsim wrote ({error}); delete it") from None


def faster(system: System, times: float) -> System:
    """The system with its arrivals so many times as fast. Raises DescriptionError for a closed loop, which has no rate."""
    workload = system.scenario.workload
    name = "rate_scale" if workload.arrivals.kind == "trace" else "rate_per_s"
    if not hasattr(workload.arrivals, name):
        at = system.document.where(("workload", "arrivals"))
        raise DescriptionError(
            at, "is a closed loop, whose rate cannot be set", "vary workload.arrivals.users in a sweep"
        )
    arrivals = workload.arrivals.model_copy(update={name: times * getattr(workload.arrivals, name)})
    changed = workload.model_copy(update={"arrivals": arrivals})
    return replace(system, scenario=system.scenario.model_copy(update={"workload": changed}))
