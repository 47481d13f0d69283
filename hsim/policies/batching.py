"""Batchers: what a replica's next step holds, and for how many steps that choice stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from hsim.policies.views import BatchView


class BatchPlan(NamedTuple):
    """Chunks for the prompts being prefilled, then for so many prompts admitted from the head of the queue.

    `chunks` has an entry for each of them, in order; 0 leaves one out of this step. `steps` is how long the choice
    holds if nobody arrives or finishes (math.inf: until then).
    """

    admitted: int
    chunks: tuple[int, ...]
    steps: float


Batcher = Callable[[BatchView], BatchPlan]


def decode_first(view: BatchView) -> BatchPlan:
    """Every decoding sequence gets its token; what is left of the token budget goes to prompts, first come first.

    As vLLM's V1 scheduler does with chunked prefill.
    """
    budget = view.max_num_batched_tokens - view.decodes
    chunks = []
    for prompt in view.prefilling:
        chunk = min(prompt.prompt_left, budget)
        chunks.append(chunk)
        budget -= chunk
    admitted, free = 0, view.free_kv_tokens
    room = view.max_num_seqs - view.decodes - len(view.prefilling)
    for prompt in view.waiting:
        if not budget or admitted == room or prompt.reserve_tokens > free:
            break
        chunk = min(prompt.prompt_left, budget)
        chunks.append(chunk)
        budget -= chunk
        free -= prompt.reserve_tokens
        admitted += 1
    return BatchPlan(admitted, tuple(chunks), _holds(view, chunks, admitted))


def _holds(view: BatchView, chunks: list[int], admitted: int) -> float:
    """One prompt that takes the whole budget does so until its last chunk; anything else changes at once."""
    if not chunks:
        return math.inf
    first = view.prefilling[0] if view.prefilling else view.waiting[0]
    return first.prompt_left // chunks[0] if chunks[0] and not any(chunks[1:]) else 1


BATCHERS: dict[str, Batcher] = {"decode-first": decode_first}
