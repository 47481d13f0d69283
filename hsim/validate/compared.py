"""One quantity predicted beside what was measured, and the verdict on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hsim.validate.quantities import Quantities

SPREADS = 2.0  # an error within twice the spread of repeats cannot be told from the machine's noise
SMALL = 0.0002  # of the mean end-to-end time: waits below it are not judged
BOUNDS = (0.05, 0.95)  # of the worlds that a prediction's stated uncertainty leaves
ENOUGH_SERVED = 0.95  # of the tasks: what is left of fewer is no fair sample of them


@dataclass(frozen=True)
class Compared:
    """One quantity predicted and measured. Errors are predicted / measured - 1; None where nothing was measured.

    `low` and `high` are what the calibration's stated uncertainty leaves; None where it states none. `measured` is the
    mean over repeats, and `spread_fraction` their standard deviation relative to it. `at_pace` is the prediction with
    the costs that the machine had beside the live runs. `served_fraction`: of the tasks, those that were served in the
    prediction and in every run that is compared.
    """

    quantity: str
    unit: str
    predicted: float
    low: float | None
    high: float | None
    measured: float
    spread_fraction: float | None
    at_pace: float | None
    served_fraction: float = 1.0

    @property
    def error_fraction(self) -> float | None:
        """How far the prediction was off."""
        return _error(self.predicted, self.measured)

    @property
    def pace_error_fraction(self) -> float | None:
        """How far it is off with the machine's pace taken out."""
        return None if self.at_pace is None else _error(self.at_pace, self.measured)

    @property
    def too_few_served(self) -> bool:
        """Whether those that are left of the tasks say nothing of all of them."""
        return self.served_fraction < ENOUGH_SERVED

    @property
    def verdict(self) -> str:
        """`within` what the calibration states; `noise`: no further off than twice the repeats' spread; or `beyond`.

        `unjudged` where nothing was stated and a single run has no spread, and where too few tasks were served.
        """
        if self.too_few_served or (self.low is None and self.spread_fraction is None):
            return "unjudged"
        low, high = (self.predicted, self.predicted) if self.low is None or self.high is None else (self.low, self.high)
        if low <= self.measured <= high:
            return "within"
        noise = SPREADS * (self.spread_fraction or 0.0) * self.measured
        return "noise" if low - noise <= self.measured <= high + noise else "beyond"


@dataclass(frozen=True)
class Sides:
    """What is compared: the prediction, in other worlds and at the machine's pace too, and every run that served anybody.

    `served_fraction` of the tasks were served in the prediction and in all of those runs.
    """

    predicted: Quantities
    worlds: tuple[Quantities, ...]
    at_pace: Quantities
    measured: tuple[Quantities, ...]
    served_fraction: float

    def compared(self) -> Iterator[Compared]:
        """What was both predicted and measured, and is no part of a task's life too short for anybody to care."""
        for name in self.predicted if self.measured else ():
            if all(name in one for one in self.measured) and self._matters(name):
                yield self._compared(name)

    def _matters(self, name: str) -> bool:
        values = [one[name] for one in (self.predicted, *self.measured)]
        whole_s = max(one.get("e2e mean", (0.0, "s"))[0] for one in self.measured)
        return values[0][1] != "s" or any(seconds >= SMALL * whole_s for seconds, _ in values)

    def _compared(self, name: str) -> Compared:
        values = np.array([one[name][0] for one in self.measured])
        mean = float(values.mean())
        spread = float(values.std(ddof=1)) / mean if len(values) > 1 and mean else None
        value, unit = self.predicted[name]
        at_pace = self.at_pace[name][0] if name in self.at_pace else None
        return Compared(name, unit, value, *self._bounds(name), mean, spread, at_pace, self.served_fraction)

    def _bounds(self, name: str) -> tuple[float | None, float | None]:
        """What the stated uncertainty leaves of a quantity."""
        values = [world[name][0] for world in self.worlds if name in world]
        return tuple(np.quantile(values, BOUNDS).tolist()) if values else (None, None)


def _error(predicted: float, measured: float) -> float | None:
    return predicted / measured - 1 if measured else None
