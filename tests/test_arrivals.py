"""Arrival processes, length distributions and growing context: laws, and theory with error bars."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from hsim.description.quantities import Distribution
from hsim.description.scenario import Arrivals, TaskClass, Workload
from hsim.errors import DescriptionError
from hsim.workload.arrivals import arrival_times
from hsim.workload.histograms import with_histograms_read
from hsim.workload.streams import quantiles, uniforms, whole
from hsim.workload.tasks import draw_tasks

DAY = [1, 1, 1, 0, 0, 0, 2, 4, 6, 8, 9, 9, 8, 9, 9, 8, 7, 6, 5, 4, 3, 2, 2, 1]
PROCESSES = {
    "poisson": {"kind": "poisson", "rate_per_s": 3},
    "uniform": {"kind": "uniform", "rate_per_s": 3},
    "gamma, bursty": {"kind": "gamma", "rate_per_s": 3, "burstiness": 0.25},
    "gamma, regular": {"kind": "gamma", "rate_per_s": 3, "burstiness": 4},
    "weibull": {"kind": "weibull", "rate_per_s": 3, "burstiness": 0.5},
    "on-off": {"kind": "on-off", "rate_per_s": 3, "mean_on_s": 5, "mean_off_s": 15, "off_rate_fraction": 0.1},
    "hourly": {"kind": "hourly", "rate_per_s": 3, "relative_rates": DAY, "burstiness": 0.5},
}
RUNS = 400


def times(arrivals: dict[str, object], count: int, seed: int = 1) -> np.ndarray:
    return arrival_times(TypeAdapter(Arrivals).validate_python(arrivals), count, seed)


def agrees(samples: np.ndarray, theory: float, precision: float = 0.05, sigmas: float = 4) -> None:
    """The mean of independent samples is the theory's, by a test sharp enough to tell `precision`."""
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    assert sigmas * error <= precision * abs(theory), f"too noisy to be a test: {samples.mean()} ± {error}"
    assert abs(samples.mean() - theory) <= sigmas * error, f"{samples.mean()} ± {error}, theory says {theory}"


@pytest.mark.parametrize("name", PROCESSES)
@given(count=st.integers(1, 400), more=st.integers(1, 2000), seed=st.integers(0, 2**32))
def test_more_tasks_move_no_earlier_arrival(name: str, count: int, more: int, seed: int) -> None:
    few, many = times(PROCESSES[name], count, seed), times(PROCESSES[name], count + more, seed)
    assert few.shape == (count,)
    assert np.array_equal(few, many[:count])
    assert few[0] >= 0
    assert (np.diff(many) >= 0).all()


@pytest.mark.parametrize("name", PROCESSES)
def test_twice_the_rate_is_the_same_pattern(name: str) -> None:
    """On-off and hourly rates change by the clock, so there only the integral of the rate keeps its pattern."""
    once, twice = times(PROCESSES[name], 500), times(PROCESSES[name] | {"rate_per_s": 6}, 500)
    if name in ("on-off", "hourly"):
        assert (twice <= once).all()
    else:
        assert twice == pytest.approx(once / 2, rel=1e-12)


def test_seeds_differ() -> None:
    for name, arrivals in PROCESSES.items():
        assert np.array_equal(times(arrivals, 50, 1), times(arrivals, 50, 2)) == (name == "uniform")


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("poisson", stats.expon(scale=1 / 3)),
        ("gamma, bursty", stats.gamma(0.25, scale=1 / (3 * 0.25))),
        ("gamma, regular", stats.gamma(4, scale=1 / (3 * 4))),
        ("weibull", stats.weibull_min(0.5, scale=1 / (3 * math.gamma(3)))),
    ],
)
def test_gaps_follow_their_law(name: str, law: stats.rv_frozen) -> None:
    """vLLM draws gaps as gamma(shape=burstiness, scale=1/(rate burstiness)): the same law, from scipy."""
    assert law.mean() == pytest.approx(1 / 3)
    gaps = np.diff(times(PROCESSES[name], 60_000, seed=7), prepend=0.0)
    agrees(gaps, 1 / 3)
    assert stats.kstest(gaps, law.cdf).pvalue > 1e-4
    assert stats.kstest(gaps * 1.15, law.cdf).pvalue < 1e-4, "the test would see 15 %"


def test_burstiness_1_is_poisson_to_the_bit() -> None:
    poisson = times(PROCESSES["poisson"], 300)
    assert np.array_equal(times({"kind": "gamma", "rate_per_s": 3, "burstiness": 1}, 300), poisson)
    assert times({"kind": "weibull", "rate_per_s": 3, "burstiness": 1}, 300) == pytest.approx(poisson, rel=1e-12)


