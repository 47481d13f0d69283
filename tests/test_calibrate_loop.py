"""The live loop measured on workers that only pretend: every step and job counts, and what fails is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_live import CorePuppet, DecoderPuppet

from hsim.backends.worker import Worker, WorkerSettings
from hsim.calibrate.agenda import BETWEEN, HAND_OVER, LOOP_STEP, Served
from hsim.calibrate.loop import ROUNDS, TASKS, LoopTimes, drive
from hsim.description.catalogue import load_model
from hsim.errors import BackendError

OUTPUT_TOKENS, JOB_UNITS = 24, 6
SERVED = Served(load_model("tiny-12m", "test", Path()), "fp32", 4, 256, 64)


@pytest.fixture
def decoder() -> Iterator[Worker]:
    with Worker(DecoderPuppet(SERVED.slots), WorkerSettings("decoder puppet")) as worker:
        yield worker


@pytest.mark.parametrize("users", [1, 4])
def test_every_job_and_every_step_that_follows_one_is_timed(decoder: Worker, users: int) -> None:
    before = os.sched_getaffinity(decoder.process.pid or 0)
    with Worker(CorePuppet(), WorkerSettings("core puppet")) as core:
        found = drive(decoder, core, SERVED, users, OUTPUT_TOKENS, JOB_UNITS)
    visits = max(TASKS, 2 * users) * ROUNDS
    assert len(found.hand_over_s) == visits
    assert all(seconds > 0 for seconds in (*found.hand_over_s, *(s for _, s in (*found.between_s, *found.decode_s))))
    # Alone, each answer is a prompt's step and then decode steps; only the first of each follows none.
    most = visits * (OUTPUT_TOKENS - 1)
    assert len(found.between_s) == len(found.decode_s) == most or (users > 1 and len(found.decode_s) < most)
    assert {n for n, _ in found.decode_s} <= set(range(1, users + 1))
    assert max(n for n, _ in found.between_s) <= users
    for role in (BETWEEN, HAND_OVER, LOOP_STEP):
        assert (found.reading(role).seconds or 0.0) > 0
    assert os.sched_getaffinity(decoder.process.pid or 0) == before, "it stays pinned"


def test_steps_are_told_for_as_many_sequences_as_there_are_users() -> None:
    """Sixteen take less than fifteen, so that those of fewer say nothing of them."""
    decode = [(15.0, 14.2e-3), (16.0, 11e-3), (14.0, 13.3e-3), (16.0, 12e-3)]
    found = LoopTimes(16, [(1.0, 9e-4), (16.0, 3e-4)], decode, [1e-4, 2e-4, 9e-4])
    assert found.reading(LOOP_STEP).seconds == pytest.approx(11.5e-3)
    assert found.reading(BETWEEN).seconds == pytest.approx(3e-4)
    assert found.reading(HAND_OVER).seconds == pytest.approx(4e-4)
    none = LoopTimes(16, [(1.0, 9e-4)], decode[:1], [1e-4]).reading(LOOP_STEP)
    assert none.seconds is None and "every user" in none.failure


def test_what_fails_in_the_loop_is_no_measurement(decoder: Worker) -> None:
    with (
        Worker(CorePuppet("raises", 3), WorkerSettings("core puppet")) as core,
        pytest.raises(BackendError, match=r"the live loop: .*no such page"),
    ):
        drive(decoder, core, SERVED, 1, OUTPUT_TOKENS, JOB_UNITS)
