"""The life of a task, and the pipeline that it passes through."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from simpy.events import Event

from hsim.costs.wire import Wire
from hsim.engine.environment import TASK_ARRIVES, TASK_GOES_ON, EngineEnvironment, Living
from hsim.engine.pool import Pool
from hsim.engine.replica import Replica
from hsim.engine.visits import Job, Prompt
from hsim.log import Log, Outcome, Stage
from hsim.workload.tasks import Round, Task

Send = Callable[[int, float], Event]
"""Moves bytes for a task: (task, bytes) -> the event of their arrival."""


@dataclass(frozen=True)
class OperationTime:
    """A CPU operation: its name, its seconds by units, and the part of them that a batch pays once."""

    name: str
    seconds: Callable[[float], float]
    base_s: float


@dataclass(frozen=True)
class Reader:
    """How an engine pool understands a class: its instruction, the limit of its answer, and whether it is an encoder."""

    instruction_tokens: int
    max_output_tokens: int
    encoder: bool


@dataclass(frozen=True)
class Pipeline:
    """Where each stage is served, what its operations cost, and what joins the places.

    With a pool for Stage.PREFILL, prompts are prefilled there and their KV cache moves on to the generate pool.
    `readers` are of the engine pools that understand, by pool and class. A `codec` writes and reads what passes over
    links, where that takes time: in the jobs of cores at either end, and while engines' servers hold it.
    `request_latency_s` passes, by pool, between a client and the queue, and holds nothing meanwhile.
    `expected_gap_s` is what each tool takes on average, where replicas treat contexts by that.
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
    readers: Mapping[str, Mapping[str, Reader]] = field(default_factory=dict)
    request_latency_s: Mapping[str, float] = field(default_factory=dict)
    expected_gap_s: Mapping[str, float] = field(default_factory=dict)


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
    for task in tasks:
        yield env.at(env.now + task.think_s, task.id)
        yield from live(env, log, pipeline, task)


def arrive_in_time(env: EngineEnvironment, log: Log, pipeline: Pipeline, tasks: Iterable[Task]) -> None:
    """Each task begins at its arrival; only the next one stands in the agenda, and is taken when the one before begins."""
    waiting = iter(tasks)

    def arrive(task: Task) -> None:
        Living(live(env, log, pipeline, task))
        following = next(waiting, None)
        if following is not None:
            env.call_at(following.arrival_s, TASK_ARRIVES + following.id, lambda _: arrive(following))

    first = next(waiting)
    env.call_at(first.arrival_s, TASK_ARRIVES + first.id, lambda _: arrive(first))


def live(env: EngineEnvironment, log: Log, pipeline: Pipeline, task: Task) -> Generator[Event, None, None]:
    """A task's life: for each visit, move there, queue and be served, perhaps wait for something outside."""
    place, outcome, arrival_s = "", Outcome.SERVED, env.now
    deadline_s = arrival_s + task.timeout_s
    for visit in visits_of(env, pipeline, task):
        pool = pipeline.pools[visit.stage]
        visit.ready_s = env.now
        if send := pipeline.links.get((place, pool.name)):
            if visit.pack_s:
                yield env.at(env.now + visit.pack_s, task.id)
            yield send(task.id, visit.payload_bytes)
            if visit.unpack_s:
                yield env.at(env.now + visit.unpack_s, task.id)
        if isinstance(visit, Prompt) and visit.source is not None:
            _let_go(pipeline, visit.source)
        elif latency_s := pipeline.request_latency_s.get(pool.name):
            yield env.at(env.now + latency_s, task.id)
        if visit.home >= 0 and (coming := _brought_back(pool, visit)):
            yield coming
        visit.queued_s = env.now
        if env.now < deadline_s:
            served = pool.submit(visit)
            if deadline_s < math.inf:
                env.call_at(deadline_s, TASK_GOES_ON + task.id, partial(_give_up, visit, pool))
            yield served
            if isinstance(visit, Job) and visit.outside_wait_s and not visit.outcome:
                yield env.at(env.now + visit.outside_wait_s, task.id)
            visit.ended_s, place = env.now, pool.name
            log.visits.append(visit.row())
            outcome = visit.outcome
        if outcome or env.now >= deadline_s:
            outcome = outcome or Outcome.TIMED_OUT
            break
    if outcome and pipeline.expected_gap_s:
        _abandon(pipeline, task)
    log.tasks.append((task.id, arrival_s, env.now, outcome))


def _brought_back(pool: Pool[Any], prompt: Job | Prompt) -> Event | None:
    """The arrival of a prompt's context from host memory, if it went there."""
    replica = pool.device(prompt.home)
    assert isinstance(replica, Replica)
    assert isinstance(prompt, Prompt)
    return replica.bring_back(prompt)


