"""Links: transfers move along paths of one or several links and share their bandwidth max-min fairly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from simpy.events import Event

from hsim.engine.environment import TASK_GOES_ON, WORK_ENDS, EngineEnvironment
from hsim.log import Log


@dataclass(frozen=True)
class LinkSpec:
    """A link: a message takes latency_s, then its bytes flow; each byte costs joules.

    Beside its bytes each message holds the link for per_message_s.
    """

    latency_s: float
    bytes_per_s: float
    joules_per_byte: float
    per_message_s: float = 0.0

    @property
    def message_bytes(self) -> float:
        """As many bytes as a message's set-up takes the time of."""
        return self.per_message_s * self.bytes_per_s


class Message(NamedTuple):
    """Bytes of one task, asked for at start_s; `done` happens when they have arrived."""

    task: int
    n_bytes: float
    start_s: float
    done: Event


class Transfer:
    """Messages under way together; they take as long as n_bytes do."""

    __slots__ = ("left_bytes", "messages", "n_bytes", "path", "rate")

    def __init__(self, messages: Sequence[Message], set_up_bytes: float, path: Sequence[int]) -> None:
        self.messages, self.path = messages, path
        n_bytes = messages[0].n_bytes if len(messages) == 1 else sum(message.n_bytes for message in messages)
        self.n_bytes = self.left_bytes = n_bytes + set_up_bytes
        self.rate = 0.0


class Window:
    """Messages to one place that are asked for within window_s of the first go together, as one."""

    def __init__(self, env: EngineEnvironment, window_s: float, move: Callable[[Sequence[Message]], None]) -> None:
        self.env, self.window_s, self._move = env, window_s, move
        self._waiting: list[Message] = []

    def transfer(self, task: int, n_bytes: float) -> Event:
        """Send bytes for a task; the event happens when the last of all that go with them has arrived."""
        message = Message(task, n_bytes, self.env.now, Event(self.env))
        if not self._waiting:
            self.env.call_at(self.env.now + self.window_s, WORK_ENDS, self._go)
        self._waiting.append(message)
        return message.done

    def _go(self, event: Event) -> None:
        together, self._waiting = self._waiting, []
        self._move(together)


class Link:
    """One link that no path shares with another: processor sharing by a virtual clock, O(log n) a transfer.

    The clock counts the bytes that a transfer present throughout would have got.
    """

    def __init__(self, env: EngineEnvironment, log: Log, index: int, spec: LinkSpec) -> None:
        self.env, self.log, self.index, self.spec = env, log, index, spec
        self._path, self._set_up_bytes = (index,), spec.message_bytes
        self._shared_bytes, self._since_s = 0.0, 0.0
        self._ends: list[tuple[float, int, Transfer]] = []
        self._order, self._version = count(), 0

    def transfer(self, task: int, n_bytes: float) -> Event:
        """Send bytes for a task; the event happens when the last has arrived."""
        message = Message(task, n_bytes, self.env.now, Event(self.env))
        self.move((message,))
        return message.done

    def move(self, messages: Sequence[Message]) -> None:
        """Send messages as one."""
        moving = Transfer(messages, self._set_up_bytes, self._path)
        self.env.call_at(self.env.now + self.spec.latency_s, WORK_ENDS, self._join, moving)

    def _join(self, moving: Transfer) -> None:
        self._advance()
        heappush(self._ends, (self._shared_bytes + moving.n_bytes, next(self._order), moving))
        self._rearm()

    def _advance(self) -> None:
        now, ends = self.env.now, self._ends
        if ends:
            self._shared_bytes += (now - self._since_s) * self.spec.bytes_per_s / len(ends)
        else:
            self._shared_bytes = 0.0  # nobody compares with the past: start afresh, so that rounding does not grow
        self._since_s = now

    def _rearm(self) -> None:
        self._version += 1
        if ends := self._ends:
            left_s = (ends[0][0] - self._shared_bytes) * len(ends) / self.spec.bytes_per_s
            end_s = self._since_s + left_s if left_s > 0 else self._since_s
            self.env.call_at(end_s, WORK_ENDS, self._end, self._version)

    def _end(self, version: int) -> None:
        if version != self._version:
            return  # a transfer has joined since
        self._advance()
        moving = heappop(self._ends)[2]
        _arrived(self.env, self.log, moving, self.index, self.spec.joules_per_byte)
        self._rearm()


class Network:
    """Links that share transfers: at every change each transfer gets its max-min fair rate, by progressive filling."""

    def __init__(self, env: EngineEnvironment, log: Log, specs: dict[int, LinkSpec]) -> None:
        self.env, self.log, self.specs = env, log, specs
        self._moving: list[Transfer] = []
        self._since_s, self._version = 0.0, 0

    def transfer(self, task: int, n_bytes: float, path: Sequence[int]) -> Event:
        """Send bytes for a task along links; the event happens when the last has arrived."""
        message = Message(task, n_bytes, self.env.now, Event(self.env))
        self.move((message,), path)
        return message.done

    def move(self, messages: Sequence[Message], path: Sequence[int]) -> None:
        """Send messages along links as one; the longest set-up of the links counts."""
        moving = Transfer(messages, max(self.specs[link].message_bytes for link in path), path)
        latency_s = sum(self.specs[link].latency_s for link in path)
        self.env.call_at(self.env.now + latency_s, WORK_ENDS, self._join, moving)

    def _join(self, moving: Transfer) -> None:
        self._advance()
        self._moving.append(moving)
        self._rearm()

    def _advance(self) -> None:
        elapsed_s = self.env.now - self._since_s
        for moving in self._moving:
            moving.left_bytes -= moving.rate * elapsed_s
        self._since_s = self.env.now

    def _rearm(self) -> None:
        self._version += 1
        if not self._moving:
            return
        fair_rates(self._moving, {link: spec.bytes_per_s for link, spec in self.specs.items()})
        first_s = min(moving.left_bytes / moving.rate for moving in self._moving)
        self.env.call_at(self.env.now + max(0.0, first_s), WORK_ENDS, self._end, self._version)

    def _end(self, version: int) -> None:
        if version != self._version:
            return  # a transfer has joined since
        self._advance()
        moving = min(self._moving, key=lambda m: m.left_bytes / m.rate)
        self._moving.remove(moving)
        byte_j = sum(self.specs[link].joules_per_byte for link in moving.path)
        _arrived(self.env, self.log, moving, moving.path[0], byte_j)
        self._rearm()


def fair_rates(moving: Sequence[Transfer], bytes_per_s: dict[int, float]) -> None:
    """Set max-min fair rates: fill all equally until a link is full, fix those on it, go on with the rest."""
    left, unfixed = dict(bytes_per_s), list(moving)
    while unfixed:
        users = {link: sum(link in m.path for m in unfixed) for link in left}
        tightest = min((link for link in left if users[link]), key=lambda link: left[link] / users[link])
        rate = left[tightest] / users[tightest]
        fixed = [m for m in unfixed if tightest in m.path]
        for m in fixed:
            m.rate = rate
            for link in m.path:
                left[link] -= rate
        unfixed = [m for m in unfixed if tightest not in m.path]
        del left[tightest]


def _arrived(env: EngineEnvironment, log: Log, moving: Transfer, link: int, byte_j: float) -> None:
    now = env.now
    for task, n_bytes, start_s, done in moving.messages:
        log.transfers.append((task, link, start_s, now, n_bytes, n_bytes * byte_j))
        env.trigger_at(done, now, TASK_GOES_ON + task)
