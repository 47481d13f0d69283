"""A calibration from start to end: measure within the budget, fit, write profiles, and simulate with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hsim.backends.code import declared_in, digest
from hsim.calibrate import profiles
from hsim.calibrate.agenda import Served, Target, agenda, bare_idle, in_turn
from hsim.calibrate.bench import Facts
from hsim.calibrate.machine import Machine, load_average, this_machine
from hsim.calibrate.measure import Measurer, Workers
from hsim.calibrate.options import CalibrationOptions, CalibrationReport, Progress, silent
from hsim.calibrate.points import Point, points_of
from hsim.calibrate.profiles import Findings
from hsim.calibrate.store import Store, open_store, write_atomically
from hsim.calibrate.work import DISAGREE, SPREAD, THROTTLED, Reading, Row, Unit
from hsim.calibrate.write import local_scenario, write_fit, write_profiles, write_report
from hsim.costs.composed import ELEMENT_BYTES
from hsim.costs.measured import MeasuredCosts
from hsim.description.catalogue import load_model
from hsim.description.hardware import OperationCode, Precision
from hsim.description.model import ModelArchitecture
from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.prepared import prepare
from hsim.drivers.simulated import run as simulated
from hsim.errors import CalibrationError
from hsim.metrics.result import Result
from hsim.metrics.summarise import summarise
from hsim.stages import Declared

# What of the budget is kept for fitting, writing and the simulation at the end.
FINISH_S, FINISH_FRACTION = 15.0, 0.15
SHORT_HASH = 12  # hexadecimal digits of a file's
SLOWER_THAN_EXPECTED = 1.3  # until units of a kind have shown how long they really take
CATALOGUE = ("llama-3.1-8b", "llama-3.1-70b")  # models whose shapes kernels are measured at
SERVED_BY_DEFAULT = {"cpu": ("tiny-12m",), "cuda": ("llama-3.1-8b", "tiny-12m")}  # the first that fits
PART_OF_MEMORY = 1 / 3  # for weights, and again for the cache
OPERATIONS: dict[str, tuple[int, ...]] = {
    "tokenise": (16, 64, 128, 256, 1024),
    "encode-minilm": (16, 48, 128, 256, 500),
    "hnsw-search": (16, 32, 64, 128, 256),
    "flat-search": (1_000, 3_000, 10_000, 20_000, 40_000, 100_000),
    "full-text-search": (1_000, 3_000, 10_000, 30_000),
    "sql-aggregate": (1_000, 3_000, 10_000, 50_000, 200_000, 500_000),
    "python-process": (1, 2, 3, 4),
    "http-call": (1, 2, 4, 8, 16),
    "summarise-lexrank": (1, 2, 3, 4),
    "json-validate": (10, 100, 1_000, 10_000),
    "html-to-text": (10, 30, 100, 300),
    "bm25-search": (1_000, 3_000, 10_000, 30_000),
    "classify-intent": (16, 64, 256, 1024),
}


@dataclass(frozen=True)
class Tools:
    """What a calibration uses of the world: its clock, its machine, and what measures. Tests bring their own."""

    measurer: Callable[[int, Mapping[str, OperationCode]], Measurer] = Workers
    clock: Callable[[], float] = time.monotonic
    machine: Callable[[], Machine] = this_machine


def calibrate(
    options: CalibrationOptions, progress: Progress = silent, tools: Tools | None = None
) -> CalibrationReport:
    """Measure this machine and write the profiles of it.

    Raises CalibrationError where that cannot be done at all. Ctrl-C is passed on once everything is closed: rows are
    on the disk, and a resumed calibration goes on after them.
    """
    return _Calibration(options, progress, tools or Tools()).run()


class _Calibration:
    """One calibration under way."""

    def __init__(self, options: CalibrationOptions, progress: Progress, tools: Tools) -> None:
        self.options, self.progress, self.tools = options, progress, tools
        self.began_s = tools.clock()
        self.machine = tools.machine()
        self.name = options.name or self.machine.short_name
        self.devices = _devices(options.device, self.machine)
        self.folder = options.out / "calibration" / self.name
        self.facts: dict[str, Facts] = {}
        self.unmetered: dict[str, str] = {}
        self.own: dict[str, tuple[Declared, OperationCode]] = {}
        self.left_out: list[Unit] = []
        self.measured = 0

    def left_s(self) -> float:
        """Seconds of the budget that are left for measuring."""
        budget_s = self.options.budget_s
        return self.began_s + budget_s - min(FINISH_S, FINISH_FRACTION * budget_s) - self.tools.clock()

    def run(self) -> CalibrationReport:
        """See calibrate."""
        self.own = own_stages(self.options)
        measurer = self.tools.measurer(self.options.decoder_cores, {name: code for name, (_, code) in self.own.items()})
        try:
            store = open_store(self.folder, self.machine, self.options.resume)
            resumed = len(store.rows)
            try:
                targets = [self._target(device, measurer, store) for device in self.devices]
                self._measure_all(targets, measurer, store)
            finally:
                store.close()
        finally:
            measurer.close()
        return self._finish(targets, store.rows, resumed)

    # ---- measuring

    def _target(self, device: str, measurer: Measurer, store: Store) -> Target:
        """Find out what a device is. Its bare idle power comes first, before anything of ours is on it."""
        self.progress("devices", 0.0, self.left_s(), f"looking at {device}")
        on_cpu = device == "cpu"
        why_not = self.unmetered[device] = measurer.unmetered(device)
        if not on_cpu and not why_not:
            bare = bare_idle(device)
            if all(row.key != bare.key for row in store.rows):
                self._measure(bare, measurer, store)
        facts = self.facts[device] = measurer.facts(device)
        served = self._served(device, facts)
        measurer.serve(device, served)
        beside = on_cpu and not self._serves_on_cpu
        return Target(
            device=device,
            precisions=facts.precisions,
            served=served,
            shapes=tuple(load_model(name, "calibrate", Path()) for name in CATALOGUE),
            operations=(*self.own_sizes.items(), *OPERATIONS.items()) if on_cpu else (),
            own=self.own_code,
            cores=self.machine.cores,
            peers=1 if on_cpu else sum(name == self.machine.gpus.get(device) for name in self.machine.gpus.values()),
            metered=not why_not,
            host_only=beside,
        )

    @property
    def own_sizes(self) -> dict[str, tuple[int, ...]]:
        """Where to measure a person's own stages: first of all operations, since they are why he calibrates."""
        return {name: declared.sizes for name, (declared, _) in self.own.items()}

    @property
    def own_code(self) -> dict[str, str]:
        """The code of a person's own stages, by name."""
        return {name: code.sha256[:SHORT_HASH] for name, (_, code) in self.own.items()}

    @property
    def _serves_on_cpu(self) -> bool:
        return self.options.device in ("cpu", "all")

    def _served(self, device: str, facts: Facts) -> Served:
        """What the device's decoder is to be: the model that was asked for, or the first of the usual that fits."""
        kind = device.partition(":")[0]
        precision: Precision = "fp32" if kind == "cpu" else "bf16"
        memory_bytes = PART_OF_MEMORY * (facts.memory_bytes or self.machine.memory_bytes or 0)
        names = (self.options.model,) if self.options.model else SERVED_BY_DEFAULT[kind]
        models = [load_model(name, "calibrate --model", Path()) for name in names]
        fitting = [model for model in models if model.parameters * ELEMENT_BYTES[precision] <= memory_bytes]
        if not fitting:
            raise CalibrationError(
                f"--device {device}", f"{names[-1]} does not fit in a third of its memory", "give a smaller --model"
            )
        return _limits(fitting[0], precision, kind, memory_bytes)

    def _measure_all(self, targets: list[Target], measurer: Measurer, store: Store) -> None:
        units = in_turn([unit for target in targets for unit in agenda(target)])
        done = {row.key for row in store.rows if not row.reading.failure}  # what failed is tried again by --resume
        pace: dict[str, float] = {}
        for number, unit in enumerate(units):
            if unit.key in done:
                continue
            kind = str(unit.parameters.get("name", unit.kind))
            if self.left_s() < unit.setup_s + unit.expected_s * pace.get(kind, SLOWER_THAN_EXPECTED):
                self.left_out.append(unit)
                continue
            self.progress("measuring", number / len(units), self.left_s(), unit.key)
            start_s = self.tools.clock()
            self._measure(unit, measurer, store)
            took = (self.tools.clock() - start_s) / (unit.setup_s + unit.expected_s)
            pace[kind] = 0.5 * (took + pace.get(kind, took))

    def _measure(self, unit: Unit, measurer: Measurer, store: Store) -> None:
        reading = measurer.measure(unit)
        load = load_average()
        store.append(
            Row(
                key=unit.key,
                kind=unit.kind,
                device=unit.device,
                parameters=unit.parameters,
                round=unit.round,
                reading=reading,
                marks=marks_of(unit, reading, load, self.machine.cores, self.options),
                load=load,
                at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            )
        )
        self.measured += 1

    # ---- fitting and writing

    def _finish(self, targets: list[Target], rows: list[Row], resumed: int) -> CalibrationReport:
        options = self.options
        self.progress("fitting", 1.0, self.left_s(), "fitting laws to what was measured")
        points = points_of(rows, options.noisy_spread_fraction)
        findings = Findings(self.machine, self.name)
        scenarios = self._fit(targets, points, findings)
        self.progress("writing", 1.0, self.left_s(), "writing profiles")
        noisy = {point.name: "; ".join(point.marks) for point in points if point.marks}
        succeeded = {row.key for row in rows if not row.reading.failure}
        failed = {row.key: row.reading.failure for row in rows if row.reading.failure and row.key not in succeeded}
        left_out = _told(self.left_out)
        held_out = profiles.held_out(findings)
        more: dict[str, Any] = {"noisy": noisy, "failed": failed, "left_out": left_out}
        more |= {"held_out": [{**asdict(one), "said": one.said} for one in held_out]}
        files = [write_fit(self.folder, findings, more), write_report(self.folder, findings)]
        files += write_profiles(options.out, findings)
        for file, text in scenarios.items():
            write_atomically(file, text)
        scenario = next(iter(scenarios), None)
        result = None
        if scenario and options.simulate:
            self.progress("simulating", 1.0, self.left_s(), f"simulating {scenario}")
            result = _simulate(scenario)
        return CalibrationReport(
            name=self.name,
            seconds=self.tools.clock() - self.began_s,
            measured=self.measured,
            resumed=resumed,
            laws=tuple(findings.laws),
            left_out=left_out,
            failed=failed,
            noisy=noisy,
            unavailable=findings.unavailable,
            warnings=self._warnings(points, noisy),
            files=(*files, *scenarios),
            scenario=scenario,
            simulated=result,
            held_out=held_out,
        )

    def _fit(self, targets: list[Target], points: list[Point], findings: Findings) -> dict[Path, str]:
        """Fill the findings; returns the scenarios to write, by file."""
        units = _operation_units() | {name: declared.unit for name, (declared, _) in self.own.items()}
        own = self.own_code
        cores = [p for p in points if p.device == "cpu" or p.kind == "loop"]
        cores = [p for p in cores if p.parameters.get("code") == own.get(str(p.parameters.get("name")))]
        cpu = profiles.cpu(cores, units, findings, self.unmetered["cpu"])
        for name, (_, code) in self.own.items():
            if name in cpu["operations"]:
                cpu["operations"][name]["code"] = code.model_dump()
        findings.profiles[cpu["name"]] = cpu
        findings.profiles |= profiles.carried_links(cores, findings)
        scenarios = {}
        for target in targets:
            if not target.host_only and (text := self._fit_device(target, points, findings)):
                file = "local.yaml" if target is targets[0] else f"local-{target.device.replace(':', '')}.yaml"
                scenarios[self.options.out / file] = text
        return scenarios

    def _fit_device(self, target: Target, points: list[Point], findings: Findings) -> str | None:
        """Profiles of one device that generates, and its scenario; None where too little was measured."""
        mine = [p for p in points if p.device == target.device and _is_of(p, target.served)]
        chip = self._chip(target, mine, findings)
        if chip is None:
            return None
        engine = profiles.engine(mine, target, chip, self._engine_cores(target), findings)
        table = profiles.step_table(mine, target, (engine["name"], chip["name"]), findings)
        costs = profiles.composed(target.served, chip, engine)
        if table is not None:
            engine["step_tables"] = [table.name]
            findings.profiles[table.name] = table.model_dump(mode="json")
        profiles.transfers(mine, target, findings)
        profiles.whole_layers(mine, target, (chip, engine), findings)
        engine = profiles.with_the_loop(engine, mine, target, findings)
        count = (
            1
            if target.kind == "cpu"
            else sum(name == self.facts[target.device].name for name in self.machine.gpus.values())
        )
        server = profiles.server(f"{chip['name']}-server", chip, max(1, count), findings)
        findings.profiles |= {profile["name"]: profile for profile in (chip, engine, server)}
        names = (server["name"], engine["name"])
        return local_scenario(findings, target.served, names, MeasuredCosts(table, costs) if table else costs)

    def _engine_cores(self, target: Target) -> int:
        return self.options.decoder_cores if target.kind == "cpu" else 1

    def _chip(self, target: Target, mine: list[Point], findings: Findings) -> profiles.Profile | None:
        """The accelerator profile of a device."""
        found = profiles.kernels(mine, target, findings)
        if found is None:
            return None
        facts, cores = self.facts[target.device], self.options.decoder_cores
        if target.kind == "cpu":
            what = f"{cores} of the {self.machine.cores} cores of {self.machine.cpu}, as a device that generates"
            memory_bytes, power = self.machine.memory_bytes, profiles.core_power()
        else:
            what, memory_bytes = facts.name, facts.memory_bytes
            power = profiles.board_power(mine, target, facts, findings, self.unmetered[target.device])
        source = findings.source(target.device, "as the system reports it")
        return {
            "name": self.machine.chip_name(target.device, cores, self.name),
            "kind": "accelerator",
            "description": what,
            "memory_bytes": profiles.known(memory_bytes or 0, "measured", source),
            **found,
            "power": power,
        }

    def _warnings(self, points: list[Point], noisy: dict[str, str]) -> tuple[str, ...]:
        warnings = []
        if points and len(noisy) > 0.1 * len(points):
            warnings.append(
                f"{len(noisy)} of {len(points)} points are noisy: give the machine some peace and calibrate again"
            )
        if self.machine.load is not None and self.machine.load > self.machine.cores / 2:
            warnings.append(
                f"the load average was {self.machine.load:.1f} on {self.machine.cores} cores before it began"
            )
        return tuple(warnings)


