"""The live loop measured on workers that only pretend: every step and job counts, and what fails is said."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_live import CorePuppet, DecoderPuppet

from hsim.backends.worker import Worker, WorkerSettings
from hsim.calibrate.agenda import BETWEEN, HAND_OVER, LOOP_INPUT_TOKENS, Served
from hsim.calibrate.loop import ROUNDS, TASKS, LoopStep, LoopTimes, _tasks, drive
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
    rounds = [this for task in _tasks(users, OUTPUT_TOKENS) for this in task.rounds]
    assert len(found.hand_over_s) == len(rounds) == max(TASKS, 2 * users) * ROUNDS
    follow = [step for step in found.steps if not math.isnan(step.gap_s)]
    assert all(
        seconds > 0 for seconds in (*found.hand_over_s, *(s.seconds for s in found.steps), *(s.gap_s for s in follow))
    )
    # Alone, each answer is a prompt's step and then decode steps; only the first of each follows none.
    most = sum(this.output_tokens - 1 for this in rounds)
    decode = [step for step in found.steps if not step.chunk_tokens]
    assert len(follow) == len(decode) == most or (users > 1 and len(decode) < most)
    assert {step.decodes for step in decode} <= set(range(1, users + 1))
    assert max(step.decodes + bool(step.chunk_tokens) for step in found.steps) <= users
    for role in (BETWEEN, HAND_OVER):
        assert (found.reading(role).seconds or 0.0) > 0, role
    assert os.sched_getaffinity(decoder.process.pid or 0) == before, "it stays pinned"


def test_steps_are_told_for_as_many_sequences_as_there_are_users() -> None:
    """Sixteen take less than fifteen, so that those of fewer say nothing of them."""
    steps = [
        LoopStep(15, 0, 14.2e-3, 9e-4), LoopStep(16, 0, 11e-3, 3e-4), LoopStep(16, 0, 12e-3, math.nan),
        LoopStep(16, LOOP_INPUT_TOKENS, 20e-3, 9e-4), LoopStep(15, LOOP_INPUT_TOKENS, 17e-3, 9e-4),
    ]  # fmt: skip
    found = LoopTimes(16, steps, [1e-4, 2e-4, 9e-4])
    told = {role: found.reading(role).seconds for role in (BETWEEN, HAND_OVER)}
    assert told == pytest.approx({BETWEEN: 3e-4, HAND_OVER: 4e-4})
    none = LoopTimes(16, steps[:1], [1e-4]).reading(BETWEEN)
    assert none.seconds is None and "every user" in none.failure


def test_what_fails_in_the_loop_is_no_measurement(decoder: Worker) -> None:
    with (
        Worker(CorePuppet("raises", 3), WorkerSettings("core puppet")) as core,
        pytest.raises(BackendError, match=r"the live loop: .*no such page"),
    ):
        drive(decoder, core, SERVED, 1, OUTPUT_TOKENS, JOB_UNITS)
