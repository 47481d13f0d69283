"""Processes that work for this one never see Ctrl-C, not even while they still import modules."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import pytest

from hsim.processes import without_ctrl_c


def _is_deaf(said: Connection) -> None:
    said.send(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_processes_are_born_deaf_to_ctrl_c() -> None:
    context = multiprocessing.get_context("spawn")
    heard, said = context.Pipe(duplex=False)
    process = context.Process(target=_is_deaf, args=(said,))
    with without_ctrl_c():
        process.start()
    os.kill(process.pid or 0, signal.SIGINT)  # it imports still
    assert heard.recv()
    process.join()
    assert process.exitcode == 0


def test_this_process_hears_it_again_afterwards() -> None:
    with pytest.raises(OSError, match="what a start may end with"), without_ctrl_c():
        raise OSError("what a start may end with")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
