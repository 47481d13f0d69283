"""Comparisons: the same tasks through several scenarios, differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hsim.description.system import System
from hsim.errors import DescriptionError
from hsim.metrics.result import Comparison, Difference, Interval, WarmUp
from hsim.metrics.statistics import CONFIDENCE, Estimate
from hsim.metrics.study import (
    Material,
    estimates_of,
    moved_by_worlds,
    range_of,
    study_of,
)
from hsim.metrics.summarise import KEPT, unavailable_of
from hsim.runs.store import as_json, write_atomically
from hsim.runs.studies import Options, Workers, gather, is_steady, workers

COMPARED = (
    "tst_j", "tpw_tokens_per_j", "mean_w", "usd_per_task", "gco2_per_task", "operation_gco2_per_task",
    "embodied_gco2_per_task", *(f"{key}_fraction" for key in KEPT), "tasks_per_s", "goodput_tasks_per_s",
    "ttft.mean_s", "ttft.p99_s", "tpot.mean_s", "tpot.p99_s", "answer_ttft.mean_s", "answer_ttft.p99_s",
    "e2e.mean_s", "e2e.p99_s",
)  # fmt: skip


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
        _estimate_pairs(first, other) if not studies[0].is_unstable and not study.is_unstable else {}
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


Pairs = dict[str, tuple[Estimate, Estimate]]


def _estimate_pairs(first: Material, other: Material) -> Pairs:
    """The compared figures that both have, from the replications that both finished."""
    shared = {r.number for r in first.replications} & {r.number for r in other.replications}
    found = []
    for material in (first, other):
        paths = [r.path for r in material.replications if r.number in shared]
        found.append(estimates_of(paths, material.accounts, "energy" not in unavailable_of(material.system)))
    objectives = [name for name in found[0] if name.startswith("slo.")]
    work = ("marginal_tst_j",) if first.system.scenario.keep or other.system.scenario.keep else ()
    names = [name for name in (*work, *COMPARED, *objectives) if name in found[0] and name in found[1]]
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
