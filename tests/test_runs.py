"""Studies: the same bytes however they were computed, kept and gone on with, and honest about what has no steady state."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from systems import agents, generate_only, system_of

from hsim.description.system import System
from hsim.errors import DescriptionError, HsimError, ResultError
from hsim.metrics.measured import Cohort
from hsim.metrics.result import Study
from hsim.metrics.study import Replication
from hsim.report.tables import study_tables
from hsim.runs import Options, as_json, is_one_path, path_of, studies, study
from hsim.runs.closeup import close_up
from hsim.runs.overload import is_overloaded
from hsim.runs.paths import Job, replicate, seed_of, seeded
from hsim.runs.store import Store, run_key


def small(**pool: Any) -> dict[str, Any]:
    """A steady state that is quick to find: 60 tasks a replication through one GPU."""
    data = generate_only(**pool)
    data["workload"] |= {"tasks": 60, "arrivals": {"kind": "poisson", "rate_per_s": 10}}
    return data


def finite() -> dict[str, Any]:
    """The same as a terminating run: what is run does not depend on what was found."""
    data = small()
    data["workload"]["measure"] = "terminating"
    return data


def quiet_agents() -> dict[str, Any]:
    """Agents whose two cores are not always busy."""
    data = agents()
    data["workload"] |= {"tasks": 60, "arrivals": {"kind": "poisson", "rate_per_s": 5}}
    return data


def inline(count: int, out: Path | None = None) -> Options:
    return Options(count, processes=1, out=out)


# ---- determinism


def test_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    system = system_of(small())
    texts, kept = [], []
    for processes in (1, 2, 3):
        out = tmp_path / str(processes)
        texts.append(as_json(study(system, Options(4, processes, out=out))))
        kept.append({file.name: file.read_bytes() for file in sorted(out.rglob("*.npz"))})
    assert texts[0] == texts[1] == texts[2]
    assert len(kept[0]) >= 4
    assert kept[0] == kept[1] == kept[2]


def test_replication_zero_is_the_path_of_the_seed_itself() -> None:
    system = system_of(finite())
    path = replicate(Job(system, 0, None)).path
    alone = path_of(system)
    assert path.ledger.joules() == alone.energy.total_j  # type: ignore[union-attr]
    assert float(path.latency["e2e"].mean()) == alone.latency["e2e"].mean_s


def test_seeds_of_replications_differ_and_depend_on_nothing_else() -> None:
    seeds = [seed_of(seed, number) for seed in (0, 1, 2, 10) for number in range(100)]
    assert len(set(seeds)) == 400
    assert (seed_of(7, 0), seed_of(7, 3)) == (7, seed_of(7, 3))


def test_two_fleets_see_the_same_arrivals_in_the_same_replication() -> None:
    small_fleet, large_fleet = system_of(small(replicas=1)), system_of(small(replicas=2))
    for number in range(3):
        paths = [replicate(Job(seeded(s, number), number, Cohort(15, 60))).path for s in (small_fleet, large_fleet)]
        shared = min(len(path.arrival_s) for path in paths)
        assert np.array_equal(paths[0].arrival_s[:shared], paths[1].arrival_s[:shared])
        assert paths[0].window == paths[1].window
        assert not np.array_equal(paths[0].latency["e2e"], paths[1].latency["e2e"])


# ---- the store


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the replications that were really run; a test may set `stop_at` to the one that Ctrl-C hits."""
    ran: list[int] = []

    def counting(job: Job) -> Replication:
        if job.number == counting.stop_at:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        ran.append(job.number)
        return replicate(job)

    counting.stop_at = None  # type: ignore[attr-defined]
    monkeypatch.setattr(studies, "replicate", counting)
    return ran


def test_a_study_goes_on_with_what_was_kept(tmp_path: Path, counted: list[int]) -> None:
    system = system_of(finite())
    study(system, inline(3, tmp_path))
    resumed = study(system, inline(5, tmp_path))
    assert counted == [0, 1, 2, 3, 4]
    counted.clear()
    assert as_json(resumed) == as_json(study(system, inline(5))), "from the store or anew: the same"
    manifest = json.loads(next(tmp_path.rglob("manifest.json")).read_text())
    assert (manifest["complete"], manifest["finished"]) == (True, [0, 1, 2, 3, 4])


