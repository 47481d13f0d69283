"""The words in which everything about cost is said: the shape of a step, and a segment of equal steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)
class StepShape:
    """All that a cost model may know of one forward pass of a batch.

    A batch holds `decodes` sequences that each add one token and read `context_tokens` between them, and prompt
    chunks of `chunks` sequences that add `chunk_tokens` between them, read `chunk_context_tokens` (their own
    included) and attend `pairs` (query, key) pairs. From one such step to the next, context grows by `decodes`, the
    chunks' by `chunk_tokens`, and pairs by `pairs_growth`.

    For a model some of whose layers see only a window of W tokens: `window_context_tokens` is the sum over the decoding
    sequences of min(context, W); `window_growing` of them are still below W, and that holds for `window_steps` steps
    (min over those of W - context). `window_pairs` are the pairs that chunks attend within the window. A step that leaves
    these at -1 has them derived from the mean context, which is exact for equal sequences.
    """

    decodes: int
    context_tokens: int
    chunks: int = 0
    chunk_tokens: int = 0
    chunk_context_tokens: int = 0
    pairs: int = 0
    pairs_growth: int = 0
    window_context_tokens: int = -1
    window_growing: int = 0
    window_steps: float = math.inf
    window_pairs: int = -1

    @property
    def sequences(self) -> int:
        return self.decodes + self.chunks

    @property
    def new_tokens(self) -> int:
        return self.decodes + self.chunk_tokens


@dataclass(slots=True)
class Segment:
    """Equal steps: step k (from 0) takes seconds + k * seconds_growth, and joules + k * joules_growth above idle.

    `context_joules` of that go with each context token read; `valid_steps` says how many steps the form holds
    (math.inf: until the batch changes). The closed forms below are tested against naive accumulation.
    """

    seconds: float
    seconds_growth: float
    joules: float
    joules_growth: float
    context_joules: float
    valid_steps: float = math.inf

    def seconds_of(self, steps: int) -> float:
        """Seconds of the first `steps` steps."""
        return steps * (self.seconds + 0.5 * (steps - 1) * self.seconds_growth)

    def joules_of(self, steps: int) -> float:
        """Joules above idle of the first `steps` steps."""
        return steps * (self.joules + 0.5 * (steps - 1) * self.joules_growth)

    def steps_by(self, start_s: float, now_s: float) -> int:
        """How many whole steps of a segment begun at start_s have ended at now_s, boundaries on now_s included.

        The inverse of start_s + seconds_of(k), exact to the last bit: rounding must not decide at a boundary.
        """
        seconds, growth = self.seconds, self.seconds_growth
        half = 0.5 * growth
        linear, elapsed_s = seconds - half, now_s - start_s
        # The root of half k^2 + linear k = elapsed, in the form that does not cancel for the sign of linear (which is
        # negative where the second step takes over three times the first), then corrected against the very expression
        # of a boundary.
        square = linear * linear + 4.0 * half * elapsed_s
        root = math.sqrt(square) if square > 0 else 0.0
        steps = int(2.0 * elapsed_s / (linear + root) if linear > 0 else (root - linear) / (2.0 * half))
        steps = max(steps, 0)
        # seconds_of, written out: routers ask this of every replica at every visit.
        while start_s + (steps + 1) * (seconds + 0.5 * steps * growth) <= now_s:
            steps += 1
        while steps and start_s + steps * (seconds + 0.5 * (steps - 1) * growth) > now_s:
            steps -= 1
        return steps


class StepCosts(Protocol):
    """Seconds and joules of a replica's steps."""

    def segment(self, shape: StepShape) -> Segment:
        """The segment that begins with a step of this shape, its batch unchanged."""
        ...


def steps_until_negative(start: float, growth: float) -> float:
    """How many of the steps k = 0, 1, ... have start + k * growth >= 0, at least 1; start must not be negative."""
    return math.inf if growth >= 0 else math.floor(start / -growth) + 1
