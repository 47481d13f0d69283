"""A replica with two sets of weights: which it serves with, and what going over costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hsim.costs.shapes import Segment, StepCosts, StepShape
from hsim.log import Log
from hsim.policies.precision import SwitchPolicy, SwitchView


@dataclass(frozen=True)
class Cost:
    """What going over takes, and draws above idle."""

    seconds: float
    joules: float


@dataclass(frozen=True)
class SwitchSpec:
    """How a replica goes over to `costs`, and back. gco2_per_kwh says what a kWh costs at an instant."""

    policy: SwitchPolicy
    costs: StepCosts
    above: float
    below: float
    stay_s: float
    over: Cost
    back: Cost
    gco2_per_kwh: Callable[[float], float]


class Switching:
    """The costs of a replica that may go over at any boundary: StepCosts, of the set of weights that it serves with.

    Going over lengthens the first step after it, so that its seconds and joules are that step's and its sequences' own.
    """

    def __init__(self, log: Log, index: int, spec: SwitchSpec, costs: StepCosts) -> None:
        self.spec, self.log, self.index = spec, log, index
        self._sets = (costs, spec.costs)
        self._other, self._since_s = False, -math.inf
        self._due: Cost | None = None

    def wants(self, now_s: float, waiting: int, used_fraction: float) -> bool:
        """Whether it would go over now, were this a boundary."""
        spec = self.spec
        if now_s - self._since_s < spec.stay_s:
            return False
        view = SwitchView(self._other, waiting, used_fraction, spec.gco2_per_kwh(now_s), spec.above, spec.below)
        return spec.policy(view) is not self._other

    def look(self, now_s: float, waiting: int, used_fraction: float) -> None:
        """At a boundary, before the next step: go over if that is wanted."""
        if self.wants(now_s, waiting, used_fraction):
            self._other, self._since_s = not self._other, now_s
            self._due = self.spec.over if self._other else self.spec.back
            self.log.switches.append((self.index, now_s, self._other))

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts."""
        segment, due = self._sets[self._other].segment(shape), self._due
        if due is None:
            return segment
        self._due = None
        return Segment(segment.seconds + due.seconds, 0.0, segment.joules + due.joules, 0.0, segment.context_joules, 1)
