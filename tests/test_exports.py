"""Exports: tables that give the result again by other means, and traces that obey the format that viewers read."""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from systems import agents, generate_only, system_of
from typer.testing import CliRunner

from hsim.cli import app
from hsim.description.scenario import load
from hsim.description.system import System
from hsim.errors import HsimError
from hsim.metrics.chrome_trace import lanes
from hsim.metrics.exported import UNITS, WHAT
from hsim.metrics.summarise import scenario_hash
from hsim.runs import path_of
from hsim.runs.exports import export_path

parquet_files = pytest.importorskip("pyarrow.parquet")


def crowded() -> dict[str, Any]:
    """Agents on two servers, with queues, time-outs, shedding and a prefix cache."""
    data = agents(replicas=2, max_num_seqs=2, max_waiting=3, prefix_caching=True)
    data["workload"] |= {"tasks": 60, "arrivals": {"kind": "poisson", "rate_per_s": 60}}
    data["workload"]["classes"]["agent"] |= {"timeout_s": 1.5, "context": "grows"}
    data["workload"]["classes"]["chat"] = {
        "share": 0.5,
        "input_tokens": 200,
        "output_tokens": 5,
        "tools": {"python-exec": 1},
    }
    return data


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[System, Path]:
    system, out = system_of(crowded()), tmp_path_factory.mktemp("exported")
    written = export_path(system, out)
    assert sorted(file.name for file in written) == sorted([*(f"{name}.parquet" for name in WHAT), "trace.json"])
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in written)
    return system, out


def frame(out: Path, name: str) -> Any:
    return parquet_files.read_table(out / f"{name}.parquet").to_pandas()


# ---- tables


def test_tables_give_the_result_again(exported: tuple[System, Path]) -> None:
    """Figures of `simulate --replications 1`, from the files alone, with pandas."""
    system, out = exported
    result = path_of(system)
    tasks, visits, steps, devices = (frame(out, name) for name in ("tasks", "visits", "steps", "devices"))
    assert result.timed_out, "nobody times out: the test reaches less than it says"
    assert result.shed
    served = tasks[tasks.outcome == "served"]
    counts = tasks.outcome.value_counts()
    assert (len(served), counts["timed_out"], counts["shed"]) == (result.tasks, result.timed_out, result.shed)
    assert (served.ended_s - served.arrival_s).mean() == pytest.approx(result.latency["e2e"].mean_s, rel=1e-12)
    mine = visits[visits.task.isin(served.task)]
    generate = mine[mine.stage == "generate"]
    assert (generate.first_token_s - generate.ready_s).mean() == pytest.approx(result.latency["ttft"].mean_s, rel=1e-12)
    window_s = tasks.ended_s.max() - tasks.arrival_s.min()
    assert window_s == pytest.approx(result.window_s, rel=1e-12)
    busy = (steps.end_s - steps.start_s).sum() / window_s / (devices.kind == "accelerators").sum()
    (use,) = (use for use in result.pools if use.pool == "decode")
    assert busy == pytest.approx(use.busy_fraction, rel=1e-9)
    assert result.energy is not None
    booked = tasks[["dynamic_j", "idle_j"]].sum().sum()
    direct = [joules for _, kind, joules in result.energy.accounts if kind in ("dynamic", "occupied")]
    assert booked == pytest.approx(sum(direct), rel=1e-9)
    assert visits.idle_j.sum() + visits.host_idle_j.sum() == pytest.approx(tasks.idle_j.sum(), rel=1e-12)
    assert mine.groupby("task").output_tokens.sum().sum() == served.output_tokens.sum() == result.output_tokens


def test_steps_hold_all_work_of_their_devices(exported: tuple[System, Path]) -> None:
    """Joules by the form that the file describes, step k of a row first + k * growth, against those of the visits."""
    _, out = exported
    steps, visits = frame(out, "steps"), frame(out, "visits")
    n = steps.steps
    joules = (n * (steps.first_step_j + (n - 1) / 2 * steps.growth_j)).groupby(steps.device, observed=True).sum()
    work = visits[visits.stage == "generate"].groupby("device", observed=True).dynamic_j.sum()
    assert len(joules) == 2
    for device in joules.index:
        assert joules[device] == pytest.approx(work[device], rel=1e-9)
    seconds = n * (steps.first_step_s + (n - 1) / 2 * steps.growth_s)
    assert (steps.start_s + seconds).to_numpy() == pytest.approx(steps.end_s.to_numpy(), rel=1e-9)


