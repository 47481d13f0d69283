"""Governors: which power cap a pool's load asks for."""

from __future__ import annotations

from collections.abc import Callable

from hsim.policies.views import LoadView

GovernorPolicy = Callable[[LoadView, float, int], int]
"""Which of so many caps, from 0 for the lowest, by the load and the target; hold times are minded elsewhere."""


def by_load(view: LoadView, target: float, caps: int) -> int:
    """Evenly over the load: the highest when the fraction `target` of all places is taken, or anybody waits."""
    if view.waiting:
        return caps - 1
    return min(caps - 1, int(view.running / (target * view.places) * caps))


def all_or_least(view: LoadView, target: float, caps: int) -> int:
    """The highest when the fraction `target` of all places is taken, or anybody waits; else the lowest."""
    return caps - 1 if view.waiting or view.running >= target * view.places else 0


GOVERNORS: dict[str, GovernorPolicy] = {"by-load": by_load, "all-or-least": all_or_least}
