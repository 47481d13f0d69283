"""Measures units in worker processes, so that what crashes there does not end the calibration."""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import time
from collections.abc import Mapping
from typing import Any, Protocol

from hsim.backends.couriers import Couriers
from hsim.backends.meters import rapl_meters
from hsim.backends.worker import DECODER_SPIN_S, Worker, WorkerSettings
from hsim.calibrate.agenda import RAMP_S, WINDOW_S, Served
from hsim.calibrate.bench import BenchSpec, Facts, board_meter
from hsim.calibrate.loop import THINK_S, LoopTimes, carry, drive
from hsim.calibrate.peers import Group
from hsim.calibrate.sampling import FEWEST_SAMPLES, reading_of
from hsim.calibrate.work import Reading, Unit
from hsim.description.hardware import OperationCode
from hsim.errors import BackendError, CalibrationError

MOST_DEATHS = 3
TYPICAL_S = 0.001  # of a message: how many fit into a unit's time
ANSWER_S = 300.0  # a unit that takes longer, its data made first, is given up
CALLS = 2 * FEWEST_SAMPLES  # of an operation in a unit at least, warm-up included


class Measurer(Protocol):
    """Finds out what devices are, and measures units on them."""

    def unmetered(self, device: str) -> str:
        """Why the watts of a device cannot be measured; empty where they can."""
        ...

    def facts(self, device: str) -> Facts:
        """What a device is. Raises CalibrationError where it is not to be had."""
        ...

    def serve(self, device: str, served: Served) -> None:
        """Say what the device's decoder is to be from now on."""
        ...

    def measure(self, unit: Unit) -> Reading:
        """Measure one; a unit that cannot be measured gives a reading that says why."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


def require_torch() -> None:
    """Raises CalibrationError where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise CalibrationError(
            "calibrate", "torch is not installed, and kernels are measured with it", "pip install 'hsim[calibrate]'"
        )


