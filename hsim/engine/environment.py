"""SimPy's environment with exact instants and one order among the events of an instant."""

from __future__ import annotations

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any

import simpy
from simpy.core import EmptySchedule
from simpy.events import NORMAL, Event, EventPriority

# The order of events at one instant: work that ends, tasks that go on, tasks that arrive, idle devices that start,
# work that one pool takes from another, devices that have had nothing to do for long enough, and what goes out of
# service or comes back.
# Within each, task ids decide. It is the same whatever order the events were scheduled in, so that coalesced and
# step-by-step runs cannot differ by it.
WORK_ENDS = 0
TASK_GOES_ON = 1
TASK_ARRIVES = 1 << 40
DEVICE_STARTS = 1 << 41
WORK_MOVES = DEVICE_STARTS + 1
DEVICE_SLEEPS = 1 << 42
SERVICE_CHANGES = 1 << 43


class EngineEnvironment(simpy.Environment):
    """A SimPy environment in which things happen at absolute times.

    SimPy's own timeouts add a delay to `now`, and the sum need not be the instant that was meant, to the last bit.
    What stands in its agenda is a function and what it is called with: for an event, `happen` and the event.
    """

    now: float = 0.0  # SimPy's is a property, and is asked for often
    _queue: Any  # a heap of (time, order, serial number, (function, what it is called with))
    lives: int = 0  # under way or still to begin: what happens again and again ends when there are none

    def run_out(self) -> None:
        """Let everything happen that stands in the agenda, and all that follows: SimPy's loop without its detours."""
        queue = self._queue
        while queue:
            self.now, _, _, (call, about) = heappop(queue)
            call(about)

    def step(self) -> None:
        """See simpy.Environment."""
        if not self._queue:
            raise EmptySchedule
        self.now = self._queue[0][0]
        self.take_next()

    def take_next(self) -> None:
        """Let happen what is next in the agenda, whatever the time."""
        call, about = heappop(self._queue)[3]
        call(about)

    def schedule(self, event: Event, priority: EventPriority = NORMAL, delay: float = 0) -> None:
        """See simpy.Environment; delays count from now."""
        self.call_at(self.now + delay, priority, happen, event)

    def call_at(self, time_s: float, order: int, callback: Callable[[Any], Any], about: Any = None) -> None:
        """Call callback at time_s, among the events of that instant in the given order."""
        heappush(self._queue, (time_s, order, next(self._eid), (callback, about)))

    def trigger_at(self, event: Event, time_s: float, order: int) -> None:
        """Let a waiting event happen at time_s."""
        event._ok, event._value = True, None
        heappush(self._queue, (time_s, order, next(self._eid), (happen, event)))

    def at(self, time_s: float, task: int) -> Event:
        """An event that happens to a task at time_s."""
        event = Event(self)
        self.trigger_at(event, time_s, TASK_GOES_ON + task)
        return event


def happen(event: Event) -> None:
    """Call back all that wait for an event. Raises what failed it where nobody took that upon him."""
    callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
    for callback in callbacks:
        callback(event)
    if not event._ok and not event.defused:
        raise event._value


class Living:
    """A life that goes on from one awaited event to the next: a SimPy process without the two events of its own."""

    __slots__ = ("_life",)

    def __init__(self, life: Generator[Event, None, None]) -> None:
        self._life = life
        self._go_on(None)

    def _go_on(self, event: Event | None) -> None:
        awaited = next(self._life, None)
        if awaited is not None:
            assert awaited.callbacks is not None, "what is awaited has happened already"
            awaited.callbacks.append(self._go_on)
