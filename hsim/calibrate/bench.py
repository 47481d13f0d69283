"""What measures, inside a worker process: one device's kernels, operations, decoder steps and power."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsim.backends.hosts import Opened, StepItem, live_operation
from hsim.calibrate.agenda import JOB, RAMP_S, WAITING_OPERATIONS, WINDOW_S, Served, one_layer, step_parts
from hsim.calibrate.kernels import WALL_TIMED, Kernels
from hsim.calibrate.sampling import JOBS_REST, STEPS_REST, Call, Rest, sample, sample_cuda
from hsim.calibrate.work import CAPPED, DISAGREE, THROTTLED, Parameters, Reading, Unit
from hsim.description.catalogue import load_model
from hsim.description.hardware import OperationCode, Precision
from hsim.errors import BackendError

if TYPE_CHECKING:
    from hsim.backends.decoder import Decoder
    from hsim.backends.tools import LiveTool

SPIN_S = 0.05  # work is given to a device in pieces of about so long while its power is measured
ANY_TOKEN = 1
BUSY_CORE: Parameters = {"m": 64, "n": 1024, "k": 1024, "dtype": "fp32"}  # what keeps a core busy
REST_OF: dict[str, Rest] = {"step": STEPS_REST, "layer": STEPS_REST, "operation": JOBS_REST}  # on a CPU
POWER_AGREES = 0.05  # power readings lag, and are coarser than the counter
HARMLESS_CLOCKS = ("GpuIdle", "ApplicationsClocksSetting", "SyncBoost", "DisplayClockSetting")


@dataclass(frozen=True)
class Facts:
    """What a device turned out to be."""

    torch: str
    precisions: tuple[Precision, ...]
    name: str = ""
    memory_bytes: int | None = None
    power_limit_w: float | None = None


@dataclass(frozen=True)
class BenchSpec:
    """A Host (see backends.hosts) that measures on a device with so many threads.

    Opened, it answers ("facts", None), ("serve", served), ("prepare", unit), ("try", unit), which is one call, and
    ("measure", unit), and as the live loop asks: items of a step, and ("products", n).
    """

    device: str
    threads: int
    codes: Mapping[str, OperationCode] = field(default_factory=dict)

    def open(self) -> Opened:
        """See Host."""
        bench = Bench(self)
        return Opened(bench.run, (f"measures {self.device} with {self.threads} threads",))


class Bench:
    """Measures units on one device; keeps what is dear to make from one unit to the next."""

    def __init__(self, spec: BenchSpec) -> None:
        from hsim.backends.device import open_device

        self.device, self.threads, self.codes = spec.device, spec.threads, spec.codes
        self.served: Served | None = None
        self.on_cpu = spec.device == "cpu"
        self.opened = open_device(spec.device)
        self._kernels: Kernels | None = None
        self._decoder: Decoder | None = None
        self._one_layer: tuple[str, Decoder] | None = None
        self._tools: dict[tuple[str, int], LiveTool] = {}
        self._ready: tuple[str, Call] | None = None

    def run(self, request: tuple[str, Any] | list[StepItem]) -> Any:
        """Answer a request."""
        if isinstance(request, list):
            self.decoder.assume_filled()
            return self.decoder.step(request)
        what, about = request
        if what == "facts":
            return self.facts()
        if what == "serve":
            self.served = about
            return None
        if what == JOB:
            self._kernels = self._kernels or Kernels(self.device)
            call = self._kernels.call("gemm", BUSY_CORE)
            for i in range(about):
                call(i)
            return None
        call = self.prepared(about)
        if what == "measure":
            return self.measure(about, call)
        if what == "try":
            call(0)
        return None

    def facts(self) -> Facts:
        """What the device is."""
        import torch

        if self.on_cpu:
            return Facts(
                str(torch.__version__), ("fp32", "bf16", "fp16")
            )  # its own class would import torch in the parent
        properties = torch.cuda.get_device_properties(self.opened.torch_device)
        has_fp8 = (properties.major, properties.minor) >= (8, 9)  # Ada, Hopper and what came after
        precisions: tuple[Precision, ...] = ("bf16", "fp16", "fp32", "fp8") if has_fp8 else ("bf16", "fp16", "fp32")
        limit_w = _clock_facts(self.device)[1]
        return Facts(str(torch.__version__), precisions, properties.name, properties.total_memory, limit_w)

    @property
    def decoder(self) -> Decoder:
        """Hsim's own decoder with the limits that are being measured."""
        if self._decoder is None:
            from hsim.backends.decoder import Decoder
            from hsim.backends.hosts import DecoderSpec

            served = self.served
            assert served is not None, "nobody said what to serve"
            assert served.precision in ("bf16", "fp16", "fp32"), f"no {served.precision} in hsim's decoder"
            spec = DecoderSpec(
                served.model, served.slots, served.max_context_tokens, dtype=served.precision, device=self.device
            )
            self._decoder = Decoder(spec, self.opened)
        return self._decoder

    def prepared(self, unit: Unit) -> Call:
        """The call of a unit, made ready once."""
        if self._ready is None or self._ready[0] != unit.point:
            self._ready = (unit.point, self._call(unit.kind, unit.parameters))
        return self._ready[1]

    def _call(self, kind: str, at: Parameters) -> Call:
        if kind == "power":
            return self._call(str(at["of"]), at)
        if kind in ("operation", "contention"):
            return self._operation(at)
        if kind == "step":
            return self._step(at, self.decoder)
        if kind == "layer":
            return self._step(at, self._layer(str(at["model"])))
        if kind == "idle":
            _ = self.decoder  # loaded: with a model and its cache in memory
            return lambda i: time.sleep(SPIN_S)
        if kind == "cpu-power":
            kind, at = "gemm", BUSY_CORE
        self._kernels = self._kernels or Kernels(self.device)
        return self._kernels.call(kind, at)

    def _operation(self, at: Parameters) -> Call:
        name, size, units = str(at["name"]), int(at["size"]), float(at["units"])
        if (name, size) not in self._tools:
            self._tools[name, size] = live_operation(name, self.codes).prepare(size)
        tool = self._tools[name, size]
        return lambda i: tool.run(units)

    def _layer(self, model: str) -> Decoder:
        """A decoder of one layer of a model."""
        from hsim.backends.decoder import Decoder
        from hsim.backends.hosts import DecoderSpec

        served = self.served
        assert served is not None and served.precision in ("bf16", "fp16", "fp32"), "nobody said what to serve"
        if self._one_layer is None or self._one_layer[0] != model:
            whole = served.model if model == served.model.name else load_model(model, "calibrate", Path())
            context = min(served.max_context_tokens, whole.max_context_tokens)
            spec = DecoderSpec(one_layer(whole), served.slots, context, dtype=served.precision, device=self.device)
            self._one_layer = (model, Decoder(spec, self.opened))
        return self._one_layer[1]

    def _step(self, at: Parameters, decoder: Decoder) -> Call:
        """The same step again and again: each begins where the one before it began."""
        items = step_items(at)
        decoder.assume_filled()
        decoder.step(items)

        def call(i: int) -> Any:
            decoder.assume_filled()
            return decoder.step(items)

        return call

    def measure(self, unit: Unit, call: Call) -> Reading:
        """Time a unit, or measure its power."""
        if unit.kind in ("power", "idle", "cpu-power"):
            return self._powered(unit, call)
        if self.on_cpu or unit.kind in (*WALL_TIMED, "step", "layer"):
            name = unit.parameters.get("name")  # nobody knows whether code of one's own waits for something
            waits = not self.on_cpu or name in WAITING_OPERATIONS or name in self.codes
            own_core = self.threads == 1 and not waits
            return sample(call, unit.expected_s, own_core, REST_OF.get(unit.kind) if self.on_cpu else None)
        held_back: set[str] = set()
        reading = sample_cuda(call, unit.expected_s, self.device, partial(_look_at_clocks, self.device, held_back))
        return replace(reading, notes=(*reading.notes, *sorted(held_back)))

    def _powered(self, unit: Unit, call: Call) -> Reading:
        """Work (or idle) for the ramp, then for the window between two readings of the device's energy meter."""
        piece = self._piece(unit, call)
        _spin(call, piece, RAMP_S, self.opened.synchronise)
        meter = None if unit.kind == "cpu-power" else board_meter(self.device)  # the parent reads that of the package
        before_j = meter.joules() if meter else None
        readings: list[float] = []
        held_back: set[str] = set()
        look = None if self.on_cpu else partial(_look, board_watts(self.device), readings, self.device, held_back)
        calls, seconds = _spin(call, piece, WINDOW_S, self.opened.synchronise, look)
        after_j = meter.joules() if meter else None
        if meter:
            meter.close()
        if meter and (before_j is None or after_j is None):
            return Reading(failure=meter.unavailable_reason or "the meter gave no joules")
        watts = None if before_j is None or after_j is None else (after_j - before_j) / seconds
        notes = tuple(sorted(held_back))
        if watts is not None and readings:
            notes += cross_checked(watts, statistics.fmean(readings))
        return Reading(seconds / calls, 0.0, calls, watts=watts, window_s=seconds, notes=notes)

    def _piece(self, unit: Unit, call: Call) -> int:
        """How many calls take about SPIN_S."""
        if unit.kind == "idle":
            return 1
        waited_for = self.on_cpu or unit.parameters["of"] == "step"
        reading = sample(call, SPIN_S, own_core=False) if waited_for else sample_cuda(call, SPIN_S, self.device)
        assert reading.seconds is not None
        return max(1, round(SPIN_S / reading.seconds))


