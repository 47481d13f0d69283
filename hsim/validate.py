"""Prediction against measurement: the same tasks simulated and run live, side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.description.scenario import load
from hsim.description.system import System, resolve
from hsim.drivers.live import LiveRun, MeteredJoules, run_live, sleep_through
from hsim.drivers.prepared import prepare
from hsim.drivers.simulated import run
from hsim.log import Log, Stage
from hsim.metrics.measured import samples_of


@dataclass(frozen=True)
class Compared:
    """One quantity predicted and measured. The error is predicted / measured - 1; None where nothing was measured."""

    quantity: str
    unit: str
    predicted: float
    measured: float
    error_fraction: float | None


@dataclass(frozen=True)
class Validation:
    """How far a prediction was off. `calibration_sha256` was taken before anything was measured."""

    scenario: str
    calibration_sha256: str
    device: str
    tasks: int
    compared: tuple[Compared, ...]
    notes: tuple[str, ...]
    energy: tuple[MeteredJoules, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def calibration_hash(system: System) -> str:
    """SHA-256 over every profile that the system stands on: what a prediction is made from."""
    digest = hashlib.sha256()
    for name in sorted(system.figures.documents):
        digest.update(Path(system.figures.documents[name].file).read_bytes())
    return digest.hexdigest()


def validate(scenario: str | Path, settings: Sequence[str] = (), device: str = "cpu") -> Validation:
    """Simulate a scenario, then run the very same tasks live, and compare.

    Raises DescriptionError for what cannot run live here, BackendError for a backend that fails.
    """
    prepared = prepare(resolve(*load(scenario, settings)))
    frozen = calibration_hash(prepared.system)
    predicted = quantities(run(prepared))
    live = run_live(prepared, device)
    measured = quantities(live.log)
    compared = [
        Compared(name, unit, value, measured[name][0], _error(value, measured[name][0]))
        for name, (value, unit) in predicted.items()
        if name in measured
    ]
    return Validation(
        prepared.system.document.file, frozen, device, len(live.log.tasks), tuple(compared), live.notes, live.energy
    )


@dataclass(frozen=True)
class LiveResult:
    """What a live run measured."""

    scenario: str
    device: str
    tasks: int
    measured: dict[str, tuple[float, str]]
    notes: tuple[str, ...]
    energy: tuple[MeteredJoules, ...]


def live(scenario: str | Path, settings: Sequence[str] = (), device: str = "cpu", sleep: bool = False) -> LiveResult:
    """Run a scenario's tasks live, or with a backend that sleeps for the modelled times."""
    prepared = prepare(resolve(*load(scenario, settings)))
    if sleep:
        done = LiveRun(sleep_through(prepared), ("sleeping for the modelled times",), ())
    else:
        done = run_live(prepared, device)
    file = prepared.system.document.file
    return LiveResult(file, device, len(done.log.tasks), quantities(done.log), done.notes, done.energy)


def _error(predicted: float, measured: float) -> float | None:
    return predicted / measured - 1 if measured else None


def quantities(log: Log) -> dict[str, tuple[float, str]]:
    """What is compared of a run: throughput, latencies, and each stage's waiting and service. (value, unit) by name."""
    tables = log.arrays()
    tasks, visits = tables["tasks"], tables["visits"]
    window_s = float(tasks["ended_s"].max() - tasks["arrival_s"].min())
    tokens = float(visits["output_tokens"].sum())
    found = {"tasks": (len(log.tasks) / window_s, "1/s"), "output tokens": (tokens / window_s, "1/s")}
    for name, sample in samples_of(tasks, visits).items():
        seconds = sample.seconds
        found[f"{name} mean"] = (float(seconds.mean()), "s")
        found[f"{name} p50"] = (float(np.quantile(seconds, 0.5)), "s")
        if len(seconds) >= MIN_FOR_P95:
            found[f"{name} p95"] = (float(np.quantile(seconds, 0.95)), "s")
    for stage in Stage:
        rows = visits["stage"] == stage
        if rows.any():
            found[f"{stage.name.lower()} wait mean"] = (_mean(visits, rows, "queued_s", "started_s"), "s")
            found[f"{stage.name.lower()} service mean"] = (_mean(visits, rows, "started_s", "served_s"), "s")
    return found


MIN_FOR_P95 = 200  # ten points beyond it


def _mean(visits: Any, rows: NDArray[np.bool_], start: str, end: str) -> float:
    return float((visits[end] - visits[start])[rows].mean())
