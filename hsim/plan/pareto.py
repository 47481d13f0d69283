"""The trade-off between cost, joules and latency, with intervals: which fleets are certainly, and which possibly, best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from hsim.description.system import System
from hsim.metrics.result import Interval, Study
from hsim.metrics.statistics import CONFIDENCE, Estimate
from hsim.metrics.study import Material, estimates_of, study_of
from hsim.metrics.summarise import unavailable_of
from hsim.plan.bounds import conditions_of
from hsim.plan.preview import previews
from hsim.plan.problem import Problem
from hsim.plan.result import Fleet, Progress, Step, Verdict
from hsim.plan.spending import cost_of
from hsim.runs.studies import Options, gather, is_one_path, workers

AXES = {"cost": "usd_per_h", "tst": "tst_j", "latency": "e2e.p95_s"}
PREVIEW_RISK = 1e-6
Standing = Literal["certain", "possible", "dominated", "undecided"]


@dataclass(frozen=True)
class Candidate:
    """A fleet and its axes, each with an interval; all intervals of the front hold together.

    `verdict` is that of its study on its objectives, the worst of them: PASS, or UNDECIDED. `certain`: it keeps them, no
    other is shown to be at least as good on every axis, and none could be. `possible`: no other is shown to be, but within
    the intervals one might. `dominated`: `by` keeps them, is as good on every axis and better on one. `undecided`: it is
    not shown to keep its objectives, nor to be dominated.
    """

    fleet: Fleet
    axes: dict[str, Interval]
    attained: dict[str, Interval]
    verdict: Verdict
    standing: Standing
    by: str = ""
    character: str = ""


@dataclass(frozen=True)
class Front:
    """Candidates, cheapest first. Those that are shown to miss an objective were left out, and counted."""

    confidence: float
    candidates: tuple[Candidate, ...]
    missing: int
    not_looked_at: int

    @property
    def undecided(self) -> int:
        """How many candidates are not shown to keep their objectives."""
        return sum(each.verdict == "UNDECIDED" for each in self.candidates)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)

    def csv(self) -> str:
        """A table of all candidates."""
        names = list(AXES)
        head = [
            "fleet",
            "verdict",
            "standing",
            "character",
            *(f"{n}{end}" for n in names for end in ("", "_low", "_high")),
        ]
        lines = [",".join(head)]
        for each in self.candidates:
            cells = [f'"{each.fleet.name}"', each.verdict, each.standing, f'"{each.character}"']
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
    found: list[Held] = []
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
                study = study_of(material, warm_up)
                found.append((fleet, study, _axes(fleet, material, level), _verdict(study, material.system)))
    held = [each for each in found if each[-1] != "FAIL"]
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


def _verdict(study: Study, system: System) -> Verdict:
    """The worst of a study's verdicts on objectives; FAIL without a steady state. One path of several bears none."""
    verdicts = [slo.verdict for slo in study.slo]
    if not verdicts or "FAIL" in verdicts:
        return "FAIL"
    left_to_chance = study.replications == 1 and not is_one_path(system)
    return "UNDECIDED" if "UNDECIDED" in verdicts or left_to_chance else "PASS"


Held = tuple[Fleet, Study, dict[str, Interval], Verdict]


def _placed(held: Sequence[Held]) -> list[Candidate]:
    candidates = []
    for fleet, study, axes, verdict in sorted(held, key=lambda h: (h[2]["cost"].value or 0.0, h[0].number)):
        others = [(f, a, v) for f, _, a, v in held if f is not fleet]
        by = next((f.name for f, a, v in others if v == "PASS" and _surely_as_good(a, axes)), "")
        rivalled = any(_perhaps_as_good(a, axes) for _, a, _ in others)
        standing: Standing = "possible" if rivalled else "certain"
        standing = "dominated" if by else "undecided" if verdict == "UNDECIDED" else standing
        attained = {slo.metric: slo.attained for slo in study.slo}
        candidates.append(Candidate(fleet, axes, attained, verdict, standing, by))
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
    """One word for the best of each axis, of those that are shown to keep their objectives."""
    words: dict[int, list[str]] = {}
    for axis, word in (("cost", "cheapest"), ("tst", "greenest"), ("latency", "fastest")):
        known = [c for c in candidates if c.verdict == "PASS" and c.axes[axis].value is not None]
        if known:
            best = min(known, key=lambda c: c.axes[axis].value or 0.0)
            words.setdefault(best.fleet.number, []).append(word)
    return [replace(c, character=", ".join(words.get(c.fleet.number, []))) for c in candidates]
