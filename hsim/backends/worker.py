"""A worker: a process of its own that hosts a decoder or tools, does what it is asked, and times it on its own clock.

The driver's loop asks one thing at a time with `send` and, when `connection` can be read (or at once), fetches the
answer. Start and end are the worker's time.monotonic(), which on one machine is also the parent's. Whatever goes
wrong in a worker (a fault in its work, memory that runs out, its death, no answer in time) is a BackendError in the
parent. A worker ends with its parent, however the parent ends, and whatever it has started ends with it.
"""

from __future__ import annotations

import contextlib
import errno
import math
import multiprocessing
import os
import resource
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple

from hsim.backends.hosts import Host
from hsim.errors import BackendError, HsimError
from hsim.processes import without_ctrl_c

DECODER_SPIN_S = 0.003  # the loop takes about 1 ms from one step to the next
MORE_FILES = "allow more open files (ulimit -n)"
MORE_PROCESSES = "free memory, or allow more processes (ulimit -u)"
_CLOSING_S = 5.0  # a worker that has not ended so long after it was asked to is killed


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker runs. `threads` is for torch, BLAS and faiss; `cores` pins it (None: wherever the system likes).

    For `spin_s` after an answer it stays awake for the next request, as serving engines do between steps: a core that
    has slept for a millisecond takes up to twice as long for the work that wakes it. Only for one with a core of its own.
    """

    name: str
    threads: int = 1
    cores: tuple[int, ...] | None = None
    spin_s: float = 0.0
    start_timeout_s: float = 600.0
    answer_timeout_s: float = 120.0


class Done(NamedTuple):
    """Work that was done, from start_s to end_s on the worker's monotonic clock.

    `cpu_s` is what the worker and the children that it waited for had of cores meanwhile: less than the time between
    where it waited, or where others had its core.
    """

    start_s: float
    end_s: float
    value: Any
    cpu_s: float = math.nan


class _Ready(NamedTuple):
    notes: tuple[str, ...]


class _Failed(NamedTuple):
    problem: str
    trace: str
    last: bool
    """Whether nothing more can be done in this process."""


def shared_cores(workers: int) -> list[tuple[int, ...]]:
    """The cores of each of so many workers: this process's own, dealt out, one kept for the loop where there are over two.

    Workers share cores where there are too few.
    """
    cores = sorted(os.sched_getaffinity(0))
    free = cores[1:] if len(cores) > 2 else cores
    each = max(1, len(free) // workers)
    return [tuple(free[(i * each + k) % len(free)] for k in range(each)) for i in range(workers)]


class Worker:
    """The parent's end of a worker process. One request is under way at a time.

    An error in the work leaves the worker ready for more, but one that loses its CUDA context: it is ended then. After its
    death or silence every use raises the same error.
    """

    def __init__(self, host: Host, settings: WorkerSettings) -> None:
        self.host, self.settings, self._where = host, settings, f"worker {settings.name}"
        context = multiprocessing.get_context("spawn")  # forking a process that has threads or CUDA is not safe
        try:
            self.connection, self._theirs = context.Pipe()
        except OSError as error:
            raise not_started(self._where, error) from None
        self.process = context.Process(
            target=_serve, args=(host, settings, self._theirs), name=settings.name, daemon=True
        )
        self._busy = False
        self._group: Callable[[], object] = lambda: None  # ends it with what it has started, once
        self._end: BackendError | None = None

    def __enter__(self) -> Worker:
        self.start()
        self.ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process. Returns at once: start several, then wait for each to be ready.

        Raises BackendError where the system gives no process.
        """
        try:
            with _environment(self.settings.threads), without_ctrl_c():
                self.process.start()
        except OSError as error:
            self.close()
            raise not_started(self._where, error) from None
        assert self.process.pid is not None
        self._group = weakref.finalize(self, _end_group, self.process.pid)  # when this process ends, at the latest
        self._theirs.close()  # the worker alone holds it now: when it dies, our end can be read, and is at its end
        self._busy = True

    def ready(self) -> tuple[str, ...]:
        """Wait until it has opened what it hosts; returns plain statements of what that really is.

        Raises BackendError, and ends the process, where it could not.
        """
        try:
            message = self._receive(self.settings.start_timeout_s)
        except BackendError:
            self.close()
            raise
        assert isinstance(message, _Ready)
        return message.notes

    def send(self, request: Any) -> None:
        """Ask for work; the answer must be fetched before the next request."""
        if self._end:
            raise self._end
        assert not self._busy, f"{self._where} is asked while it is at work"
        assert request is not None, "None is how a worker is told to end"
        try:
            self.connection.send(request)
        except OSError:
            raise self._ended(self._death()) from None
        self._busy = True

    def patience_s(self, timeout_s: float | None) -> float:
        """How long an answer is waited for: so long, or where nobody says, as its settings have it."""
        return self.settings.answer_timeout_s if timeout_s is None else timeout_s

    def answer(self, timeout_s: float | None = None) -> Done:
        """What came of the request. Waits so long, or up to answer_timeout_s; a worker that is silent for longer is killed."""
        message = self._receive(self.patience_s(timeout_s))
        assert isinstance(message, Done)
        return message

    def call(self, request: Any, timeout_s: float | None = None) -> Done:
        """Ask, and wait for the answer."""
        self.send(request)
        return self.answer(timeout_s)

    @property
    def dead(self) -> bool:
        """Whether its process has ended, or was killed for its silence."""
        return self._end is not None

    def end_silent(self, timeout_s: float) -> None:
        """Kill it for having been silent for so long: fetching its answer then raises that."""
        self._ended(self._silence(timeout_s))
        self._kill()

    def close(self) -> None:
        """End the process: at once if it is at work, and never later than in a few seconds."""
        if self.process.pid is not None and not self.connection.closed:
            if not self._busy:
                with contextlib.suppress(OSError):
                    self.connection.send(None)
                    self.process.join(_CLOSING_S)
            self._kill()
        self.connection.close()
        self._theirs.close()

    def _receive(self, timeout_s: float) -> Any:
        if self._end:
            raise self._end
        assert self._busy, f"{self._where} was asked nothing"
        try:
            if not self.connection.poll(timeout_s):
                self._kill()
                raise self._ended(self._silence(timeout_s))
            message = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended(self._death()) from None
        self._busy = False
        if isinstance(message, _Failed):
            error = BackendError(self._where, message.problem)
            error.add_note(message.trace)
            if message.last:
                self._ended(error)
                self._kill()
            raise error
        return message

    def _kill(self) -> None:
        self._group()
        self.process.kill()  # one that has no group yet
        self.process.join(_CLOSING_S)
        if self.process.is_alive():
            # Stuck in a driver, where nothing ends it: multiprocessing would wait for it at exit.
            multiprocessing.process._children.discard(self.process)  # type: ignore[attr-defined]

    def _ended(self, error: BackendError) -> BackendError:
        self._end = error
        return error

    def _silence(self, timeout_s: float) -> BackendError:
        what = f"gave no answer within {timeout_s:g} s and was killed"
        return BackendError(self._where, what, "give it longer if its work may take so long")

    def _death(self) -> BackendError:
        self.process.join(_CLOSING_S)
        code = self.process.exitcode
        self._kill()  # what it had started
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            remedy = "if nobody killed it, memory has run out" if name == "SIGKILL" else ""
            return BackendError(self._where, f"its process was ended by {name}", remedy)
        return BackendError(self._where, f"its process ended by itself with code {code}", "stderr has its last words")


