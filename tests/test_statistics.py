"""Estimates and intervals: exact where they can be, against queues with known answers where they cannot."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from queues import ACCOUNTS, Queue, replications
from scipy import stats

from hsim.metrics import statistics
from hsim.metrics.measured import Cohort
from hsim.metrics.statistics import Estimate
from hsim.metrics.study import QUANTILES, estimates_of, stability_of, warm_up_of

REPLICATIONS = 10


# ---- distributions


@given(st.floats(1e-4, 1 - 1e-4), st.integers(1, 500))
def test_t_quantiles_are_scipys(p: float, freedom: int) -> None:
    assert statistics.t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-8, abs=1e-8)


@given(st.floats(1e-4, 1 - 1e-4), st.floats(0.3, 3e4), st.floats(0.3, 3e4))
def test_beta_quantiles_are_scipys(p: float, a: float, b: float) -> None:
    found = statistics.beta_quantile(p, a, b)
    assert stats.beta.cdf(found, a, b) == pytest.approx(p, rel=1e-7)


@given(st.integers(1, 400), st.data())
def test_binomial_interval_is_clopper_and_pearsons(count: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, count))
    exact = stats.binomtest(successes, count).proportion_ci(0.95, method="exact")
    assert statistics.binomial_interval(successes, count) == pytest.approx((exact.low, exact.high), abs=1e-8)


# ---- estimates


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(1).normal(5, 2, 10)
    low, high = statistics.mean(values).interval()
    exact = stats.t.interval(0.95, 9, loc=values.mean(), scale=stats.sem(values))
    assert (low, high) == pytest.approx(exact, rel=1e-9)


@given(st.lists(st.floats(1, 100), min_size=2, max_size=20), st.floats(0.1, 10))
def test_a_ratio_with_a_constant_below_is_a_mean(above: list[float], below: float) -> None:
    found = statistics.ratio(above, [below] * len(above))
    mean = statistics.mean(np.array(above) / below)
    assert found.value == pytest.approx(mean.value)
    assert found.pulls == pytest.approx(mean.pulls, abs=1e-9 * max(above) / below)


def test_a_ratio_is_known_exactly_where_above_and_below_rise_together() -> None:
    below = np.array([3.0, 5.0, 9.0])
    found = statistics.ratio(2.5 * below, below)
    assert (found.value, found.half_width()) == (2.5, pytest.approx(0, abs=1e-12))


def test_one_replication_has_no_interval() -> None:
    assert math.isnan(statistics.mean([3.0]).half_width())
    assert all(math.isnan(end) for end in statistics.proportion([3], [4]).interval())


def test_common_noise_cancels_in_a_difference() -> None:
    noise = np.random.default_rng(2).normal(0, 10, 10)
    own = np.random.default_rng(3).normal(0, 0.1, 10)
    first, other = statistics.mean(20 + noise), statistics.mean(21 + noise + own)
    assert other.minus(first).half_width() < 0.02 * other.half_width()
    assert other.minus(first).value == pytest.approx(1, abs=0.1)


@given(st.integers(10, 300), st.integers(0, 2**32 - 1))
def test_mser_5_is_the_cut_of_its_definition(points: int, seed: int) -> None:
    """Against the plain definition: the smallest sum of squares over the square of the number of batches left."""
    series = np.random.default_rng(seed).normal(0, 1, points) + 3 * np.exp(-np.arange(points) / 20)
    means = [series[5 * j : 5 * j + 5].mean() for j in range(points // 5)]
    spread = [
        float(np.sum((np.array(means[d:]) - np.mean(means[d:])) ** 2)) / (len(means) - d) ** 2
        for d in range(len(means) // 2 + 1)
    ]
    assert spread[statistics.mser_5(series) // 5] == pytest.approx(min(spread), rel=1e-9, abs=1e-12)
    assert statistics.mser_5(series) % 5 == 0


def test_mser_5_cuts_a_beginning_that_is_not_like_the_rest() -> None:
    series = np.random.default_rng(4).normal(10, 1, 1000)
    series[:120] -= 8
    assert 120 <= statistics.mser_5(series) <= 200


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_memory_of_a_series_whose_memory_is_known(correlation: float) -> None:
    """AR(1): so many points in a row are worth one as (1 + a) / (1 - a). Many replications, so that it is nearly exact."""
    random = np.random.default_rng(5)
    samples = np.empty((400, 3000))
    samples[:, 0] = random.normal(0, 1, 400)
    for i in range(1, 3000):
        samples[:, i] = correlation * samples[:, i - 1] + math.sqrt(1 - correlation**2) * random.normal(0, 1, 400)
    # With 399 degrees of freedom its own standard error is 7 %.
    expected = (1 + correlation) / (1 - correlation)
    assert statistics.memory(list(samples)) == pytest.approx(expected, rel=0.25)
    assert statistics.cautious_memory(list(samples)) == pytest.approx(1.06 * statistics.memory(list(samples)), rel=0.01)


def test_a_cautious_memory_is_too_short_in_a_fifth_of_the_studies() -> None:
    """Five replications of points in clumps of twenty: the memory is twenty."""
    random = np.random.default_rng(8)
    short = 0
    for _ in range(1000):
        samples = [np.repeat(random.normal(0, 1, 50), 20) for _ in range(5)]
        short += statistics.cautious_memory(samples) < 20
    assert 150 <= short <= 250


def test_a_tail_of_fewer_than_ten_independent_points_is_not_estimable() -> None:
    random = np.random.default_rng(6)
    independent = [random.normal(0, 1, 200) for _ in range(10)]
    assert statistics.quantile(independent, 0.95) is not None
    assert statistics.quantile(independent, 0.999) is None
    in_clumps = [np.repeat(random.normal(0, 1, 4), 50) for _ in range(10)]
    assert statistics.quantile(in_clumps, 0.5) is not None
    assert statistics.quantile(in_clumps, 0.95) is None


def test_no_misses_prove_no_more_than_so_many_points_can() -> None:
    """The rule of three, two-sided: of n points none missed, so the miss rate is below 3.7 / n."""
    few, many = statistics.proportion([20] * 5, [20] * 5), statistics.proportion([4000] * 5, [4000] * 5)
    assert few.interval() == pytest.approx((1 - 0.0362, 1.0), abs=1e-3)
    assert many.interval()[0] > 0.9998
    assert statistics.proportion([4000] * 5, [4000] * 5, memory=100.0).interval()[0] < 0.985


# ---- queues with known answers


COHORT = Cohort(500, 2000)


def test_queues_of_the_tests_are_what_they_claim() -> None:
    """A wrong oracle would test nothing: long runs against the formulas, to four standard errors."""
    queue = Queue(0.6)
    paths = [r.path for r in replications(queue, Cohort(2000, 20000), 40, 1, queue.quantile_s(0.9))]
    found = estimates_of(paths, ACCOUNTS)
    truth = {"e2e.mean_s": queue.mean_s, "tst_j": queue.joules_per_task, "tasks_per_s": 0.6, "slo.e2e": 0.9}
    for name, value in truth.items():
        error = float(np.sqrt(np.sum(found[name].pulls ** 2) / (40 * 39)))
        assert error < 0.02 * value, f"{name} is too noisy to test"
        assert abs(found[name].value - value) < 4 * error, name


@pytest.mark.parametrize(("load", "verdict"), [(0.5, "stable"), (0.8, "stable"), (1.24, "unstable")])
def test_stability_of_a_queue(load: float, verdict: str) -> None:
    found = replications(Queue(load), COHORT, REPLICATIONS, 2, 1.0)
    assert stability_of(found).verdict == verdict


def test_a_load_beyond_its_bound_is_unstable_unless_tasks_are_lost() -> None:
    found = [
        replace(r, offered={"pool": 1.05 + 0.01 * (r.number % 3)}) for r in replications(Queue(0.5), COHORT, 5, 3, 1.0)
    ]
    assert stability_of(found).verdict == "unstable"
    shedding = [replace(r, path=replace(r.path, shed=3)) for r in found]
    assert stability_of(shedding).verdict == "stable"
    near = [replace(r, offered={"pool": 0.98 + 0.04 * (r.number % 2)}) for r in found]
    assert stability_of(near).verdict == "stable"


def test_too_few_tasks_to_see_a_drift_are_undecided() -> None:
    found = stability_of(replications(Queue(0.5), Cohort(10, 20), 3, 4, 1.0))
    assert (found.verdict, found.reason) == (
        "undecided",
        "too few tasks to see whether work in progress grows; simulate more",
    )


def test_a_slow_beginning_asks_for_a_longer_warm_up() -> None:
    found = replications(Queue(0.5), COHORT, REPLICATIONS, 5, 1.0)
    paths = [r.path for r in found]
    assert warm_up_of(paths).asked_tasks == COHORT.skipped
    slow = [replace(path, ended_s=path.ended_s + 30 * (np.arange(len(path.ended_s)) < 900)) for path in paths]
    assert 900 <= warm_up_of(slow).asked_tasks <= 1100


def test_a_queue_that_forgets_slowly_asks_for_a_longer_warm_up() -> None:
    long = [
        warm_up_of([r.path for r in replications(Queue(0.95), COHORT, 10, seed, 1.0)]).asked_tasks for seed in range(5)
    ]
    assert min(long) > 2 * COHORT.skipped


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """2,000 studies of ten replications of an M/M/1 queue at half load: 93 to 97 % of intervals hold the truth.

    The standard error of a coverage of 95 % over 2,000 is 0.5 %.
    """
    queue, studies = Queue(0.5), 2000
    truth = {
        "e2e.mean_s": queue.mean_s, "tst_j": queue.joules_per_task, "tasks_per_s": 0.5, "mean_w": 200.0,
        **{f"e2e.{name}": queue.quantile_s(p) for name, p in QUANTILES.items()},
    }  # fmt: skip
    covered: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for seed in range(studies // 50):
        found = replications(queue, Cohort(1000, 4000), 50 * REPLICATIONS, seed, 1.0)
        for first in range(0, len(found), REPLICATIONS):
            estimates = estimates_of([r.path for r in found[first : first + REPLICATIONS]], ACCOUNTS)
            for name, value in truth.items():
                if name in estimates:
                    low, high = estimates[name].interval()
                    shown[name] += 1
                    covered[name] += low <= value <= high
    coverage = {name: covered[name] / shown[name] for name in truth}
    assert min(shown.values()) >= 0.95 * studies, shown  # the others refused a p99 of too few independent points
    assert all(0.93 <= part <= 0.97 for part in coverage.values()), coverage


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.5, 0.8, 0.9])
def test_a_queue_just_on_its_limit_hardly_ever_passes_or_fails(load: float) -> None:
    """The true fraction within is exactly what is wanted: no wrong verdict in more than 5 % of the studies."""
    queue, studies, wanted = Queue(load), 600, 0.99
    verdicts: Counter[str] = Counter()
    for seed in range(studies // 50):
        found = replications(queue, Cohort(1000, 2000), 50 * REPLICATIONS, seed, queue.quantile_s(wanted))
        for first in range(0, len(found), REPLICATIONS):
            low, high = estimates_of([r.path for r in found[first : first + REPLICATIONS]], ACCOUNTS)[
                "slo.e2e"
            ].interval()
            verdicts["PASS" if low >= wanted else "FAIL" if high < wanted else "UNDECIDED"] += 1
    assert verdicts["PASS"] <= 0.05 * studies, verdicts
    assert verdicts["FAIL"] <= 0.05 * studies, verdicts


@pytest.mark.slow
def test_stable_queues_are_hardly_ever_called_unstable_and_unstable_ones_are() -> None:
    alarms = dict.fromkeys((0.5, 0.8, 0.9, 1.05, 1.24), 0)
    for load in alarms:
        found = replications(Queue(load), Cohort(500, 4000), 200 * REPLICATIONS, 7, 1.0)
        for first in range(0, len(found), REPLICATIONS):
            alarms[load] += stability_of(found[first : first + REPLICATIONS]).verdict == "unstable"
    assert max(alarms[0.5], alarms[0.8], alarms[0.9]) <= 10, alarms
    assert alarms[1.05] >= 150, alarms
    assert alarms[1.24] == 200, alarms


def test_an_estimate_with_bounds_reports_those() -> None:
    assert Estimate(0.9, np.zeros(3), (0.8, 0.95)).interval() == (0.8, 0.95)
