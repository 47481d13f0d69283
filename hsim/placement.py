"""Placement studies: the architectures of one scenario, each at its own cheapest feasible fleet, over a range of load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from hsim.comparison import compare
from hsim.description.scenario import load, read_scenario
from hsim.description.system import System, resolve
from hsim.description.yamlfile import Document
from hsim.errors import DescriptionError
from hsim.metrics.accounts import accounts_of
from hsim.metrics.result import Comparison, Placement, RatePoint, TriedFleet
from hsim.metrics.statistics import CONFIDENCE
from hsim.metrics.study import Material, slo_verdicts, stability_of
from hsim.runs.store import as_json, write_atomically
from hsim.runs.studies import Options, Workers, gather, workers
from hsim.units import HOUR_S

Fleets = Sequence[tuple[dict[str, int], System]]
"""Fleets to try, each as servers by tier and the system that they make."""

LOOKS = (1, 2, 4)  # a fleet that is undecided is looked at again with so many times the replications
HOPELESS = ("FAIL", "UNSTABLE")  # verdicts that more load does not mend


def place(
    scenario: str | Path,
    architectures: Sequence[str],
    rates_per_s: Sequence[float],
    settings: Sequence[str] = (),
    options: Options | None = None,
) -> Placement:
    """Compare architectures of a scenario at each rate, from low to high, every one at its own cheapest feasible fleet.

    A fleet that failed its objectives at one rate is not tried at higher ones. Raises DescriptionError for
    architectures that are not there, and for all that compare_fairly refuses.
    """
    options = options or Options()
    _check_architectures(scenario, architectures, settings)
    hopeless: list[list[dict[str, int]]] = [[] for _ in architectures]
    points = []
    for rate in sorted(rates_per_s):
        at = [*settings, f"workload.arrivals.rate_per_s={rate:g}"]
        fleets = [
            [fleet for fleet in fleets_of(scenario, [*at, f"architecture={name}"]) if fleet[0] not in gone]
            for name, gone in zip(architectures, hopeless, strict=True)
        ]
        left = [number for number, its in enumerate(fleets) if its]
        out = options.out / f"rate-{rate:g}" if options.out else None
        comparison = Comparison((), (), CONFIDENCE)
        if left:
            comparison = compare_cheapest([fleets[number] for number in left], replace(options, out=out))
        for number, tried in zip(left, comparison.fleets, strict=True):
            hopeless[number] += [fleet.servers for fleet in tried if fleet.verdict in HOPELESS]
        found = [number for number, tried in zip(left, comparison.fleets, strict=True) if tried[-1].verdict == "PASS"]
        points.append(RatePoint(rate, comparison, tuple(architectures[number] for number in found)))
    placement = Placement(str(scenario), tuple(architectures), tuple(points))
    if options.out:
        write_atomically(options.out / "placement.json", as_json(placement))
    return placement


def rates_of(text: str) -> list[float]:
    """Rates from `1,3,9`, or `1:16`: doubled from the first until the last. Raises ValueError for anything else."""
    low, colon, high = text.partition(":")
    if not colon:
        rates = [float(part) for part in text.split(",")]
    else:
        first, last = float(low), float(high)
        rates = [first]
        while 0 < rates[-1] < last:
            rates.append(min(2 * rates[-1], last))
    if not all(0 < rate < float("inf") for rate in rates):
        raise ValueError(f"{text!r} has a rate that is not above 0")
    return rates


def _check_architectures(scenario: str | Path, architectures: Sequence[str], settings: Sequence[str]) -> None:
    document = read_scenario(scenario, settings)
    known = document.data.get("architectures") if isinstance(document.data, dict) else None
    if not isinstance(known, dict):
        raise DescriptionError(document.file, "has no architectures", "describe them under `architectures`")
    for name in architectures:
        if name not in known:
            at = document.where(("architectures",))
            raise DescriptionError(at, f"there is no {name!r}", f"known: {', '.join(known)}")


# ---- each at its own cheapest fleet


def compare_cheapest(architectures: Sequence[Fleets], options: Options | None = None) -> Comparison:
    """Compare architectures, each at the first of its fleets (cheapest first) that meets the objectives."""
    options = options or Options()
    _check_objectives([fleets[0][1] for fleets in architectures])
    # Fleets are looked at again and compared: what was simulated once is kept, here if nowhere else.
    with TemporaryDirectory() as here:
        keeping = options if options.out else replace(options, out=Path(here))
        with workers(keeping) as those:
            searches = [_cheapest(fleets, keeping, those) for fleets in architectures]
        chosen = [system for system, _ in searches if system is not None]
        comparison = compare(chosen, keeping) if chosen else Comparison((), (), CONFIDENCE)
    comparison = replace(comparison, fleets=tuple(tried for _, tried in searches))
    if options.out:
        write_atomically(options.out / "comparison.json", as_json(comparison))
    return comparison


def fleets_of(scenario: str | Path, settings: Sequence[str] = ()) -> Fleets:
    """Every fleet that a scenario's lists of counts allow, cheapest first. Raises DescriptionError without prices."""
    document = read_scenario(scenario, settings)
    counts = _counts(document)
    fleets = []
    for combination in product(*counts.values()):
        servers = dict(zip(counts, combination, strict=True))
        chosen = [f"fleet.{tier}.count={count}" for tier, count in servers.items()]
        system = resolve(*load(scenario, [*settings, *chosen]))
        fleets.append((_usd_per_h(system), servers, system))
    fleets.sort(key=lambda fleet: (fleet[0], sum(fleet[1].values())))
    return [(servers, system) for _, servers, system in fleets]


