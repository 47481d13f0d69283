"""The device that torch works on: everything that differs between CPU and CUDA, behind one narrow interface."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from hsim.errors import BackendError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Memory(NamedTuple):
    """Bytes of a device's memory."""

    free_bytes: int
    total_bytes: int


class Device(Protocol):
    """Where tensors live and work is done."""

    name: str
    torch_device: Any
    context_tokens_per_call: int
    """A tuning choice, not a measurement: one more attention call is taken to cost as much as reading the keys and
    values of so many tokens. Few where calls are cheap, many where each is a kernel launch. It sets how far decodes
    of unlike context are padded to share a call."""

    def synchronise(self) -> None:
        """Return when all work given to the device is done."""
        ...

    def memory(self) -> Memory:
        """What can still be allocated, and what there is."""
        ...

    def seconds(self, work: Callable[[], object]) -> float:
        """How long the device takes for the work, its queue empty at the start."""
        ...


class CpuDevice:
    """The CPU: work is done when the call returns."""

    name = "cpu"
    context_tokens_per_call = 256

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")

    def synchronise(self) -> None:
        """See Device."""

    def memory(self) -> Memory:
        """See Device."""
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return Memory(1024 * kibibytes["MemAvailable"], 1024 * kibibytes["MemTotal"])

    def seconds(self, work: Callable[[], object]) -> float:
        """See Device."""
        start_s = time.perf_counter()
        work()
        return time.perf_counter() - start_s


class CudaDevice:
    """A CUDA device: work is queued, so time is taken with events on its own stream."""

    context_tokens_per_call = 16_384

    def __init__(self, index: int) -> None:
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        # cuDNN's attention, which torch 2.11 prefers on Hopper, builds a plan for every new shape (23 to 440 ms, by others'
        # reports): a decode step has another context nearly every time.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.name = f"cuda:{index} ({torch.cuda.get_device_name(self.torch_device)})"

    def synchronise(self) -> None:
        """See Device."""
        torch.cuda.synchronize(self.torch_device)

    def memory(self) -> Memory:
        """See Device. What torch has reserved but does not use counts as free."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self.torch_device)
        spare = torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        return Memory(free_bytes + spare, total_bytes)

    def seconds(self, work: Callable[[], object]) -> float:
        """See Device."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.synchronise()
        start.record()
        work()
        end.record()
        self.synchronise()
        return float(start.elapsed_time(end)) / 1000


def open_device(name: str) -> Device:
    """The device called `cpu`, `cuda` or `cuda:1`. Raises BackendError where it is not to be had."""
    kind, _, number = name.partition(":")
    if kind == "cpu" and not number:
        return CpuDevice()
    if kind != "cuda" or not (number or "0").isdigit():
        raise BackendError(f"device {name}", "there is no such device", "use cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        why = "torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device or driver"
        raise BackendError(f"device {name}", why, "use cpu, or install the CUDA build of torch and a driver")
    if int(number or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device {name}", f"torch sees {torch.cuda.device_count()} CUDA devices", "count from cuda:0"
        )
    return CudaDevice(int(number or 0))
