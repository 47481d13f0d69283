"""A validation: simulate a scenario, run the very same tasks live, again and again, and judge the difference."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hsim.description.scenario import load
from hsim.description.system import System, resolve
from hsim.drivers.endpoint import RemoteSpec
from hsim.drivers.live import LiveRun, MeteredJoules, Stand, sleep_through
from hsim.drivers.prepared import Prepared, prepare
from hsim.drivers.simulated import run
from hsim.errors import BackendError
from hsim.log import Log
from hsim.metrics.notes import beyond_measured
from hsim.metrics.rough import draw_worlds, rough_figures, system_in
from hsim.validate.blame import Blame, blame
from hsim.validate.compared import Compared, Sides
from hsim.validate.energy import Counted, Drew, counted_by_meters, drew, energy_quantities
from hsim.validate.pace import Paced, measure_pace, pace_of
from hsim.validate.quantities import (
    Accounted,
    Quantities,
    Tasks,
    accounted,
    as_clients_see,
    quantities,
    served_in,
    served_in_all,
)
from hsim.validate.terms import repaired


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
class Simulated:
    """A simulated run: its log as live runs show theirs, and what it drew."""

    log: Log
    drew: Drew

    @classmethod
    def of(cls, prepared: Prepared, options: Options) -> Simulated:
        """Simulate the tasks."""
        log = run(prepared)
        return cls(options.view(log), drew(log, prepared.accounts))

    def shortened(self) -> Simulated:
        """With no more of the log than is compared: worlds are many."""
        return replace(self, log=Log(tasks=self.log.tasks, visits=self.log.visits))

    def quantities(self, tasks: Tasks, counted: Sequence[Counted]) -> Quantities:
        """What is compared of it with runs that served these tasks, and of whose energy this was counted."""
        joules = {one.boundary: one.predicted_j(self.drew) for one in counted}
        return quantities(self.log, tasks) | energy_quantities(joules, self.log)


@dataclass(frozen=True)
class Prediction:
    """What a calibration says of a system's tasks, made and sealed by its hash before anything is measured."""

    prepared: Prepared
    calibration_sha256: str
    run: Simulated
    worlds: tuple[Simulated, ...]

    @classmethod
    def of(cls, prepared: Prepared, options: Options) -> Prediction:
        """Simulate the tasks, and again in worlds within the stated uncertainty of the figures that it stands on."""
        system, sha256, own = prepared.system, calibration_hash(prepared.system), Simulated.of(prepared, options)
        drawn = (
            draw_worlds(rough_figures(system), options.worlds, system.scenario.seed) if rough_figures(system) else []
        )
        others = tuple(Simulated.of(prepare(system_in(system, world)), options).shortened() for world in drawn)
        return cls(prepared, sha256, own, others)


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
    whole = [one for one in runs if not one.stopped]
    compared, remarks = _compare(prediction, whole, pace_of(pace), options)
    told = [accounted(one.log, len(prepared.drawn.tasks)) for one in runs]
    failures: Counter[str] = sum((one.record.failures for one in runs), Counter())
    notes = tuple(dict.fromkeys(note for one in runs for note in one.notes)) or live.notes
    return Validation(
        scenario=prepared.system.document.file,
        calibration_sha256=prediction.calibration_sha256,
        device=options.device,
        repeats=options.repeats,
        compared=compared,
        blame=blame(prediction.run.log, prepared, whole, pace_of(pace)),
        pace=tuple(pace),
        tasks=tuple(told),
        failures=dict(failures),
        notes=(*notes, *remarks),
        energy=tuple(one.energy for one in runs),
        stopped=live.stopped,
        logs=(prediction.run.log, *(one.log for one in whole)),
    )


def _compare(
    prediction: Prediction, runs: Sequence[LiveRun], pace: Mapping[str, float], options: Options
) -> tuple[tuple[Compared, ...], list[str]]:
    """Like with like: what tasks took of those that were served on both sides; and what a reader must know of it."""
    prepared, asked = prediction.prepared, len(prediction.prepared.drawn.tasks)
    served = [one for one in runs if len(served_in(one.log))]
    tasks = served_in_all([prediction.run.log, *(one.log for one in served)])
    device = None if options.endpoint else options.device
    counted, uncounted = counted_by_meters(prepared, prediction.run.drew, served, device)
    at_pace = quantities(options.view(run(repaired(prepared, pace))), tasks) if pace else {}
    joules = [{one.boundary: one.joules[number] for one in counted} for number in range(len(served))]
    sides = Sides(
        predicted=prediction.run.quantities(tasks, counted),
        worlds=tuple(world.quantities(tasks, counted) for world in prediction.worlds),
        at_pace=at_pace,
        measured=tuple(
            quantities(one.log, tasks) | energy_quantities(its, one.log)
            for one, its in zip(served, joules, strict=True)
        ),
        served_fraction=len(tasks) / asked,
    )
    remarks = [*_survivors(prediction.run.log, runs, len(tasks), asked), *_extrapolated(prediction, runs), *uncounted]
    return tuple(sides.compared()), remarks


def _survivors(predicted: Log, runs: Sequence[LiveRun], compared: int, asked: int) -> Iterator[str]:
    """Which tasks the figures are of, where that is not all of them."""
    nobody = [number for number, one in enumerate(runs, 1) if not len(served_in(one.log))]
    for number in nobody:
        yield f"run {number} of {len(runs)} served nobody: it is in no figure"
    if len(nobody) == len(runs) or compared == asked:
        return
    foreseen = asked - len(served_in(predicted))
    said = f", {foreseen} of them in the prediction" if foreseen else ""
    yield f"latencies are of {compared} of {asked} tasks: the others failed or timed out{said}"


def _extrapolated(prediction: Prediction, runs: Sequence[LiveRun]) -> Iterator[str]:
    """Where the prediction, or a run, went beyond what was calibrated."""
    logs = {"prediction": prediction.run.log} | {f"run {number}": one.log for number, one in enumerate(runs, 1)}
    for name, log in logs.items():
        for warning in beyond_measured(log, prediction.prepared.system):
            yield f"{name}: {warning}"


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
