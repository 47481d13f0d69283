"""A model replica: continuous batching on a group of accelerators, with O(1) bookkeeping per step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush

from simpy.events import Event

from hsim.costs.shapes import Segment, StepCosts, StepShape
from hsim.description.system import FilledPool
from hsim.engine.cores import Host
from hsim.engine.environment import DEVICE_STARTS, TASK_GOES_ON, EngineEnvironment
from hsim.engine.executor import Executor
from hsim.engine.visits import Prompt
from hsim.log import Log
from hsim.policies.batching import Batcher
from hsim.policies.views import BatchView, DeviceView


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica is: its pool's settings, what it holds and draws, and the host cores that it keeps busy."""

    pool: FilledPool
    costs: StepCosts
    batcher: Batcher
    kv_capacity_tokens: int
    idle_w: float
    host_cores: int


@dataclass(slots=True)
class _Shares:
    """Running sums from which each sequence's joules are differences: nothing walks over the batch.

    Dynamic joules that go with context are split by own context, the rest by new tokens (equally, in a decode
    step); idle and host joules equally by sequence. `context_step_j` is the sum of context joules times step number.
    """

    token_j: float = 0.0
    context_j: float = 0.0
    context_step_j: float = 0.0
    idle_j: float = 0.0
    host_dynamic_j: float = 0.0
    host_idle_j: float = 0.0

    def marks(self) -> tuple[float, float, float, float, float, float]:
        return (self.token_j, self.context_j, self.context_step_j, self.idle_j, self.host_dynamic_j, self.host_idle_j)


