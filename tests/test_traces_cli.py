"""The commands about traces, schema and vLLM's format, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hsim.cli import app
from hsim.description.schema import scenario_schema
from hsim.errors import DescriptionError, ResultError
from hsim.workload.traces import read_trace

AGENTS = """session_id,arrival_time,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms
a,100,0,0,300,20,250
a,100,1,320,40,30,0
b,600,0,0,200,10,0
"""
SCENARIO = """
model: llama-3.1-8b
workload:
  arrivals: {kind: trace, file: agents.csv}
  classes: {agent: {tools: {http-api: 1}, max_output_tokens: 100}}
fleet: {gpu-tier: {server: hgx-h100-8, count: 1}}
pools: {tools: {runs_on: gpu-tier.cpu, cores: 4}, decode: {runs_on: gpu-tier.gpu, replicas: 1}}
stages: {tool: tools, generate: decode}
"""


def hsim(*words: object, code: int = 0) -> str:
    outcome = CliRunner().invoke(app, [str(word) for word in words])
    if outcome.exception and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == code, outcome.output
    return outcome.stdout


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    (tmp_path / "agents.csv").write_text(AGENTS)
    (tmp_path / "agents.yaml").write_text(SCENARIO)
    return tmp_path / "agents.csv"


def test_show_says_what_a_trace_is_like(agents: Path) -> None:
    lines = [line.partition("  ") for line in hsim("trace", "show", agents).splitlines()]
    table = {what: much.strip() for what, _, much in lines}
    assert table["format"] == "agent sessions"
    assert table["requests"] == "3, the rounds of all tasks"
    assert table["context"].startswith("37% of prompt tokens")  # 320 of 860
    figures = json.loads(hsim("trace", "show", agents, "--json"))
    assert (figures["tasks"], figures["rate"]["span_s"], figures["wait_s"]["max"]) == (2, 0.5, 0.25)


@pytest.mark.parametrize("suffix", ["html", "svg"])
def test_show_writes_a_picture(agents: Path, suffix: str) -> None:
    file = agents.parent / f"picture.{suffix}"
    hsim("trace", "show", agents, "--out", file)
    assert file.read_text().startswith({"html": "<!doctype html>", "svg": "<svg "}[suffix])
    assert "Rounds of tasks" in file.read_text()
    hsim("trace", "show", agents, "--out", agents.parent / "picture.png", code=2)
    with pytest.raises(ResultError, match="cannot be written"):
        hsim("trace", "show", agents, "--out", agents / f"picture.{suffix}")


def test_convert_writes_the_same_trace(agents: Path) -> None:
    file = agents.parent / "own.csv"
    hsim("trace", "convert", agents, file)
    assert file.read_text().splitlines()[0] == (
        "arrival_s,session_id,round,input_tokens,context_tokens,output_tokens,wait_after_s"
    )
    before, after = read_trace(agents), read_trace(file)
    assert (after.format, after.input_tokens.tolist()) == ("hsim", before.input_tokens.tolist())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("agents.csv", r"agents\.csv: is the trace itself, which would be overwritten; choose another file"),
        ("deeper/../agents.csv", "is the trace itself"),
        ("link.csv", "is the trace itself"),
        ("out.json", r"out\.json: is no \.csv and no \.csv\.gz, which is what is written; name it out\.csv"),
        ("out.gz", r"name it out\.csv"),
    ],
)
def test_convert_writes_nothing_over_its_source_and_nothing_but_csv(agents: Path, target: str, message: str) -> None:
    (agents.parent / "deeper").mkdir()
    (agents.parent / "link.csv").symlink_to(agents)
    with pytest.raises(DescriptionError, match=message):
        hsim("trace", "convert", agents, agents.parent / target)
    assert agents.read_text() == AGENTS
    assert not list(agents.parent.glob("out.*"))


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    for command in (("show",), ("convert",)):
        with pytest.raises(DescriptionError, match=r"no\.csv: there is no such trace file; check its name"):
            hsim("trace", *command, tmp_path / "no.csv", *([tmp_path / "out.csv"] if command == ("convert",) else []))
    assert not (tmp_path / "out.csv").exists()


def test_a_trace_that_a_scenario_names_is_told_by_the_key_that_names_it(agents: Path) -> None:
    scenario = agents.parent / "agents.yaml"
    with pytest.raises(DescriptionError, match=r"no\.csv: there is no such trace file; set workload.arrivals.file"):
        hsim("simulate", scenario, "--set", "workload.arrivals.file=no.csv")
    drawn = ("workload.arrivals={kind: poisson, rate_per_s: 1}", "workload.tasks=2")
    drawn = (*drawn, "workload.classes.agent.sampled_from={file: no.csv}")
    with pytest.raises(DescriptionError, match=r"no\.csv: there is no such trace file; set the class's sampled_from"):
        hsim("simulate", scenario, *(word for setting in drawn for word in ("--set", setting)))


def test_sessions_are_simulated_round_by_round(agents: Path) -> None:
    """Two visits of session a with its wait between, one of b: from a log of a real agent to latencies."""
    bench = json.loads(hsim("simulate", agents.parent / "agents.yaml", "--format", "vllm-bench"))
    assert sorted(zip(bench["input_lens"], bench["output_lens"], strict=True)) == [(200, 10), (300, 20), (360, 30)]
    by_length = {
        n: (start, latency)
        for n, start, latency in zip(bench["input_lens"], bench["start_times"], bench["latencies"], strict=True)
    }
    first_end = sum(by_length[300])
    assert by_length[300][0] == 0
    assert by_length[200][0] == 0.5
    assert first_end + 0.25 < by_length[360][0] < first_end + 0.3, "the wait, and the tool's own time on a core"


def test_vllm_format_into_a_folder(agents: Path) -> None:
    hsim("simulate", agents.parent / "agents.yaml", "--format", "vllm-bench", "--out", agents.parent / "out")
    bench = json.loads((agents.parent / "out" / "vllm-bench.json").read_text())
    assert bench == json.loads(hsim("simulate", agents.parent / "agents.yaml", "--format", "vllm-bench"))
    assert bench["completed"] == 3
    hsim("simulate", agents.parent / "agents.yaml", "--format", "xml", code=2)


def test_json_by_either_name(agents: Path) -> None:
    scenario = agents.parent / "agents.yaml"
    assert hsim("simulate", scenario, "--format", "json") == hsim("simulate", scenario, "--json")


def test_schema_prints_the_schema() -> None:
    assert hsim("schema") == scenario_schema()