def not_started(where: str, error: OSError, otherwise: str = MORE_PROCESSES) -> BackendError:
    """What the system refused, and what would help: `otherwise` where it is not more open files."""
    remedy = MORE_FILES if error.errno in (errno.EMFILE, errno.ENFILE) else otherwise
    return BackendError(where, f"cannot be started ({error.strerror or error})", remedy)


def _end_group(leader: int) -> None:
    """Kill a worker and whatever it has started; to be called once, since its number may be another's later."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """The environment that a worker is born with: libraries read it when they are imported, before any code of ours."""
    wanted = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    # Spinning threads of torch take the core from other processes; nothing is to be fetched or forked by libraries.
    wanted |= {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ---- in the worker


class _Telling:
    """Tells the parent of an error inside the block, in words, and goes on: the parent decides what becomes of it."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.failed = connection, False

    def __enter__(self) -> _Telling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed = True
        # torch's own class for a CUDA context that is lost with all that was in it: whatever came next would fail too.
        last = type(error).__name__ == "AcceleratorError"
        self.connection.send(_Failed(_in_words(error), "".join(traceback.format_exception(error)), last))
        return True


def _in_words(error: Exception) -> str:
    if isinstance(error, HsimError):
        return str(error)
    # torch's own class on CUDA, its words on the CPU; asked by name, since a worker of tools has no torch.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    ):
        return f"out of memory ({error}); use fewer slots, less context, smaller chunks or a smaller model"
    return f"failed with {type(error).__name__}: {error}"


def _serve(host: Host, settings: WorkerSettings, connection: Connection) -> None:
    # A group of its own, by which all that it starts can be ended. No session: Linux shares cores out by sessions.
    os.setpgid(0, 0)
    with contextlib.suppress(OSError):  # there is no stderr
        os.dup2(2, 1)  # stdout is for the parent's results, whatever people's own stages print
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if settings.cores:
        os.sched_setaffinity(0, settings.cores)
    try:
        _answer_all(host, connection, settings.spin_s)
    except (EOFError, OSError):  # the parent has gone
        os.killpg(0, signal.SIGKILL)


def _answer_all(host: Host, connection: Connection, spin_s: float) -> None:
    """Open what is hosted, then do what is asked until nothing more is wanted."""
    with _Telling(connection) as opening:
        opened = host.open()
        connection.send(_Ready(opened.notes))
    while not opening.failed and (request := _next_request(connection, spin_s)) is not None:
        with _Telling(connection):
            start_cpu_s, start_s = cpu_seconds(), time.monotonic()
            value = opened.run(request)
            end_s = time.monotonic()
            connection.send(Done(start_s, end_s, value, cpu_seconds() - start_cpu_s))


def cpu_seconds() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _next_request(connection: Connection, spin_s: float) -> Any:
    awake_until_s = time.monotonic() + spin_s
    while time.monotonic() < awake_until_s and not connection.poll():
        pass
    return connection.recv()


def _end_with_parent() -> None:
    """End this process, and all that it has started, when its parent ends, even in the middle of its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
