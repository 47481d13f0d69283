"""The life of a task, and the pipeline that it passes through."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from simpy.events import Event

from hsim.costs.cpu import Contention
from hsim.costs.wire import Wire
from hsim.description.elastic import Retries
from hsim.engine.balance import NOBODY, Alternatives
from hsim.engine.environment import TASK_ARRIVES, TASK_GOES_ON, EngineEnvironment, Living
from hsim.engine.keeping import Keeping
from hsim.engine.pool import Pool
from hsim.engine.replica import Replica
from hsim.engine.sites import Clients
from hsim.engine.visits import Job, Prompt
from hsim.log import Kept, Log, Outcome, Stage
from hsim.policies.balance import Admission, everybody
from hsim.workload.tasks import Round, Task

Send = Callable[[int, float], Event]
"""Moves bytes for a task: (task, bytes) -> the event of their arrival."""


@dataclass(frozen=True)
class OperationTime:
    """A CPU operation: its name, its seconds by units, the part of them that a batch pays once, and its own contention."""

    name: str
    seconds: Callable[[float], float]
    base_s: float
    contention: Contention = ()


@dataclass(frozen=True)
class Reader:
    """How an engine pool understands a class: its instruction, the limit of its answer, and whether it is an encoder."""

    instruction_tokens: int
    max_output_tokens: int
    encoder: bool


@dataclass(frozen=True)
class Balancing:
    """What is balanced: stages with several pools, the costs of operations on each of those, the rounds that a task of
    each class is expected to need from each on, and who is let in (with the objective that decides).
    """

    alternatives: Mapping[Stage, Alternatives]
    operations: Mapping[tuple[Stage, str], Mapping[str, OperationTime]]
    rounds_left: Mapping[str, Sequence[float]]
    admission: Admission = everybody
    objective_s: float = math.inf

    def left(self, task: Task, number: int) -> float:
        """Rounds that a task is expected to need from one on."""
        expected = self.rounds_left.get(task.class_name, (1.0,))
        return expected[min(number, len(expected) - 1)]


@dataclass(frozen=True)
class Pipeline:
    """Where each stage is served, what its operations cost, and what joins the places.

    With a pool for Stage.PREFILL, prompts are prefilled there and their KV cache moves on to the generate pool.
    `readers` are of the engine pools that understand, by pool and class. A `codec` writes and reads what passes over
    links, where that takes time: in the jobs of cores at either end, and while engines' servers hold it.
    `request_latency_s` passes, by pool, between a client and the queue, and holds nothing meanwhile.
    `expected_gap_s` is what each tool takes on average, where replicas treat contexts by that. `clients` stand at another
    site than some pools; they send from the place "". With `keeping` some tasks stay on another model.
    """

    pools: Mapping[Stage, Pool[Any]]
    links: Mapping[tuple[str, str], Send]
    understand: Mapping[str, OperationTime]
    tools: Mapping[str, OperationTime]
    tool_units: Mapping[str, float]
    bytes_per_message: float
    bytes_per_token: float
    kv_bytes_per_token: float
    prefix_caching: bool
    codec: Wire | None = None
    balance: Balancing | None = None
    readers: Mapping[str, Mapping[str, Reader]] = field(default_factory=dict)
    request_latency_s: Mapping[str, float] = field(default_factory=dict)
    expected_gap_s: Mapping[str, float] = field(default_factory=dict)
    retries: Retries = field(default_factory=Retries)
    clients: Clients | None = None
    keeping: Keeping | None = None


def run_tasks(env: EngineEnvironment, log: Log, pipeline: Pipeline, tasks: list[Task]) -> None:
    """Let every task live, and return when the last has ended."""
    by_user: dict[int, list[Task]] = {}
    for task in tasks:
        if task.user is not None:
            by_user.setdefault(task.user, []).append(task)
    if by_user:
        for own in by_user.values():
            Living(use(env, log, pipeline, own))
    else:
        arrive_in_time(env, log, pipeline, tasks)
    env.run_out()


def use(env: EngineEnvironment, log: Log, pipeline: Pipeline, tasks: list[Task]) -> Generator[Event, None, None]:
    """A user of a closed loop: think, ask, wait for the answer, think again."""
    env.lives += 1
    for task in tasks:
        yield env.at(env.now + task.think_s, task.id)
        yield from live(env, log, pipeline, task)
    env.lives -= 1


def arrive_in_time(env: EngineEnvironment, log: Log, pipeline: Pipeline, tasks: Iterable[Task]) -> None:
    """Each task begins at its arrival; only the next one stands in the agenda, and is taken when the one before begins."""
    waiting = iter(tasks)

    def arrive(task: Task) -> None:
        Living(live(env, log, pipeline, task))
        following = next(waiting, None)
        if following is not None:
            env.call_at(following.arrival_s, TASK_ARRIVES + following.id, lambda _: arrive(following))
        else:
            env.lives -= 1

    env.lives += 1  # who has yet to come
    first = next(waiting)
    env.call_at(first.arrival_s, TASK_ARRIVES + first.id, lambda _: arrive(first))


def live(  # noqa: PLR0912  # it reads from top to bottom, without a generator within it more than it must have
    env: EngineEnvironment, log: Log, pipeline: Pipeline, task: Task
) -> Generator[Event, None, None]:
    """A task's life: for each visit, move there, queue and be served, perhaps wait for something outside."""
    place, outcome, arrival_s = "", Outcome.SERVED, env.now
    deadline_s = arrival_s + task.timeout_s
    balance = pipeline.balance
    if balance and not balance.admission(pipeline.pools[_prompted(pipeline)].waited_s(), balance.objective_s):
        log.tasks.append((task.id, arrival_s, arrival_s, Outcome.SHED))
        return
    env.lives += 1
    visits = visits_of(env, pipeline, task)
    visit = next(visits, None)
    while visit is not None:
        pool = visit.asked or pipeline.pools[visit.stage]
        visit.ready_s = env.now
        if balance:
            visit.started, visit.rounds_left = visit.round > 0, balance.left(task, visit.round)
        if send := pipeline.links.get((place, pool.name)):
            yield from _sent(env, visit, send)
        if isinstance(visit, Prompt) and visit.source is not None:
            _let_go(pipeline, visit.source)
        elif latency_s := _latency_s(pipeline, task, visit, pool.name):
            yield env.at(env.now + latency_s, task.id)
        if visit.home >= 0 and (coming := _brought_back(pool, visit)):
            yield coming
        visit.queued_s = env.now
        if visit.remake and balance:
            visit, pool = yield from _served_by_any(env, pipeline, visit, deadline_s)
        elif env.now < deadline_s:
            yield _submitted(env, visit, pool, deadline_s)
            if isinstance(visit, Job) and visit.outside_wait_s and not visit.outcome:
                yield env.at(min(env.now + visit.outside_wait_s, deadline_s), task.id)
        else:
            outcome = Outcome.TIMED_OUT
            break
        visit.ended_s = env.now
        log.visits.append(visit.row())
        if visit.outcome is Outcome.LOST and (again := _again(env, pipeline, visit, deadline_s)):
            yield again
            continue
        place, outcome = pool.name, visit.outcome
        if outcome or env.now >= deadline_s:
            outcome = _reason(outcome, env.now >= deadline_s)
            break
        visit = next(visits, None)
    _abandon(pipeline, task, outcome)
    yield from _answered(pipeline, task, outcome, place)
    env.lives -= 1
    log.tasks.append((task.id, arrival_s, env.now, outcome))


