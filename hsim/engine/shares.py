"""Steps under way, and who pays for them: running sums from which each sequence's joules are differences."""

from __future__ import annotations

from hsim.costs.shapes import Segment, StepShape
from hsim.engine.visits import Prompt


class Run:
    """Steps of one unchanging batch: `steps` of them from start_s on, of which `taken` are booked.

    `chunks` is what each prompt being prefilled gets in every step; `marks` are the sums of shares when it began.
    """

    __slots__ = ("_next_s", "_seen", "chunks", "marks", "segment", "shape", "start_s", "step_tokens", "steps", "taken")

    def __init__(self, segment: Segment, shape: StepShape, start_s: float, steps: int, chunks: tuple[int, ...]) -> None:
        self.segment, self.shape, self.start_s, self.steps, self.chunks = segment, shape, start_s, steps, chunks
        self.step_tokens = shape.decodes + shape.chunk_tokens
        self.taken = 0
        self.marks: tuple[float, ...] = ()
        self._seen, self._next_s = -1, start_s  # as of the last look: steps passed, and the boundary after them

    def end_s(self, steps: int) -> float:
        """The boundary after so many steps: one expression, from one anchor, whatever asks for it."""
        return self.start_s + self.segment.seconds_of(steps)

    def passed(self, now_s: float) -> int:
        """Steps whose boundary has come, those booked included. Time only goes on."""
        if now_s >= self._next_s:
            seen, segment = self._seen + 1, self.segment
            next_s = self.start_s + segment.seconds_of(seen + 1)
            if now_s >= next_s:  # many have passed
                seen = segment.steps_by(self.start_s, now_s)
                next_s = self.start_s + segment.seconds_of(seen + 1)
            self._seen, self._next_s = seen, next_s
        return self._seen if self._seen < self.steps else self.steps


class Shares:
    """Nothing walks over the batch: a sequence marks the sums when it joins and takes differences when it leaves.

    Dynamic joules that go with context are split by own context, the rest by new tokens (equally, in a decode
    step); idle and host joules equally by sequence.
    """

    __slots__ = ("host_idle_w", "idle_w", "sums")

    def __init__(self, idle_w: float, host_idle_w: float) -> None:
        self.idle_w, self.host_idle_w = idle_w, host_idle_w
        # Joules of one new token in each step; of one token of context in each step, and the same times the step's
        # number; idle, host dynamic and host idle joules of one sequence.
        self.sums = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def add(self, run: Run, upto: int, seconds: float, first: tuple[int, int], host_dynamic_j: float) -> None:
        """Add the steps run.taken..upto, in closed form.

        They took `seconds` in all; `first` is the replica's number of the first of them, and the context that it read.
        """
        token_j, context_j, context_step_j, idle_j, host_j, host_idle_j = self.sums
        segment, shape, taken = run.segment, run.shape, run.taken
        decodes, steps = shape.decodes, upto - taken
        joules = segment.joules_of(upto)
        if taken:
            joules -= segment.joules_of(taken)
        if decodes:
            number, context_tokens = first
            triangle = steps * (steps - 1) / 2
            each_j = segment.context_joules
            joules -= each_j * (steps * context_tokens + decodes * triangle)
            context_j += each_j * steps
            context_step_j += each_j * (steps * number + triangle)
        token_j += joules / run.step_tokens
        sequences = decodes + shape.chunks
        each_s = seconds / sequences
        idle_j += self.idle_w * each_s
        host_j += host_dynamic_j / sequences
        host_idle_j += self.host_idle_w * each_s
        self.sums = (token_j, context_j, context_step_j, idle_j, host_j, host_idle_j)

    def add_broken(self, run: Run, seconds: float, joules: float, host_dynamic_j: float) -> None:
        """Add a step that broke off after so long: its joules by new tokens, as those of any step."""
        token_j, context_j, context_step_j, idle_j, host_j, host_idle_j = self.sums
        shape, sequences = run.shape, run.shape.sequences
        token_j += joules / (shape.decodes + shape.chunk_tokens)
        idle_j += self.idle_w * seconds / sequences
        host_j += host_dynamic_j / sequences
        host_idle_j += self.host_idle_w * seconds / sequences
        self.sums = (token_j, context_j, context_step_j, idle_j, host_j, host_idle_j)

    def charge_chunk(self, prompt: Prompt, chunk: int, since: tuple[float, ...]) -> None:
        """Charge a prompt for steps that each took the same chunk of it, since the sums were `since`."""
        prompt.dynamic_j += chunk * (self.sums[0] - since[0])
        self._charge_sequence(prompt, since)

    def charge_decoding(self, prompt: Prompt) -> None:
        """Charge a sequence for decoding since its marks."""
        sums, since = self.sums, prompt.marks
        # In step s it read prefill_tokens + 1 + (s - first_step) tokens of context.
        offset = prompt.prefill_tokens + 1 - prompt.first_step
        prompt.dynamic_j += sums[0] - since[0] + offset * (sums[1] - since[1]) + sums[2] - since[2]
        self._charge_sequence(prompt, since)

    def _charge_sequence(self, prompt: Prompt, since: tuple[float, ...]) -> None:
        sums = self.sums
        prompt.idle_j += sums[3] - since[3]
        prompt.host_dynamic_j += sums[4] - since[4]
        prompt.host_idle_j += sums[5] - since[5]
