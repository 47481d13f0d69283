"""Networks between sites: messages that cross one, and the answer's way back to a client at another site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from simpy.events import Event

from hsim.engine.environment import TASK_GOES_ON, EngineEnvironment
from hsim.engine.link import Link, LinkSpec
from hsim.engine.visits import Job, Prompt
from hsim.log import Log, Stage
from hsim.workload.crossings import RoundTrips, repeats

MATHIS = math.sqrt(1.5)  # Mathis et al. 1997: the constant of periodic losses with every packet acknowledged


@dataclass(frozen=True)
class CrossingSpec:
    """A network between two sites. `link` is of bytes put on the wire, those sent again included, and has no latency."""

    link: LinkSpec
    loss_fraction: float
    packet_bytes: float
    round_trips: RoundTrips

    def least_s(self, n_bytes: float, round_trip_s: float, luck: float) -> float:
        """Seconds that losses make a message take at least, beyond its way: see SiteLink."""
        if not self.loss_fraction:
            return 0.0
        window_s = n_bytes / self.packet_bytes * round_trip_s * math.sqrt(self.loss_fraction) / MATHIS
        again = repeats(math.ceil(n_bytes / self.packet_bytes), self.loss_fraction, luck)
        return max(window_s, again * round_trip_s)


class Crossing:
    """A network between two sites, with a link for each way; a task's messages over it are counted."""

    def __init__(self, env: EngineEnvironment, log: Log, name: str, spec: CrossingSpec) -> None:
        self.env, self.spec = env, spec
        self._ways = tuple(Link(env, log, len(log.links), spec.link) for _ in range(2))
        log.links.append(name)
        self._sent: dict[int, int] = {}

    def send(self, task: int, n_bytes: float, way: int) -> Event:
        """Send bytes for a task; the event happens when they have arrived at the other site."""
        return self._move(task, n_bytes, way, 0.5)

    def follow(self, task: int, n_bytes: float, way: int) -> Event:
        """Send bytes of which the first have been waited for already: no round trip passes."""
        return self._move(task, n_bytes, way, 0.0)

    def way_back_s(self, task: int) -> float:
        """Half the round trip of the message that a task has sent last."""
        return self.spec.round_trips.of(task, max(0, self._sent.get(task, 0) - 1))[0] / 2

    def _move(self, task: int, n_bytes: float, way: int, of_round_trip: float) -> Event:
        number = self._sent.get(task, 0)
        self._sent[task] = number + 1
        round_trip_s, luck = self.spec.round_trips.of(task, number)
        earliest_s = self.env.now + self.spec.least_s(n_bytes, round_trip_s, luck)
        there = Event(self.env)
        sent = self._ways[way].transfer(task, n_bytes / (1 - self.spec.loss_fraction))
        assert sent.callbacks is not None
        sent.callbacks.append(partial(self._land, there, task, earliest_s, of_round_trip * round_trip_s))
        return there

    def _land(self, there: Event, task: int, earliest_s: float, way_s: float, sent: Event) -> None:
        self.env.trigger_at(there, max(self.env.now, earliest_s) + way_s, TASK_GOES_ON + task)


@dataclass(frozen=True)
class Clients:
    """The networks, and the way on each, from pools at other sites back to the clients, by pool.

    An answer streams: its first token's way back is waited before its prompt is queued, as an engine's request latency
    is, so that TTFT and end to end hold a whole round trip, and TPOT none of it. Its bytes follow after the last token.
    """

    homeward: Mapping[str, tuple[Crossing, int]]

    def way_back_s(self, visit: Job | Prompt, pool: str, rounds: int) -> float:
        """Seconds that a visit's first token will take to the client; 0 where it is no part of the answer, or stays."""
        if pool not in self.homeward or visit.round != rounds - 1 or visit.stage not in (Stage.PREFILL, Stage.GENERATE):
            return 0.0
        if isinstance(visit, Prompt) and visit.discarded:
            return 0.0
        return self.homeward[pool][0].way_back_s(visit.task)

    def answered(self, task: int, place: str, n_bytes: float) -> Event | None:
        """The arrival of an answer's bytes at the client; None where they are there already."""
        if place not in self.homeward:
            return None
        crossing, way = self.homeward[place]
        return crossing.follow(task, n_bytes, way)
