"""Who pays for shared steps: running sums from which each sequence's joules are differences."""

from __future__ import annotations

from dataclasses import dataclass

from hsim.costs.shapes import Segment, StepShape
from hsim.engine.visits import Prompt


@dataclass(slots=True)
class Taken:
    """Steps of a segment that have been taken: from `first` (counted in the segment) on, at the replica's step `step`."""

    segment: Segment
    shape: StepShape
    first: int
    steps: int
    step: int
    context_tokens: int
    seconds: float
    idle_w: float
    host_dynamic_j: float
    host_idle_w: float


class Shares:
    """Nothing walks over the batch: a sequence marks the sums when it joins and takes differences when it leaves.

    Dynamic joules that go with context are split by own context, the rest by new tokens (equally, in a decode
    step); idle and host joules equally by sequence.
    """

    __slots__ = ("context_j", "context_step_j", "host_dynamic_j", "host_idle_j", "idle_j", "token_j")

    def __init__(self) -> None:
        self.token_j = 0.0  # of one new token in each step
        self.context_j = 0.0  # of one token of context in each step
        self.context_step_j = 0.0  # the same times the step's number
        self.idle_j = self.host_dynamic_j = self.host_idle_j = 0.0  # of one sequence

    def marks(self) -> tuple[float, float, float, float, float, float]:
        """The sums now."""
        return (self.token_j, self.context_j, self.context_step_j, self.idle_j, self.host_dynamic_j, self.host_idle_j)

    def add(self, taken: Taken) -> None:
        """Add taken steps, in closed form."""
        segment, shape, steps = taken.segment, taken.shape, taken.steps
        upto = taken.first + steps
        joules = segment.joules_of(upto) - segment.joules_of(taken.first)
        sequences = shape.decodes + shape.chunks
        if shape.decodes:
            triangle = steps * (steps - 1) / 2
            context_j = segment.context_joules
            joules -= context_j * (steps * taken.context_tokens + shape.decodes * triangle)
            self.context_j += context_j * steps
            self.context_step_j += context_j * (steps * taken.step + triangle)
        self.token_j += joules / (shape.decodes + shape.chunk_tokens)
        self.idle_j += taken.idle_w * taken.seconds / sequences
        self.host_dynamic_j += taken.host_dynamic_j / sequences
        self.host_idle_j += taken.host_idle_w * taken.seconds / sequences

    def charge_chunk(self, prompt: Prompt, chunk: int, since: tuple[float, ...]) -> None:
        """Charge a prompt for steps that each took the same chunk of it, since the sums were `since`."""
        prompt.dynamic_j += chunk * (self.token_j - since[0])
        self._charge_sequence(prompt, since)

    def charge_decoding(self, prompt: Prompt) -> None:
        """Charge a sequence for decoding since its marks."""
        since = prompt.marks
        # In step s it read prefill_tokens + 1 + (s - first_step) tokens of context.
        offset = prompt.prefill_tokens + 1 - prompt.first_step
        prompt.dynamic_j += (
            self.token_j - since[0] + offset * (self.context_j - since[1]) + self.context_step_j - since[2]
        )
        self._charge_sequence(prompt, since)

    def _charge_sequence(self, prompt: Prompt, since: tuple[float, ...]) -> None:
        prompt.idle_j += self.idle_j - since[3]
        prompt.host_dynamic_j += self.host_dynamic_j - since[4]
        prompt.host_idle_j += self.host_idle_j - since[5]
