"""What decoding sequences read in layers that see only a window, as running sums: nothing walks over the batch."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

from hsim.costs.shapes import StepShape
from hsim.engine.visits import Prompt


class WindowSums:
    """Sums over the decoding sequences of min(context, W). In step s a sequence reads `offset + s` tokens of context.

    It is growing while that is below W. A heap keyed on the step in which it reaches W drops it from the sums; an entry
    whose sequence has left the batch is told by its number, as in the replica's own heap.
    """

    __slots__ = ("_filling", "_growing", "_offsets", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._filling: list[tuple[int, int, Prompt, int]] = []  # heap: step in which it is full, entry, prompt, offset
        self._growing = self._offsets = 0

    def begin(self, prompt: Prompt, step: int) -> None:
        """A sequence decodes from this step on."""
        offset = _offset(prompt)
        if offset + step < self.tokens:
            heappush(self._filling, (self.tokens - offset, prompt.entry, prompt, offset))
            self._growing += 1
            self._offsets += offset

    def end(self, prompt: Prompt, step: int) -> None:
        """A sequence leaves before this step: to be called while it still has its entry."""
        self._settle(step)
        offset = _offset(prompt)
        if offset + step < self.tokens:
            self._growing -= 1
            self._offsets -= offset

    def clear(self) -> None:
        """Nobody decodes: steps are counted afresh."""
        assert not self._growing, f"{self._growing} sequences still grow"
        self._filling.clear()

    def fill_in(self, shape: StepShape, step: int) -> None:
        """Give the shape of this step its window context."""
        self._settle(step)
        shape.window_context_tokens = self._offsets + self._growing * step
        shape.window_context_tokens += (shape.decodes - self._growing) * self.tokens
        shape.window_growing = self._growing
        shape.window_steps = self._filling[0][0] - step if self._filling else inf

    def pairs(self, before: int, chunk: int) -> int:
        """Pairs within the window that a chunk attends after so many tokens: query i sees min(before + i, W)."""
        growing = min(max(0, self.tokens - before), chunk)
        return growing * before + growing * (growing + 1) // 2 + (chunk - growing) * self.tokens

    def _settle(self, step: int) -> None:
        """Drop those that are full by now, and those that have left."""
        filling = self._filling
        while filling and (filling[0][0] <= step or filling[0][1] != filling[0][2].entry):
            _, entry, prompt, offset = heappop(filling)
            if entry == prompt.entry:
                self._growing -= 1
                self._offsets -= offset


def _offset(prompt: Prompt) -> int:
    return prompt.prefill_tokens + 1 - prompt.first_step
