"""Chance on the way between two sites: the round trip of each message, and how often its packets are lost."""

from __future__ import annotations

import math

from hsim.description.quantities import Distribution
from hsim.workload.streams import quantiles, uniforms


class RoundTrips:
    """Round trips of a network in seconds, and luck in (0, 1), of each task's first, second, ... message over it.

    Keyed by network, task and message: the same whatever else crosses, and for every fleet.
    """

    def __init__(self, network: str, round_trip_s: Distribution, seed: int, tasks: int) -> None:
        self._network, self._distribution, self._seed, self._tasks = network, round_trip_s, seed, tasks
        self._drawn: list[tuple[list[float], list[float]]] = []

    def of(self, task: int, message: int) -> tuple[float, float]:
        """The round trip and the luck of a task's message."""
        while len(self._drawn) <= message:
            number = len(self._drawn)
            u, luck = (
                uniforms(self._seed, f"{what} {self._network}", self._tasks, number) for what in ("round trip", "loss")
            )
            self._drawn.append((quantiles(self._distribution, u).tolist(), luck.tolist()))
        round_trips_s, lucks = self._drawn[message]
        return round_trips_s[task], lucks[task]


def repeats(packets: int, loss_fraction: float, luck: float) -> int:
    """How often the unluckiest of a message's packets is sent again, by inversion.

    Each is lost independently, so that no packet needs more than r repeats with probability (1 - loss^(r+1))^packets.
    """
    if not loss_fraction:
        return 0
    some_left = -math.expm1(math.log(luck) / packets)
    return max(0, math.ceil(math.log(some_left) / math.log(loss_fraction)) - 1)
