"""The planning problem: a scenario whose lists stand for choices, and every fleet that they allow."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from hsim.description.catalogue import load_profile
from hsim.description.choices import Choice, Choices, choices_of, first_of, with_chosen
from hsim.description.hardware import ServerProfile
from hsim.description.inventory import inventory
from hsim.description.scenario import Planning, Scenario, Slo, check_tiers, checked, read_scenario
from hsim.description.system import System, Tier, resolve
from hsim.description.yamlfile import Document, did_you_mean, validated, with_settings
from hsim.errors import DescriptionError, MistakeError
from hsim.metrics.accounts import accounts_of
from hsim.plan.result import Fleet
from hsim.plan.spending import buys_electricity
from hsim.policies.own import refuse_code
from hsim.units import HOUR_S

OWN = "own"  # the name of the scenario's own load


@dataclass(frozen=True)
class Objective:
    """One objective under one load."""

    load: str
    metric: str
    slo: Slo

    @property
    def allowed_fraction(self) -> float:
        return 1 - self.slo.p


@dataclass(frozen=True)
class Design:
    """Everything of a fleet but its counts: what was chosen, and its system by load; or why it cannot run.

    `assumed` names the figures that the scenario assumes.
    """

    choices: dict[str, Choice]
    systems: dict[str, System]
    impossible: str = ""
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a fleet stands in its space: its design, and the count of each tier."""

    design: int
    counts: dict[str, int]

    def design_of(self, problem: Problem) -> Design:
        return problem.designs[self.design]


@dataclass(frozen=True)
class Loss:
    """One server of a tier that is gone, or one replica of a pool: the fleet goes on without it."""

    tier: str = ""
    pool: str = ""

    @property
    def name(self) -> str:
        return f"the loss of a {self.tier} server" if self.tier else f"the loss of a replica of {self.pool}"


@dataclass(frozen=True)
class Problem:
    """A scenario, what is to be minimised within which limits, and the space: `fleets[i]` stands at `places[i]`.

    Each of `losses`, by name, counts as one more load: the scenario's own, on what is left of the fleet. What is assumed
    may also be for others, where the problem is `one_of_several`.
    """

    document: Document
    planning: Planning
    objectives: tuple[Objective, ...]
    designs: tuple[Design, ...]
    fleets: tuple[Fleet, ...]
    places: tuple[Place, ...]
    losses: Mapping[str, Loss] = field(default_factory=dict)
    one_of_several: bool = False

    @property
    def loads(self) -> tuple[str, ...]:
        """The loads of which something is asked: an objective, or what a task takes."""
        asked = {objective.load for objective in self.objectives}
        every = (OWN, *self.planning.loads, *self.losses)
        return tuple(load for load in every if load in asked or (self.aim_is_simulated and load == OWN))

    @cached_property
    def aim_is_simulated(self) -> bool:
        """Whether replications alone know what is minimised: all but the price of servers whose electricity is in it."""
        return self.planning.minimise != "cost" or any(fleet.electricity for fleet in self.fleets)

    def concerns(self, number: int, load: str) -> bool:
        """Whether a fleet has what a loss takes; other loads concern every fleet."""
        loss, place = self.losses.get(load), self.places[number]
        if loss is None or place.design_of(self).impossible:
            return True
        return loss.tier in place.counts or loss.pool in place.design_of(self).systems[OWN].engine_pools()

    def survives(self, number: int, load: str) -> bool:
        """Whether a loss leaves anything of what it takes from."""
        if (loss := self.losses.get(load)) is None or not self.concerns(number, load):
            return True
        if loss.tier:
            return self.places[number].counts[loss.tier] > 1
        return self.system(number).engine_pools()[loss.pool].replicas > 1

    def largest(self, design: int) -> int:
        """The fleet of a design that has most servers."""
        mine = [number for number, place in enumerate(self.places) if place.design == design]
        return max(mine, key=lambda number: sum(self.places[number].counts.values()))

    def system(self, number: int, load: str = OWN) -> System:
        """The system of a fleet under a load, or what a loss leaves of it."""
        place, loss = self.places[number], self.losses.get(load)
        system = with_counts(self.designs[place.design].systems[OWN if loss else load], place.counts)
        return _without(system, loss) if loss and self.concerns(number, load) else system


