"""Clocks under a power cap: each step is taken at the highest clock whose power fits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from hsim.costs.composed import ComposedCosts, Placement, steps_until_negative
from hsim.costs.shapes import Segment, StepShape
from hsim.description.system import Figures
from hsim.errors import DescriptionError


class ClockedCosts:
    """Seconds and joules of steps of a replica whose accelerators are held below a power cap: StepCosts.

    The clock is constant in a segment: it ends where its power no longer fits, or where that of the next clock up does.
    """

    def __init__(self, placement: Placement, figures: Figures, where: str) -> None:
        chip, cap_w = placement.chip, placement.power_cap_w
        if chip.power.clocks is None:
            raise DescriptionError(
                where, f"{chip.name} has no clocks, so a power cap cannot slow it", "leave the cap out"
            )
        assert cap_w is not None, "without a cap the highest clock always fits"
        highest, lowest = (figures.value(chip, f"power.clocks.{name}") for name in ("highest_hz", "lowest_hz"))
        gaps = max(1, chip.power.clocks.count - 1)
        fractions = [1.0 - i / gaps * (1.0 - lowest / highest) for i in range(chip.power.clocks.count)]
        self.where, self.placement = where, placement
        self.gears = [
            ComposedCosts(replace(placement, clock_fraction=f, power_cap_w=math.inf), figures) for f in fractions
        ]
        idle_w = figures.value(chip, "power.loaded_idle_w")
        self._above_idle_w = placement.devices * (cap_w - idle_w)

    def check_fits(self, shapes: Iterable[StepShape]) -> None:
        """Raises DescriptionError, before anything runs, where one of these does not fit even at the lowest clock."""
        for shape in shapes:
            self.segment(shape)

    @property
    def notes(self) -> tuple[str, ...]:
        """See ComposedCosts."""
        return self.gears[0].notes

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts. Raises DescriptionError where a step does not fit under the cap even at the lowest clock."""
        up: Segment | None = None
        for gear in self.gears:
            found = gear.segment(shape)
            room, room_growth = self._room(found)
            if math.isnan(room):  # watts are unknown: nothing can be said of a cap
                return found
            if room >= 0:
                found.valid_steps = min(found.valid_steps, steps_until_negative(room, room_growth))
                if up is not None:
                    lack, lack_growth = (-x for x in self._room(up))
                    found.valid_steps = min(found.valid_steps, up.valid_steps, steps_until_negative(lack, lack_growth))
                return found
            up = found
        assert up is not None
        drawn_w = up.joules / up.seconds - self._above_idle_w
        raise DescriptionError(
            self.where,
            f"a step of {shape.sequences} sequences draws {drawn_w / self.placement.devices:.0f} W more than the cap on each "
            "accelerator even at its lowest clock",
            "raise the cap, or serve fewer sequences at once",
        )

    def _room(self, segment: Segment) -> tuple[float, float]:
        """Joules that the cap leaves in the first step, and how that grows by step."""
        room = self._above_idle_w * segment.seconds - segment.joules
        return room, self._above_idle_w * segment.seconds_growth - segment.joules_growth