class Workers:
    """The Measurer of real runs: for each device a worker with its threads, and workers of one thread for operations."""

    def __init__(self, threads: int, codes: Mapping[str, OperationCode] | None = None) -> None:
        require_torch()
        self._threads, self._codes, self._served = threads, codes or {}, dict[str, Served]()
        self._devices: dict[str, Worker] = {}
        self._cores: list[Worker] = []
        self._group: tuple[int, Group] | None = None
        self._couriers: dict[str, Couriers] = {}
        self._looped: dict[tuple[str, int, int], LoopTimes] = {}
        self._hung: dict[str, str] = {}
        self._deaths = 0

    def unmetered(self, device: str) -> str:
        """See Measurer."""
        meters = rapl_meters() if device == "cpu" else [board_meter(device)]
        reasons = [meter.unavailable_reason for meter in meters if meter.unavailable_reason]
        for meter in meters:
            meter.close()
        return "; ".join(reasons)

    def serve(self, device: str, served: Served) -> None:
        """See Measurer."""
        self._served[device] = served
        self._device(device).call(("serve", served))

    def facts(self, device: str) -> Facts:
        """See Measurer."""
        try:
            facts: Facts = self._device(device).call(("facts", None)).value
        except BackendError as error:
            raise CalibrationError(f"--device {device}", str(error)) from None
        return facts

    def close(self) -> None:
        """See Measurer."""
        self._end_group()
        for worker in (*self._devices.values(), *self._cores):
            worker.close()
        for couriers in self._couriers.values():
            couriers.close()
        self._couriers.clear()
        self._devices.clear()
        self._cores.clear()

    def measure(self, unit: Unit) -> Reading:
        """See Measurer."""
        try:
            return self._measured(unit)
        except BackendError as error:
            self._bury(error)
            return Reading(failure=str(error))

    def _measured(self, unit: Unit) -> Reading:
        if unit.kind == "idle" and unit.parameters["state"] == "bare":
            return self._bare_idle(unit)
        of_several = {
            "operation": self._together,
            "contention": self._together,
            "cpu-power": self._package_power,
            "all-reduce": self._all_reduce,
            "loop": self._loop,
            "payload": self._payload,
        }
        if unit.kind in of_several:
            return of_several[unit.kind](unit)
        reading: Reading = self._device(unit.device).call(("measure", unit)).value
        return reading

    def _bury(self, error: BackendError) -> None:
        """Forget workers that have died; too many deaths are no accident."""
        dead = [w for w in (*self._devices.values(), *self._cores) if not w.process.is_alive()]
        self._devices = {name: w for name, w in self._devices.items() if w not in dead}
        self._cores = [w for w in self._cores if w not in dead]
        self._deaths += len(dead)
        if self._deaths > MOST_DEATHS:
            raise CalibrationError(
                "calibrate",
                f"{self._deaths} workers died, the last so: {error}",
                "what was measured is kept for --resume",
            ) from None

    def _device(self, device: str) -> Worker:
        if device not in self._devices:
            worker = self._devices[device] = _started(BenchSpec(device, self._threads), device, DECODER_SPIN_S)
            if device in self._served:
                worker.call(("serve", self._served[device]))
        return self._devices[device]

    def _single_cores(self, count: int) -> list[Worker]:
        begun: list[Worker] = []
        try:
            for number in range(len(self._cores), count):  # one at a time: those before one that fails are ended too
                begun.append(_begun(BenchSpec("cpu", 1, self._codes), f"core {number}"))  # noqa: PERF401
            for worker in begun:  # each imports torch: all at the same time
                worker.ready()
        except BaseException:
            for worker in begun:
                worker.close()
            raise
        self._cores += begun
        return self._cores[:count]

    def _together(self, unit: Unit) -> Reading:
        """One unit on so many single-core workers at the same time: what the average of them saw."""
        workers = self._single_cores(int(unit.parameters["workers"]))
        _all(workers, ("prepare", unit))
        self._try(workers[0], unit)
        readings = _all(workers, ("measure", unit), self._longest_s(unit))
        seconds = [r.seconds for r in readings]
        fractions = [r.cpu_fraction for r in readings if r.cpu_fraction is not None]
        return Reading(
            seconds=statistics.fmean(seconds),
            iqr_s=max(r.iqr_s for r in readings),
            samples=sum(r.samples for r in readings),
            cpu_fraction=min(fractions, default=None),
        )

    def _try(self, worker: Worker, unit: Unit) -> None:
        """One call of a person's own operation within its time limit. One that hangs or dies is not asked again."""
        name = str(unit.parameters["name"])
        if name not in self._codes:
            return
        if name not in self._hung:
            try:
                worker.call(("try", unit), self._codes[name].timeout_s)
            except BackendError as error:
                if not worker.dead:
                    raise
                self._cores.remove(worker)  # no accident: it is not counted among the deaths
                self._hung[name] = str(error)
        if name in self._hung:
            raise BackendError(name, self._hung[name], "none of its units is measured")

    def _longest_s(self, unit: Unit) -> float:
        """How long a unit may take: a person's own operation needs some calls, each within its limit."""
        code = self._codes.get(str(unit.parameters["name"]))
        return max(ANSWER_S, CALLS * code.timeout_s) if code else ANSWER_S

    def _package_power(self, unit: Unit) -> Reading:
        """Watts of all CPU packages together while so many cores are busy."""
        meters = [meter for meter in rapl_meters() if meter.boundary == "CPU package"]
        workers = self._single_cores(int(unit.parameters["busy"]))
        _ask(workers, ("measure", unit))
        time.sleep(RAMP_S)
        before, began_s = [meter.joules() for meter in meters], time.monotonic()
        time.sleep(WINDOW_S - RAMP_S / 2)  # ends while all are still busy
        after, seconds = [meter.joules() for meter in meters], time.monotonic() - began_s
        _answers(workers)
        joules = [b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None]
        reasons = [meter.unavailable_reason for meter in meters if meter.unavailable_reason]
        for meter in meters:
            meter.close()
        if reasons or not joules:
            return Reading(failure="; ".join(reasons) or "there is no meter")
        return Reading(samples=1, watts=sum(joules) / seconds, window_s=seconds)

    def _bare_idle(self, unit: Unit) -> Reading:
        """Watts of a device on which this process has nothing: before its worker is started."""
        if unit.device in self._devices:
            return Reading(failure="the device was in use already, so it was not bare")
        meter = board_meter(unit.device)
        time.sleep(RAMP_S)
        before_j, began_s = meter.joules(), time.monotonic()
        time.sleep(WINDOW_S)
        after_j, seconds = meter.joules(), time.monotonic() - began_s
        meter.close()
        if before_j is None or after_j is None:
            return Reading(failure=meter.unavailable_reason or "the meter gave no joules")
        return Reading(samples=1, watts=(after_j - before_j) / seconds, window_s=seconds)

    def _all_reduce(self, unit: Unit) -> Reading:
        """One sum over a group of devices of a kind, which lives until another number of them is asked for."""
        count = int(unit.parameters["devices"])
        if self._group is None or self._group[0] != count:
            self._end_group()
            kind = unit.device.partition(":")[0]
            devices = [f"{kind}:{i}" for i in range(count)] if kind != "cpu" else ["cpu"] * count
            self._group = (count, Group(devices))
        try:
            return self._group[1].all_reduce(int(unit.parameters["bytes"]), str(unit.parameters["dtype"]))
        except BackendError:
            self._end_group()  # those who are left wait for the one that failed
            raise

    def _end_group(self) -> None:
        if self._group:
            self._group[1].close()
            self._group = None

    def _payload(self, unit: Unit) -> Reading:
        """Messages over a link that is carried as in a live run, again and again, with rests."""
        manner, at = str(unit.parameters["by"]), unit.parameters
        if manner not in self._couriers:
            self._couriers[manner] = Couriers(manner)  # type: ignore[arg-type]  # the agenda names no other
        times = max(FEWEST_SAMPLES, round(unit.expected_s / (THINK_S + TYPICAL_S * int(at["messages"]))))
        try:
            return reading_of(carry(self._couriers[manner].sender, float(at["bytes"]), int(at["messages"]), times))
        except BackendError:
            self._couriers.pop(manner).close()
            raise

    def _loop(self, unit: Unit) -> Reading:
        """What the live loop takes: of one run of it in each round with so many users."""
        users, tokens, units = (int(unit.parameters[name]) for name in ("users", "output_tokens", "job_units"))
        run = (unit.device, users, unit.round)
        if run not in self._looped:
            decoder, core = self._device(unit.device), self._single_cores(1)[0]
            self._looped[run] = drive(decoder, core, self._served[unit.device], users, tokens, units)
        return self._looped[run].reading(str(unit.parameters["role"]))