def read_problem(scenario: str | Path, settings: Sequence[str] = (), allow_code: bool = False) -> Problem:
    """The problem that a scenario describes, with `path=value` settings applied, which may be lists too.

    Policies of the user's own are executed where code is allowed. Raises DescriptionError for what is not right in it.
    """
    return problem_of(read_scenario(scenario, settings), allow_code)


def problem_of(document: Document, allow_code: bool = False) -> Problem:
    """The problem that a scenario describes which was read already. Raises DescriptionError."""
    if not isinstance(document.data, dict):
        raise DescriptionError(document.file, "is empty or not a mapping", "write the keys of a Scenario")
    lists = choices_of(document) | _counts_of(document)
    planning = _planning(document, lists)
    _check_have(planning, document)
    if not allow_code:
        refuse_code(document)  # else each fleet would be refused for it, after the space has been built
    designs, fleets, places = _space(document, lists, planning)
    designs = tuple(_trusted(design) for design in designs) if allow_code else designs
    if all(design.impossible for design in designs):
        raise DescriptionError(document.file, f"no choice can run: {designs[0].impossible}")
    objectives = tuple(_objectives(next(d for d in designs if not d.impossible), document))
    return Problem(document, planning, objectives, designs, fleets, places)


def _trusted(design: Design) -> Design:
    """The design, with code of the user's own allowed."""
    return replace(design, systems={load: replace(system, allow_code=True) for load, system in design.systems.items()})


def _counts_of(document: Document) -> Choices:
    """What `counts` lists for the tiers that are there: the same as a list where a tier's count stands."""
    counts, fleet = document.data.get("counts"), document.data.get("fleet")
    listed = counts.items() if isinstance(counts, dict) and isinstance(fleet, dict) else ()
    return {("fleet", tier, "count"): values for tier, values in listed if tier in fleet and isinstance(values, list)}


def with_counts(system: System, counts: Mapping[str, int]) -> System:
    """The system with so many servers of each tier."""
    scenario = system.scenario
    fleet = {name: tier.model_copy(update={"count": counts[name]}) for name, tier in scenario.fleet.items()}
    tiers: dict[str, Tier] = {name: replace(tier, count=counts[name]) for name, tier in system.tiers.items()}
    return replace(system, scenario=scenario.model_copy(update={"fleet": fleet}), tiers=tiers)


def with_losses(problem: Problem, losses: Sequence[Loss]) -> Problem:
    """The problem whose objectives must hold after each of these losses too."""
    own = [objective for objective in problem.objectives if objective.load == OWN]
    after = [replace(objective, load=loss.name) for loss in losses for objective in own]
    named = {loss.name: loss for loss in losses}
    return replace(problem, objectives=(*problem.objectives, *after), losses=named)


def only(problem: Problem, number: int) -> Problem:
    """The problem of one fleet alone."""
    return replace(problem, fleets=(replace(problem.fleets[number], number=0),), places=(problem.places[number],))


def _without(system: System, loss: Loss) -> System:
    if loss.tier:
        counts = {name: tier.count - (name == loss.tier) for name, tier in system.tiers.items()}
        return with_counts(system, counts)
    scenario, left = system.scenario, system.engine_pools()[loss.pool].replicas - 1
    pools = {**scenario.pools, loss.pool: scenario.pools[loss.pool].model_copy(update={"replicas": left})}
    return replace(system, scenario=scenario.model_copy(update={"pools": pools}))


def _planning(document: Document, lists: Choices) -> Planning:
    """What is to be found; the scenario is checked with the first of each list."""
    return validated(with_chosen(document, first_of(lists)), Scenario).plan or Planning()


def _check_have(planning: Planning, document: Document) -> None:
    for name in planning.have:
        load_profile(name, ServerProfile, document.where(("plan", "have", name)), Path(document.file).parent)


# ---- the space