def _again(env: EngineEnvironment, pipeline: Pipeline, visit: Job | Prompt, deadline_s: float) -> Event | None:
    """When a visit whose device broke down is sent again, as if nothing had been done; None where it is not."""
    if visit.lost == pipeline.retries.max_retries or env.now >= deadline_s:
        return None
    visit.begin_again()
    return env.at(env.now + pipeline.retries.after_s, visit.task)


def _reason(outcome: Outcome, late: bool) -> Outcome:
    """Why a task ends before its last round."""
    if outcome is Outcome.LOST and not late:
        return Outcome.FAILED
    return Outcome.TIMED_OUT if outcome in (Outcome.SERVED, Outcome.LOST) else outcome


def _latency_s(pipeline: Pipeline, task: Task, visit: Job | Prompt, pool: str) -> float:
    """Seconds between a client and a pool's queue, and for the first token's way back, in which nothing is held."""
    back_s = pipeline.clients.way_back_s(visit, pool, len(task.rounds)) if pipeline.clients else 0.0
    return pipeline.request_latency_s.get(pool, 0.0) + back_s


def _answered(pipeline: Pipeline, task: Task, outcome: Outcome, place: str) -> Iterator[Event]:
    """A task's answer goes where its client stands, unless there is none, or it is there already."""
    if pipeline.clients and not outcome:
        n_bytes = _payload(pipeline, task.rounds[-1].output_tokens)
        if answered := pipeline.clients.answered(task.id, place, n_bytes):
            yield answered