def test_every_file_says_what_it_is_and_its_scenario_runs_again(exported: tuple[System, Path], tmp_path: Path) -> None:
    system, out = exported
    for name in WHAT:
        schema = parquet_files.read_schema(out / f"{name}.parquet")
        about = {key.decode(): value.decode() for key, value in schema.metadata.items()}
        assert (about["hsim.table"], about["hsim.what"]) == (name, WHAT[name])
        assert about["hsim.seed"] == str(system.scenario.seed)
        assert about["hsim.hsim_version"]
        (tmp_path / "again.yaml").write_text(about["hsim.scenario"])
        again, _ = load(tmp_path / "again.yaml")
        assert scenario_hash(again) == about["hsim.scenario_sha256"] == scenario_hash(system.scenario)
        for column in schema:
            unit = column.metadata[b"unit"].decode()
            assert unit in {*UNITS.values(), "1"}
            assert unit != "1" or str(column.type) != "double", f"{name}.{column.name} is a quantity without a unit"


def test_columns_of_names_hold_names(exported: tuple[System, Path]) -> None:
    _, out = exported
    visits, transfers, cores = (frame(out, name) for name in ("visits", "transfers", "cores"))
    assert set(visits.device[visits.stage == "generate"]) == {"decode/0", "decode/1"}
    assert set(visits.device[visits.stage == "tool"]) == {"cpu-tier/0"}
    assert set(visits.pool) == {"agents", "decode"}
    assert set(transfers.link) == {"agents-decode"}
    assert set(cores.server) == {"cpu-tier/0", "gpu-tier/0"}
    assert set(frame(out, "tasks")["class"]) == {"agent", "chat"}


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    export_path(system_of(generate_only()), tmp_path, trace="")
    assert len(frame(tmp_path, "transfers")) == len(frame(tmp_path, "preemptions")) == 0
    assert "payload_bytes" in frame(tmp_path, "transfers")


def test_equal_seeds_give_equal_bytes_and_others_others(exported: tuple[System, Path], tmp_path: Path) -> None:
    system, out = exported
    export_path(system, tmp_path / "again")
    for file in out.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    export_path(system, tmp_path / "other", replication=1, trace="")
    assert (tmp_path / "other" / "tasks.parquet").read_bytes() != (out / "tasks.parquet").read_bytes()


def test_without_pyarrow_the_remedy_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    system = system_of(generate_only())
    with pytest.raises(
        HsimError, match=r"pyarrow is not installed; parquet tables need it: pip install pyarrow, or .* --only trace"
    ):
        export_path(system, tmp_path)
    assert not list(tmp_path.iterdir())
    assert [file.name for file in export_path(system, tmp_path, tables=False)] == ["trace.json"]


def test_unknown_values_stay_unknown(tmp_path: Path) -> None:
    """A chip whose idle watts nobody published: no joules, no counter of power, and a trace that is JSON all the same."""
    data = generate_only()
    data["fleet"]["gpu-tier"]["server"] = "mac-m4-max"
    export_path(system_of(data), tmp_path)
    assert frame(tmp_path, "tasks").idle_j.isna().all()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {e["name"] for e in events if e["ph"] == "C"} == {"batch decode/0", "KV cache decode/0", "queue decode", "tasks in progress"}  # fmt: skip


# ---- traces


@pytest.fixture(scope="module")
def trace(exported: tuple[System, Path]) -> dict[str, Any]:
    return json.loads((exported[1] / "trace.json").read_text())  # type: ignore[no-any-return]


def test_events_have_what_the_format_asks_for(trace: dict[str, Any]) -> None:
    """Trace Event Format (Google, 2016): the keys of each phase, numbers where numbers must be."""
    needed = {"M": {"args"}, "X": {"ts", "dur"}, "C": {"ts", "args"}, "s": {"ts", "id"}, "t": {"ts", "id"}, "f": {"ts", "id", "bp"}}  # fmt: skip
    seen = set()
    for event in trace["traceEvents"]:
        seen.add(event["ph"])
        assert {"ph", "pid", "tid", "name"} | needed[event["ph"]] <= set(event)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
        if event["ph"] == "C":
            assert all(isinstance(value, float) for value in event["args"].values())
    assert seen == set(needed)
    times = [event["ts"] for event in trace["traceEvents"] if "ts" in event]
    assert times == sorted(times)
    assert trace["otherData"]["scenario_sha256"]


