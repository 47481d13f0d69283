"""Live runs: the same engine on a real clock, its work done by worker processes instead of being waited for."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import simpy
from simpy.core import EmptySchedule
from simpy.events import NORMAL, Event, EventPriority

from hsim.backends.hosts import DecoderSpec, StepItem, ToolSpec
from hsim.backends.meters import Meter, meters_at_hand
from hsim.backends.worker import Worker, WorkerSettings, shared_cores
from hsim.drivers.clocks import Clock, WallClock
from hsim.drivers.prepared import Prepared
from hsim.drivers.simulated import build
from hsim.engine.cores import Host
from hsim.engine.environment import EngineEnvironment
from hsim.engine.executor import Done, Executor, ModelledTime
from hsim.engine.life import run_tasks
from hsim.engine.replica import Replica
from hsim.engine.visits import Job, Prompt
from hsim.errors import DescriptionError
from hsim.log import Log

WARM_UP_STEPS = 8


class LiveEnvironment(EngineEnvironment):
    """A SimPy environment on a real clock: events happen when they are due, and answers of workers when they come."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or WallClock()
        self._awaited: dict[Connection, tuple[Worker, Event]] = {}
        super().__init__()

    @property
    def now(self) -> float:  # type: ignore[override]
        """Seconds since the run began."""
        return self.clock.now_s()

    def run_out(self) -> None:
        """See EngineEnvironment."""
        self.run()

    def schedule(self, event: Event, priority: EventPriority = NORMAL, delay: float = 0) -> None:
        """See simpy.Environment; delays count from the clock."""
        self._now = self.now
        super().schedule(event, priority, delay)

    def submit(self, worker: Worker, request: Any) -> Event:
        """Ask a worker; the event happens when its answer has come. What goes wrong in the worker stops the run."""
        done = self.event()
        worker.send(request)
        self._awaited[worker.connection] = (worker, done)
        return done

    def step(self) -> None:
        """Process the next event once it is due, taking answers as they come."""
        self._take_answers(0.0)
        while self.peek() > self.now:
            if math.isinf(self.peek()) and not self._awaited:
                raise EmptySchedule
            self._take_answers(self.peek())
        simpy.Environment.step(self)

    def _take_answers(self, until_s: float) -> None:
        if not self._awaited and until_s <= self.now:
            return
        for connection in self.clock.wait(until_s, list(self._awaited)):
            worker, done = self._awaited.pop(connection)
            done.succeed(worker.answer().value)


class WorkersDo:
    """The executor of live runs: decoders take the replicas' steps, core workers the jobs, one process each."""

    stepwise, real = True, True

    def __init__(self, env: LiveEnvironment, decoders: dict[int, Worker], cores: dict[int, list[Worker]]) -> None:
        self.env, self._decoders, self._free = env, decoders, cores
        self._slots: dict[int, dict[Prompt, int]] = {index: {} for index in decoders}

    def job(self, job: Job, seconds: float, host: Host, done: Done) -> None:
        """See Executor."""
        free = self._free[host.index]
        worker = free.pop()

        def finish(event: Event) -> None:
            free.append(worker)
            done(event)

        self._then(self.env.submit(worker, (job.operation, job.units)), finish)

    def steps(self, replica: Replica, end_s: float, done: Done) -> None:
        """See Executor."""
        batch = list(replica.batch())
        slots = self._slots[replica.index]
        present = {prompt for prompt, _, _ in batch} | set(replica.running)
        for gone in [prompt for prompt in slots if prompt not in present]:
            del slots[gone]
        unused = iter(sorted(set(range(len(present))) - set(slots.values())))
        items = []
        for prompt, start, tokens in batch:
            if prompt not in slots:
                slots[prompt] = next(unused)
            items.append(StepItem(slots[prompt], start, tokens))
        self._then(self.env.submit(self._decoders[replica.index], items), done)

    @staticmethod
    def _then(event: Event, done: Done) -> None:
        assert event.callbacks is not None
        event.callbacks.append(done)


@dataclass(frozen=True)
class MeteredJoules:
    """What one meter counted over a live run; None where it could not, and why."""

    meter: str
    boundary: str
    joules: float | None
    unavailable: str


@dataclass(frozen=True)
class LiveRun:
    """A live run's log, what its backends really were, and what the meters at hand counted."""

    log: Log
    notes: tuple[str, ...]
    energy: tuple[MeteredJoules, ...]


def sleep_through(prepared: Prepared, clock: Clock | None = None) -> Log:
    """Run every task live with a backend that sleeps for the modelled time, until absolute deadlines."""
    env, log = LiveEnvironment(clock), Log()
    return _execute(env, log, prepared, ModelledTime(env, stepwise=True))


def run_live(prepared: Prepared, device: str) -> LiveRun:
    """Run every task live on this machine: decoders on a device (cpu, cuda:0), tools on its cores.

    Raises DescriptionError for a scenario that live runs cannot carry out, BackendError for a backend that fails.
    """
    _check_live(prepared)
    with ExitStack() as stack:
        decoders, cores, notes = _start_workers(stack, prepared, device)
        meters = [stack.enter_context(_Closing(meter)) for meter in meters_at_hand()]
        before = [meter.joules() for meter in meters]
        env, log = LiveEnvironment(), Log()
        _execute(env, log, prepared, WorkersDo(env, decoders, cores))
        after = [meter.joules() for meter in meters]
    energy = [_counted(*read) for read in zip(meters, before, after, strict=True)]
    return LiveRun(log, notes, tuple(energy))


