"""Which tasks the edge keeps. A policy sees a task as a gateway does, and what a router says of it; not whether it is easy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class KeepView(NamedTuple):
    """A task when it first comes to a model. `seems_easy` is the router's guess, right as often as it is accurate."""

    class_name: str
    input_tokens: int
    rounds_expected: float
    seems_easy: bool


class KeepLimits(NamedTuple):
    """What the scenario says of lengths and classes; inf and () where it does not."""

    max_input_tokens: float
    classes: tuple[str, ...]


Keeper = Callable[[KeepView, KeepLimits], bool]
"""Whether the edge keeps a task."""


def nothing(task: KeepView, limits: KeepLimits) -> bool:
    """All go to the cloud."""
    return False


def everything(task: KeepView, limits: KeepLimits) -> bool:
    """All stay."""
    return True


def short(task: KeepView, limits: KeepLimits) -> bool:
    """Tasks with a short first prompt stay."""
    return task.input_tokens <= limits.max_input_tokens


def of_class(task: KeepView, limits: KeepLimits) -> bool:
    """Tasks of the named classes stay."""
    return task.class_name in limits.classes


def confident(task: KeepView, limits: KeepLimits) -> bool:
    """Tasks that the router takes for easy stay."""
    return task.seems_easy


KEEPERS: dict[str, Keeper] = {
    "none": nothing,
    "all": everything,
    "by-length": short,
    "by-class": of_class,
    "by-confidence": confident,
}