def slices_by_track(trace: dict[str, Any]) -> dict[tuple[int, int], list[Any]]:
    tracks = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    return tracks


def test_slices_of_a_track_nest_or_follow_each_other(trace: dict[str, Any]) -> None:
    """Exactly, in the doubles of the file: a viewer drops or mends what overlaps by a nanosecond."""
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    for track, slices in slices_by_track(trace).items():
        assert track in named
        open_until: list[float] = []
        for event in sorted(slices, key=lambda e: (e["ts"], -e["dur"])):
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            end = event["ts"] + event["dur"]
            assert not open_until or end <= open_until[-1], (named[track], event)
            assert not open_until or "tasks" in named[track], "only tasks hold other slices"
            open_until.append(end)


def test_every_flow_begins_goes_on_and_ends_inside_slices(trace: dict[str, Any]) -> None:
    tracks, flows = slices_by_track(trace), defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] in "stf":
            flows[event["id"]].append(event)
            around = [s for s in tracks[event["pid"], event["tid"]] if s["ts"] <= event["ts"] <= s["ts"] + s["dur"]]
            assert [s["args"]["task"] for s in around] == [event["id"]]
    for events in flows.values():
        assert "".join(event["ph"] for event in events) == "s" + "t" * (len(events) - 2) + "f"
    assert max(map(len, flows.values())) > 3


def test_slices_are_the_visits_and_the_steps(trace: dict[str, Any], exported: tuple[System, Path]) -> None:
    visits, steps = frame(exported[1], "visits"), frame(exported[1], "steps")
    slices = [s for mine in slices_by_track(trace).values() for s in mine]
    served_us = sum(s["dur"] for s in slices if s["cat"] in ("understand", "tool", "generate"))
    assert served_us == pytest.approx(1e6 * (visits.served_s - visits.started_s).sum(), rel=1e-6)
    assert sum(s["dur"] for s in slices if s["cat"] == "steps") == pytest.approx(1e6 * (steps.end_s - steps.start_s).sum(), rel=1e-6)  # fmt: skip
    assert sum(s["cat"] == "task" for s in slices) == 60
    assert sum(s["args"].get("dynamic_j", 0) for s in slices if s["cat"] == "steps") == pytest.approx(
        visits[visits.stage == "generate"].dynamic_j.sum(), rel=1e-9
    )


def test_counters_are_there_and_return_to_where_they_began(trace: dict[str, Any]) -> None:
    counters = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "C":
            counters[event["name"]].append(next(iter(event["args"].values())))
    assert {"power decode/0", "power cpu-tier/0 cores", "KV cache decode/1", "queue agents", "queue decode", "batch decode/0",
            "tasks in progress"} <= set(counters)  # fmt: skip
    for name, values in counters.items():
        assert values[0] == pytest.approx(values[-1], abs=1e-6), name
        assert max(values) > values[0], name
    assert max(counters["tasks in progress"]) == int(max(counters["tasks in progress"]))


def test_lanes_are_as_few_as_can_be_and_hold_one_at_a_time() -> None:
    start, end = np.array([0, 5, 1, 3, 5, 5]), np.array([5, 9, 3, 4, 5, 6])
    found = lanes(start, end)
    assert max(found) + 1 == 2, "never more than two at once"
    for lane in set(found):
        mine = sorted((start[i], end[i]) for i in range(6) if found[i] == lane)
        assert all(a[1] <= b[0] for a, b in pairwise(mine))
    assert lanes(np.array([], dtype=np.int64), np.array([], dtype=np.int64)) == []


# ---- the command


def test_the_command_writes_and_says_what(tmp_path: Path) -> None:
    few = ["--set", "workload.tasks=5", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["export", "agents-split", *few, "--only", "trace", "--gzip"])
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"hsim: wrote {tmp_path / 'trace.json.gz'}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json.gz"]
    assert json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    done = CliRunner().invoke(app, ["export", "agents-split", *few, "--only", "tables"])
    assert done.exit_code == 0
    assert len(frame(tmp_path, "tasks")) == 5
