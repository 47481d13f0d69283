"""Service: servers and replicas that are taken out of it and come back, and pools that send work to those that are in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Generic, Protocol, TypeVar

from simpy.events import Event

from hsim.engine.environment import TASK_GOES_ON, EngineEnvironment
from hsim.engine.pool import Pool, Server
from hsim.engine.power import Sleeper
from hsim.engine.visits import Visit
from hsim.log import Log, Outcome, Service
from hsim.policies.routing import Router

V = TypeVar("V", bound=Visit)


class Level(IntEnum):
    """What a server or a replica is to do: serve; be on without a model; be off."""

    SERVES = 0
    STANDBY = 1
    OFF = 2


class Breakable(Protocol):
    """A device that loses what it has when its server or its engine breaks down."""

    def lose_all(self) -> None:
        """All who wait or are served are lost."""
        ...


class ElasticPool(Pool[V], Generic[V]):
    """A pool whose devices go and come back. While none is open, visits wait here for the first that is."""

    def __init__(
        self, env: EngineEnvironment, log: Log, name: str, devices: Sequence[Server[V]], router: Router, number: int = 0
    ) -> None:
        super().__init__(name, devices, router, number)
        self.env, self.log = env, log
        self.members: dict[int, Member] = {}  # by index of device; the others are always open
        self.waiting: deque[V] = deque()
        self.call: Callable[[], None] = _nobody  # told that a visit finds no device

    def submit(self, visit: V) -> Event:
        """See Pool. A round whose context was on a device that is gone goes to any other."""
        if visit.done.triggered:  # it is sent again
            visit.done = Event(self.env)
        if visit.home >= 0 and not self._reachable(visit.home):
            visit.home = -1
        if visit.home >= 0 or self.open:
            return super().submit(visit)
        visit.pool = self.number
        self.waiting.append(visit)
        self.call()
        return visit.done

    def _reachable(self, index: int) -> bool:
        member = self.members.get(index)
        return member is None or member.is_open or member.sleeper.up

    def give_up(self, visit: V) -> None:
        """See Pool."""
        if visit not in self.waiting:
            super().give_up(visit)
            return
        self.waiting.remove(visit)
        visit.outcome, visit.device = Outcome.TIMED_OUT, self.devices[0].index
        visit.started_s = visit.served_s = self.env.now
        self.env.trigger_at(visit.done, self.env.now, TASK_GOES_ON + visit.task)

    def waited_s(self) -> float:
        """See Pool."""
        if self.open:
            return min(device.waited_s() for device in self.open)
        return self.env.now - self.waiting[0].queued_s if self.waiting else 0.0

    def reopen(self) -> None:
        """Some device has opened or closed."""
        self.open = [d for d in self.devices if (member := self.members.get(d.index)) is None or member.is_open]
        while self.waiting and self.open:
            super().submit(self.waiting.popleft())


def _nobody() -> None:
    """Nobody is told."""


class Member:
    """A device of an elastic pool. It is open when all that it stands on serves and it has come up since it last did not.

    One that went to sleep by itself is open: work wakes it.
    """

    def __init__(self, pool: ElasticPool[Any], device: Any, sleeper: Sleeper, units: Sequence[Unit]) -> None:
        self.pool, self.device, self.sleeper, self.units = pool, device, sleeper, units
        self.is_open, self._state = True, Service.OPEN
        pool.members[device.index] = self
        sleeper.devices.append(self)
        for unit in units:
            unit.members.append(self)

    def at_rest(self) -> bool:
        """See Sleepy: it has no work of its own."""
        return True

    def power_changed(self, up: bool) -> None:
        """See Sleepy."""
        if up:
            self.settle()

    def settle(self) -> None:
        """Open or close by what it stands on."""
        wanted = all(unit.serves for unit in self.units)
        opens = wanted and (self.is_open or self.sleeper.up)
        state = Service.OPEN if opens else Service.CLOSED
        if any(unit.broken for unit in self.units) or (wanted and not opens and self._state is Service.BROKEN):
            state = Service.BROKEN
        if state is not self._state:
            self._state = state
            self.pool.log.service.append((self.pool.number, self.device.index, self.pool.env.now, state))
        if opens is not self.is_open:
            self.is_open = opens
            self.pool.reopen()


class Unit:
    """A server, or a replica on one (`under`), that serves unless it has broken down, is drained, or is not needed."""

    def __init__(self, number: int, sleeper: Sleeper, under: Unit | None = None) -> None:
        self.number, self.sleeper, self.under = number, sleeper, under
        self.level = Level.SERVES
        self.broken, self.drained = False, False
        self.changed: Callable[[], None] = _nobody  # told when it can no more serve, or can again
        self.members: list[Member] = []
        self.engines: list[Unit] = []
        if under is not None:
            under.engines.append(self)

    @property
    def able(self) -> bool:
        """Whether it could serve if it were needed."""
        return not self.broken and not self.drained and (self.under is None or self.under.serves)

    @property
    def serves(self) -> bool:
        """Whether it is to take new work, as far as it decides that itself."""
        return not self.broken and not self.drained and self.level is Level.SERVES

    def break_down(self) -> None:
        """Everything that is on it is lost, and it is down."""
        self.broken = True
        for member in self.members:
            member.settle()
        for member in self.members:
            member.device.lose_all()
        self.sleeper.fall()
        self._tell()

    def mend(self) -> None:
        """It can be started again."""
        self.broken = False
        self.settle()
        self._tell()

    def drain(self, drained: bool) -> None:
        """It is to go out of service, or may come back."""
        self.drained = drained
        self.settle()
        self._tell()

    def _tell(self) -> None:
        for unit in (self, *self.engines):
            unit.changed()

    def put(self, level: Level) -> None:
        """Let it serve, stand by, or go."""
        if level is not self.level:
            self.level = level
            self.settle()

    def settle(self) -> None:
        """Let its power, and that of its engines, follow."""
        if not self.broken:
            here = self.under is None or self.under.serves
            stands_by = self.under is None and self.level is Level.STANDBY and not self.drained
            if (self.serves and here) or stands_by:
                self.sleeper.release()
            else:
                self.sleeper.retire()
        for engine in self.engines:
            engine.settle()
        for member in self.members:
            member.settle()
