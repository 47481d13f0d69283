"""The figures and the picture of a trace, against processes and texts whose figures are known."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsim.description.scenario import GammaArrivals, OnOffArrivals
from hsim.workload.arrivals import arrival_times
from hsim.workload.traces import Sessions, Trace, read_trace
from hsim.workload.traces.picture import nice_step, page, picture
from hsim.workload.traces.summary import described, nice_above, repeated_tokens, round_time, summary_of

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the measured data are not here")
SVG = "{http://www.w3.org/2000/svg}"


def plain(arrival_s: np.ndarray | None = None, count: int = 1000, **changes: Any) -> Trace:
    count = count if arrival_s is None else len(arrival_s)
    rng = np.random.default_rng(1)
    columns = {"input_tokens": rng.integers(1, 3000, count), "output_tokens": rng.integers(1, 400, count)}
    start = None if arrival_s is None else arrival_s - arrival_s[0]
    return Trace(format="test", arrival_s=start, **(columns | changes))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_burstiness_is_that_of_the_process(burstiness: float) -> None:
    """Over 40 independent traces, whose estimates scatter; the estimator itself is off by order 1/n."""
    arrivals = GammaArrivals(kind="gamma", rate_per_s=5, burstiness=burstiness)
    rates = [summary_of(plain(arrival_times(arrivals, 4000, seed))).rate for seed in range(40)]
    assert all(rate and rate.burstiness and rate.gap_variation for rate in rates)
    for name, theory in (("per_s", 5.0), ("gap_variation", burstiness**-0.5)):
        values = np.array([getattr(rate, name) for rate in rates])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert 4 * error < 0.05 * theory
        assert abs(values.mean() - theory) < 4 * error + 0.01 * theory
    (rate, *_) = rates
    assert rate is not None
    assert rate.burstiness == pytest.approx(rate.gap_variation**-2)


def test_dispersion_tells_pattern_from_chance() -> None:
    poisson = summary_of(plain(arrival_times(GammaArrivals(kind="gamma", rate_per_s=20), 20_000, 3))).rate
    assert poisson is not None
    assert poisson.dispersion == pytest.approx(1, abs=0.8)  # 50 bins: a standard error of 0.2
    on_off = OnOffArrivals(kind="on-off", rate_per_s=20, mean_on_s=50, mean_off_s=50)
    bursts = summary_of(plain(arrival_times(on_off, 20_000, 3))).rate
    assert bursts is not None
    assert bursts.dispersion is not None
    assert bursts.dispersion > 20


@given(st.lists(st.floats(0, 1e5), min_size=2, max_size=200))
def test_everybody_is_counted_in_a_bin(times: list[float]) -> None:
    arrival_s = np.sort(np.array(times))
    rate = summary_of(plain(arrival_s)).rate
    if rate is None:
        assert arrival_s[-1] - arrival_s[0] < 1e-6
        return
    assert rate.counts.sum() == len(times)
    assert len(rate.counts) <= 62
    assert rate.counts[-1] > 0


def test_lengths_correlate_as_they_were_made() -> None:
    rng = np.random.default_rng(3)
    normal = rng.multivariate_normal([6, 4], [[0.25, 0.15], [0.15, 0.25]], 20_000)
    inputs, outputs = np.rint(np.exp(normal)).astype(np.int64).T
    found = summary_of(plain(count=20_000, input_tokens=np.maximum(inputs, 1), output_tokens=np.maximum(outputs, 1)))
    assert found.length_correlation == pytest.approx(0.6, abs=0.02)
    assert summary_of(plain(input_tokens=np.full(1000, 7))).length_correlation is None


def test_sessions_are_counted_by_round_and_by_task() -> None:
    sessions = Sessions(np.array([0, 2, 5]), np.array([0, 30, 0, 10, 20]), np.array([1.0, 9.0, 2.0, 3.0, 9.0]))
    found = summary_of(plain(count=5, input_tokens=np.array([20, 40, 10, 20, 30]), sessions=sessions))
    assert (found.tasks, found.requests) == (2, 5)
    assert found.rounds and found.wait_s
    assert (found.rounds.mean, found.rounds.max) == (2.5, 3)
    assert (found.wait_s.mean, found.wait_s.max) == (2.0, 3.0), "the wait after the last round is none"
    assert found.kept_fraction == 60 / 120


def test_repeated_blocks_are_leading_ones_seen_before() -> None:
    blocks = ((1, 2, 3), (1, 2, 9), (8, 2, 3), (1, 2, 3), (1,))
    trace = plain(count=5, input_tokens=np.array([40, 48, 48, 40, 10]), prefix_blocks=blocks, block_tokens=16)
    assert repeated_tokens(trace).tolist() == [0, 32, 0, 40, 10]
    assert summary_of(trace).repeated_fraction == 82 / 186


@shared
def test_repeated_blocks_are_those_that_the_mooncake_file_counts() -> None:
    file = SHARED / "mooncake_synthetic.csv.gz"
    with gzip.open(file, "rt") as stream:
        counted = [int(row["prefix_hit_tokens_infinite_cache"]) for row in csv.DictReader(stream)]
    assert repeated_tokens(read_trace(file)).tolist() == counted


@given(st.floats(1e-6, 1e7))
def test_round_numbers_are_just_above(value: float) -> None:
    assert value * 0.9998 <= nice_above(value) <= max(3600 + value, 2.5 * value)
    assert value * 0.9998 <= nice_step(value) <= 2.5 * value
    assert re.fullmatch(r"[\d.e-]+ (s|min|h)", round_time(nice_above(value)))


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def panels(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text") if node.get("class") == "title"]


def test_a_picture_shows_what_the_trace_has() -> None:
    lengths = ["Input tokens", "Output tokens", "Output (up)"]
    sessions = Sessions(np.arange(0, 1001, 4), np.zeros(1000, dtype=np.int64), np.zeros(1000))
    agents = plain(count=1000, sessions=sessions)
    timed = plain(np.cumsum(np.ones(500)))
    for trace, expected in ((timed, ["Arrivals", *lengths]), (plain(), lengths), (agents, [*lengths, "Rounds"])):
        titles = panels(picture(trace))
        assert len(titles) == len(expected)
        assert all(title.startswith(start) for title, start in zip(titles, expected, strict=True)), titles
    assert "p50" in panels(picture(plain()))[0]
    assert "p99" not in panels(picture(plain(count=300)))[0], "fewer than ten beyond it"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 10**6), st.floats(0, 1e6)), min_size=1, max_size=40))
def test_any_trace_has_a_picture_that_stays_in_its_frame(rows: list[tuple[int, int, float]]) -> None:
    inputs, outputs, times = (np.array(column) for column in zip(*rows, strict=True))
    svg = picture(plain(np.sort(times), input_tokens=inputs, output_tokens=outputs))
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for node in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(node.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert w >= 0
        assert h >= 0
        assert x + w <= width + 0.1
        assert y + h <= height + 0.1
    assert "nan" not in svg


def test_bars_hold_every_request() -> None:
    """Heights of a histogram, added up in its axis' own unit, are 100 %."""
    tokens = np.array([1] * 10 + [2] * 20 + [7] * 30 + [999] * 40)
    svg = picture(plain(count=100, input_tokens=tokens, output_tokens=tokens))
    (group, *_) = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "bar"]
    heights = [float(bar.attrib["height"]) for bar in group]
    assert len(heights) == 4
    shares = np.array(heights) / sum(heights)
    assert shares.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.01)


def test_a_page_is_self_contained_and_escapes(tmp_path: Path) -> None:
    html = page(plain(notes=("<b>left out</b>",)), "a<script>.csv")
    assert "<script" not in html.replace("a&lt;script", "")
    assert "&lt;b&gt;left out" in html
    assert not re.search(r"(src|href)=|url\(|@import", html)
    for what, much in described(summary_of(plain())):
        assert what in html
        assert much in html
