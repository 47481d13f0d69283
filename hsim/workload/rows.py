"""Tasks made of the rows of a trace: replayed in order, or sampled with replacement."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hsim.description.scenario import TaskClass, TraceArrivals, TraceFile
from hsim.errors import DescriptionError
from hsim.workload.files import found
from hsim.workload.streams import uniforms
from hsim.workload.traces import Trace, read_trace

Ints = NDArray[np.int64]
Prefix = tuple[tuple[Hashable, int], ...]
"""Pieces of a prompt in order: what names each, and its tokens. Equal names, equal text up to there."""

BROUGHT_BY_SESSIONS = ("rounds", "input_tokens", "output_tokens", "context")


@dataclass(frozen=True)
class TraceRows:
    """The rows that tasks are made of: task i is the trace's task `chosen[i]`. Shape (tasks,)."""

    file: str
    trace: Trace
    chosen: Ints

    def rounds(self, ids: Ints) -> Ints:
        """How many rounds each of these tasks has in the trace."""
        first_rows = self.trace.first_rows
        return np.asarray((first_rows[1:] - first_rows[:-1])[self.chosen[ids]])

    def rows(self, number: int, ids: Ints) -> Ints:
        """The row of each task's round `number`. A trace without sessions has one row for all rounds of a task."""
        first = self.trace.first_rows[self.chosen[ids]]
        return np.asarray(first + number if self.trace.sessions else first)

    def prefixes(self, number: int, ids: Ints) -> list[Prefix]:
        """The blocks of each prompt, by hash, with the tokens of each; none where the trace has no hashes."""
        blocks, size, inputs = self.trace.prefix_blocks, self.trace.block_tokens, self.trace.input_tokens
        if blocks is None or size is None:
            return [()] * len(ids)
        pieces = []
        for row in self.rows(number, ids).tolist():
            left = int(inputs[row])
            pieces.append(tuple((h, min(size, left - size * i)) for i, h in enumerate(blocks[row]) if left > size * i))
        return pieces

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of how the file was read."""
        return tuple(f"{self.file}: {note}" for note in self.trace.notes)


def replayed(arrivals: TraceArrivals, beside: Path) -> Trace:
    """The part of a trace that arrivals replay. Raises DescriptionError for one without times."""
    trace = _read(arrivals, beside)
    if trace.arrival_s is None:
        remedy = "let arrivals have a rate, and name the trace in a class's sampled_from"
        raise DescriptionError(arrivals.file, f"has no arrival times ({trace.format} format)", remedy)
    if arrivals.start_s or arrivals.duration_s:
        trace = trace.between(arrivals.start_s, arrivals.duration_s, arrivals.file)
    return trace


def sampled(named: TraceFile, count: int, seed: int, beside: Path) -> TraceRows:
    """`count` tasks drawn from a trace with replacement, each as a whole, so that its lengths stay together.

    Hashes of prompts are left aside: the same row drawn twice stands for two prompts of that length, not for one text.
    """
    trace = replace(_read(named, beside), prefix_blocks=None, block_tokens=None)
    # min: u is below 1, yet its product with a large number may round up to that number
    drawn = np.minimum(np.floor(uniforms(seed, "sampled-from", count) * trace.tasks), trace.tasks - 1)
    return TraceRows(named.file, trace, drawn.astype(np.int64))


def check_class_fits(name: str, kind: TaskClass, rows: TraceRows) -> None:
    """Raises DescriptionError if a class declares what the sessions of its trace bring, or cannot carry their waits."""
    sessions = rows.trace.sessions
    if sessions is None:
        return
    clashing = [key for key in BROUGHT_BY_SESSIONS if key in kind.model_fields_set]
    if clashing:
        what = f"holds sessions, which bring their own {clashing[0]}"
        raise DescriptionError(rows.file, what, f"remove classes.{name}.{clashing[0]}")
    if not kind.tools and sessions.wait_after_s.any():
        what = f"holds sessions that wait for tools between rounds, and class {name} has none"
        raise DescriptionError(rows.file, what, f"say which tools they are, in classes.{name}.tools")


def _read(named: TraceFile, beside: Path) -> Trace:
    key = "workload.arrivals.file" if isinstance(named, TraceArrivals) else "the class's sampled_from.file"
    tokenizer = found(named.tokenizer, beside) if named.tokenizer else None
    trace = read_trace(found(named.file, beside), tokenizer, f"set {key}")
    return trace.with_prompts_up_to(named.max_input_tokens, named.file) if named.max_input_tokens else trace
