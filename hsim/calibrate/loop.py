"""What the live loop itself takes: hsim's engine on a real clock drives calibrate's workers as it does those of live runs."""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from simpy.events import Event

from hsim.backends.worker import Worker, shared_cores
from hsim.calibrate.agenda import HAND_OVER, JOB, LOOP_INPUT_TOKENS, Served
from hsim.calibrate.work import Reading
from hsim.costs.cpu import HostPower
from hsim.costs.shapes import Segment, StepShape
from hsim.description.system import FilledPool
from hsim.drivers.carried import CarriedLink
from hsim.drivers.live import Crew, LiveEnvironment, Record, WorkersDo, services
from hsim.engine.cores import Cores, Host
from hsim.engine.environment import Living
from hsim.engine.life import OperationTime, Pipeline, run_tasks
from hsim.engine.pool import Pool
from hsim.engine.replica import Replica, ReplicaSpec
from hsim.engine.visits import Job, Prompt
from hsim.errors import BackendError
from hsim.log import Log, Stage
from hsim.policies.batching import decode_first
from hsim.policies.routing import round_robin
from hsim.workload.tasks import Round, Task, ToolCall

TASKS, ROUNDS = 6, 2  # tasks at least; two for each of many users
THINK_S = 0.02  # before each task of one user, of many less: workers rest now and then, as those of servers do
UNLIKE = 1 / 3  # by how much answers differ from their mean


class LoopStep(NamedTuple):
    """A step in the loop: its sequences, the prompt tokens among them, its seconds, and those since the one before it ended
    (nan where it did not follow at once).
    """

    decodes: int
    chunk_tokens: int
    seconds: float
    gap_s: float


@dataclass(frozen=True)
class LoopTimes:
    """What happened in a loop of so many users: its steps, and of each job its seconds beyond its worker's own."""

    users: int
    steps: list[LoopStep]
    hand_over_s: list[float]

    def reading(self, role: str) -> Reading:
        """The mean over all jobs, or over the decode steps that had a sequence of every user."""
        seconds = self.hand_over_s if role == HAND_OVER else self._between_s()
        if not seconds:
            return Reading(failure="no step had a sequence of every user")
        low, high = np.quantile(seconds, (0.25, 0.75))
        return Reading(float(np.mean(seconds)), float(high - low), len(seconds))

    def _between_s(self) -> list[float]:
        decoding = (step for step in self.steps if (step.decodes, step.chunk_tokens) == (self.users, 0))
        return [step.gap_s for step in decoding if not math.isnan(step.gap_s)]


class _Unforetold:
    """StepCosts of steps that are carried out: nobody waits for what is modelled, it need only be a time."""

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts."""
        return Segment(1.0, 0.0, 0.0, 0.0, 0.0, math.inf)


def drive(decoder: Worker, core: Worker, served: Served, users: int, output_tokens: int, job_units: int) -> LoopTimes:
    """Let so many users ask for a job and an answer, again and again. Raises BackendError where any work fails."""
    env, log, crew = LiveEnvironment(), Log(), Crew()
    crew.decoders[0], crew.cores[0] = decoder, [core]
    executor = WorkersDo(env, crew)
    core.call((JOB, 1))  # its first makes its weights
    try:
        with _pinned((decoder, core)):
            run_tasks(env, log, _pipeline(env, log, executor, served, job_units), _tasks(users, output_tokens))
    finally:
        crew.close()  # whatever it started in place of one that died
    if executor.record.failures:
        raise BackendError("the live loop", "; ".join(executor.record.failures))
    return _times(log, executor.record, users)


def _times(log: Log, record: Record, users: int) -> LoopTimes:
    served_s, jobs = services(log), zip(*record.jobs.arrays().values(), strict=True)
    handed_s = [served_s[task, number, stage] - seconds for task, number, stage, seconds, _ in jobs]
    steps = (log.steps.column(name) for name in ("decodes", "chunk_tokens"))
    timed = (record.steps.column(name) for name in ("seconds", "gap_s"))
    return LoopTimes(users, [LoopStep(*step) for step in zip(*steps, *timed, strict=True)], handed_s)


def carry(courier: Worker, n_bytes: float, messages: int, times: int) -> list[float]:
    """Seconds until the last of so many messages, asked for at once, has come over a courier's link; so many times."""
    env, log, took_s = LiveEnvironment(), Log(), list[float]()
    link = CarriedLink(env, log, 0, courier)

    def ask() -> Generator[Event, None, None]:
        for _ in range(times):
            yield env.at(env.now + THINK_S, 0)
            start_s = env.now
            *_, last = [link.transfer(0, n_bytes) for _ in range(messages)]
            yield last
            took_s.append(env.now - start_s)

    Living(ask())
    env.run_out()
    return took_s


@contextlib.contextmanager
def _pinned(workers: Sequence[Worker]) -> Iterator[None]:
    """Each on the cores that a live run would give it."""
    for worker, cores in zip(workers, shared_cores(len(workers)), strict=True):
        os.sched_setaffinity(worker.process.pid or 0, cores)
    try:
        yield
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):  # it died
                os.sched_setaffinity(worker.process.pid or 0, os.sched_getaffinity(0))


def _tasks(users: int, output_tokens: int) -> list[Task]:
    """Tasks whose answers differ by up to a third, so that at nearly all times somebody's prompt comes among the others."""
    draw = random.Random(users)

    def turn() -> Round:
        tokens = round(output_tokens * draw.uniform(1 - UNLIKE, 1 + UNLIKE))
        return Round(ToolCall(JOB, 0.0), LOOP_INPUT_TOKENS, tokens)

    most, think_s = math.ceil(output_tokens * (1 + UNLIKE)), THINK_S / users
    return [
        Task(i, 0.0, "loop", 0, most, tuple(turn() for _ in range(ROUNDS)), user=i % users, think_s=think_s)
        for i in range(max(TASKS, 2 * users))
    ]


def _pipeline(env: LiveEnvironment, log: Log, executor: WorkersDo, served: Served, job_units: int) -> Pipeline:
    """One decoder and one core, as a live run has them."""
    host = Host(env, log, 0, HostPower(cores=2, idle_w=0.0, span_w=0.0, exponent=1.0))
    pool = FilledPool(
        runs_on="here.gpu", precision=served.precision, replicas=1, max_num_seqs=served.slots,
        max_num_batched_tokens=served.max_num_batched_tokens, gpu_memory_utilization=0.5, block_tokens=16,
        prefix_caching=False,
    )  # fmt: skip
    blocks = served.slots * served.max_context_tokens // pool.block_tokens
    spec = ReplicaSpec(pool, _Unforetold(), decode_first, blocks, idle_w=0.0, host_cores=1)
    return Pipeline(
        pools={
            Stage.TOOL: Pool[Job]("cores", [Cores(env, host, 1, executor)], round_robin),
            Stage.GENERATE: Pool[Prompt]("decoders", [Replica(env, log, 0, spec, host, executor)], round_robin),
        },
        links={},
        understand={},
        tools={JOB: OperationTime(JOB, lambda units: 1.0, 0.0)},
        tool_units={JOB: job_units},
        bytes_per_message=0.0,
        bytes_per_token=0.0,
        kv_bytes_per_token=0.0,
        prefix_caching=False,
    )
