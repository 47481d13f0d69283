"""A visit: one task at one stage. What queues hold, and what a row of the log is made of."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from simpy.events import Event

from hsim.costs.cpu import Contention
from hsim.log import Outcome, Stage
from hsim.policies.views import VisitView


class Visit:
    """One task at one stage; times in seconds, energies in joules, filled in as they come to pass.

    Before its bytes leave, an engine writes them for pack_s; when they have come, one reads them for unpack_s.
    """

    __slots__ = (
        "asked",
        "device",
        "done",
        "dynamic_j",
        "ended_s",
        "first_token_s",
        "home",
        "host_dynamic_j",
        "host_idle_j",
        "idle_j",
        "input_tokens",
        "lost",
        "max_output_tokens",
        "outcome",
        "output_tokens",
        "pack_s",
        "payload_bytes",
        "pool",
        "queued_s",
        "rank",
        "ready_s",
        "remake",
        "round",
        "rounds_left",
        "served_s",
        "stage",
        "started",
        "started_s",
        "task",
        "unpack_s",
    )  # fmt: skip

    def __init__(self, task: int, number: int, stage: Stage, input_tokens: int, done: Event) -> None:
        self.task, self.round, self.stage, self.input_tokens, self.done = task, number, stage, input_tokens, done
        self.output_tokens = self.max_output_tokens = 0
        self.pool = self.device = self.home = -1  # home: the device that keeps its context
        self.asked: Any = None  # of several pools that could serve it, the one that does
        self.remake: Callable[[Any], Visit] | None = None  # makes it anew for another of those
        self.started, self.rounds_left, self.rank = False, 0.0, 0.0
        self.lost = 0  # attempts, with their devices
        self.outcome = Outcome.SERVED
        self.payload_bytes = self.pack_s = self.unpack_s = 0.0
        self.ready_s = self.queued_s = self.started_s = self.served_s = self.ended_s = math.nan
        self.first_token_s = math.nan
        self.dynamic_j = self.idle_j = self.host_dynamic_j = self.host_idle_j = 0.0

    def view(self) -> VisitView:
        """What a policy may see of it."""
        left = self.rounds_left
        return VisitView(self.task, self.round, self.input_tokens, self.max_output_tokens, (), self.started, left)

    def row(self) -> tuple[float, ...]:
        """Its row of Log.visits."""
        return (
            self.task, self.round, self.stage, self.pool, self.device, self.outcome, self.ready_s, self.queued_s,
            self.started_s, self.first_token_s, self.served_s, self.ended_s, self.input_tokens, self.delivered_tokens(),
            self.dynamic_j, self.idle_j, self.host_dynamic_j, self.host_idle_j,
        )  # fmt: skip

    def delivered_tokens(self) -> int:
        """Output tokens that reached the user."""
        return 0

    def begin_again(self) -> None:
        """Forget an attempt that was lost, and be as if nothing had been done."""
        self.lost += 1
        self.outcome, self.home, self.rank = Outcome.SERVED, -1, 0.0
        self.queued_s = self.started_s = self.served_s = self.ended_s = self.first_token_s = math.nan
        self.dynamic_j = self.idle_j = self.host_dynamic_j = self.host_idle_j = 0.0


class Job(Visit):
    """A visit to a core: `units` of an operation take `seconds`, of which a batch of like jobs pays `base_s` once.

    `contention` is how other busy cores slow it down, where its operation has a curve of its own. Then perhaps a wait outside, which holds no core.
    """

    __slots__ = ("base_s", "contention", "joules_mark", "operation", "outside_wait_s", "seconds", "units")

    def __init__(self, task: int, number: int, stage: Stage, input_tokens: int, done: Event) -> None:
        super().__init__(task, number, stage, input_tokens, done)
        self.seconds = self.base_s = self.units = self.outside_wait_s = self.joules_mark = 0.0
        self.operation = ""
        self.contention: Contention = ()


class Prompt(Visit):
    """A visit to a language model.

    `prefill_tokens` must be in the KV cache before it (again) decodes: its prompt, and what it had generated when it
    was preempted. Of these `prompt_left` are still to be computed. It has its whole answer after the replica's step
    `finish_step`.

    Where its task goes on with a tool and comes back with its context, `expected_gap_s` is what such a tool takes on
    average, and `stays` says whether that context waits on its replica, or in its host's memory. `brought_tokens` have
    come back from there for it. A `discarded` answer reaches nobody.
    """

    __slots__ = (
        "brought_tokens",
        "context_key",
        "decoding",
        "discarded",
        "entry",
        "expected_gap_s",
        "finish_step",
        "first_step",
        "generated_tokens",
        "held_blocks",
        "keeps_kv",
        "marks",
        "own_blocks",
        "prefill_tokens",
        "prefix",
        "prompt_left",
        "shared_keys",
        "source",
        "stays",
    )  # fmt: skip

    def __init__(self, task: int, number: int, stage: Stage, input_tokens: int, done: Event) -> None:
        super().__init__(task, number, stage, input_tokens, done)
        self.prefill_tokens = self.prompt_left = input_tokens
        self.generated_tokens = self.first_step = self.finish_step = self.entry = 0
        self.marks: tuple[float, ...] = ()
        self.decoding = False
        self.held_blocks = self.own_blocks = 0
        self.shared_keys: list[Hashable] = []
        self.prefix: tuple[tuple[Hashable, int], ...] = ()
        self.context_key: Hashable | None = None
        self.keeps_kv = False
        self.source: Prompt | None = None
        self.expected_gap_s = math.nan
        self.stays, self.brought_tokens = False, 0
        self.discarded = False

    def view(self) -> VisitView:
        """What a policy may see of it."""
        tokens, left = (self.input_tokens, self.max_output_tokens), self.rounds_left
        return VisitView(self.task, self.round, *tokens, self.prefix, self.started, left)

    def delivered_tokens(self) -> int:
        """Output tokens that reached the user; recomputed ones count once, and what understanding wrote, was discarded or
        lost does not.
        """
        if self.stage is Stage.UNDERSTAND or self.discarded or self.outcome is Outcome.LOST:
            return 0
        return self.generated_tokens if self.source is None else self.generated_tokens - 1

    def begin_again(self) -> None:
        """See Visit: keys and values are gone."""
        self.prefill_tokens = self.prompt_left = self.input_tokens
        self.generated_tokens = self.first_step = self.finish_step = self.entry = 0
        self.held_blocks = self.own_blocks = self.brought_tokens = 0
        self.shared_keys.clear()
        self.marks, self.decoding, self.stays = (), False, False
        super().begin_again()


V = TypeVar("V", bound=Visit)


def enqueue(waiting: deque[V], visit: V) -> None:
    """Put a visit behind all whose rank is no larger: without priorities at the end."""
    if not waiting or waiting[-1].rank <= visit.rank:
        waiting.append(visit)
    else:
        waiting.insert(next(i for i, other in enumerate(waiting) if other.rank > visit.rank), visit)
