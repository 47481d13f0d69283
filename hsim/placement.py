"""Placement studies: the architectures of one scenario, each at its own cheapest feasible fleet, over a range of load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hsim.comparison import compare_cheapest, fleets_of
from hsim.description.scenario import read_scenario
from hsim.errors import DescriptionError
from hsim.metrics.result import Comparison, Placement, RatePoint
from hsim.metrics.statistics import CONFIDENCE
from hsim.runs.store import as_json, write_atomically
from hsim.runs.studies import Options

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
