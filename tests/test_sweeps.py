"""Sweeps: the points that are asked for, a row for each that equals its study, and nothing lost or counted twice."""

from __future__ import annotations

import csv
import doctest
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from systems import generate_only

import hsim.sweeps
from hsim.errors import DescriptionError, ResultError, WorkersError
from hsim.metrics.exported import unit_of
from hsim.metrics.study import Replication
from hsim.report.sweeps import sweep_tables
from hsim.runs import Options, as_json, cluster, studies, study
from hsim.runs.paths import Job, replicate, system_of
from hsim.sweeps import Asked, Sweep, axes_of, axis_of, points_of, sweep

RATE, SEQUENCES = "workload.arrivals.rate_per_s", "pools.decode.max_num_seqs"
ALONE = Options(3, processes=1)


def written(folder: Path, **changes: Any) -> Path:
    """A steady state that is quick to find: 40 tasks a replication through one GPU."""
    data = generate_only()
    data["workload"] |= {"tasks": 40, "arrivals": {"kind": "poisson", "rate_per_s": 10}}
    data["slo"] = {"e2e": {"max_s": 2, "p": 0.9}}
    file = folder / "swept.yaml"
    file.write_text(json.dumps(data | changes, indent=1))
    return file


def swept(file: Path, *vary: str, options: Options = ALONE, **asked: Any) -> Sweep:
    return sweep(Asked(file, axes_of(vary), **asked), options)


# ---- what is varied


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=16,64,256", [16, 64, 256]),
        ("a=0.5", [0.5]),
        ("a=gpu-tier.cpu,cpu-tier.cpu", ["gpu-tier.cpu", "cpu-tier.cpu"]),
        ("a={kind: closed, users: 2},[1, 2]", [{"kind": "closed", "users": 2}, [1, 2]]),
        ("a=2:20:7", [2, 5, 8, 11, 14, 17, 20]),
        ("a=1:100:3:log", [1, 10, 100]),
        ("a=1:4:3:whole", [1, 2, 4]),
        ("a=1:3:9:whole", [1, 2, 3]),
        ("a=-1:1:2", [-1, 1]),
        ("a='2:20:7'", ["2:20:7"]),
    ],
)
def test_values_are_listed_or_a_range(text: str, values: list[Any]) -> None:
    assert (
        list(axis_of(text).grid()) == pytest.approx(values) if ":log" in text else list(axis_of(text).grid()) == values
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "has no values; write --vary path.to.key=value,value"),
        ("a=", "has no values"),
        ("a=1,1", "names a value twice"),
        ("a=5:2:3", "does not rise"),
        ("a=0:2:3:log", "is logarithmic from 0; begin above 0"),
        ("a=1:2:1", "is a range of 1 values"),
        ("a=[1", "is not valid YAML"),
    ],
)
def test_what_is_no_axis_is_refused(text: str, message: str) -> None:
    with pytest.raises(DescriptionError, match=f"--vary {text}".replace("[", r"\[") + ".*: " + message):
        axis_of(text)


def test_a_path_is_varied_once() -> None:
    with pytest.raises(DescriptionError, match="varies a path twice"):
        axes_of(["a=1", "a=2"])
    with pytest.raises(DescriptionError, match="nothing is varied"):
        axes_of([])
    with pytest.raises(
        DescriptionError, match=r"a: is a range without a number of values; write a=2:20:7, or .*--samples"
    ):
        points_of(axes_of(["a=2:20"]), None, 0)


def test_a_grid_is_every_combination_the_last_axis_fastest() -> None:
    points = points_of(axes_of({"a": [1, 2], "b": "3:5:3"}), None, 0)
    assert [list(point.values()) for point in points] == [[1, 3], [1, 4], [1, 5], [2, 3], [2, 4], [2, 5]]


