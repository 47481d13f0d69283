"""Devices that work together: workers of one process group, each with its own device, that sum tensors over all.

On GPUs the group speaks NCCL, on the CPU gloo; nothing else differs, so that what runs on many GPUs is tested on none.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hsim.backends.hosts import Opened
from hsim.backends.worker import Worker, WorkerSettings
from hsim.calibrate.kernels import DTYPES
from hsim.calibrate.sampling import reading_of
from hsim.calibrate.work import Reading
from hsim.errors import BackendError

WARM_UP, CALLS = 5, 50  # the same for every member: they must call equally often
START_S, ANSWER_S = 120.0, 60.0


@dataclass(frozen=True)
class Peer:
    """A Host (see backends.hosts): one member of a group of `peers`, which meet at a file.

    Opened, it answers (bytes, precision) with a Reading of sums over all; every member must be asked the same.
    """

    device: str
    rank: int
    peers: int
    meeting: str

    def open(self) -> Opened:
        """See Host. Returns when all have come."""
        import torch
        import torch.distributed as group

        backend = "gloo" if self.device == "cpu" else "nccl"
        if not group.is_available():
            raise BackendError(f"all-reduce on {self.device}", "this torch was built without torch.distributed")
        if self.device != "cpu":
            torch.cuda.set_device(self.device)
        group.init_process_group(backend, init_method=f"file://{self.meeting}", rank=self.rank, world_size=self.peers)

        def reduce(request: tuple[int, str]) -> Reading:
            n_bytes, precision = request
            dtype = getattr(torch, DTYPES[precision])
            tensor = torch.zeros(n_bytes // dtype.itemsize, dtype=dtype, device=self.device)
            times = []
            for i in range(WARM_UP + CALLS):
                start_s = time.perf_counter()
                group.all_reduce(tensor)
                if self.device != "cpu":
                    torch.cuda.synchronize(self.device)
                if i >= WARM_UP:
                    times.append(time.perf_counter() - start_s)
            return reading_of(times)

        return Opened(reduce, (f"{self.rank + 1} of {self.peers} over {backend}",))


class Group:
    """So many devices in one process group."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hsim-peers-"))
        meeting = str(Path(folder) / "meeting")
        settings = [
            WorkerSettings(f"peer {d} {i}", start_timeout_s=START_S, answer_timeout_s=ANSWER_S)
            for i, d in enumerate(devices)
        ]
        self._workers = [Worker(Peer(d, i, len(devices), meeting), settings[i]) for i, d in enumerate(devices)]
        try:
            for worker in self._workers:
                self._stack.callback(worker.close)
                worker.start()
            for worker in self._workers:
                worker.ready()
        except BaseException:  # Ctrl-C too
            self.close()
            raise

    def all_reduce(self, n_bytes: int, precision: str) -> Reading:
        """Sum so many bytes over all: what the slowest member saw."""
        for worker in self._workers:
            worker.send((n_bytes, precision))
        readings: list[Reading] = [worker.answer().value for worker in self._workers]
        return max(readings, key=lambda reading: reading.seconds or 0.0)

    def close(self) -> None:
        """End all members."""
        self._stack.close()
