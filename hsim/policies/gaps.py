"""What becomes of a context's KV cache while its task waits for a tool: held, moved to host memory, dropped, or the cheapest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

GapChoice = Literal["cache", "hold", "offload", "drop"]


class GapView(NamedTuple):
    """A context whose round has ended, and a tool call before its next.

    `expected_gap_s` is what such calls take on average. Computing the context again would take a replica recompute_s
    and recompute_j above idle; moving it takes transfer_s and transfer_j one way (`fits_host` says whether there is
    room for it). The cache has `capacity_tokens`, of which used_fraction is taken, `others_tokens` of it by sequences
    that run. The replica draws idle_w whatever it does.
    """

    context_tokens: int
    expected_gap_s: float
    recompute_s: float
    recompute_j: float
    transfer_s: float
    transfer_j: float
    fits_host: bool
    capacity_tokens: int
    used_fraction: float
    others_tokens: int
    idle_w: float


GapPolicy = Callable[[GapView], GapChoice]


def cache(view: GapView) -> GapChoice:
    """Its blocks are free, and are found again if nobody has needed them."""
    return "cache"


def hold(view: GapView) -> GapChoice:
    """Its blocks stay its own."""
    return "hold"


def drop(view: GapView) -> GapChoice:
    """Its blocks are free and empty; the next round computes it again."""
    return "drop"


def offload(view: GapView) -> GapChoice:
    """It moves to host memory, and back for the next round; where it has no room there, it is dropped."""
    return "offload" if view.fits_host else "drop"


def least_waste(view: GapView) -> GapChoice:
    """The least KV memory kept from others, in token-seconds: the rule of InferCept (arXiv 2402.01869, equations 1 to 5).

    Held, it is the context for the gap; recomputed, the context and the sequences that stand still meanwhile, for as
    long as that takes; offloaded, the context while it moves out and in.
    """
    wastes: dict[GapChoice, float] = {"hold": view.expected_gap_s * view.context_tokens}
    if view.fits_host:
        wastes["offload"] = 2 * view.transfer_s * view.context_tokens
    wastes["drop"] = view.recompute_s * (view.context_tokens + view.others_tokens)
    return min(wastes, key=wastes.__getitem__)


def least_joules(view: GapView) -> GapChoice:
    """The fewest joules, memory that others could use counted as its share of the replica's idle draw.

    The emptier the cache, the less a held context keeps from anybody.
    """
    memory_w = view.used_fraction * view.context_tokens / view.capacity_tokens * view.idle_w
    joules: dict[GapChoice, float] = {"hold": view.expected_gap_s * memory_w}
    if view.fits_host:
        joules["offload"] = 2 * (view.transfer_j + view.transfer_s * memory_w)
    joules["drop"] = view.recompute_j + view.recompute_s * view.idle_w
    return min(joules, key=joules.__getitem__)


GAPS: dict[str, GapPolicy] = {
    "cache": cache,
    "hold": hold,
    "offload": offload,
    "drop": drop,
    "least-waste": least_waste,
    "least-joules": least_joules,
}