def _brought_back(pool: Pool[Any], prompt: Job | Prompt) -> Event | None:
    """The arrival of a prompt's context from memory, if it went there; if others can have it too, where the router says."""
    replica = pool.device(prompt.home)
    assert isinstance(replica, Replica)
    assert isinstance(prompt, Prompt)
    if replica.gone(prompt):
        replica = pool.chosen(prompt)
        assert isinstance(replica, Replica)
        prompt.home = replica.index
    return replica.bring_back(prompt)


def _abandon(pipeline: Pipeline, task: Task, outcome: Outcome) -> None:
    """Where a task has ended before its last round, nobody will come for its context."""
    for replica in pipeline.pools[Stage.GENERATE].devices if outcome and pipeline.expected_gap_s else ():
        assert isinstance(replica, Replica)
        replica.abandon(("task", task.id))


def _sent(env: EngineEnvironment, visit: Job | Prompt, send: Send) -> Generator[Event, None, None]:
    """What a visit needs is written, moved and read."""
    if visit.pack_s:
        yield env.at(env.now + visit.pack_s, visit.task)
    yield send(visit.task, visit.payload_bytes)
    if visit.unpack_s:
        yield env.at(env.now + visit.unpack_s, visit.task)


def _served_by_any(
    env: EngineEnvironment, pipeline: Pipeline, visit: Job | Prompt, deadline_s: float
) -> Generator[Event, None, tuple[Job | Prompt, Pool[Any]]]:
    """Be served by one of several pools: by whichever takes the visit, made anew for it and moved there."""
    assert pipeline.balance
    among, queued_s, ready_s = pipeline.balance.alternatives[visit.stage], visit.queued_s, visit.ready_s
    while True:
        pool = visit.asked
        among.arrived(pool)
        if env.now >= deadline_s:
            visit.outcome = Outcome.TIMED_OUT
            visit.pool, visit.device = pool.number, pool.devices[0].index
            visit.started_s = visit.served_s = env.now
            return visit, pool
        yield _submitted(env, visit, pool, deadline_s)
        among.changed()
        if visit.asked is pool:
            if isinstance(visit, Job) and visit.outside_wait_s and not visit.outcome:
                yield env.at(min(env.now + visit.outside_wait_s, deadline_s), visit.task)
            return visit, pool
        thief, remake = visit.asked, visit.remake
        assert remake
        moved: Any = remake(thief)
        moved.ready_s, moved.queued_s, moved.asked = ready_s, queued_s, thief
        moved.started, moved.rounds_left = visit.started, visit.rounds_left
        if send := pipeline.links.get((pool.name, thief.name)):
            yield send(visit.task, _payload(pipeline, visit.input_tokens))
        visit = moved


def _submitted(env: EngineEnvironment, visit: Job | Prompt, pool: Pool[Any], deadline_s: float) -> Event:
    """When a visit that joins a pool now has been served, or its client has given it up."""
    served = pool.submit(visit)
    if deadline_s < math.inf:
        env.call_at(deadline_s, TASK_GOES_ON + visit.task, partial(_give_up, visit, pool))
    return served


def _give_up(visit: Job | Prompt, pool: Pool[Any], event: Event) -> None:
    """At a task's deadline: its visit leaves, unless it has been served."""
    if not visit.done.triggered:
        pool.give_up(visit)


def _let_go(pipeline: Pipeline, prompt: Prompt) -> None:
    replica = pipeline.pools[Stage.PREFILL].device_of(prompt)
    assert isinstance(replica, Replica)
    replica.let_go(prompt)


