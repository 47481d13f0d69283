"""Balance between pools and within queues: who serves a visit that several could, who goes first, who is let in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hsim.policies.views import PlaceView, VisitView

Chooser = Callable[[VisitView, Sequence[PlaceView]], int]
"""Which of the pools that can serve a visit it goes to."""

Priority = Callable[[VisitView], float]
"""A visit's rank in a queue: the smallest goes first, and of equals the first to come."""

Admission = Callable[[float, float], bool]
"""Whether a new task is let in, by how long the head of the model's queue has waited and the objective for it."""


def first_free(visit: VisitView, places: Sequence[PlaceView]) -> int:
    """The first pool, in the order given, that can begin at once; else the least loaded."""
    return next((i for i, place in enumerate(places) if place.room > 0), least_loaded(visit, places))


def least_loaded(visit: VisitView, places: Sequence[PlaceView]) -> int:
    """The pool with the fewest visits for each that it can serve at once; the first of equals."""
    loads = [place.visits / place.capacity for place in places]
    return loads.index(min(loads))


def started_first(visit: VisitView) -> float:
    """Tasks that have a round behind them go first: what was spent on them is not wasted."""
    return 0.0 if visit.started else 1.0


def fewest_rounds_left(visit: VisitView) -> float:
    """The task that is expected to be done after the fewest rounds, by its class and the round it is in."""
    return visit.rounds_left


def everybody(waited_s: float, objective_s: float) -> bool:
    """All are let in."""
    return True


def within_objective(waited_s: float, objective_s: float) -> bool:
    """New tasks are turned away while whoever heads the queue has waited for longer than the objective allows."""
    return waited_s <= objective_s


CHOOSERS: dict[str, Chooser] = {"first-free": first_free, "least-loaded": least_loaded}
PRIORITIES: dict[str, Priority] = {"started-first": started_first, "fewest-rounds-left": fewest_rounds_left}
ADMISSIONS: dict[str, Admission] = {"everybody": everybody, "within-objective": within_objective}
