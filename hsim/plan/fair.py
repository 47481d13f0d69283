"""Architectures compared at equal objectives, each at its own best fleet, as the planner certifies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from hsim.comparison import compare
from hsim.errors import DescriptionError
from hsim.metrics.result import Comparison, TriedFleet
from hsim.metrics.statistics import CONFIDENCE
from hsim.plan.planner import PlanOptions, planned_whole
from hsim.plan.problem import Problem, read_problem
from hsim.plan.result import Judged, Plan, Progress
from hsim.runs.store import as_json, write_atomically
from hsim.runs.studies import Options


def compare_fairly(
    scenarios: Sequence[str | Path],
    settings: Sequence[str] = (),
    options: Options | None = None,
    progress: Progress | None = None,
    allow_code: bool = False,
) -> Comparison:
    """Compare the first scenario with others, each at the cheapest fleet of its lists that is certified.

    Raises DescriptionError for scenarios without objectives, or with different ones, and for servers without a price.
    """
    problems = [read_problem(scenario, settings, allow_code) for scenario in scenarios]
    _check_alike(problems)
    return at_their_best(problems, options or Options(), progress)


def at_their_best(problems: Sequence[Problem], options: Options, progress: Progress | None = None) -> Comparison:
    """Compare the best fleet of the first problem with those of others; `fleets` are of all, found or not.

    Whatever is interrupted ends it: half of a comparison says nothing.
    """
    with TemporaryDirectory() as here:  # what was simulated once is kept, here if nowhere else
        keeping = options if options.out else replace(options, out=Path(here))
        searching = PlanOptions(options.processes, keeping.out)
        plans = [planned_whole(replace(each, one_of_several=True), searching, progress) for each in problems]
        chosen = [
            problem.system(found.chosen.fleet.number)
            for problem, found in zip(problems, plans, strict=True)
            if found.chosen
        ]
        comparison = compare(chosen, keeping) if chosen else Comparison((), (), CONFIDENCE)
    comparison = replace(comparison, fleets=tuple(_tried(found) for found in plans))
    if options.out:
        write_atomically(options.out / "comparison.json", as_json(comparison))
    return comparison


def _check_alike(problems: Sequence[Problem]) -> None:
    for problem in problems:
        if problem.objectives != problems[0].objectives:
            at = problem.document.where(("slo",))
            raise DescriptionError(at, "the objectives differ from the first scenario's", "give all the same slo")


def _tried(found: Plan) -> tuple[TriedFleet, ...]:
    """What was looked at, cheapest first; one at most passes."""
    return tuple(
        TriedFleet(
            each.fleet.name,
            each.fleet.servers,
            each.fleet.usd_per_h or 0.0,
            each.replications,
            _verdict(each),
            each.reason,
        )
        for each in found.judged
    )


def _verdict(judged: Judged) -> Literal["PASS", "FAIL", "UNDECIDED", "UNSTABLE"]:
    return "UNSTABLE" if judged.by in ("stability", "capacity") else judged.verdict
