"""The dashboard: every page, links, hostile uploads, jobs that are bounded and can be stopped."""

from __future__ import annotations

import gzip
import json
import time
import tomllib
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest
from systems import generate_only, system_of
from test_validation import drifted

from hsim.comparison import compare
from hsim.dashboard import session, traces
from hsim.dashboard.jobs import Bounds, Job, Runner
from hsim.dashboard.launch import OPTIONS, arguments
from hsim.dashboard.limits import SCENARIO_BYTES, admitted, uploaded
from hsim.dashboard.state import Question, State, decode, encode, inline, shipped_scenarios
from hsim.dashboard.variants import gpu_only, is_split, split
from hsim.dashboard.words import says_difference, tiles
from hsim.dashboard.work import FindFleet, Preview, Simulate, Sweep
from hsim.description.yamlfile import parse_document
from hsim.errors import DescriptionError, HsimError
from hsim.metrics.result import Study
from hsim.runs import Options, as_json, study
from hsim.runs.exports import scenario_text

ROOT = Path(__file__).parent.parent
SMALL = """
model: llama-3.1-8b
workload:
  arrivals: {kind: closed, users: 3}
  tasks: 24
  classes:
    agent:
      understand: {op: encode-minilm, tokens: 200}
      tools: {full-text-100k: 1}
      input_tokens: {kind: lognormal, median: 300, p95: 900}
      output_tokens: {kind: lognormal, median: 20, p95: 60}
fleet: {front: {server: epyc-9654-2s, count: 2}, back: {server: hgx-h100-8, count: 1}}
pools: {agents: {runs_on: front.cpu}, decode: {runs_on: back.gpu, tensor_parallel: 4}}
stages: {understand: agents, tool: agents, generate: decode}
links: {agents-decode: ethernet-100g}
slo: {e2e: {max_s: 20, p: 0.9}}
"""
QUESTION = Question("", SMALL)
STATE = State(QUESTION, ("fleet.front.count=1",), replications=2)


def done(job: Job, seconds: float = 60) -> Job:
    """The job at its end."""
    until = time.monotonic() + seconds
    while not job.wait(1).ended and time.monotonic() < until:
        pass
    return job


# ---- pages


FOLDED = ("placement", "options", "objectives", "site", "runs", "plan", "figures", "share", "differences", "headroom")


def opened(state: State, unfold: bool = True) -> AppTest:
    """A visitor who comes by a link, and opens every section of the page."""
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.query_params["s"] = encode(state)
    for name in FOLDED if unfold else ():
        app.session_state[f"open-{name}"] = True
    return app.run()


def state_of(app: AppTest) -> State:
    """What the address says."""
    link = app.query_params["s"]
    return decode(link if isinstance(link, str) else link[0])


def settled(app: AppTest) -> AppTest:
    """The page when nothing is simulated any more."""
    for _ in range(200):
        if app.exception or not [button for button in app.button if button.label == "Stop"]:
            return app
        time.sleep(0.2)
        app.run()
    return app


def uploader(app: AppTest, label: str) -> Any:
    return next(field for field in app.get("file_uploader") if field.label.startswith(label))