def test_uniform_arrivals_are_a_clock() -> None:
    assert times({"kind": "uniform", "rate_per_s": 4}, 4).tolist() == [0.25, 0.5, 0.75, 1.0]


def counts_until(arrivals: dict[str, object], until_s: float, count: int) -> np.ndarray:
    """Arrivals before an instant, in each of many seeds."""
    drawn = [times(arrivals, count, seed) for seed in range(RUNS)]
    assert all(t[-1] > until_s for t in drawn), "draw more"
    return np.array([np.searchsorted(t, until_s) for t in drawn], dtype=float)


def test_on_off_arrivals_are_stationary_and_overdispersed() -> None:
    """A Markov-modulated Poisson process: mean count r t, and its variance as an integral of the rate's covariance."""
    until_s, on_s, off_s, fraction, mean = 40.0, 5.0, 15.0, 0.1, 3.0
    counts = counts_until(PROCESSES["on-off"], until_s, 1200)
    agrees(counts, mean * until_s, precision=0.15)
    p_on = on_s / (on_s + off_s)
    on_rate = mean / (p_on + fraction * (1 - p_on))
    relax = 1 / on_s + 1 / off_s
    covariance = (on_rate * (1 - fraction)) ** 2 * p_on * (1 - p_on)
    variance = mean * until_s + 2 * covariance * (until_s / relax - (1 - math.exp(-relax * until_s)) / relax**2)
    agrees((counts - mean * until_s) ** 2, variance, precision=0.6)
    assert variance > 5 * mean * until_s, "the on-off pattern must show"


def test_nobody_arrives_while_off() -> None:
    arrivals = {"kind": "on-off", "rate_per_s": 50, "mean_on_s": 1, "mean_off_s": 9}
    gaps = np.diff(times(arrivals, 200_000))
    pauses = gaps[gaps > 0.5]  # while on, 500 tasks a second arrive
    agrees(pauses - 0.5, 9.0, precision=0.25)  # what is left of an exponential pause is exponential again


def test_hourly_arrivals_follow_the_profile() -> None:
    arrivals = {"kind": "hourly", "rate_per_s": 0.05, "relative_rates": DAY}
    hours = [np.floor(times(arrivals, 12_000, seed) / 3600).astype(int) for seed in range(40)]
    assert all(h[-1] >= 48 for h in hours), "two days and more"
    counts = np.array([np.bincount(h[h < 48], minlength=48) for h in hours])
    for hour in range(48):
        expected = 0.05 * 3600 * DAY[hour % 24] / np.mean(DAY)
        if expected:
            agrees(counts[:, hour], expected, precision=0.5)
        else:
            assert not counts[:, hour].any()
    agrees(counts.sum(axis=1), 2 * 24 * 3600 * 0.05)


def test_bursty_hours_are_burstier() -> None:
    def variance_over_mean(burstiness: float) -> float:
        arrivals = {"kind": "hourly", "rate_per_s": 0.1, "relative_rates": [1] * 24, "burstiness": burstiness}
        counts = np.array([np.searchsorted(times(arrivals, 1500, seed), 7200.0) for seed in range(RUNS)])
        return float(counts.var() / counts.mean())

    assert variance_over_mean(0.25) > 2 * variance_over_mean(1) > 4 * variance_over_mean(4)


