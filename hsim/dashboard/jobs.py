"""Work in processes of its own: few at a time, each with a limit on time and memory, and stopped at a click."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Literal

from hsim.dashboard.work import Request, Update
from hsim.errors import HsimError
from hsim.units import GIB

State = Literal["waiting", "running", "done", "failed", "stopped"]
ENDED = ("done", "failed", "stopped")


@dataclass(frozen=True)
class Bounds:
    """What all visitors together may take of this machine."""

    at_once: int = 2
    waiting: int = 20
    seconds: float = 300.0
    memory_bytes: int = 4 * GIB
    unwatched_s: float = 60.0  # whoever has closed the page needs no answer
    kept: int = 40  # finished results, so that the same question is not simulated twice
    nice: int = 0  # how far its processes stand back for others: what somebody waits for goes first


class Job:
    """One request on its way: read `state`, `update` and `error`, which another thread writes."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.state: State = "waiting"
        self.update: Update | None = None
        self.error = ""
        self._ended, self._stop = threading.Event(), threading.Event()
        self._watched_s = time.monotonic()

    def stop(self) -> None:
        """Ask for its end."""
        self._stop.set()

    def wait(self, seconds: float) -> Job:
        """Return when it has ended, or after so long."""
        self._ended.wait(seconds)
        return self.watched()

    def watched(self) -> Job:
        """Say that somebody still wants the answer."""
        self._watched_s = time.monotonic()
        return self

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def unwanted(self, bounds: Bounds) -> bool:
        """Whether it was stopped, or nobody looks any more."""
        return self._stop.is_set() or time.monotonic() - self._watched_s > bounds.unwatched_s

    def finish(self, state: State, error: str = "") -> None:
        """Tell whoever waits that this is the end."""
        self.error, self.state = error, state
        self._ended.set()


class Runner:
    """All jobs of a server. Sessions share it: it bounds what they take, and keeps what was simulated."""

    def __init__(self, bounds: Bounds = Bounds()) -> None:
        self.bounds = bounds
        self._lock, self._slots = threading.Lock(), threading.Semaphore(bounds.at_once)
        self._live: set[Job] = set()
        self._kept: OrderedDict[Request, Job] = OrderedDict()
        self._context = _context()

    def knows(self, request: Request) -> bool:
        """Whether the answer is there already."""
        return request in self._kept

    def start(self, request: Request) -> Job:
        """Begin a request, or give the finished job of the same one. Raises HsimError where too many wait."""
        with self._lock:
            if request in self._kept:
                self._kept.move_to_end(request)
                return self._kept[request]
            if len(self._live) >= self.bounds.at_once + self.bounds.waiting:
                raise HsimError("too many simulations wait; try again in a minute")
            job = Job(request)
            self._live.add(job)
        threading.Thread(target=self._see_through, args=(job,), daemon=True).start()
        return job

    def _see_through(self, job: Job) -> None:
        """A job from waiting to its end."""
        while not self._slots.acquire(timeout=0.2):
            if job.unwanted(self.bounds):
                self._live.discard(job)
                job.finish("stopped")
                return
        try:
            self._run(job)
        finally:
            self._slots.release()
            with self._lock:
                self._live.discard(job)
                if job.state == "done":
                    self._kept[job.request] = job
                    while len(self._kept) > self.bounds.kept:
                        self._kept.popitem(last=False)

    def _run(self, job: Job) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        target: Callable[..., None] = _work
        process = self._context.Process(target=target, args=(job.request, sender, self.bounds), daemon=True)
        process.start()
        sender.close()
        job.state = "running"
        try:
            job.finish(*_followed(job, receiver, process, self.bounds))
        finally:
            process.kill()
            process.join()
            receiver.close()


def _followed(job: Job, receiver: Connection, process: BaseProcess, bounds: Bounds) -> tuple[State, str]:
    """Take updates until the process has ended or must; how it ended."""
    until_s = time.monotonic() + bounds.seconds
    while time.monotonic() < until_s:
        if job.unwanted(bounds):
            return "stopped", ""
        if not receiver.poll(0.1):
            continue
        try:
            message = receiver.recv()
        except EOFError:
            process.join()
            why = "memory was short" if process.exitcode == -9 else f"exit code {process.exitcode}"
            return "failed", f"the simulation ended before it was done ({why})"
        if isinstance(message, Update):
            job.update = message
        else:
            return ("failed", message) if message else ("done", "")
    return "failed", f"stopped after {bounds.seconds:.0f} s, the limit of this dashboard; ask for less, or use hsim"


def _work(request: Request, sender: Connection, bounds: Bounds) -> None:
    """In the new process: send each update, then what went wrong, or an empty text."""
    _limit_memory(bounds.memory_bytes)
    if hasattr(os, "nice"):
        os.nice(bounds.nice)
    try:
        request.work(sender.send)
    except HsimError as error:
        sender.send(str(error))
    except MemoryError:
        sender.send(f"it takes more than {bounds.memory_bytes / GIB:.0f} GiB of memory; simulate fewer tasks")
    else:
        sender.send("")


def _limit_memory(limit_bytes: int) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def _context() -> SpawnContext | ForkServerContext:
    """Processes forked from a clean one that has hsim loaded and warm: they start in milliseconds and share nothing of ours."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hsim.dashboard.warm"])
    return context
