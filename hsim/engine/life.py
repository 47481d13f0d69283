"""The life of a task, and the pipeline that it passes through."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

from simpy.events import Event

from hsim.engine.environment import TASK_ARRIVES, EngineEnvironment
from hsim.engine.link import Link
from hsim.engine.pool import Pool
from hsim.engine.visits import Job, Prompt
from hsim.log import Log, Stage
from hsim.workload.tasks import Round, Task


@dataclass(frozen=True)
class Pipeline:
    """Where each stage is served, what its operations cost, and what joins the places.

    `understand_s` gives the seconds of a class's understanding by its tokens, `tool_s` those of a tool's CPU part.
    """

    pools: Mapping[Stage, Pool[Job] | Pool[Prompt]]
    links: Mapping[tuple[str, str], Link]
    understand_s: Mapping[str, Callable[[float], float]]
    tool_s: Mapping[str, float]
    bytes_per_message: float
    bytes_per_token: float


def run_tasks(env: EngineEnvironment, log: Log, pipeline: Pipeline, tasks: list[Task]) -> None:
    """Let every task live, and return when the last has ended."""
    waiting = iter(tasks)

    def arrive(task: Task) -> None:
        env.process(live(env, log, pipeline, task))
        following = next(waiting, None)
        if following is not None:
            env.call_at(following.arrival_s, TASK_ARRIVES + following.id, lambda _: arrive(following))

    first = next(waiting)
    env.call_at(first.arrival_s, TASK_ARRIVES + first.id, lambda _: arrive(first))
    env.run()


def live(env: EngineEnvironment, log: Log, pipeline: Pipeline, task: Task) -> Generator[Event, None, None]:
    """A task's life: for each visit, move there, queue and be served, perhaps wait for something outside."""
    place = ""
    for visit in visits_of(env, pipeline, task):
        pool = pipeline.pools[visit.stage]
        visit.ready_s = env.now
        if link := pipeline.links.get((place, pool.name)):
            yield link.transfer(task.id, pipeline.bytes_per_message + pipeline.bytes_per_token * visit.input_tokens)
        visit.queued_s = env.now
        yield pool.submit(visit)  # type: ignore[arg-type]  # a stage's pool takes that stage's visits
        if isinstance(visit, Job) and visit.outside_wait_s:
            yield env.at(env.now + visit.outside_wait_s, task.id)
        visit.ended_s, place = env.now, pool.name
        log.visits.append(visit.row())
    log.tasks.append((task.id, task.arrival_s, env.now))


def visits_of(env: EngineEnvironment, pipeline: Pipeline, task: Task) -> Iterator[Job | Prompt]:
    """The visits that a task makes, in order, each made when it is its turn."""
    carried_tokens = task.understand_tokens
    if task.understand_tokens:
        job = Job(task.id, 0, task.understand_tokens, Event(env), Stage.UNDERSTAND)
        job.seconds = pipeline.understand_s[task.class_name](task.understand_tokens)
        yield job
    for number, this in enumerate(task.rounds):
        if this.call:
            job = Job(task.id, number, carried_tokens, Event(env), Stage.TOOL)
            job.seconds, job.outside_wait_s = pipeline.tool_s[this.call.tool], this.call.outside_wait_s
            yield job
        yield _prompt(env, task, number, this)
        carried_tokens = this.output_tokens


def _prompt(env: EngineEnvironment, task: Task, number: int, this: Round) -> Prompt:
    prompt = Prompt(task.id, number, this.input_tokens, Event(env))
    prompt.output_tokens, prompt.max_output_tokens = this.output_tokens, task.max_output_tokens
    return prompt
