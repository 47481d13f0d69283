"""What every fleet must satisfy, found in milliseconds: limits, memory, the work that tasks bring, a task alone.

Only necessary conditions stand here. Where one is known from drawn tasks, its interval is taken so wide that it counts
as one more refutation of the certificate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hsim.description.scenario import Planning, Scenario, UniformArrivals
from hsim.description.sites import Hourly
from hsim.description.system import System
from hsim.drivers.prepared import Prepared, prepare
from hsim.errors import DescriptionError, MistakeError
from hsim.metrics import statistics
from hsim.plan.certificate import Evidence
from hsim.plan.problem import OWN, Objective, Problem, check_assumptions_used, each_server
from hsim.plan.result import Bound, Fleet, Judged
from hsim.runs.overload import DRAWN, may_lose_tasks, work_of_one
from hsim.runs.paths import Job, replicate, seeded
from hsim.runs.studies import is_steady

ALONE_TASKS = 200
ALONE_RATE_PER_S = 1e-6  # so seldom that each finds the fleet empty
ALONE_BLOCK = -1  # of random numbers, like those of the search
PER_TASK = ("e2e", "answer_ttft")


@dataclass(frozen=True)
class Needs:
    """What tasks need of a design under a load. `busy_s` is per task and pool; None of a rate: tasks are not open arrivals.

    `alone_s` are latencies of tasks that find the fleet empty, by metric; empty where others could make them faster.
    """

    prepared: Prepared
    rate_per_s: float | None
    busy_s: dict[str, statistics.Estimate]
    alone_s: dict[str, statistics.Floats]
    failed_alone: int

    @property
    def passage_s(self) -> float:
        """How long a task is in an empty system."""
        return float(self.alone_s["e2e"].mean()) if "e2e" in self.alone_s else 0.0


def needs_of(system: System, alone: bool = True, like: Prepared | None = None) -> Needs:
    """Find what a design needs; `like` is another's that may have the same tasks. Raises DescriptionError where it cannot run: memory, figures that nobody knows."""
    workload = system.scenario.workload
    scenario = system.scenario.model_copy(update={"workload": workload.model_copy(update={"tasks": DRAWN})})
    open_steady = is_steady(workload) and workload.arrivals.kind != "closed"
    prepared = prepare(replace(system, scenario=scenario) if open_steady else system, like)
    if not open_steady:
        return Needs(prepared, None, {}, {}, 0)
    busy_s = work_of_one(prepared)
    alone_s, failed = _alone(system, prepared) if alone else ({}, 0)
    rate = getattr(workload.arrivals, "rate_per_s")  # noqa: B009  # every open arrival process has one
    unsaid = may_lose_tasks(system) or _competes(system)
    return Needs(prepared, rate, {} if unsaid else busy_s, alone_s, failed)


def _competes(system: System) -> bool:
    """Whether steps take the longer the more replicas there are, so that the needs of one fleet bound no other's."""
    return any(pool.host_weight_bytes and pool.memory for pool in system.engine_pools().values())


def _alone(system: System, prepared: Prepared) -> tuple[dict[str, statistics.Floats], int]:
    """Latencies of tasks each of which has the fleet to itself: company never makes one faster.

    Where it may, nothing is said.
    """
    if _helps(system, prepared):
        return {}, 0
    workload = system.scenario.workload.model_copy(
        update={
            "arrivals": UniformArrivals(kind="uniform", rate_per_s=ALONE_RATE_PER_S),
            "tasks": ALONE_TASKS,
            "measure": "terminating",
        }
    )
    scenario = system.scenario.model_copy(update={"workload": workload, **_at_every_hour_alike(system.scenario)})
    alone = replace(system, scenario=scenario)
    path = replicate(Job(seeded(alone, ALONE_BLOCK % 2**32), 0, None)).path
    return {name: path.latency[name] for name in PER_TASK if name in path.latency}, path.cohort.tasks - path.served


def _helps(system: System, prepared: Prepared) -> bool:
    """Whether company may make a task faster: prompts have prefixes in common; cores or messages wait to be batched;
    several pools serve a stage; tasks leave a full edge; servers and engines go down until work comes for
    them; engines take other weights, or another power cap, under load; or steps wait for as many replicas as there are.
    """
    scenario, engines = system.scenario, system.engine_pools().values()
    return (
        any(visit.prefix for task in prepared.drawn.tasks for visit in task.rounds)
        or any(kind.understand and kind.understand.instruction_tokens for kind in scenario.workload.classes.values())
        or any(pool.max_batch > 1 for pool in system.core_pools().values())
        or scenario.payload.window_s > 0
        or any(len(scenario.stages.pools(stage)) > 1 for stage in ("understand", "tool"))
        or scenario.keep is not None
        or any(tier.goes_down for tier in scenario.fleet.values())
        or any(pool.unloads or pool.switch or pool.governor for pool in engines)
        or _competes(system)
    )


