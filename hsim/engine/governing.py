"""Governors: power caps of a pool's replicas that follow its load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from simpy.events import Event

from hsim.costs.geared import Geared
from hsim.engine.environment import SERVICE_CHANGES, EngineEnvironment
from hsim.engine.pool import Pool
from hsim.log import Log
from hsim.policies.views import LoadView, VisitView

NOBODY = VisitView(-1, 0, 0, 0)


@dataclass(frozen=True)
class GovernorSpec:
    """Which of `caps_w` the load asks for (`wanted`), how often that is looked at, and when a change holds."""

    caps_w: Sequence[float]
    wanted: Callable[[LoadView], int]
    every_s: float
    hold_s: float
    takes_s: float


class Governor:
    """Looks at a pool every every_s, and shifts the costs of its replicas: each goes on with its next step."""

    def __init__(self, env: EngineEnvironment, log: Log, pool: Pool[Any], costs: Geared, spec: GovernorSpec) -> None:
        self.env, self.log, self.pool, self.costs, self.spec = env, log, pool, costs, spec
        self._order = SERVICE_CHANGES - 1 - pool.number
        self._level, self._changed_s, self._looks = len(spec.caps_w) - 1, -inf, 0
        costs.level = self._level
        self._await()

    def _await(self) -> None:
        self._looks += 1
        self.env.call_at(self._looks * self.spec.every_s, self._order, self._look)

    def _look(self, event: Event) -> None:
        if not self.env.lives:
            return
        views = [device.view(NOBODY) for device in self.pool.devices]
        seen = LoadView(*(sum(getattr(v, key) for v in views) for key in ("waiting", "running", "max_running")))
        level = self.spec.wanted(seen)
        held = self.env.now - self._changed_s < self.spec.hold_s
        if level > self._level or (level < self._level and not held):
            self._level, self._changed_s = level, self.env.now
            self.env.call_at(self.env.now + self.spec.takes_s, self._order, partial(self._shift, level))
        self._await()

    def _shift(self, level: int, event: Event) -> None:
        self.costs.level = level
        self.log.caps.append((self.pool.number, self.env.now, self.spec.caps_w[level]))
        for replica in self.pool.devices:
            replica.replan()  # type: ignore[attr-defined]
