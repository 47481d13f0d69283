"""Costs on CPU cores: seconds of an operation, and watts of a host against its busy cores."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate

from hsim.description.hardware import CpuProfile
from hsim.description.system import Figures, Tier

Contention = tuple[tuple[float, float], ...]
"""How many times longer work takes by the part of the other cores that are busy: points (part, times), the part rising,
joined by straight lines from (0, 1) on and the same beyond the last.
"""


def times_as_long(curve: Contention, part: float) -> float:
    """How many times longer work takes while so large a part of the other cores is busy."""
    at, times = 0.0, 1.0
    for following, longer in curve:
        if part < following:
            return times + (longer - times) * (part - at) / (following - at)
        at, times = following, longer
    return times


@dataclass(frozen=True, slots=True)
class OperationCost:
    """Seconds of one core by units: see description.hardware.Operation; and `hand_over_s` for each job, whatever it is.

    `contention` is the operation's own, empty where it has none.
    """

    operation: str
    base_s: float
    per_unit_s: float = 0.0
    per_unit_squared_s: float = 0.0
    per_unit_beyond_s: float = 0.0
    knee_units: float = math.inf
    hand_over_s: float = 0.0
    contention: Contention = ()

    @property
    def once_s(self) -> float:
        """What a batch of like jobs pays once."""
        return self.base_s + self.hand_over_s

    def seconds(self, units: float) -> float:
        """Seconds for which a job of so many units holds a core."""
        return self.hand_over_s + self.work_s(units)

    def work_s(self, units: float) -> float:
        """Seconds of its work alone."""
        seconds = self.base_s + units * (self.per_unit_s + units * self.per_unit_squared_s)
        return seconds + (units - self.knee_units) * self.per_unit_beyond_s if units > self.knee_units else seconds


def operation_cost(cpu: CpuProfile, operation: str, figures: Figures) -> OperationCost:
    """The cost of an operation on a CPU, its figures read and noted."""
    described = cpu.operations[operation]

    def of(name: str) -> float:
        given = getattr(described, name.partition(".")[0])
        return figures.value(cpu, f"operations.{operation}.{name}") if given else 0.0

    knee = math.inf if described.knee_units is None else described.knee_units
    parts = [(int(n) - 1) / max(1, cpu.cores - 1) for n in described.contention_slowdown]
    # In no world does company make work quicker: points of a curve, drawn each by itself, might say so.
    times = list(accumulate((of(f"contention_slowdown.{n}") for n in described.contention_slowdown), max, initial=1.0))
    square_s, beyond_s = of("per_unit_squared_s"), of("per_unit_beyond_s")
    cost = OperationCost(operation, of("base_s"), of("per_unit_s"), square_s, beyond_s, knee)
    hand_over_s = figures.value(cpu, "hand_over_s") if cpu.hand_over_s else 0.0
    return replace(cost, hand_over_s=hand_over_s, contention=tuple(zip(parts, times[1:], strict=True)))


@dataclass(frozen=True, slots=True)
class HostPower:
    """Watts of the CPU packages of one server: idle_w + span_w * (busy / cores) ** exponent."""

    cores: int
    idle_w: float
    span_w: float
    exponent: float

    def dynamic_w(self, busy_cores: int) -> float:
        """Watts above idle while so many cores are busy."""
        return self.span_w * (busy_cores / self.cores) ** self.exponent if busy_cores else 0.0


def host_power(tier: Tier, figures: Figures) -> HostPower:
    """The power of one server's CPU packages; nan where it is unknown."""
    idle_w = figures.if_known(tier.cpu, "idle_w")
    span_w = figures.if_known(tier.cpu, "max_w") - idle_w
    sockets = tier.server.sockets
    exponent = figures.if_known(tier.cpu, "load_power_exponent")
    return HostPower(tier.cores_per_server, sockets * idle_w, sockets * span_w, exponent)
