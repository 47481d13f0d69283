"""The folder of one calibration: rows appended as they come, and the machine that they were measured on."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import IO

from hsim.calibrate.machine import Machine
from hsim.calibrate.work import Row, row_from
from hsim.errors import CalibrationError


class Store:
    """rows.jsonl and machine.json of calibration/<name>/. Every row is written before the next is measured."""

    def __init__(self, folder: Path, rows: list[Row], file: IO[str]) -> None:
        self.folder, self.rows, self._file = folder, rows, file

    def append(self, row: Row) -> None:
        """Write a row. Raises CalibrationError where the disk does not take it; rows before it are kept."""
        try:
            self._file.write(json.dumps(row.as_dict()) + "\n")
            self._file.flush()  # a crash of ours loses nothing; fsync, against one of the machine, takes longer than a row
        except OSError as error:
            raise CalibrationError(
                str(self.folder / "rows.jsonl"),
                f"cannot be written ({error.strerror})",
                "make room, then continue with --resume: what was measured so far is kept",
            ) from None
        self.rows.append(row)

    def close(self) -> None:
        """Close the file of rows."""
        with contextlib.suppress(OSError):  # what a full disk did not take, append has said; closing tries it again
            self._file.close()


def open_store(folder: Path, machine: Machine, resume: bool) -> Store:
    """Begin a calibration's folder, or go on with it.

    Raises CalibrationError where one is there and `resume` is not asked for, or where it is another machine's.
    """
    file, described = folder / "rows.jsonl", folder / "machine.json"
    try:
        if file.exists() and not resume:
            raise CalibrationError(
                str(folder), "holds a calibration already", "continue it with --resume, or give another --name"
            )
        rows = _kept(file) if file.exists() else []
        if rows and described.exists():
            _check_same(described, machine)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(described, json.dumps(asdict(machine), indent=2) + "\n")
        return Store(folder, rows, file.open("a", encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(str(folder), f"cannot be written ({error.strerror})", "give another --out") from None


def _kept(file: Path) -> list[Row]:
    """The rows of an interrupted calibration. A last line that was cut short is taken off the file."""
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        os.truncate(file, len(whole.encode()))
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(row_from(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            raise CalibrationError(
                f"{file}:{number}", "is not a row of a calibration", "delete that line, or give another --name"
            ) from None
    return rows


def _check_same(file: Path, machine: Machine) -> None:
    """Rows of one machine and one set of libraries must not be mixed with those of another."""
    then = json.loads(file.read_text(encoding="utf-8"))
    now = asdict(machine)
    for key in machine.identity:
        if then.get(key) != now[key]:
            raise CalibrationError(
                str(file),
                f"was measured with {key} {then.get(key)!r}, and here it is {now[key]!r}",
                "give another --name",
            )


def write_atomically(file: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary one beside it, to the disk, then in its place.

    Raises CalibrationError where that fails; what stood there before is untouched.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise CalibrationError(
            str(file), f"cannot be written ({error.strerror})", "make room or give another --out"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
