"""Costs on CPU cores: seconds of an operation, and watts of a host against its busy cores."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hsim.description.hardware import CpuProfile
from hsim.description.system import Figures, Tier


@dataclass(frozen=True, slots=True)
class OperationCost:
    """Seconds of one core by units: see description.hardware.Operation."""

    operation: str
    base_s: float
    per_unit_s: float = 0.0
    per_unit_squared_s: float = 0.0
    per_unit_beyond_s: float = 0.0
    knee_units: float = math.inf

    def seconds(self, units: float) -> float:
        """Seconds of one busy core for so many units."""
        seconds = self.base_s + units * (self.per_unit_s + units * self.per_unit_squared_s)
        return seconds + (units - self.knee_units) * self.per_unit_beyond_s if units > self.knee_units else seconds


def operation_cost(cpu: CpuProfile, operation: str, figures: Figures) -> OperationCost:
    """The cost of an operation on a CPU, its figures read and noted."""
    described = cpu.operations[operation]

    def of(name: str) -> float:
        return figures.value(cpu, f"operations.{operation}.{name}") if getattr(described, name) else 0.0

    knee = math.inf if described.knee_units is None else described.knee_units
    square_s, beyond_s = of("per_unit_squared_s"), of("per_unit_beyond_s")
    return OperationCost(operation, of("base_s"), of("per_unit_s"), square_s, beyond_s, knee)


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
