"""Why this fleet: the binding constraint, its neighbours, how much it could grow, cores beside accelerators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hsim.comparison import compare
from hsim.description.system import System
from hsim.drivers.prepared import prepare
from hsim.errors import DescriptionError
from hsim.metrics.result import Comparison, Study
from hsim.plan.bounds import Conditions
from hsim.plan.problem import Problem, with_counts
from hsim.plan.result import Headroom, Judged
from hsim.plan.search import Found, Rules, Search
from hsim.plan.simulation import Simulation, faster
from hsim.runs.studies import Options

NAMES = {
    "inventory": "what is there (plan.have)",
    "budget": "the budget (plan.max_usd_per_h)",
    "power": "the power limit (plan.max_w)",
    "memory": "memory, or what a server can run",
    "capacity": "the work that tasks bring",
    "alone": "objectives that a task misses even when it has the fleet to itself",
    "loss": "losses that leave nothing",
    "slo": "the objectives",
    "stability": "stability",
    "": "replications: fleets near their limit stayed undecided",
}
DOUBLINGS, HALVINGS = 4, 4


def binding(conditions: Conditions, judged: Sequence[Judged]) -> str:
    """The constraint that stands in the way of most fleets by itself, and the fleet that comes nearest."""
    alone: Counter[str] = Counter()
    somehow: Counter[str] = Counter()
    for each in judged:
        ways = {by for by, _ in conditions.unsatisfied(each.fleet)} or {each.by}
        somehow.update(ways)
        if len(ways) == 1:
            alone.update(ways)
    if not alone:
        names = " and ".join(NAMES[by] for by, _ in somehow.most_common(2))
        return f"{names}, together: no fleet fails by one constraint alone"
    by, count = alone.most_common(1)[0]
    said = f"{NAMES[by]}: {count:,} of {len(judged):,} fleets fail by nothing else"
    simulated = [each for each in judged if each.missed and each.by == by]
    if simulated:
        nearest = min(simulated, key=lambda j: max(m.fraction / m.allowed_fraction for m in j.missed))
        return f"{said}; the nearest is {nearest.fleet.name}: {nearest.reason}"
    one = next(each for each in judged if each.by == by)
    return f"{said}, such as {one.fleet.name}: {one.reason}"


def neighbours(problem: Problem, number: int, options: Options) -> tuple[tuple[str, ...], Comparison | None]:
    """The fleet beside those with one server more or fewer of each kind, on the same tasks, and what each is called."""
    system, counts = problem.system(number), problem.places[number].counts
    others, names = [], []
    for tier, count in counts.items():
        for changed in (count + 1, count - 1):
            other = with_counts(system, {**counts, tier: changed})
            if changed and _fits(other):
                others.append(other)
                names.append(f"{changed - count:+d} {system.tiers[tier].server.name}")
    return tuple(names), compare([system, *others], options) if others else None


def _fits(system: System) -> bool:
    """Whether replicas whose number is given have room."""
    try:
        system.placements()
    except DescriptionError:
        return False
    return True


def headroom(simulation: Simulation, rules: Rules, number: int) -> Headroom:
    """How much the rate may grow before objectives are missed: certified up to one rate, refuted or undecided from another."""
    problem = simulation.problem
    rates: list[float] = []
    growing = simulation.of(lambda place, load: faster(problem.system(number, load), rates[place]), number)
    looks = DOUBLINGS + HALVINGS
    search = Search(replace(rules, fleets=looks), growing.replicate, growing.gate, lambda *_: None)

    def verdict(times: float) -> str:
        rates.append(times)
        return (search.cheapest([len(rates) - 1], found := list[Found]()) or found[0]).verdict

    holds, beyond, found = 1.0, None, "PASS"
    for doubling in range(1, DOUBLINGS + 1):
        if (found := verdict(2.0**doubling)) != "PASS":
            beyond = 2.0**doubling
            break
        holds = 2.0**doubling
    stopped = found
    for _ in range(HALVINGS if beyond else 0):
        assert beyond is not None
        middle = (holds + beyond) / 2
        if (found := verdict(middle)) == "PASS":
            holds = middle
        else:
            beyond, stopped = middle, found
    return Headroom(holds, beyond, stopped == "FAIL", problem.planning.confidence)


def cores_per_accelerator(system: System, study: Study) -> str:
    """How many CPU cores an accelerator keeps busy at this load, and how many it has: one line."""
    accelerators = sum(tier.count * tier.accelerators_per_server for tier in system.tiers.values())
    if not accelerators:
        return "there are no accelerators"
    bought = sum(tier.count * tier.cores_per_server for tier in system.tiers.values())
    prepared = prepare(system)
    busy = {True: 0.0, False: 0.0}
    for use in study.pools:
        engine = use.pool in prepared.replicas
        if engine:
            cores = prepared.replicas[use.pool].pool.replicas * prepared.replicas[use.pool].host_cores
        else:
            cores = prepared.cores[use.pool] * system.tier_of(use.pool).count
        busy[engine] += use.busy_fraction * cores / accelerators
    return (
        f"{sum(busy.values()):.2g} CPU cores are busy per accelerator ({busy[False]:.2g} with understanding and tools, "
        f"{busy[True]:.2g} with engines), of {bought / accelerators:.3g} that are bought"
    )
