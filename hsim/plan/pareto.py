"""The trade-off between cost, joules and latency, with intervals: which fleets are certainly, and which possibly, best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from hsim.metrics.result import Interval, Study
from hsim.metrics.statistics import CONFIDENCE, Estimate
from hsim.metrics.study import Material, estimates_of, study_of
from hsim.metrics.summarise import unavailable_of
from hsim.plan.bounds import conditions_of
from hsim.plan.preview import previews
from hsim.plan.problem import Problem
from hsim.plan.result import Fleet, Progress, Step
from hsim.plan.spending import cost_of
from hsim.runs.studies import Options, gather, workers

AXES = {"cost": "usd_per_h", "tst": "tst_j", "latency": "e2e.p95_s"}
PREVIEW_RISK = 1e-6
Standing = Literal["certain", "possible", "dominated"]


@dataclass(frozen=True)
class Candidate:
    """A fleet and its axes, each with an interval; all intervals of the front hold together.

    `certain`: no other is shown to be at least as good on every axis, and none could be. `possible`: no other is shown
    to be, but within the intervals one might. `dominated`: `by` is as good on every axis and better on one.
    """

    fleet: Fleet
    axes: dict[str, Interval]
    attained: dict[str, Interval]
    standing: Standing
    by: str = ""
    character: str = ""


@dataclass(frozen=True)
class Front:
    """Candidates, cheapest first. Those that miss an objective by their point estimate were left out, and counted."""

    confidence: float
    candidates: tuple[Candidate, ...]
    missing: int
    not_looked_at: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)

    def csv(self) -> str:
        """A table of all candidates."""
        names = list(AXES)
        head = ["fleet", "standing", "character", *(f"{n}{end}" for n in names for end in ("", "_low", "_high"))]
        lines = [",".join(head)]
        for each in self.candidates:
            cells = [f'"{each.fleet.name}"', each.standing, each.character]
            for name in names:
                axis = each.axes[name]
                cells += ["" if v is None else f"{v:.6g}" for v in (axis.value, axis.low, axis.high)]
            lines.append(",".join(cells))
        return "\n".join(lines) + "\n"


def pareto(problem: Problem, most: int = 8, options: Options | None = None, progress: Progress | None = None) -> Front:
    """Simulate the fleets that promise most on any axis, and compare them on all.

    Which are looked at the preview decides: of those that seem to hold the ones with the cheapest servers, the ones that
    draw least, and the fastest, in turn. The cost of owned servers is with their electricity. All are simulated on the same random numbers.
    """
    options = options or Options()
    numbers, left = _promising(problem, most)
    found: list[tuple[Fleet, Study, dict[str, Interval]]] = []
    random = len(AXES) - 1 + any(problem.fleets[number].electricity for number in numbers)
    level = 1 - (1 - CONFIDENCE) / max(1, len(numbers) * random)
    with TemporaryDirectory() as here:
        running = options if options.out else replace(options, out=Path(here))
        with workers(running) as those:
            for place, number in enumerate(numbers):
                fleet = problem.fleets[number]
                if progress:
                    progress(Step("screen", fleet.name, place + 1, len(numbers), place * options.replications, ""))
                material, warm_up = gather(problem.system(number), running, those)
                found.append((fleet, study_of(material, warm_up), _axes(fleet, material, level)))
    held = [(f, s, axes) for f, s, axes in found if s.slo and all((o.attained.value or 0) >= o.p for o in s.slo)]
    return Front(CONFIDENCE, tuple(_placed(held)), len(found) - len(held), left)


def _axes(fleet: Fleet, material: Material, level: float) -> dict[str, Interval]:
    """Its figures with intervals at a level; what it costs is exact where electricity is in the rent."""
    energy = "energy" not in unavailable_of(material.system)
    estimates = estimates_of(material.paths, material.accounts, energy)
    if fleet.electricity:
        estimates[AXES["cost"]] = cost_of(material.paths, material.system)
    axes = {axis: _within(estimates.get(figure), level) for axis, figure in AXES.items()}
    return axes if fleet.electricity else axes | {"cost": Interval(fleet.usd_per_h)}


def _within(estimate: Estimate | None, level: float) -> Interval:
    if estimate is None or math.isnan(estimate.value):
        return Interval(None)
    half = estimate.half_width(level)
    return (
        Interval(estimate.value)
        if math.isnan(half)
        else Interval(estimate.value, estimate.value - half, estimate.value + half)
    )


def _promising(problem: Problem, most: int) -> tuple[list[int], int]:
    seen = [one for one in previews(problem, conditions_of(problem, PREVIEW_RISK, alone=False)) if one.holds]
    orders = (
        sorted(seen, key=lambda p: p.fleet.usd_per_h or 0.0),
        sorted(seen, key=lambda p: p.fleet.rated_w or math.inf),
        sorted(seen, key=lambda p: (p.e2e_mean_s, p.fleet.usd_per_h or 0.0)),
    )
    chosen: dict[int, None] = {}
    for each in zip(*orders, strict=True):
        for one in each:
            if len(chosen) < most:
                chosen.setdefault(one.fleet.number)
    return list(chosen), len(seen) - len(chosen)


Held = tuple[Fleet, Study, dict[str, Interval]]


def _placed(held: Sequence[Held]) -> list[Candidate]:
    candidates = []
    for fleet, study, axes in sorted(held, key=lambda h: (h[2]["cost"].value or 0.0, h[0].number)):
        others = [(f, a) for f, _, a in held if f is not fleet]
        by = next((f.name for f, a in others if _surely_as_good(a, axes)), "")
        rivalled = any(_perhaps_as_good(a, axes) for _, a in others)
        standing: Standing = "dominated" if by else "possible" if rivalled else "certain"
        attained = {slo.metric: slo.attained for slo in study.slo}
        candidates.append(Candidate(fleet, axes, attained, standing, by))
    return _characterised(candidates)


def _surely_as_good(one: dict[str, Interval], other: dict[str, Interval]) -> bool:
    """Whether one is at most the other on every axis, beyond its interval, and less on one."""
    return all(_top(one[a]) <= _bottom(other[a]) for a in AXES) and any(_top(one[a]) < _bottom(other[a]) for a in AXES)


def _perhaps_as_good(one: dict[str, Interval], other: dict[str, Interval]) -> bool:
    return all(_bottom(one[a]) <= _top(other[a]) for a in AXES)


def _top(axis: Interval) -> float:
    value = axis.high if axis.high is not None else axis.value
    return math.inf if value is None else value


def _bottom(axis: Interval) -> float:
    value = axis.low if axis.low is not None else axis.value
    return -math.inf if value is None else value


def _characterised(candidates: list[Candidate]) -> list[Candidate]:
    """One word for the best of each axis, and for the fewest kinds of servers."""
    words: dict[int, list[str]] = {}
    for axis, word in (("cost", "cheapest"), ("tst", "greenest"), ("latency", "fastest")):
        known = [c for c in candidates if c.axes[axis].value is not None]
        if known:
            best = min(known, key=lambda c: c.axes[axis].value or 0.0)
            words.setdefault(best.fleet.number, []).append(word)
    return [replace(c, character=", ".join(words.get(c.fleet.number, []))) for c in candidates]
