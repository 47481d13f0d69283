"""The machine that a calibration stands on: what it is, which libraries it ran, and how loaded it was."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

from hsim.errors import BackendError


@dataclass(frozen=True)
class Machine:
    """A machine and the day. `gpus` are names by device, `load` the load average of the last minute at the start."""

    cpu: str
    cores: int
    memory_bytes: int | None
    system: str
    python: str
    torch: str
    driver: str
    gpus: dict[str, str]
    load: float | None
    date: str
    hsim: str

    identity: ClassVar[tuple[str, ...]] = ("cpu", "cores", "torch", "driver", "gpus", "hsim")

    @property
    def short_name(self) -> str:
        """A name for profiles, such as epyc-9654-192c: letters, digits and dashes."""
        words = re.sub(r"\(.*?\)|@.*|CPU|Processor|\d+-Core", " ", self.cpu)
        slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        return f"{slug or 'machine'}-{self.cores}c"

    def chip_name(self, device: str, cores: int, name: str) -> str:
        """A name for the accelerator profile of a device in calibration `name`; the CPU's is of so many of its cores."""
        if device == "cpu":
            return f"{name}-core" + (f"s{cores}" if cores > 1 else "")
        return re.sub(r"[^a-z0-9]+", "-", self.gpus.get(device, device).lower()).strip("-") + f"-{name}"

    def told(self, device: str) -> str:
        """The machine as a figure's source names it."""
        what = self.gpus.get(device, self.cpu)
        return f"{what}, {self.cores} cores, torch {self.torch}, {self.date}"


def this_machine() -> Machine:
    """What can be found out about this machine without starting any device."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=_version("torch"),
        driver=_driver(),
        gpus=_gpus(),
        load=load_average(),
        date=datetime.now(UTC).date().isoformat(),
        hsim=_version("hsim"),
    )


def load_average() -> float | None:
    """Processes that wanted a core, averaged over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown CPU"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0].strip()
    except OSError:
        return "none"


def _gpus() -> dict[str, str]:
    """Names of the GPUs that CUDA sees, by torch device; none where there is no NVML."""
    from hsim.backends.nvml import Nvml

    try:
        nvml = Nvml()
        return {f"cuda:{i}": nvml.facts(board).name for i, board in enumerate(nvml.devices())}
    except BackendError:
        return {}