def test_ctrl_c_leaves_what_was_finished_marked_incomplete(tmp_path: Path, counted: list[int]) -> None:
    system = system_of(finite())
    studies.replicate.stop_at = 2  # type: ignore[attr-defined]
    stopped = study(system, inline(5, tmp_path))
    assert (stopped.replications, stopped.wanted, stopped.complete) == (2, 5, False)
    assert json.loads((tmp_path / "result.json").read_text())["complete"] is False
    manifest = json.loads(next(tmp_path.rglob("manifest.json")).read_text())
    assert (manifest["complete"], manifest["finished"]) == (False, [0, 1])
    studies.replicate.stop_at = None  # type: ignore[attr-defined]
    whole = study(system, inline(5, tmp_path))
    assert counted == [0, 1, 2, 3, 4]
    assert whole.complete
    assert as_json(whole) == as_json(study(system, inline(5)))


def _heed_ctrl_c() -> None:
    # What runs in the background of a shell ignores the signal, and hands that down to its children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("whom", ["the command alone", "its processes too"])
def test_ctrl_c_on_the_command_line(tmp_path: Path, whom: str) -> None:
    """A real signal to a real process that has others working for it; a terminal sends it to them all."""
    scenario, out = tmp_path / "scenario.yaml", tmp_path / "out"
    scenario.write_text(json.dumps(small()))
    options = ["--replications", "2000", "--processes", "2", "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-m", "hsim", "simulate", str(scenario), *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_ctrl_c,  # noqa: PLW1509  # no threads here
        start_new_session=True,
    ) as run:
        while len(list(out.rglob("*.npz"))) < 3 and run.poll() is None:
            time.sleep(0.05)
        if whom == "the command alone":
            run.send_signal(signal.SIGINT)
        else:
            os.killpg(run.pid, signal.SIGINT)
        printed, said = run.communicate()
    assert run.returncode == 130, said
    assert "INCOMPLETE" in printed
    assert "interrupted after" in said
    assert "Traceback" not in said
    result = json.loads((out / "result.json").read_text())
    assert (result["complete"], result["wanted"]) == (False, 2000)
    assert 3 <= result["replications"] < 2000


def test_a_broken_file_in_the_store_is_named(tmp_path: Path) -> None:
    system = system_of(finite())
    study(system, inline(2, tmp_path))
    file = sorted(tmp_path.rglob("*.npz"))[1]
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ResultError, match=r"0001-whole\.npz: is not a replication that hsim wrote .*; delete it"):
        study(system, inline(2, tmp_path))


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    system = system_of(agents())
    done = replicate(Job(system, 0, None))
    store = Store(tmp_path, system, [])
    store.put("one", done)
    back = store.get("one")
    assert back is not None
    assert repr(replace(back, world_bills=done.world_bills)) == repr(done)
    assert back.path.ledger.joules() == done.path.ledger.joules()
    assert store.get("two") is None


def test_the_key_of_a_run_changes_with_all_that_it_depends_on() -> None:
    tasks = path_tasks(system_of(small()))
    base = run_key(system_of(small()), tasks)
    assert run_key(system_of(small()), tasks) == base
    others = {
        "seed": run_key(system_of(small() | {"seed": 1}), tasks),
        "pool": run_key(system_of(small(max_num_seqs=7)), tasks),
        "tasks": run_key(system_of(small()), tasks[:-1]),
        "assumption": run_key(system_of(small() | {"assume": {"h100-sxm": {"power": {"idle_w": 70}}}}), tasks),
        "server": run_key(system_of(small() | {"fleet": {"gpu-tier": {"server": "hgx-h100-8", "count": 2}}}), tasks),
    }
    assert len({base, *others.values()}) == 1 + len(others)