def plots(app: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


def test_answer_says_it_in_one_sentence_four_figures_and_one_picture() -> None:
    app = settled(opened(STATE))
    assert not app.exception
    said = [box.value for box in (*app.success, *app.error, *app.warning)]
    assert said[0].startswith("**PASS.** This fleet meets its objectives: 100.0% of tasks end within 20.0 s")
    found: Study = study(QUESTION.system(), Options(2, 1))
    assert len(app.metric) == 4
    assert found.energy is not None
    joules = found.energy.tst_j["full"]["facility"].value
    assert app.metric[1].label == "Energy a task"
    assert app.metric[1].value.startswith(f"{joules:.3g}"[:3])
    (picture,) = plots(app)
    assert {bar["name"] for bar in picture["data"]} >= {"understand", "tool", "generate", "idle", "site (PUE)"}


def test_a_changed_fleet_changes_the_numbers_and_the_link() -> None:
    app = settled(opened(STATE))
    before = [metric.value for metric in app.metric]
    (count,) = [n for n in app.number_input if n.key.startswith("fleet.front.count")]
    count.set_value(1).run()
    assert state_of(app).question.settings == ("fleet.front.count=1",)
    app = settled(app)
    assert [metric.value for metric in app.metric][1:] != before[1:]


def test_what_is_folded_is_made_when_it_is_opened() -> None:
    app = settled(opened(STATE, unfold=False))
    assert not [field for field in app.number_input if field.key.startswith("site.")]
    assert not app.get("download_button") and not app.dataframe
    app.session_state["open-site"] = app.session_state["open-share"] = True
    app.run()
    assert [field for field in app.number_input if field.key.startswith("site.")]
    assert len(app.get("download_button")) == 5 and not app.dataframe


def test_units_change_at_once() -> None:
    app = settled(opened(State(QUESTION, replications=2, energy="Wh", per="1k tokens")))
    assert app.metric[1].label == "Energy of 1k tokens"
    assert app.metric[1].value.endswith("Wh")
    assert app.metric[2].label == "Cost of 1M tokens"


def test_what_if_shows_paired_differences() -> None:
    app = settled(opened(State(QUESTION, STATE.variation, 5, page="What if")))
    assert not app.exception
    assert len(app.metric) == 8
    assert "lower" in app.markdown[0].value
    better, worse, neither = plots(app)[0]["data"]
    assert (better["name"], worse["name"], neither["name"]) == ("better", "worse", "no difference shown")
    assert {"TST, energy a task", "Cost a task"} <= set(better["y"])  # one server less, and the same objectives


def test_gpu_only_against_split_in_one_click() -> None:
    app = opened(State(QUESTION, replications=2, page="What if"))
    next(button for button in app.button if button.label == "GPU servers alone").click().run()
    state = state_of(app)
    assert not is_split(state.varied.system())
    assert settled(app).metric[5].label == "Energy a task"


@pytest.mark.parametrize(
    ("page", "view", "said", "least"),
    [
        ("Anatomy", "", "", 1),
        ("Anatomy", "The joules", "Every joule of a task", 1),
        ("Anatomy", "Over time", "One replication from its start", 1),
        ("Anatomy", "Latencies", "How many take how long", 1),
        ("Evidence", "", "Two uncertainties", 2),
        ("Evidence", "What it stands on", "This result stands on", 0),
        ("Evidence", "Calibration", "", 0),
        ("Evidence", "Not modelled", "- ", 0),
        ("Trade-offs", "", "What a task costs as the load grows", 1),
        ("Trade-offs", "Fleets: cost, energy, latency", "Fleets around yours", 1),
        ("Risk", "", "With any one server gone", 0),
        ("Risk", "Headroom", "Passes at every load", 1),
        pytest.param("Trade-offs", "GPU-only or split", "Split less GPU-only", 1, marks=pytest.mark.slow),
        pytest.param("Risk", "Which number matters", "20% less and 20% more", 2, marks=pytest.mark.slow),
    ],
)
def test_every_view_is_drawn_from_its_link(page: str, view: str, said: str, least: int) -> None:
    app = settled(opened(State(QUESTION, replications=2, page=page, view=view)))
    assert not app.exception
    assert not app.error or (page, view) == ("Risk", "")
    assert said in " ".join(text.value for text in app.markdown)
    assert len(plots(app)) >= least


def test_measured_steps_are_drawn() -> None:
    app = opened(State(Question("two-cores"), replications=2, page="Evidence", view="Calibration"))
    assert not app.exception
    (steps,) = plots(app)
    assert len(steps["data"]) > 2
    assert all(len(line["x"]) == len(line["y"]) > 4 for line in steps["data"])


def test_validations_that_lie_here_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hsim validate` writes them: of several loads, and of one."""
    several = drifted(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "validation.json").write_text(as_json(several))
    (tmp_path / "validation-one.json").write_text(as_json(several.runs[0].validation))
    (tmp_path / "validation-none.json").write_text("[]")
    app = opened(State(Question("agents-gpu-only"), replications=2, page="Evidence", view="Calibration"))
    told = [element.value for element in app.markdown]
    assert [one for one in told if "run live" in one] == [
        "**validation-one.json**: 60 tasks predicted, then run live on cpu, 3 times",
        *(
            f"**validation.json, {one.name}**: 60 tasks predicted, then run live on cpu, 3 times"
            for one in several.runs
        ),
    ]
    assert [element.value.split(" (")[0] for element in app.warning if "validation" in element.value] == [
        "validation-none.json: is not a validation that hsim wrote"
    ]


@pytest.mark.parametrize("name", [name for name in shipped_scenarios() if name != "azure-conversation"])
def test_every_shipped_scenario_opens(name: str) -> None:
    app = opened(State(Question(name).chosen(), page="What if"))
    assert not app.exception
    assert not app.error
    assert [button.label for button in app.button if button.key and button.key.startswith("preset-")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in shipped_scenarios() if name != "azure-conversation"])
def test_every_shipped_scenario_has_a_preview(name: str) -> None:
    job = done(Runner().start(Preview(Question(name).chosen())))
    assert job.state == "done", job.error


def test_a_view_that_is_chosen_stands_in_the_link_and_ends_with_its_page() -> None:
    app = opened(State(QUESTION, replications=2, page="Anatomy"))
    app.button_group[1].set_value("Latencies").run()
    assert state_of(app).view == "Latencies"
    app.button_group[0].set_value("Risk").run()
    assert (state_of(app).page, state_of(app).view) == ("Risk", "")


def test_the_objective_is_a_box_in_the_picture_of_fleets() -> None:
    app = settled(opened(State(QUESTION, replications=2, page="Trade-offs", view="Fleets: cost, energy, latency")))
    (picture,) = plots(app)
    (box,) = picture["layout"]["shapes"]
    assert (box["type"], box["y0"], box["y1"], box["yref"]) == ("rect", 0, 20, "y2")  # e2e within 20 s, p90 drawn
    marks = [trace for trace in picture["data"] if trace["yaxis"] == "y2"]
    assert marks
    assert all(0 < trace["y"][0] < 20 and trace["error_y"]["array"] for trace in marks)


def test_a_scenario_that_cannot_run_says_why_and_can_be_undone() -> None:
    app = opened(State(Question("agents-split", "", ("fleet.gpu-tier.server=nowhere",))))
    assert "there is no hardware profile 'nowhere'" in app.error[0].value
    assert not app.exception


# ---- links


def test_a_link_gives_the_state_back_and_the_same_numbers_bit_for_bit() -> None:
    again = decode(encode(STATE))
    assert again == STATE
    results = []
    for state in (STATE, again):
        job = done(Runner().start(Simulate(state.question, state.replications)))
        assert job.update is not None, job.error
        results.append(as_json(job.update.result))
    assert results[0] == results[1]
    assert results[0] == as_json(study(QUESTION.system(), Options(2, 1)))


def test_a_link_to_a_shipped_scenario_is_short() -> None:
    assert len(encode(State(Question("agents-split", "", ("workload.arrivals.rate_per_s=6",))))) < 200


@pytest.mark.parametrize("link", ["", "x", "AAAA", "eJwDAAAAAAE", "_" * 5000, encode(STATE)[:-9], encode(STATE) * 2])
def test_a_broken_link_is_refused(link: str) -> None:
    with pytest.raises(DescriptionError, match="link"):
        decode(link)


def test_a_link_that_is_a_bomb_is_refused() -> None:
    bomb = State(Question("", "# " + "0" * 3_000_000))
    assert len(encode(bomb)) < 10_000
    with pytest.raises(DescriptionError, match="link"):
        decode(encode(bomb))


def test_a_link_asks_for_no_more_than_a_visitor_may() -> None:
    with pytest.raises(DescriptionError, match="replications"):
        decode(encode(State(replications=10**9)))
    with pytest.raises(DescriptionError, match="nested too deep"):
        admitted(Question("agents-split", "", ("slo=" + "[" * 10_000,)))


def test_a_link_names_scenarios_and_not_files() -> None:
    for base in ("../tests/x", "/etc/passwd", "scenarios/agents-split.yaml"):
        with pytest.raises(DescriptionError, match="there is no scenario"):
            admitted(decode(encode(State(Question(base)))).question)


# ---- uploads


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe\x00", "not text"),
        (b"a: &a [1]\nb: *a", "alias"),
        (b"[" * 40_000, "nested too deep"),
        (b"a:\n" + b"".join(b" " * i + b"- a:\n" for i in range(300)), "nested too deep"),
        (b"- 1\n- 2", "not a mapping"),
        (b"!!python/object/apply:os.system ['true']", "not a mapping"),
        (b"model: 3", "is 3"),
        (SMALL.replace("epyc-9654-2s", "../../../tmp/x").encode(), "names a file"),
        (SMALL.replace("llama-3.1-8b", "/tmp/config.json").encode(), "names a file"),
        (SMALL.replace("{kind: closed, users: 3}", "{kind: trace, file: trace.csv}").encode(), "names a file"),
        (SMALL.replace("{kind: closed, users: 3}", "{kind: trace, file: /etc/passwd}").encode(), "names a file"),
        (
            SMALL.replace("users: 3}", "users: 3, think_s: {kind: histogram, file: /etc/passwd}}").encode(),
            "names a file",
        ),
        (
            SMALL.replace("tasks: 24", "tasks: 24\n  x: {sampled_from: {file: a.csv, tokenizer: b}}").encode(),
            "names a file",
        ),
        (
            SMALL.replace("{kind: closed, users: 3}", "{kind: trace, file: trace-00ff00ff00ff00ff}").encode(),
            "upload it again",
        ),
        (SMALL.replace("front.cpu}", "front.cpu, router: own.py:choose}").encode(), "names code"),
        (SMALL.replace("front.cpu}", "front.cpu, priority: 'code: x.py:f'}").encode(), "names code"),
        (SMALL.replace("front.cpu}", "front.cpu, router: /tmp/own.py:choose}").encode(), "names a file"),
        (SMALL.replace("tasks: 24", "tasks: 1000000000").encode(), "1,000,000,000 tasks"),
        (SMALL.replace("count: 1}", "count: 999999}").encode(), "servers"),
        (SMALL.replace("understand: {", "rounds: 1000000\n      understand: {").encode(), "rounds in all"),
        (SMALL.replace("tasks: 24", "tasks: many").encode(), "is 'many'"),
        (SMALL.replace("front.cpu", "nowhere.cpu").encode(), "no tier 'nowhere'"),
        (b"x" * (SCENARIO_BYTES + 1), "bytes"),
        (b"a: " + b"9" * 5000, "digits"),
    ],
)
def test_a_hostile_upload_gets_a_clear_message(text: bytes, said: str) -> None:
    with pytest.raises(DescriptionError, match=said):
        uploaded(text)


TRACE = b"arrival_s,input_tokens,output_tokens\n" + b"".join(b"%.1f,%d,20\n" % (i / 10, 100 + i) for i in range(60))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"x" * (8 * 2**20 + 1), "at most 8 MiB"),
        (gzip.compress(b"0" * 10**8), "more than 24 MiB once it is unpacked"),
        (gzip.compress(TRACE)[:-20], "is it complete"),
        (b"\x1f\x8b" + b"\0" * 50, "cannot be unpacked"),
    ],
)
def test_a_hostile_trace_is_refused_before_it_is_kept(data: bytes, said: str) -> None:
    before = set(traces.folder().iterdir())
    with pytest.raises(DescriptionError, match=said):
        traces.stored("../../etc/passwd", data)
    assert set(traces.folder().iterdir()) == before


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfe\x00\x00", "is it text"),
        (b"[" * 100_000, "cannot be read|not valid JSON"),
        (b"arrival_s,input_tokens,output_tokens\n0,-5,1\n", "the trace:2"),
        (b"root:x:0:0:root:/root:/bin/bash\n", "the trace"),
    ],
)
def test_a_trace_that_cannot_be_read_is_named_and_removed(data: bytes, said: str) -> None:
    name = traces.stored("evil/../trace.csv", data)
    assert (traces.folder() / name).parent == traces.folder()
    with pytest.raises(DescriptionError, match=said) as found:
        traces.held(name)
    assert str(traces.folder()) not in str(found.value)
    assert not (traces.folder() / name).exists()


def test_few_traces_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(traces, "folder", lambda: tmp_path)
    names = [traces.stored("a.csv", b"%d" % i) for i in range(traces.KEPT + 3)]
    assert len(list(tmp_path.iterdir())) == traces.KEPT
    assert (tmp_path / names[-1]).exists()


def test_a_shipped_scenario_without_its_trace_says_what_to_do_and_takes_one() -> None:
    app = opened(State(Question("azure-conversation"), replications=2))
    assert not app.error
    assert not app.exception
    assert "The trace is not shipped" in app.info[0].value
    assert {"agents-split"} <= {button.label for button in app.button}
    uploader(app, "A trace").upload("../t.csv", b"nonsense", "text/csv").run()
    assert "the trace" in app.error[0].value
    uploader(app, "A trace").upload("../t.csv.gz", gzip.compress(TRACE), "application/gzip").run()
    state = state_of(app)
    assert "workload.tasks=60" in state.question.settings
    app = settled(app)
    assert not app.exception
    assert len(app.metric) == 4
    again = opened(state)
    assert [metric.value for metric in settled(again).metric] == [metric.value for metric in app.metric]
    trace = admitted(state.question).scenario.workload.arrivals.file
    (traces.folder() / trace).unlink()
    with pytest.raises(DescriptionError, match="upload it again"):
        admitted(state.question)


def test_a_trace_takes_the_place_of_arrivals_and_lengths() -> None:
    name = traces.stored("a.csv", TRACE)
    question = QUESTION.changed(traces.replaying(QUESTION.document().data, traces.held(name), 50))
    workload = admitted(question).scenario.workload
    assert (workload.arrivals.kind, workload.tasks) == ("trace", 24)
    kind = workload.classes["agent"]
    assert (kind.input_tokens, kind.output_tokens, kind.understand is None) == (None, None, False)
    job = done(Runner().start(Simulate(question, 2)))
    assert job.update is not None, job.error
    assert job.update.result.replications == 1
    (traces.folder() / name).unlink()


def test_a_file_of_a_hundred_megabytes_is_refused_unread() -> None:
    started = time.process_time()
    with pytest.raises(DescriptionError, match="bytes"):
        uploaded(b"[" * 100_000_000)
    assert time.process_time() - started < 1


def test_settings_of_a_link_name_no_file_either() -> None:
    with pytest.raises(DescriptionError, match="names a file"):
        admitted(Question("agents-split", "", ("model=/tmp/config.json",)))


def test_an_upload_on_the_page() -> None:
    app = opened(STATE)
    uploader(app, "A YAML file").upload("bad.yaml", b"a: &a [1]\nb: *a", "application/yaml").run()
    assert "alias" in app.error[0].value
    uploader(app, "A YAML file").upload(
        "good.yaml", SMALL.replace("count: 2", "count: 3").encode(), "application/yaml"
    ).run()
    assert not app.error
    assert "count: 3" in state_of(app).question.text


# ---- questions


def test_a_setting_replaces_earlier_ones_and_what_stands_there_is_none() -> None:
    question = QUESTION.changed({"fleet.front.count": 5}).changed({"fleet.front.count": 6, "seed": 3})
    assert question.settings == ("fleet.front.count=6", "seed=3")
    assert question.changed({"fleet.front.count": 2}).settings == ("seed=3",)
    whole = question.changed({"fleet": {"back": {"server": "hgx-h100-8", "count": 1}}})
    assert whole.settings == ("seed=3", "fleet={back: {server: hgx-h100-8, count: 1}}")


@pytest.mark.parametrize(
    "value", [1, 0.1, 1e-7, 5e9, "fp8", "on", "1e3", None, True, [1, "a b"], {"a-b": {"c": "x: y"}}]
)
def test_a_value_on_one_line_reads_back(value: object) -> None:
    assert parse_document(inline(value), "x").data == value


def test_the_shown_yaml_asks_the_same() -> None:
    question = QUESTION.changed({"fleet.front.count": 1})
    again = Question("", scenario_text(question.system()))
    assert again.system().scenario == question.system().scenario


@pytest.mark.parametrize("name", ["agents-split", "agents-gpu-only"])
def test_split_and_gpu_only_are_each_other(name: str) -> None:
    question = Question(name)
    system = question.system()
    other = question.changed(gpu_only(system) if is_split(system) else split(system))
    assert is_split(other.system()) is not is_split(system)
    shipped = Question("agents-gpu-only" if name == "agents-split" else "agents-split").system().scenario
    assert other.system().scenario == shipped


# ---- jobs


LONG = Question("agents-split", "", ("workload.tasks=20000",))


def test_a_job_is_stopped_at_once() -> None:
    job = Runner().start(Simulate(LONG, 10))
    while job.state == "waiting":
        job.wait(0.05)
    job.stop()
    assert done(job, 5).state == "stopped"


def test_a_job_that_takes_too_long_ends() -> None:
    job = done(Runner(Bounds(seconds=0.5)).start(Simulate(LONG, 10)), 10)
    assert (job.state, "the limit of this dashboard" in job.error) == ("failed", True)


def test_a_job_that_nobody_watches_ends() -> None:
    job = Runner(Bounds(unwatched_s=0.3)).start(Simulate(LONG, 10))
    time.sleep(2)
    assert job.state == "stopped"


def test_a_fault_of_the_question_is_told() -> None:
    job = done(Runner().start(Preview(QUESTION.changed({"workload.classes.agent.input_tokens": 10**7}))))
    assert job.state == "failed"
    assert "10000000" in job.error.replace(",", "")


def test_memory_is_bounded() -> None:
    # A preview lives on what its process was born with.
    job = done(Runner(Bounds(memory_bytes=2**26)).start(Simulate(LONG, 1)))
    assert job.state == "failed"
    assert "memory" in job.error


def test_jobs_of_several_visitors_wait_and_too_many_are_refused() -> None:
    runner = Runner(Bounds(at_once=1, waiting=1))
    jobs = [runner.start(Simulate(LONG, n)) for n in (2, 3)]
    with pytest.raises(HsimError, match="too many"):
        runner.start(Simulate(LONG, 4))
    for job in jobs:
        job.stop()
    assert [done(job, 5).state for job in jobs] == ["stopped", "stopped"]


# ---- the server


def test_it_listens_on_this_machine_alone_and_both_ways_to_start_it_agree() -> None:
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    themes = config.pop("theme")
    config |= {f"theme.{ground}": values for ground, values in themes.items()}
    flat = {f"{section}.{name}": value for section, values in config.items() for name, value in values.items()}
    assert flat == OPTIONS
    assert "--server.address=127.0.0.1" in arguments(8501, "127.0.0.1")


# ---- the planner

OPEN = SMALL.replace("{kind: closed, users: 3}", "{kind: poisson, rate_per_s: 4}").replace("tasks: 24", "tasks: 100")


def test_a_fleet_is_found_with_progress_and_taken() -> None:
    plan = ("fleet.front.count=[1, 2]", "pools.agents.runs_on=[front.cpu, back.cpu]", "plan.minimise=cost")
    app = opened(State(Question("", OPEN), replications=2, plan=plan))
    app = settled(app)
    assert not app.exception
    said = next(box.value for box in app.success if "USD an hour" in box.value)
    assert said.startswith("**1 x hgx-h100-8")
    next(button for button in app.button if button.label == "Take this fleet").click().run()
    state = state_of(app)
    assert state.plan == ()
    assert list(state.question.system().tiers) == ["back"]


def test_a_button_in_a_watched_section_changes_the_whole_page(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rerun(Exception):
        pass

    def rerun() -> None:
        raise Rerun

    bodies = []
    page = SimpleNamespace(
        session_state={"state": STATE}, rerun=rerun, fragment=lambda body, run_every: bodies.append(body) or body
    )
    monkeypatch.setattr(session, "st", page)  # AppTest runs the whole page where Streamlit runs the fragment alone
    monkeypatch.setattr(session, "job_of", lambda *_: SimpleNamespace(ended=True))
    drawn: list[Any] = []
    session.watch("answer", Simulate(QUESTION, 2), drawn.append)
    bodies[0]()
    assert len(drawn) == 2
    page.session_state["state"] = replace(STATE, page="What if")
    with pytest.raises(Rerun):
        bodies[0]()
    assert len(drawn) == 2


def test_a_scenario_of_choices_opens_with_its_first_and_proposes_its_own() -> None:
    question = Question("agents-plan").chosen()
    assert admitted(question).tiers["gpu-tier"].server.name == "l40s-4"
    assert question.choices()["fleet.cpu-tier.count"] == [1, 2, 3]
    app = opened(State(question, replications=2))
    next(button for button in app.button if button.label == "Find the fleet").click().run()
    assert "pools.decode.tensor_parallel=[1, 2]" in state_of(app).plan
    next(button for button in app.button if button.label == "Stop" and "plan" in button.key).click().run()


def test_a_space_that_is_too_large_is_refused() -> None:
    job = done(Runner().start(FindFleet(QUESTION, (f"fleet.front.count={list(range(1, 3000))}",))))
    assert "searches at most" in job.error


def test_two_studies_side_by_side_show_the_same_quantile() -> None:
    long = study(Question("", SMALL.replace("tasks: 24", "tasks: 300")).system(), Options(2, 1))
    short = study(QUESTION.system(), Options(2, 1))
    assert [tiles(found, State())[0].title for found in (long, short)] == ["End to end p50", "End to end mean"]
    both = [tiles(long, State(), short), tiles(short, State(), long)]
    assert [row[0].title for row in both] == ["End to end mean"] * 2
    assert [tile.title for tile in both[0][1:]] == [tile.title for tile in tiles(long, State())[1:]]


def test_where_no_difference_is_shown_nobody_is_told_that_there_is_none() -> None:
    data = generate_only()
    data["workload"] |= {"tasks": 60, "arrivals": {"kind": "poisson", "rate_per_s": 2}}
    faster = deepcopy(data)
    faster["workload"]["classes"]["chat"]["output_tokens"] = 2
    one, other = system_of(data), system_of(faster)
    alike = says_difference(compare([one, one], Options(3, processes=1)))
    assert alike.startswith("No difference is shown in latency, energy a task, ")
    assert alike.endswith("by 3 replications.")
    assert says_difference(compare([one, other], Options(8, processes=1))).startswith("The change makes tasks ")


def test_loads_that_rise_end_with_the_first_that_a_fleet_cannot_keep_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    stable, unstable = (SimpleNamespace(stability=SimpleNamespace(verdict=v)) for v in ("stable", "unstable"))
    for rising, simulated in ((True, 2), (False, 3)):
        given = iter([stable, unstable, unstable])
        monkeypatch.setattr("hsim.dashboard.work.study", lambda *_, given=given: next(given))
        told: list[Any] = []
        Sweep((QUESTION,) * 3, 2, rising).work(told.append)
        assert len(told) == simulated
        assert told[-1].result[:2] == (stable, unstable)


def test_options_and_every_site_are_edited_in_the_sidebar() -> None:
    app = opened(
        State(Question("edge-cloud", "", ("workload.tasks=60",)), replications=2, page="Evidence", view="Not modelled")
    )
    sites = [field for field in app.sidebar.number_input if field.label == "PUE"]
    assert len(sites) == 1 + len(admitted(Question("edge-cloud")).scenario.sites)
    sites[-1].set_value(1.5)
    app.run()
    (idle, *_) = (field for field in app.sidebar.number_input if field.label.startswith("switch "))
    idle.set_value(30.0)
    app.run()
    assert not app.exception
    changed = dict(setting.split("=", 1) for setting in state_of(app).question.settings)
    assert any(path.startswith("sites.") and path.endswith(".pue") for path in changed), changed
    assert [float(value) for path, value in changed.items() if path.endswith(".sleep_after_s")] == [30.0]
