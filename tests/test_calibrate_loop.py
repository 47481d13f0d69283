"""The live loop measured on workers that only pretend: every step and job counts, and what fails is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_live import CorePuppet, DecoderPuppet

from hsim.backends.worker import Worker, WorkerSettings
from hsim.calibrate.agenda import Served
from hsim.calibrate.loop import OUTPUT_TOKENS, ROUNDS, TASKS, drive
from hsim.description.catalogue import load_model
from hsim.errors import BackendError

SERVED = Served(load_model("tiny-12m", "test", Path()), "fp32", 4, 256, 64)


@pytest.fixture
def decoder() -> Iterator[Worker]:
    with Worker(DecoderPuppet(SERVED.slots), WorkerSettings("decoder puppet")) as worker:
        yield worker


@pytest.mark.parametrize("users", [1, 4])
def test_every_job_and_every_step_that_follows_one_is_timed(decoder: Worker, users: int) -> None:
    before = os.sched_getaffinity(decoder.process.pid or 0)
    with Worker(CorePuppet(), WorkerSettings("core puppet")) as core:
        found = drive(decoder, core, SERVED, users)
    assert len(found.hand_over_s) == TASKS * ROUNDS
    assert all(seconds > 0 for seconds in (*found.between_s, *found.hand_over_s))
    # Alone, each answer is a prompt's step and then decode steps; only the first of each follows none.
    assert len(found.between_s) <= TASKS * ROUNDS * (OUTPUT_TOKENS - 1)
    assert len(found.between_s) == TASKS * ROUNDS * (OUTPUT_TOKENS - 1) or users > 1
    assert os.sched_getaffinity(decoder.process.pid or 0) == before, "it stays pinned"


def test_what_fails_in_the_loop_is_no_measurement(decoder: Worker) -> None:
    with (
        Worker(CorePuppet("raises", 3), WorkerSettings("core puppet")) as core,
        pytest.raises(BackendError, match=r"the live loop: .*no such page"),
    ):
        drive(decoder, core, SERVED, 1)
