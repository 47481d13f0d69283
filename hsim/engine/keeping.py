"""The edge as tasks meet it: who is kept, who goes on to the cloud, and who is asked again there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from hsim.engine.balance import NOBODY
from hsim.engine.environment import EngineEnvironment
from hsim.engine.pool import Pool
from hsim.log import Kept, Log


@dataclass(frozen=True)
class KeepSpec:
    """What is drawn of each task: whether the policy wants it kept, whether it is easy, whether its answer is judged good."""

    pool: str
    wanted: Sequence[bool]
    easy: Sequence[bool]
    good: Sequence[bool]
    max_waiting: int | None


class Keeping:
    """The pool at the edge, and what becomes of the tasks that come to it."""

    def __init__(self, env: EngineEnvironment, log: Log, pool: Pool[Any], spec: KeepSpec) -> None:
        self.env, self.log, self.pool, self.spec = env, log, pool, spec

    def choose(self, task: int) -> Kept:
        """What becomes of a task that comes to a model for the first time."""
        choice = Kept.SENT
        if self.spec.wanted[task]:
            choice = Kept.KEPT if self.spec.good[task] else Kept.ASKED_AGAIN
            if self.spec.max_waiting is not None and self._waiting() > self.spec.max_waiting:
                choice = Kept.FULL
        self.log.keeping.append((task, self.env.now, choice, self.spec.easy[task]))
        return choice

    def _waiting(self) -> float:
        """Visits that would wait at the edge if one more came; without end where nobody is in service there."""
        views = [device.view(NOBODY) for device in self.pool.open]
        return max(0, 1 + min((view.outstanding - view.max_running for view in views), default=inf))