def test_the_key_of_a_run_changes_with_the_code_of_its_users_policies(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    system = system_of(small(router=f"{mine}:first"))
    keys = set()
    for place in (0, 1):
        mine.write_text(f"def first(visit, pool):\n    return {place}\n")
        keys.add(run_key(system, []))
    assert len(keys) == 2


def path_tasks(system: System) -> list[Any]:
    from hsim.drivers.prepared import prepare

    return prepare(system).drawn.tasks


def test_an_error_in_a_worker_arrives_whole() -> None:
    """Replication 0 fits and another does not: the error is raised in another process."""
    data = small(max_num_seqs=4)
    data["workload"]["classes"]["chat"]["input_tokens"] = {"kind": "lognormal", "median": 400, "p95": 60000}
    with pytest.raises(DescriptionError, match="tokens of context") as caught:
        study(system_of(data), Options(4, processes=2))
    assert caught.value.remedy


# ---- kinds of run


def test_a_terminating_run_without_chance_is_one_path(tmp_path: Path) -> None:
    """A trace brings its arrivals and its lengths; a class that draws rounds brings chance back."""
    (tmp_path / "trace.csv").write_text(
        "arrival_s,input_tokens,output_tokens\n" + "".join(f"{i / 50},100,20\n" for i in range(80))
    )
    data = generate_only()
    data["workload"] = {"arrivals": {"kind": "trace", "file": str(tmp_path / "trace.csv")}}
    assert is_one_path(system_of(data))
    once = study(system_of(data), inline(5))
    assert (once.kind, once.replications, once.wanted, once.stability) == ("terminating", 1, 1, None)
    assert once.tasks_per_s.low is None
    data["workload"]["classes"] = {"agent": {"rounds": {"kind": "geometric", "mean": 2}}}
    assert not is_one_path(system_of(data))
    several = study(system_of(data), inline(5))
    assert (several.kind, several.replications) == ("terminating", 5)
    assert several.tasks_per_s.low < several.tasks_per_s.value < several.tasks_per_s.high  # type: ignore[operator]


def test_closed_loops_are_terminating_unless_they_say_otherwise() -> None:
    data = generate_only()
    data["workload"]["arrivals"] = {"kind": "closed", "users": 4}
    assert study(system_of(data), inline(2)).kind == "terminating"


def closed_loop(tasks: int) -> dict[str, Any]:
    data = generate_only(max_num_seqs=3)
    data["workload"] |= {"tasks": tasks, "measure": "steady"}
    data["workload"]["arrivals"] = {
        "kind": "closed",
        "users": 4,
        "think_s": {"kind": "lognormal", "median": 0.1, "p95": 0.4},
    }
    return data


def test_a_steady_closed_loop_is_measured_while_all_users_have_work() -> None:
    found = study(system_of(closed_loop(80)), inline(4))
    assert (found.kind, found.stability, found.warm_up) == ("steady", None, None)
    path = replicate(Job(system_of(closed_loop(80)), 0, None)).path
    in_window = (path.arrival_s >= path.window.start_s) & (path.arrival_s < path.window.end_s)
    assert path.cohort.tasks == in_window.sum()
    assert np.flatnonzero(in_window)[0] == path.cohort.skipped
    assert path.cohort.skipped >= 3, "the window opens when the last user has come"
    assert path.window.end_s < path.ended_s.max(), "no user runs out of work before another"


def test_a_closed_loop_without_a_stretch_in_which_all_have_work_says_so() -> None:
    with pytest.raises(
        HsimError, match=r"the first user has no task left before the last has come; set workload.tasks"
    ):
        study(system_of(closed_loop(6)), inline(2))


def test_even_arrivals_of_even_tasks_leave_nothing_to_chance() -> None:
    data = small()
    data["workload"]["arrivals"]["kind"] = "uniform"
    data["workload"]["classes"]["chat"] |= {"input_tokens": 100, "output_tokens": 10}
    found = study(system_of(data), inline(5))
    assert (found.kind, found.replications, found.wanted, found.tasks_per_s.low) == ("steady", 1, 1, None)


HOURLY = {"kind": "hourly", "rate_per_s": 4, "relative_rates": [0.1] * 12 + [1.9] * 12}


@pytest.mark.parametrize(
    ("arrivals", "why"),
    [
        ({"kind": "trace", "file": "t.csv"}, "a trace ends"),
        (HOURLY, "the rate of hourly arrivals changes by the hour"),
    ],
)
def test_what_has_no_steady_state_is_not_measured_in_one(arrivals: dict[str, Any], why: str) -> None:
    """Of a day only its first hour would be seen, and called steady."""
    data = generate_only()
    data["workload"] |= {"arrivals": arrivals, "measure": "steady"}
    with pytest.raises(DescriptionError) as refused:
        system_of(data)
    assert re.fullmatch(r".*test\.yaml:\d+: workload\.measure", refused.value.where)
    assert refused.value.problem == f"is steady, and {why}"
    assert refused.value.remedy == "leave it out, or say measure: terminating"


@pytest.mark.parametrize("measure", [None, "terminating"])
def test_a_day_by_the_hour_is_terminating(measure: str | None) -> None:
    data = generate_only()
    data["workload"] |= {"arrivals": HOURLY, "measure": measure}
    assert not studies.is_steady(system_of(data).scenario.workload)


def test_arrivals_go_on_until_the_cohort_has_ended() -> None:
    data = small()
    data["workload"]["classes"]["chat"] |= {"output_tokens": 100, "max_output_tokens": 100}
    path = replicate(Job(system_of(data), 0, Cohort(15, 60))).path
    assert path.covered
    assert path.ended_s[: path.cohort.end].max() <= path.arrival_s[-1]
    before_last = path.arrival_s[-2]
    assert path.ended_s[: path.cohort.end].max() > before_last, "nobody arrives after that"
    assert len(path.arrival_s) > path.cohort.end + 1


def test_a_cohort_shorter_than_a_passage_gets_a_warm_up_that_fills_the_pipes() -> None:
    """The trap of short checks: 20 tasks arrive within half a second, and each is in the system for longer."""
    data = small()
    data["workload"] |= {"tasks": 20, "arrivals": {"kind": "poisson", "rate_per_s": 40}}
    data["workload"]["classes"]["chat"] |= {"output_tokens": 120, "max_output_tokens": 120}
    found = study(system_of(data), inline(4))
    assert found.warm_up is not None
    assert found.warm_up.passage_tasks > 20
    assert found.warm_up.tasks >= found.warm_up.passage_tasks
    assert found.stability is not None
    assert found.stability.verdict != "unstable"


def test_what_a_reader_noted_of_a_trace_reaches_the_study(tmp_path: Path) -> None:
    """Rows that were left out are told by one path and by several alike, in processes of their own too."""
    rows = "".join(f"{i},GPT-4,{100 * (i % 9 > 0)},20,0,API log\n" for i in range(60))
    (tmp_path / "trace.csv").write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + rows)
    data = generate_only()
    data["workload"] = {
        "arrivals": {"kind": "trace", "file": str(tmp_path / "trace.csv"), "rate_scale": 20},
        "classes": {"chat": {"rounds": {"kind": "geometric", "mean": 1.5}}},
    }
    (noted,) = path_of(system_of(data)).warnings
    assert "requests left out for want of a prompt or an answer: 7" in noted
    assert noted in study(system_of(data), Options(2, processes=2)).warnings


