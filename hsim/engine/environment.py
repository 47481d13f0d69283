"""SimPy's environment with exact instants and one order among the events of an instant."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

import simpy
from simpy.events import Event

# The order of events at one instant: work that ends, tasks that go on, tasks that arrive, idle devices that start, and
# those that have had nothing to do for long enough.
# Within each, task ids decide. It is the same whatever order the events were scheduled in, so that coalesced and
# step-by-step runs cannot differ by it.
WORK_ENDS = 0
TASK_GOES_ON = 1
TASK_ARRIVES = 1 << 40
DEVICE_STARTS = 1 << 41
DEVICE_SLEEPS = 1 << 42


class EngineEnvironment(simpy.Environment):
    """A SimPy environment in which things happen at absolute times.

    SimPy's own timeouts add a delay to `now`, and the sum need not be the instant that was meant, to the last bit.
    """

    def call_at(self, time_s: float, order: int, callback: Callable[[Event], Any]) -> None:
        """Call callback at time_s, among the events of that instant in the given order."""
        event = Event(self)
        event.callbacks.append(callback)
        event._ok, event._value = True, None
        heappush(self._queue, (time_s, order, next(self._eid), event))  # type: ignore[misc]

    def trigger_at(self, event: Event, time_s: float, order: int) -> None:
        """Let a waiting event happen at time_s."""
        event._ok, event._value = True, None
        heappush(self._queue, (time_s, order, next(self._eid), event))  # type: ignore[misc]

    def at(self, time_s: float, task: int) -> Event:
        """An event that happens to a task at time_s."""
        event = Event(self)
        self.trigger_at(event, time_s, TASK_GOES_ON + task)
        return event
