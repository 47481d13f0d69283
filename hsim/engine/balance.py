"""Pools that can serve the same stage: where a visit goes first, and who takes work from whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simpy.events import Event

from hsim.engine.environment import TASK_GOES_ON, WORK_MOVES, EngineEnvironment
from hsim.engine.pool import Pool
from hsim.log import Stage
from hsim.policies.balance import Chooser
from hsim.policies.views import PlaceView, VisitView

NOBODY = VisitView(-1, 0, 0, 0)


class Alternatives:
    """The pools of one stage, between which its visits are balanced.

    With `steals`, a pool that could begin a visit at once takes the longest-waiting one of the fullest other. It is looked
    at when an instant in which anything changed is over; visits on their way to a pool count as there.
    """

    def __init__(
        self, env: EngineEnvironment, stage: Stage, pools: Sequence[Pool[Any]], chooser: Chooser, steals: bool
    ) -> None:
        self.env, self.stage, self.pools, self._chooser, self.steals = env, stage, pools, chooser, steals
        self._coming = {pool.name: 0 for pool in pools}
        self._looking = False
        self.moved = 0

    def place(self, pool: Pool[Any]) -> PlaceView:
        """A pool as choosers see it."""
        views = [device.view(NOBODY) for device in pool.devices]
        coming = self._coming[pool.name]
        room = sum(max(0, view.max_running - view.outstanding) for view in views)
        visits = sum(view.outstanding for view in views)
        return PlaceView(visits + coming, sum(view.max_running for view in views), room - coming)

    def choose(self, visit: VisitView) -> Pool[Any]:
        """The pool that a visit goes to; it counts as there until it has `arrived`."""
        chosen = self.pools[self._chooser(visit, [self.place(pool) for pool in self.pools])]
        self._coming[chosen.name] += 1
        return chosen

    def arrived(self, pool: Pool[Any]) -> None:
        """A visit that was on its way to a pool is there, or given up."""
        self._coming[pool.name] -= 1
        self.changed()

    def changed(self) -> None:
        """A visit has come or gone: at the end of this instant somebody may take what waits elsewhere."""
        if self.steals and not self._looking:
            self._looking = True
            self.env.call_at(self.env.now, WORK_MOVES, self._look)

    def _look(self, event: Event) -> None:
        self._looking = False
        for thief in self.pools:
            room = self.place(thief).room
            while room > 0 and (visit := self._take_from(thief)) is not None:
                room -= 1
                self.moved += 1
                self._coming[thief.name] += 1
                visit.asked = thief
                self.env.trigger_at(visit.done, self.env.now, TASK_GOES_ON + visit.task)

    def _take_from(self, thief: Pool[Any]) -> Any:
        """The first visit of the stage that waits at the device with the most beyond what it can begin; None: there is none."""
        excesses = [
            (view.outstanding - view.max_running, -pool.number, -device.index, device)
            for pool in self.pools
            if pool is not thief
            for device in pool.devices
            if (view := device.view(NOBODY)).outstanding > view.max_running and view.waiting
        ]
        for *_, device in sorted(excesses, key=lambda excess: excess[:3], reverse=True):
            if (visit := device.withdraw(self.stage)) is not None:
                return visit
        return None