@pytest.mark.parametrize(
    ("arrivals", "problem"),
    [
        ({"kind": "gamma", "rate_per_s": 1, "burstiness": 0}, "greater than 0"),
        ({"kind": "hourly", "rate_per_s": 1, "relative_rates": [1] * 23}, "at least 24"),
        ({"kind": "hourly", "rate_per_s": 1, "relative_rates": [0] * 24}, "all 0"),
        ({"kind": "hourly", "rate_per_s": 1, "relative_rates": [-1] * 24}, "greater than or equal to 0"),
        ({"kind": "on-off", "rate_per_s": 1, "mean_on_s": 1, "mean_off_s": 0}, "greater than 0"),
        ({"kind": "on-off", "rate_per_s": 1, "mean_on_s": 1, "mean_off_s": 1, "off_rate_fraction": 1}, "less than 1"),
    ],
)
def test_arrivals_that_cannot_be_are_refused(arrivals: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        times(arrivals, 3)


# Lengths


def drawn(distribution: object, count: int = 40_000, seed: int = 5) -> np.ndarray:
    return quantiles(TypeAdapter(Distribution).validate_python(distribution), uniforms(seed, "test", count))


LENGTHS = {
    "uniform": ({"kind": "uniform", "low": 100, "high": 500}, stats.uniform(100, 400).cdf),
    "exponential": ({"kind": "exponential", "mean": 300}, stats.expon(scale=300).cdf),
    "histogram": (
        {"kind": "histogram", "edges": [0, 10, 20, 100], "counts": [1, 0, 3]},
        lambda x: np.interp(x, [0, 10, 20, 100], [0, 0.25, 0.25, 1]),
    ),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_follow_their_law(name: str) -> None:
    distribution, cdf = LENGTHS[name]
    assert stats.kstest(drawn(distribution), cdf).pvalue > 1e-4
    assert stats.kstest(drawn(distribution) * 1.05, cdf).pvalue < 1e-4, "the test would see 5 %"


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_rise_with_their_probability(name: str) -> None:
    """Inversion: the same task stays the longer one whatever the distribution, as common random numbers want it."""
    u = uniforms(3, "test", 500)
    values = quantiles(TypeAdapter(Distribution).validate_python(LENGTHS[name][0]), u)
    assert (np.diff(values[np.argsort(u)]) >= 0).all()


def test_a_clipped_draw_becomes_the_bound() -> None:
    free = drawn({"kind": "exponential", "mean": 300})
    held = drawn({"kind": "exponential", "mean": 300, "at_least": 100, "at_most": 600})
    assert (free < 100).any()
    assert (free > 600).any()
    assert np.array_equal(held, np.clip(free, 100, 600))
    assert np.array_equal(drawn({"kind": "geometric", "mean": 3, "at_most": 4}), np.minimum(drawn({"kind": "geometric", "mean": 3}), 4))  # fmt: skip


@pytest.mark.parametrize(
    ("distribution", "problem"),
    [
        ({"kind": "uniform", "low": 5, "high": 4}, "high 4.0 is below low 5.0"),
        ({"kind": "exponential", "mean": 5, "at_least": 9, "at_most": 8}, "at_least 9.0 is above at_most 8.0"),
        ({"kind": "histogram"}, "give edges and counts, or a file"),
        ({"kind": "histogram", "file": "a.csv", "edges": [1, 2], "counts": [1]}, "give edges and counts, or a file"),
        ({"kind": "histogram", "edges": [1, 2], "counts": [1, 1]}, "2 edges and 2 counts"),
        ({"kind": "histogram", "edges": [2, 1], "counts": [1]}, "edges that fall"),
        ({"kind": "histogram", "edges": [1, 2], "counts": [0]}, "no count above 0"),
        ({"kind": "histogram", "edges": [1, 2], "counts": [1], "where": {"a": "b"}}, "there is none"),
    ],
)
def test_distributions_that_cannot_be_are_refused(distribution: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        drawn(distribution)


HISTOGRAM = """task,model,bin_lo_tokens,bin_hi_tokens,count
gpqa,a,1000.0,1500.0,30
gpqa,a,1500.0,2000.5,10
gpqa,b,10,20,1
chat,a,30,40,1
chat,a,50,60,1
chat,a,20,30,2
"""


def histogram_in(
    folder: Path, text: str, where: dict[str, str], name: str = "hist.csv"
) -> tuple[tuple[float, ...], ...]:
    data = text.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    tokens = {"kind": "histogram", "file": name, "where": where}
    read = with_histograms_read(TaskClass.model_validate({"input_tokens": 5, "output_tokens": tokens}), folder)
    assert read.output_tokens.file is None  # type: ignore[union-attr]
    return read.output_tokens.edges, read.output_tokens.counts  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["hist.csv", "hist.csv.gz"])
def test_a_histogram_is_read_from_its_file(tmp_path: Path, name: str) -> None:
    expected = ((1000.0, 1500.0, 2000.5), (30.0, 10.0))
    assert histogram_in(tmp_path, HISTOGRAM, {"task": "gpqa", "model": "a"}, name) == expected
    gap = ((20.0, 30.0, 40.0, 50.0, 60.0), (2.0, 1.0, 0.0, 1.0))
    assert histogram_in(tmp_path, HISTOGRAM, {"task": "chat"}, name) == gap


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        (HISTOGRAM, {"task": "gpqa", "model": "c"}, "hist.csv: has no row with task: gpqa, model: c"),
        (HISTOGRAM, {"tsk": "gpqa"}, "hist.csv:1: has no column 'tsk'; did you mean 'task'"),
        (HISTOGRAM, {"model": "a"}, r"hist.csv: the bin 50 to 60 overlaps|hist.csv: has"),
        (HISTOGRAM + "gpqa,a,1600,1700,5\n", {"task": "gpqa"}, "the bin 1600 to 1700 overlaps .* pick the rows"),
        (HISTOGRAM + "x,a,1600,oops,5\n", {"task": "x"}, "hist.csv:8: cannot read the bin 'x,a,1600,oops,5'"),
        (HISTOGRAM + "x,a,1600,nan,5\n", {"task": "x"}, "hist.csv:8: cannot read the bin"),
        (HISTOGRAM + "x,a,1,2,-5\n", {"task": "x"}, "hist.csv:8: cannot read the bin"),
        (HISTOGRAM + "x,a,1,2\n", {"task": "x"}, "hist.csv:8: cannot read the bin"),
        (HISTOGRAM + "x,a,1,2,0\n", {"task": "x"}, "every count is 0"),
        ("", {}, "hist.csv:1: has no column 'bin_lo_tokens'"),
    ],
)
def test_a_broken_histogram_is_explained(tmp_path: Path, text: str, where: dict[str, str], problem: str) -> None:
    if where == {"model": "a"}:  # 20 to 60 of chat, then 1000 to 2000 of gpqa: no overlap, so it reads as one
        assert sum(histogram_in(tmp_path, text, where)[1]) == 44
        return
    with pytest.raises(DescriptionError, match=problem):
        histogram_in(tmp_path, text, where)


