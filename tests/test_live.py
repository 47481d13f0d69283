"""Live runs: on a clock moved by hand they are the simulation; on the wall clock they end, whatever becomes of a worker."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from systems import agents, generate_only, prepared_of
from test_engine_depth import assert_same

from hsim.backends.hosts import Opened, StepItem
from hsim.backends.worker import Worker, WorkerSettings
from hsim.calibrate.sampling import Rest
from hsim.drivers import live
from hsim.drivers.clocks import ManualClock
from hsim.drivers.live import Stand, run_live, sleep_through
from hsim.drivers.prepared import Prepared
from hsim.drivers.simulated import run
from hsim.errors import DescriptionError
from hsim.log import Outcome, Stage
from hsim.validate import pace
from hsim.validate.quantities import accounted
from hsim.validate.run import Measured


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
    """Stands in for tools; at the request of this number it raises, hangs or its process ends: once, if `once` is a file."""

    fault: str = ""
    at: int = -1
    once: str = ""

    def open(self) -> Opened:
        asked = 0

        def do(request: tuple[str, float]) -> str:
            nonlocal asked
            asked += 1
            if asked == self.at:
                befall(self.fault, self.once)
            return request[0]

        return Opened(do, ("a puppet of a core",))


def befall(fault: str, once: str) -> None:
    if once:
        try:
            Path(once).touch(exist_ok=False)  # one call: of two workers that come here together, one is first
        except FileExistsError:
            return
    if fault == "raises":
        raise ValueError("no such page")
    if fault == "hangs":
        time.sleep(60)
    if fault == "dies":
        os._exit(7)
    if fault == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DecoderPuppet:
    """Stands in for a decoder: answers a token for each item, and refuses a place that does not follow the last."""

    slots: int
    fault: str = ""
    at: int = -1
    once: str = ""

    def open(self) -> Opened:
        held = [0] * self.slots

        asked = 0

        def step(items: list[StepItem]) -> list[int]:
            nonlocal asked
            asked += 1
            if asked == self.at:
                befall(self.fault, self.once)
            assert len({item.slot for item in items}) == len(items), "a slot is used twice in a step"
            for item in items:
                assert item.start in (0, held[item.slot]), f"slot {item.slot} holds {held[item.slot]}, not {item.start}"
                held[item.slot] = item.start + item.tokens
            return [0] * len(items)

        return Opened(step, ("a puppet of a decoder",))


Use = Callable[..., list[Worker]]


@pytest.fixture
def on_puppets(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Lets live runs work with puppets; returns the list of workers that they start."""

    def use(prepared: Prepared, core: CorePuppet = CorePuppet(), decoder: tuple[Any, ...] = ()) -> list[Worker]:
        workers: list[Worker] = []

        class Kept(Worker):
            def start(self) -> None:
                super().start()
                workers.append(self)

        generates = DecoderPuppet(prepared.replicas["decode"].pool.max_num_seqs, *decoder)
        cores = [("cores", 0, core) for _ in range(prepared.cores["agents"])]
        monkeypatch.setattr(live, "_planned_workers", lambda *_: [("decoder", 0, generates), *cores])
        monkeypatch.setattr(live, "_warm_up", lambda *_: None)
        monkeypatch.setattr(live, "Worker", Kept)
        monkeypatch.setattr(live, "WorkerSettings", partial(WorkerSettings, answer_timeout_s=2.0))
        return workers

    return use


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_serve_every_task_and_each_sequence_keeps_its_place(on_puppets: Use) -> None:
    prepared = prepared_of(closed_loop(max_num_seqs=2, max_num_batched_tokens=64))
    workers = on_puppets(prepared)
    done = run_live(prepared, "cpu")
    tables = done.log.arrays()
    assert sorted(tables["tasks"]["task"]) == [task.id for task in prepared.drawn.tasks]
    assert (tables["tasks"]["outcome"] == Outcome.SERVED).all()
    generated = tables["visits"]["stage"] == Stage.GENERATE
    assert tables["visits"]["output_tokens"][generated].sum() == sum(t.output_tokens for t in prepared.drawn.tasks)
    assert "a puppet of a decoder" in done.notes
    assert len(done.log.steps) == len(done.record.steps)
    assert len(done.record.jobs) == (tables["visits"]["stage"] <= Stage.TOOL).sum()
    assert len(workers) == 3
    assert not any(alive(worker.process.pid) for worker in workers)


# ---- faults: every task is accounted for, what befell it is told, and no process is left


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raises", "failed with ValueError: no such page"),
        ("hangs", "gave no answer within 2 s and was killed"),
        ("dies", "its process ended by itself with code 7"),
        ("is killed", "its process was ended by SIGKILL"),
    ],
)
def test_a_tool_that_fails_costs_its_task_and_no_other(on_puppets: Use, tmp_path: Path, fault: str, told: str) -> None:
    prepared = prepared_of(closed_loop(max_num_seqs=2))
    workers = on_puppets(prepared, CorePuppet(fault, 3, str(tmp_path / "once")))
    done = run_live(prepared, "cpu")
    found = accounted(done.log, len(prepared.drawn.tasks))
    assert (found.served, found.failed, done.stopped) == (found.asked - 1, 1, ""), done.record.failures
    assert sum(done.record.failures.values()) == 1
    assert all(told in why for why in done.record.failures)
    assert len(workers) > 3 or fault == "raises"  # what had died was started anew
    assert not any(alive(worker.process.pid) for worker in workers)


