"""Readers of request traces: arrival times and lengths, in the formats in which their owners publish them."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hsim.description.yamlfile import did_you_mean
from hsim.errors import DescriptionError


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival. Shapes (requests,): seconds from the first arrival, and tokens."""

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]


def _azure_time(text: str) -> Decimal:
    # 2023-11-16 18:17:03.9799600: seven digits of fraction, one more than datetime reads. A double of seconds since
    # 1970 does not hold the last two.
    whole, dot, fraction = text.partition(".")
    if dot and not fraction.isdecimal():
        raise ValueError(text)
    seconds = Decimal(int(datetime.fromisoformat(whole + "+00:00").timestamp()))
    return seconds + Decimal(f"0.{fraction}") if dot else seconds


# Header of a format -> how its first column is read. Columns are always arrival, input tokens, output tokens.
FORMATS: dict[tuple[str, ...], Callable[[str], Decimal]] = {
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _azure_time,
    ("arrival_s", "input_tokens", "output_tokens"): Decimal,
}


def read_trace(file: Path) -> Trace:
    """Read a trace file, gzipped or not. Raises DescriptionError with the line of the first fault."""
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise DescriptionError(str(file), "there is no such trace file", "set workload.arrivals.file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DescriptionError(
            str(file), f"cannot be read ({error})", "is it complete, and is it CSV or CSV.gz?"
        ) from None
    return parse_trace(io.StringIO(text, newline=""), str(file))


def parse_trace(lines: Iterable[str], file: str) -> Trace:
    """Read CSV lines; `file` is what errors call them."""
    rows = _rows(lines, file)
    header = tuple(name.strip() for name in next(rows, (1, []))[1])
    read_time = FORMATS.get(header[:3])
    if read_time is None:
        known = [",".join(columns) for columns in FORMATS]
        raise DescriptionError(
            f"{file}:1", f"the header is {','.join(header)[:80]!r}", did_you_mean(",".join(header), known)
        )
    times, inputs, outputs = list[Decimal](), list[int](), list[int]()
    for line, row in rows:
        try:
            times.append(_finite(read_time(row[0])))
            inputs.append(_tokens(row[1]))
            outputs.append(_tokens(row[2]))
        except (ValueError, IndexError, InvalidOperation):
            text, columns = ",".join(row)[:80], ", ".join(header[:3])
            raise DescriptionError(
                f"{file}:{line}", f"cannot read {text!r}", f"a row is {columns}; tokens are whole and at least 1"
            ) from None
    if not times:
        raise DescriptionError(file, "the trace holds no request", "give a trace with at least one row")
    return _in_order(times, np.array(inputs), np.array(outputs))


def _rows(lines: Iterable[str], file: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, each with the line on which it begins: quotes may hide line ends."""
    rows, line = csv.reader(lines), 1
    try:
        for row in rows:
            if row:
                yield line, row
            line = rows.line_num + 1
    except csv.Error as error:
        raise DescriptionError(
            f"{file}:{line}", f"is not CSV ({error})", "is there a quote that nothing closes?"
        ) from None


def _finite(time_s: Decimal) -> Decimal:
    if not time_s.is_finite():
        raise ValueError(time_s)
    return time_s


def _tokens(text: str) -> int:
    tokens = int(text)
    if tokens < 1:
        raise ValueError(text)
    return tokens


def _in_order(times: list[Decimal], inputs: NDArray[np.int64], outputs: NDArray[np.int64]) -> Trace:
    first = min(times)
    arrival_s = np.array([float(time - first) for time in times])
    order = np.argsort(arrival_s, kind="stable")
    return Trace(arrival_s[order], inputs[order], outputs[order])
