"""A model replica: continuous batching on a group of accelerators, with O(1) bookkeeping per step."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf, isnan

from simpy.events import Event

from hsim.costs.shapes import StepCosts, StepShape
from hsim.description.system import FilledPool
from hsim.engine.cores import Host
from hsim.engine.environment import DEVICE_STARTS, TASK_GOES_ON, EngineEnvironment
from hsim.engine.executor import Executor
from hsim.engine.gaps import Gaps, GapSpec
from hsim.engine.kv import KvCache
from hsim.engine.memory import SharedMemory
from hsim.engine.power import Sleep, Sleeper
from hsim.engine.precision import Switching, SwitchSpec
from hsim.engine.shares import Run, Shares
from hsim.engine.visits import Prompt, enqueue
from hsim.engine.windows import WindowSums
from hsim.log import Log, Outcome, Stage
from hsim.policies.batching import Batcher, BatchPlan
from hsim.policies.views import BatchView, DeviceView, VisitView

DECODE_ON = BatchPlan(0, (), inf)
"""The plan where nobody waits and nobody is being prefilled."""


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica is: its pool's settings, what it holds and draws, and the host cores that it keeps busy.

    `window_tokens` is the window that some of its model's layers see, 0 where all see everything.
    """

    pool: FilledPool
    costs: StepCosts
    batcher: Batcher
    kv_blocks: int
    idle_w: float
    host_cores: int
    window_tokens: int = 0
    load_s: float = 0.0
    gaps: GapSpec | None = None
    switch: SwitchSpec | None = None

    def least_s(self, shape: StepShape) -> float:
        """Seconds of a step with whichever of its sets of weights is the quicker."""
        sets = (self.costs, self.switch.costs) if self.switch else (self.costs,)
        return min(costs.segment(shape).seconds for costs in sets)


