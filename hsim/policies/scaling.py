"""Scaling policies: how many servers or replicas a load asks for."""

from __future__ import annotations

import math
from collections.abc import Callable

from hsim.policies.views import ScalingView

ScalingPolicy = Callable[[ScalingView, float], int]
"""How many are to serve, by what is there and the target; floor, ceiling and cooldown are minded elsewhere."""


def utilisation(view: ScalingView, target: float) -> int:
    """As many as would have the fraction `target` of their places taken by what runs now, as Kubernetes' autoscaler has it.

    When all places are taken this asks for 1 / target times as many at each look.
    """
    return math.ceil(view.running / (target * view.places))


def queue(view: ScalingView, target: float) -> int:
    """One for every `target` visits that wait or run."""
    return math.ceil((view.waiting + view.running) / target)


SCALERS: dict[str, ScalingPolicy] = {"utilisation": utilisation, "queue": queue}
