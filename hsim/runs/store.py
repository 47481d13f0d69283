"""What is kept of runs: files that are there whole or not at all, in folders named by what was run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Protocol, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import BaseModel

from hsim.description.system import System
from hsim.errors import ResultError
from hsim.metrics.study import Replication
from hsim.metrics.summarise import hsim_version
from hsim.policies.own import own_code
from hsim.workload.tasks import Task

KEY_DIGITS = 16
MANIFEST = "manifest.json"
READABLE = 0o644


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises ResultError where that fails."""
    data = content.encode() if isinstance(content, str) else content
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as draft:
            try:
                draft.write(data)
                draft.flush()
                os.fsync(draft.fileno())
                Path(draft.name).chmod(READABLE)  # drafts are their owner's alone
                Path(draft.name).replace(file)
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise _not_written(file, error) from None


def check_writable(folder: Path) -> None:
    """Raises ResultError where nothing can be written into a folder; makes it where it is not there."""
    probe = folder / ".hsim-can-write"
    write_atomically(probe, "")
    probe.unlink(missing_ok=True)


def _not_written(file: Path, error: OSError) -> ResultError:
    return ResultError(f"{file}: cannot be written ({error.strerror or error}); choose another --out")


class Record(Protocol):
    """Something to be written as JSON."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        ...


def as_json(result: Record) -> str:
    """A result as JSON text."""
    return json.dumps(result.as_dict(), indent=2, allow_nan=False) + "\n"


def run_key(system: System, tasks: Sequence[Task]) -> str:
    """What a run is known by: all that it depends on, its drawn tasks, seed and the very source of hsim included, and of
    policies of the user's own.
    """
    content = {f.name: _plain(getattr(system, f.name)) for f in fields(system) if f.name not in ("document", "figures")}
    content["version"] = [hsim_version(), source_digest()]
    content["code"] = own_code(system.document.data, Path(system.document.file).parent)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for task in tasks:
        digest.update(repr(task).encode())
    return digest.hexdigest()[:KEY_DIGITS]


def _plain(value: Any) -> Any:
    """Descriptions as JSON-ready data that is the same for equal descriptions."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return sorted([str(sorted(k) if isinstance(k, frozenset) else k), _plain(v)] for k, v in value.items())
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    assert value is None or isinstance(value, str | int | float), f"{value!r} cannot be part of a run's key"
    return value


@cache
def source_digest() -> str:
    """What the very source of hsim is known by."""
    folder, digest = Path(__file__).parent.parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


class Store:
    """The finished replications of one run, in a folder of their own. A run begun anew goes on where it ended."""

    def __init__(self, out: Path, system: System, tasks: Sequence[Task]) -> None:
        self.key = run_key(system, tasks)
        self.folder = out / "runs" / f"{Path(system.document.file).stem}-{self.key}"
        self._scenario = system.scenario.model_dump(mode="json")
        try:  # now, and not when the first replication has been finished
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_written(self.folder, error) from None

    def mark(self, finished: Sequence[int], wanted: int) -> None:
        """Say which replications were finished, and whether those are all."""
        manifest = {
            "complete": len(finished) == wanted,
            "finished": list(finished),
            "wanted": wanted,
            "key": self.key,
            "hsim_version": hsim_version(),
            "scenario": self._scenario,
        }
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")

    def get(self, name: str) -> Replication | None:
        """A finished replication, or None. Raises ResultError for a file that is not one."""
        file = self.folder / f"{name}.npz"
        if not file.is_file():
            return None
        try:
            with np.load(file, allow_pickle=False) as arrays:
                data = json.loads(arrays["data"].tobytes())
                return _decode(Replication, data, dict(arrays))  # type: ignore[no-any-return]
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ResultError(f"{file}: is not a replication that hsim wrote ({error}); delete it") from None

    def put(self, name: str, replication: Replication) -> None:
        """Keep a finished replication."""
        arrays: dict[str, Any] = {}
        data = json.dumps(_encode(replication, arrays))
        buffer = io.BytesIO()
        np.savez(buffer, data=np.frombuffer(data.encode(), dtype=np.uint8), **arrays)
        write_atomically(self.folder / f"{name}.npz", buffer.getvalue())


def _encode(value: Any, arrays: dict[str, Any]) -> Any:
    """Dataclasses, mappings and tuples as JSON-ready data; arrays apart, under numbers."""
    if isinstance(value, np.ndarray):
        arrays[str(len(arrays))] = value
        return str(len(arrays) - 1)
    if is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name), arrays) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _encode(inner, arrays) for key, inner in value.items()}
    return [_encode(inner, arrays) for inner in value] if isinstance(value, tuple) else value


def _decode(kind: Any, data: Any, arrays: Mapping[str, Any]) -> Any:
    """The inverse of _encode, for a value of this type."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _decode(hints[name], inner, arrays) for name, inner in data.items()})  # type: ignore[operator]
    origin, inside = get_origin(kind), get_args(kind)
    if origin is UnionType:  # of something, or None
        return None if data is None else _decode(inside[0], data, arrays)
    if origin is np.ndarray:
        return arrays[data]
    if origin is dict:
        return {key: _decode(inside[1], inner, arrays) for key, inner in data.items()}
    return tuple(_decode(inside[0], inner, arrays) for inner in data) if origin is tuple else data
