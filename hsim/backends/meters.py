"""Energy meters behind one protocol: joules so far, or None with the reason. A missing meter is never a zero.

    meters = meters_at_hand()
    before = [meter.joules() for meter in meters]
    ...
    after = [meter.joules() for meter in meters]      # subtract where neither is None; else meter.unavailable_reason

Counters tick some ten times a second: two readings a few seconds apart or more are worth subtracting. A meter counts
everything on its device, whoever caused it.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hsim.backends.nvml import Nvml
from hsim.errors import BackendError

POWERCAP = Path("/sys/class/powercap")
_POWER_SAMPLE_S = 0.05  # for power that must be integrated: a few samples for each refresh of the driver's own
_MOST_SOCKET_W = 2000.0  # assumed to be more than any socket draws: how soon a RAPL counter could come round


class Meter(Protocol):
    """Counts the joules of something."""

    name: str
    boundary: str
    """What is inside: accelerator board, CPU package, DRAM."""
    unavailable_reason: str | None

    def joules(self) -> float | None:
        """Joules since the meter was opened; None where that is not known, and then unavailable_reason says why."""
        ...

    def close(self) -> None:
        """Stop sampling."""
        ...


class Unavailable:
    """A meter that is wanted and not to be had."""

    def __init__(self, name: str, boundary: str, reason: str) -> None:
        self.name, self.boundary = name, boundary
        self.unavailable_reason: str | None = reason

    def joules(self) -> float | None:
        """See Meter."""
        return None

    def close(self) -> None:
        """See Meter."""


class Counter:
    """A counter of joules that only grows, but for coming round at `wraps_at_j`.

    A step back that is no wrap means that the counter was reset: what it missed is unknown, and the meter says so from
    then on. `read_j` raises BackendError where the counter cannot be read. With `sample_s` it is read that often by a
    thread of its own, lest a wrap or a change of power be missed.
    """

    unavailable_reason: str | None = None

    def __init__(
        self,
        name: str,
        boundary: str,
        read_j: Callable[[], float],
        wraps_at_j: float | None = None,
        sample_s: float | None = None,
    ) -> None:
        self.name, self.boundary, self._read_j, self._wraps_at_j = name, boundary, read_j, wraps_at_j
        self._joules, self._last_j = 0.0, read_j()
        self._lock, self._stopped, self._sample_s = threading.Lock(), threading.Event(), sample_s
        if sample_s:
            threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while not self._stopped.wait(self._sample_s):
            self.joules()

    def joules(self) -> float | None:
        """See Meter."""
        with self._lock:
            if self.unavailable_reason:
                return None
            try:
                now_j = self._read_j()
            except BackendError as error:
                self.unavailable_reason = str(error)
                return None
            delta_j = now_j - self._last_j
            if delta_j < 0 and self._wraps_at_j:
                delta_j += self._wraps_at_j
            if delta_j < 0:
                self.unavailable_reason = f"{self.name}: the counter went back by {-delta_j:.3f} J, so it was reset"
                return None
            self._joules, self._last_j = self._joules + delta_j, now_j
            return self._joules

    def close(self) -> None:
        """See Meter."""
        self._stopped.set()


class IntegratedPower:
    """Joules from sampled power by the trapezoid rule: a counter for accelerators that have none."""

    def __init__(
        self, name: str, watts: Callable[[], float | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self._watts, self._clock = name, watts, clock
        self._joules, self._last = 0.0, self._now()

    def _now(self) -> tuple[float, float]:
        watts = self._watts()
        if watts is None:
            raise BackendError(self.name, "the driver tells neither its energy nor its power")
        return self._clock(), watts

    def read_j(self) -> float:
        """Joules since it was made."""
        (then_s, then_w), self._last = self._last, self._now()
        self._joules += 0.5 * (then_w + self._last[1]) * (self._last[0] - then_s)
        return self._joules


class Replay:
    """A meter that was recorded: joules at times since its opening, joined by straight lines; None after the last."""

    unavailable_reason: str | None = None

    def __init__(
        self, name: str, rows: Sequence[tuple[float, float]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.boundary, self._rows, self._clock, self._opened_s = name, "replay", rows, clock, clock()

    def joules(self) -> float | None:
        """See Meter."""
        at_s = self._clock() - self._opened_s
        after = bisect.bisect_left(self._rows, at_s, key=lambda row: row[0])
        if after == len(self._rows) or at_s < self._rows[0][0]:
            self.unavailable_reason = f"{self.name}: nothing was recorded at {at_s:.3f} s"
            return None
        (t0, j0), (t1, j1) = self._rows[max(0, after - 1)], self._rows[after]
        return j1 if t1 <= t0 else j0 + (j1 - j0) * (at_s - t0) / (t1 - t0)

    def close(self) -> None:
        """See Meter."""


_BOARD, _PACKAGE, _DRAM = "accelerator board", "CPU package", "DRAM"


def meters_at_hand() -> list[Meter]:
    """A meter for each accelerator that CUDA sees and each CPU package; Unavailable where there is none."""
    return [*accelerator_meters(), *rapl_meters()]


def accelerator_meters() -> list[Meter]:
    """A meter for each accelerator that CUDA sees, in its order, or one Unavailable that says why there is none."""
    try:
        nvml = Nvml()
        devices = nvml.devices()
    except BackendError as error:
        return zeus_boards(str(error))
    if not devices:
        return [Unavailable("accelerators", _BOARD, "NVML: CUDA_VISIBLE_DEVICES leaves no device")]
    return [_accelerator_meter(nvml, device, f"gpu {i}") for i, device in enumerate(devices)]


def _accelerator_meter(nvml: Nvml, device: Any, name: str) -> Meter:
    if nvml.shares_meter(device):
        return Unavailable(name, _BOARD, f"{name}: it is cut into MIG instances, and its one meter counts all of them")

    def read_j() -> float:
        try:
            return float(nvml.api.nvmlDeviceGetTotalEnergyConsumption(device)) / 1000
        except nvml.api.NVMLError as error:
            raise BackendError(name, f"its energy counter cannot be read ({error})") from None

    try:
        return Counter(name, _BOARD, read_j)
    except BackendError as error:
        return _integrating_meter(nvml, device, name, str(error))


def _integrating_meter(nvml: Nvml, device: Any, name: str, why: str) -> Meter:
    try:
        integral = IntegratedPower(name, lambda: nvml.watts(device))
    except BackendError as error:
        return Unavailable(name, _BOARD, f"{why}; {error.problem}")
    return Counter(f"{name}, power sampled", _BOARD, integral.read_j, sample_s=_POWER_SAMPLE_S)


def rapl_meters(root: Path = POWERCAP) -> list[Meter]:
    """A meter for each CPU package, and for its DRAM where that is counted apart; or Unavailable.

    `psys` is left out: it counts the packages a second time.
    """
    zones = sorted(root.glob("intel-rapl:*"))  # AMD's too; not intel-rapl-mmio, which is the same counter again
    meters: list[Meter] = []
    for zone in zones:
        name = _read(zone / "name")
        if name.startswith("package"):
            meters.append(_rapl_meter(zone, name, _PACKAGE))
        elif name == "dram":
            meters.append(
                _rapl_meter(zone, f"dram of {_read(zone.parent / zone.name.rpartition(':')[0] / 'name')}", _DRAM)
            )
    if not meters:
        reason = f"RAPL: {root} has no CPU package; virtual machines and some kernels do not show one"
        return [Unavailable("CPU packages", _PACKAGE, reason)]
    unreadable = [meter.unavailable_reason for meter in meters if meter.unavailable_reason]
    return zeus_packages(unreadable[0]) or meters if len(unreadable) == len(meters) else meters


def _rapl_meter(zone: Path, name: str, boundary: str) -> Meter:
    def read_j() -> float:
        return _joules_in(zone / "energy_uj")

    try:
        wraps_at_j = _joules_in(zone / "max_energy_range_uj")
        return Counter(name, boundary, read_j, wraps_at_j, sample_s=wraps_at_j / _MOST_SOCKET_W / 2)
    except BackendError as error:
        return Unavailable(name, boundary, str(error))


# ---- zeus, where it is installed: boards that NVML does not know (AMD's), packages that only its daemon may read


def zeus_boards(why: str) -> list[Meter]:
    """A meter for each board that zeus knows, or one Unavailable: NVML had none, and says why."""
    try:
        from zeus.device import get_gpus
        from zeus.exception import ZeusBaseError
    except ImportError:
        remedy = "boards that NVML does not know: pip install 'hsim[zeus]'"
        return [Unavailable("accelerators", _BOARD, f"{why}; {remedy}")]
    try:
        boards = get_gpus()
        return [
            _zeus_counter(f"gpu {i}, by zeus", _BOARD, partial(boards.get_total_energy_consumption, i), ZeusBaseError)
            for i in range(len(boards))
        ] or [Unavailable("accelerators", _BOARD, f"{why}; zeus finds none")]
    except ZeusBaseError as error:
        return [Unavailable("accelerators", _BOARD, f"{why}; zeus: {error}")]


def zeus_packages(why: str) -> list[Meter]:
    """A meter for each CPU package and its DRAM through zeus and its daemon, none where zeus is not installed: RAPL may not
    be read by this user, and says why.
    """
    try:
        from zeus.device import get_cpus
        from zeus.exception import ZeusBaseError
    except ImportError:
        return []
    try:
        packages = get_cpus()
        meters: list[Meter] = []
        for i in range(len(packages)):
            read = partial(packages.get_total_energy_consumption, i)
            parts = {"cpu_mj": (f"package-{i}, by zeus", _PACKAGE), "dram_mj": (f"dram of package-{i}, by zeus", _DRAM)}
            told = [part for part in parts if getattr(read(), part) is not None]
            meters += [_zeus_counter(*parts[part], partial(_part, read, part), ZeusBaseError) for part in told]
    except ZeusBaseError as error:
        return [Unavailable("CPU packages", _PACKAGE, f"{why}; zeus: {error}")]
    return meters


def _part(read: Callable[[], Any], part: str) -> float:
    return float(getattr(read(), part))


def _zeus_counter(name: str, boundary: str, read_mj: Callable[[], float], fault: type[Exception]) -> Meter:
    def read_j() -> float:
        try:
            return read_mj() / 1000
        except fault as error:
            raise BackendError(name, f"zeus cannot read it ({error})") from None

    try:
        return Counter(name, boundary, read_j)
    except BackendError as error:
        return Unavailable(name, boundary, str(error))


def _joules_in(file: Path) -> float:
    text = _read(file)
    if not text.isdigit():
        raise BackendError(str(file), f"holds {text!r}, which is no whole number of microjoules")
    return int(text) / 1e6


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except PermissionError:
        remedy = "only root may, since CVE-2020-8694: run as root, or let a group read it"
        raise BackendError(str(file), "may not be read by this user", remedy) from None
    except OSError as error:
        raise BackendError(str(file), f"cannot be read ({error.strerror})") from None
