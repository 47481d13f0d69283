"""Histograms of lengths that stand in a CSV file, such as ML.ENERGY's of output tokens."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from hsim.description.quantities import Histogram
from hsim.description.yamlfile import did_you_mean
from hsim.errors import DescriptionError
from hsim.workload.files import csv_rows, found, open_text

BINS = ("bin_lo_tokens", "bin_hi_tokens", "count")
TOLERANCE = 1e-9  # bins that meet may differ in the last digits that a program printed

M = TypeVar("M", bound=BaseModel)
Bin = tuple[float, float, float]


def with_histograms_read(model: M, beside: Path) -> M:
    """The same description, with the bins of every histogram in a file in place of the file's name."""
    changed: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, dict):
            read: Any = {k: _read(v, beside) for k, v in value.items()}
            if any(read[k] is not v for k, v in value.items()):
                changed[name] = read
        elif (read := _read(value, beside)) is not value:
            changed[name] = read
    return model.model_copy(update=changed) if changed else model


def _read(value: Any, beside: Path) -> Any:
    if isinstance(value, Histogram) and value.file is not None:
        return read_histogram(value, found(value.file, beside))
    return with_histograms_read(value, beside) if isinstance(value, BaseModel) else value


def read_histogram(histogram: Histogram, file: Path) -> Histogram:
    """The histogram with the bins that its file holds in rows that fit `where`."""
    with open_text(file, "histogram", "set its file") as stream:
        bins = _bins(stream, histogram.where, str(file))
    edges, counts = [bins[0][0]], []
    for low, high, count in bins:
        if low < edges[-1] * (1 - TOLERANCE):
            raise DescriptionError(
                str(file),
                f"the bin {low:g} to {high:g} overlaps the one before it, which ends at {edges[-1]:g}",
                "pick the rows of one histogram with where: {column: value}",
            )
        if low > edges[-1] * (1 + TOLERANCE):
            edges.append(low)
            counts.append(0.0)
        edges.append(max(high, edges[-1]))
        counts.append(count)
    if not sum(counts):
        raise DescriptionError(str(file), "every count is 0", "some must be above 0")
    return histogram.model_copy(update={"edges": tuple(edges), "counts": tuple(counts), "file": None, "where": {}})


def _bins(lines: Any, where: dict[str, str], file: str) -> list[Bin]:
    """(low, high, count) of the rows that fit `where`, in order of low."""
    rows = csv_rows(lines, file)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    for column in (*BINS, *where):
        if column not in header:
            raise DescriptionError(f"{file}:1", f"has no column {column!r}", did_you_mean(column, header))
    columns = [header.index(name) for name in BINS]
    picks = [(header.index(name), value) for name, value in where.items()]
    bins = []
    for line, row in rows:
        if all(len(row) > i and row[i] == value for i, value in picks):
            bins.append(_bin(row, columns, f"{file}:{line}"))
    if not bins:
        picked = ", ".join(f"{k}: {v}" for k, v in where.items())
        raise DescriptionError(file, f"has no row with {picked}" if picked else "has no row", "see the file's columns")
    return sorted(bins)


def _bin(row: list[str], columns: list[int], place: str) -> Bin:
    try:
        low, high, count = (float(row[i]) for i in columns)
    except (ValueError, IndexError):
        low = high = count = float("nan")
    if not (isfinite(low) and isfinite(high) and isfinite(count) and 0 <= low <= high and count >= 0):
        raise DescriptionError(
            place,
            f"cannot read the bin {','.join(row)!r}",
            f"{', '.join(BINS)} are numbers, 0 <= low <= high, count >= 0",
        )
    return low, high, count
