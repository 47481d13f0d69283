"""NVIDIA accelerators through nvidia-ml-py: which ones CUDA sees, what they are, and what they draw."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from hsim.errors import BackendError


@dataclass(frozen=True)
class AcceleratorFacts:
    """An accelerator as its driver describes it now; None is what the driver does not tell."""

    name: str
    uuid: str | None
    driver_version: str | None
    memory_bytes: int | None
    memory_used_bytes: int | None
    sm_clock_hz: float | None
    max_sm_clock_hz: float | None
    memory_clock_hz: float | None
    power_limit_w: float | None
    temperature_celsius: int | None
    throttle_reasons: tuple[str, ...] | None


class Nvml:
    """An open NVML. Never shut down: other meters of this process may use it, and it costs nothing until then."""

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError:
            raise BackendError("NVML", "nvidia-ml-py is not installed", "pip install 'hsim[live]'") from None
        self.api: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise BackendError("NVML", f"cannot be opened ({error})", "it needs an NVIDIA GPU and its driver") from None

    def devices(self) -> list[Any]:
        """Handles of the accelerators that CUDA sees, in its order: the i-th is torch's cuda:i.

        CUDA_VISIBLE_DEVICES is followed, numbers and UUIDs. Numbers mean the same to CUDA as to NVML only under
        CUDA_DEVICE_ORDER=PCI_BUS_ID or where all GPUs are alike.
        """
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        try:
            if visible is None:
                return [self.api.nvmlDeviceGetHandleByIndex(i) for i in range(self.api.nvmlDeviceGetCount())]
            chosen = [name.strip() for name in visible.split(",") if name.strip()]
            return [self._named(name) for name in chosen]
        except self.api.NVMLError as error:
            where = "NVML" if visible is None else f"NVML: CUDA_VISIBLE_DEVICES={visible}"
            raise BackendError(where, f"a device cannot be found ({error})") from None

    def _named(self, name: str) -> Any:
        if name.isdigit():
            return self.api.nvmlDeviceGetHandleByIndex(int(name))
        return self.api.nvmlDeviceGetHandleByUUID(name)

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer of an NVML function, or None where the device, the driver or the library does not have it."""
        try:
            answer = getattr(self.api, function)(*arguments)
        except (self.api.NVMLError, AttributeError):
            return None
        return answer.decode() if isinstance(answer, bytes) else answer  # old releases return bytes

    def watts(self, device: Any) -> float | None:
        """Board power now: the instantaneous field where there is one, else the driver's average (1 s on newer GPUs)."""
        field = getattr(self.api, "NVML_FI_DEV_POWER_INSTANT", None)
        values = self.ask("nvmlDeviceGetFieldValues", device, [field]) if field is not None else None
        if values and values[0].nvmlReturn == self.api.NVML_SUCCESS:
            return float(values[0].value.uiVal) / 1000
        milliwatts = self.ask("nvmlDeviceGetPowerUsage", device)
        return None if milliwatts is None else float(milliwatts) / 1000

    def shares_meter(self, device: Any) -> bool:
        """Whether the GPU is cut into MIG instances, which have one meter between them."""
        modes = self.ask("nvmlDeviceGetMigMode", device)
        return bool(modes and modes[0])

    def facts(self, device: Any) -> AcceleratorFacts:
        """What the driver says of a device now."""
        api, memory = self.api, self.ask("nvmlDeviceGetMemoryInfo", device)
        limit_mw = self.ask("nvmlDeviceGetEnforcedPowerLimit", device)
        return AcceleratorFacts(
            name=self.ask("nvmlDeviceGetName", device) or "an accelerator without a name",
            uuid=self.ask("nvmlDeviceGetUUID", device),
            driver_version=self.ask("nvmlSystemGetDriverVersion"),
            memory_bytes=memory and int(memory.total),
            memory_used_bytes=memory and int(memory.used),
            sm_clock_hz=_hz(self.ask("nvmlDeviceGetClockInfo", device, api.NVML_CLOCK_SM)),
            max_sm_clock_hz=_hz(self.ask("nvmlDeviceGetMaxClockInfo", device, api.NVML_CLOCK_SM)),
            memory_clock_hz=_hz(self.ask("nvmlDeviceGetClockInfo", device, api.NVML_CLOCK_MEM)),
            power_limit_w=None if limit_mw is None else limit_mw / 1000,
            temperature_celsius=self.ask("nvmlDeviceGetTemperature", device, api.NVML_TEMPERATURE_GPU),
            throttle_reasons=self._throttle_reasons(device),
        )

    def _throttle_reasons(self, device: Any) -> tuple[str, ...] | None:
        # The driver renamed the question (550) and the reasons; both spellings name the same bits.
        bits = self.ask("nvmlDeviceGetCurrentClocksEventReasons", device)
        if bits is None:
            bits = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons", device)
        if bits is None:
            return None
        names: dict[int, str] = {}
        for prefix in ("nvmlClocksEventReason", "nvmlClocksThrottleReason"):
            for name, bit in vars(self.api).items():
                if name.startswith(prefix) and isinstance(bit, int) and bit.bit_count() == 1:
                    names.setdefault(bit, name.removeprefix(prefix))
        return tuple(name for bit, name in sorted(names.items()) if bits & bit)


def _hz(megahertz: int | None) -> float | None:
    return None if megahertz is None else megahertz * 1e6
