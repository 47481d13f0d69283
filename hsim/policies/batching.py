"""Batchers: what a replica's next step holds, and for how many steps that choice stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from hsim.policies.views import BatchView, PromptView


class BatchPlan(NamedTuple):
    """Chunks for the prompts being prefilled, then for so many prompts admitted from the head of the queue.

    `chunks` has an entry for each of them, in order; 0 leaves one out of this step (or needs no prefill). `steps` is
    how long the choice holds if nobody arrives, finishes or runs out of blocks (math.inf: until then).
    """

    admitted: int
    chunks: tuple[int, ...]
    steps: float


Batcher = Callable[[BatchView], BatchPlan]


def decode_first(view: BatchView) -> BatchPlan:
    """Every decoding sequence gets its token; what is left of the token budget goes to prompts, first come first.

    As vLLM's V1 scheduler does with chunked prefill: a waiting prompt is admitted when there are blocks for its first
    chunk.
    """
    budget = view.max_num_batched_tokens - view.decodes
    free, size = view.free_blocks, view.block_tokens
    chunks: list[int] = []
    first: PromptView | None = None
    for prompt in view.prefilling:
        chunk = min(prompt.prompt_left, budget)
        chunks.append(chunk)
        budget -= chunk
        free -= _new_blocks(prompt, chunk, size)
        first = first or prompt
    admitted, room = 0, view.max_num_seqs - view.decodes - len(view.prefilling)
    if budget > 0 and room > 0:
        for prompt in view.waiting:
            left = prompt.prompt_left
            chunk = left if left < budget else budget
            needed = _new_blocks(prompt, chunk, size)
            if needed > free:
                break
            chunks.append(chunk)
            free -= needed
            budget -= chunk or 1
            admitted += 1
            first = first or prompt
            if budget <= 0 or admitted == room:
                break
    return BatchPlan(admitted, tuple(chunks), _holds(chunks, first))


def _new_blocks(prompt: PromptView, chunk: int, size: int) -> int:
    """Blocks that a prompt lacks to hold what it has and the chunk."""
    lacking = -(-(prompt.prefill_tokens - prompt.prompt_left + chunk) // size) - prompt.held_blocks
    return lacking if lacking > 0 else 0


def _holds(chunks: list[int], first: PromptView | None) -> float:
    """One prompt that takes the whole budget does so until its last chunk; anything else changes at once."""
    together = sum(chunks)
    if first is None or not together:
        return math.inf
    return first.prompt_left // chunks[0] if chunks[0] == together else 1


def whole_prompts(view: BatchView) -> BatchPlan:
    """Whole texts, first come first, as an encoder needs them: every token attends every other in one pass.

    A text longer than the token budget goes alone.
    """
    budget, free, size = view.max_num_batched_tokens, view.free_blocks, view.block_tokens
    chunks: list[int] = []
    for prompt in view.waiting:
        needed = _new_blocks(prompt, prompt.prompt_left, size)
        if len(chunks) == view.max_num_seqs or needed > free or (chunks and prompt.prompt_left > budget):
            break
        chunks.append(prompt.prompt_left)
        free -= needed
        budget -= prompt.prompt_left
    return BatchPlan(len(chunks), tuple(chunks), 1 if chunks else math.inf)


BATCHERS: dict[str, Batcher] = {"decode-first": decode_first, "whole-prompts": whole_prompts}