def test_a_latin_hypercube_has_one_point_in_every_stratum_of_every_axis() -> None:
    axes = axes_of(["a=0:20", "b=1:1000:log", "c=x,y", "d=1:10:whole"])
    points = points_of(axes, 20, 7)
    assert sorted(int(point["a"]) for point in points) == list(range(20))
    assert sorted(int(20 * math.log(point["b"]) / math.log(1000)) for point in points) == list(range(20))
    assert [point["c"] for point in points].count("x") == 10
    assert {type(point["d"]) for point in points} == {int}
    assert points == points_of(axes, 20, 7)
    assert points != points_of(axes, 20, 8)


# ---- rows


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sweep]:
    """A calm point and one that cannot keep up."""
    file = written(tmp_path_factory.mktemp("swept"))
    out = file.parent / "out"
    return out, swept(file, f"{RATE}=10,60", f"{SEQUENCES}=1", options=Options(3, processes=1, out=out))


def test_a_row_is_the_study_of_its_point(both: tuple[Path, Sweep]) -> None:
    out, found = both
    calm = found.rows[0]
    alone = study(system_of(out.parent / "swept.yaml", [f"{RATE}=10", f"{SEQUENCES}=1"]), ALONE)
    assert calm["scenario_sha256"] == alone.scenario_sha256
    assert (calm["verdict"], calm["slo.e2e.verdict"]) == (alone.slo[0].verdict,) * 2
    figures = alone.figures()
    assert len(figures) > 15
    for name, interval in figures.items():
        assert calm[name] == interval.value
        assert calm[f"{name}.half_width"] == interval.half_width
        assert (calm[f"{name}.low"], calm[f"{name}.high"]) == (interval.low, interval.high)


def test_a_point_that_cannot_keep_up_says_unstable_and_has_no_latency(both: tuple[Path, Sweep]) -> None:
    found = both[1]
    calm, crowded = found.rows
    assert crowded["verdict"] == "UNSTABLE"
    assert "pool decode" in crowded["reason"] or "work in progress grows" in crowded["reason"]
    assert "e2e.mean_s" in calm
    assert "e2e.mean_s" not in crowded
    frame = found.to_frame()
    assert math.isnan(frame["e2e.mean_s"][1])
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(sweep_tables(found))
    shown = console.export_text()
    assert "2 of 2 points" in shown
    assert "UNSTABLE" in shown


def test_files_hold_the_rows_with_units_and_what_made_them(both: tuple[Path, Sweep]) -> None:
    from pyarrow.parquet import read_table

    out, found = both
    table = read_table(out / "sweep.parquet")
    assert table.column_names == list(found.frame())
    assert table.column(RATE).to_pylist() == [10, 60]
    assert table.column("verdict").to_pylist() == [row["verdict"] for row in found.rows]
    assert table.schema.field("e2e.p95_s.half_width").metadata[b"unit"] == b"s"
    assert json.loads(table.schema.metadata[b"hsim.varied"]) == [RATE, SEQUENCES]
    assert json.loads(table.schema.metadata[b"hsim.complete"]) is True
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["tasks_per_s"]) for row in rows] == [row["tasks_per_s"] for row in found.rows]
    assert rows[1]["e2e.mean_s"] == ""


@pytest.mark.parametrize(
    ("column", "unit"),
    [("e2e.p95_s", "s"), ("tst_j.low", "J"), (RATE, "1/s"), ("tpw_tokens_per_j.high", "tokens/J"), ("kind", "1")],
)
def test_units_are_in_the_names_of_columns(column: str, unit: str) -> None:
    assert unit_of(column) == unit


def test_a_point_that_nobody_is_served_at_is_a_row_with_its_reason(tmp_path: Path) -> None:
    """Deadlines that no task can meet: the other point is simulated all the same."""
    file = written(tmp_path, slo={})
    found = swept(file, "workload.classes.chat.timeout_s=0.001,100")
    assert [row["verdict"] for row in found.rows] == ["ERROR", None]
    assert "no task was completed" in found.rows[0]["reason"]
    assert found.complete


