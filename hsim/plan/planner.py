"""plan(): from a problem to the best fleet, with its certificate, its bound and why no other fleet was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from hsim.errors import DescriptionError
from hsim.metrics.accounts import accounts_of
from hsim.metrics.result import Interval
from hsim.metrics.study import interval
from hsim.metrics.summarise import hsim_version, scenario_hash, unavailable_of
from hsim.plan import explain
from hsim.plan.bounds import PER_TASK, Conditions, conditions_of, cost_bound
from hsim.plan.certificate import Trial
from hsim.plan.problem import OWN, Problem
from hsim.plan.result import Aim, Fleet, Judged, Missed, Plan, Progress, Step, Stop, Verdict
from hsim.plan.search import Found, Interrupted, Rules, Search
from hsim.plan.simulation import Simulation, faster
from hsim.plan.spending import UNITS, cost_of, least_spent
from hsim.runs.store import as_json, write_atomically
from hsim.runs.studies import Options, Workers, is_one_path, workers

AIMS = {"cost": "costs less", "tst": "takes fewer joules a task", "co2": "emits less CO2 a task"}
WITH_ELECTRICITY = "costs less an hour, servers and their electricity together"


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is made; none of it changes the plan. With `out`, replications are kept there to go on with.

    `neighbours` compares the chosen fleet with one server more or fewer of each kind; `headroom` looks for how much the
    rate may grow. `most` limits the replications of one trial for a certificate.
    """

    processes: int | None = None
    out: Path | None = None
    neighbours: bool = False
    headroom: bool = False
    most: int | None = None


@dataclass(frozen=True)
class _Searched:
    """What a search left: what was judged, how many fleets are dearer, and whether it ended by itself."""

    judged: tuple[Judged, ...]
    chosen: Judged | None
    dearer: int
    replications: int
    certified_by: int
    complete: bool