def cross_checked(counter_w: float, readings_w: float) -> tuple[str, ...]:
    """A note where the mean of power readings is not what the energy counter says."""
    if abs(readings_w / counter_w - 1) <= POWER_AGREES:
        return ()
    return (f"{DISAGREE}: the energy counter says {counter_w:.1f} W, power readings {readings_w:.1f} W",)


def _look(watts: Callable[[], float | None], readings: list[float], device: str, held_back: set[str]) -> None:
    if (now_w := watts()) is not None:
        readings.append(now_w)
    _look_at_clocks(device, held_back)


def _look_at_clocks(device: str, held_back: set[str]) -> None:
    """Note why clocks are held back, while the device is at work: one that is idle says nothing but that."""
    held_back.update(_clock_facts(device)[0])


def board_watts(device: str) -> Callable[[], float | None]:
    """The present power of cuda:N, where NVML tells it."""
    from hsim.backends.nvml import Nvml

    nvml = Nvml()
    return partial(nvml.watts, nvml.devices()[_index(device)])


def _spin(
    call: Call, piece: int, seconds: float, synchronise: Callable[[], object], look: Callable[[], object] | None = None
) -> tuple[int, float]:
    """Call in pieces for so many seconds, with a look while each is under way; how often, and how long it really took."""
    calls, began_s = 0, time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        for _ in range(piece):
            call(calls)
            calls += 1
        if look:
            look()
        synchronise()
    return calls, time.perf_counter() - began_s


def board_meter(device: str) -> Any:
    """The meter of cuda:N."""
    from hsim.backends.meters import accelerator_meters

    meters = accelerator_meters()
    return meters[min(_index(device), len(meters) - 1)]


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _clock_facts(device: str) -> tuple[tuple[str, ...], float | None]:
    """Why the clocks of cuda:N are held back now, as notes, and its power limit; nothing where NVML does not tell."""
    from hsim.backends.nvml import Nvml

    try:
        nvml = Nvml()
        facts = nvml.facts(nvml.devices()[_index(device)])
    except (BackendError, IndexError):
        return (), None
    reasons = [r for r in facts.throttle_reasons or () if r not in HARMLESS_CLOCKS]
    return tuple(CAPPED if r == "SwPowerCap" else f"{THROTTLED}: {r}" for r in reasons), facts.power_limit_w


def step_items(at: Parameters) -> list[StepItem]:
    """The items of a step unit."""
    contexts, chunks = step_parts(at)
    items = [StepItem(slot, context - 1, [ANY_TOKEN]) for slot, context in enumerate(contexts)]
    return items + [StepItem(len(contexts) + i, start, tokens) for i, (tokens, start) in enumerate(chunks)]
