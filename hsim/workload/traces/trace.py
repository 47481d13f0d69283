"""A trace of requests, and the order in which its rows stand."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.errors import DescriptionError
from hsim.units import readable_seconds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Blocks = tuple[int, ...]


@dataclass(frozen=True)
class Sessions:
    """How rows make sessions of several rounds: rows first_rows[i] up to first_rows[i + 1] are the rounds of task i.

    Shapes: first_rows (tasks + 1,); the others (rows,). `context_tokens` is how much of the prompt earlier rounds left
    in the context. `wait_after_s` is the wait for a tool between this round's answer and the next round.
    """

    first_rows: Ints
    context_tokens: Ints
    wait_after_s: Floats


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival. Without sessions each row is a task; with them the rounds of a task stand together.

    Shapes: arrival_s (tasks,), seconds from the first arrival, None where the format has no times; tokens (rows,).
    `input_tokens` is the whole prompt. `prefix_blocks` holds, row by row, the hashes of the prompt's blocks of
    `block_tokens` tokens: equal hashes, equal text up to there. `skipped` counts requests that were left out. `unused` names columns of the file that hsim does not read. `notes`
    is what a user must know of how the file was read.
    """

    format: str
    input_tokens: Ints
    output_tokens: Ints
    arrival_s: Floats | None = None
    sessions: Sessions | None = None
    prefix_blocks: tuple[Blocks, ...] | None = None
    block_tokens: int | None = None
    skipped: int = 0
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def first_rows(self) -> Ints:
        """The row at which each task begins, and the number of rows. Shape (tasks + 1,)."""
        return self.sessions.first_rows if self.sessions else np.arange(len(self.input_tokens) + 1)

    @property
    def tasks(self) -> int:
        return len(self.first_rows) - 1

    def between(self, start_s: float, duration_s: float | None, where: str) -> Trace:
        """The part whose tasks arrive in that time. Raises DescriptionError if nobody does."""
        assert self.arrival_s is not None
        end_s = np.inf if duration_s is None else start_s + duration_s
        inside = (self.arrival_s >= start_s) & (self.arrival_s < end_s)
        if not inside.any():
            what = f"no task arrives between {start_s:g} and {end_s:g} s"
            raise DescriptionError(where, what, f"the trace spans {readable_seconds(float(self.arrival_s[-1]))}")
        return self._only(inside)

    def with_prompts_up_to(self, max_input_tokens: int, where: str) -> Trace:
        """Without tasks that have a longer prompt in any round. Raises DescriptionError if none is left."""
        fitting = np.maximum.reduceat(self.input_tokens, self.first_rows[:-1]) <= max_input_tokens
        if fitting.all():
            return self
        if not fitting.any():
            what = f"every task has a prompt beyond max_input_tokens {max_input_tokens}"
            raise DescriptionError(where, what, f"the shortest prompt has {self.input_tokens.min()}")
        gone = int((~fitting).sum())
        note = f"tasks left out for prompts beyond max_input_tokens {max_input_tokens:,}: {gone:,}"
        return replace(self._only(fitting), skipped=self.skipped + gone, notes=(*self.notes, note))

    def _only(self, chosen: NDArray[np.bool_]) -> Trace:
        """The chosen tasks, timed from the first of them."""
        counts = np.diff(self.first_rows)
        rows = np.flatnonzero(np.repeat(chosen, counts))
        sessions = self.sessions and Sessions(
            np.concatenate([[0], np.cumsum(counts[chosen])]),
            self.sessions.context_tokens[rows],
            self.sessions.wait_after_s[rows],
        )
        return replace(
            self,
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            arrival_s=None if self.arrival_s is None else self.arrival_s[chosen] - self.arrival_s[chosen][0],
            sessions=sessions,
            prefix_blocks=self.prefix_blocks and tuple(self.prefix_blocks[row] for row in rows),
        )


