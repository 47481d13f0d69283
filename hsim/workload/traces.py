"""Readers of request traces: arrival times and lengths, in the formats in which their owners publish them."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
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


def _azure_time(text: str) -> float:
    # 2023-11-16 18:17:03.9799600: seven digits of fraction, one more than datetime reads.
    whole, dot, fraction = text.partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + (float(f"0.{fraction}") if dot else 0.0)


# Header of a format -> how its first column is read. Columns are always arrival, input tokens, output tokens.
FORMATS: dict[tuple[str, ...], Callable[[str], float]] = {
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _azure_time,
    ("arrival_s", "input_tokens", "output_tokens"): float,
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
    rows = csv.reader(lines)
    header = tuple(name.strip() for name in next(rows, ()))
    read_time = FORMATS.get(header[:3])
    if read_time is None:
        known = [",".join(columns) for columns in FORMATS]
        raise DescriptionError(
            f"{file}:1", f"the header is {','.join(header)!r}", did_you_mean(",".join(header), known)
        )
    times, inputs, outputs = [], [], []
    for row in rows:
        if not row:
            continue
        try:
            times.append(read_time(row[0]))
            inputs.append(_tokens(row[1]))
            outputs.append(_tokens(row[2]))
        except (ValueError, IndexError):
            columns = ", ".join(header[:3])
            raise DescriptionError(
                f"{file}:{rows.line_num}",
                f"cannot read {','.join(row)!r}",
                f"a row is {columns}; tokens are whole and at least 1",
            ) from None
    if not times:
        raise DescriptionError(file, "the trace holds no request", "give a trace with at least one row")
    return _in_order(np.array(times), np.array(inputs), np.array(outputs), file)


def _tokens(text: str) -> int:
    tokens = int(text)
    if tokens < 1:
        raise ValueError(text)
    return tokens


def _in_order(times: NDArray[np.float64], inputs: NDArray[np.int64], outputs: NDArray[np.int64], file: str) -> Trace:
    if not np.isfinite(times).all():
        row = int(np.flatnonzero(~np.isfinite(times))[0])
        raise DescriptionError(f"{file}:{row + 2}", "the arrival time is not a finite number")
    order = np.argsort(times, kind="stable")
    return Trace((times - times.min())[order], inputs[order], outputs[order])
