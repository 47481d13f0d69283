"""Black-box calibration: an OpenAI-compatible endpoint asked in a designed sweep, its step times fitted and written down."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from hsim.backends.endpoint import Answer, EndpointSpec, opened
from hsim.backends.meters import Meter, meters_at_hand
from hsim.backends.prompts import Prompts
from hsim.calibrate import blackbox
from hsim.calibrate.blackbox import StepModel, Sweep
from hsim.calibrate.machine import Machine, load_average, this_machine
from hsim.calibrate.options import CalibrationReport, LoadPoint, Progress, silent
from hsim.calibrate.profiles import Findings
from hsim.calibrate.served import ServedFiles
from hsim.calibrate.store import Store, open_store
from hsim.calibrate.sweep import Asker, Grid, as_data, units
from hsim.calibrate.work import Reading, Row, Unit
from hsim.calibrate.write import write_fit, write_profiles
from hsim.description.catalogue import load_model, shipped
from hsim.description.hardware import Precision
from hsim.description.model import ModelArchitecture
from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.description.yamlfile import read_document, validated
from hsim.drivers.prepared import prepare
from hsim.drivers.replay import Limits
from hsim.drivers.simulated import run as simulated
from hsim.errors import CalibrationError, DescriptionError
from hsim.metrics.result import Result
from hsim.metrics.summarise import summarise

FINISH_FRACTION = 0.05  # of the budget, for fitting and writing
MOST_ROUNDS = 12
IDLE_S = 6.0  # of counters that tick ten times a second: 2 %
MOST_SILENT = 3  # units in a row of which nothing came back whole: then the server is gone
NO_LIMIT_SEEN = 256  # max_num_seqs where bursts showed none


@dataclass(frozen=True)
class EndpointOptions:
    """What to calibrate, for how long, how far, and where to write.

    `architecture` is a catalogue entry or a config.json; found out by the model's name when left out. `tokenizer` is the
    served model's, where prompts are to have their exact number of tokens.
    """

    spec: EndpointSpec
    budget_s: float = 300.0
    out: Path = Path()
    name: str | None = None
    resume: bool = False
    architecture: str | None = None
    tokenizer: Path | None = None
    precision: Precision = "bf16"
    max_concurrency: int = 8
    max_input_tokens: int = 512

    @property
    def calibration(self) -> str:
        """The name of the calibration and the beginning of its profiles'."""
        model = re.sub(r"[^a-z0-9.]+", "-", Path(self.spec.model).name.lower()).strip("-.")
        return self.name or f"{model or 'model'}-endpoint"


class Asks(Protocol):
    """Carries out units: an Asker does."""

    def ask(self, unit: Unit) -> list[Answer]:
        """The answers of a unit's requests."""
        ...


@contextmanager
def over_http(options: EndpointOptions) -> Iterator[tuple[Asks, tuple[str, ...]]]:
    """An asker of the endpoint, and how it asks in words. Raises BackendError for one that gives no answers."""
    with opened(options.spec) as endpoint:
        told = endpoint.meet()
        prompts = Prompts(endpoint, options.tokenizer)
        yield Asker(endpoint, prompts), (told, prompts.note)


@dataclass(frozen=True)
class Tools:
    """What a calibration uses of the world. Tests bring their own."""

    asker: Callable[[EndpointOptions], AbstractContextManager[tuple[Asks, tuple[str, ...]]]] = over_http
    machine: Callable[[], Machine] = this_machine
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    meters: Callable[[], list[Meter]] = meters_at_hand


def calibrate_endpoint(
    options: EndpointOptions, progress: Progress = silent, tools: Tools | None = None
) -> CalibrationReport:
    """Ask an endpoint within the budget, fit, predict loads that were left out, and write profiles and a scenario.

    Raises BackendError for an endpoint that gives no answers, CalibrationError where too few came. Ctrl-C is passed on:
    rows are on the disk, and a resumed calibration goes on after them.
    """
    tools = tools or Tools()
    calibration = _Calibration(options, tools, _Pace(progress, tools.clock, options.budget_s))
    with (
        tools.asker(options) as (asker, said),
        closing(Joules(tools.meters() if options.spec.is_local else [])) as joules,
    ):
        store = open_store(calibration.folder, calibration.machine, options.resume)
        try:
            calibration.sweep(asker, store, joules)
        finally:
            store.close()
    return calibration.finish(store.rows, (*said, *joules.told), joules.why_not)


