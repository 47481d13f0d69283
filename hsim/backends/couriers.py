"""Couriers: two processes, one at either end of a link on this machine, that really move payloads between them.

A process of its own at either end, so that neither the core that made a payload nor the decoder that waits for it does the
moving, as network cards do not. By `pipe` bytes are pickled, copied into the system and out again; by `shared-memory` they
lie where both ends see them, and only a word about them moves. Either way they have come when every byte has been read.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hsim.backends.hosts import Opened
from hsim.backends.worker import Worker, WorkerSettings, not_started
from hsim.errors import BackendError

Manner = Literal["pipe", "shared-memory"]

WORD_BYTES = 8
MOST_BYTES = 1 << 22  # moved at a time; more goes in pieces of so much
MEMORY = Path("/dev/shm")  # where a file is memory; elsewhere it is the system's cache of one
SERVE = "serve"


@dataclass(frozen=True)
class _Sender:
    """A Host (see backends.hosts): asked with a number of bytes, it moves them, and answers when they have been read."""

    manner: Manner
    connection: Connection
    file: str

    def open(self) -> Opened:
        """See Host."""
        words = np.arange(MOST_BYTES // WORD_BYTES, dtype=np.uint64)
        _mapped(self.file)[:] = words

        def move(n_bytes: float) -> None:
            left = max(1, -(-round(n_bytes) // WORD_BYTES))
            while left:
                count = min(left, len(words))
                self.connection.send(words[:count].tobytes() if self.manner == "pipe" else count)
                if (read := self.connection.recv()) != count * (count - 1) // 2:
                    raise BackendError(f"courier by {self.manner}", f"{count} words did not arrive whole (sum {read})")
                left -= count

        return Opened(move, (f"links are carried by {self.manner}",))


@dataclass(frozen=True)
class _Receiver:
    """A Host: asked to serve, it reads whatever comes and says what it sums up to, until the other end has gone."""

    manner: Manner
    connection: Connection
    file: str

    def open(self) -> Opened:
        """See Host."""
        memory = _mapped(self.file)

        def serve(request: str) -> None:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    came = self.connection.recv()
                    words = np.frombuffer(came, dtype=np.uint64) if self.manner == "pipe" else memory[:came]
                    self.connection.send(int(words.sum()))

        return Opened(serve, ())


def _mapped(file: str) -> NDArray[np.uint64]:
    with Path(file).open("r+b") as opened:
        return np.frombuffer(mmap.mmap(opened.fileno(), MOST_BYTES), dtype=np.uint64)


class Couriers:
    """Both ends of one link; `sender` is a Worker that is asked with a number of bytes.

    Raises BackendError where the system gives them no memory, files or processes.
    """

    def __init__(self, manner: Manner) -> None:
        self._stack = contextlib.ExitStack()
        where = MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())
        try:
            self._start(manner, where)
        except OSError as error:
            self.close()
            raise not_started(f"courier by {manner}", error, f"make room in {where}") from None
        except BaseException:  # Ctrl-C too
            self.close()
            raise

    def _start(self, manner: Manner, where: Path) -> None:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hsim-courier-", dir=where))
        file = Path(folder) / "payload"
        file.write_bytes(bytes(MOST_BYTES))
        ours, theirs = get_context("spawn").Pipe()
        with ours, theirs:  # the ends are the workers' in the end: where one dies, the other is told
            self.sender = Worker(_Sender(manner, ours, str(file)), WorkerSettings(f"courier by {manner}, sending"))
            receiver = Worker(_Receiver(manner, theirs, str(file)), WorkerSettings(f"courier by {manner}, receiving"))
            for worker in (self.sender, receiver):
                self._stack.callback(worker.close)
                worker.start()
            self.notes = self.sender.ready()
            receiver.ready()
            receiver.send(SERVE)

    def close(self) -> None:
        """End both."""
        self._stack.close()