def marks_of(
    unit: Unit, reading: Reading, load: float | None, cores: int, options: CalibrationOptions
) -> tuple[str, ...]:
    """Why a reading may be noisy: its spread, a core that others had too, clocks held back, a loaded machine."""
    marks = [note for note in reading.notes if note.startswith((THROTTLED, DISAGREE))]
    if reading.seconds and (reading.iqr_s or 0.0) > options.noisy_spread_fraction * reading.seconds:
        marks.append(f"{SPREAD} by {(reading.iqr_s or 0.0) / reading.seconds:.0%} of their mean")
    if reading.cpu_fraction is not None:
        if reading.cpu_fraction < options.quiet_fraction:
            marks.append(f"others had its core for {1 - reading.cpu_fraction:.0%} of the time")
    elif load is not None and load - int(unit.parameters.get("workers", 1)) > cores / 2:
        marks.append(f"the load average was {load:.1f} on {cores} cores")
    return tuple(marks)


def _is_of(point: Point, served: Served) -> bool:
    """Whether it says something of what is served: another model's steps, of a calibration gone on with, do not."""
    if point.kind not in ("step", "power") or "model" not in point.parameters:
        return True
    return (point.parameters["model"], point.parameters["dtype"]) == (served.model.name, served.precision)


def own_stages(options: CalibrationOptions) -> dict[str, tuple[Declared, OperationCode]]:
    """The stages of --stages, each with the code that it is; they are only looked into with --allow-code."""
    if options.stages is None:
        return {}
    if not options.allow_code:
        what = "is code, and calibrate would execute it on this machine"
        raise CalibrationError(f"--stages {options.stages}", what, "add --allow-code if you trust it")
    file, found = options.stages.resolve(), declared_in(options.stages)
    sha256 = digest(file)
    return {
        name: (declared, OperationCode(file=str(file), sha256=sha256, timeout_s=declared.timeout_s))
        for name, declared in found.items()
    }