def _abandon(pipeline: Pipeline, task: Task) -> None:
    """A task has ended before its last round: nobody will come for its context."""
    for replica in pipeline.pools[Stage.GENERATE].devices:
        assert isinstance(replica, Replica)
        replica.abandon(("task", task.id))


def _give_up(visit: Job | Prompt, pool: Pool[Any], event: Event) -> None:
    """At a task's deadline: its visit leaves, unless it has been served."""
    if not visit.done.triggered:
        pool.device_of(visit).give_up(visit)


def _let_go(pipeline: Pipeline, prompt: Prompt) -> None:
    replica = pipeline.pools[Stage.PREFILL].device_of(prompt)
    assert isinstance(replica, Replica)
    replica.let_go(prompt)


def visits_of(env: EngineEnvironment, pipeline: Pipeline, task: Task) -> Iterator[Job | Prompt]:
    """The visits that a task makes, in order, each made when it is its turn."""
    carried_tokens, last = task.understand_tokens, None
    if task.understand_tokens:
        visit = _understanding(env, pipeline, task, pipeline.pools[Stage.UNDERSTAND])
        if pipeline.codec and isinstance(visit, Job) and task.rounds:
            following = Stage.TOOL if task.rounds[0].call else _prompted(pipeline)
            visit.seconds += _encode_s(pipeline, Stage.UNDERSTAND, following, task.understand_tokens)
        yield visit
    for number, this in enumerate(task.rounds):
        if this.call:
            job = Job(task.id, number, Stage.TOOL, carried_tokens, Event(env))
            _cost(job, pipeline.tools[this.call.tool], pipeline.tool_units[this.call.tool])
            job.outside_wait_s = this.call.outside_wait_s
            job.payload_bytes = _payload(pipeline, carried_tokens)
            if pipeline.codec:
                _coded(pipeline, job, carried_tokens, this.input_tokens)
            yield job
        for prompt in _prompts(env, pipeline, task, number, this):
            if pipeline.expected_gap_s:
                _mind_gaps(pipeline, task, prompt, last)
                last = prompt
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
        _cost(job, pipeline.understand[task.class_name], tokens)
        return job
    reader = readers[task.class_name]
    prompt = Prompt(task.id, 0, Stage.UNDERSTAND, tokens + reader.instruction_tokens, Event(env))
    prompt.output_tokens = prompt.max_output_tokens = 1
    if not reader.encoder:
        prompt.output_tokens, prompt.max_output_tokens = task.understand_output_tokens, reader.max_output_tokens
        if reader.instruction_tokens and pipeline.prefix_caching:
            prompt.prefix = ((("instruction", task.class_name), reader.instruction_tokens),)
    return prompt


def _cost(job: Job, time: OperationTime, units: float) -> None:
    job.operation, job.units, job.seconds, job.base_s = time.name, units, time.seconds(units), time.base_s


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


def _prompts(env: EngineEnvironment, pipeline: Pipeline, task: Task, number: int, this: Round) -> Iterator[Prompt]:
    """One visit to the model, or two where prefill has a pool of its own: the second continues the first."""
    prompt = Prompt(task.id, number, Stage.GENERATE, this.input_tokens, Event(env))
    prompt.output_tokens, prompt.max_output_tokens = this.output_tokens, task.max_output_tokens
    prompt.payload_bytes = _payload(pipeline, this.input_tokens)
    if pipeline.codec:
        prompt.unpack_s = pipeline.codec.decode_s.of(this.input_tokens)
    if pipeline.prefix_caching:
        prompt.prefix = this.prefix or (((("task", task.id), this.shared_tokens),) if this.shared_tokens else ())
        prompt.context_key = None if this.prefix or len(task.rounds) == 1 else ("task", task.id)
    if Stage.PREFILL not in pipeline.pools:
        yield prompt
        return
    first = Prompt(task.id, number, Stage.PREFILL, this.input_tokens, Event(env))
    first.output_tokens = first.max_output_tokens = 1
    first.payload_bytes, first.prefix, first.context_key = prompt.payload_bytes, prompt.prefix, prompt.context_key
    first.unpack_s, prompt.unpack_s = prompt.unpack_s, 0.0
    first.keeps_kv = True
    yield first
    prompt.source, prompt.first_token_s = first, first.first_token_s
    prompt.prompt_left, prompt.generated_tokens = 0, 1
    prompt.prefix, prompt.context_key = (), None
    prompt.payload_bytes = pipeline.bytes_per_message + pipeline.kv_bytes_per_token * this.input_tokens
    if prompt.output_tokens > 1:
        yield prompt
    else:
        _let_go(pipeline, first)