def _execute(env: LiveEnvironment, log: Log, prepared: Prepared, executor: Executor) -> Log:
    pipeline = build(env, log, prepared, executor)
    run_tasks(env, log, pipeline, prepared.drawn.tasks)
    return log


class _Closing:
    """A meter as a context."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __enter__(self) -> Meter:
        return self._meter

    def __exit__(self, *_: object) -> None:
        self._meter.close()


def _counted(meter: Meter, before_j: float | None, after_j: float | None) -> MeteredJoules:
    joules = None if before_j is None or after_j is None else after_j - before_j
    return MeteredJoules(
        meter.name, meter.boundary, joules, "" if joules is not None else meter.unavailable_reason or ""
    )


def _check_live(prepared: Prepared) -> None:
    """Live runs do what one machine can: refuse the rest before anything starts."""
    system = prepared.system
    where = system.document.where
    if system.scenario.stages.prefill:
        raise DescriptionError(
            where(("stages", "prefill")), "live runs cannot move KV cache between decoders", "leave it out"
        )
    for name in prepared.sleep:
        raise DescriptionError(
            where(("fleet", name, "sleep_after_s")), "a live run cannot switch servers off", "leave it out"
        )
    for name, spec in prepared.replicas.items():
        if spec.pool.unload_after_s is not None:
            at = where(("pools", name, "unload_after_s"))
            raise DescriptionError(at, "hsim's own decoder keeps its model", "leave it out")
        if spec.pool.prefix_caching:
            at = where(("pools", name, "prefix_caching"))
            raise DescriptionError(
                at, "hsim's own decoder has no prefix cache", f"--set pools.{name}.prefix_caching=false"
            )
        if spec.pool.tensor_parallel > 1:
            at = where(("pools", name, "tensor_parallel"))
            raise DescriptionError(at, "hsim's own decoder runs on one device", "use tensor_parallel 1")
    for name, pool in system.core_pools().items():
        if pool.max_batch > 1:
            at = where(("pools", name, "max_batch"))
            raise DescriptionError(at, "live core workers serve one job at a time", "use max_batch 1")


def _start_workers(
    stack: ExitStack, prepared: Prepared, device: str
) -> tuple[dict[int, Worker], dict[int, list[Worker]], tuple[str, ...]]:
    """Start, open and warm up all workers: by replica, by host, and what they say of themselves."""
    plan = _planned_workers(prepared, device)
    pinned = shared_cores(len(plan))
    workers = []
    for (kind, index, host), cores in zip(plan, pinned, strict=True):
        worker = Worker(host, WorkerSettings(f"{kind} {index}", threads=1, cores=cores))
        stack.callback(worker.close)
        worker.start()
        workers.append(worker)
    decoders: dict[int, Worker] = {}
    core_workers: dict[int, list[Worker]] = {}
    notes: list[str] = []
    for (kind, index, host), worker in zip(plan, workers, strict=True):
        notes.extend(worker.ready())
        _warm_up(worker, host)
        if kind == "decoder":
            decoders[index] = worker
        else:
            core_workers.setdefault(index, []).append(worker)
    return decoders, core_workers, tuple(dict.fromkeys(notes))


def _planned_workers(prepared: Prepared, device: str) -> list[tuple[str, int, DecoderSpec | ToolSpec]]:
    system, tasks = prepared.system, prepared.drawn.tasks
    context = max(r.input_tokens + r.output_tokens for task in tasks for r in task.rounds)
    plan: list[tuple[str, int, DecoderSpec | ToolSpec]] = []
    for spec in prepared.replicas.values():
        dtype: Any = spec.pool.precision
        decoder = DecoderSpec(system.model, spec.pool.max_num_seqs, context, dtype, device)
        plan += [("decoder", len(plan) + i, decoder) for i in range(spec.pool.replicas)]
    sizes = _sizes(prepared)
    offset = 0
    hosts = {}
    for name, tier in system.tiers.items():
        hosts[name] = range(offset, offset + tier.count)
        offset += tier.count
    for name, cores in prepared.cores.items():
        plan += [("cores", host, ToolSpec(sizes)) for host in hosts[system.tier_of(name).name] for _ in range(cores)]
    return plan


def _sizes(prepared: Prepared) -> dict[str, int]:
    """The operations that the tasks need, and the most units that any asks for."""
    sizes: dict[str, int] = {}
    for task in prepared.drawn.tasks:
        if task.understand_tokens:
            operation = prepared.understand[task.class_name].operation
            sizes[operation] = max(sizes.get(operation, 1), task.understand_tokens)
    for name, cost in prepared.tools.items():
        units = math.ceil(prepared.system.tools[name].units)
        sizes[cost.operation] = max(sizes.get(cost.operation, 1), units)
    return sizes


def _warm_up(worker: Worker, host: DecoderSpec | ToolSpec) -> None:
    """Do a little of everything before the clock starts: first calls allocate and load."""
    if isinstance(host, ToolSpec):
        for operation, size in host.sizes.items():
            worker.call((operation, size))
        return
    prompt = min(64, host.max_context_tokens - WARM_UP_STEPS)
    worker.call([StepItem(0, 0, prompt)])
    for k in range(WARM_UP_STEPS):
        worker.call([StepItem(0, prompt + k, 1)])
