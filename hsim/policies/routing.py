"""Routers: which device of a pool serves a visit."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

from hsim.policies.views import DeviceView, PoolView, VisitView

Router = Callable[[VisitView, PoolView], int]


def round_robin(visit: VisitView, pool: PoolView) -> int:
    """Each device in turn."""
    return pool.routed % len(pool.devices)


def least_outstanding(visit: VisitView, pool: PoolView) -> int:
    """The device with the fewest visits waiting or running; the first of equals."""
    loads = [device.outstanding for device in pool.devices]
    return loads.index(min(loads))


def join_shortest_queue(visit: VisitView, pool: PoolView) -> int:
    """The device with the fewest visits waiting; among equals the one with the fewest running."""
    loads = [(device.waiting, device.running) for device in pool.devices]
    return loads.index(min(loads))


def least_outstanding_tokens(visit: VisitView, pool: PoolView) -> int:
    """The device with the fewest tokens still to process by declared limits; the first of equals."""
    loads = [device.outstanding_tokens for device in pool.devices]
    return loads.index(min(loads))


def power_of_two(visit: VisitView, pool: PoolView) -> int:
    """Of two devices drawn at random, the one with fewer visits; the draw is keyed by the visit, the same in every run."""
    count = len(pool.devices)
    draw = crc32(f"{visit.task}/{visit.round}".encode())
    first = draw % count
    second = (first + 1 + draw // count % (count - 1)) % count if count > 1 else first
    return min(first, second, key=lambda i: pool.devices[i].outstanding)


def prefix_affinity(visit: VisitView, pool: PoolView) -> int:
    """The device that leaves the least to do: outstanding tokens plus the part of the prompt that it has not cached.

    A round of a task so returns to the replica that holds its context, unless that one has much more to do.
    """
    loads = [device.outstanding_tokens - device.cached_tokens for device in pool.devices]
    return loads.index(min(loads))


def least_energy(visit: VisitView, pool: PoolView) -> int:
    """The busiest device that still has room: a sequence more costs a large batch little, and others may stay idle.

    One that would have to wake up first comes after all that have room.
    """

    def rank(device: DeviceView) -> tuple[bool, float, int]:
        has_room = not device.waiting and device.running < device.max_running
        if device.wake_s:
            has_room = device.outstanding < device.max_running
        return (not has_room, device.wake_s, -device.running if has_room else device.outstanding)

    ranks = [rank(device) for device in pool.devices]
    return ranks.index(min(ranks))


ROUTERS: dict[str, Router] = {
    "round-robin": round_robin,
    "least-outstanding": least_outstanding,
    "join-shortest-queue": join_shortest_queue,
    "least-outstanding-tokens": least_outstanding_tokens,
    "power-of-two": power_of_two,
    "prefix-affinity": prefix_affinity,
    "least-energy": least_energy,
}