def _space(
    document: Document, lists: Choices, planning: Planning
) -> tuple[tuple[Design, ...], tuple[Fleet, ...], tuple[Place, ...]]:
    counted = {path[1]: values for path, values in lists.items() if _is_count(path)}
    others = {path: values for path, values in lists.items() if not _is_count(path)}
    designs: list[Design] = []
    fleets: list[Fleet] = []
    places: list[Place] = []
    seen: set[str] = set()
    for combination in product(*others.values()):
        chosen = dict(zip(others, combination, strict=True))
        most = {("fleet", tier, "count"): max(values) for tier, values in counted.items()}
        bought = _bought(with_chosen(document, chosen | most), chosen)
        if (key := json.dumps(bought.data, sort_keys=True)) in seen:
            continue  # what was chosen concerns nothing that is bought
        seen.add(key)
        design = _design(bought, chosen, planning)
        designs.append(design)
        tiers = [tier for tier in counted if tier in bought.data["fleet"]]
        for counts in product(*(counted[tier] for tier in tiers)):
            place = Place(len(designs) - 1, _all_counts(bought, dict(zip(tiers, counts, strict=True))))
            fleets.append(_fleet(len(fleets), design, place, tiers, bought))
            places.append(place)
    return tuple(designs), tuple(fleets), tuple(places)


def _is_count(path: tuple[str, ...]) -> bool:
    return path[0] == "fleet" and path[-1] == "count"


def _all_counts(bought: Document, counts: Mapping[str, Any]) -> dict[str, int]:
    return {tier: int(counts.get(tier, entry["count"])) for tier, entry in bought.data["fleet"].items()}


def _bought(document: Document, chosen: Mapping[tuple[str, ...], Choice]) -> Document:
    """Only what serves: no pool that no stage uses, no memory that no pool uses, no tier on which neither stands, no link
    that joins nothing.

    A pool that was free to choose its tier needs no link to another on the same one, as in a scenario that says so.
    Raises DescriptionError for a tier that is not there.
    """
    data = {key: value for key, value in document.data.items() if key != "plan"}
    named = [[value] if isinstance(value, str) else value for value in data["stages"].values() if value]
    used = {name for names in named for name in names} | {(data.get("keep") or {}).get("pool")}
    pools = {name: pool for name, pool in data["pools"].items() if name in used}
    runs_on = {name: str(pool["runs_on"]) for name, pool in pools.items()}
    check_tiers(runs_on, list(data["fleet"]), document)  # while all are there: one misspelt would not be bought
    tier_of = {name: part_of_tier.rpartition(".")[0] for name, part_of_tier in runs_on.items()}
    free = {path[1] for path in chosen if path[0] == "pools" and path[-1] == "runs_on"}
    hands_over = {data["stages"].get("prefill"), data["stages"]["generate"]}
    links = {}
    for name, way in data.get("links", {}).items():
        ends = next(({a, b} for a in data["pools"] for b in data["pools"] if name == f"{a}-{b}"), None)
        if ends is None:
            links[name] = way  # refused later, by its name
        elif ends <= set(pools):
            together = len({tier_of[end] for end in ends}) == 1 and bool(ends & free) and ends != hands_over
            links |= {} if together else {name: way}
    read = {pool.get("memory") for pool in pools.values()}
    memory = {name: its for name, its in data.get("memory", {}).items() if name in read}
    standing = {*tier_of.values(), *(its["on"] for its in memory.values())}
    tiers = {name: tier for name, tier in data["fleet"].items() if name in standing}
    bought = {"pools": pools, "links": links, "fleet": tiers} | ({"memory": memory} if "memory" in data else {})
    return Document(document.file, data | bought, document.places)


def _design(bought: Document, chosen: Mapping[tuple[str, ...], Choice], planning: Planning) -> Design:
    """The design of a choice, resolved under each load. Raises DescriptionError for a scenario that is wrong in itself."""
    choices = {".".join(path): value for path, value in chosen.items() if _stands(bought.data, path)}
    systems, assumed = dict[str, System](), dict[str, None]()
    for load, changes in {OWN: {}, **planning.loads}.items():
        document = with_settings(bought, [f"{path}={json.dumps(value)}" for path, value in changes.items()])
        scenario = checked(document)
        assumed |= dict.fromkeys(scenario.assume)
        try:
            systems[load] = _resolved(scenario, document)
        except MistakeError:
            raise  # else a slip of the pen would leave a choice out
        except DescriptionError as error:
            return Design(choices, {}, str(error), tuple(assumed))
    return Design(choices, systems, assumed=tuple(assumed))


