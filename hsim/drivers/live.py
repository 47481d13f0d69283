"""Live runs: the same engine on a real clock, its work done by worker processes instead of being waited for."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from simpy.core import EmptySchedule
from simpy.events import Event

from hsim.backends.endpoint import Line
from hsim.backends.hosts import DecoderSpec, StepItem, ToolSpec
from hsim.backends.hosts import Host as Hosted
from hsim.backends.meters import Meter, Unavailable, meters_at_hand
from hsim.backends.tools import OPERATIONS
from hsim.backends.worker import DECODER_SPIN_S, Worker, WorkerSettings, shared_cores
from hsim.backends.worker import Done as Answer
from hsim.description.hardware import OperationCode
from hsim.drivers.carried import Carriers, check_carried
from hsim.drivers.clocks import Clock, WallClock
from hsim.drivers.endpoint import Remote, RemoteSpec, Sent, check_remote
from hsim.drivers.prepared import Prepared
from hsim.drivers.simulated import build
from hsim.engine.cores import Host
from hsim.engine.environment import EngineEnvironment
from hsim.engine.executor import Done, ModelledTime
from hsim.engine.life import run_tasks
from hsim.engine.replica import Replica
from hsim.engine.visits import Job, Prompt
from hsim.errors import BackendError, DescriptionError
from hsim.log import Log, Outcome, Table

WARM_UP_STEPS = 8
LEAST_CONTEXT = 256  # tokens of each slot, whatever the tasks need: room to warm up and to take the machine's pace
MOST_DEATHS = 3  # of one worker in a run: more are no accident


@dataclass(frozen=True)
class _Awaited:
    """An answer that is to come: how it is fetched, and when its worker will have been silent for too long."""

    worker: Worker | Line
    fetch: Callable[[], Any]
    event: Event
    timeout_s: float
    deadline_s: float


class LiveEnvironment(EngineEnvironment):
    """A SimPy environment on a real clock: events happen when they are due, and answers of workers when they come."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or WallClock()
        self._awaited: dict[Connection, _Awaited] = {}
        super().__init__()

    @property
    def now(self) -> float:  # type: ignore[override]
        """Seconds since the run began."""
        return self.clock.now_s()

    def run_out(self) -> None:
        """See EngineEnvironment."""
        self.run()

    def submit(self, worker: Worker, request: Any, timeout_s: float | None = None) -> Event:
        """Ask a worker. The event happens when it has answered: its value is a Done, or the BackendError that came of it.

        A worker that is silent for timeout_s (its settings' where that is None) is killed.
        """
        event = self.event()
        try:
            worker.send(request)
        except BackendError as error:
            event.succeed(error)
        else:
            self._await(worker, worker.answer, event, worker.patience_s(timeout_s))
        return event

    def ready(self, worker: Worker) -> Event:
        """The event of a started worker being ready; its value is its notes, or the BackendError that came of it."""
        event = self.event()
        self._await(worker, worker.ready, event, worker.settings.start_timeout_s)
        return event

    def ask(self, line: Line, request: tuple[str, int]) -> Event:
        """Ask an endpoint; the event's value is a Done. The endpoint's own timeouts end what is silent."""
        event = self.event()
        line.send(request)
        self._await(line, line.answer, event, math.inf)
        return event

    def _await(self, worker: Worker | Line, fetch: Callable[[], Any], event: Event, timeout_s: float) -> None:
        self._awaited[worker.connection] = _Awaited(worker, fetch, event, timeout_s, self.now + timeout_s)

    def step(self) -> None:
        """Process the next event once it is due, taking answers as they come."""
        self._take_answers(0.0)
        while self.peek() > self.now:
            if math.isinf(self.peek()) and not self._awaited:
                raise EmptySchedule
            self._take_answers(min(self.peek(), self._first_deadline_s()))
            for silent in [one for one in self._awaited.values() if one.deadline_s <= self.now]:
                silent.worker.end_silent(
                    silent.timeout_s
                )  # its connection is at its end then, and is taken as an answer
        self.take_next()

    def _first_deadline_s(self) -> float:
        return min((one.deadline_s for one in self._awaited.values()), default=math.inf)

    def _take_answers(self, until_s: float) -> None:
        if not self._awaited and until_s <= self.now:
            return
        for connection in self.clock.wait(until_s, list(self._awaited)):
            awaited = self._awaited.pop(connection)
            try:
                value = awaited.fetch()
            except BackendError as error:
                value = error
            awaited.event.succeed(value)


