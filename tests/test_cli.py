"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from rich.table import Table
from test_validation import DriftingStand
from typer.testing import CliRunner

from hsim import cli
from hsim.cli import app
from hsim.description.catalogue import shipped
from hsim.description.scenario import TraceArrivals, load
from hsim.drivers.live import LiveRun
from hsim.drivers.prepared import Prepared

FEW = ("--set", "workload.tasks=20", "--replications", "1")


def hsim(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "hsim", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def printed(*arguments: str) -> str:
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_help_and_version() -> None:
    for arguments, expected in ((("--help",), "simulate"), (("simulate", "--help"), "--stepwise")):
        done = hsim(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout
    assert printed("--version") == f"hsim {version('hsim')}\n"


def test_json_is_json_and_equal_for_equal_seeds() -> None:
    first = printed("simulate", "agents-split", *FEW, "--json")
    assert printed("simulate", "agents-split", *FEW, "--json") == first
    result = json.loads(first)
    assert result["tasks"] == 20
    other = json.loads(printed("simulate", "agents-split", *FEW, "--set", "seed=1", "--json"))
    assert other["seed"] == 1
    assert other["latency"] != result["latency"]


def test_stepwise_says_the_same(tmp_path: Path) -> None:
    fast, slow = (
        json.loads(printed("simulate", "agents-split", *FEW, "--json", *more)) for more in ((), ("--stepwise",))
    )
    assert fast["latency"] == slow["latency"]
    assert fast["energy"]["total_j"] == pytest.approx(slow["energy"]["total_j"], rel=1e-9)


def test_out_writes_the_whole_result_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    shown = printed("simulate", "agents-split", *FEW, "--json", "--out", str(out))
    assert (out / "result.json").read_text() == shown
    printed("simulate", "agents-split", *FEW, "--set", "seed=1", "--out", str(out))
    assert json.loads((out / "result.json").read_text())["seed"] == 1
    assert [file.name for file in out.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("agents-splt",), "agents-splt: there is no scenario 'agents-splt'; did you mean 'agents-split'?"),
        (("agents-split", "--set", "pools.decode.max_num_seq=3"), "--set pools.decode.max_num_seq=3: "),
        (("agents-split", "--set", "pools.decode.tensor_parallel=1"), "pools.decode"),
    ],
)
def test_bad_input_is_one_line_on_stderr_exit_code_2_and_nothing_written(
    arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    done = hsim("simulate", *arguments, "--json", "--out", "out", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("hsim: ")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_bad_input_too(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    for replications, blamed in (("1", "out/result.json"), ("3", "out/runs/agents-split-")):
        done = hsim(
            "simulate", "agents-split", *FEW[:2], "--replications", replications, "--out", "out", folder=tmp_path
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"hsim: {blamed}")
        assert ": cannot be written (" in done.stderr
        assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_an_error_in_the_middle_of_a_study_ends_it_and_its_processes(tmp_path: Path) -> None:
    """A folder that fills up while replications are under way in other processes."""
    code = """
from hsim import runs
from hsim.errors import ResultError
from hsim.runs.store import Store

def put(*_):
    raise ResultError("the disk is full")

if __name__ == "__main__":
    Store.put = put
    closed = ["workload.arrivals={kind: closed, users: 2}", "workload.tasks=4"]
    system = runs.system_of("agents-split", closed)
    try:
        runs.study(system, runs.Options(8, 2, 0, __import__("pathlib").Path("out")))
    except ResultError as error:
        print(error)
"""
    (tmp_path / "fails.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "fails.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the disk is full\n", "")


SCENARIOS = sorted(file.stem for file in shipped("scenarios").glob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pareto a.yaml", "nothing was kept; with --out FOLDER what is finished would be"),
        (
            "pareto a.yaml --out=kept",
            "what was finished is kept where --out says, and the same command goes on with it",
        ),
        ("report a.yaml --out a.html", "nothing was kept; with --runs FOLDER what is finished would be"),
        ("report a.yaml --out a.html --runs kept", "what was finished is kept where --runs says, and the same command"),
        ("export a.yaml --out kept", "nothing was kept"),
    ],
)
def test_ctrl_c_says_what_is_kept_and_what_would_keep_it(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Typer ends an interrupted command by an exit of its own, made of the interrupt."""

    def interrupted() -> None:
        try:
            raise typer.Abort from KeyboardInterrupt()
        except typer.Abort:
            sys.exit(130)

    monkeypatch.setattr(cli, "app", interrupted)
    monkeypatch.setattr(sys, "argv", ["hsim", *words.split()])
    with pytest.raises(SystemExit):
        cli.main()
    err = capsys.readouterr().err
    assert err.startswith(f"hsim: interrupted; {said}")
    assert (said == "nothing was kept") == ("FOLDER" not in err and "where" not in err)


SINGLE_SHOTS = ("--set=workload.tasks=60", "--set=workload.classes.support-agent.rounds=1")


class InterruptedStand(DriftingStand):
    """Ctrl-C comes in the middle of its second run."""

    def run(self, prepared: Prepared) -> LiveRun:
        if self.ran:
            signal.raise_signal(signal.SIGINT)
        return super().run(prepared)


def test_ctrl_c_while_validating_says_what_comes_of_it_and_judges_what_was_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hsim.validate.loads.Stand", InterruptedStand)
    monkeypatch.setattr("hsim.validate.run.measure_pace", lambda stand, prepared: [])
    arguments = ["validate", "agents-gpu-only", *SINGLE_SHOTS, "--loads", "30", "--json", "--out", str(tmp_path)]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 130, outcome.output
    assert outcome.stderr.startswith("hsim: stopping; live runs that were complete are judged now")
    assert [bool(one["compared"]) for one in json.loads(outcome.stdout)["runs"]] == [True, False]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_validation_is_written_before_it_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gone(_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("hsim.validate.loads.Stand", DriftingStand)
    monkeypatch.setattr("hsim.validate.run.measure_pace", lambda stand, prepared: [])
    monkeypatch.setattr(cli, "_print", gone)
    outcome = CliRunner().invoke(
        app, ["validate", "agents-gpu-only", *SINGLE_SHOTS, "--loads", "30", "--out", str(tmp_path)]
    )
    assert outcome.exit_code == 1, outcome.output
    assert json.loads((tmp_path / "validation.json").read_text())["runs"]
    assert (tmp_path / "validation.html").exists()


def test_scenarios_are_listed_with_their_questions() -> None:
    lines = printed("scenarios").splitlines()
    assert [line.split()[0] for line in lines] == SCENARIOS
    assert all(len(line.split()) > 5 for line in lines)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_shipped_scenario_runs(name: str) -> None:
    scenario, _ = load(name)
    settings = ["--set", "workload.tasks=50", "--replications", "1"]
    if isinstance(scenario.workload.arrivals, TraceArrivals):  # its file is not shipped
        settings += ["--set", "workload.arrivals={kind: poisson, rate_per_s: 2}"]
        settings += [f"--set=workload.classes.{c}.{n}=100" for c in scenario.workload.classes for n in ("input_tokens", "output_tokens")]  # fmt: skip
    result = json.loads(printed("simulate", name, *settings, "--json"))
    assert result["tasks"] + result["timed_out"] + result["shed"] == 50
    assert result["latency"]["e2e"]["mean_s"] > 0


def test_brackets_in_a_name_or_a_reason_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("fleet")
    table.add_row("pool [decode] has no [/room]")
    cli._print(table)
    assert "pool [decode] has no [/room]" in capsys.readouterr().out
