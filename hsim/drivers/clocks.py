"""Clocks for live runs: the wall's, and one that tests move by hand."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Protocol


class Clock(Protocol):
    """Tells the seconds since it was made, and waits."""

    def now_s(self) -> float:
        """Seconds since the clock was made."""
        ...

    def wait(self, until_s: float, awaited: Sequence[Connection]) -> list[Connection]:
        """Wait until an instant or until an answer can be read, whichever comes first; return what can be read."""
        ...


class WallClock:
    """The machine's monotonic clock."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def now_s(self) -> float:
        """See Clock."""
        return time.monotonic() - self._start_s

    def wait(self, until_s: float, awaited: Sequence[Connection]) -> list[Connection]:
        """See Clock."""
        left_s = None if math.isinf(until_s) else max(0.0, until_s - self.now_s())
        if awaited:
            return [ready for ready in wait(list(awaited), left_s) if isinstance(ready, Connection)]
        assert left_s is not None, "nothing is awaited"
        time.sleep(left_s)
        return []


class ManualClock:
    """Jumps to whatever is waited for: a live run on it takes no time, and every instant is exact."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        """See Clock."""
        return self._now_s

    def wait(self, until_s: float, awaited: Sequence[Connection]) -> list[Connection]:
        """See Clock. Work done by others has no place on this clock."""
        self._now_s = until_s
        return []
