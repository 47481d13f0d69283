"""A shared link: after its latency, each transfer gets an equal share of the bandwidth."""

from __future__ import annotations

from functools import partial
from heapq import heappop, heappush
from itertools import count

from simpy.events import Event

from hsim.engine.environment import TASK_GOES_ON, WORK_ENDS, EngineEnvironment
from hsim.log import Log


class Link:
    """Processor sharing by a virtual clock: how many bytes a transfer present throughout would have got."""

    def __init__(
        self, env: EngineEnvironment, log: Log, index: int, latency_s: float, bytes_per_s: float, byte_j: float
    ):
        self.env, self.log, self.index = env, log, index
        self.latency_s, self.bytes_per_s, self.byte_j = latency_s, bytes_per_s, byte_j
        self._shared_bytes, self._since_s = 0.0, 0.0
        self._ends: list[tuple[float, int, _Transfer]] = []
        self._order, self._version = count(), 0

    def transfer(self, task: int, n_bytes: float) -> Event:
        """Send bytes for a task; the event happens when the last has arrived."""
        moving = _Transfer(task, n_bytes, self.env.now, Event(self.env))
        self.env.call_at(self.env.now + self.latency_s, WORK_ENDS, partial(self._join, moving))
        return moving.done

    def _join(self, moving: _Transfer, event: Event) -> None:
        self._advance()
        heappush(self._ends, (self._shared_bytes + moving.n_bytes, next(self._order), moving))
        self._rearm()

    def _advance(self) -> None:
        if self._ends:
            self._shared_bytes += (self.env.now - self._since_s) * self.bytes_per_s / len(self._ends)
        else:
            self._shared_bytes = 0.0  # nobody compares with the past: start afresh, so that rounding does not grow
        self._since_s = self.env.now

    def _rearm(self) -> None:
        self._version += 1
        if self._ends:
            left_s = (self._ends[0][0] - self._shared_bytes) * len(self._ends) / self.bytes_per_s
            self.env.call_at(self.env.now + max(0.0, left_s), WORK_ENDS, partial(self._end, self._version))

    def _end(self, version: int, event: Event) -> None:
        if version != self._version:
            return  # a transfer has joined since
        self._advance()
        moving = heappop(self._ends)[2]
        now = self.env.now
        self.log.transfers.append(
            (moving.task, self.index, moving.start_s, now, moving.n_bytes, moving.n_bytes * self.byte_j)
        )
        self.env.trigger_at(moving.done, now, TASK_GOES_ON + moving.task)
        self._rearm()


class _Transfer:
    __slots__ = ("done", "n_bytes", "start_s", "task")

    def __init__(self, task: int, n_bytes: float, start_s: float, done: Event) -> None:
        self.task, self.n_bytes, self.start_s, self.done = task, n_bytes, start_s, done