# ---- stability


def tool_queue(load: float, tasks: int) -> dict[str, Any]:
    """One core that runs python for 80 ms a task, at so many times what it can do."""
    data = agents(split=True, cores=1)
    data["workload"]["classes"] = {
        "agent": {"tools": {"python-exec": 1}, "input_tokens": 10, "output_tokens": 1, "max_output_tokens": 1}
    }
    seconds = 0.08
    data["assume"] |= {
        "epyc-9654": {"contention_slowdown": 1, "operations": {"python-process": {"base_s": 0, "per_unit_s": seconds}}}
    }
    data["workload"] |= {"tasks": tasks, "arrivals": {"kind": "poisson", "rate_per_s": load / seconds}}
    return data


def decoding(load: float, tasks: int) -> dict[str, Any]:
    """One replica with four sequences at a time, at so many times the throughput that it has when never idle."""
    data = generate_only(max_num_seqs=4)
    data["workload"]["classes"]["chat"] |= {"input_tokens": 3000, "output_tokens": 5, "max_output_tokens": 5}
    data["workload"] |= {"tasks": 400, "measure": "terminating", "arrivals": {"kind": "poisson", "rate_per_s": 1e6}}
    saturated_per_s = path_of(system_of(data)).tasks_per_s
    del data["workload"]["measure"]
    data["workload"] |= {"tasks": tasks, "arrivals": {"kind": "poisson", "rate_per_s": load * saturated_per_s}}
    return data