def test_a_point_that_cannot_run_is_told_before_anything_does(tmp_path: Path, counted: list[int]) -> None:
    file, out = written(tmp_path), tmp_path / "out"
    with pytest.raises(DescriptionError) as caught:
        swept(file, f"{SEQUENCES}=4,0,-1", options=Options(3, processes=1, out=out))
    assert f"point {SEQUENCES}=0 (and 1 more of 3 points cannot run)" in str(caught.value)
    assert SEQUENCES in caught.value.where
    assert caught.value.remedy
    with pytest.raises(DescriptionError, match="did you mean 'max_num_seqs'"):
        swept(file, "pools.decode.max_num_seq=4")
    with pytest.raises(DescriptionError, match=r"pools\.decode"):  # found when the system is prepared
        swept(file, "model=llama-3.1-405b")
    assert not counted
    assert not list(out.rglob("*.npz"))


# ---- kept runs


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the replications that were really run; `stop_after` so many comes Ctrl-C."""
    ran: list[int] = []

    def counting(job: Job) -> Replication:
        if len(ran) == counting.stop_after:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        ran.append(job.number)
        return replicate(job)

    counting.stop_after = None  # type: ignore[attr-defined]
    monkeypatch.setattr(studies, "replicate", counting)
    return ran


def bytes_of(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in ("sweep.parquet", "sweep.csv")]


def test_an_interrupted_sweep_goes_on_and_runs_nothing_twice(tmp_path: Path, counted: list[int]) -> None:
    file, vary = written(tmp_path), f"{RATE}=5,10,15"
    whole = swept(file, vary, options=Options(3, processes=1, out=tmp_path / "whole"))
    every = len(counted)
    counted.clear()
    out = tmp_path / "part"
    studies.replicate.stop_after = every // 2  # type: ignore[attr-defined]
    part = swept(file, vary, options=Options(3, processes=1, out=out))
    assert not part.complete
    assert 0 < len(part.rows) < 3
    assert part.rows == whole.rows[: len(part.rows)]
    assert bytes_of(out) != bytes_of(tmp_path / "whole")
    studies.replicate.stop_after = None  # type: ignore[attr-defined]
    resumed = swept(file, vary, options=Options(3, processes=1, out=out))
    assert as_json(resumed) == as_json(whole)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert len(counted) == every, "what was finished before was not run again"


def test_several_studies_at_once_give_the_same_bytes(tmp_path: Path) -> None:
    file, vary = written(tmp_path), f"{RATE}=5,10,15"
    for processes in (1, 2):
        swept(file, vary, options=Options(3, processes=processes, out=tmp_path / str(processes)))
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")
    assert len(list((tmp_path / "2").rglob("*.npz"))) == len(list((tmp_path / "1").rglob("*.npz")))


def test_a_broken_store_ends_the_sweep(tmp_path: Path) -> None:
    file, options = written(tmp_path), Options(2, processes=1, out=tmp_path)
    swept(file, f"{RATE}=5", options=options)
    broken = next(tmp_path.rglob("*.npz"))
    broken.write_bytes(b"")
    with pytest.raises(ResultError, match="delete it"):
        swept(file, f"{RATE}=5", options=options)


def test_a_cluster_that_does_not_answer_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECTING_S", 0.5)
    with pytest.raises(WorkersError, match=r"--cluster tcp://127.0.0.1:9: no scheduler answers .*dask scheduler"):
        swept(written(tmp_path), f"{RATE}=5", options=Options(2, cluster="tcp://127.0.0.1:9"))


def test_a_worker_of_another_hsim_is_refused() -> None:
    with pytest.raises(WorkersError, match="install the same on both"):
        cluster.replicate_there(None, "hsim 0123456789ab with NumPy 0.1")  # type: ignore[arg-type]


def test_examples_hold() -> None:
    assert doctest.testmod(hsim.sweeps).failed == 0
