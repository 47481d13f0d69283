"""A validation: simulate a scenario, run the very same tasks live, again and again, and judge the difference."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hsim.description.scenario import load
from hsim.description.system import System, resolve
from hsim.drivers.endpoint import RemoteSpec
from hsim.drivers.live import LiveRun, MeteredJoules, Stand, sleep_through
from hsim.drivers.prepared import Prepared, prepare
from hsim.drivers.simulated import run
from hsim.errors import BackendError
from hsim.log import Log
from hsim.metrics.rough import draw_worlds, rough_figures, system_in
from hsim.validate.blame import Blame, blame
from hsim.validate.pace import Paced, measure_pace, pace_of
from hsim.validate.quantities import Accounted, Quantities, accounted, as_clients_see, quantities
from hsim.validate.terms import repaired

SPREADS = 2.0  # an error within twice the spread of repeats cannot be told from the machine's noise
SMALL = 0.0002  # of the mean end-to-end time: waits below it are not judged
BOUNDS = (0.05, 0.95)  # of the worlds that a prediction's stated uncertainty leaves


@dataclass(frozen=True)
class Options:
    """How a validation is done: where decoders run, how often the tasks are run live, in how many worlds simulated, and
    whether people's own stages may be executed. With `endpoint`, visits to the model go there.
    """

    device: str = "cpu"
    repeats: int = 1
    worlds: int = 20
    allow_code: bool = False
    endpoint: RemoteSpec | None = None

    def view(self, log: Log) -> Log:
        """A log as live runs show it: an endpoint hides when a visit begins to be served."""
        return as_clients_see(log) if self.endpoint else log


@dataclass(frozen=True)
class Compared:
    """One quantity predicted and measured. Errors are predicted / measured - 1; None where nothing was measured.

    `low` and `high` are what the calibration's stated uncertainty leaves; None where it states none. `measured` is the
    mean over repeats, and `spread_fraction` their standard deviation relative to it. `at_pace` is the prediction with
    the costs that the machine had beside the live runs.
    """

    quantity: str
    unit: str
    predicted: float
    low: float | None
    high: float | None
    measured: float
    spread_fraction: float | None
    at_pace: float | None

    @property
    def error_fraction(self) -> float | None:
        """How far the prediction was off."""
        return _error(self.predicted, self.measured)

    @property
    def pace_error_fraction(self) -> float | None:
        """How far it is off with the machine's pace taken out."""
        return None if self.at_pace is None else _error(self.at_pace, self.measured)

    @property
    def verdict(self) -> str:
        """`within` what the calibration states; `noise`: no further off than twice the repeats' spread; or `beyond`.

        `unjudged` where nothing was stated and a single run has no spread.
        """
        if self.low is None and self.spread_fraction is None:
            return "unjudged"
        low, high = (self.predicted, self.predicted) if self.low is None or self.high is None else (self.low, self.high)
        if low <= self.measured <= high:
            return "within"
        noise = SPREADS * (self.spread_fraction or 0.0) * self.measured
        return "noise" if low - noise <= self.measured <= high + noise else "beyond"


@dataclass(frozen=True)
class Validation:
    """How far a prediction was off, and why. `calibration_sha256` was taken before anything was measured.

    `logs` are the predicted one and those of the live runs. `stopped` says what ended it before its last repeat did.
    """

    scenario: str
    calibration_sha256: str
    device: str
    repeats: int
    compared: tuple[Compared, ...]
    blame: Blame
    pace: tuple[Paced, ...]
    tasks: tuple[Accounted, ...]
    failures: dict[str, int]
    notes: tuple[str, ...]
    energy: tuple[tuple[MeteredJoules, ...], ...]
    stopped: str = ""
    logs: tuple[Log, ...] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data; logs are left out."""
        plain = asdict(replace(self, logs=()))
        del plain["logs"]
        for row, cells in zip(self.compared, plain["compared"], strict=True):
            cells |= {"error_fraction": row.error_fraction, "pace_error_fraction": row.pace_error_fraction}
            cells["verdict"] = row.verdict
        return plain


def calibration_hash(system: System) -> str:
    """SHA-256 over every profile that the system stands on: what a prediction is made from."""
    digest = hashlib.sha256()
    for name in sorted(system.figures.documents):
        digest.update(Path(system.figures.documents[name].file).read_bytes())
    return digest.hexdigest()


def validate(scenario: str | Path, settings: Sequence[str] = (), options: Options = Options()) -> Validation:
    """Simulate a scenario, then run the very same tasks live, and compare.

    Raises DescriptionError for what cannot run live here, BackendError for a backend that cannot be opened. Whatever
    befalls a task or a worker later, and Ctrl-C, is told by the result.
    """
    prepared = prepare(resolve(*load(scenario, settings)))
    prediction = Prediction.of(prepared, options)
    with Stand((prepared,), options.device, options.allow_code, options.endpoint) as stand:
        measured = Measured()
        while len(measured.runs) < options.repeats and not measured.stopped:
            measured.once_more(prepared, stand)
        return judged(prediction, measured, options)


@dataclass(frozen=True)
class Prediction:
    """What a calibration says of a system's tasks, made and sealed by its hash before anything is measured."""

    prepared: Prepared
    calibration_sha256: str
    log: Log
    worlds: tuple[Quantities, ...]

    @classmethod
    def of(cls, prepared: Prepared, options: Options) -> Prediction:
        """Simulate the tasks, and again in worlds within the stated uncertainty of the figures that it stands on."""
        system, sha256, log = prepared.system, calibration_hash(prepared.system), options.view(run(prepared))
        drawn = (
            draw_worlds(rough_figures(system), options.worlds, system.scenario.seed) if rough_figures(system) else []
        )
        others = tuple(quantities(options.view(run(prepare(system_in(system, world))))) for world in drawn)
        return cls(prepared, sha256, log, others)

    def bounds(self, quantity: str) -> tuple[float | None, float | None]:
        """What the stated uncertainty leaves of a quantity."""
        values = [world[quantity][0] for world in self.worlds if quantity in world]
        return tuple(np.quantile(values, BOUNDS).tolist()) if values else (None, None)


