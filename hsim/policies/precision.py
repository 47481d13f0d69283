"""When a replica goes over to its other weights: under load, for want of KV cache, or where electricity is dirty."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class SwitchView(NamedTuple):
    """A replica that has two sets of weights, as of its last step boundary.

    `other`: it serves with the other set. `waiting` visits wait for it, `used_fraction` of its KV cache is taken, and a
    kWh costs gco2_per_kwh now. Between `below` and `above` nothing is to change.
    """

    other: bool
    waiting: int
    used_fraction: float
    gco2_per_kwh: float
    above: float
    below: float


SwitchPolicy = Callable[[SwitchView], bool]
"""Whether a replica should serve with the other set of weights."""


def _beyond(quantity: float, view: SwitchView) -> bool:
    return quantity > (view.below if view.other else view.above)


def waiting(view: SwitchView) -> bool:
    """By the visits that wait."""
    return _beyond(view.waiting, view)


def kv(view: SwitchView) -> bool:
    """By the used part of the KV cache."""
    return _beyond(view.used_fraction, view)


def carbon(view: SwitchView) -> bool:
    """By the carbon intensity of electricity."""
    return _beyond(view.gco2_per_kwh, view)


SWITCHES: dict[str, SwitchPolicy] = {"waiting": waiting, "kv": kv, "carbon": carbon}