class Crew:
    """The worker processes of a scenario: decoders by replica, core workers by host. `close` ends them."""

    def __init__(self) -> None:
        self.decoders: dict[int, Worker] = {}
        self.cores: dict[int, list[Worker]] = {}
        self._started: list[Worker] = []

    def start(self, host: Hosted, settings: WorkerSettings) -> Worker:
        """Start a worker; it is not ready yet."""
        worker = Worker(host, settings)
        self._started.append(worker)  # first, so that whatever happens it is ended
        worker.start()
        return worker

    def close(self) -> None:
        """End all."""
        for worker in self._started:
            worker.close()


@dataclass
class Record:
    """What workers did in a run, as they timed it themselves, and what went wrong, by how often.

    `steps` has a row for each of log.steps of live runs, in the same order: wall and CPU seconds of the worker, and the
    seconds since its last step ended (what passes between two steps, where one follows at once).
    """

    steps: Table = field(default_factory=lambda: Table("seconds", "cpu_s", "gap_s"))
    jobs: Table = field(default_factory=lambda: Table("task", "round", "stage", "seconds", "cpu_s"))
    failures: Counter[str] = field(default_factory=Counter)


class WorkersDo:
    """The executor of live runs: decoders take the replicas' steps, core workers the jobs, one process each.

    Work that fails takes its task with it (a step that fails, all tasks of its batch), and the run goes on; a worker
    that died or was silent for too long is started anew. Work for it waits meanwhile.
    """

    stepwise, real = True, True

    def __init__(self, env: LiveEnvironment, crew: Crew) -> None:
        self.env, self.crew, self.record = env, crew, Record()
        self._free = {host: list(workers) for host, workers in crew.cores.items()}
        self._held: dict[int, deque[Callable[[Worker], None]]] = {host: deque() for host in crew.cores}
        self._slots: dict[int, dict[Prompt, int]] = {index: {} for index in crew.decoders}
        self._ended_s: dict[int, float] = {}
        self._reviving: dict[int, Event] = {}
        self._deaths: Counter[str] = Counter()

    def job(self, job: Job, seconds: float, host: Host, done: Done) -> None:
        """See Executor."""
        begin = partial(self._begin, job, host.index, done)
        if self._free[host.index]:
            begin(self._free[host.index].pop())
        else:
            self._held[host.index].append(begin)  # a worker is being started anew

    def _begin(self, job: Job, host: int, done: Done, worker: Worker) -> None:
        def finish(event: Event) -> None:
            answer: Answer | BackendError = _value(event)
            if isinstance(answer, BackendError):
                job.outcome = Outcome.FAILED
                self.record.failures[f"{job.operation}: {answer.problem}"] += 1
            else:
                row = (job.task, job.round, job.stage, answer.end_s - answer.start_s, answer.cpu_s)
                self.record.jobs.append(row)
            self._release(worker, host)
            done(event)

        limit_s = worker.host.limit_s(job.operation) if isinstance(worker.host, ToolSpec) else None
        _then(self.env.submit(worker, (job.operation, job.units), limit_s), finish)

    def _release(self, worker: Worker, host: int) -> None:
        if worker.dead:
            _then(self._revived(worker), lambda event: self._replace(worker, _value(event), host))
        elif self._held[host]:
            self._held[host].popleft()(worker)
        else:
            self._free[host].append(worker)

    def _replace(self, dead: Worker, new: Worker, host: int) -> None:
        """Put the new worker in its place for good: later runs, and looks at the pace, find it there too."""
        workers = self.crew.cores[host]
        workers[workers.index(dead)] = new
        self._release(new, host)

    def steps(self, replica: Replica, end_s: float, done: Done) -> None:
        """See Executor."""
        index = replica.index
        if index in self._reviving:
            _then(self._reviving[index], lambda event: self.steps(replica, end_s, done))
            return

        def finish(event: Event) -> None:
            answer: Answer | BackendError = _value(event)
            if isinstance(answer, BackendError):
                self.record.failures[f"decoder: {answer.problem}"] += len(replica.running)
                self.record.steps.append((math.nan, math.nan, math.nan))
                replica.fail()
                if self.crew.decoders[index].dead:
                    self._revive_decoder(index)
            else:
                gap_s = answer.start_s - self._ended_s.get(index, math.nan)
                self.record.steps.append((answer.end_s - answer.start_s, answer.cpu_s, gap_s))
                self._ended_s[index] = answer.end_s
            done(event)
            if not replica.running:
                self._ended_s.pop(index, None)  # idle: what passes until its next step is not between two steps

        _then(self.env.submit(self.crew.decoders[index], self._items(replica)), finish)

    def _items(self, replica: Replica) -> list[StepItem]:
        """The step under way as a plan for the decoder's slots."""
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
        return items

    def _revive_decoder(self, index: int) -> None:
        self._slots[index].clear()
        ready = self._reviving[index] = self._revived(self.crew.decoders[index])

        def use(event: Event) -> None:
            self.crew.decoders[index] = _value(event)
            del self._reviving[index]

        _then(ready, use)

    def _revived(self, dead: Worker) -> Event:
        """Start a dead worker's like; the event's value is the new worker. Raises BackendError where too many died."""
        name = dead.settings.name
        self._deaths[name] += 1
        if self._deaths[name] > MOST_DEATHS:
            raise BackendError(f"worker {name}", f"it died {self._deaths[name]} times", "the run was ended")
        worker = self.crew.start(dead.host, dead.settings)
        there = self.env.event()

        def use(event: Event) -> None:
            if isinstance(notes := _value(event), BackendError):
                raise notes
            there.succeed(worker)

        _then(self.env.ready(worker), use)
        return there


