"""Routers: which device of a pool serves a visit."""

from __future__ import annotations

from collections.abc import Callable

from hsim.policies.views import PoolView, VisitView

Router = Callable[[VisitView, PoolView], int]


def round_robin(visit: VisitView, pool: PoolView) -> int:
    """Each device in turn."""
    return pool.routed % len(pool.devices)


def least_outstanding(visit: VisitView, pool: PoolView) -> int:
    """The device with the fewest visits waiting or running; the first of equals."""
    loads = [device.outstanding for device in pool.devices]
    return loads.index(min(loads))


def least_outstanding_tokens(visit: VisitView, pool: PoolView) -> int:
    """The device with the fewest tokens still to process by declared limits; the first of equals."""
    loads = [device.outstanding_tokens for device in pool.devices]
    return loads.index(min(loads))


ROUTERS: dict[str, Router] = {
    "round-robin": round_robin,
    "least-outstanding": least_outstanding,
    "least-outstanding-tokens": least_outstanding_tokens,
}