def architecture_of(options: EndpointOptions) -> ModelArchitecture:
    """What the served model is built as: as said, its own folder's config.json, or the catalogue's by either name."""
    served = options.spec.model
    if options.architecture:
        return load_model(options.architecture, "--architecture", Path())
    config = Path(served) / "config.json"
    if config.is_file():
        return load_model(str(config), "--model", Path())
    for file in sorted(shipped("models").glob("*.yaml")):
        model = validated(read_document(file), ModelArchitecture)
        if served.lower() in (model.name.lower(), *(name.lower() for name in model.hugging_face)):
            return model
    what = f"the catalogue has no model that is served as {served!r}"
    raise DescriptionError("--model", what, "say how it is built: --architecture <catalogue entry or config.json>")


@dataclass
class _Pace:
    """The budget, and how long each unit took."""

    progress: Progress
    clock: Callable[[], float]
    budget_s: float
    took_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began_s = self.clock()

    def left_s(self) -> float:
        return self.began_s + (1 - FINISH_FRACTION) * self.budget_s - self.clock()

    def allows(self, unit: Unit) -> bool:
        return self.left_s() > self.took_s.get(unit.point, 0.0)


class Joules:
    """What the meters of this machine count while units are asked, all of them together; None where there is none."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters = [meter for meter in meters if meter.joules() is not None]
        missing = "; ".join(meter.unavailable_reason or "" for meter in meters if meter not in self._meters)
        remote = "black-box: an endpoint elsewhere tells no joules"
        self.why_not = "" if self._meters else missing or remote
        self._before: list[float | None] = []

    @property
    def metered(self) -> bool:
        """Whether anything is counted."""
        return bool(self._meters)

    @property
    def told(self) -> tuple[str, ...]:
        """Which meters, in words."""
        names = ", ".join(f"{meter.name} ({meter.boundary})" for meter in self._meters)
        return (f"joules of {names}: everything on them, whoever caused it",) if names else ()

    def begin(self) -> None:
        """Read all."""
        self._before = [meter.joules() for meter in self._meters]

    def end(self) -> float | None:
        """Joules since begin()."""
        after = [meter.joules() for meter in self._meters]
        pairs = [(a, b) for a, b in zip(after, self._before, strict=True) if a is not None and b is not None]
        return sum(a - b for a, b in pairs) if pairs and len(pairs) == len(after) else None

    def close(self) -> None:
        """Stop sampling."""
        for meter in self._meters:
            meter.close()


class _Calibration:
    """One calibration of an endpoint under way."""

    def __init__(self, options: EndpointOptions, tools: Tools, pace: _Pace) -> None:
        self.options, self.machine, self.tools, self.pace = options, tools.machine(), tools, pace
        self.model = model = architecture_of(options)
        self.name = options.calibration
        self.device = f"{options.spec.model} at {options.spec.base_url}"
        self.folder = options.out / "calibration" / self.name
        self.grid = Grid(options.max_concurrency, min(options.max_input_tokens, model.max_context_tokens - 64))
        self.files = ServedFiles(
            self.name,
            self.device,
            options.spec.is_local,
            model,
            options.precision,
            self.machine,
            self.grid,
            options.out,
        )
        self.measured, self.resumed = 0, 0
        self.left_out: list[str] = []
        self._silent = 0

    # ---- asking

    def sweep(self, asker: Asks, store: Store, joules: Joules) -> None:
        """All units, round after round, until the budget or MOST_ROUNDS ends it."""
        self.resumed = len(store.rows)
        done = {row.key for row in store.rows if not row.reading.failure}
        self._warm_up(asker)
        if joules.metered and not any(row.kind == "idle" for row in store.rows):
            self._idle(store, joules)
        for number in range(1, MOST_ROUNDS + 1):
            wanted = [unit for unit in units(self.grid, self.device, number) if unit.key not in done]
            for i, unit in enumerate(wanted):
                if not self.pace.allows(unit):
                    self.left_out.append(
                        f"round {number} from {unit.point.partition(' ')[0]} on, {len(wanted) - i} units"
                    )
                    return
                self.pace.progress(f"round {number}", i / len(wanted), self.pace.left_s(), unit.key)
                self._ask(asker, unit, store, joules)

    def _warm_up(self, asker: Asks) -> None:
        """A burst and a long prompt that are not counted: first requests allocate and compile."""
        for users, tokens in ((self.grid.max_concurrency, self.grid.prompt(0)), (1, self.grid.max_input_tokens)):
            asker.ask(Unit("burst", self.device, {"users": users, "input": tokens}))

    def _idle(self, store: Store, joules: Joules) -> None:
        """What the server draws with its model loaded and nobody to serve."""
        began_s = self.pace.clock()
        joules.begin()
        self.tools.sleep(IDLE_S)
        window_s = self.pace.clock() - began_s
        drawn_j = joules.end()
        watts = drawn_j / window_s if drawn_j is not None else None
        unit = Unit("idle", self.device, {})
        store.append(
            Row(
                unit.key,
                unit.kind,
                unit.device,
                {},
                1,
                Reading(watts=watts, window_s=window_s, failure="" if drawn_j is not None else joules.why_not),
            )
        )

    def _ask(self, asker: Asks, unit: Unit, store: Store, joules: Joules) -> None:
        start_s, began_s = time.monotonic(), self.pace.clock()
        joules.begin()
        answers = asker.ask(unit)
        drawn_j = joules.end()
        self.pace.took_s[unit.point] = window_s = self.pace.clock() - began_s
        faults = [answer for answer in answers if answer.fault]
        failure = f"{len(faults)} of {len(answers)} requests: {faults[0].problem}" if faults else ""
        reading = Reading(
            seconds=None if faults else statistics.mean(a.e2e_s for a in answers),
            samples=len(answers) - len(faults),
            watts=drawn_j / window_s if drawn_j is not None and window_s else None,
            window_s=window_s if drawn_j is not None else None,
            failure=failure,
            notes=_notes(answers),
        )
        row = Row(unit.key, unit.kind, unit.device, unit.parameters, unit.round, reading, load=load_average())
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        store.append(replace(row, at=at, answers=tuple(as_data(answer, start_s) for answer in answers)))
        self.measured += 1
        self._silent = self._silent + 1 if len(faults) == len(answers) else 0
        if self._silent >= MOST_SILENT:
            remedy = f"what came before is in {self.folder}; mend the server and go on with --resume"
            raise CalibrationError(
                self.options.spec.where, f"gave no answer to {MOST_SILENT} units in a row: {failure}", remedy
            )

    # ---- fitting and writing

    def finish(self, rows: list[Row], said: tuple[str, ...], no_joules: str) -> CalibrationReport:
        """Fit what was seen, test it on the loads, write profiles and a scenario, and simulate that."""
        self.pace.progress("fitting", 1.0, self.pace.left_s(), "fitting step times to what was seen")
        mine = [row for row in rows if row.device == self.device]
        sweep = blackbox.sweep_of(mine)
        model, laws = blackbox.fit_model(sweep)
        if model is None:
            what = f"too few of {len(mine)} units gave what step times are fitted to"
            raise CalibrationError(
                self.options.spec.where, what, "give it a larger --budget, or look into what failed: rows.jsonl"
            )
        findings = Findings(self.machine, self.name, laws=laws)
        model, limits = self._chosen(model, sweep)
        table = self.files.table(model, sweep, laws[0])
        loads = blackbox.load_points(sweep, blackbox.costs_of(table), limits)
        findings.laws += blackbox.load_laws(loads)
        power = self.files.power(mine, (sweep, model.request_s), findings, no_joules)
        findings.profiles |= self.files.profiles(model, table, limits, power)
        more = self._more(mine, sweep, loads, (*said, *model.told))
        files = [write_fit(self.folder, findings, more), *write_profiles(self.options.out, findings)]
        scenario, written = self.files.scenario(model, table)
        return CalibrationReport(
            name=self.name,
            seconds=self.pace.clock() - self.pace.began_s,
            measured=self.measured,
            resumed=self.resumed,
            laws=tuple(findings.laws),
            left_out=tuple(self.left_out),
            failed=more["failed"],
            noisy=more["noisy"],
            unavailable=findings.unavailable,
            warnings=_warnings(mine, sweep, loads),
            files=(*files, *written),
            scenario=scenario,
            simulated=_simulated(scenario),
            said=more["said"],
            loads=tuple(loads),
        )

    def _more(
        self, mine: Sequence[Row], sweep: Sweep, loads: Sequence[LoadPoint], said: tuple[str, ...]
    ) -> dict[str, Any]:
        """What fit.json holds beside laws."""
        succeeded = {row.key for row in mine if not row.reading.failure}  # at last: --resume asks again for what failed
        failed = {row.key: row.reading.failure for row in mine if row.reading.failure and row.key not in succeeded}
        return {
            "noisy": {p.name: "; ".join(p.marks) for p in (*sweep.decode, *sweep.first, *sweep.joins) if p.marks},
            "failed": failed,
            "left_out": self.left_out,
            "pace": {key: round(value, 4) for key, value in sweep.pace.items()},
            "said": said,
            "loads": [vars(point) | {"error_fraction": point.error_fraction} for point in loads],
        }

    def _chosen(self, model: StepModel, sweep: Sweep) -> tuple[StepModel, Limits]:
        """The token budget and the cost of further chunks with which bursts are met best; no load is looked at."""
        several = (one for one in sweep.seen if one.row.kind == "burst" and one.number("users") > 1)
        bursts = {one.point: one for one in several if one.has_steps}
        measured: dict[str, list[dict[str, float]]] = {}
        for one in sweep.seen:
            if one.point in bursts and one.has_steps:
                measured.setdefault(one.point, []).append(blackbox.measured_of(one, sweep.pace[one.row.key]))
        tried: list[tuple[float, StepModel, Limits]] = []
        for budget in blackbox.BUDGETS:
            limits = Limits(sweep.limit or NO_LIMIT_SEEN, budget, blackbox.ROOM_TOKENS, model.request_s)
            for part in blackbox.EXTRA_PARTS:
                this = replace(model, extra_chunk_s=part * model.level_s[0])
                costs = blackbox.costs_of(self.files.table(this, sweep, None))
                misses = [
                    abs(
                        blackbox.predicted_of(one, costs, limits)[q] / statistics.median(m[q] for m in measured[point])
                        - 1
                    )
                    for point, one in bursts.items()
                    for q in ("ttft mean", "e2e mean")
                ]
                tried.append((statistics.mean(misses) if misses else 0.0, this, limits))
        least = min(miss for miss, _, _ in tried)
        good = [
            (limits.max_num_batched_tokens, -miss, this, limits)
            for miss, this, limits in tried
            if miss <= blackbox.AS_GOOD * least
        ]
        _, _, this, limits = max(good, key=lambda one: one[:2])
        return this, limits


def _notes(answers: list[Answer]) -> tuple[str, ...]:
    notes = []
    if retried := sum(answer.attempts > 1 for answer in answers):
        notes.append(f"{retried} of {len(answers)} requests were tried again")
    if not all(answer.counted for answer in answers if not answer.fault):
        notes.append("tokens were counted by pieces of text: it gave no usage")
    return tuple(notes)


def _warnings(rows: list[Row], sweep: Sweep, loads: list[LoadPoint]) -> tuple[str, ...]:
    """What a reader must know before trusting the profiles."""
    warnings = [f"{note}, in {row.key}" for row in rows for note in row.reading.notes if "tried again" in note][:3]
    if any("pieces of text" in note for row in rows for note in row.reading.notes):
        warnings.append("it gave no usage: tokens are counted by pieces of text, of which one may hold several tokens")
    if limit := sweep.limit:
        warnings.append(f"it decoded {limit} answers at a time and let others wait: max_num_seqs is {limit}")
    slow = [pace for pace in sweep.pace.values() if abs(pace - 1) > 0.1]
    if slow:
        warnings.append(
            f"{len(slow)} of {len(sweep.pace)} units came when things took {min(sweep.pace.values()):.2f} to "
            f"{max(sweep.pace.values()):.2f} times as long as in the median round: the endpoint, or this machine, was shared; "
            "the pace of each unit's time was taken off"
        )
    if not loads:
        warnings.append("no load came through whole: nothing was predicted that no fit has seen")
    return tuple(warnings)


def _simulated(scenario: Path) -> Result:
    """A run of the scenario that was written, read back from its file as a user's would be."""
    prepared = prepare(resolve(*load(scenario)))
    return summarise(simulated(prepared), prepared.system, prepared.accounts, prepared.drawn)
