"""Which number to measure better: a tornado of paired differences, and how far each input is from undoing the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hsim.comparison import compare
from hsim.description.scenario import read_scenario
from hsim.description.system import System
from hsim.description.yamlfile import Document
from hsim.errors import DescriptionError
from hsim.metrics.result import Difference
from hsim.metrics.study import slo_verdicts, stability_of
from hsim.plan.result import Progress, Step
from hsim.runs.paths import system_of
from hsim.runs.studies import Options, Workers, gather, workers

FIGURES = ("tst_j", "usd_per_task", "e2e.mean_s", "e2e.p95_s")
SCALED = ("rate_per_s", "value", "median", "mean", "p95", "users")  # what makes an input larger
HALVINGS = 3
FURTHEST = 2.0  # an input is not looked at beyond this much of itself


@dataclass(frozen=True)
class Swing:
    """What an input does when it is so much smaller, and larger: differences from the scenario as it stands, by figure."""

    name: str
    low: dict[str, Difference]
    high: dict[str, Difference]

    def span(self, figure: str) -> float:
        """How far a figure moves between the two, as a part of itself."""
        ends = [side[figure] for side in (self.low, self.high) if figure in side]
        values = [(end.other - end.first) / end.first for end in ends] if ends and ends[0].first else [0.0]
        return max(*values, 0.0) - min(*values, 0.0)


@dataclass(frozen=True)
class Flip:
    """How far an input is from undoing the verdict: at `holds_times` of itself the objectives were attained, at `fails_times` not.

    By point estimates of what was attained. None: nowhere as far as was looked, up where they are attained as it stands,
    else down.
    """

    name: str
    holds_times: float | None
    fails_times: float | None


@dataclass(frozen=True)
class Sensitivity:
    """A scenario's swings, the largest of the first figure first, and the distances to a flip of its verdict."""

    scenario: str
    around_fraction: float
    confidence: float
    swings: tuple[Swing, ...]
    flips: tuple[Flip, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True)
class Around:
    """How far inputs are moved, and whether distances to a flip are looked for."""

    fraction: float = 0.2
    flip: bool = False


def sensitivity(
    scenario: str | Path,
    settings: Sequence[str] = (),
    around: Around = Around(),
    options: Options | None = None,
    progress: Progress | None = None,
    allow_code: bool = False,
) -> Sensitivity:
    """Move each input of the workload by so much, down and up, on the same random numbers.

    Raises DescriptionError for a scenario with lists, or without anything to move.
    """
    options = options or Options()
    document = read_scenario(scenario, settings)
    inputs = dict(inputs_of(document))
    if not inputs:
        raise DescriptionError(document.file, "has no input that could be moved", "declare a rate or lengths")
    base = system_of(scenario, settings, allow_code)
    names = list(inputs)

    def moved(name: str, times: float) -> System:
        return system_of(scenario, [*settings, *_scaled(inputs[name], times)], allow_code)

    with TemporaryDirectory() as here:
        keeping = options if options.out else replace(options, out=Path(here))
        if progress:
            progress(Step("explain", "", 0, len(names), 0, "moving inputs"))
        ends = [moved(name, times) for name in names for times in (1 - around.fraction, 1 + around.fraction)]
        comparison = compare([base, *ends], keeping)
        flips = []
        if around.flip and any(getattr(base.scenario.slo, m) for m in type(base.scenario.slo).model_fields):
            with workers(keeping) as those:
                flips = [_flip(name, partial(moved, name), keeping, those) for name in names]
    found = [{d.figure: d for d in differences if d.figure in FIGURES} for differences in comparison.differences]
    swings = [Swing(name, found[2 * i], found[2 * i + 1]) for i, name in enumerate(names)]
    swings.sort(key=lambda swing: -max(swing.span(figure) for figure in FIGURES))
    return Sensitivity(document.file, around.fraction, comparison.confidence, tuple(swings), tuple(flips))


Numbers = list[tuple[tuple[str, ...], float]]


def inputs_of(document: Document) -> Iterator[tuple[str, Numbers]]:
    """The inputs of a workload, each with the numbers that grow with it: the rate, and every distribution of a class."""
    workload = document.data.get("workload", {})
    rate = workload.get("arrivals", {}).get("rate_per_s")
    if isinstance(rate, int | float):
        yield "arrival rate", [(("workload", "arrivals", "rate_per_s"), float(rate))]
    for name, kind in workload.get("classes", {}).items():
        for path, value in _distributions(kind, ("workload", "classes", str(name))):
            numbers = [((*path, key), float(value[key])) for key in SCALED if isinstance(value.get(key), int | float)]
            if numbers:
                yield " ".join(path[2:]), numbers


def _distributions(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(value, dict) and "kind" in value:
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _distributions(inner, (*path, str(key)))


def _scaled(numbers: Numbers, times: float) -> list[str]:
    return [f"{'.'.join(path)}={json.dumps(times * value)}" for path, value in numbers]


def _flip(name: str, moved: Callable[[float], System], options: Options, those: Workers) -> Flip:
    """Bisect for how much larger an input may become before an objective is missed; or smaller, where one is."""

    def holds(times: float) -> bool:
        material, warm_up = gather(moved(times), options, those)
        judged = warm_up is not None and len(material.replications) > 1
        if judged and stability_of(material.replications).verdict == "unstable":
            return False
        return all((slo.attained.value or 0.0) >= slo.p for slo in slo_verdicts(material))

    if holds(1.0):
        if holds(FURTHEST):
            return Flip(name, FURTHEST, None)
        low, high = 1.0, FURTHEST
    else:
        if not holds(1 / FURTHEST):
            return Flip(name, None, 1 / FURTHEST)
        low, high = 1 / FURTHEST, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return Flip(name, low, high)
