"""Text files that users bring, gzipped or not: where they are, and errors that name them."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from hsim.errors import DescriptionError

_GZIP = b"\x1f\x8b"


def found(name: str, beside: Path) -> Path:
    """The file of that name: beside the scenario where it is there, else as the working directory has it."""
    near = beside / name
    return near if near.exists() else Path(name)


@contextmanager
def open_text(file: Path, what: str, remedy: str) -> Iterator[TextIO]:
    """A file as text, unpacked if it begins as gzip does or is named .gz. Raises DescriptionError where that fails, also midway."""
    try:
        with file.open("rb") as raw:
            packed = raw.read(len(_GZIP)) == _GZIP or file.suffix == ".gz"
        if packed:
            with gzip.open(file, "rt", encoding="utf-8-sig", newline="") as stream:
                yield stream
        else:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                yield stream
    except FileNotFoundError:
        raise DescriptionError(str(file), f"there is no such {what}", remedy) from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DescriptionError(
            str(file), f"cannot be read ({error})", "is it complete, and is it text or gzipped text?"
        ) from None


def csv_rows(lines: Iterator[str], file: str) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, cells) of each CSV row that is not empty. Raises DescriptionError for what is not CSV."""
    rows, line = csv.reader(lines), 1
    try:
        for row in rows:
            if row:
                yield line, row
            line = rows.line_num + 1
    except csv.Error as error:
        place = f"{file}:{line}"
        raise DescriptionError(place, f"is not CSV ({error})", "is there a quote that nothing closes?") from None
