"""Live runs: on a clock moved by hand they are the simulation; on the wall clock they end, whatever becomes of a worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from systems import agents, generate_only, prepared_of
from test_engine_depth import assert_same

from hsim.backends.hosts import Opened, StepItem
from hsim.backends.worker import Worker
from hsim.drivers import live
from hsim.drivers.clocks import ManualClock
from hsim.drivers.live import run_live, sleep_through
from hsim.drivers.prepared import Prepared
from hsim.drivers.simulated import run
from hsim.errors import BackendError
from hsim.log import Outcome, Stage


def closed_loop(**pool: Any) -> dict[str, Any]:
    """Three users with short tasks in rounds, on one server: what a live run can carry out."""
    data = agents(split=False, cores=2, prefix_caching=False, **pool)
    think = {"kind": "exponential", "mean": 0.01}
    data["workload"] |= {"arrivals": {"kind": "closed", "users": 3, "think_s": think}, "tasks": 9}
    data["tools"]["slow-api"]["outside_wait_s"] = {"kind": "exponential", "mean": 0.01}
    return data


@pytest.mark.parametrize("seed", range(3))
def test_on_a_clock_moved_by_hand_a_closed_loop_is_the_simulation(seed: int) -> None:
    prepared = prepared_of(closed_loop(max_num_seqs=2) | {"seed": seed})
    simulated = run(prepared)
    assert_same(simulated, sleep_through(prepared, ManualClock()))
    visits = simulated.visits.arrays()
    assert (visits["started_s"] > visits["queued_s"]).any(), "nobody queued"


def test_sleeping_through_a_run_on_the_wall_clock_serves_everybody() -> None:
    data = generate_only()
    data["workload"]["tasks"] = 8
    data["workload"]["classes"]["chat"] |= {"output_tokens": 4}
    prepared = prepared_of(data)
    tables = sleep_through(prepared).arrays()
    assert sorted(tables["tasks"]["task"]) == list(range(8))
    assert (tables["tasks"]["outcome"] == Outcome.SERVED).all()
    simulated = run(prepared).arrays()
    order, expected = np.argsort(tables["tasks"]["task"]), np.argsort(simulated["tasks"]["task"])
    # Nothing happens before it is due: whatever the machine is doing, no task ends sooner than alone.
    assert (tables["tasks"]["arrival_s"][order] >= simulated["tasks"]["arrival_s"][expected]).all()
    assert (tables["visits"]["output_tokens"] == 4).all()


# ---- with worker processes


@dataclass(frozen=True)
class CorePuppet:
    """Stands in for tools; its process ends at the request of this number."""

    dies_at: int = -1

    def open(self) -> Opened:
        asked = 0

        def do(request: tuple[str, float]) -> str:
            nonlocal asked
            asked += 1
            if asked == self.dies_at:
                os._exit(7)
            return request[0]

        return Opened(do, ("a puppet of a core",))


@dataclass(frozen=True)
class DecoderPuppet:
    """Stands in for a decoder: answers a token for each item, and refuses a place that does not follow the last."""

    slots: int

    def open(self) -> Opened:
        held = [0] * self.slots

        def step(items: list[StepItem]) -> list[int]:
            assert len({item.slot for item in items}) == len(items), "a slot is used twice in a step"
            for item in items:
                assert item.start in (0, held[item.slot]), f"slot {item.slot} holds {held[item.slot]}, not {item.start}"
                held[item.slot] = item.start + item.tokens
            return [0] * len(items)

        return Opened(step, ("a puppet of a decoder",))


@pytest.fixture
def on_puppets(monkeypatch: pytest.MonkeyPatch) -> Callable[[Prepared, int], list[Worker]]:
    """Lets live runs work with puppets; returns the list of workers that they start."""

    def use(prepared: Prepared, dies_at: int) -> list[Worker]:
        workers: list[Worker] = []

        class Kept(Worker):
            def start(self) -> None:
                super().start()
                workers.append(self)

        decoder = DecoderPuppet(prepared.replicas["decode"].pool.max_num_seqs)
        cores = [("cores", 0, CorePuppet(dies_at)) for _ in range(prepared.cores["agents"])]
        monkeypatch.setattr(live, "_planned_workers", lambda *_: [("decoder", 0, decoder), *cores])
        monkeypatch.setattr(live, "_warm_up", lambda *_: None)
        monkeypatch.setattr(live, "Worker", Kept)
        return workers

    return use


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_serve_every_task_and_each_sequence_keeps_its_place(on_puppets: Any) -> None:
    prepared = prepared_of(closed_loop(max_num_seqs=2, max_num_batched_tokens=64))
    workers = on_puppets(prepared, dies_at=-1)
    done = run_live(prepared, "cpu")
    tables = done.log.arrays()
    assert sorted(tables["tasks"]["task"]) == [task.id for task in prepared.drawn.tasks]
    assert (tables["tasks"]["outcome"] == Outcome.SERVED).all()
    generated = tables["visits"]["stage"] == Stage.GENERATE
    assert tables["visits"]["output_tokens"][generated].sum() == sum(t.output_tokens for t in prepared.drawn.tasks)
    assert "a puppet of a decoder" in done.notes
    assert len(workers) == 3
    assert not any(alive(worker.process.pid) for worker in workers)


def test_a_worker_that_dies_stops_the_run_and_leaves_no_process(on_puppets: Any) -> None:
    prepared = prepared_of(closed_loop(max_num_seqs=2))
    workers = on_puppets(prepared, dies_at=1)
    with pytest.raises(BackendError, match=r"worker cores 0: its process ended by itself with code 7"):
        run_live(prepared, "cpu")
    assert len(workers) == 3
    assert not any(alive(worker.process.pid) for worker in workers)