def check_unstable(found: Study) -> None:
    assert found.stability is not None
    assert found.stability.verdict == "unstable"
    assert not found.latency
    assert not found.slo
    assert found.energy is None
    assert found.money is None
    assert found.unavailable["latency"] == "there is no steady state"


@pytest.mark.parametrize("load", [1.05, 1.24])
def test_more_work_than_cores_is_unstable_by_the_bound(load: float) -> None:
    found = study(system_of(tool_queue(load, 800)), inline(6))
    check_unstable(found)
    assert found.stability is not None
    assert found.stability.offered["agents"].value == pytest.approx(load, abs=0.05)
    assert "of the work that it can do" in found.stability.reason


def test_no_warm_up_grows_where_the_work_cannot_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """An overloaded system asks for ever more of it: the later it is, the longer its tasks take."""
    data = tool_queue(1.3, 100)
    data["workload"]["classes"]["agent"] |= {
        "output_tokens": 300,
        "max_output_tokens": 300,
    }  # passages beyond the floor
    asked: list[Cohort | None] = []

    def counted(job: Job) -> Replication:
        asked.append(job.cohort)
        return replicate(job)

    monkeypatch.setattr(studies, "replicate", counted)
    found = study(system_of(data), inline(4))
    check_unstable(found)
    assert found.stability is not None
    assert "of the work that it can do" in found.stability.reason
    assert found.warm_up is not None
    assert found.warm_up.asked_tasks > found.warm_up.tasks, "it asks for no more: the test reaches nothing"
    assert asked == [Cohort(25, 100)] * 4
    assert any("may complete more later" in warning for warning in found.warnings)


def test_overload_is_shown_where_nobody_is_served_in_the_windows() -> None:
    """Tasks take minutes, and all that count come within a second."""
    data = generate_only(max_num_seqs=4)
    data["workload"]["classes"]["chat"] |= {"input_tokens": 10, "output_tokens": 300, "max_output_tokens": 300}
    data["workload"] |= {"tasks": 60, "arrivals": {"kind": "poisson", "rate_per_s": 100}}
    closeup = close_up(system_of(data), inline(3))
    found = closeup.study
    check_unstable(found)
    assert closeup.by_replication["tasks_per_s"] == [0, 0, 0]
    assert found.tasks_per_s.value == 0, "some are served: the test reaches nothing"
    assert "0.000 tasks/s are completed" in printed(found)
    assert json.loads(as_json(found))["tasks_per_s"]["value"] == 0


@pytest.mark.parametrize(("load", "overloaded"), [(0.9, False), (0.99, False), (1.2, True)])
def test_overload_is_known_from_tasks_that_are_only_drawn(load: float, overloaded: bool) -> None:
    data = tool_queue(load, 100)
    assert is_overloaded(system_of(data)) == overloaded
    data["workload"]["classes"]["agent"]["timeout_s"] = 60
    assert not is_overloaded(system_of(data)), "what is lost makes room"


def test_a_burst_is_no_overload() -> None:
    """While it is on, twice as many come as can be served; over all time half of that."""
    data = tool_queue(0.8, 100)
    rate_per_s = data["workload"]["arrivals"]["rate_per_s"]
    phases = {"kind": "on-off", "rate_per_s": rate_per_s, "mean_on_s": 1e5, "mean_off_s": 1e5}
    data["workload"]["arrivals"] = phases
    assert not is_overloaded(system_of(data))


def test_work_that_piles_up_at_an_engine_is_unstable_by_its_drift() -> None:
    found = study(system_of(decoding(1.1, 500)), inline(5))
    check_unstable(found)
    assert found.stability is not None
    assert found.stability.offered["decode"].value < 1, "no bound shows it: the test reaches nothing"  # type: ignore[operator]
    assert "work in progress grows" in found.stability.reason


def printed(found: Study) -> str:
    file = io.StringIO()
    Console(width=120, file=file).print(study_tables(found))
    return file.getvalue()


def test_a_report_of_an_unstable_system_shows_no_percentile() -> None:
    text = printed(study(system_of(decoding(1.1, 500)), inline(4)))
    assert "UNSTABLE: work in progress grows by" in text
    assert "No latency, energy, cost or CO2 of a steady state exists." in text
    for word in ("p50", "p99", "TST", "Objective", "Joules a task"):
        assert word not in text
    steady = printed(study(system_of(decoding(0.5, 400)), inline(4)))
    for word in ("stable", "p50", "p99", "TST", "±", "by rough figures"):
        assert word in steady