class Replica:
    """Serves prompts in steps. Takes all steps up to the next change of its batch as one event, unless its executor
    goes step by step.

    A change is an arrival that can join, a sequence that finishes, the end of a prompt or of the cost's segment. The
    end of step k is one expression, `start + segment.seconds_of(k)`, in both modes; an arrival at that very instant
    joins at the next boundary.
    """

    def __init__(self, env: EngineEnvironment, log: Log, index: int, spec: ReplicaSpec, host: Host, executor: Executor):
        self.env, self.log, self.index, self.spec, self.host, self.executor = env, log, index, spec, host, executor
        self.waiting: deque[Prompt] = deque()
        self.prefilling: deque[Prompt] = deque()
        self.decoding: list[tuple[int, int, Prompt]] = []  # heap: step after which it finishes, task, prompt
        self.free_kv_tokens = spec.kv_capacity_tokens
        self._context_tokens = 0  # read by the decoding sequences in their next step
        self._outstanding_tokens = 0
        self._step = 0
        self._shares = _Shares()
        self._segment: Segment | None = None
        self._shape = StepShape(0, 0)
        self._chunks: tuple[int, ...] = ()
        self._start_s, self._host_mark_j = 0.0, 0.0
        self._steps = self._taken = 0
        self._segment_marks = self._shares.marks()
        self._version, self._starting = 0, False

    # ---- what others see and do

    def view(self) -> DeviceView:
        """What a router may see: this replica as of its last step boundary, the same in both modes."""
        tokens = self._outstanding_tokens
        if self._segment is not None:
            passed = min(self._segment.steps_by(self._start_s, self.env.now), self._steps) - self._taken
            tokens -= passed * self._shape.new_tokens
        return DeviceView(len(self.waiting) + len(self.prefilling) + len(self.decoding), tokens)

    def submit(self, prompt: Prompt) -> None:
        """Queue a prompt; its `done` happens at the boundary at which its answer is complete."""
        prompt.device = self.index
        prompt.reserve_tokens = prompt.input_tokens + prompt.max_output_tokens
        self._outstanding_tokens += prompt.reserve_tokens
        self.waiting.append(prompt)
        if self._segment is None:
            if not self._starting:
                self._starting = True  # at the end of this instant, so that all who arrive in it start together
                self.env.call_at(self.env.now, DEVICE_STARTS, self._start)
        elif len(self.waiting) == 1 and self._could_join(prompt):
            self._cut()

    def _could_join(self, prompt: Prompt) -> bool:
        sequences = len(self.decoding) + len(self.prefilling)
        pool = self.spec.pool
        return (
            not self._shape.chunk_tokens  # else the budget is taken, or the batch changes at the next boundary anyway
            and sequences < pool.max_num_seqs
            and len(self.decoding) < pool.max_num_batched_tokens
            and prompt.reserve_tokens <= self.free_kv_tokens
        )

    # ---- steps

    def _start(self, event: Event) -> None:
        self._starting = False
        self.host.change(self.spec.host_cores)
        self._host_mark_j = self.host.joules_per_core()
        self._plan()

    def _plan(self) -> None:
        """At a boundary: choose the next batch and begin its segment, or go idle."""
        pool = self.spec.pool
        decodes = len(self.decoding)
        plan = self.spec.batcher(
            BatchView(
                decodes,
                self.prefilling,
                self.waiting,
                self.free_kv_tokens,
                pool.max_num_seqs,
                pool.max_num_batched_tokens,
            )
        )
        now = self.env.now
        for _ in range(plan.admitted):
            prompt = self.waiting.popleft()
            prompt.started_s = now
            self.free_kv_tokens -= prompt.reserve_tokens
            self.prefilling.append(prompt)
        self._chunks = plan.chunks
        self._shape = shape = self._shape_of(decodes, plan.chunks)
        if not shape.sequences:
            assert not self.waiting, f"replica {self.index} has {len(self.waiting)} waiting and nothing to do"
            self._segment = None
            self._shares, self._step = _Shares(), 0  # nobody holds a mark: start afresh, so that rounding does not grow
            self.host.change(-self.spec.host_cores)
            return
        self._segment = segment = self.spec.costs.segment(shape)
        steps = min(plan.steps, segment.valid_steps)
        if decodes:
            steps = min(steps, self.decoding[0][0] - self._step)
        self._steps, self._taken, self._start_s = int(steps), 0, now
        self._segment_marks = self._shares.marks()
        self._await_boundary()

    def _shape_of(self, decodes: int, chunks: tuple[int, ...]) -> StepShape:
        count = tokens = context = pairs = growth = 0
        for prompt, chunk in zip(self.prefilling, chunks, strict=True):
            if chunk:
                before = prompt.input_tokens - prompt.prompt_left
                count += 1
                tokens += chunk
                context += before + chunk
                pairs += chunk * before + chunk * (chunk + 1) // 2
                growth += chunk * chunk
        return StepShape(decodes, self._context_tokens, count, tokens, context, pairs, growth)

    def _await_boundary(self) -> None:
        assert self._segment is not None
        self._version += 1
        steps = self._taken + 1 if self.executor.stepwise else self._steps
        end_s = self._start_s + self._segment.seconds_of(steps)
        self.executor.steps(self, end_s, partial(self._on_boundary, self._version, steps))

    def _cut(self) -> None:
        """End the segment at the first boundary after now."""
        assert self._segment is not None
        steps = self._segment.steps_by(self._start_s, self.env.now) + 1
        if steps < self._steps:
            self._steps = steps
            if not self.executor.stepwise:
                self._await_boundary()

    def _on_boundary(self, version: int, steps: int, event: Event) -> None:
        if version != self._version:
            return  # the segment was cut short
        self._account(steps)
        if steps < self._steps:
            self._await_boundary()
            return
        self._end_prompts()
        self._end_answers()
        self._plan()

    def _account(self, upto: int) -> None:
        """Book steps taken..upto of the segment: tokens, context, the log's row, and everybody's shares of joules."""
        assert self._segment is not None
        segment, shape, first, now = self._segment, self._shape, self._taken, self.env.now
        steps = upto - first
        start_s = self._start_s + segment.seconds_of(first) if first else self._start_s
        seconds, joules = now - start_s, segment.joules_of(upto) - segment.joules_of(first)
        triangle = steps * (steps - 1) / 2
        read_tokens = steps * self._context_tokens + shape.decodes * triangle
        context_j = segment.context_joules if shape.decodes else 0.0
        shares, sequences = self._shares, shape.sequences
        shares.token_j += (joules - context_j * read_tokens) / shape.new_tokens
        shares.context_j += context_j * steps
        shares.context_step_j += context_j * (steps * self._step + triangle)
        shares.idle_j += self.spec.idle_w * seconds / sequences
        host_j, cores = self.host.joules_per_core(), self.spec.host_cores
        shares.host_dynamic_j += cores * (host_j - self._host_mark_j) / sequences
        shares.host_idle_j += cores * self.host.core_idle_w * seconds / sequences
        self._host_mark_j = host_j
        self.log.steps.append((
            self.index, start_s, now, steps, shape.decodes, self._context_tokens, shape.chunk_tokens,
            shape.pairs + first * shape.pairs_growth,
            segment.seconds + first * segment.seconds_growth, segment.seconds_growth,
            segment.joules + first * segment.joules_growth, segment.joules_growth,
        ))  # fmt: skip
        self._context_tokens += steps * shape.decodes
        self._outstanding_tokens -= steps * shape.new_tokens
        self._step += steps
        self._taken = upto

    def _end_prompts(self) -> None:
        """Book the segment's chunks; prompts that are complete have their first token and begin to decode."""
        if not self._shape.chunks:
            return
        shares, unfinished = self._shares, deque[Prompt]()
        for prompt, chunk in zip(self.prefilling, self._chunks, strict=True):
            if chunk:
                self._book_chunk(prompt, chunk)
            if prompt.prompt_left:
                unfinished.append(prompt)
                continue
            prompt.first_token_s = self.env.now
            prompt.first_step = self._step
            prompt.finish_step = self._step + prompt.output_tokens - 1
            prompt.marks = shares.marks()
            self._outstanding_tokens -= 1
            self._context_tokens += prompt.input_tokens + 1
            heappush(self.decoding, (prompt.finish_step, prompt.task, prompt))
        self.prefilling = unfinished

    def _book_chunk(self, prompt: Prompt, chunk: int) -> None:
        """A prompt's share of the segment that ends now, whose steps each took the same chunk of it."""
        token_j, _, _, idle_j, host_dynamic_j, host_idle_j = self._segment_marks
        shares = self._shares
        prompt.prompt_left -= chunk * self._steps
        prompt.dynamic_j += chunk * (shares.token_j - token_j)
        prompt.idle_j += shares.idle_j - idle_j
        prompt.host_dynamic_j += shares.host_dynamic_j - host_dynamic_j
        prompt.host_idle_j += shares.host_idle_j - host_idle_j

    def _end_answers(self) -> None:
        """Sequences that have their whole answer leave the batch and give back their KV cache."""
        decoding, shares, now = self.decoding, self._shares, self.env.now
        while decoding and decoding[0][0] == self._step:
            prompt = heappop(decoding)[2]
            token_j, context_j, context_step_j, idle_j, host_dynamic_j, host_idle_j = prompt.marks
            # In step s it read first_context + (s - first_step) tokens of context.
            offset = prompt.input_tokens + 1 - prompt.first_step
            prompt.dynamic_j += (
                shares.token_j - token_j
                + offset * (shares.context_j - context_j)
                + shares.context_step_j - context_step_j
            )  # fmt: skip
            prompt.idle_j += shares.idle_j - idle_j
            prompt.host_dynamic_j += shares.host_dynamic_j - host_dynamic_j
            prompt.host_idle_j += shares.host_idle_j - host_idle_j
            self.free_kv_tokens += prompt.reserve_tokens
            self._context_tokens -= prompt.input_tokens + prompt.output_tokens
            self._outstanding_tokens -= prompt.max_output_tokens - prompt.output_tokens
            prompt.served_s = now
            self.env.trigger_at(prompt.done, now, TASK_GOES_ON + prompt.task)