class Replica:
    """Serves prompts in steps. Takes all steps up to the next change of its batch as one event, unless its executor
    goes step by step.

    A change is an arrival that can join, a sequence that finishes or is given up, the end of a prompt, of free KV
    blocks or of the cost's segment. The end of step k is one expression, `start + segment.seconds_of(k)`, in both
    modes; an arrival at that very instant joins at the next boundary.
    """

    def __init__(
        self, env: EngineEnvironment, log: Log, index: int, spec: ReplicaSpec, host: Host, executor: Executor
    ) -> None:
        self.env, self.log, self.index, self.spec, self.host, self.executor = env, log, index, spec, host, executor
        self.kv = KvCache(spec.kv_blocks, spec.pool.block_tokens, spec.pool.prefix_caching)
        self.waiting: deque[Prompt] = deque()
        self.running: dict[Prompt, None] = {}  # in order of admission: the newest is preempted first
        self.prefilling: list[Prompt] = []
        self.preempted = 0
        self._finishing: list[tuple[int, int, int, Prompt]] = []  # heap: last step, task, entry, prompt
        self._entries = count(1)
        self._decodes = 0
        self._due = [0] * spec.pool.block_tokens  # decoding sequences that need a block in steps of each residue
        self._due_step = 0  # blocks were taken for steps before this one
        self._leaving: list[Prompt] = []
        self._context_tokens = 0  # read by the decoding sequences in their next step
        self._outstanding_tokens = 0
        self._windows = WindowSums(spec.window_tokens) if spec.window_tokens else None
        self._step = 0
        self._shares = self._no_shares()
        self._host_mark_j = 0.0
        self._run: Run | None = None
        self._version, self._starting = 0, False
        self._sleeper = self._own_sleeper()
        self._gaps = Gaps(env, log, spec.gaps, self.kv, self) if spec.gaps else None
        self._switching = Switching(log, index, spec.switch, spec.costs) if spec.switch else None
        self._max_num_seqs = spec.pool.max_num_seqs  # looked at at every change, as the next
        self._segment = (self._switching or spec.costs).segment

    def _own_sleeper(self) -> Sleeper | None:
        """What says whether its model is loaded, if that can change."""
        after_s = self.spec.pool.unload_after_s
        if not self.spec.pool.unloads and self.host.sleeper is None:
            return None
        sleep = Sleep(inf if after_s is None else after_s, self.spec.load_s)
        sleeper = Sleeper(self.env, self.log, (self.host.index, self.index), sleep, self.host.sleeper)
        sleeper.devices.append(self)
        sleeper.rest()
        return sleeper

    @property
    def sleeper(self) -> Sleeper | None:
        """What loads and unloads its model, if anything does."""
        return self._sleeper

    def replan(self) -> None:
        """What its steps cost has changed: the one under way is the last of the old ones."""
        self._cut()

    # ---- what others see and do

    def view(self, visit: VisitView) -> DeviceView:
        """What a router may see: this replica as of its last step boundary, the same in both modes."""
        tokens, cached = self._outstanding_tokens, 0
        if run := self._run:
            tokens -= (run.passed(self.env.now) - run.taken) * run.step_tokens
        if visit.prefix and self.kv.prefix_caching:
            self._take_due_blocks()
            cached = self.kv.cached_tokens(visit.prefix)
        waiting, running = len(self.waiting), len(self.running)
        wake_s = self._sleeper.wake_s() if self._sleeper else 0.0
        # A named tuple's own constructor takes twice as long, and a router is shown every replica at every visit.
        seen = (waiting + running, tokens, waiting, running, self._max_num_seqs, cached, wake_s)
        return tuple.__new__(DeviceView, seen)

    def submit(self, prompt: Prompt) -> None:
        """Queue a prompt; its `done` happens at the boundary at which its answer is complete, or when it is shed."""
        prompt.device = self.index
        limit = self.spec.pool.max_waiting
        if limit is not None and len(self.waiting) >= limit:
            prompt.outcome = Outcome.SHED
            prompt.started_s = prompt.served_s = self.env.now
            self.env.trigger_at(prompt.done, self.env.now, TASK_GOES_ON + prompt.task)
            return
        self._outstanding_tokens += prompt.prefill_tokens + prompt.max_output_tokens - prompt.generated_tokens
        enqueue(self.waiting, prompt)
        self._attend(joined=self.waiting[0] is prompt)
        if self._switching and self._run and self._switching.wants(*self._seen()):
            self._cut()

    def give_up(self, prompt: Prompt) -> None:
        """The client is gone: a waiting prompt leaves at once, a running one at the next boundary."""
        prompt.outcome = Outcome.TIMED_OUT
        if prompt in self.running:
            self._leaving.append(prompt)
            self._cut()
            return
        self.waiting.remove(prompt)
        self._outstanding_tokens -= prompt.prefill_tokens + prompt.max_output_tokens - prompt.generated_tokens
        self._finish(prompt)
        self._attend(joined=bool(self.waiting))  # whoever was behind it may fit
        self._rest()

    def withdraw(self, stage: Stage) -> Prompt | None:
        """See Server."""
        prompt = next((p for p in self.waiting if p.stage is stage and isnan(p.started_s)), None)
        if prompt is not None:
            self.waiting.remove(prompt)
            self._outstanding_tokens -= prompt.prefill_tokens + prompt.max_output_tokens - prompt.generated_tokens
            self._attend(joined=bool(self.waiting))
            self._rest()
        return prompt

    def waited_s(self) -> float:
        """See Server."""
        return self.env.now - self.waiting[0].queued_s if self.waiting else 0.0

    def fail(self) -> None:
        """The step under way has failed, and the cache may be lost: all who run leave at its end, unserved."""
        for prompt in self.running:
            prompt.outcome = Outcome.FAILED
            self._leaving.append(prompt)

    def let_go(self, prompt: Prompt) -> None:
        """The KV cache of a finished prompt that was kept for its transfer is free."""
        self._take_due_blocks()
        self.kv.release(prompt, prompt.input_tokens)
        self._attend(joined=bool(self.waiting))
        self._rest()

    def at_rest(self) -> bool:
        """See Sleepy."""
        kept = self.kv.free_blocks < self.kv.capacity_blocks or (self._gaps is not None and not self._gaps.at_rest)
        return self._run is None and not self.waiting and not kept

    def power_changed(self, up: bool) -> None:
        """See Sleepy."""
        if up:
            self._attend(joined=False)
        else:
            self.kv.forget()

    def share(self, memory: SharedMemory) -> None:
        """Contexts in gaps go to a memory that other replicas use too."""
        assert self._gaps is not None
        self._gaps.share(memory)

    def gone(self, prompt: Prompt) -> bool:
        """Whether a prompt's context has left for a memory from which any replica can have it."""
        return self._gaps is not None and self._gaps.gone(prompt)

    def bring_back(self, prompt: Prompt) -> Event | None:
        """The arrival of a prompt's context from memory, if it went there."""
        return self._gaps.bring_back(prompt) if self._gaps else None

    def abandon(self, key: Hashable) -> None:
        """Nobody will come for a context."""
        if self._gaps:
            self._gaps.abandon(key)

    def settle(self) -> None:
        """See gaps.Owner."""
        self._take_due_blocks()

    def freed(self) -> None:
        """See gaps.Owner: whoever waits may fit."""
        self._attend(joined=bool(self.waiting))
        self._rest()

    def _seen(self) -> tuple[float, int, float]:
        """What a switch of weights is decided by: the instant, who waits, and the used part of the KV cache."""
        self._take_due_blocks()
        return self.env.now, len(self.waiting), 1 - self.kv.free_blocks / self.kv.capacity_blocks

    def _rest(self) -> None:
        if self._sleeper and self.at_rest():
            self._sleeper.rest()

    def batch(self) -> Iterator[tuple[Prompt, int, int]]:
        """The sequences of the step under way, each with the position of its first new token and how many there are."""
        assert self._run is not None
        for prompt in self.running:
            if prompt.decoding:
                yield prompt, prompt.prefill_tokens + self._step - prompt.first_step, 1
        for prompt, chunk in zip(self.prefilling, self._run.chunks, strict=True):
            if chunk:
                yield prompt, prompt.prefill_tokens - prompt.prompt_left, chunk

    def _attend(self, joined: bool) -> None:
        """Somebody may be able to join: start if idle, else plan anew at the next boundary if that could change it."""
        if self._run is None:
            if self.waiting and self._sleeper and not self._sleeper.up:
                self._sleeper.wake()
            elif self.waiting and not self._starting:
                self._starting = True  # at the end of this instant, so that all who arrive in it start together
                self.env.call_at(self.env.now, DEVICE_STARTS, self._start)
        elif joined and not self._run.shape.chunks and len(self.running) < self._max_num_seqs:
            self._cut()  # during a prefill the budget is taken, or the batch changes at the next boundary anyway

    # ---- planning a batch

    def _start(self, event: Event) -> None:
        self._starting = False
        if not self.waiting:
            return  # given up in the same instant
        self.host.change(self.spec.host_cores)
        self._host_mark_j = self.host.joules_per_core()
        self._plan()

    def _plan(self) -> None:
        """At a boundary: choose the next batch and begin its segment, or go idle."""
        now, kv, plan = self.env.now, self.kv, DECODE_ON
        if (
            self.waiting
            or self.prefilling
            or (self._decodes and self._due[self._step % kv.block_tokens] > kv.free_blocks)
        ):
            plan = self._choose()
            for _ in range(plan.admitted):
                self._admit(self.waiting.popleft(), now)
        chunks = plan.chunks
        if 0 in chunks and not all(prompt.prompt_left for prompt in self.prefilling):
            chunks = self._begin_elsewhere_prefilled(chunks)
        shape = self._shape_of(chunks)
        if not shape.decodes and not shape.chunks:
            self._go_idle()
            return
        if self._switching:
            self._switching.look(*self._seen())
        segment = self._segment(shape)
        steps = plan.steps if plan.steps < segment.valid_steps else segment.valid_steps
        if self._decodes and steps > (finish := self._first_finish() - self._step):
            steps = finish
        self._run = run = Run(segment, shape, now, 1 if self.executor.real else int(steps), chunks)
        run.steps = self._affordable(run)
        if chunks:
            run.marks = self._shares.sums
            for prompt, chunk in zip(self.prefilling, chunks, strict=True):
                if chunk:
                    self.kv.grow(prompt, prompt.prefill_tokens - prompt.prompt_left + chunk * run.steps)
        self._await_boundary(run)

    def _choose(self) -> BatchPlan:
        """Ask the batcher; while the running sequences lack blocks for it, preempt the newest and ask again."""
        pool, kv = self.spec.pool, self.kv
        while True:
            due = self._due[self._step % kv.block_tokens] if self._decodes else 0
            left, size = kv.free_blocks - due, kv.block_tokens
            limits = (pool.max_num_seqs, pool.max_num_batched_tokens)
            seen = (self._decodes, self.prefilling, self._heads(), left, size, *limits)
            plan = self.spec.batcher(tuple.__new__(BatchView, seen))
            needed = due
            for prompt, chunk in zip(self.prefilling, plan.chunks, strict=False):
                if chunk:
                    tokens = prompt.prefill_tokens - prompt.prompt_left + chunk
                    needed += max(0, kv.blocks(tokens) - prompt.held_blocks)
            if needed > kv.free_blocks:
                # The last that runs must be able to go on: before it, contexts that wait for their tasks give way.
                if len(self.running) > 1 or not kv.let_go_oldest():
                    self._preempt(next(reversed(self.running)))
            elif plan.admitted or self.running or not self.waiting or not kv.let_go_oldest():
                return plan

    def _heads(self) -> Iterator[Prompt]:
        """The queue from its head, each prompt as the KV cache would serve it now."""
        for prompt in self.waiting:
            if self.kv.prefix_caching and prompt.prompt_left:
                self.kv.match(prompt)
            yield prompt

    def _admit(self, prompt: Prompt, now: float) -> None:
        if isnan(prompt.started_s):  # else it was preempted, and has been served before
            prompt.started_s = now
        prompt.held_blocks = 0
        if 0 < prompt.prompt_left < prompt.prefill_tokens:  # it found part of its prompt in the cache
            self._outstanding_tokens -= prompt.prefill_tokens - prompt.prompt_left
            self.kv.admit(prompt)
        self.running[prompt] = None
        self.prefilling.append(prompt)

    def _begin_elsewhere_prefilled(self, chunks: tuple[int, ...]) -> tuple[int, ...]:
        """Prompts whose KV cache came over a link decode from this step on; returns the chunks of the others."""
        still = [(p, chunk) for p, chunk in zip(self.prefilling, chunks, strict=True) if p.prompt_left]
        for prompt in self.prefilling:
            if not prompt.prompt_left:
                self.kv.grow(prompt, prompt.prefill_tokens)
                self._outstanding_tokens -= prompt.prefill_tokens
                self._begin_decoding(prompt)
        self.prefilling = [p for p, _ in still]
        return tuple(chunk for _, chunk in still)

    def _shape_of(self, chunks: tuple[int, ...]) -> StepShape:
        if not chunks:
            shape = StepShape(self._decodes, self._context_tokens)
            if self._windows:
                self._windows.fill_in(shape, self._step)
            return shape
        count = tokens = context = pairs = growth = window_pairs = 0
        for prompt, chunk in zip(self.prefilling, chunks, strict=True):
            if chunk:
                before = prompt.prefill_tokens - prompt.prompt_left
                count += 1
                tokens += chunk
                context += before + chunk
                pairs += chunk * before + chunk * (chunk + 1) // 2
                growth += chunk * chunk
                if self._windows:
                    window_pairs += self._windows.pairs(before, chunk)
        shape = StepShape(self._decodes, self._context_tokens, count, tokens, context, pairs, growth)
        if self._windows:
            self._windows.fill_in(shape, self._step)
            shape.window_pairs = window_pairs
        return shape

    def _affordable(self, run: Run) -> int:
        """How many of the planned steps the free blocks allow, at least one."""
        kv, size, steps = self.kv, self.kv.block_tokens, run.steps
        free = kv.free_blocks
        if run.chunks:
            for prompt, chunk in zip(self.prefilling, run.chunks, strict=True):
                tokens = prompt.prefill_tokens - prompt.prompt_left + chunk * steps
                lacking = -(-tokens // size) - prompt.held_blocks
                free -= lacking if lacking > 0 else 0
            return steps if free >= (steps // size + 1) * self._decodes else 1
        if free >= (steps // size + 1) * self._decodes:
            return steps
        affordable = free // self._decodes * size  # in `size` steps everybody needs one block
        free -= free // self._decodes * self._decodes
        while affordable < steps and free >= (due := self._due[(self._step + affordable) % size]):
            free -= due
            affordable += 1
        return affordable

    def _go_idle(self) -> None:
        # Only blocks that are kept until they have arrived elsewhere make anybody wait now; let_go starts it again.
        kept = self.kv.free_blocks < self.kv.capacity_blocks
        assert kept or not self.waiting, f"replica {self.index} has {len(self.waiting)} waiting and nothing to do"
        self._run = None
        self._shares, self._step = self._no_shares(), 0  # nobody holds a mark: start afresh, lest rounding grow
        self._due_step = 0
        self._finishing.clear()
        if self._windows:
            self._windows.clear()
        self.host.change(-self.spec.host_cores)
        self._rest()

    # ---- boundaries

    def _no_shares(self) -> Shares:
        return Shares(self.spec.idle_w, self.spec.host_cores * self.host.core_idle_w)

    def _await_boundary(self, run: Run) -> None:
        self._version += 1
        steps = run.taken + 1 if self.executor.stepwise else run.steps
        self.executor.steps(self, run.end_s(steps), partial(self._on_boundary, self._version, run, steps))

    def _cut(self) -> None:
        """End the segment at the first boundary after now."""
        run = self._run
        if run is None:
            return
        steps = run.passed(self.env.now) + 1
        if steps < run.steps:
            run.steps = steps
            if not self.executor.stepwise:
                self._await_boundary(run)

    def _on_boundary(self, version: int, run: Run, steps: int, event: Event) -> None:
        if version != self._version:
            return  # the run was cut short
        self._book(run, steps)
        if steps < run.steps:
            self._await_boundary(run)
            return
        if run.chunks:
            self._end_chunks(run)
        self._end_answers()
        if self._leaving:
            self._end_given_up()
        self._plan()

    def _book(self, run: Run, upto: int, end_s: float | None = None) -> None:
        """Book the run's steps up to `upto`, which ended now or at end_s: shares, the log's row, tokens, blocks."""
        segment, shape, first = run.segment, run.shape, run.taken
        now = self.env.now if end_s is None else end_s
        steps, decodes, start_s = upto - first, shape.decodes, run.start_s
        seconds, joules, chunk_context_tokens = segment.seconds, segment.joules, shape.chunk_context_tokens
        if first:
            start_s = run.end_s(first)
            seconds += first * segment.seconds_growth
            joules += first * segment.joules_growth
            chunk_context_tokens += first * shape.chunk_tokens
        host_j, cores = self.host.joules_per_core(), self.spec.host_cores
        host_dynamic_j, self._host_mark_j = cores * (host_j - self._host_mark_j), host_j
        self._shares.add(run, upto, now - start_s, (self._step, self._context_tokens), host_dynamic_j)
        self.log.steps.append((
            self.index, start_s, now, steps, decodes, self._context_tokens, shape.chunk_tokens, chunk_context_tokens,
            seconds, segment.seconds_growth, joules, segment.joules_growth,
        ))  # fmt: skip
        self._context_tokens += steps * decodes
        self._outstanding_tokens -= steps * run.step_tokens
        self._step += steps
        run.taken = upto
        if decodes:
            self._take_blocks_before(self._step)

    def _take_due_blocks(self) -> None:
        """Bring the KV cache up to the last boundary, where a view needs it between bookings."""
        if self._decodes and self._run:
            self._take_blocks_before(self._step + self._run.passed(self.env.now) - self._run.taken)

    def _take_blocks_before(self, step: int) -> None:
        """Take the blocks that the decoding sequences needed in their steps before this one."""
        size, due, steps = self.kv.block_tokens, self._due, step - self._due_step
        cycles = steps // size
        needed = cycles * self._decodes
        first = self._due_step % size
        last = first + steps - cycles * size
        needed += sum(due[first:last])
        if last > size:
            needed += sum(due[: last - size])
        self._due_step = step
        if needed:
            self.kv.take(needed)

    def _end_chunks(self, run: Run) -> None:
        """Book the run's chunks; prompts that are complete have their next token and begin to decode."""
        unfinished = []
        for prompt, chunk in zip(self.prefilling, run.chunks, strict=True):
            if chunk:
                prompt.prompt_left -= chunk * run.steps
                self._shares.charge_chunk(prompt, chunk, run.marks)
            if prompt.prompt_left:
                unfinished.append(prompt)
                continue
            if not prompt.generated_tokens:
                prompt.first_token_s = self.env.now
            prompt.generated_tokens += 1
            self._outstanding_tokens -= 1
            if prompt.prefix and self.kv.prefix_caching:
                self.kv.publish(prompt)
            self._begin_decoding(prompt)
        self.prefilling = unfinished

    def _begin_decoding(self, prompt: Prompt) -> None:
        prompt.decoding = True
        prompt.first_step = self._step
        prompt.finish_step = self._step + prompt.output_tokens - prompt.generated_tokens
        prompt.marks = self._shares.sums
        if not self._decodes:
            self._due_step = self._step
        self._decodes += 1
        self._due[(self._step - prompt.prefill_tokens) % self.kv.block_tokens] += 1
        self._context_tokens += prompt.prefill_tokens + 1
        prompt.entry = next(self._entries)
        heappush(self._finishing, (prompt.finish_step, prompt.task, prompt.entry, prompt))
        if self._windows:
            self._windows.begin(prompt, self._step)

    def _first_finish(self) -> int:
        """The step after which the first of the decoding sequences finishes."""
        finishing = self._finishing
        while finishing[0][2] != finishing[0][3].entry:
            heappop(finishing)  # it was preempted or given up
        return finishing[0][0]

    def _end_answers(self) -> None:
        """Sequences that have their whole answer leave the batch."""
        finishing, step = self._finishing, self._step
        while self._decodes and finishing[0][0] <= step:
            _, _, entry, prompt = heappop(finishing)
            if entry != prompt.entry:
                continue  # it was preempted or given up
            self._stop_decoding(prompt)
            self._outstanding_tokens -= prompt.max_output_tokens - prompt.output_tokens
            self._leave(prompt)

    def _end_given_up(self) -> None:
        """Sequences whose clients are gone leave the batch, unless they finished at this very boundary."""
        for prompt in self._leaving:
            if prompt in self.running:
                if prompt.decoding:
                    self._stop_decoding(prompt)
                else:
                    self.prefilling.remove(prompt)
                self._outstanding_tokens -= prompt.prompt_left + prompt.max_output_tokens - prompt.generated_tokens
                self._leave(prompt)
        self._leaving.clear()

    def _stop_decoding(self, prompt: Prompt) -> None:
        """Take a sequence out of the decoding batch, charged for its part of it."""
        self._shares.charge_decoding(prompt)
        if self._windows:
            self._windows.end(prompt, self._step)
        steps = self._step - prompt.first_step
        prompt.generated_tokens += steps
        prompt.decoding, prompt.entry = False, 0
        self._decodes -= 1
        self._due[(prompt.first_step - prompt.prefill_tokens) % self.kv.block_tokens] -= 1
        self._context_tokens -= prompt.prefill_tokens + 1 + steps

    def _leave(self, prompt: Prompt) -> None:
        del self.running[prompt]
        if not prompt.keeps_kv or prompt.outcome:
            self.kv.release(prompt, self._tokens_held(prompt))
        if self._gaps and not prompt.outcome and not isnan(prompt.expected_gap_s):
            self._gaps.begin(prompt, self.spec.costs, self._context_tokens, self.spec.idle_w)
        self._finish(prompt)

    def _tokens_held(self, prompt: Prompt) -> int:
        """Tokens whose keys and values are computed. The last token generated has not been through the model."""
        if prompt.prompt_left:
            return prompt.prefill_tokens - prompt.prompt_left
        return prompt.input_tokens + prompt.generated_tokens - 1

    def _finish(self, prompt: Prompt) -> None:
        prompt.served_s = now = self.env.now
        if isnan(prompt.started_s):
            prompt.started_s = now  # given up while it waited
        self.env.trigger_at(prompt.done, now, TASK_GOES_ON + prompt.task)

    def _preempt(self, prompt: Prompt) -> None:
        """The newest sequence gives its blocks back and starts again, first in the queue, with what it had generated."""
        if prompt.decoding:
            self._stop_decoding(prompt)
        else:
            self.prefilling.remove(prompt)
        del self.running[prompt]
        self.kv.release(prompt, self._tokens_held(prompt))
        computed = prompt.prefill_tokens - prompt.prompt_left
        self._outstanding_tokens -= prompt.prompt_left
        prompt.prefill_tokens = prompt.prompt_left = prompt.input_tokens + prompt.generated_tokens
        prompt.brought_tokens = 0
        self._outstanding_tokens += prompt.prefill_tokens
        prompt.rank = -inf  # nobody goes before it
        self.waiting.appendleft(prompt)
        self.preempted += 1
        self.log.preemptions.append((self.index, self.env.now, prompt.task, computed))