def test_a_missing_or_broken_histogram_file_is_named(tmp_path: Path) -> None:
    kind = TaskClass.model_validate({"output_tokens": {"kind": "histogram", "file": "no.csv"}})
    with pytest.raises(DescriptionError, match=r"no.csv: there is no such histogram"):
        with_histograms_read(kind, tmp_path)
    (tmp_path / "no.csv").write_bytes(gzip.compress(HISTOGRAM.encode())[:-12])
    with pytest.raises(DescriptionError, match=r"no.csv: cannot be read \(.*; is it complete"):
        with_histograms_read(kind, tmp_path)


# Context that grows


def agents(count: int = 200, **changes: object) -> Workload:
    kind = {
        "rounds": {"kind": "geometric", "mean": 3, "at_most": 8},
        "input_tokens": {"kind": "exponential", "mean": 300},
        "output_tokens": {"kind": "exponential", "mean": 100},
        "max_output_tokens": 150,
    }
    return Workload.model_validate(
        {"arrivals": {"kind": "poisson", "rate_per_s": 1}, "tasks": count, "classes": {"agent": kind | changes}}
    )


def test_grown_context_is_everything_before(tmp_path: Path) -> None:
    declared = draw_tasks(agents(), {}, 11, tmp_path).tasks
    grown = draw_tasks(agents(context="grows"), {}, 11, tmp_path).tasks
    assert max(len(task.rounds) for task in grown) >= 4
    assert any(visit.output_tokens == 150 for task in grown for visit in task.rounds), "cut answers are what is kept"
    for before, after in zip(declared, grown, strict=True):
        assert [visit.output_tokens for visit in before.rounds] == [visit.output_tokens for visit in after.rounds]
        said = 0
        for plain, visit in zip(before.rounds, after.rounds, strict=True):
            assert (plain.shared_tokens, visit.shared_tokens) == (0, said)
            assert visit.input_tokens == said + plain.input_tokens
            said = visit.input_tokens + visit.output_tokens


@pytest.mark.parametrize("changes", [{}, {"context": "grows"}])
def test_more_tasks_change_no_earlier_task(tmp_path: Path, changes: dict[str, object]) -> None:
    few = draw_tasks(agents(50, **changes), {}, 3, tmp_path).tasks
    assert draw_tasks(agents(500, **changes), {}, 3, tmp_path).tasks[:50] == few


def test_rounded_lengths_keep_their_mean() -> None:
    tokens: Callable[[object], np.ndarray] = lambda d: whole(drawn(d), 1).astype(float)  # noqa: E731
    agrees(tokens({"kind": "uniform", "low": 1, "high": 9}), 5.0)
    agrees(tokens({"kind": "histogram", "edges": [100, 200, 400], "counts": [1, 1]}), (150 + 300) / 2)


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the measured data are not here")
def test_ml_energy_histograms_are_read_as_published() -> None:
    tokens = {
        "kind": "histogram",
        "file": "mlenergy_output_length_hist.csv.gz",
        "where": {"task": "gpqa", "model": "Qwen/Qwen3-14B"},
    }
    kind = with_histograms_read(TaskClass.model_validate({"output_tokens": tokens}), SHARED)
    assert kind.output_tokens is not None
    lengths = quantiles(kind.output_tokens, uniforms(0, "test", 20_000))
    edges, counts = np.array(kind.output_tokens.edges), np.array(kind.output_tokens.counts)  # type: ignore[union-attr]
    assert len(counts) == 50
    assert edges[0] == 1069
    agrees(lengths, float((counts * (edges[1:] + edges[:-1])).sum() / 2 / counts.sum()))
