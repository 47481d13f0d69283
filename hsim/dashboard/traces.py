"""Traces that visitors upload: bounded, read by the readers of every trace, and kept under a name made of what they hold.

Nothing that an upload is called becomes a path. A link that names a trace gives the same figures again, or says that it
is not here any more.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hsim.description.yamlfile import Document, leaves
from hsim.errors import DescriptionError, HsimError
from hsim.runs.store import write_atomically
from hsim.units import MIB
from hsim.workload.traces import read_trace

UPLOAD_MIB = 8
UNPACKED_BYTES = 24 * MIB
KEPT = 16  # the oldest gives way
NAME = re.compile(r"trace-[0-9a-f]{16}")
LENGTHS = ("rounds", "input_tokens", "output_tokens", "context", "sampled_from")  # of a class, that a trace brings


@dataclass(frozen=True)
class Held:
    """What an uploaded trace holds."""

    name: str
    format: str
    tasks: int
    timed: bool


def stored(called: str, data: bytes) -> str:
    """Keep an uploaded trace, unpacked, and give its name. Raises DescriptionError for one that is too large or broken."""
    if len(data) > UPLOAD_MIB * MIB:
        raise DescriptionError(called, f"has {len(data):,} bytes", f"a trace has at most {UPLOAD_MIB} MiB; gzip it")
    text = _unpacked(called, data)
    name = f"trace-{hashlib.sha256(text).hexdigest()[:16]}"
    assert NAME.fullmatch(name)
    write_atomically(folder() / name, text)
    kept = sorted((file for file in folder().iterdir() if NAME.fullmatch(file.name)), key=lambda f: f.stat().st_mtime)
    for old in kept[:-KEPT]:
        old.unlink(missing_ok=True)
    return name


def _unpacked(called: str, data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    inflate = zlib.decompressobj(wbits=31)
    try:
        text = inflate.decompress(data, UNPACKED_BYTES)
    except zlib.error as error:
        raise DescriptionError(called, f"cannot be unpacked ({error})", "is it complete?") from None
    if inflate.unconsumed_tail:
        what = f"holds more than {UNPACKED_BYTES // MIB} MiB once it is unpacked"
        raise DescriptionError(called, what, "cut a part out of it")
    if not inflate.eof:
        raise DescriptionError(called, "cannot be unpacked", "is it complete?")
    return text


def held(name: str) -> Held:
    """What a stored trace holds; one that cannot be read is removed. Raises DescriptionError, which names no path."""
    file = folder() / name
    try:
        trace = read_trace(file)
    except DescriptionError as error:
        file.unlink(missing_ok=True)
        where = error.where.replace(str(file), "the trace")
        raise DescriptionError(where, error.problem, error.remedy) from None
    return Held(name, trace.format, trace.tasks, trace.arrival_s is not None)


def folder() -> Path:
    """The server's own folder of traces, into which nobody else can put one. Raises HsimError where that is not so."""
    if sys.platform == "win32":
        found = Path(tempfile.gettempdir()) / "hsim-traces"
        found.mkdir(exist_ok=True)
        return found
    found = Path(tempfile.gettempdir()) / f"hsim-traces-{os.getuid()}"
    found.mkdir(mode=0o700, exist_ok=True)
    status = found.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise HsimError(f"{found}: is not a folder of this server alone; remove it")
    return found


def is_upload(path: tuple[str | int, ...], value: Any) -> bool:
    """Whether a key of a scenario names an uploaded trace."""
    return path[-1:] == ("file",) and isinstance(value, str) and NAME.fullmatch(value) is not None


def beside_its_traces(document: Document) -> Document:
    """The document as if it stood beside the uploaded traces that it names, where it names any.

    Raises DescriptionError for one that is not here.
    """
    named = [(path, value) for path, value in leaves(document.data) if is_upload(path, value)]
    for path, value in named:
        if not (folder() / value).is_file():
            what = f"the trace {value} is not on this server any more"
            raise DescriptionError(document.where(path), what, "upload it again: it is known by what it holds")
    return replace(document, file=str(folder() / Path(document.file).name)) if named else document


def replaying(data: Any, trace: Held, most_tasks: int) -> Mapping[str, Any]:
    """Changes that make a scenario replay a trace: its times, and the lengths that it brings, instead of the scenario's."""
    workload = data["workload"]
    changes: dict[str, Any] = {
        "workload.arrivals": {"kind": "trace", "file": trace.name},
        "workload.tasks": min(trace.tasks, workload.get("tasks") or most_tasks),
    }
    if "measure" in workload:
        changes["workload.measure"] = None
    for name, kind in workload.get("classes", {}).items():
        changes[f"workload.classes.{name}"] = {key: value for key, value in kind.items() if key not in LENGTHS}
    return changes
