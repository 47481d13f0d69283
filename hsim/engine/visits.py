"""A visit: one task at one stage. What queues hold, and what a row of the log is made of."""

from __future__ import annotations

import math

from simpy.events import Event

from hsim.log import Stage
from hsim.policies.views import VisitView


class Visit:
    """One task at one stage; times in seconds, energies in joules, filled in as they come to pass."""

    __slots__ = (
        "device",
        "done",
        "dynamic_j",
        "ended_s",
        "first_token_s",
        "host_dynamic_j",
        "host_idle_j",
        "idle_j",
        "input_tokens",
        "max_output_tokens",
        "output_tokens",
        "queued_s",
        "ready_s",
        "reserve_tokens",
        "round",
        "served_s",
        "stage",
        "started_s",
        "task",
    )  # fmt: skip

    stage: Stage

    def __init__(self, task: int, number: int, input_tokens: int, done: Event) -> None:
        self.task, self.round, self.input_tokens, self.done = task, number, input_tokens, done
        self.output_tokens = self.max_output_tokens = self.reserve_tokens = 0
        self.device = -1
        self.ready_s = self.queued_s = self.started_s = self.served_s = self.ended_s = math.nan
        self.first_token_s = math.nan
        self.dynamic_j = self.idle_j = self.host_dynamic_j = self.host_idle_j = 0.0

    def view(self) -> VisitView:
        """What a policy may see of it."""
        return VisitView(self.task, self.round, self.input_tokens, self.max_output_tokens)

    def row(self) -> tuple[float, ...]:
        """Its row of Log.visits."""
        return (
            self.task, self.round, self.stage, self.device, self.ready_s, self.queued_s, self.started_s,
            self.first_token_s, self.served_s, self.ended_s, self.input_tokens, self.output_tokens, self.reserve_tokens,
            self.dynamic_j, self.idle_j, self.host_dynamic_j, self.host_idle_j,
        )  # fmt: skip


class Job(Visit):
    """A visit to a core: an operation of known seconds, then perhaps a wait outside that holds no core."""

    __slots__ = ("joules_mark", "outside_wait_s", "seconds", "stage")

    def __init__(self, task: int, number: int, input_tokens: int, done: Event, stage: Stage) -> None:
        super().__init__(task, number, input_tokens, done)
        self.stage = stage
        self.seconds = self.outside_wait_s = self.joules_mark = 0.0


class Prompt(Visit):
    """A visit to a language model. `finish_step` is the replica's step after which it has its whole answer."""

    __slots__ = ("finish_step", "first_step", "marks", "prompt_left")

    stage = Stage.GENERATE

    def __init__(self, task: int, number: int, input_tokens: int, done: Event) -> None:
        super().__init__(task, number, input_tokens, done)
        self.prompt_left = input_tokens
        self.finish_step = self.first_step = 0
        self.marks = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
