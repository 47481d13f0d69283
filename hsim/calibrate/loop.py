"""What the live loop itself takes: hsim's engine on a real clock drives calibrate's workers as it does those of live runs."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from simpy.events import Event

from hsim.backends.worker import Worker, shared_cores
from hsim.calibrate.agenda import JOB, Served
from hsim.costs.cpu import HostPower
from hsim.costs.shapes import Segment, StepShape
from hsim.description.system import FilledPool
from hsim.drivers.carried import CarriedLink
from hsim.drivers.live import Crew, LiveEnvironment, WorkersDo, services
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

JOB_UNITS = 50_000  # some milliseconds of a core
TASKS, ROUNDS = 16, 2
INPUT_TOKENS, OUTPUT_TOKENS = 32, 8
THINK_S = 0.02  # before each task: workers rest now and then, as those of servers do


@dataclass(frozen=True)
class LoopTimes:
    """Seconds from the end of each step to the start of the next; and of each job in the loop beyond its worker's own."""

    between_s: list[float]
    hand_over_s: list[float]


class _Unforetold:
    """StepCosts of steps that are carried out: nobody waits for what is modelled, it need only be a time."""

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts."""
        return Segment(1.0, 0.0, 0.0, 0.0, 0.0, math.inf)


def drive(decoder: Worker, core: Worker, served: Served, users: int) -> LoopTimes:
    """Let so many users ask for a job and an answer, again and again. Raises BackendError where any work fails."""
    env, log, crew = LiveEnvironment(), Log(), Crew()
    crew.decoders[0], crew.cores[0] = decoder, [core]
    executor = WorkersDo(env, crew)
    try:
        with _pinned((decoder, core)):
            run_tasks(env, log, _pipeline(env, log, executor, served), _tasks(users))
    finally:
        crew.close()  # whatever it started in place of one that died
    record = executor.record
    if record.failures:
        raise BackendError("the live loop", "; ".join(record.failures))
    served_s, jobs = services(log), zip(*record.jobs.arrays().values(), strict=True)
    handed_s = [served_s[task, number, stage] - seconds for task, number, stage, seconds, _ in jobs]
    return LoopTimes([gap_s for gap_s in record.steps.column("gap_s") if not math.isnan(gap_s)], handed_s)


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


def _tasks(users: int) -> list[Task]:
    rounds = (Round(ToolCall(JOB, 0.0), INPUT_TOKENS, OUTPUT_TOKENS),) * ROUNDS
    return [
        Task(i, 0.0, "loop", 0, OUTPUT_TOKENS, rounds, user=i % users, think_s=THINK_S)
        for i in range(max(TASKS, users))
    ]


def _pipeline(env: LiveEnvironment, log: Log, executor: WorkersDo, served: Served) -> Pipeline:
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
        tool_units={JOB: JOB_UNITS},
        bytes_per_message=0.0,
        bytes_per_token=0.0,
        kv_bytes_per_token=0.0,
        prefix_caching=False,
    )