@dataclass(frozen=True)
class Columns:
    """What a reader found, row by row in the order of the file. Shapes (rows,); `lines` are for errors.

    Seconds may count from any instant. Rows of one `session` are its rounds, in order of `rounds`.
    """

    format: str
    lines: Ints
    input_tokens: Ints
    output_tokens: Ints
    arrival_s: Floats | None = None
    session: list[str] | None = None
    rounds: Ints | None = None
    context_tokens: Ints | None = None
    wait_after_s: Floats | None = None
    prefix_blocks: list[Blocks] | None = None
    block_tokens: int | None = None
    skipped: int = 0
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def rows(self, chosen: Ints) -> Columns:
        """The chosen rows, in that order."""
        taken: dict[str, Any] = {}
        for field in fields(self):
            column = getattr(self, field.name)
            if isinstance(column, np.ndarray):
                taken[field.name] = column[chosen]
            elif isinstance(column, list):
                taken[field.name] = [column[i] for i in chosen]
        return replace(self, **taken)


def in_order(found: Columns, file: str) -> Trace:
    """The trace of what was found: empty requests left out, tasks by arrival. Raises DescriptionError for none."""
    answered = (found.input_tokens > 0) & (found.output_tokens > 0)
    skipped = found.skipped + int((~answered).sum())
    notes = found.notes
    if skipped:
        notes += (f"requests left out for want of a prompt or an answer: {skipped:,}",)
    if not answered.any():
        why = (
            f"none of its {skipped:,} requests has both a prompt and an answer"
            if skipped
            else "the trace holds no request"
        )
        raise DescriptionError(file, why, "give a trace with at least one row")
    if skipped > found.skipped:
        found = found.rows(np.flatnonzero(answered))
    sessions = None
    if found.session is None:
        if found.arrival_s is not None and (np.diff(found.arrival_s) < 0).any():
            found = found.rows(np.argsort(found.arrival_s, kind="stable"))
        starts_s = found.arrival_s
    else:
        found, sessions = _by_session(found, found.session, file)
        starts_s = None if found.arrival_s is None else found.arrival_s[sessions.first_rows[:-1]]
    return Trace(
        format=found.format,
        input_tokens=found.input_tokens,
        output_tokens=found.output_tokens,
        arrival_s=None if starts_s is None else starts_s - starts_s[0],
        sessions=sessions,
        prefix_blocks=None if found.prefix_blocks is None else tuple(found.prefix_blocks),
        block_tokens=found.block_tokens,
        skipped=skipped,
        unused=found.unused,
        notes=notes,
    )


def _by_session(found: Columns, session: list[str], file: str) -> tuple[Columns, Sessions]:
    """Rows by session in order of arrival (of appearance, without times) and by round, and where sessions begin."""
    numbers: dict[str, int] = {}
    number = np.array([numbers.setdefault(name, len(numbers)) for name in session])
    rounds = np.arange(len(number)) if found.rounds is None else found.rounds
    order = np.lexsort((rounds, number))
    again = np.flatnonzero((np.diff(number[order]) == 0) & (np.diff(rounds[order]) == 0))
    if len(again):
        row = order[again[0] + 1]
        what = f"session {session[row]} has round {rounds[row]} twice"
        raise DescriptionError(f"{file}:{found.lines[row]}", what, "number the rounds of a session")
    if found.arrival_s is not None:
        first = order[np.flatnonzero(np.diff(number[order], prepend=-1))]
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(found.arrival_s[first], kind="stable")] = np.arange(len(first))
        order, number = np.lexsort((rounds, rank[number])), rank[number]
    found = found.rows(order)
    count = len(found.lines)
    first_rows = np.append(np.flatnonzero(np.diff(number[order], prepend=-1)), count)
    context_tokens = np.zeros(count, dtype=np.int64) if found.context_tokens is None else found.context_tokens
    wait_after_s = np.zeros(count) if found.wait_after_s is None else found.wait_after_s
    return found, Sessions(first_rows, context_tokens, wait_after_s)
