"""Elasticity and faults as a scenario says them: what scales, what breaks down, what is taken out of service."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hsim.description.quantities import Duration
from hsim.description.yamlfile import Strict

DAY_H = 24
_HOURS = re.compile(r"(\d{1,2})-(\d{1,2})\Z")


class Failures(Strict):
    """Each server (or replica) breaks down again and again, whatever it does meanwhile.

    `mtbf_s` passes from when it can be started again to its next breakdown, `repair_s` from a breakdown until then; then
    a server boots and its engines load. Both are required: nobody publishes those of your fleet. Draws are keyed by the
    server (the replica) and the number of the breakdown, so that two fleets see the same ones.
    """

    mtbf_s: Duration
    repair_s: Duration


class Drain(Strict):
    """From `at_s` on a server takes no new work; it is switched off when it has finished what it has, and started again at
    at_s + for_s.
    """

    at_s: NonNegativeFloat
    for_s: PositiveFloat


class Retries(Strict):
    """A visit that is lost with its device is sent again `after_s` later, at most `max_retries` times; then its task fails."""

    max_retries: NonNegativeInt = 2
    after_s: NonNegativeFloat = 0.0


class ReactiveScaling(Strict):
    """How many serve is looked at every `every_s` and follows the load; see policies/scaling.py for what `target` means.

    No fewer than `floor`, no more than `ceiling` (all there are when left out); fewer only when `cooldown_s` have passed
    since the last change. With floor 0 the first visit that finds nobody starts one. Who is to go takes no new work and
    finishes what it has. Of a tier's servers that do not serve, `standby` stay on without their models.
    """

    kind: Literal["reactive"]
    policy: str = "utilisation"
    target: PositiveFloat
    every_s: PositiveFloat
    cooldown_s: NonNegativeFloat = 0.0
    floor: NonNegativeInt = 1
    ceiling: PositiveInt | None = None
    standby: NonNegativeInt = 0

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> ReactiveScaling:
        if self.ceiling is not None and self.ceiling < self.floor:
            raise ValueError(f"ceiling {self.ceiling} is below floor {self.floor}; floor <= ceiling must hold")
        return self


class ScheduledScaling(Strict):
    """How many serve by the hour of the day: {"0-8": 1, "8-20": 4, "20-24": 1}. Time 0 is midnight."""

    kind: Literal["scheduled"]
    hours: dict[str, NonNegativeInt] = Field(min_length=1)
    standby: NonNegativeInt = 0

    @model_validator(mode="after")
    def _every_hour_once(self) -> ScheduledScaling:
        at = 0
        for start, end, _ in self.stretches():
            if start > at:
                raise ValueError(f"hours has no count from {at} to {start}; every hour from 0 to {DAY_H} needs one")
            if start < at:
                raise ValueError(f"hours has two counts from {start} to {min(at, end)}; every hour needs one")
            at = end
        if at < DAY_H:
            raise ValueError(f"hours has no count from {at} to {DAY_H}; every hour from 0 to {DAY_H} needs one")
        if not any(self.hours.values()):
            raise ValueError("hours are all 0, so that nobody ever serves; at least one must be above 0")
        return self

    def stretches(self) -> list[tuple[int, int, int]]:
        """(from hour, to hour, count), in order. Raises ValueError for what is no stretch of a day."""
        found = []
        for hours, count in self.hours.items():
            match = _HOURS.match(hours)
            start, end = (int(match[1]), int(match[2])) if match else (0, 0)
            if not start < end <= DAY_H:
                raise ValueError(f'{hours!r} is no stretch of a day; write it such as "8-20"')
            found.append((start, end, count))
        return sorted(found)


Scaling = Annotated[ReactiveScaling | ScheduledScaling, Field(discriminator="kind")]


class Governor(Strict):
    """A power cap on each accelerator that follows the load: one of `caps_w`, looked at every `every_s`.

    `policy` names one of policies/governing.py. A cap holds `takes_s` after it was asked for, from each replica's next
    step on; a lower one is asked for only when `hold_s` have passed since the last change. It begins with the highest.
    """

    caps_w: tuple[PositiveFloat, ...] = Field(min_length=2)
    policy: str = "by-load"
    target: float = Field(gt=0, le=1)
    every_s: PositiveFloat
    hold_s: NonNegativeFloat = 0.0
    takes_s: NonNegativeFloat

    @model_validator(mode="after")
    def _caps_rise(self) -> Governor:
        if any(b <= a for a, b in pairwise(self.caps_w)):
            raise ValueError("caps_w do not rise; list them from the lowest to the highest")
        return self