def _at_every_hour_alike(scenario: Scenario) -> dict[str, Any]:
    """Its sites without their hours, for which books would be kept by the hour: the lonely tasks take centuries."""
    flat = {name: site.model_copy(update={"hourly": Hourly()}) for name, site in scenario.sites.items()}
    return {"site": scenario.site.model_copy(update={"hourly": Hourly()}), "sites": flat}


# ---- one fleet after another


@dataclass(frozen=True)
class Conditions:
    """A problem, what each design needs under each load, and the risk of each refutation."""

    problem: Problem
    needs: dict[tuple[int, str], Needs]
    impossible: dict[int, str]
    risk: float

    def refutes(self, fleet: Fleet) -> Judged | None:
        """The first necessary condition that a fleet does not satisfy; None where it may hold."""
        for by, reason in self.unsatisfied(fleet):
            return Judged(fleet, "FAIL", by, reason)
        return None

    def unsatisfied(self, fleet: Fleet) -> Iterator[tuple[Any, str]]:
        """Every necessary condition that a fleet does not satisfy, with its reason: limits first."""
        yield from self._limits(fleet)
        place = self.problem.places[fleet.number]
        if place.design in self.impossible:
            yield "memory", self.impossible[place.design]
            return
        for load in self.problem.loads:
            if not self.problem.concerns(fleet.number, load):
                continue
            if not self.problem.survives(fleet.number, load):
                yield "loss", f"{load} leaves nothing in its place"
                continue
            system = self.problem.system(fleet.number, load)
            try:
                system.placements()
            except DescriptionError as error:
                yield "memory", str(error)
                return
            needs = self.needs[place.design, load]
            yield from self._capacity(system, needs, load)
            yield from self._alone(needs, load)

    def _limits(self, fleet: Fleet) -> Iterator[tuple[str, str]]:
        planning = self.problem.planning
        for server, count in fleet.servers.items():
            if count > planning.have.get(server, math.inf):
                yield "inventory", f"{count} x {server}, and {planning.have[server]} are there"
        if planning.max_usd_per_h is not None and (fleet.usd_per_h or 0) > planning.max_usd_per_h:
            alone = " in servers alone" if fleet.electricity else ""
            yield "budget", f"{fleet.usd_per_h:,.2f} USD an hour{alone} of {planning.max_usd_per_h:,.2f}"
        if planning.max_w is not None and (fleet.rated_w or 0) > planning.max_w:
            yield "power", f"can draw {fleet.rated_w:,.0f} W of {planning.max_w:,.0f}"

    def _capacity(self, system: System, needs: Needs, load: str) -> Iterator[tuple[str, str]]:
        for pool in needs.busy_s:
            least = least_load(needs, pool, self.risk)
            available = capacity(system, pool)
            if least >= available:
                under = "" if load == OWN else f" under {load}"
                yield "capacity", f"tasks bring pool {pool} at least {least / available:.0%} of what it can do{under}"

    def _alone(self, needs: Needs, load: str) -> Iterator[tuple[str, str]]:
        for objective in self.problem.objectives:
            if objective.load == load and objective.metric in needs.alone_s:
                late = late_alone(needs, objective)
                if _shown_late(late, objective.allowed_fraction, self.risk):
                    slo = objective.slo
                    yield (
                        "alone",
                        f"{objective.metric} within {slo.max_s:g} s: a task that has the fleet to itself is late in "
                        f"{np.mean(late):.1%} of cases, {objective.allowed_fraction:.1%} may be",
                    )