def _counts(document: Document) -> dict[str, list[int]]:
    """The counts to try of each tier: a list there or under `counts`, or the one that stands there."""
    data = document.data if isinstance(document.data, dict) else {}
    fleet, listed = data.get("fleet"), data.get("counts")
    counts: dict[str, list[int]] = {}
    for name, tier in (fleet if isinstance(fleet, dict) else {}).items():
        count = tier.get("count") if isinstance(tier, dict) else None
        if isinstance(listed, dict):
            count = listed.get(name, count)
        if count == []:
            raise DescriptionError(document.where(("fleet", name, "count")), "is an empty list", "list counts to try")
        counts[str(name)] = count if isinstance(count, list) else [count]  # type: ignore[list-item]  # checked when loaded
    return counts


def _usd_per_h(system: System) -> float:
    tiers = accounts_of(system).tiers
    usd_per_h = sum(tier.usd_per_s for tier in tiers.values()) * HOUR_S
    if math.isnan(usd_per_h):
        name, why = next(
            (n, w) for n, w in system.figures.unknown.items() if n.endswith(("rent_usd_per_h", "capex_usd"))
        )
        raise DescriptionError(f"{system.document.file}: fleet", f"has no price: {why}", f"set assume.{name}")
    return usd_per_h


def _check_objectives(systems: Sequence[System]) -> None:
    first = systems[0].scenario.slo
    for system in systems:
        at = system.document.where(("slo",))
        if not any(getattr(system.scenario.slo, metric) for metric in type(first).model_fields):
            raise DescriptionError(
                at, "there is no objective", "architectures are fair to compare at equal slo: set one"
            )
        if system.scenario.slo != first:
            raise DescriptionError(at, "the objectives differ from the first scenario's", "give all the same slo")


def _cheapest(fleets: Fleets, options: Options, workers: Workers) -> tuple[System | None, tuple[TriedFleet, ...]]:
    """The cheapest fleet that meets the objectives, and every one that was tried.

    Each verdict stands at 95 % together with all others of the search (Bonferroni over fleets and looks).
    """
    confidence = 1 - (1 - CONFIDENCE) / (len(fleets) * len(LOOKS))
    tried: list[TriedFleet] = []
    for servers, system in fleets:
        for look in LOOKS:
            material, _ = gather(system, replace(options, replications=look * options.replications, worlds=0), workers)
            fleet = _judged(servers, material, confidence)
            if fleet.verdict != "UNDECIDED" or len(material.replications) < material.wanted or material.wanted == 1:
                break
        tried.append(fleet)
        if fleet.verdict == "PASS":
            return system, tuple(tried)
    return None, tuple(tried)


def _judged(servers: dict[str, int], material: Material, confidence: float) -> TriedFleet:
    usd_per_h = sum(tier.usd_per_s for tier in material.accounts.tiers.values()) * HOUR_S
    count = len(material.replications)
    open_steady = material.kind == "steady" and material.replications[0].offered
    if open_steady and count > 1 and (stability := stability_of(material.replications)).verdict == "unstable":
        return TriedFleet(servers, usd_per_h, count, "UNSTABLE", stability.reason)
    verdicts = slo_verdicts(material, confidence)
    worst = min(verdicts, key=lambda slo: ("FAIL", "UNDECIDED", "PASS").index(slo.verdict))
    reason = f"{worst.metric} within {worst.max_s:g} s: {worst.attained.value:.2%} of {worst.p:.2%}"
    return TriedFleet(servers, usd_per_h, count, worst.verdict, reason)
