"""Figures and the page: plotly takes them, they show what the study says, and the page needs nothing from outside."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from systems import agents, generate_only, system_of
from typer.testing import CliRunner

from hsim.cli import app
from hsim.comparison import compare
from hsim.errors import DescriptionError, HsimError
from hsim.metrics.study import Replication
from hsim.report import figures
from hsim.report import page as pages
from hsim.report.page import limits, page
from hsim.runs import Options, path_of, studies
from hsim.runs.closeup import Closeup, close_up
from hsim.runs.paths import Job, replicate

graph_objects = pytest.importorskip("plotly.graph_objects")


def steady() -> dict[str, Any]:
    data = agents(cores=4, replicas=1)
    data["workload"] |= {"tasks": 60, "arrivals": {"kind": "poisson", "rate_per_s": 5}}
    return data | {"slo": {"ttft": {"max_s": 0.5, "p": 0.9}, "e2e": {"max_s": 1e-3, "p": 0.9}}}


@pytest.fixture(scope="module")
def seen() -> Closeup:
    return close_up(system_of(steady()), Options(4, processes=1))


@pytest.fixture(scope="module")
def html(seen: Closeup) -> str:
    return page(seen, system_of(steady()), "hsim report </script> test.yaml")


def drawn(closeup: Closeup) -> dict[str, Any]:
    return pages._figures(closeup)


# ---- figures


def test_plotly_takes_every_figure_and_both_grounds(seen: Closeup) -> None:
    """plotly's own validators refuse a key or value that its script does not know."""
    comparison = compare([system_of(generate_only(replicas=n)) for n in (1, 2)], Options(3, processes=1))
    single = figures.latency_cdf(seen.latency, path_of(system_of(steady())).slo)
    shown = {**drawn(seen), "differences": figures.differences(comparison), "one path": single}
    assert len(shown) == 9
    for figure in shown.values():
        for dark in (False, True):
            layout = {**figure["layout"], "template": figures.template(dark)}
            graph_objects.Figure({"data": figure["data"], "layout": layout})
        assert figure["data"]


def test_the_sankey_loses_no_joule(seen: Closeup) -> None:
    """What flows into a node flows out of it, and the ends are the accounts."""
    assert seen.study.energy is not None
    (trace,) = figures.ledger_sankey(seen.study.energy.accounts)["data"]
    link, into, out = trace["link"], {}, {}
    for source, target, value in zip(link["source"], link["target"], link["value"], strict=True):
        into[target] = into.get(target, 0.0) + value
        out[source] = out.get(source, 0.0) + value
    for node in into.keys() & out.keys():
        assert into[node] == pytest.approx(out[node], rel=1e-9), trace["node"]["label"][node]
    tst = seen.study.energy.tst_j["full"]["facility"].value
    assert sum(value for node, value in into.items() if node not in out) == pytest.approx(tst, rel=1e-9)
    assert next(label for label in trace["node"]["label"] if label.startswith("facility")).endswith("(100.0%)")
    assert all(0 < y < 1 for y in trace["node"]["y"])


def test_a_latency_curve_passes_through_the_quantiles() -> None:
    seconds = np.random.default_rng(1).exponential(1.0, 5000)
    data = figures.latency_cdf({"e2e": seconds})["data"]
    x, percent = (np.concatenate([trace[key] for trace in data]) for key in ("x", "customdata"))
    for p in (50, 90, 99):
        assert np.interp(p, percent, x) == pytest.approx(np.percentile(seconds, p), rel=0.02)
    solid, dotted = data
    assert (solid["line"]["dash"], dotted["line"]["dash"]) == ("solid", "dot")
    assert (seconds > solid["x"][-1]).sum() == pytest.approx(10, abs=1)
    assert max(dotted["x"]) == pytest.approx(seconds.max(), rel=1e-5)


def test_a_sample_of_a_few_is_all_tail() -> None:
    (only,) = figures.latency_cdf({"e2e": np.array([1.0, 2.0])})["data"]
    assert only["line"]["dash"] == "dot"


def test_welchs_average_of_a_line_is_the_line() -> None:
    """Centred everywhere, at the ends over fewer points: a straight line comes back as it was."""
    line = np.tile(np.arange(300.0), (3, 1))
    figure = figures.warm_up(line, line, 100)
    for trace in figure["data"]:
        assert trace["y"] == pytest.approx(trace["x"])
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [100, 100]