@dataclass
class Measured:
    """Live runs of a system's tasks on a stand, and looks at its pace: before the first and after each.

    `looked` is the last of those looks.
    """

    runs: list[LiveRun] = field(default_factory=list)
    pace: list[Paced] = field(default_factory=list)
    looked: list[Paced] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    stopped: str = ""

    def once_more(self, prepared: Prepared, stand: Stand, before: Sequence[Paced] = ()) -> None:
        """Run the tasks live once more; `before` is a look that was taken just now, if one was.

        What ends that early, Ctrl-C included, is kept as `stopped`.
        """
        self.notes = stand.notes
        try:
            if not self.runs:
                self.pace += before or measure_pace(stand, prepared)
            self.runs.append(stand.run(prepared))
            self.stopped = self.runs[-1].stopped
            if not self.stopped:
                self.looked = measure_pace(stand, prepared)
                self.pace += self.looked
        except KeyboardInterrupt:
            self.stopped = "Ctrl-C"
        except BackendError as error:  # a worker that died while its pace was taken
            self.stopped = str(error)


def judged(prediction: Prediction, live: Measured, options: Options) -> Validation:
    """A prediction beside what was measured."""
    prepared, runs, pace = prediction.prepared, live.runs, live.pace
    measured = [found for one in runs if not one.stopped and (found := quantities(one.log))]
    at_pace = quantities(options.view(run(repaired(prepared, pace_of(pace))))) if pace else {}
    predicted = quantities(prediction.log)
    told = [accounted(one.log, len(prepared.drawn.tasks)) for one in runs]
    failures: Counter[str] = sum((one.record.failures for one in runs), Counter())
    return Validation(
        scenario=prepared.system.document.file,
        calibration_sha256=prediction.calibration_sha256,
        device=options.device,
        repeats=options.repeats,
        compared=tuple(
            _compared(name, prediction, predicted, measured, at_pace) for name in _common(predicted, measured)
        ),
        blame=blame(prediction.log, prepared, [one for one in runs if not one.stopped], pace_of(pace)),
        pace=tuple(pace),
        tasks=tuple(told),
        failures=dict(failures),
        notes=tuple(dict.fromkeys(note for one in runs for note in one.notes)) or live.notes,
        energy=tuple(one.energy for one in runs),
        stopped=live.stopped,
        logs=(prediction.log, *(one.log for one in runs if not one.stopped)),
    )


def _common(predicted: Quantities, measured: Sequence[Quantities]) -> list[str]:
    """What was both predicted and measured, and is no part of a task's life too short for anybody to care."""

    def matters(name: str) -> bool:
        values = [one[name] for one in (predicted, *measured)]
        return values[0][1] != "s" or any(seconds >= SMALL * whole_s for seconds, _ in values)

    if not measured:
        return []
    whole_s = max(one["e2e mean"][0] for one in measured)
    return [name for name in predicted if all(name in one for one in measured) and matters(name)]


def _compared(
    name: str, prediction: Prediction, predicted: Quantities, measured: Sequence[Quantities], at_pace: Quantities
) -> Compared:
    values = np.array([one[name][0] for one in measured])
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) / mean if len(values) > 1 and mean else None
    value, unit = predicted[name]
    return Compared(
        name, unit, value, *prediction.bounds(name), mean, spread, at_pace[name][0] if name in at_pace else None
    )


@dataclass(frozen=True)
class LiveResult:
    """What a live run measured, and what became of every task."""

    scenario: str
    device: str
    tasks: Accounted
    measured: Quantities
    failures: dict[str, int]
    notes: tuple[str, ...]
    energy: tuple[MeteredJoules, ...]
    stopped: str = ""


def live(
    scenario: str | Path,
    settings: Sequence[str] = (),
    device: str = "cpu",
    sleep: bool = False,
    allow_code: bool = False,
    endpoint: RemoteSpec | None = None,
) -> LiveResult:
    """Run a scenario's tasks live, or with a backend that sleeps for the modelled times."""
    prepared = prepare(resolve(*load(scenario, settings)))
    if sleep:
        done = LiveRun(sleep_through(prepared), ("sleeping for the modelled times",), ())
    else:
        with Stand((prepared,), device, allow_code, endpoint) as stand:
            done = stand.run(prepared)
    return LiveResult(
        prepared.system.document.file,
        device,
        accounted(done.log, len(prepared.drawn.tasks)),
        quantities(done.log),
        dict(done.record.failures),
        done.notes,
        done.energy,
        done.stopped,
    )


def _error(predicted: float, measured: float) -> float | None:
    return predicted / measured - 1 if measured else None
