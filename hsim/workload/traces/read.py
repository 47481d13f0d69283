"""Reads a trace file in whichever format its beginning shows."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TextIO

from hsim.errors import DescriptionError
from hsim.workload.files import open_text
from hsim.workload.traces import csv_formats, json_formats
from hsim.workload.traces.trace import Columns, Trace, in_order


def read_trace(
    file: Path, tokenizer: Path | None = None, remedy: str = "check its name and the folder that it is in"
) -> Trace:
    """Read a trace, gzipped or not. `tokenizer` counts the tokens of formats that hold text.

    Raises DescriptionError with the line of the first fault, and with `remedy` where there is no such file.
    """
    with open_text(file, "trace file", remedy) as stream:
        return in_order(_read(stream, str(file), tokenizer), str(file))


def _read(stream: TextIO, file: str, tokenizer: Path | None) -> Columns:
    head = ""
    blank = 0
    for line in stream:
        if line.strip():
            head = line
            break
        blank += 1
    if not head:
        raise DescriptionError(file, "the file is empty", "give a trace with at least one row")
    text = chain(["\n"] * blank, [head], stream)
    match head.lstrip()[0]:
        case "[":
            return json_formats.read_conversations("".join(text), file, tokenizer)
        case "{":
            return json_formats.read_objects(head, text, file)
    return csv_formats.read_csv(text, file)
