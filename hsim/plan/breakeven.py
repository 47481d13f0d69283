"""Architectures against load: which is better at which rate, by how much, and what staying with the simple one costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from hsim.description.choices import Choice
from hsim.errors import DescriptionError
from hsim.plan.bounds import conditions_of, cost_bound
from hsim.plan.planner import PlanOptions, planned_whole
from hsim.plan.preview import holding, previews
from hsim.plan.problem import Problem, read_problem
from hsim.plan.result import Plan, Progress

PREVIEW_RISK = 1e-6


@dataclass(frozen=True)
class Best:
    """The best fleet of an architecture at a rate: its name and what it takes (USD an hour, joules or grams a task).

    None where none holds. `low` and `high` where that is an estimate; `lp_usd_per_h` is what servers that could be bought
    in parts would cost at least. `undecided` fleets of the architecture might be better. Dollars are of servers alone
    where they are a preview's, and `electricity` comes on top.
    """

    fleet: str | None
    value: float | None
    low: float | None = None
    high: float | None = None
    lp_usd_per_h: float | None = None
    undecided: int = 0
    electricity: bool = False


@dataclass(frozen=True)
class Point:
    """The architectures at one rate. `winner` None: none holds, or their intervals overlap."""

    rate_per_s: float
    best: dict[str, Best]
    winner: str | None

    def regret_fraction(self, architecture: str) -> float | None:
        """How much more than the best an architecture takes; None where it does not hold."""
        value = self.best[architecture].value
        values = [best.value for best in self.best.values() if best.value is not None]
        return None if value is None else value / min(values) - 1


@dataclass(frozen=True)
class Band:
    """Neighbouring rates with one winner; what lies between two bands was not looked at."""

    low_per_s: float
    high_per_s: float
    winner: str | None


@dataclass(frozen=True)
class BreakEven:
    """Who wins where. The first architecture is the simple one; `certified` False: all by the preview's formulas."""

    choice: str
    minimised: str
    certified: bool
    points: tuple[Point, ...]

    @property
    def architectures(self) -> tuple[str, ...]:
        return tuple(self.points[0].best)

    @property
    def bands(self) -> tuple[Band, ...]:
        """Winners by load: machines are whole, so that there may be many switches."""
        runs = (list(group) for _, group in groupby(self.points, key=lambda point: point.winner))
        return tuple(Band(run[0].rate_per_s, run[-1].rate_per_s, run[0].winner) for run in runs)

    @property
    def first_per_s(self) -> tuple[float | None, float] | None:
        """The rates between which the simple architecture stops to be the best for the first time.

        The first is the last at which it was shown to be the best before, and None where it was at none.
        """
        simple, before = self.architectures[0], None
        for point in self.points:
            if point.winner not in (simple, None):
                return before, point.rate_per_s
            before = point.rate_per_s if point.winner == simple else before
        return None

    @property
    def most_regret_fraction(self) -> float | None:
        """The most that staying simple takes more than the best, where it holds at all."""
        found = [regret for p in self.points if (regret := p.regret_fraction(self.architectures[0])) is not None]
        return max(found, default=None)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            **asdict(self),
            "bands": [asdict(band) for band in self.bands],
            "first_per_s": self.first_per_s,
            "most_regret_fraction": self.most_regret_fraction,
        }


@dataclass(frozen=True)
class Architectures:
    """What distinguishes architectures: a path of the scenario, and its values, the simple one first.

    `allow_code`: policies of the user's own may be executed.
    """

    path: str
    values: tuple[Choice, ...]
    allow_code: bool = False


def breakeven(
    scenario: str | Path,
    settings: Sequence[str],
    architectures: Architectures,
    rates_per_s: Sequence[float],
    options: PlanOptions | None = None,
    progress: Progress | None = None,
) -> BreakEven:
    """Plan each architecture at each rate. Without options, by the preview's formulas: at once, and not certified.

    Raises DescriptionError where a preview is asked for joules.
    """
    points, aim = [], ""
    for rate in sorted(rates_per_s):
        best = {}
        for value in architectures.values:
            chosen = [f"{architectures.path}={json.dumps(value)}", f"workload.arrivals.rate_per_s={rate}"]
            problem = read_problem(scenario, [*settings, *chosen], architectures.allow_code)
            problem = replace(problem, one_of_several=True)
            aim = problem.planning.minimise
            best[str(value)] = _planned(planned_whole(problem, options, progress)) if options else _previewed(problem)
        points.append(Point(rate, best, _winner(best)))
    return BreakEven(architectures.path, aim, options is not None, tuple(points))


def _previewed(problem: Problem) -> Best:
    if problem.planning.minimise != "cost":
        at = problem.document.where(("plan", "minimise"))
        raise DescriptionError(at, "a preview knows no joules", "minimise cost, or add --certify")
    conditions = conditions_of(problem, PREVIEW_RISK, alone=False)
    found = holding(previews(problem, conditions))
    lp = cost_bound(conditions).lp_usd_per_h
    if found is None:
        return Best(None, None, lp_usd_per_h=lp)
    fleet = found.fleet
    return Best(fleet.name, fleet.usd_per_h, lp_usd_per_h=lp, electricity=fleet.electricity)


def _planned(found: Plan) -> Best:
    lp, undecided = found.bound.lp_usd_per_h, len(found.undecided)
    if found.chosen is None or found.study is None:
        return Best(None, None, lp_usd_per_h=lp, undecided=undecided)
    name = found.chosen.fleet.name
    if found.minimised == "cost" and (usd := found.usd_per_h):
        return Best(name, usd.value, usd.low, usd.high, lp, undecided)
    if found.minimised == "cost":
        return Best(name, found.chosen.fleet.usd_per_h, lp_usd_per_h=lp, undecided=undecided)
    figure = found.study.figures()["tst_j" if found.minimised == "tst" else "gco2_per_task"]
    return Best(name, figure.value, figure.low, figure.high, lp, undecided)


def _winner(best: dict[str, Best]) -> str | None:
    """The architecture that takes least, where it does so beyond doubt."""
    held = {name: each for name, each in best.items() if each.value is not None}
    if not held:
        return None
    name, winner = min(held.items(), key=lambda item: item[1].value or 0.0)
    others = [each for other, each in held.items() if other != name]
    top = winner.value if winner.high is None else winner.high
    return name if all((top or 0) <= ((o.value if o.low is None else o.low) or 0) for o in others) else None
