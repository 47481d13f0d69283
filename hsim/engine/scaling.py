"""Autoscaling: how many servers of a tier, or replicas of a pool, serve; by a policy that sees the load, or by the hour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from simpy.events import Event

from hsim.engine.environment import SERVICE_CHANGES, EngineEnvironment
from hsim.engine.service import ElasticPool, Level, Unit
from hsim.policies.views import ScalingView, VisitView
from hsim.units import DAY_S

NOBODY = VisitView(-1, 0, 0, 0)


@dataclass(frozen=True)
class ScaleSpec:
    """What the load asks for (`desired`), looked at every every_s, within floor and ceiling."""

    desired: Callable[[ScalingView], int]
    every_s: float
    cooldown_s: float
    floor: int
    ceiling: int
    standby: int = 0


@dataclass(frozen=True)
class Timetable:
    """How many serve from each second of a day on, in order; the first from 0."""

    counts: Sequence[tuple[float, int]]
    standby: int = 0

    def at(self, time_s: float) -> int:
        """How many serve at an instant."""
        return next(count for start_s, count in reversed(self.counts) if start_s <= time_s % DAY_S)

    def next_s(self, time_s: float) -> float:
        """When that is to be looked at again."""
        day_s = time_s // DAY_S * DAY_S
        later = (day_s + start_s for start_s, _ in self.counts)
        return next((at_s for at_s in later if at_s > time_s), day_s + DAY_S)


class Scaler:
    """Keeps so many of its units in service, so many more standing by, and the others off.

    Those that serve, or are up, stay before others are started; of equals the first. One that has broken down or is
    drained is replaced at once, and is one of the others when it is back.
    """

    def __init__(self, env: EngineEnvironment, number: int, units: Sequence[Unit], standby: int, wanted: int) -> None:
        self.env, self.number, self.units, self.standby = env, number, units, standby
        self.wanted, self._changed_s = wanted, -inf
        for unit in units:
            unit.changed = self.apply
        self.apply()

    def want(self, count: int) -> None:
        """So many are to serve from now on."""
        if count != self.wanted:
            self.wanted, self._changed_s = count, self.env.now
        self.apply()

    def apply(self) -> None:
        """Give every unit its level, the first ones first."""
        ranked = sorted(self.units, key=lambda unit: (not unit.able, unit.level, not unit.sleeper.up, unit.number))
        able = sum(unit.able for unit in self.units)
        for rank, unit in enumerate(ranked):
            stands_by = rank < min(able, self.wanted + self.standby)
            unit.put(Level.SERVES if rank < min(able, self.wanted) else Level.STANDBY if stands_by else Level.OFF)

    def call_at(self, time_s: float, callback: Callable[[Event], None]) -> None:
        """Look again."""
        self.env.call_at(time_s, SERVICE_CHANGES + self.number, callback)


class ReactiveScaler(Scaler):
    """Follows the load of pools."""

    def __init__(
        self,
        env: EngineEnvironment,
        number: int,
        units: Sequence[Unit],
        pools: Sequence[ElasticPool[Any]],
        spec: ScaleSpec,
    ) -> None:
        super().__init__(env, number, units, spec.standby, spec.floor)
        self.pools, self.spec, self._looks = pools, spec, 0
        for pool in pools:
            pool.call = self._called
        self._await()

    def _await(self) -> None:
        self._looks += 1
        self.call_at(self._looks * self.spec.every_s, self._look)

    def _look(self, event: Event) -> None:
        if not self.env.lives:
            return
        asked = max(self.spec.desired(self.view(pool)) for pool in self.pools)
        if any(pool.waiting for pool in self.pools):
            asked = max(asked, 1)
        count = min(max(asked, self.spec.floor), self.spec.ceiling)
        if count < self.wanted and self.env.now - self._changed_s < self.spec.cooldown_s:
            count = self.wanted
        self.want(count)
        self._await()

    def _called(self) -> None:
        """A visit has found nobody: one is started for it, unless some are on their way."""
        if not self.wanted:
            self.want(1)

    def view(self, pool: ElasticPool[Any]) -> ScalingView:
        """A pool as its policy sees it."""
        views = [device.view(NOBODY) for device in pool.devices]
        serving = sum(any(member.is_open for member in unit.members if member.pool is pool) for unit in self.units)
        return ScalingView(
            serving=serving,
            wanted=self.wanted,
            waiting=sum(view.waiting for view in views) + len(pool.waiting),
            running=sum(view.running for view in views),
            places=sum(view.max_running for view in views) / len(self.units),
        )


class ScheduledScaler(Scaler):
    """Follows the clock."""

    def __init__(self, env: EngineEnvironment, number: int, units: Sequence[Unit], timetable: Timetable) -> None:
        super().__init__(env, number, units, timetable.standby, timetable.at(env.now))
        self.timetable = timetable
        self.call_at(timetable.next_s(env.now), self._look)

    def _look(self, event: Event) -> None:
        if self.env.lives:
            self.want(self.timetable.at(self.env.now))
            self.call_at(self.timetable.next_s(self.env.now), self._look)