def visits_of(env: EngineEnvironment, pipeline: Pipeline, task: Task) -> Iterator[Job | Prompt]:
    """The visits that a task makes, in order, each made when it is its turn."""
    carried_tokens, last, kept = task.understand_tokens, None, Kept.SENT
    if task.understand_tokens:
        visit = _shared(pipeline, Stage.UNDERSTAND, partial(_understanding, env, pipeline, task))
        if pipeline.codec and isinstance(visit, Job) and task.rounds:
            following = Stage.TOOL if task.rounds[0].call else _prompted(pipeline)
            visit.seconds += _encode_s(pipeline, Stage.UNDERSTAND, following, task.understand_tokens)
        yield visit
    for number, this in enumerate(task.rounds):
        if this.call:
            yield _shared(pipeline, Stage.TOOL, partial(_tool, env, pipeline, (task.id, number, this), carried_tokens))
        if pipeline.keeping:
            kept = pipeline.keeping.choose(task.id) if not number else kept
            if kept in (Kept.KEPT, Kept.ASKED_AGAIN):
                yield _at_the_edge(env, pipeline, (task, number, this), kept)
                carried_tokens = this.output_tokens
            if kept is Kept.KEPT:
                continue
            kept = Kept.SENT
        prompt = _prompt(env, pipeline, task, number, this)
        if pipeline.expected_gap_s:
            _mind_gaps(pipeline, task, prompt, last)
            last = prompt
        if Stage.PREFILL in pipeline.pools:
            yield from _handed_over(env, pipeline, prompt)
        else:
            yield prompt
        carried_tokens = this.output_tokens


def _mind_gaps(pipeline: Pipeline, task: Task, prompt: Prompt, last: Prompt | None) -> None:
    """A round goes where its context waits; and says how long the tool after it takes, if it is to leave one."""
    if last is not None and last.stays:
        prompt.home = last.device
    following = task.rounds[prompt.round + 1] if prompt.round + 1 < len(task.rounds) else None
    if following and following.shared_tokens:
        prompt.expected_gap_s = pipeline.expected_gap_s[following.call.tool] if following.call else 0.0


def _understanding(env: EngineEnvironment, pipeline: Pipeline, task: Task, pool: Pool[Any]) -> Job | Prompt:
    """The visit in which a pool understands a task: a job of its cores, or a prompt to its model."""
    tokens, readers = task.understand_tokens, pipeline.readers.get(pool.name)
    if readers is None:
        job = Job(task.id, 0, Stage.UNDERSTAND, tokens, Event(env))
        times = _operations(pipeline, Stage.UNDERSTAND, pool) or pipeline.understand
        _cost(job, times[task.class_name], tokens)
        job.payload_bytes = _payload(pipeline, tokens)
        return job
    reader = readers[task.class_name]
    prompt = Prompt(task.id, 0, Stage.UNDERSTAND, tokens + reader.instruction_tokens, Event(env))
    prompt.payload_bytes = _payload(pipeline, tokens)
    prompt.output_tokens = prompt.max_output_tokens = 1
    if not reader.encoder:
        prompt.output_tokens, prompt.max_output_tokens = task.understand_output_tokens, reader.max_output_tokens
        if reader.instruction_tokens and pipeline.prefix_caching:
            prompt.prefix = ((("instruction", task.class_name), reader.instruction_tokens),)
    return prompt


def _tool(
    env: EngineEnvironment, pipeline: Pipeline, turn: tuple[int, int, Round], got_tokens: int, pool: Pool[Any]
) -> Job:
    """The visit in which a pool carries out the tool call of a task's round: (task, its number, the round)."""
    task, number, this = turn
    assert this.call
    job = Job(task, number, Stage.TOOL, got_tokens, Event(env))
    times = _operations(pipeline, Stage.TOOL, pool) or pipeline.tools
    _cost(job, times[this.call.tool], pipeline.tool_units[this.call.tool])
    job.outside_wait_s = this.call.outside_wait_s
    job.payload_bytes = _payload(pipeline, got_tokens)
    if pipeline.codec:
        _coded(pipeline, job, got_tokens, this.input_tokens)
    return job


def _operations(pipeline: Pipeline, stage: Stage, pool: Pool[Any]) -> Mapping[str, OperationTime] | None:
    """What a stage's operations cost on a pool's cores, where it may have several pools."""
    return pipeline.balance.operations.get((stage, pool.name)) if pipeline.balance else None


V = TypeVar("V", Job, Job | Prompt)


def _shared(pipeline: Pipeline, stage: Stage, make: Callable[[Pool[Any]], V]) -> V:
    """A visit made for the pool that serves it; where there are several, for the one that is chosen now."""
    among = pipeline.balance.alternatives.get(stage) if pipeline.balance else None
    if among is None:
        return make(pipeline.pools[stage])
    pool = among.choose(NOBODY)
    visit = make(pool)
    visit.asked, visit.remake = pool, make
    return visit