def _devices(asked: str, machine: Machine) -> list[str]:
    """The devices to measure. A GPU's server has cores too, whose operations are measured beside it."""
    if asked == "cpu":
        return ["cpu"]
    if asked == "all":
        return ["cpu", *machine.gpus]
    if not asked.startswith("cuda"):
        raise CalibrationError(f"--device {asked}", "there is no such device", "use cpu, cuda:N or all")
    return [asked if ":" in asked else "cuda:0", "cpu"]


def _limits(model: ModelArchitecture, precision: Precision, kind: str, memory_bytes: float) -> Served:
    """As many slots as are usual on such a device, halved until their cache fits."""
    slots, context, batched = (16, 2048, 256) if kind == "cpu" else (128, 4096, 2048)
    context = min(context, model.max_context_tokens)
    token_bytes = model.kv_elements_per_token * ELEMENT_BYTES[precision]
    while slots > 4 and slots * context * token_bytes > memory_bytes:
        slots //= 2
    return Served(model, precision, slots, context, min(batched, context))


def _operation_units() -> dict[str, str]:
    from hsim.backends.tools import OPERATIONS as LIVE

    return {name: LIVE[name].unit for name in OPERATIONS}


def _told(units: list[Unit]) -> tuple[str, ...]:
    """What was left out, by kind: points never measured are told apart from those not measured once more."""
    never: dict[str, list[Unit]] = {}
    for unit in units:
        never.setdefault(f"{unit.kind} on {unit.device}, round {unit.round}", []).append(unit)
    return tuple(f"{what}: {len(group)} points, such as {group[0].point}" for what, group in never.items())


def _simulate(scenario: Path) -> Result:
    """A run of the scenario that was written, read back from its file as a user's would be."""
    prepared = prepare(resolve(*load(scenario)))
    return summarise(simulated(prepared), prepared.system, prepared.accounts, prepared.drawn)
