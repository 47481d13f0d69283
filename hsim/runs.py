"""Runs from start to result, and the store of finished ones."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.prepared import prepare
from hsim.drivers.simulated import run
from hsim.errors import ResultError
from hsim.metrics.result import Result
from hsim.metrics.summarise import summarise


def simulate(scenario: str | Path, settings: Sequence[str] = (), stepwise: bool = False) -> Result:
    """Simulate a scenario (a path, or the name of a shipped one) once, with `path=value` settings applied.

    Raises DescriptionError before time zero for anything that cannot run.
    """
    prepared = prepare(resolve(*load(scenario, settings)))
    return summarise(run(prepared, stepwise), prepared.system, prepared.accounts, prepared.drawn)


def write_atomically(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all. Raises ResultError where that fails."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=file.parent, prefix=f".{file.name}.", delete=False
        ) as draft:
            try:
                draft.write(text)
                draft.flush()
                os.fsync(draft.fileno())
                Path(draft.name).replace(file)
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ResultError(f"{file}: cannot be written ({error.strerror or error}); choose another --out") from None


class Record(Protocol):
    """Something to be written as JSON."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        ...


def as_json(result: Record) -> str:
    """A result as JSON text."""
    return json.dumps(result.as_dict(), indent=2, allow_nan=False) + "\n"