@pytest.mark.parametrize("fault", ["raises", "dies"])
def test_a_decoder_that_fails_costs_its_batch_and_serves_whoever_comes_after(
    on_puppets: Use, tmp_path: Path, fault: str
) -> None:
    prepared = prepared_of(closed_loop(max_num_seqs=2))
    workers = on_puppets(prepared, decoder=(fault, 20, str(tmp_path / "once")))
    done = run_live(prepared, "cpu")
    found = accounted(done.log, len(prepared.drawn.tasks))
    assert 0 < found.failed < found.asked
    assert found.served == found.asked - found.failed
    assert all(why.startswith("decoder: ") for why in done.record.failures)
    assert not any(alive(worker.process.pid) for worker in workers)


def test_a_core_that_was_started_anew_is_there_in_the_next_run(on_puppets: Use, tmp_path: Path) -> None:
    prepared = prepared_of(closed_loop(max_num_seqs=2))
    workers = on_puppets(prepared, CorePuppet("dies", 3, str(tmp_path / "once")))
    with Stand((prepared,), "cpu") as stand:
        first, second = stand.run(prepared), stand.run(prepared)
        assert not any(worker.dead for of_host in stand.crew.cores.values() for worker in of_host)
    assert (sum(first.record.failures.values()), sum(second.record.failures.values())) == (1, 0)
    assert len(workers) == 4  # the decoder, two cores, and the one that was started anew: once


def test_a_look_at_the_pace_finds_the_core_that_was_started_anew(
    on_puppets: Use, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = closed_loop(max_num_seqs=2)
    data["pools"]["agents"]["cores"] = 1
    prepared = prepared_of(data)
    monkeypatch.setattr(pace, "_steps", lambda *_: iter(()))  # the puppet of a decoder is none
    monkeypatch.setattr(pace, "CALLS", 3)
    monkeypatch.setattr(pace, "JOBS_REST", Rest(0.0, 0.0))
    workers = on_puppets(prepared, CorePuppet("dies", 20, str(tmp_path / "once")))  # after the first look
    measured = Measured()
    with Stand((prepared,), "cpu") as stand:
        for _ in range(2):
            measured.once_more(prepared, stand)
    assert measured.stopped == ""
    assert [sum(done.record.failures.values()) for done in measured.runs] == [1, 0]
    assert len(workers) == 3


def test_the_pace_of_each_decoder_is_compared_with_the_costs_of_its_own_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_of(generate_only())
    (spec,) = prepared.replicas.values()
    pools = {name: replace(spec, pool=spec.pool.model_copy(update={"replicas": n})) for name, n in (("a", 2), ("b", 1))}
    looked: list[tuple[object, object]] = []
    monkeypatch.setattr(pace, "_steps", lambda worker, spec: looked.append((worker, spec)) or [])
    crew = SimpleNamespace(decoders={0: "a/0", 1: "a/1", 2: "b/0"}, cores={})
    stand: Any = SimpleNamespace(remote=None, crew=crew)
    assert pace.measure_pace(stand, replace(prepared, replicas=pools)) == []
    assert looked == [("a/0", pools["a"]), ("a/1", pools["a"]), ("b/0", pools["b"])]


def test_a_worker_that_dies_again_and_again_ends_the_run_which_says_so(on_puppets: Use) -> None:
    prepared = prepared_of(closed_loop(max_num_seqs=2))
    workers = on_puppets(prepared, CorePuppet("dies", 1))
    done = run_live(prepared, "cpu")
    assert "died 4 times" in done.stopped
    found = accounted(done.log, len(prepared.drawn.tasks))
    assert found.failed > 0 and found.unfinished > 0
    assert not any(alive(worker.process.pid) for worker in workers)


def test_a_worker_that_cannot_be_started_anew_ends_the_run_which_says_so(
    on_puppets: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_of(closed_loop(max_num_seqs=2))
    on_puppets(prepared, CorePuppet("dies", 3))

    def refuse(_: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with Stand((prepared,), "cpu") as stand:
        monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
        done = stand.run(prepared)
    assert "worker cores 0: cannot be started" in done.stopped and "ulimit -u" in done.stopped
    assert accounted(done.log, len(prepared.drawn.tasks)).unfinished > 0


def test_tools_that_search_collections_of_two_sizes_by_full_text_are_refused_by_name() -> None:
    def searching(**units: int) -> Prepared:
        data = closed_loop()
        data["tools"] = {name: {"operation": "full-text-search", "units": n} for name, n in units.items()}
        data["workload"]["classes"]["agent"]["tools"] = dict.fromkeys(units, 1)
        return prepared_of(data)

    told = r"tool 'few' asks for 1,000 units of full-text-search and tool 'many' for 2,000.*give both the same units"
    with pytest.raises(DescriptionError, match=told):
        Stand((searching(few=1000, many=2000),), "cpu")
    Stand((searching(few=1000, many=1000),), "cpu")


def test_ctrl_c_ends_a_run_with_what_was_finished(on_puppets: Use) -> None:
    prepared = prepared_of(closed_loop(max_num_seqs=2))
    workers = on_puppets(prepared, CorePuppet("hangs", 2))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Stand((prepared,), "cpu") as stand:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            done = stand.run(prepared)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert done.stopped == "Ctrl-C"
    assert accounted(done.log, len(prepared.drawn.tasks)).unfinished > 0
    assert not any(alive(worker.process.pid) for worker in workers)
