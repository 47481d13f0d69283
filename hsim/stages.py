"""Your own stages: Python functions that calibrate measures, simulations count with, and live runs execute.

    from hsim.stages import stage

    @stage(unit="page", sizes=(1, 4, 16, 64))
    def redact(pages: int) -> str:
        return NAMES.sub("X", PAGE * pages)

docs/calibration.md shows a whole file. hsim imports it only where --allow-code says so, and only in worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

MARK = "hsim_stage"
F = TypeVar("F", bound=Callable[[int], Any])


@dataclass(frozen=True)
class Declared:
    """What a function was declared as: what its argument counts, where to measure it, and when it is given up."""

    unit: str
    sizes: tuple[int, ...]
    timeout_s: float


def stage(unit: str, sizes: Sequence[int], timeout_s: float = 60.0) -> Callable[[F], F]:
    """Declare a function of a number of units as a stage.

    Its cost is fitted over `sizes`, which should span what tasks will ask for. A call that takes longer than
    `timeout_s` is ended with its process. A function that uses a GPU must wait for it before it returns.
    """

    def declare(function: F) -> F:
        setattr(function, MARK, Declared(unit, tuple(sorted(sizes)), timeout_s))
        return function

    return declare