@pytest.mark.slow
def test_a_load_just_above_what_an_engine_can_do_is_unstable() -> None:
    check_unstable(study(system_of(decoding(1.05, 3000)), Options(10)))


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_queue_that_keeps_up_is_not_called_unstable(load: float) -> None:
    found = study(system_of(decoding(load, 500)), inline(5))
    assert found.stability is not None
    assert found.stability.verdict != "unstable"
    assert found.latency["e2e"].mean_s.half_width is not None


def test_an_overloaded_trace_is_terminating_and_no_verdict_is_passed(tmp_path: Path) -> None:
    """Its hours may be overloaded: what it takes to serve them is the question."""
    rows = "".join(f"{i / 200},400,40\n" for i in range(300))
    (tmp_path / "trace.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    data = generate_only(max_num_seqs=2)
    data["workload"] = {
        "arrivals": {"kind": "trace", "file": str(tmp_path / "trace.csv")},
        "classes": {"chat": {"rounds": {"kind": "geometric", "mean": 1.5}}},
    }
    found = study(system_of(data), inline(3))
    assert (found.kind, found.stability) == ("terminating", None)
    waits = next(stage for stage in found.stages if stage.stage == "generate")
    assert waits.wait_s > waits.service_s, "it is not overloaded: the test reaches nothing"
    assert found.latency["e2e"].mean_s.value is not None


# ---- rough figures


def test_books_of_a_world_are_those_of_a_run_in_it() -> None:
    """Joules by the books of other worlds, without a new run, against a run with the worlds' figures assumed."""
    system = system_of(quiet_agents())
    options = inline(2)
    with studies.workers(options) as those:
        material, _ = studies.gather(system, options, those)
    from hsim.metrics.rough import draw_worlds, of_the_books, rough_figures, system_in

    books = of_the_books(material.system)
    rough = {name: use for name, use in rough_figures(material.system).items() if name in books}
    assert {"epyc-9654.idle_w", "epyc-9654.load_power_exponent", "hgx-h100-8.base_w"} <= set(rough)
    worlds = draw_worlds(rough, studies.BOOK_WORLDS, system.scenario.seed)
    replication = material.replications[1]
    for k in (0, 17, 39):
        there = replicate(Job(system_in(seeded(system, 1), worlds[k]), 1, replication.path.cohort))
        bill = there.path.bill
        expected = [bill.joules, bill.electricity_usd, bill.operation_g, bill.embodied_g]
        assert replication.world_bills[k] == pytest.approx(expected, rel=1e-9)
        assert bill.joules == there.path.ledger.joules()
    joules = replication.world_bills[:, 0]
    assert joules.std() > 0.01 * joules.mean()


def test_worlds_lie_within_their_bounds_half_above_half_below() -> None:
    from hsim.metrics.rough import draw_worlds, rough_figures

    system = system_of(agents())
    path_of(system)  # a run reads figures
    from hsim.drivers.prepared import prepare

    prepare(system)
    rough = rough_figures(system)
    worlds = draw_worlds(rough, 40, 0)
    assert rough
    for name, use in rough.items():
        values = np.array([world[name] for world in worlds])
        assert use.low is not None
        assert use.high is not None
        assert ((values >= use.low) & (values <= use.high)).all()
        assert (values > use.value).sum() == (20 if use.low < use.value < use.high else (values > use.value).sum())


def test_simulated_worlds_move_latencies_too() -> None:
    found = study(system_of(quiet_agents()), Options(3, processes=1, worlds=5))
    assert found.calibration is not None
    assert (found.calibration.simulated, found.calibration.worlds, found.calibration.held) == (True, 5, ())
    held = study(system_of(quiet_agents()), inline(3)).calibration
    assert held is not None
    assert "h100-sxm.kernels.overlap_factor" in held.held
    assert "e2e.mean_s" in found.calibration.ranges
    assert "e2e.mean_s" not in held.ranges
    spread = found.calibration.ranges["tpot.mean_s"]
    assert spread.low < spread.high