def _then(event: Event, done: Callable[[Any], Any]) -> None:
    assert event.callbacks is not None
    event.callbacks.append(done)


def _value(event: Event) -> Any:
    return event.value


def services(log: Log) -> dict[tuple[float, float, float], float]:
    """Seconds of service by task, round and stage."""
    visits = log.visits.arrays()
    keys = zip(visits["task"], visits["round"], visits["stage"], strict=True)
    return dict(zip(keys, visits["served_s"] - visits["started_s"], strict=True))


@dataclass(frozen=True)
class MeteredJoules:
    """What one meter counted over a live run; None where it could not, and why."""

    meter: str
    boundary: str
    joules: float | None
    unavailable: str


@dataclass(frozen=True)
class LiveRun:
    """A live run's log and record, what its backends really were, and what the meters at hand counted.

    `stopped` says what ended it before all tasks had ended: Ctrl-C, or a worker that died again and again.
    """

    log: Log
    notes: tuple[str, ...]
    energy: tuple[MeteredJoules, ...]
    record: Record = field(default_factory=Record)
    stopped: str = ""


def sleep_through(prepared: Prepared, clock: Clock | None = None) -> Log:
    """Run every task live with a backend that sleeps for the modelled time, until absolute deadlines."""
    env, log = LiveEnvironment(clock), Log()
    run_tasks(env, log, build(env, log, prepared, ModelledTime(env, stepwise=True)), prepared.drawn.tasks)
    return log


def run_live(prepared: Prepared, device: str) -> LiveRun:
    """Run every task live on this machine, once: see Stand."""
    with Stand((prepared,), device) as stand:
        return stand.run(prepared)


