"""Page risk."""

from __future__ import annotations

from hsim.dashboard.state import State
from hsim.description.system import System


def page(state: State, system: System) -> None:
    """The page."""