def conditions_of(problem: Problem, risk: float, alone: bool = True) -> Conditions:
    """What every fleet of a problem must satisfy; `risk` is that of one refutation from drawn tasks.

    Without `alone`, nothing is simulated and tasks that have a fleet to themselves are not looked at.
    """
    needs: dict[tuple[int, str], Needs] = {}
    impossible: dict[int, str] = {}
    before: dict[str, Prepared] = {}
    for number, design in enumerate(problem.designs):
        try:
            if design.impossible:
                raise DescriptionError(problem.document.file, design.impossible)
            if not any(place.design == number for place in problem.places):
                continue
            needs[number, OWN] = needs_of(problem.system(problem.largest(number)), alone, before.get(OWN))
            before[OWN] = needs[number, OWN].prepared
            for load in problem.loads:  # a loss changes the fleet, and not what tasks need
                known = load in problem.losses or load == OWN
                system = problem.system(problem.largest(number), load)
                needs[number, load] = needs[number, OWN] if known else needs_of(system, alone, before.get(load))
                before[load] = needs[number, load].prepared
        except MistakeError:
            raise  # a slip of the pen is no reason to leave a choice out
        except DescriptionError as error:
            impossible[number] = design.impossible or str(error)
    check_assumptions_used(problem, {number for number, _ in needs} - set(impossible))
    return Conditions(problem, needs, impossible, risk)


def least_load(needs: Needs, pool: str, risk: float) -> float:
    """Devices (cores, or replicas) that tasks keep busy at least, but for that risk."""
    assert needs.rate_per_s is not None
    busy_s = needs.busy_s[pool]
    return needs.rate_per_s * (busy_s.value - busy_s.half_width(1 - 2 * risk))


def capacity(system: System, pool: str) -> float:
    """Devices of a pool: replicas, or cores, those that engines keep for themselves not taken off."""
    engines = system.engine_pools()
    if pool in engines:
        return engines[pool].replicas
    tier = system.tier_of(pool)
    return float(tier.count * (system.core_pools()[pool].cores or tier.cores_per_server))


def late_alone(needs: Needs, objective: Objective) -> list[bool]:
    """Whether each task was late although it had the fleet to itself."""
    late = (needs.alone_s[objective.metric] > objective.slo.max_s).tolist()
    return [*late, *[True] * needs.failed_alone]


def _shown_late(late: Sequence[bool], allowed_fraction: float, risk: float) -> bool:
    evidence = Evidence(1 - allowed_fraction)
    for each in late:
        evidence.add(1 - float(each))
    return evidence.shown(risk)


# ---- what any fleet of the space costs at least


def cost_bound(conditions: Conditions) -> Bound:
    """The cheapest servers that could do the work, inside the limits: by LP, and by MILP with whole servers.

    Electricity of owned servers is left out, so that it bounds what they cost with it too.

    One design is chosen; of each of its tiers so many servers that each pool has the devices that its load keeps busy.
    """
    options = [option for i in range(len(conditions.problem.designs)) if (option := _option(conditions, i))]
    if not options:
        return Bound(None, None, None, "no design can do the work with the counts that are listed")
    if any(math.isnan(column.usd_per_h) for option in options for column in option):
        return Bound(None, None, None, "a price is unknown")
    try:
        lp, milp = (_least_cost(options, conditions.problem.planning, whole) for whole in (False, True))
    except ModuleNotFoundError:
        return Bound(None, None, None, "scipy is not installed; the bound needs it: pip install scipy")
    if lp is None or milp is None:
        return Bound(None, None, None, "no fleet that can do the work is within the limits")
    return Bound(lp.dual_bound, milp.dual_bound, milp.gap_fraction)


@dataclass(frozen=True)
class _Column:
    """A tier of a design: what one server costs and can draw, and how many are needed and may be bought."""

    server: str
    usd_per_h: float
    rated_w: float
    needed: float
    most: int


def _option(conditions: Conditions, design: int) -> list[_Column]:
    """The tiers of a design; none where it cannot run, or not do the work."""
    problem = conditions.problem
    if design in conditions.impossible:
        return []
    counts = [place.counts for place in problem.places if place.design == design]
    if not counts:
        return []
    found = []
    for name, (usd_per_h, rated_w) in each_server(problem.designs[design].systems[OWN]).items():
        least, most = min(c[name] for c in counts), max(c[name] for c in counts)
        needed = max([float(least), *_servers_needed(conditions, design, name)])
        server = problem.designs[design].systems[OWN].tiers[name].server.name
        found.append(_Column(server, usd_per_h, rated_w, needed, most))
    return found if all(column.needed <= column.most for column in found) else []


