"""Placement studies: the architectures of one scenario, each at its own certified best fleet, over a range of load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hsim.description.scenario import read_scenario
from hsim.errors import DescriptionError
from hsim.metrics.result import Placement, RatePoint
from hsim.plan.fair import at_their_best
from hsim.plan.problem import Problem, read_problem
from hsim.plan.result import Progress
from hsim.runs.store import as_json, write_atomically
from hsim.runs.studies import Options


@dataclass(frozen=True)
class Placed:
    """A scenario, the architectures of it that are compared, and the rates at which they are."""

    scenario: str | Path
    architectures: tuple[str, ...]
    rates_per_s: tuple[float, ...]
    settings: tuple[str, ...] = ()
    allow_code: bool = False


def place(asked: Placed, options: Options | None = None, progress: Progress | None = None) -> Placement:
    """Compare architectures at each rate, from low to high, every one at its own best fleet of those that `counts` list.

    Raises DescriptionError for architectures that are not there, and for all that compare_fairly refuses.
    """
    options = options or Options()
    _check_architectures(asked)
    points = []
    for rate in sorted(asked.rates_per_s):
        problems = [_problem(asked, name, rate) for name in asked.architectures]
        out = options.out / f"rate-{rate:g}" if options.out else None
        comparison = at_their_best(problems, replace(options, out=out), progress)
        found = [any(each.verdict == "PASS" for each in tried) for tried in comparison.fleets]
        names = tuple(name for name, held in zip(asked.architectures, found, strict=True) if held)
        points.append(RatePoint(rate, comparison, names))
    placement = Placement(str(asked.scenario), asked.architectures, tuple(points))
    if options.out:
        write_atomically(options.out / "placement.json", as_json(placement))
    return placement


def rates_of(text: str) -> tuple[float, ...]:
    """Rates from `1,3,9`, or `1:16`: doubled from the first until the last. Raises ValueError for anything else."""
    low, colon, high = text.partition(":")
    if not colon:
        rates = [float(part) for part in text.split(",")]
    else:
        first, last = float(low), float(high)
        if last < first:
            raise ValueError(f"{text!r} does not rise; write the smaller number first, as in 1:16")
        rates = [first]
        while 0 < rates[-1] < last:
            rates.append(min(2 * rates[-1], last))
    if not all(0 < rate < float("inf") for rate in rates):
        raise ValueError(f"{text!r} has a rate that is not above 0")
    return tuple(rates)


def _problem(asked: Placed, architecture: str, rate_per_s: float) -> Problem:
    """Which fleet an architecture takes at a rate."""
    at = [f"workload.arrivals.rate_per_s={rate_per_s:g}", f"architecture={architecture}"]
    return read_problem(asked.scenario, [*asked.settings, *at], asked.allow_code)


def _check_architectures(asked: Placed) -> None:
    document = read_scenario(asked.scenario, asked.settings)
    known = document.data.get("architectures") if isinstance(document.data, dict) else None
    if not isinstance(known, dict):
        raise DescriptionError(document.file, "has no architectures", "describe them under `architectures`")
    for name in asked.architectures:
        if name not in known:
            at = document.where(("architectures",))
            raise DescriptionError(at, f"there is no {name!r}", f"known: {', '.join(known)}")
