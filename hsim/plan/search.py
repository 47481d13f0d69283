"""The certified search: cheapest first, each fleet refuted, certified or left undecided, by a replication function.

It knows nothing of simulation: `replicate` is given a fleet, a block of random numbers and the numbers of
replications, and says what each showed. Block 0 is common to all fleets, and so is the one on which what they take is
compared; each fleet that is tried for a certificate gets a block of its own, on which nothing was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hsim.metrics import statistics
from hsim.plan.certificate import Trial
from hsim.plan.result import Verdict

LOOKS = (4, 8, 16, 32, 64, 128)  # replications by which a fleet must be refuted, or promise to hold
PROMISING = 8  # replications before a fleet may be tried for a certificate
GROUP = 16  # replications of a trial between looks
MOST_PER_LIMIT = 75  # replications of a trial at most, over what may be missed: 1,500 for p = 0.95
ROUNDING = 1e-9  # of what a fleet takes: two that are rented at one price take the same
COMPARED = 1_000_000  # the block on which it is compared what fleets take
ACCEPT_SHARE = 0.8  # of the risk is spent on the fleet that is accepted; refuting needs little


@dataclass(frozen=True)
class Observation:
    """What one replication showed: the fraction missed of each objective; what is minimised, and over how much."""

    missed: tuple[float, ...]
    spent: float = math.nan
    over: float = math.nan


Replicate = Callable[[int, int, range], Sequence[Observation]]
Gate = Callable[[int, float], tuple[Verdict, str]]
By = Literal["", "slo", "stability", "worse"]


@dataclass(frozen=True)
class Rules:
    """What may be missed of each objective, the risk of a wrong claim, and over how many refutations it is spread.

    `tests` is how often one fleet may be refuted: by each objective, as unstable, as worse, and by bounds.
    """

    limits: tuple[float, ...]
    risk: float
    fleets: int
    tests: int
    most: int | None = None

    @property
    def most_per_trial(self) -> int:
        return self.most or math.ceil(MOST_PER_LIMIT / min(self.limits))

    def accepting(self, attempt: int) -> float:
        """The risk of the attempt-th trial for a certificate, from 1 on: they add up to its share however many follow."""
        return ACCEPT_SHARE * self.risk / (attempt * (attempt + 1))

    @property
    def refuting(self) -> float:
        """The risk of refuting one fleet by one test."""
        return (1 - ACCEPT_SHARE) * self.risk / (self.fleets * self.tests)


@dataclass
class Found:
    """What was found of a fleet so far."""

    fleet: int
    trials: list[Trial]
    verdict: Verdict = "UNDECIDED"
    by: By = ""
    reason: str = ""
    replications: int = 0
    common: list[Observation] = field(default_factory=list)

    def refuted_by(self, risk: float) -> int | None:
        """The objective that the fleet was shown to miss, if any."""
        return next((i for i, trial in enumerate(self.trials) if trial.fails.shown(risk)), None)


class Interrupted(Exception):  # it is no error
    """The search was asked to stop."""


@dataclass
class Search:
    """One search. `on_look` is told after every group of replications, and may raise Interrupted.

    `unit` is that of what is minimised, where replications alone know it.
    """

    rules: Rules
    replicate: Replicate
    gate: Gate
    on_look: Callable[[Found, str], None]
    attempts: int = 0
    unit: str = ""

    def cheapest(self, fleets: Sequence[int], done: list[Found]) -> Found | None:
        """Look at fleets in order of price until one passes, and return it. What is found goes into `done`."""
        for fleet in fleets:
            done.append(found := self._looked_at(fleet))
            if self.promises(found):
                self.certify(found)
            if found.verdict == "PASS":
                return found
        return None

    def _looked_at(self, fleet: int) -> Found:
        return Found(fleet, [Trial(limit) for limit in self.rules.limits])

    def promises(self, found: Found) -> bool:
        """Whether a fleet is worth a trial, or was refuted before: on random numbers that all fleets share."""
        for look in LOOKS:
            self._observe(found, 0, range(found.replications, look), "screen")
            if self._refuted(found):
                return False
            if look >= PROMISING and all(trial.mean + trial.error <= trial.limit for trial in found.trials):
                return True
        found.reason = "near its limit: neither shown to hold nor to fail"
        return False

    def certify(self, found: Found) -> None:
        """Try for a certificate on random numbers of the fleet's own."""
        self.attempts += 1
        block, risk = self.attempts, self.rules.accepting(self.attempts)
        self.on_look(found, "certify")
        found.verdict, found.reason = self.gate(found.fleet, self.rules.refuting)
        if found.verdict != "PASS":  # what may grow without end is not certified, however its tasks fared so far
            found.by = "stability" if found.verdict == "FAIL" else ""
            return
        found.verdict = "UNDECIDED"
        for trial in found.trials:
            trial.begin_to_hold()
        done = 0
        while True:
            self._observe(found, block, range(done, done + GROUP), "certify")
            done += GROUP
            if self._refuted(found):
                return
            if all(trial.holds.shown(risk) for trial in found.trials):
                found.verdict, found.reason = "PASS", f"certified by {done} replications"
                return
            most = self.rules.most_per_trial
            if done >= most or any(trial.holds.hopeless(risk, most) for trial in found.trials):
                found.reason = f"near its limit: not certified by {done} replications"
                return

    def _observe(self, found: Found, block: int, numbers: range, phase: str) -> None:
        observed = self.replicate(found.fleet, block, numbers)
        found.replications += len(observed)
        if block == COMPARED:
            found.common.extend(observed)
        else:
            for i, trial in enumerate(found.trials):
                trial.add(observation.missed[i] for observation in observed)
        self.on_look(found, phase)

    def _compare(self, found: Found, look: int) -> Sequence[Observation]:
        """So many replications on which what a fleet takes is compared with what others take."""
        if len(found.common) < look:
            self._observe(found, COMPARED, range(len(found.common), look), "screen")
        return found.common[:look]

    def _refuted(self, found: Found) -> bool:
        worst = found.refuted_by(self.rules.refuting)
        if worst is not None:
            found.verdict, found.by = "FAIL", "slo"
        return worst is not None

    # ---- where replications alone know what a fleet takes

    def leanest(self, fleets: Sequence[int], floor: Callable[[int], float], done: list[Found]) -> Found | None:
        """Look at fleets in order of what they cannot stay below, until that exceeds what the best takes."""
        best: Found | None = None
        for fleet in fleets:
            if best is not None and floor(fleet) >= self._most(best) * (1 - ROUNDING):
                break
            done.append(found := self._looked_at(fleet))
            if not self.promises(found) or (best is not None and not self._beats(found, best)):
                continue
            self.certify(found)
            if found.verdict == "PASS":
                if best is not None:
                    best.verdict, best.by = "FAIL", "worse"
                    best.reason = "meets the objectives, and takes more than the chosen fleet"
                best = found
        return best

    def _most(self, found: Found) -> float:
        """The upper end of the interval of what a fleet takes."""
        self._compare(found, LOOKS[1])
        estimate = _taken(found.common)
        return estimate.value + estimate.half_width(1 - 2 * self.rules.refuting)

    def _beats(self, found: Found, best: Found) -> bool:
        """Whether a fleet takes less than the best so far, by paired differences; else why it does not."""
        confidence = 1 - 2 * self.rules.refuting / len(LOOKS)
        for look in LOOKS[1:]:
            difference = _taken(self._compare(found, look)).minus(_taken(self._compare(best, look)))
            half = difference.half_width(confidence)
            if difference.value - half > 0:
                found.verdict, found.by = "FAIL", "worse"
                found.reason = f"takes {difference.value:.3g} ± {half:.2g} {self.unit} more than the best"
                return False
            if difference.value + half < 0:
                return True
        found.reason = f"{difference.value:+.3g} ± {half:.2g} {self.unit} beside the best: no difference shown"
        return False


def _taken(observed: Sequence[Observation]) -> statistics.Estimate:
    return statistics.ratio([o.spent for o in observed], [o.over for o in observed])