def test_many_replicas_are_drawn_as_one_line() -> None:
    data = generate_only(replicas=8)
    data["workload"]["measure"] = "terminating"
    closeup = close_up(system_of(data), Options(2, processes=1))
    names = {trace["name"] for trace in drawn(closeup)["timelines"]["data"]}
    assert {"all of 8 replicas", "mean of 8 replicas"} <= names
    assert not any(name.startswith("decode/") for name in names)


# ---- what is seen close up


def test_a_close_up_shows_the_study_itself(seen: Closeup) -> None:
    study = seen.study
    assert set(seen.latency) == set(study.latency)
    for metric, sample in seen.latency.items():
        assert float(sample.mean()) == pytest.approx(study.latency[metric].mean_s.value, rel=1e-12)
        assert len(sample) == study.latency[metric].count
    assert study.warm_up is not None
    assert seen.sojourn_s.shape == seen.in_progress.shape == (4, study.warm_up.tasks + study.tasks)
    assert all(len(values) == 4 for values in seen.by_replication.values())
    measured = replicate(Job(system_of(steady()), 0, None)).path  # the seed's own path, of fewer tasks
    assert np.array_equal(seen.sojourn_s[0][:20], (measured.ended_s - measured.arrival_s)[:20])
    assert seen.window.start_s < seen.window.end_s < seen.end_s


# ---- the page


def test_a_page_asks_for_nothing_from_outside(html: str) -> None:
    """Nothing is loaded: no src, no link, no import; addresses inside plotly's script are of its own tools."""
    without_script = re.sub(r'<script type="application/octet-stream".*?</script>', "", html, flags=re.DOTALL)
    assert not re.search(r"https?://|src=|<link|@import|url\(", without_script)
    packed = re.search(r'id="plotly">([^<]*)<', html)
    assert packed is not None
    assert b"plotly.js v" in gzip.decompress(base64.b64decode(packed[1]))[:300]


def test_a_page_says_what_the_study_says(html: str, seen: Closeup) -> None:
    text = unescape(re.sub(r"<[^>]+>", " ", html))
    study = seen.study
    for word in (
        "PASS",
        "FAIL",
        "stable",
        study.bottleneck,
        study.scenario_sha256,
        "max_output_tokens",
        *study.accuracy,
        *limits(),
    ):
        assert word.replace("`", "") in " ".join(text.split()).replace("`", "").replace(" </code> ", ""), word
    (result,) = re.findall(r'id="result">(.*?)</script>', html, re.DOTALL)
    assert json.loads(result) == json.loads(json.dumps(study.as_dict()))
    (figures_json,) = re.findall(r'id="figures">(.*?)</script>', html, re.DOTALL)
    assert set(json.loads(figures_json)["figures"]) == set(drawn(seen))
    for name in drawn(seen):
        assert f'id="{name}"' in html
    anchors = re.findall(r'href="#([^"]+)"', html)
    assert anchors
    assert all(f'id="{anchor}"' in html for anchor in anchors)


def test_what_stands_in_a_scenario_cannot_become_markup(html: str) -> None:
    assert "hsim report &lt;/script&gt; test.yaml" in html
    assert html.count("<script") == html.count("</script>") == 4


def test_an_unstable_system_gets_no_percentile_and_no_joules() -> None:
    data = generate_only(max_num_seqs=1)
    data["workload"] |= {"tasks": 200, "arrivals": {"kind": "poisson", "rate_per_s": 100}}
    data["slo"] = {"ttft": {"max_s": 1, "p": 0.9}}
    system = system_of(data)
    closeup = close_up(system, Options(3, processes=1))
    assert set(drawn(closeup)) == {"anatomy", "timelines", "replications", "warm-up"}
    text = page(closeup, system, "hsim report")
    assert "UNSTABLE" in text
    body = text[: text.index('<script type="application/json" id="result">')]
    for word in ("p99", "TST", 'id="sankey"', 'id="latency"', 'href="#at-joules'):
        assert word not in body
    assert "there is no steady state" in body


