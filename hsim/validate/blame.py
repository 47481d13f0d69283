"""What a prediction's error is made of: by part of a task's life, and by the term of the model that carries it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hsim.drivers.live import LiveRun
from hsim.drivers.prepared import Prepared
from hsim.drivers.simulated import run
from hsim.log import Log
from hsim.validate.quantities import Tasks, only, parts_of_e2e, served_in, served_in_all
from hsim.validate.terms import Factors, Seen, repaired, seen_terms

ALL = "all of these together"
SHARED = 0.9  # of a core: a worker that had less of it had neighbours
NEAR = 0.05  # a term within so much of its cost is not to blame


@dataclass(frozen=True)
class Part:
    """Mean seconds of one part of a task's life, predicted and measured; all parts add up to the end-to-end time."""

    part: str
    predicted_s: float
    measured_s: float


@dataclass(frozen=True)
class Charge:
    """A term in live runs, and the prediction of the mean end-to-end time had it been right.

    `pace` is how many times longer than predicted it takes alone on the machine as it is now: what of it is the
    machine's and not the model's.
    """

    seen: Seen | None
    term: str
    pace: float | None
    e2e_if_right_s: float


@dataclass(frozen=True)
class Blame:
    """The parts, the charges, and the verdict in words. Empty where nothing ran."""

    e2e_predicted_s: float = 0.0
    e2e_measured_s: float = 0.0
    parts: tuple[Part, ...] = ()
    charges: tuple[Charge, ...] = ()
    verdict: str = ""


def blame(predicted: Log, prepared: Prepared, runs: Sequence[LiveRun], pace: Mapping[str, float]) -> Blame:
    """Put each term right in turn, simulate again, and see how much of the end-to-end error goes with it.

    Of the tasks that were served in the prediction and in every run that served anybody.
    """
    served = [one for one in runs if len(served_in(one.log))]
    tasks = served_in_all([predicted, *(one.log for one in served)])
    if not served or not len(tasks):
        return Blame()
    was, *lives = (parts_of_e2e(only(log, tasks)) for log in (predicted, *(one.log for one in served)))
    names = list(dict.fromkeys([*was, *(name for one in lives for name in one)]))
    parts = [Part(name, was.get(name, 0.0), float(np.mean([one.get(name, 0.0) for one in lives]))) for name in names]
    predicted_s, measured_s = sum(part.predicted_s for part in parts), sum(part.measured_s for part in parts)
    seen = seen_terms(prepared, predicted, served)
    charges = [
        Charge(one, one.term, pace.get(one.term), _e2e_s(prepared, {one.term: one.repair}, tasks)) for one in seen
    ]
    charges.append(Charge(None, ALL, None, _e2e_s(prepared, {one.term: one.repair for one in seen}, tasks)))
    return Blame(predicted_s, measured_s, tuple(parts), tuple(charges), _verdict(predicted_s, measured_s, charges))


def _e2e_s(prepared: Prepared, factors: Factors, tasks: Tasks) -> float:
    return sum(parts_of_e2e(only(run(repaired(prepared, factors)), tasks)).values())


def _verdict(predicted_s: float, measured_s: float, charges: Sequence[Charge]) -> str:
    error_s = measured_s - predicted_s
    if abs(error_s) < NEAR * measured_s:
        return f"nothing is to blame: the mean end-to-end time is {predicted_s / measured_s - 1:+.1%} off"
    if len(charges) == 1:
        return f"the mean end-to-end time is {predicted_s / measured_s - 1:+.1%} off, and no term of it shows: an endpoint hides its steps"
    first = max(charges[:-1], key=lambda c: (c.e2e_if_right_s - predicted_s) / error_s)
    assert first.seen is not None
    carried = (first.e2e_if_right_s - predicted_s) / error_s
    left = 1 - (charges[-1].e2e_if_right_s - predicted_s) / error_s
    return f"{first.term} carry {carried:.0%} of the end-to-end error: {_why(first, first.seen)}; {left:.0%} of it is left when every term is right"


def _why(charge: Charge, seen: Seen) -> str:
    if not seen.predicted_s:
        return f"{seen.measured_s * 1e3:.2f} ms, of which nothing was predicted"
    ratio = seen.measured_s / seen.predicted_s
    said = f"they took {ratio:.2f} times as long as predicted"
    if seen.core_fraction is not None and seen.core_fraction < SHARED:
        said += f", with a core for {seen.core_fraction:.0%} of the time (others had it, or they waited)"
    if charge.pace is not None:
        said += f"; alone on the machine as it is now, {charge.pace:.2f} times"
    return said
