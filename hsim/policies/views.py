"""All that a policy may see. No true output length, no future: both are for the engine alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, Protocol


class DeviceView(NamedTuple):
    """A device as of its last step boundary.

    `outstanding` visits wait or run; `outstanding_tokens` are prompt tokens still to prefill plus answer tokens
    that they may yet ask for (their declared limits); `cached_tokens` of the visit's prefix lie in its KV cache. One
    that is off or without its model could start in `wake_s`.
    """

    outstanding: int
    outstanding_tokens: int = 0
    waiting: int = 0
    running: int = 0
    max_running: int = 1
    cached_tokens: int = 0
    wake_s: float = 0.0


class PoolView(NamedTuple):
    """A pool's devices, in order, and how many visits it has routed so far."""

    devices: Sequence[DeviceView]
    routed: int


class VisitView(NamedTuple):
    """A visit to be routed. `prefix` names the pieces of its prompt that others may share, with their tokens.

    `started`: its task has a round behind it. `rounds_left` that it is expected to need, this one included, by its class
    and round; both are told where a queue has a priority.
    """

    task: int
    round: int
    input_tokens: int
    max_output_tokens: int
    prefix: tuple[tuple[Hashable, int], ...] = ()
    started: bool = False
    rounds_left: float = 0.0


class PlaceView(NamedTuple):
    """A pool that could serve a visit: visits there or on their way, how many it serves at once, and how many more it
    could begin now.
    """

    visits: int
    capacity: int
    room: int


class ScalingView(NamedTuple):
    """A pool that is scaled: how many of its servers or replicas serve now, and are asked to; visits that wait, at devices
    or for want of one, and that run, those on devices that go included; and how many one can run at once.
    """

    serving: int
    wanted: int
    waiting: int
    running: int
    places: float


class LoadView(NamedTuple):
    """A pool as its governor sees it: visits that wait at its replicas and that run, and how many can run at once."""

    waiting: int
    running: int
    places: int


class PromptView(Protocol):
    """A prompt that waits or is being prefilled.

    Of `prefill_tokens` in all, `prompt_left` are still to be computed; 0 means that they came over a link. It has
    `held_blocks` of the KV cache, or would find them in use by others.
    """

    prefill_tokens: int
    prompt_left: int
    held_blocks: int


class BatchView(NamedTuple):
    """A replica at a step boundary: its batch, its queue and its limits.

    `free_blocks` are what the decoding sequences leave in the next step.
    """

    decodes: int
    prefilling: Sequence[PromptView]
    waiting: Iterable[PromptView]
    free_blocks: int
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
