"""Traces in CSV: a table of formats, each known by the columns that it needs, and a small function that reads it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Any

import numpy as np

from hsim.errors import DescriptionError
from hsim.units import MS_PER_S
from hsim.workload.files import csv_rows
from hsim.workload.traces.blocks import block_size, first_overfull
from hsim.workload.traces.trace import Columns, Floats

FRACTION_DIGITS = 9  # of a second in dates; Azure writes seven
TICKS_PER_S: int = 10**FRACTION_DIGITS


@dataclass(frozen=True)
class Cell:
    """How the cells of a column are read and kept; `what` says what they must be."""

    read: Callable[[str], Any]
    keep: Callable[[], Any]
    what: str


def _tokens(text: str) -> int:
    tokens = int(text)
    if tokens < 0:
        raise ValueError(text)
    return tokens


def _seconds(text: str) -> float:
    seconds = float(text)
    if not isfinite(seconds):
        raise ValueError(text)
    return seconds


def _wait(text: str) -> float:
    seconds = _seconds(text)
    if seconds < 0:
        raise ValueError(text)
    return seconds


def _since_first_date() -> Callable[[str], float]:
    """Reads dates as seconds since the first of them. A double of seconds since 1970 would not hold the last digits."""
    first, last = None, ("", 0)

    def read(text: str) -> float:
        nonlocal first, last
        whole, dot, rest = text.partition(".")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        if (dot and not digits) or len(digits) > FRACTION_DIGITS:
            raise ValueError(text)
        if (whole_seconds := whole + rest[len(digits) :]) != last[0]:  # many requests come within a second
            moment = datetime.fromisoformat(whole_seconds)
            last = whole_seconds, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
        ticks = last[1] * TICKS_PER_S + int(digits.ljust(FRACTION_DIGITS, "0"))
        first = ticks if first is None else first
        return (ticks - first) / TICKS_PER_S

    return read


def _since_first_number() -> Callable[[str], float]:
    """Reads seconds as seconds since the first of them, to the last digit."""
    first = None

    def read(text: str) -> float:
        nonlocal first
        try:
            seconds = Decimal(text)
        except InvalidOperation:
            raise ValueError(text) from None
        if not isfinite(seconds):  # as a double: 1e400 is too large for one
            raise ValueError(text)
        first = seconds if first is None else first
        return float(seconds - first)

    return read


def _blocks(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _doubles() -> array[float]:
    return array("d")


def _integers() -> array[int]:
    return array("q")


TOKENS = Cell(_tokens, _integers, "a whole number, 0 or more")
SIZE = Cell(_tokens, _integers, "a whole number, 1 or more")
NUMBER = Cell(_seconds, _doubles, "a finite number")
WAIT = Cell(_wait, _doubles, "a number, 0 or more")
NAME = Cell(str, list, "a name")
BLOCKS = Cell(_blocks, list, "whole numbers with blanks between them")


def dates() -> Cell:
    return Cell(_since_first_date(), _doubles, "a date and time such as 2023-11-16 18:17:03.9799600")


def instants() -> Cell:
    return Cell(_since_first_number(), _doubles, "a finite number")


@dataclass(frozen=True)
class Table:
    """A CSV file whose header has been read."""

    file: str
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]

    def read(self, cells: dict[str, Cell]) -> dict[str, Any]:
        """The named columns, and `lines`. Raises DescriptionError for the first cell that cannot be read."""
        columns: dict[str, Any] = {name: cell.keep() for name, cell in cells.items()}
        plan = [(self.header.index(name), cell.read, columns[name].append) for name, cell in cells.items()]
        lines = _integers()
        for line, row in self.rows:
            try:
                for index, read, keep in plan:
                    keep(read(row[index]))
            except (ValueError, IndexError, OverflowError):
                raise self._fault(line, row, cells) from None
            lines.append(line)
        return {n: np.array(c) if isinstance(c, array) else c for n, c in (columns | {"lines": lines}).items()}

    def _fault(self, line: int, row: list[str], cells: dict[str, Cell]) -> DescriptionError:
        place = f"{self.file}:{line}"
        if len(row) < len(self.header):
            return DescriptionError(place, f"has {len(row)} columns, {','.join(row)[:80]!r}", f"the header has {len(self.header)}")  # fmt: skip
        for name, cell in cells.items():
            text = row[self.header.index(name)]
            try:
                cell.keep().append(cell.read(text))
            except (ValueError, OverflowError):
                return DescriptionError(place, f"{name} is {text!r}", f"it must be {cell.what}")
        raise AssertionError(f"{place}: the row can be read after all")

    def unused(self, *used: str) -> tuple[str, ...]:
        """The columns that are not read."""
        return tuple(name for name in self.header if name not in used)


def read_csv(lines: Iterator[str], file: str) -> Columns:
    """Read a trace in CSV, in the first format all of whose columns the header has."""
    rows = csv_rows(lines, file)
    line, header = next(rows)
    header = [name.strip() for name in header]
    for name, needed, read in FORMATS:
        if set(needed) <= set(header):
            return read(Table(file, header, rows), name)
    known = "; ".join(f"{name}: {', '.join(needed)}" for name, needed, _ in FORMATS)
    raise DescriptionError(f"{file}:{line}", f"the header is {','.join(header)[:80]!r}", f"known columns are {known}")


def _azure(table: Table, name: str) -> Columns:
    used = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    found = table.read(dict(zip(used, (dates(), TOKENS, TOKENS), strict=True)))
    return Columns(name, found["lines"], found[used[1]], found[used[2]], found[used[0]], unused=table.unused(*used))


def _burstgpt(table: Table, name: str) -> Columns:
    # 0 response tokens are a failure: in_order leaves such requests out and counts them. Session ID is left aside:
    # every request has its own time, people's pauses included.
    used = ("Timestamp", "Request tokens", "Response tokens")
    found = table.read(dict(zip(used, (instants(), TOKENS, TOKENS), strict=True)))
    return Columns(name, found["lines"], found[used[1]], found[used[2]], found[used[0]], unused=table.unused(*used))


def _agent_sessions(table: Table, name: str) -> Columns:
    """Rounds of agents: times in milliseconds, prompts in two parts (kept from before, and new)."""
    session = "session_id" if "session_id" in table.header else "id"
    if session not in table.header:
        raise DescriptionError(f"{table.file}:1", "has neither a column session_id nor id", "name the sessions")
    cells = {
        session: NAME,
        "round_idx": TOKENS,
        "prefix_len": TOKENS,
        "input_len": TOKENS,
        "output_len": TOKENS,
        "tool_wait_after_ms": WAIT,
    }
    if "arrival_time" in table.header:
        cells["arrival_time"] = NUMBER
    found = table.read(cells)
    return Columns(
        name,
        found["lines"],
        found["prefix_len"] + found["input_len"],
        found["output_len"],
        _from_ms(found.get("arrival_time")),
        session=found[session],
        rounds=found["round_idx"],
        context_tokens=found["prefix_len"],
        wait_after_s=found["tool_wait_after_ms"] / MS_PER_S,
        unused=table.unused(*cells),
    )


def _from_ms(times_ms: Floats | None) -> Floats | None:
    """Seconds since the first of some milliseconds."""
    return None if times_ms is None or not len(times_ms) else (times_ms - times_ms[0]) / MS_PER_S


OWN = {
    "arrival_s": NUMBER,
    "session_id": NAME,
    "round": TOKENS,
    "input_tokens": TOKENS,
    "context_tokens": TOKENS,
    "output_tokens": TOKENS,
    "wait_after_s": WAIT,
    "block_tokens": SIZE,
    "hash_ids": BLOCKS,
}


def _own(table: Table, name: str) -> Columns:
    cells = {column: cell for column, cell in OWN.items() if column in table.header}
    if "arrival_s" in cells:
        cells["arrival_s"] = instants()
    found = table.read(cells)
    inputs, blocks, lines = found["input_tokens"], found.get("hash_ids"), found["lines"]
    if "session_id" not in cells and (alone := {"round", "context_tokens", "wait_after_s"} & set(cells)):
        raise DescriptionError(f"{table.file}:1", f"has {min(alone)} and no session_id", "name the sessions")
    over = np.flatnonzero(found.get("context_tokens", inputs) > inputs)
    if len(over):
        what = f"context_tokens is {found['context_tokens'][over[0]]} of {inputs[over[0]]} input_tokens"
        raise DescriptionError(f"{table.file}:{lines[over[0]]}", what, "it is a part of the prompt")
    return Columns(
        name,
        lines,
        inputs,
        found["output_tokens"],
        found.get("arrival_s"),
        session=found.get("session_id"),
        rounds=found.get("round"),
        context_tokens=found.get("context_tokens"),
        wait_after_s=found.get("wait_after_s"),
        prefix_blocks=blocks,
        block_tokens=_block_tokens(table, found) if blocks is not None and len(lines) else None,
        unused=table.unused(*cells),
    )


def _block_tokens(table: Table, found: dict[str, Any]) -> int:
    """The block size of hash_ids: as the column block_tokens says, else as the prompts' lengths show."""
    inputs, blocks, lines, sizes = (found.get(key) for key in ("input_tokens", "hash_ids", "lines", "block_tokens"))
    assert inputs is not None and blocks is not None and lines is not None
    if sizes is None:
        return block_size(inputs, blocks, None, table.file)
    wrong = np.flatnonzero((sizes != sizes[0]) | (sizes < 1))
    if len(wrong):
        place, size = f"{table.file}:{lines[wrong[0]]}", sizes[wrong[0]]
        raise DescriptionError(place, f"block_tokens is {size}", "it is 1 or more and the same in all rows")
    size = int(sizes[0])
    if (row := first_overfull(inputs, blocks, size)) is not None:
        what = f"has {len(blocks[row])} hash_ids for {inputs[row]} tokens in blocks of {size}"
        raise DescriptionError(f"{table.file}:{lines[row]}", what, "a prompt has at most one for each block")
    return size


FORMATS: tuple[tuple[str, tuple[str, ...], Callable[[Table, str], Columns]], ...] = (
    ("Azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    ("BurstGPT", ("Timestamp", "Request tokens", "Response tokens"), _burstgpt),
    ("agent sessions", ("round_idx", "prefix_len", "input_len", "output_len", "tool_wait_after_ms"), _agent_sessions),
    ("hsim", ("input_tokens", "output_tokens"), _own),
)
