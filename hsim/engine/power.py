"""Power states: servers that switch off and engines that unload their model after a rest, and what wakes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from simpy.events import Event

from hsim.engine.environment import DEVICE_SLEEPS, WORK_ENDS, EngineEnvironment
from hsim.log import Log, Power


@dataclass(frozen=True)
class Sleep:
    """When something goes down: after so long without work (math.inf: not by itself). And how long it takes to come up."""

    after_s: float
    wake_s: float


class Sleepy(Protocol):
    """A device that serves only while its sleeper is up."""

    def at_rest(self) -> bool:
        """Whether nobody waits, runs or has anything kept here."""
        ...

    def power_changed(self, up: bool) -> None:
        """It can serve from now on; or what its memory held is gone."""
        ...


class Sleeper:
    """A server, or an engine on one (`under`), that goes down when all it carries has been at rest for long enough.

    What wants it while it is down asks it to `wake`. A server that has come up starts all its engines, whether work waits
    for them or not. While it is not `wanted`, it goes down as soon as it is at rest, and nothing wakes it.
    """

    def __init__(
        self, env: EngineEnvironment, log: Log, place: tuple[int, int], sleep: Sleep, under: Sleeper | None = None
    ) -> None:
        """`place` is the host and the device; of a server itself device -1."""
        self.env, self.log, self.place, self.sleep, self.under = env, log, place, sleep, under
        self.up = self.wanted = True
        self.after_s = sleep.after_s
        self.devices: list[Sleepy] = []
        self.engines: list[Sleeper] = []
        self._up_at_s = math.nan
        self._rest_since_s, self._looks_s = env.now, math.inf
        if under is not None:
            under.engines.append(self)

    def wake_s(self) -> float:
        """How soon it could serve if it were wanted now."""
        if self.up:
            return 0.0
        if not math.isnan(self._up_at_s):
            return self._up_at_s - self.env.now
        return self.sleep.wake_s + (self.under.wake_s() if self.under else 0.0)

    def wake(self) -> None:
        """Somebody wants it."""
        if self.up or not self.wanted or not math.isnan(self._up_at_s):
            return
        if self.under is not None and not self.under.up:
            self.under.wake()
            return
        self._up_at_s = self.env.now + self.sleep.wake_s
        self._note(Power.BOOT if self.place[1] < 0 else Power.IDLE)
        self.env.call_at(self._up_at_s, WORK_ENDS, self._come_up)

    def rest(self) -> None:
        """Something that it carries has come to rest: look again when that has lasted."""
        self._rest_since_s = self.env.now
        self._arm()
        if self.under is not None:
            self.under.rest()

    def release(self) -> None:
        """It is wanted, and comes up if it is down."""
        self.wanted, self.after_s = True, self.sleep.after_s
        self.wake()

    def retire(self) -> None:
        """It is wanted no more: it goes down when all that it carries has come to rest."""
        self.wanted, self.after_s = False, 0.0
        self._arm()

    def fall(self) -> None:
        """It has broken down, and is down at once."""
        self.wanted = False
        if self.up or not math.isnan(self._up_at_s):
            self._go_down(self._down)

    def _arm(self) -> None:
        due_s = max(self._rest_since_s + self.after_s, self.env.now)
        if due_s < self._looks_s:
            self._looks_s = due_s
            self.env.call_at(due_s, DEVICE_SLEEPS, self._look)

    def _look(self, event: Event) -> None:
        self._looks_s = math.inf
        if not self.up or not self._at_rest():
            return  # whatever works now will come to rest, and say so
        if self._rest_since_s + self.after_s > self.env.now:
            self._arm()
        else:
            self._go_down(self._down)

    @property
    def _down(self) -> Power:
        """What it is when it has gone down by itself."""
        return Power.OFF if self.place[1] < 0 else Power.IDLE

    def _at_rest(self) -> bool:
        if not math.isnan(self._up_at_s):
            return False
        return all(device.at_rest() for device in self.devices) and all(engine._at_rest() for engine in self.engines)

    def _come_up(self, event: Event) -> None:
        if self._up_at_s != self.env.now:
            return  # it broke down while it came up
        self.up, self._up_at_s = True, math.nan
        self._note(Power.LOADED if self.place[1] >= 0 else Power.IDLE)
        for engine in self.engines:
            if engine.wanted:
                engine.wake()
            else:
                engine._note(Power.IDLE)
        for device in self.devices:
            device.power_changed(up=True)
        self.rest()

    def _go_down(self, state: Power) -> None:
        self.up, self._up_at_s = False, math.nan
        self._note(state)
        for engine in self.engines:
            engine._go_down(Power.OFF)
        for device in self.devices:
            device.power_changed(up=False)

    def _note(self, state: Power) -> None:
        self.log.states.append((*self.place, self.env.now, state))
