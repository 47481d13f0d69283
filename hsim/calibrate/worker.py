"""The process that measures, as its parent sees it: torch and its crashes stay out of the calibration's own process."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hsim.calibrate.work import Reading, Unit
from hsim.errors import CalibrationError

START_S = 180.0  # importing torch from a cold disk takes a minute
PATIENCE = 20.0  # a unit may take this many times what was expected of it ...
LEAST_PATIENCE_S = 120.0  # ... and this long in any case: an index may have to be built


class WorkerDied(Exception):
    """A worker ended, or had to be ended, in the middle of a unit; the message says how."""


def require_torch() -> None:
    """Raises CalibrationError where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise CalibrationError(
            "calibrate", "torch is not installed, and kernels are measured with it", "pip install 'hsim[calibrate]'"
        )


class Worker:
    """One measuring process on one device with so many threads. `facts` are what it found there."""

    def __init__(self, device: str, threads: int, model: str) -> None:
        self.device = device
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed in close()
        # The child must find this very hsim and what it needs, wherever they were imported from.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "OMP_WAIT_POLICY": "passive",
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, "-m", "hsim.calibrate.bench", device, str(threads), model]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
        )
        self._unread = b""
        try:
            self.facts: dict[str, Any] = self._answer(START_S)
        except WorkerDied as error:
            raise CalibrationError(f"calibrate --device {device}", f"cannot start measuring: {error}") from None
        if problem := self.facts.get("problem"):
            self.close()
            raise CalibrationError(f"calibrate --device {device}", str(problem), str(self.facts.get("remedy", "")))

    def send(self, what: str, unit: Unit) -> None:
        """Ask for something to be done: `prepare` or `measure` a unit."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, "unit": asdict(unit)}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerDied(self._how_it_died()) from None

    def reading(self, unit: Unit) -> Reading:
        """What came of the last thing that was asked for. Raises WorkerDied."""
        answer = self._answer(max(LEAST_PATIENCE_S, PATIENCE * unit.expected_s))
        return Reading(**{**answer, "marks": tuple(answer.get("marks", ()))})

    def measure(self, unit: Unit) -> Reading:
        """Prepare and measure a unit."""
        self.send("measure", unit)
        return self.reading(unit)

    def _answer(self, patience_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until_s = time.monotonic() + patience_s
        while b"\n" not in self._unread:
            left_s = until_s - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, left_s))
            if not ready:
                self.close()
                raise WorkerDied(f"it did not answer within {patience_s:.0f} s and was ended")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise WorkerDied(self._how_it_died())
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _how_it_died(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        if code < 0:
            name = signal.Signals(-code).name
            return f"it was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return f"it ended with code {code}" + (f": {said[-1]}" if said else "")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                _close_quietly(pipe)
        self._errors.close()


def _close_quietly(pipe: Any) -> None:
    # Closing flushes, and nobody reads any more.
    try:
        pipe.close()
    except BrokenPipeError:
        return


def failed(unit: Unit, why: str) -> Reading:
    """The reading of a unit that could not be measured."""
    return Reading(failure=f"{unit.kind}: {why}")


def mean_reading(readings: list[Reading], facts: Mapping[str, float] | None = None) -> Reading:
    """Several workers' readings of one unit at the same time as one: what the average core saw."""
    measured = [r for r in readings if r.seconds is not None]
    if len(measured) < len(readings):
        return next(r for r in readings if r.seconds is None)
    fractions = [r.cpu_fraction for r in measured if r.cpu_fraction is not None]
    return Reading(
        seconds=sum(r.seconds or 0.0 for r in measured) / len(measured),
        iqr_s=max(r.iqr_s or 0.0 for r in measured),
        samples=sum(r.samples for r in measured),
        cpu_fraction=min(fractions) if fractions else None,
    )
