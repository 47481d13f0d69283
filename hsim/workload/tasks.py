"""Tasks: what each asks for, drawn before the run and the same for every fleet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hsim.description.hardware import Tool
from hsim.description.scenario import ClosedArrivals, TaskClass, TraceArrivals, Workload
from hsim.errors import DescriptionError
from hsim.workload.arrivals import arrival_times
from hsim.workload.histograms import with_histograms_read
from hsim.workload.rows import Prefix, TraceRows, check_class_fits, replayed, sampled
from hsim.workload.streams import Floats, quantiles, uniforms, whole


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool: its CPU part is the tool's own, its wait outside was drawn."""

    tool: str
    outside_wait_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """Perhaps a tool call, then a visit to the language model.

    Its prompt's first `shared_tokens` repeat the context that the task has built up; or `prefix` names the pieces of
    the prompt that other tasks may have in common, with the tokens of each.
    """

    call: ToolCall | None
    input_tokens: int
    output_tokens: int
    shared_tokens: int = 0
    prefix: Prefix = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One task's demand, fixed before it arrives. `understand_tokens` 0 means no understanding stage; one that a
    language model serves answers in `understand_output_tokens`.

    In a closed loop a task belongs to a `user`, who thinks for think_s before asking; its arrival_s has no meaning.
    """

    id: int
    arrival_s: float
    class_name: str
    understand_tokens: int
    max_output_tokens: int
    rounds: tuple[Round, ...]
    timeout_s: float = math.inf
    user: int | None = None
    think_s: float = 0.0
    understand_output_tokens: int = 1

    @property
    def output_tokens(self) -> int:
        return sum(r.output_tokens for r in self.rounds)


@dataclass(frozen=True)
class Drawn:
    """The tasks of a run, in order of arrival, and how many answers were cut at max_output_tokens.

    `notes` is what a user must know of how traces were read.
    """

    tasks: list[Task]
    truncated: int
    notes: tuple[str, ...] = ()


def draw_tasks(workload: Workload, tools: Mapping[str, Tool], seed: int, beside: Path) -> Drawn:
    """Draw the tasks of a workload. Raises DescriptionError for a trace that cannot be used."""
    workload = with_histograms_read(workload, beside)
    tools = {name: with_histograms_read(tool, beside) for name, tool in tools.items()}
    arrivals = workload.arrivals
    replay = None
    if isinstance(arrivals, TraceArrivals):
        trace = replayed(arrivals, beside)
        count = min(trace.tasks, workload.tasks or trace.tasks)
        assert trace.arrival_s is not None
        arrival_s = trace.arrival_s[:count] / arrivals.rate_scale
        replay = TraceRows(arrivals.file, trace, np.arange(count))
    elif isinstance(arrivals, ClosedArrivals):
        assert workload.tasks is not None
        count, arrival_s = workload.tasks, np.zeros(workload.tasks)
    else:
        assert workload.tasks is not None
        count = workload.tasks
        arrival_s = arrival_times(arrivals, count, seed)
    shares = np.cumsum([c.share for c in workload.classes.values()])
    chosen = np.searchsorted(shares / shares[-1], uniforms(seed, "class", count), side="right")
    tasks: list[Task | None] = [None] * count
    truncated, notes = 0, replay.notes if replay else ()
    for index, (name, kind) in enumerate(workload.classes.items()):
        members = np.flatnonzero(chosen == index)
        rows = sampled(kind.sampled_from, count, seed, beside) if kind.sampled_from else replay
        notes += rows.notes if rows and rows is not replay else ()
        draw = _ClassDraw(name, kind, tools, seed, count, rows)
        for task in draw.tasks(members, arrival_s):
            tasks[task.id] = task
        truncated += draw.truncated
    drawn = [task for task in tasks if task is not None]
    if isinstance(arrivals, ClosedArrivals):
        drawn = _given_to_users(drawn, arrivals, seed)
    return Drawn(drawn, truncated, notes)


def _given_to_users(tasks: list[Task], arrivals: ClosedArrivals, seed: int) -> list[Task]:
    """Task i is user (i mod users)'s: the nth task of a user is the same whatever the number of tasks."""
    think_s = quantiles(arrivals.think_s, uniforms(seed, "think", len(tasks))).tolist()
    return [replace(task, user=task.id % arrivals.users, think_s=think_s[task.id]) for task in tasks]


