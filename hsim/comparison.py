"""Comparisons: the same tasks through several scenarios, differences with intervals, each at its own cheapest fleet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from hsim.description.scenario import load, read_scenario
from hsim.description.system import System, resolve
from hsim.description.yamlfile import Document
from hsim.errors import DescriptionError
from hsim.metrics.accounts import accounts_of
from hsim.metrics.result import Comparison, Difference, Interval, Study, TriedFleet, WarmUp
from hsim.metrics.statistics import CONFIDENCE, Estimate
from hsim.metrics.study import (
    Material,
    estimates_of,
    moved_by_worlds,
    range_of,
    slo_verdicts,
    stability_of,
    study_of,
)
from hsim.metrics.summarise import unavailable_of
from hsim.runs.store import as_json, write_atomically
from hsim.runs.studies import Options, Workers, gather, is_steady, workers
from hsim.units import HOUR_S

COMPARED = (
    "tst_j", "tpw_tokens_per_j", "mean_w", "usd_per_task", "gco2_per_task", "tasks_per_s", "goodput_tasks_per_s",
    "ttft.mean_s", "ttft.p99_s", "tpot.mean_s", "tpot.p99_s", "answer_ttft.mean_s", "answer_ttft.p99_s",
    "e2e.mean_s", "e2e.p99_s",
)  # fmt: skip
Fleets = Sequence[tuple[dict[str, int], System]]
"""Fleets to try, each as servers by tier and the system that they make."""

LOOKS = (1, 2, 4)  # a fleet that is undecided is looked at again with so many times the replications


def compare(systems: Sequence[System], options: Options | None = None) -> Comparison:
    """Compare systems with the first of them, paired by replication on common random numbers (the first's seed).

    Raises DescriptionError for systems that cannot be run, or not be compared.
    """
    options = options or Options()
    systems = _alike(systems)
    with workers(options) as those:
        comparison = _compared(systems, options, those)
    if options.out:
        write_atomically(options.out / "comparison.json", as_json(comparison))
    return comparison


def compare_fairly(
    scenarios: Sequence[str | Path], settings: Sequence[str] = (), options: Options | None = None
) -> Comparison:
    """Compare architectures at equal objectives, each at its own cheapest fleet that meets them.

    A scenario's `count: [1, 2, 4]` lists the fleets to try; they are tried cheapest first. Raises DescriptionError
    for scenarios without objectives, or with different ones, and for servers without a price.
    """
    return compare_cheapest([fleets_of(scenario, settings) for scenario in scenarios], options)


def compare_cheapest(architectures: Sequence[Fleets], options: Options | None = None) -> Comparison:
    """Compare architectures, each at the first of its fleets (cheapest first) that meets the objectives."""
    options = options or Options()
    _check_objectives([fleets[0][1] for fleets in architectures])
    # Fleets are looked at again and compared: what was simulated once is kept, here if nowhere else.
    with TemporaryDirectory() as here, workers(options) as those:
        keeping = options if options.out else replace(options, out=Path(here))
        searches = [_cheapest(fleets, keeping, those) for fleets in architectures]
        chosen = [system for system, _ in searches if system is not None]
        comparison = _compared(_alike(chosen), keeping, those) if chosen else Comparison((), (), CONFIDENCE)
    comparison = replace(comparison, fleets=tuple(tried for _, tried in searches))
    if options.out:
        write_atomically(options.out / "comparison.json", as_json(comparison))
    return comparison


def _alike(systems: Sequence[System]) -> list[System]:
    """The systems, all with the seed of the first. Raises DescriptionError for steady states beside finite runs."""
    first = systems[0]
    kinds = {is_steady(system.scenario.workload) for system in systems}
    if len(kinds) > 1:
        raise DescriptionError(
            first.document.where(("workload",)),
            "some of the scenarios are steady and others terminating",
            "set workload.measure to terminating in all of them",
        )
    seed = {"seed": first.scenario.seed}
    return [replace(system, scenario=system.scenario.model_copy(update=seed)) for system in systems]


def _compared(systems: Sequence[System], options: Options, workers: Workers) -> Comparison:
    gathered = _gathered_alike(systems, options, workers)
    studies = tuple(study_of(material, warm_up) for material, warm_up in gathered)
    first, *others = (material for material, _ in gathered)
    pairs = [
        _estimate_pairs(first, other) if not _unstable(studies[0]) and not _unstable(study) else {}
        for other, study in zip(others, studies[1:], strict=True)
    ]
    shown = sum(len(pair) for pair in pairs)
    confidence = 1 - (1 - CONFIDENCE) / max(1, shown)
    differences = tuple(_differences(pair, confidence, first, other) for pair, other in zip(pairs, others, strict=True))
    return Comparison(studies, differences, confidence)


def _gathered_alike(
    systems: Sequence[System], options: Options, workers: Workers
) -> list[tuple[Material, WarmUp | None]]:
    """Replications of each system whose windows hold the same tasks: the longest warm-up serves all."""
    gathered = [gather(system, options, workers) for system in systems]
    longest = max((warm_up.tasks for _, warm_up in gathered if warm_up), default=0)
    return [
        gather(system, options, workers, longest) if warm_up and warm_up.tasks < longest else (material, warm_up)
        for system, (material, warm_up) in zip(systems, gathered, strict=True)
    ]


def _unstable(study: Study) -> bool:
    return study.stability is not None and study.stability.verdict == "unstable"


Pairs = dict[str, tuple[Estimate, Estimate]]


def _estimate_pairs(first: Material, other: Material) -> Pairs:
    """The compared figures that both have, from the replications that both finished."""
    shared = {r.number for r in first.replications} & {r.number for r in other.replications}
    found = []
    for material in (first, other):
        paths = [r.path for r in material.replications if r.number in shared]
        found.append(estimates_of(paths, material.accounts, "energy" not in unavailable_of(material.system)))
    objectives = [name for name in found[0] if name.startswith("slo.")]
    names = [name for name in (*COMPARED, *objectives) if name in found[0] and name in found[1]]
    return {name: (found[0][name], found[1][name]) for name in names}


def _differences(pairs: Pairs, confidence: float, first: Material, other: Material) -> tuple[Difference, ...]:
    worlds = (moved_by_worlds(first), moved_by_worlds(other)) if pairs else ({}, {})
    differences = []
    for name, (here, there) in pairs.items():
        difference = there.minus(here)
        half = difference.half_width(confidence)
        paired = float((difference.pulls**2).sum())
        unpaired = float((here.pulls**2).sum() + (there.pulls**2).sum())
        both = name in worlds[0] and name in worlds[1] and len(worlds[0][name]) == len(worlds[1][name])
        value = difference.value
        differences.append(
            Difference(
                figure=name,
                first=here.value,
                other=there.value,
                interval=Interval(value) if math.isnan(half) else Interval(value, value - half, value + half),
                verdict="higher" if value > half else "lower" if value < -half else "no difference shown",
                variance_ratio=unpaired / paired if paired > 0 else None,
                by_worlds=range_of(worlds[1][name] - worlds[0][name]) if both else None,
            )
        )
    return tuple(differences)


# ---- each at its own cheapest fleet


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