@pytest.mark.parametrize(("server", "without"), [("hgx-h100-8", set()), ("mac-m4-max", {"sankey"})])
def test_one_path_and_unknown_watts_have_pages_too(tmp_path: Path, server: str, without: set[str]) -> None:
    (tmp_path / "trace.csv").write_text(
        "arrival_s,input_tokens,output_tokens\n" + "".join(f"{i / 50},100,20\n" for i in range(40))
    )
    data = generate_only()
    data["workload"] = {"arrivals": {"kind": "trace", "file": str(tmp_path / "trace.csv")}}
    data["fleet"]["gpu-tier"]["server"] = server
    closeup = close_up(system_of(data), Options(5, processes=1))
    assert set(drawn(closeup)) == {"anatomy", "latency", "sankey", "timelines"} - without
    powers = [trace["name"] for trace in drawn(closeup)["timelines"]["data"] if trace.get("stackgroup")]
    assert bool(powers) != bool(without), "what is not known is not drawn"
    text = page(closeup, system_of(data), "hsim report")
    assert "terminating runs, 1 replications of 40 tasks" in text
    assert ("<b>energy</b> unavailable: " in text) == bool(without)


def test_an_interrupted_study_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(job: Job) -> Replication:
        if job.number == 2:
            raise KeyboardInterrupt
        return replicate(job)

    monkeypatch.setattr(studies, "replicate", stopping)
    data = steady()
    data["workload"]["measure"] = "terminating"
    closeup = close_up(system_of(data), Options(4, processes=1))
    assert not closeup.study.complete
    assert "<b>INCOMPLETE</b> 2 of 4 replications were finished" in page(closeup, system_of(data), "hsim report")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_every_figure_without_a_network(html: str, seen: Closeup, scheme: str, tmp_path: Path) -> None:
    """Chromium, with every name that is not this machine's pointed at nothing."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium")
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", *dark,
               "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
               f"file://{tmp_path / 'report.html'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert f'data-theme="{scheme}"' in done.stdout
    assert 'data-drawn="yes"' in done.stdout
    for name in drawn(seen):
        place = done.stdout[done.stdout.index(f'id="{name}"') :]
        assert "<svg" in place[: place.index("</figure>")], f"{name} is not drawn"


def test_limits_are_those_of_the_readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each point of its section, whole, and nothing of what follows the section or the list."""
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## What hsim does not model") :]
    assert len(limits()) == len(re.findall(r"^- ", section.partition("\n## ")[0], re.MULTILINE)) > 2
    assert all(point in " ".join(section.split()) for point in limits())
    assert not any("Apache" in point or "\n" in point for point in limits())
    (tmp_path / "README.md").write_text("# hsim\n")
    monkeypatch.setattr(pages, "shipped", lambda name: tmp_path / name)
    with pytest.raises(HsimError, match="has no section 'What hsim does not model'; install hsim anew"):
        limits()


def test_without_plotly_the_remedy_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "find_spec", lambda _: None)
    monkeypatch.setattr(studies, "replicate", lambda _: pytest.fail("it ran"))
    done = CliRunner().invoke(app, ["report", "agents-split", "--out", str(tmp_path / "report.html")])
    assert isinstance(done.exception, HsimError)
    assert str(done.exception) == "plotly is not installed; a report holds its script: pip install plotly"
    assert not list(tmp_path.iterdir())


def test_runs_that_are_not_there_are_not_made_anew_in_silence(tmp_path: Path) -> None:
    words = ["report", "agents-split", "--runs", str(tmp_path / "none"), "--out", str(tmp_path / "page.html")]
    with pytest.raises(
        DescriptionError, match=r"--runs .*none: there is no such folder; name the folder that simulate"
    ):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_page_that_says_how_to_make_it_again(tmp_path: Path) -> None:
    few = ["--set=workload.tasks=20", "--set=workload.measure=terminating", "--replications=2", "--processes=1"]
    texts = []
    for name in ("one", "two"):
        done = CliRunner().invoke(
            app, ["report", "agents-split", *few, "--runs", str(tmp_path), "--out", str(tmp_path / name)]
        )
        assert (done.exit_code, done.stdout) == (0, "")
        assert done.stderr == f"hsim: wrote {tmp_path / name}\n"
        texts.append((tmp_path / name).read_text())
    assert texts[0].replace("one", "two") == texts[1].replace("one", "two"), "the same seed, the same bytes"
    again = f"hsim report agents-split --set=workload.tasks=20 --set=workload.measure=terminating --replications=2 --out={tmp_path / 'one'}"
    assert f"<pre>{again}</pre>" in texts[0]
    assert "Does it pay to put understanding and tools on a CPU server" in texts[0]
