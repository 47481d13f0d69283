"""Clocks for live runs: the wall's, and one that tests move by hand."""

from __future__ import annotations

import math
import time
from queue import Empty, SimpleQueue
from typing import Any, Protocol


class Clock(Protocol):
    """Tells the seconds since it was made, and waits."""

    def now_s(self) -> float:
        """Seconds since the clock was made."""
        ...

    def wait(self, until_s: float, finished: SimpleQueue[Any]) -> Any:
        """Wait until an instant or until something is finished, whichever comes first; return that, or None."""
        ...


class WallClock:
    """The machine's monotonic clock."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def now_s(self) -> float:
        """See Clock."""
        return time.monotonic() - self._start_s

    def wait(self, until_s: float, finished: SimpleQueue[Any]) -> Any:
        """See Clock."""
        left_s = until_s - self.now_s()
        try:
            return finished.get(timeout=None if math.isinf(left_s) else max(0.0, left_s))
        except Empty:
            return None


class ManualClock:
    """Jumps to whatever is waited for: a live run on it takes no time, and every instant is exact."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        """See Clock."""
        return self._now_s

    def wait(self, until_s: float, finished: SimpleQueue[Any]) -> Any:
        """See Clock. Work done by threads has no place on this clock."""
        self._now_s = until_s