class _ClassDraw:
    """Draws the tasks of one class. Streams are drawn whole, for all tasks, so that no class moves another's."""

    def __init__(
        self, name: str, kind: TaskClass, tools: Mapping[str, Tool], seed: int, count: int, rows: TraceRows | None
    ):
        self.name, self.kind, self.tools, self.seed, self.count, self.rows = name, kind, tools, seed, count, rows
        self.sessions = rows.trace.sessions if rows else None
        self.truncated = 0
        if rows:
            check_class_fits(name, kind, rows)

    def tasks(self, members: NDArray[np.int64], arrival_s: Floats) -> list[Task]:
        """The tasks with these ids."""
        if not len(members):
            return []
        kind = self.kind
        understand, understood = np.zeros((2, len(members)), dtype=np.int64)
        if kind.understand:
            understand = whole(quantiles(kind.understand.tokens, self._uniforms("understand")[members]), 1)
            answers = quantiles(kind.understand.output_tokens, self._uniforms("understand-output")[members])
            understood = np.minimum(whole(answers, 1), kind.understand.max_output_tokens)
        if self.rows and self.sessions:
            rounds = self.rows.rounds(members)
        else:
            rounds = whole(quantiles(kind.rounds, self._uniforms("rounds")[members]), 1)
        drawn: list[list[Round]] = [[] for _ in members]
        for number in range(int(rounds.max())):
            here = np.flatnonzero(rounds > number)
            self._draw_round(number, members[here], [drawn[i] for i in here])
        return [
            Task(
                int(i),
                float(arrival_s[i]),
                self.name,
                int(tokens),
                kind.max_output_tokens,
                tuple(its_rounds),
                kind.timeout_s or math.inf,
                understand_output_tokens=int(answer),
            )
            for i, tokens, answer, its_rounds in zip(members, understand, understood, drawn, strict=True)
        ]

    def _uniforms(self, purpose: str, *indices: int) -> Floats:
        return uniforms(self.seed, purpose, self.count, *indices)

    def _draw_round(self, number: int, ids: NDArray[np.int64], rounds: list[list[Round]]) -> None:
        inputs = self._lengths("input_tokens", number, ids)
        outputs = self._lengths("output_tokens", number, ids)
        self.truncated += int((outputs > self.kind.max_output_tokens).sum())
        outputs = np.minimum(outputs, self.kind.max_output_tokens)
        context = self._context(number, ids, rounds)
        if self.kind.context == "grows":
            inputs = inputs + context
        columns = (column.tolist() for column in (inputs, outputs, context))
        drawn = zip(rounds, self._calls(number, ids), *columns, self._prefixes(number, ids), strict=True)
        for its_rounds, call, n_in, n_out, shared, prefix in drawn:
            its_rounds.append(Round(call, n_in, n_out, shared, prefix))

    def _context(self, number: int, ids: NDArray[np.int64], rounds: list[list[Round]]) -> NDArray[np.int64]:
        """How many tokens of each prompt the task has sent or received in earlier rounds."""
        if self.rows and self.sessions:
            return self.sessions.context_tokens[self.rows.rows(number, ids)]
        if number and self.kind.context == "grows":
            return np.array([its[-1].input_tokens + its[-1].output_tokens for its in rounds])
        return np.zeros(len(ids), dtype=np.int64)

    def _prefixes(self, number: int, ids: NDArray[np.int64]) -> Iterable[Prefix]:
        """The pieces of each prompt that the trace says others may share."""
        if self.rows and self.kind.input_tokens is None and self.kind.context == "declared":
            return self.rows.prefixes(number, ids)
        return [()] * len(ids)

    def _lengths(self, key: str, number: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        distribution = getattr(self.kind, key)
        if distribution is not None:
            return whole(quantiles(distribution, self._uniforms(key, number)[ids]), 1)
        assert self.rows is not None  # the schema refuses other workloads without lengths
        return np.asarray(getattr(self.rows.trace, key))[self.rows.rows(number, ids)]

    def _calls(self, number: int, ids: NDArray[np.int64]) -> list[ToolCall | None]:
        if not self.kind.tools or (number == 0 and (self.sessions or not self.kind.first_round_tool)):
            return [None] * len(ids)
        names = list(self.kind.tools)
        weights = np.cumsum(list(self.kind.tools.values()))
        chosen = np.searchsorted(weights / weights[-1], self._uniforms("tool", number)[ids], side="right")
        u = self._uniforms("outside-wait", number)[ids]
        calls: list[ToolCall | None] = [None] * len(ids)
        for index, name in enumerate(names):
            mine = np.flatnonzero(chosen == index)
            for i, wait_s in zip(mine, self._waits(name, u[mine], number, ids[mine]), strict=True):
                calls[i] = ToolCall(name, wait_s)
        return calls

    def _waits(self, tool: str, u: Floats, number: int, ids: NDArray[np.int64]) -> list[float]:
        """Seconds outside of each call: as the session's log has them, else as the tool says."""
        if self.rows and self.sessions:
            return list(map(float, self.sessions.wait_after_s[self.rows.rows(number - 1, ids)]))
        wait = self.tools[tool].outside_wait_s
        return quantiles(wait, u).tolist() if wait else [0.0] * len(ids)


ROUNDS_GRID = 4096  # quantiles that stand for a distribution of rounds


def expected_rounds_left(kind: TaskClass) -> tuple[float, ...]:
    """How many rounds a task of a class is expected to need from its first, second, ... on, that one included."""
    u = (np.arange(ROUNDS_GRID) + 0.5) / ROUNDS_GRID
    rounds = whole(quantiles(kind.rounds, u), 1)
    return tuple(float((rounds[rounds > number] - number).mean()) for number in range(int(rounds.max())))


def check_understanding_fits(tasks: list[Task], besides: Mapping[str, int], limit_tokens: int, where: str) -> None:
    """Raises DescriptionError if a model could never understand a task.

    `besides` are the tokens that come to a text of each class: its instruction and the longest answer.
    """
    for task in tasks:
        needed = task.understand_tokens + besides.get(task.class_name, 0)
        if task.understand_tokens and needed > limit_tokens:
            what = f"to understand task {task.id} takes {needed} tokens of context, more than {limit_tokens}"
            remedy = "clip understand.tokens with at_most, or take a model with a longer context"
            raise DescriptionError(where, what, remedy)


def check_tasks_fit(tasks: list[Task], capacity_tokens: int, max_context_tokens: int, where: str) -> None:
    """Raises DescriptionError if a visit could never be served: its prompt and answer exceed KV cache or model."""
    limit = min(capacity_tokens, max_context_tokens)
    for task in tasks:
        for number, visit in enumerate(task.rounds):
            needed = visit.input_tokens + task.max_output_tokens
            if needed > limit:
                what = (
                    f"task {task.id}, round {number + 1} needs {needed} tokens of context ({visit.input_tokens} of prompt and "
                    f"max_output_tokens {task.max_output_tokens}), more than {limit} "
                    f"({'KV cache of one replica' if capacity_tokens < max_context_tokens else 'the model allows'})"
                )
                raise DescriptionError(
                    where, what, "lower max_output_tokens, filter the workload, or use more memory per replica"
                )
