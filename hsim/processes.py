"""How processes that work for this one are started: deaf to Ctrl-C, which is for the parent alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Processes started in this block never see Ctrl-C, which a terminal sends to all of them.

    A handler that a process sets for itself comes too late while it still imports modules; the mask of signals of the
    thread that starts it is handed down to it (POSIX only; elsewhere the block does nothing).
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing starts it before its first process, and unblocks signals then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
