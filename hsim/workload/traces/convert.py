"""Writes a trace as hsim's own CSV, which reads back as the same trace."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from hsim.errors import DescriptionError, ResultError
from hsim.workload.traces.trace import Trace

ENDINGS = (".csv", ".csv.gz")


def check_target(source: Path, target: Path) -> None:
    """Raises DescriptionError where a converted trace would go over its own source, or under a name that is none of CSV."""
    if not target.name.lower().endswith(ENDINGS):
        stem = target.name.partition(".")[0] or "trace"
        raise DescriptionError(
            str(target), "is no .csv and no .csv.gz, which is what is written", f"name it {stem}.csv"
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise DescriptionError(str(target), "is the trace itself, which would be overwritten", "choose another file")


def write_trace(trace: Trace, file: Path) -> None:
    """Write a trace as CSV, gzipped where the name ends in .gz; the file is there whole or not at all.

    Raises ResultError where that fails.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
            draft = Path(folder) / file.name
            with draft.open("wb") as raw:
                if file.suffix == ".gz":  # no name and no time inside: the same trace gives the same bytes
                    with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                        _write(trace, io.TextIOWrapper(packed, encoding="utf-8", newline=""))
                else:
                    _write(trace, io.TextIOWrapper(raw, encoding="utf-8", newline=""))
            draft.replace(file)
    except OSError as error:
        raise ResultError(f"{file}: cannot be written ({error.strerror or error}); choose another file") from None


def _write(trace: Trace, stream: TextIO) -> None:
    csv.writer(stream, lineterminator="\n").writerows(_rows(trace))
    stream.flush()
    stream.detach()  # type: ignore[attr-defined]  # a TextIOWrapper: its raw file is closed by who opened it


def _rows(trace: Trace) -> Iterator[tuple[object, ...]]:
    """The header, and each row."""
    columns: dict[str, Sequence[object]] = {}
    task = np.repeat(np.arange(trace.tasks), np.diff(trace.first_rows))
    if trace.arrival_s is not None:
        columns["arrival_s"] = trace.arrival_s[task].tolist()
    if trace.sessions:
        columns["session_id"] = task.tolist()
        columns["round"] = (np.arange(len(task)) - trace.first_rows[task]).tolist()
    columns["input_tokens"] = trace.input_tokens.tolist()
    if trace.sessions:
        columns["context_tokens"] = trace.sessions.context_tokens.tolist()
    columns["output_tokens"] = trace.output_tokens.tolist()
    if trace.sessions:
        columns["wait_after_s"] = trace.sessions.wait_after_s.tolist()
    if trace.prefix_blocks is not None:
        columns["block_tokens"] = [trace.block_tokens] * len(task)
        columns["hash_ids"] = [" ".join(map(str, hashes)) for hashes in trace.prefix_blocks]
    yield tuple(columns)
    yield from zip(*columns.values(), strict=True)