def _servers_needed(conditions: Conditions, design: int, tier: str) -> Iterator[float]:
    """So many servers of a tier, and parts of one, does each of its pools need under each load.

    Pools whose replicas are given do not grow with their tier, and say nothing.
    """
    for load in conditions.problem.loads:
        needs = conditions.needs[design, load]
        system = needs.prepared.system
        for pool in needs.busy_s:
            fixed = getattr(system.scenario.pools[pool], "replicas", None) is not None
            if system.tier_of(pool).name == tier and not fixed:
                per_server = capacity(system, pool) / system.tiers[tier].count
                loss = conditions.problem.losses.get(load)
                lost = 1 if loss and loss.tier == tier else 0
                yield least_load(needs, pool, conditions.risk) / per_server + lost


def _least_cost(options: Sequence[Sequence[_Column]], planning: Planning, whole: bool) -> Solution | None:
    """Choose one option, and of each of its columns as many servers as it needs, at the least cost."""
    columns = [(number, column) for number, option in enumerate(options) for column in option]
    usd_per_h = [column.usd_per_h for _, column in columns]
    chosen = len(columns)  # behind the counts of servers stands whether each option is chosen
    rows: list[tuple[dict[int, float], float, float]] = [
        ({chosen + number: 1.0 for number in range(len(options))}, 1.0, 1.0)
    ]
    for i, (number, column) in enumerate(columns):
        rows.append(({i: 1.0, chosen + number: -column.needed}, 0.0, math.inf))
        rows.append(({i: 1.0, chosen + number: -float(column.most)}, -math.inf, 0.0))
    for server, count in planning.have.items():
        rows.append(({i: 1.0 for i, (_, c) in enumerate(columns) if c.server == server}, -math.inf, float(count)))
    if planning.max_usd_per_h is not None:
        rows.append((dict(enumerate(usd_per_h)), -math.inf, planning.max_usd_per_h))
    if planning.max_w is not None and not any(math.isnan(column.rated_w) for _, column in columns):
        rows.append(({i: column.rated_w for i, (_, column) in enumerate(columns)}, -math.inf, planning.max_w))
    return solve(Program([*usd_per_h, *[0.0] * len(options)], rows, [whole] * (len(columns) + len(options))))


# ---- linear programs


@dataclass(frozen=True)
class Program:
    """Minimise cost x over x >= 0 with low <= row x <= high for each sparse row; some x are whole."""

    cost: Sequence[float]
    rows: Sequence[tuple[dict[int, float], float, float]]
    whole: Sequence[bool]


@dataclass(frozen=True)
class Solution:
    """What HiGHS found: the point, its cost, what no point costs less than, and the gap between them."""

    values: tuple[float, ...]
    cost: float
    dual_bound: float
    gap_fraction: float


def solve(program: Program) -> Solution | None:
    """The cheapest point; None where there is none. Raises ModuleNotFoundError without scipy."""
    from scipy.optimize import LinearConstraint, milp

    matrix = np.zeros((len(program.rows), len(program.cost)))
    for i, (row, _, _) in enumerate(program.rows):
        for column, value in row.items():
            matrix[i, column] = value
    lows, highs = [row[1] for row in program.rows], [row[2] for row in program.rows]
    constraints = LinearConstraint(matrix, lows, highs)
    found = milp(program.cost, constraints=constraints, integrality=np.array(program.whole, dtype=int))
    if found.x is None:
        return None
    exact = not any(program.whole)
    dual = found.fun if exact or found.mip_dual_bound is None else found.mip_dual_bound
    gap = 0.0 if exact or found.mip_gap is None else found.mip_gap
    return Solution(tuple(float(x) for x in found.x), float(found.fun), float(dual), float(gap))


def cheapest_mix(usd_per_h: Sequence[float], load: Sequence[Sequence[float]]) -> Solution | None:
    """The cheapest whole devices that serve slices of a load, each slice on one kind.

    `load[i][j]` is how many devices of kind j slice i keeps busy. Values are the counts of devices, then for each slice
    the kind that serves it. Griggs et al., Melange, arXiv 2404.14527.
    """
    kinds, slices = len(usd_per_h), len(load)

    def on(i: int, j: int) -> int:
        return kinds + i * kinds + j

    assignment = [({on(i, j): 1.0 for j in range(kinds)}, 1.0, 1.0) for i in range(slices)]
    enough = [({j: 1.0} | {on(i, j): -load[i][j] for i in range(slices)}, 0.0, math.inf) for j in range(kinds)]
    assigned = kinds * slices
    return solve(Program([*usd_per_h, *[0.0] * assigned], [*assignment, *enough], [True] * (kinds + assigned)))
