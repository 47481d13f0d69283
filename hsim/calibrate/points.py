"""Rows of several rounds as points to fit: one for each place of a grid, with its spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from hsim.calibrate.work import SPREAD, Parameters, Row

IQR_OF_NORMAL = 1.349  # standard deviations


@dataclass(frozen=True)
class Point:
    """One place of a grid, with the median of its rounds. `spread` is the larger of the interquartile range within a
    round and the range between rounds, over that; `marks` are why it is noisy. `deviation` is the standard deviation of
    rounds, over that too; of a single round that of its samples, by their interquartile range.
    """

    kind: str
    device: str
    parameters: Parameters
    seconds: float
    spread: float
    rounds: int
    marks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    watts: float | None = None
    deviation: float = 0.0

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{self.kind} on {self.device}: " + ", ".join(f"{k} {v}" for k, v in self.parameters.items())

    def number(self, key: str) -> float:
        """A parameter as a number."""
        return float(self.parameters[key])


def points_of(rows: Iterable[Row], noisy_spread_fraction: float) -> list[Point]:
    """The points of all rows that have a figure.

    Rounds that nobody disturbed speak for a point, unsteady ones too (only the steady ones would be a machine that is
    quicker than this one); where there are none, those that were least disturbed.
    """
    rounds: dict[str, list[Row]] = {}
    for row in rows:
        if row.reading.seconds is not None or row.reading.watts is not None:
            rounds.setdefault(row.key.rpartition(" #")[0], []).append(row)
    return [_point(group, noisy_spread_fraction) for group in rounds.values()]


def _point(group: list[Row], noisy_spread_fraction: float) -> Point:
    chosen = [row for row in group if all(mark.startswith(SPREAD) for mark in row.marks)] or _least_disturbed(group)
    means_s = [row.reading.seconds or 0.0 for row in chosen]
    seconds = statistics.median(means_s)  # of two their mean; one slow second does not outweigh three rounds
    within_s = statistics.median(row.reading.iqr_s or 0.0 for row in chosen)
    spread = max(within_s, max(means_s) - min(means_s)) / seconds if seconds else 0.0
    deviation_s = statistics.stdev(means_s) if len(means_s) > 1 else within_s / IQR_OF_NORMAL
    marks = tuple(dict.fromkeys(mark for row in chosen for mark in row.marks))
    if spread > noisy_spread_fraction and not marks:
        marks = (f"its rounds differ by {spread:.0%}",)
    watts = [row.reading.watts for row in chosen if row.reading.watts is not None]
    return Point(
        kind=chosen[0].kind,
        device=chosen[0].device,
        parameters=chosen[0].parameters,
        seconds=seconds,
        spread=spread,
        rounds=len(chosen),
        marks=marks,
        notes=tuple(dict.fromkeys(note for row in chosen for note in row.reading.notes)),
        watts=statistics.median(watts) if watts else None,
        deviation=deviation_s / seconds if seconds else 0.0,
    )


def _least_disturbed(group: list[Row]) -> list[Row]:
    """Of rounds that are all marked, those in which others had least of the core."""
    quietest = max(row.reading.cpu_fraction or 0.0 for row in group)
    return [row for row in group if (row.reading.cpu_fraction or 0.0) >= quietest]