def _started(spec: BenchSpec, name: str, spin_s: float = 0.0) -> Worker:
    """A worker that is ready; it stays awake for the next request only where one of a live run does."""
    worker = _begun(spec, name, spin_s)
    worker.ready()
    return worker


def _begun(spec: BenchSpec, name: str, spin_s: float = 0.0) -> Worker:
    """The same, not ready yet."""
    settings = WorkerSettings(f"calibrate/{name}", threads=spec.threads, spin_s=spin_s, answer_timeout_s=ANSWER_S)
    worker = Worker(spec, settings)
    worker.start()
    return worker


def _all(workers: list[Worker], request: tuple[str, Unit], timeout_s: float = ANSWER_S) -> list[Any]:
    """The answers of all workers, asked at the same time. Raises the first BackendError once all have answered."""
    _ask(workers, request)
    return _answers(workers, timeout_s)


def _ask(workers: list[Worker], request: tuple[str, Unit]) -> None:
    """Ask all. Raises the BackendError of one that is dead once all who were asked have answered."""
    asked = []
    try:
        for worker in workers:
            worker.send(request)
            asked.append(worker)
    except BackendError:
        with contextlib.suppress(BackendError):
            _answers(asked)
        raise


def _answers(workers: list[Worker], timeout_s: float = ANSWER_S) -> list[Any]:
    answers, errors = [], []
    for worker in workers:
        try:
            answers.append(worker.answer(timeout_s).value)
        except BackendError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return answers