def _resolved(scenario: Scenario, document: Document) -> System:
    """The system; assumptions about profiles that this choice has nothing of are left aside."""
    system = resolve(scenario, document)
    known = tuple(f"{name}." for name in system.figures.documents)
    assume = {name: value for name, value in scenario.assume.items() if name.startswith(known)}
    if assume != scenario.assume:
        system = resolve(scenario.model_copy(update={"assume": assume}), document)
    return replace(system, figures=replace(system.figures, shared=True))


def check_assumptions_used(problem: Problem, prepared: Collection[int]) -> None:
    """Raises DescriptionError for an assumption about a figure that no design uses.

    Where not all were prepared, as some cannot run, others may have used it: then for one that no profile has.
    """
    figures = [system.figures for design in problem.designs for system in design.systems.values()]
    known = {name for each in figures for name in each.used}
    assumed = {name: None for design in problem.designs for name in design.assumed}
    if not (unused := [name for name in assumed if name not in known]):
        return
    if problem.one_of_several or len(prepared) < len(problem.designs):
        entries = inventory(Path(problem.document.file).parent)
        known |= {f"{entry.profile.name}.{figure}" for entry in entries for figure in entry.figures}
    for name in unused:
        if name not in known:
            at = problem.document.where(("assume", *name.split(".")))
            raise DescriptionError(at, "is not a figure that any choice uses", did_you_mean(name, sorted(known)))


def _stands(data: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


def _objectives(design: Design, document: Document) -> Iterator[Objective]:
    found = [
        Objective(load, metric, slo)
        for load, system in design.systems.items()
        for metric in type(system.scenario.slo).model_fields
        if (slo := getattr(system.scenario.slo, metric))
    ]
    if not found:
        raise DescriptionError(document.where(("slo",)), "there is no objective", "say what a fleet must hold: set one")
    return iter(found)


# ---- what a fleet buys


def _fleet(number: int, design: Design, place: Place, tiers: Sequence[str], bought: Document) -> Fleet:
    choices = {**{f"fleet.{tier}.count": place.counts[tier] for tier in tiers}, **design.choices}
    if design.impossible:
        servers = _servers((str(tier["server"]), place.counts[name]) for name, tier in bought.data["fleet"].items())
        return Fleet(number, choices, servers, 0, 0, None, None)
    system = with_counts(design.systems[OWN], place.counts)
    each = each_server(system)
    usd_per_h = sum(place.counts[tier] * usd for tier, (usd, _) in each.items())
    rated_w = sum(place.counts[tier] * watts for tier, (_, watts) in each.items())
    return Fleet(
        number=number,
        choices=choices,
        servers=_servers((tier.server.name, tier.count) for tier in system.tiers.values()),
        accelerators=sum(tier.count * tier.accelerators_per_server for tier in system.tiers.values()),
        cores=sum(tier.count * tier.cores_per_server for tier in system.tiers.values()),
        usd_per_h=None if math.isnan(usd_per_h) else usd_per_h,
        rated_w=None if math.isnan(rated_w) else rated_w,
        electricity=any(buys_electricity(site) for site in system.scenario.sites_in_use().values()),
    )


def _servers(bought: Iterator[tuple[str, int]]) -> dict[str, int]:
    """Servers by kind: two tiers may hold the same."""
    servers: dict[str, int] = {}
    for name, count in bought:
        servers[name] = servers.get(name, 0) + count
    return servers


def each_server(system: System) -> dict[str, tuple[float, float]]:
    """USD an hour, and the most watts at the facility, of one server of each tier; nan where a figure is unknown.

    The most: accelerators at their caps, cores all busy, and what is always on.
    """
    figures, accounts = system.figures, accounts_of(system)
    prices = accounts.tiers
    found = {}
    for name, tier in system.tiers.items():
        watts = figures.if_known(tier.server, "base_w") + tier.server.sockets * figures.if_known(tier.cpu, "max_w")
        if tier.chip:
            watts += tier.accelerators_per_server * figures.if_known(tier.chip, "power.cap_w")
        watts *= accounts.sites[prices[name].site].pue / figures.if_known(tier.server, "psu_efficiency")
        found[name] = (prices[name].usd_per_s / tier.count * HOUR_S, watts)
    return found