def _cost(job: Job, time: OperationTime, units: float) -> None:
    job.operation, job.units, job.seconds, job.base_s = time.name, units, time.seconds(units), time.base_s
    job.contention = time.contention


def _prompted(pipeline: Pipeline) -> Stage:
    """The stage to which a prompt goes first."""
    return Stage.PREFILL if Stage.PREFILL in pipeline.pools else Stage.GENERATE


def _coded(pipeline: Pipeline, job: Job, got_tokens: int, sent_tokens: int) -> None:
    """A tool's core reads what has come over a link, and writes what goes on over one; an engine before it wrote it."""
    sender = Stage.GENERATE if job.round or Stage.UNDERSTAND not in pipeline.pools else Stage.UNDERSTAND
    codec, here = pipeline.codec, pipeline.pools[Stage.TOOL].name
    assert codec
    if got_tokens and (pipeline.pools[sender].name, here) in pipeline.links:
        job.seconds += codec.decode_s.of(got_tokens)
        if sender is Stage.GENERATE or pipeline.pools[sender].name in pipeline.readers:
            job.pack_s = codec.encode_s.of(got_tokens)
    job.seconds += _encode_s(pipeline, Stage.TOOL, _prompted(pipeline), sent_tokens)


def _encode_s(pipeline: Pipeline, sender: Stage, receiver: Stage, tokens: int) -> float:
    """Seconds in which a core writes so many tokens for a link; none where no link joins the two."""
    pools = pipeline.pools
    over_link = (pools[sender].name, pools[receiver].name) in pipeline.links
    return pipeline.codec.encode_s.of(tokens) if pipeline.codec and over_link else 0.0


def _payload(pipeline: Pipeline, tokens: int) -> float:
    return pipeline.bytes_per_message + pipeline.bytes_per_token * tokens


def _at_the_edge(env: EngineEnvironment, pipeline: Pipeline, turn: tuple[Task, int, Round], kept: Kept) -> Prompt:
    """A round's visit to the edge's model: (task, its number, the round)."""
    prompt = _prompt(env, pipeline, *turn)
    assert pipeline.keeping
    prompt.asked, prompt.discarded = pipeline.keeping.pool, kept is Kept.ASKED_AGAIN
    return prompt


def _prompt(env: EngineEnvironment, pipeline: Pipeline, task: Task, number: int, this: Round) -> Prompt:
    """A round's visit to a model that does all of it."""
    prompt = Prompt(task.id, number, Stage.GENERATE, this.input_tokens, Event(env))
    prompt.output_tokens, prompt.max_output_tokens = this.output_tokens, task.max_output_tokens
    prompt.payload_bytes = _payload(pipeline, this.input_tokens)
    if pipeline.codec:
        prompt.unpack_s = pipeline.codec.decode_s.of(this.input_tokens)
    if pipeline.prefix_caching:
        prompt.prefix = this.prefix or (((("task", task.id), this.shared_tokens),) if this.shared_tokens else ())
        prompt.context_key = None if this.prefix or len(task.rounds) == 1 else ("task", task.id)
    return prompt


def _handed_over(env: EngineEnvironment, pipeline: Pipeline, prompt: Prompt) -> Iterator[Prompt]:
    """The two visits of a prompt where prefill has a pool of its own: the second continues the first."""
    first = Prompt(prompt.task, prompt.round, Stage.PREFILL, prompt.input_tokens, Event(env))
    first.output_tokens = first.max_output_tokens = 1
    first.payload_bytes, first.prefix, first.context_key = prompt.payload_bytes, prompt.prefix, prompt.context_key
    first.unpack_s, prompt.unpack_s = prompt.unpack_s, 0.0
    first.keeps_kv = True
    yield first
    prompt.source, prompt.first_token_s = first, first.first_token_s
    prompt.prompt_left, prompt.generated_tokens = 0, 1
    prompt.prefix, prompt.context_key = (), None
    prompt.payload_bytes = pipeline.bytes_per_message + pipeline.kv_bytes_per_token * prompt.input_tokens
    if prompt.output_tokens > 1:
        yield prompt
    else:
        _let_go(pipeline, first)