def plan(
    problem: Problem,
    options: PlanOptions | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Plan:
    """Find the best fleet of a problem, and certify it.

    The plan is the same, byte for byte, for the same problem and seed, whatever the number of processes and however
    often it was interrupted. Ctrl-C, or `stop` that says True, ends it early: then it is not complete. Raises
    DescriptionError for servers without a price, power or CO2 without figures, where those are to be minimised.
    """
    options = options or PlanOptions()
    found = planned(problem, options, progress, stop)
    if options.out:
        write_atomically(options.out / "plan.json", as_json(found))
    return found


def planned(problem: Problem, options: PlanOptions, progress: Progress | None = None, stop: Stop | None = None) -> Plan:
    """The plan of a problem, one of several that a question takes: replications are kept, the plan itself is not."""
    with TemporaryDirectory() as here:
        running = Options(processes=options.processes, out=options.out or Path(here))
        with workers(running) as those:
            return _Planner(problem, options, running, those, _Watch(progress, stop)).plan()


def planned_whole(problem: Problem, options: PlanOptions, progress: Progress | None = None) -> Plan:
    """The same, where half of a plan would be no answer: raises KeyboardInterrupt after Ctrl-C."""
    found = planned(problem, options, progress)
    if not found.complete:
        raise KeyboardInterrupt
    return found


class _Watch:
    """Tells how far a search is, and asks whether it is to stop."""

    def __init__(self, progress: Progress | None, stop: Stop | None) -> None:
        self._progress, self._stop = progress, stop

    def __call__(self, step: Step) -> None:
        if self._progress:
            self._progress(step)
        if self._stop and self._stop():
            raise Interrupted


class _Planner:
    """One plan being made."""

    def __init__(self, problem: Problem, options: PlanOptions, running: Options, those: Workers, watch: _Watch) -> None:
        self.problem, self.options, self.running, self.workers, self.watch = problem, options, running, those, watch
        self.aim: Aim = problem.planning.minimise
        watch(Step("bounds", "", 0, len(problem.fleets), 0, "limits, memory, capacity"))
        self.rules = _rules(problem, options)
        self.conditions = conditions_of(problem, self.rules.refuting)
        _check_figures(problem, self.conditions, self.aim)
        if options.headroom:
            faster(problem.system(0), 2.0)  # raises where there is no rate, before anything runs
        self.simulation = Simulation(problem, self.conditions, running, those)

    def plan(self) -> Plan:
        """Bounds, search, explanation."""
        problem = self.problem
        refuted = {fleet.number: judged for fleet in problem.fleets if (judged := self.conditions.refutes(fleet))}
        alive = [fleet for fleet in problem.fleets if fleet.number not in refuted]
        searched = self._search(sorted(alive, key=_by_price), refuted)
        first = problem.designs[0].systems.get(OWN) or next(iter(self.conditions.needs.values())).prepared.system
        found = Plan(
            scenario=problem.document.file,
            scenario_sha256=scenario_hash(first.scenario),
            hsim_version=hsim_version(),
            seed=first.scenario.seed,
            minimised=self.aim,
            confidence=problem.planning.confidence,
            claim=_claim(searched, problem),
            complete=searched.complete,
            space=len(problem.fleets),
            chosen=searched.chosen,
            judged=searched.judged,
            dearer=searched.dearer,
            bound=cost_bound(self.conditions),
            binding=""
            if searched.chosen or not searched.complete
            else explain.binding(self.conditions, searched.judged),
            replications=searched.replications,
            brute_force_replications=searched.certified_by * len(problem.fleets),
            warnings=(),
            cores_per_accelerator="",
        )
        return self._explained(found) if searched.chosen and searched.complete else found

    # ---- the search

    def _search(self, alive: Sequence[Fleet], refuted: dict[int, Judged]) -> _Searched:
        done: list[Found] = []
        complete, best = True, None
        look = self._looker(alive, done)
        search = Search(self.rules, self.simulation.replicate, self.simulation.gate, look, unit=UNITS[self.aim])
        try:
            if alive and is_one_path(self.problem.system(alive[0].number)):
                best = self._exactly(alive, done)
            elif not self.problem.aim_is_simulated:
                search.cheapest([fleet.number for fleet in alive], done)
                best = next((found for found in done if found.verdict == "PASS"), None)
            else:
                order = sorted(alive, key=lambda fleet: (self._floor(fleet.number), fleet.number))
                best = search.leanest([fleet.number for fleet in order], self._floor, done)
        except (KeyboardInterrupt, Interrupted):
            self.workers.stop()
            complete = False
        return self._searched(alive, refuted, done, best, complete)

    def _looker(self, alive: Sequence[Fleet], done: Sequence[Found]) -> Callable[[Found, str], None]:
        def look(found: Found, phase: str) -> None:
            replications = sum(each.replications for each in done)
            name = self.problem.fleets[found.fleet].name
            said: Literal["certify", "screen"] = "certify" if phase == "certify" else "screen"
            missed = max((trial.mean / trial.limit for trial in found.trials if trial.fails.count), default=math.nan)
            message = f"misses {missed:.0%} of what it may" if not math.isnan(missed) else "looking for its warm-up"
            self.watch(Step(said, name, len(done), len(alive), replications, message))

        return look

    def _exactly(self, alive: Sequence[Fleet], done: list[Found]) -> Found | None:
        """Where nothing is left to chance one path says all: of the fleets that hold on it the one that takes least."""
        for fleet in alive:
            done.append(found := self._on_its_path(fleet.number))
            if found.verdict == "PASS" and not self.problem.aim_is_simulated:
                return found
        held = [found for found in done if found.verdict == "PASS"]
        best = min(held, key=_taken, default=None)
        for found in held:
            if best and found is not best:
                found.verdict, found.by = "FAIL", "worse"
                found.reason = f"takes {_taken(found) - _taken(best):.3g} {UNITS[self.aim]} more than the best"
        return best

    def _on_its_path(self, number: int) -> Found:
        only = self.simulation.replicate(number, 0, range(1))
        trials = [Trial(limit) for limit in self.rules.limits]
        for trial, value in zip(trials, only[0].missed, strict=True):
            trial.add([value])
        held = all(trial.mean <= trial.limit for trial in trials)
        verdict: Verdict = "PASS" if held else "FAIL"
        return Found(number, trials, verdict, "" if held else "slo", "holds on these very tasks", 1, list(only))

    def _floor(self, number: int) -> float:
        """What a fleet takes at least under the scenario's load: idle, all of it."""
        rate = self.conditions.needs[self.problem.places[number].design, OWN].rate_per_s
        return least_spent(self.aim, self.problem.system(number), rate)

    def _searched(
        self,
        alive: Sequence[Fleet],
        refuted: dict[int, Judged],
        done: Sequence[Found],
        best: Found | None,
        complete: bool,
    ) -> _Searched:
        fleets = self.problem.fleets
        seen = {found.fleet: self._judged(found) for found in done}
        chosen = seen[best.fleet] if best else None
        if chosen and not self.problem.aim_is_simulated:
            nearer = [judged for n, judged in refuted.items() if _by_price(fleets[n]) < _by_price(chosen.fleet)]
        else:
            nearer = list(refuted.values())
        judged = sorted([*nearer, *seen.values()], key=lambda each: _by_price(each.fleet))
        replications = sum(found.replications for found in done)
        dearer = len(fleets) - len(judged)
        certified_by = best.replications if best else 0
        return _Searched(tuple(judged), chosen, dearer, replications, certified_by, complete)

    def _judged(self, found: Found) -> Judged:
        missed = tuple(
            Missed(o.load, o.metric, o.slo.max_s, trial.mean, trial.limit)
            for o, trial in zip(self.problem.objectives, found.trials, strict=True)
            if trial.fails.count
        )
        reason = found.reason or "the search was interrupted"
        if found.by == "slo":
            worst = max(missed, key=lambda each: each.fraction / each.allowed_fraction)
            under = "" if worst.load == OWN else f" under {worst.load}"
            reason = (
                f"{worst.metric} within {worst.max_s:g} s{under}: missed in {worst.fraction:.1%} of cases, "
                f"{worst.allowed_fraction:.1%} may be"
            )
        fleet = self.problem.fleets[found.fleet]
        return Judged(fleet, found.verdict, found.by, reason, found.replications, missed)

    # ---- what is said of the chosen fleet

    def _explained(self, found: Plan) -> Plan:
        assert found.chosen is not None
        number = found.chosen.fleet.number
        self.watch(Step("explain", found.chosen.fleet.name, found.space, found.space, found.replications, ""))
        study = self.simulation.study(number)
        names: tuple[str, ...] = ()
        neighbours = headroom = None
        if self.options.neighbours:
            names, neighbours = explain.neighbours(self.problem, number, self.running)
        if self.options.headroom:
            headroom = explain.headroom(self.simulation, self.rules, number)
        return replace(
            found,
            study=study,
            warnings=study.warnings,
            cores_per_accelerator=explain.cores_per_accelerator(self.problem.system(number), study),
            neighbours=neighbours,
            neighbour_names=names,
            headroom=headroom,
            usd_per_h=self._usd_per_h(found.chosen.fleet),
        )

    def _usd_per_h(self, fleet: Fleet) -> Interval | None:
        """What a fleet costs in its own run where electricity comes on top of its servers."""
        material, _ = self.simulation.material(fleet.number)
        if not fleet.electricity or math.isnan((cost := cost_of(material.paths, material.system)).value):
            return None
        return interval(cost)


def _taken(found: Found) -> float:
    """What a fleet takes on its one path of what is minimised."""
    (only,) = found.common
    return only.spent / only.over


def _by_price(fleet: Fleet) -> tuple[float, int, int]:
    """Cheapest first; of equal price the one with fewer servers, then the one that the scenario names first."""
    return fleet.usd_per_h or 0.0, sum(fleet.servers.values()), fleet.number


def _rules(problem: Problem, options: PlanOptions) -> Rules:
    systems = [system for design in problem.designs for system in design.systems.values()]
    pools = max((len(system.scenario.pools) for system in systems), default=0) * len(problem.loads)
    alone = sum(objective.metric in PER_TASK for objective in problem.objectives)
    tests = len(problem.objectives) + len(problem.loads) + 1 + pools + alone
    limits = tuple(objective.allowed_fraction for objective in problem.objectives)
    return Rules(limits, 1 - problem.planning.confidence, len(problem.fleets), tests, options.most)


def _check_figures(problem: Problem, conditions: Conditions, aim: Aim) -> None:
    """Raises DescriptionError where a figure is unknown on which the plan depends."""
    planning = problem.planning
    for fleet in problem.fleets:
        design = problem.places[fleet.number].design
        if design in conditions.impossible:
            continue
        system = problem.system(fleet.number)
        at = f"{problem.document.file}: fleet"
        if fleet.usd_per_h is None and (aim == "cost" or planning.max_usd_per_h is not None):
            accounts_of(system)
            unknown = system.figures.unknown.items()
            name, why = next((n, w) for n, w in unknown if n.endswith(("rent_usd_per_h", "capex_usd")))
            raise DescriptionError(at, f"has no price: {why}", f"set assume.{name}")
        if fleet.rated_w is None and planning.max_w is not None:
            raise DescriptionError(
                at, f"{fleet.name}: what it can draw is unknown", "leave plan.max_w out, or assume it"
            )
        needed = {"tst": "energy", "co2": "CO2", "cost": "money"}[aim]
        if problem.aim_is_simulated and (without := unavailable_of(system).get(needed.lower())):
            alone = "set usd_per_kwh to 0 for what servers cost alone"
            other = alone if aim == "cost" else "minimise cost"
            raise DescriptionError(at, f"{needed} is unavailable: {without}", f"{other}, or assume it")


def _claim(searched: _Searched, problem: Problem) -> str:
    """What is claimed, and of what."""
    if not searched.complete:
        return "Interrupted: nothing is claimed yet; the same command goes on."
    if searched.chosen is None:
        return "No fleet of the space was certified."
    aim = problem.planning.minimise
    worse = WITH_ELECTRICITY if aim == "cost" and problem.aim_is_simulated else AIMS[aim]
    undecided = sum(judged.verdict == "UNDECIDED" for judged in searched.judged)
    but = f", except perhaps the {undecided} listed as undecided" if undecided else ""
    if searched.certified_by == 1:
        return f"On these very tasks this fleet meets the objectives and no other that does {worse}: nothing is left to chance."
    return (
        f"With at least {problem.planning.confidence:.0%} confidence, in this model and counting sampling error only, this "
        f"fleet meets the objectives, and no other of the {len(problem.fleets):,} that does {worse}{but}."
    )
