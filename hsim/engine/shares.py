"""Steps under way, and who pays for them: running sums from which each sequence's joules are differences."""

from __future__ import annotations

from hsim.costs.shapes import Segment, StepShape
from hsim.engine.visits import Prompt


class Run:
    """Steps of one unchanging batch: `steps` of them from start_s on, of which `taken` are booked.

    `chunks` is what each prompt being prefilled gets in every step; `marks` are the sums of shares when it began.
    """

    __slots__ = ("_next_s", "_seen", "chunks", "marks", "segment", "shape", "start_s", "steps", "taken")

    def __init__(self, segment: Segment, shape: StepShape, start_s: float, steps: int, chunks: tuple[int, ...]) -> None:
        self.segment, self.shape, self.start_s, self.steps, self.chunks = segment, shape, start_s, steps, chunks
        self.taken = 0
        self.marks: tuple[float, ...] = ()
        self._seen, self._next_s = -1, start_s  # as of the last look: steps passed, and the boundary after them

    def end_s(self, steps: int) -> float:
        """The boundary after so many steps: one expression, from one anchor, whatever asks for it."""
        return self.start_s + self.segment.seconds_of(steps)

    def passed(self, now_s: float) -> int:
        """Steps whose boundary has come, those booked included. Time only goes on."""
        if now_s >= self._next_s:
            self._seen += 1
            self._next_s = self.end_s(self._seen + 1)
            if now_s >= self._next_s:  # many have passed
                self._seen = self.segment.steps_by(self.start_s, now_s)
                self._next_s = self.end_s(self._seen + 1)
        return self._seen if self._seen < self.steps else self.steps


class Shares:
    """Nothing walks over the batch: a sequence marks the sums when it joins and takes differences when it leaves.

    Dynamic joules that go with context are split by own context, the rest by new tokens (equally, in a decode
    step); idle and host joules equally by sequence.
    """

    __slots__ = (
        "context_j",
        "context_step_j",
        "host_dynamic_j",
        "host_idle_j",
        "host_idle_w",
        "idle_j",
        "idle_w",
        "token_j",
    )

    def __init__(self, idle_w: float, host_idle_w: float) -> None:
        self.idle_w, self.host_idle_w = idle_w, host_idle_w
        self.token_j = 0.0  # of one new token in each step
        self.context_j = 0.0  # of one token of context in each step
        self.context_step_j = 0.0  # the same times the step's number
        self.idle_j = self.host_dynamic_j = self.host_idle_j = 0.0  # of one sequence

    def marks(self) -> tuple[float, float, float, float, float, float]:
        """The sums now."""
        return (self.token_j, self.context_j, self.context_step_j, self.idle_j, self.host_dynamic_j, self.host_idle_j)

    def add(self, run: Run, upto: int, seconds: float, first: tuple[int, int], host_dynamic_j: float) -> None:
        """Add the steps run.taken..upto, in closed form.

        They took `seconds` in all; `first` is the replica's number of the first of them, and the context that it read.
        """
        segment, shape, steps = run.segment, run.shape, upto - run.taken
        decodes = shape.decodes
        joules = segment.joules_of(upto) - segment.joules_of(run.taken)
        if decodes:
            number, context_tokens = first
            triangle = steps * (steps - 1) / 2
            context_j = segment.context_joules
            joules -= context_j * (steps * context_tokens + decodes * triangle)
            self.context_j += context_j * steps
            self.context_step_j += context_j * (steps * number + triangle)
        self.token_j += joules / (decodes + shape.chunk_tokens)
        each_s = seconds / (decodes + shape.chunks)
        self.idle_j += self.idle_w * each_s
        self.host_dynamic_j += host_dynamic_j / (decodes + shape.chunks)
        self.host_idle_j += self.host_idle_w * each_s

    def add_broken(self, run: Run, seconds: float, joules: float, host_dynamic_j: float) -> None:
        """Add a step that broke off after so long: its joules by new tokens, as those of any step."""
        shape = run.shape
        self.token_j += joules / (shape.decodes + shape.chunk_tokens)
        self.idle_j += self.idle_w * seconds / shape.sequences
        self.host_dynamic_j += host_dynamic_j / shape.sequences
        self.host_idle_j += self.host_idle_w * seconds / shape.sequences

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
