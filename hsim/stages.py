"""Your own stages: Python functions that calibrate measures, simulations count with, and live runs execute.

    from hsim.stages import stage

    @stage(unit="page", sizes=(1, 4, 16, 64))
    def redact(pages: int) -> str:
        return NAMES.sub("X", PAGE * pages)

docs/calibration.md shows a whole file. hsim imports it only where --allow-code says so, and only in worker processes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeVar

from hsim.errors import DescriptionError

MARK = "hsim_stage"
FEWEST_SIZES = 3  # a cost with a base and a slope, and a point to test it on
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
    Raises DescriptionError for one that cannot be measured so.
    """

    def declare(function: F) -> F:
        name = f"stage {getattr(function, '__name__', function)}"
        _check_sizes(name, sizes)
        if not 0 < timeout_s < math.inf:
            raise DescriptionError(name, f"timeout_s is {timeout_s!r}", "give a number of seconds above 0")
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            what = "does nothing when it is called: it yields or is async"
            raise DescriptionError(name, what, "return when the work is done")
        setattr(function, MARK, Declared(unit, tuple(sorted(map(int, sizes))), timeout_s))
        return function

    return declare


def _check_sizes(name: str, sizes: Sequence[int]) -> None:
    """They are what the function is measured with, and its cost fitted to."""
    given = list(sizes)
    fit = all(isinstance(size, Integral) and size >= 0 for size in given)
    if not fit or len(given) < FEWEST_SIZES or len(set(given)) < len(given):
        remedy = f"give {FEWEST_SIZES} different ones or more, whole numbers, none below 0"
        raise DescriptionError(name, f"sizes are {given}", remedy)