class Stand:
    """Worker processes started and warm, on which the tasks of some prepared systems can be run again and again.

    The systems differ in their tasks alone. Decoders work on `device` (cpu, cuda:0), or visits to the model go to an
    endpoint; tools work on this machine's cores, people's own stages only if `allow_code`.
    Raises DescriptionError for a scenario that live runs cannot carry out, BackendError for a backend that cannot be
    opened.
    """

    def __init__(
        self, prepared: Sequence[Prepared], device: str, allow_code: bool = False, endpoint: RemoteSpec | None = None
    ) -> None:
        for one in prepared:
            _check_live(one, allow_code)
            check_carried(one)
            check_remote(one) if endpoint else _check_decoders(one)
        self.prepared, self.device, self.crew, self.endpoint = prepared, device, Crew(), endpoint
        self.notes: tuple[str, ...] = ()
        self.remote: Remote | None = None
        self.carriers: Carriers | None = None

    def __enter__(self) -> Stand:
        try:
            self.remote = Remote(self.endpoint) if self.endpoint else None
            self.notes = _start_workers(self.crew, self.prepared, None if self.remote else self.device)
            self.carriers = Carriers(self.prepared[0])
        except BaseException:  # Ctrl-C too
            self.close()
            raise
        self.notes += self.carriers.notes + (self.remote.notes if self.remote else ())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End workers and connections."""
        self.crew.close()
        for other in (self.remote, self.carriers):
            if other:
                other.close()

    def run(self, prepared: Prepared) -> LiveRun:
        """Run every task of one. Ctrl-C, or a worker that dies again and again, ends it early: `stopped` says so."""
        meters = meters_beside(self.endpoint)
        before = [meter.joules() for meter in meters]
        env, log, stopped = LiveEnvironment(), Log(), ""
        executor = WorkersDo(env, self.crew)
        sent = Sent(executor.record.failures)
        try:
            pipeline = build(env, log, prepared, executor)
            if self.carriers:
                pipeline = self.carriers.taken_over(env, log, pipeline, prepared)
            if self.remote:
                pipeline = self.remote.taken_over(env, log, pipeline, sent)
            run_tasks(env, log, pipeline, prepared.drawn.tasks)
        except KeyboardInterrupt:
            stopped = "Ctrl-C"
        except BackendError as error:
            stopped = str(error)
        energy = [_counted(meter, joules, meter.joules()) for meter, joules in zip(meters, before, strict=True)]
        for meter in meters:
            meter.close()
        return LiveRun(log, (*self.notes, *sent.notes), tuple(energy), executor.record, stopped)


def meters_beside(endpoint: RemoteSpec | None) -> list[Meter]:
    """The meters at hand, unless the model is served elsewhere: what this machine draws is not its energy."""
    if endpoint is None or endpoint.endpoint.is_local:
        return meters_at_hand()
    what = f"{endpoint.endpoint.where} is at another machine, whose meters are not at hand"
    return [Unavailable("accelerators", "accelerator board", what), Unavailable("CPU packages", "CPU package", what)]


def _counted(meter: Meter, before_j: float | None, after_j: float | None) -> MeteredJoules:
    joules = None if before_j is None or after_j is None else after_j - before_j
    return MeteredJoules(
        meter.name, meter.boundary, joules, "" if joules is not None else meter.unavailable_reason or ""
    )


def _check_live(prepared: Prepared, allow_code: bool) -> None:
    """Live runs do what one machine can: refuse the rest before anything starts."""
    system = prepared.system
    where = system.document.where
    for name in prepared.sleep:
        key = "sleep_after_s" if system.scenario.fleet[name].sleep_after_s is not None else ""
        at = where(("fleet", name, key) if key else ("fleet", name))
        raise DescriptionError(at, "a live run cannot switch servers off", "leave it out")
    for name, spec in prepared.replicas.items():
        if spec.pool.leaves:
            raise DescriptionError(
                where(("pools", name)), "a live run cannot scale or break replicas", "leave that out"
            )
    for name in system.scenario.stages.pools("understand"):
        if name in prepared.replicas:
            raise DescriptionError(
                where(("stages", "understand")), "live runs understand on cores", "name a pool of cores"
            )
    for name, pool in system.core_pools().items():
        if pool.max_batch > 1:
            at = where(("pools", name, "max_batch"))
            raise DescriptionError(at, "live core workers serve one job at a time", "use max_batch 1")

    for key in ("site_links", "keep"):
        if getattr(system.scenario, key):
            raise DescriptionError(where((key,)), "a live run is of one site and one model", "leave it out")
    for name, code in _codes(prepared).items():
        if not allow_code:
            what = f"operation {name!r} is code of your own ({code.file}), and live runs execute it"
            raise DescriptionError(where(("tools",)), what, "add --allow-code if you trust it")
    _check_sizes(prepared)


def _check_sizes(prepared: Prepared) -> None:
    """A worker prepares each operation once: of one whose calls are of all that was prepared, all must ask for as much."""
    first: dict[str, tuple[int, str]] = {}
    for operation, units, who in _asked(prepared):
        known = OPERATIONS.get(operation)
        there, other = first.setdefault(operation, (units, who))
        if known and known.whole and units != there:
            asked = f"{other} asks for {there:,} units of {operation} and {who} for {units:,}"
            what = f"{asked}, and a live run prepares it for one number of them"
            remedy = "give both the same units, or one of them another operation"
            raise DescriptionError(prepared.system.document.where(("tools",)), what, remedy)


def _check_decoders(prepared: Prepared) -> None:
    """What hsim's own decoder does not do."""
    where = prepared.system.document.where
    if prepared.system.scenario.stages.prefill:
        raise DescriptionError(
            where(("stages", "prefill")), "live runs cannot move KV cache between decoders", "leave it out"
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
        for key in ("kv_precision", "power_cap_w", "governor", "sparsity", "switch", "host_weight_bytes", "memory"):
            if getattr(spec.pool, key) is not None:
                at = where(("pools", name, key))
                raise DescriptionError(at, "hsim's own decoder does not set it", f"--set pools.{name}.{key}=null")


def _codes(prepared: Prepared) -> dict[str, OperationCode]:
    """The operations among those that tasks need which are people's own."""
    system, stages = prepared.system, prepared.system.scenario.stages
    costs = [(pool, cost) for pool in stages.pools("understand") for cost in prepared.understand.values()]
    costs += [(pool, cost) for pool in stages.pools("tool") for cost in prepared.tools.values()]
    found = {}
    for pool, cost in costs:
        if code := system.tier_of(pool).cpu.operations[cost.operation].code:
            found[cost.operation] = code
    return found


def _spin_s(kind: str, cores: tuple[int, ...], pinned: Sequence[tuple[int, ...]]) -> float:
    """How long a worker stays awake for its next step: a decoder does whose cores no other worker has."""
    sharers = sum(not set(cores).isdisjoint(others) for others in pinned)
    return DECODER_SPIN_S if kind == "decoder" and sharers == 1 and len(pinned) > 1 else 0.0


def _start_workers(crew: Crew, prepared: Sequence[Prepared], device: str | None) -> tuple[str, ...]:
    """Start, open and warm up all workers (decoders if there is a device); returns what they say of themselves."""
    plan = _planned_workers(prepared, device)
    pinned = shared_cores(len(plan)) if plan else []
    workers = [
        crew.start(host, WorkerSettings(f"{kind} {index}", threads=1, cores=cores, spin_s=_spin_s(kind, cores, pinned)))
        for (kind, index, host), cores in zip(plan, pinned, strict=True)
    ]
    notes: list[str] = []
    for (kind, index, host), worker in zip(plan, workers, strict=True):
        notes.extend(worker.ready())
        _warm_up(worker, host)
        if kind == "decoder":
            crew.decoders[index] = worker
        else:
            crew.cores.setdefault(index, []).append(worker)
    return tuple(dict.fromkeys(notes))


def _planned_workers(prepared: Sequence[Prepared], device: str | None) -> list[tuple[str, int, DecoderSpec | ToolSpec]]:
    first = prepared[0]
    system = first.system
    context = max(r.input_tokens + r.output_tokens for one in prepared for task in one.drawn.tasks for r in task.rounds)
    plan: list[tuple[str, int, DecoderSpec | ToolSpec]] = []
    if device is not None:
        for name, spec in first.replicas.items():
            decoder = _decoder(first, name, context, device)
            plan += [("decoder", len(plan) + i, decoder) for i in range(spec.pool.replicas)]
    sizes: dict[str, int] = {}
    for one in prepared:
        for operation, units in _sizes(one).items():
            sizes[operation] = max(sizes.get(operation, 1), units)
    offset = 0
    hosts = {}
    for name, tier in system.tiers.items():
        hosts[name] = range(offset, offset + tier.count)
        offset += tier.count
    for name, cores in first.cores.items():
        plan += [
            ("cores", host, ToolSpec(sizes, _codes(first)))
            for host in hosts[system.tier_of(name).name]
            for _ in range(cores)
        ]
    return plan


def _decoder(prepared: Prepared, name: str, context_tokens: int, device: str) -> DecoderSpec:
    """The decoder of an engine pool, with room for so much context in each slot."""
    pool, model = prepared.replicas[name].pool, prepared.system.model_of(name)
    dtype: Any = pool.precision  # a decoder that has no such precision says so when it is opened
    room = min(max(context_tokens, LEAST_CONTEXT), model.max_context_tokens)
    return DecoderSpec(model, pool.max_num_seqs, room, dtype, device)


def _asked(prepared: Prepared) -> Iterator[tuple[str, int, str]]:
    """The operations that the tasks need, how many units are asked of each, and by whom."""
    for task in prepared.drawn.tasks:
        if task.understand_tokens:
            operation = prepared.understand[task.class_name].operation
            yield operation, task.understand_tokens, f"class {task.class_name!r}"
    for name, cost in prepared.tools.items():
        yield cost.operation, math.ceil(prepared.system.tools[name].units), f"tool {name!r}"


def _sizes(prepared: Prepared) -> dict[str, int]:
    """The operations that the tasks need, and the most units that any asks for."""
    sizes: dict[str, int] = {}
    for operation, units, _ in _asked(prepared):
        sizes[operation] = max(sizes.get(operation, 1), units)
    return sizes


def _warm_up(worker: Worker, host: DecoderSpec | ToolSpec) -> None:
    """Do a little of everything before the clock starts: first calls allocate and load."""
    if isinstance(host, ToolSpec):
        for operation, size in host.sizes.items():
            worker.call((operation, size), host.limit_s(operation))
        return
    prompt = min(64, host.max_context_tokens - WARM_UP_STEPS)
    worker.call([StepItem(0, 0, prompt)])
    for k in range(WARM_UP_STEPS):
        worker.call([StepItem(0, prompt + k, 1)])
