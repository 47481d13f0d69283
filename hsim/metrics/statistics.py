"""Estimates with intervals from independent replications, warm-up, drift: plain statistics that know nothing of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
MIN_TAIL_POINTS = 10
MSER_BATCH = 5
MEMORY_RISK = 0.2
QUANTILES_KEPT = 10_000


@dataclass(frozen=True)
class Estimate:
    """A point estimate, and how far each replication's own value pulls it: all that an interval needs.

    The variance of the point is sum(pulls^2) / (R (R - 1)); shape (replications,). `bounds` is a better interval than
    the t interval that follows from it, where there is one.
    """

    value: float
    pulls: Floats
    bounds: tuple[float, float] | None = None

    def half_width(self, confidence: float = CONFIDENCE) -> float:
        """Half the width of the t interval; nan from a single replication, which has none."""
        count = len(self.pulls)
        if count < 2:
            return math.nan
        error = math.sqrt(float(np.sum(self.pulls**2)) / (count * (count - 1)))
        return t_quantile(0.5 + confidence / 2, count - 1) * error

    def interval(self) -> tuple[float, float]:
        """The 95 % interval; nan from a single replication."""
        half = self.half_width()
        return self.bounds or (self.value - half, self.value + half)

    def minus(self, other: Estimate) -> Estimate:
        """The difference from other, replication by replication: common random numbers cancel."""
        return Estimate(self.value - other.value, self.pulls - other.pulls)


def mean(values: Sequence[float] | Floats) -> Estimate:
    """The mean of one value per replication."""
    each = np.asarray(values, dtype=np.float64)
    centre = float(each.mean())
    return Estimate(centre, each - centre)


def ratio(above: Sequence[float] | Floats, below: Sequence[float] | Floats) -> Estimate:
    """The ratio of two means, such as joules over tasks, by the delta method: not the mean of ratios, which is biased."""
    over, under = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    value = float(over.sum() / under.sum())
    return Estimate(value, (over - value * under) / float(under.mean()))


def memory(samples: Sequence[Floats]) -> float:
    """How many points in a row tell no more than one independent one: 1 where they are independent.

    The variance of replications' means over what it would be if points were independent, known as the design effect;
    1 from a single replication, which cannot tell.
    """
    counts = np.array([len(sample) for sample in samples])
    if len(samples) < 2 or counts.min() < 2:
        return 1.0
    within = float(np.concatenate(samples).var())
    between = float(np.array([sample.mean() for sample in samples]).var(ddof=1))
    return max(1.0, float(counts.mean()) * between / within) if within else 1.0


def cautious_memory(samples: Sequence[Floats]) -> float:
    """The upper end of a one-sided 80 % interval of memory: taken too short it would promise what does not hold."""
    freedom = len(samples) - 1
    if freedom < 1:
        return 1.0
    # The lower quantile of chi-square by Wilson and Hilferty, PNAS 17 (1931) 684.
    spread = math.sqrt(2 / (9 * freedom))
    lower = freedom * max(0.1, 1 - spread**2 + NormalDist().inv_cdf(MEMORY_RISK) * spread) ** 3
    return max(1.0, memory(samples) * freedom / lower)


def quantile(samples: Sequence[Floats], p: float) -> Estimate | None:
    """A quantile of all samples together.

    None, which is not estimable, with fewer than ten independent points beyond it: points beyond come in clumps. Pulls are by sectioning (Asmussen
    and Glynn, Stochastic Simulation, III.5a); the interval is Woodruff's (JASA 47 (1952) 635): the quantiles at the
    ends of the interval of the fraction below.
    """
    pooled = np.sort(np.concatenate(samples))
    if not all(len(sample) for sample in samples):
        return None
    value = float(np.quantile(pooled, p))
    below = [(sample <= value).astype(np.float64) for sample in samples]
    if len(pooled) / cautious_memory(below) * min(p, 1 - p) < MIN_TAIL_POINTS:
        return None
    pulls = np.array([np.quantile(sample, p) for sample in samples]) - value
    if len(samples) < 2:
        return Estimate(value, pulls)
    effective = effective_points([int(b.sum()) for b in below], [len(sample) for sample in samples])
    low, high = binomial_interval(p * effective, effective)
    return Estimate(value, pulls, (float(np.quantile(pooled, low)), float(np.quantile(pooled, high))))


def proportion(
    within: Sequence[int], counts: Sequence[int], memory: float = 1.0, confidence: float = CONFIDENCE
) -> Estimate:
    """A fraction over replications, with the exact binomial interval of so many independent points as it is worth.

    Korn and Graubard, Survey Methodology 24 (1998) 193. The t interval is too narrow where misses are few and come
    together: on M/M/1 queues it called a third of the fleets good that were just not.
    """
    attained = ratio(within, counts)
    if len(counts) < 2:
        return attained
    effective = effective_points(within, counts, memory, confidence)
    bounds = binomial_interval(attained.value * effective, effective, confidence)
    return Estimate(attained.value, attained.pulls, bounds)


def effective_points(
    within: Sequence[int], counts: Sequence[int], memory: float = 1.0, confidence: float = CONFIDENCE
) -> float:
    """How many independent points would know a fraction as well as these replications do.

    No more than a memory of their sample allows: few misses say little about how they come together. Reduced for the
    few degrees of freedom of a variance between replications.
    """
    attained, total = ratio(within, counts), sum(counts)
    variance = float(np.sum(attained.pulls**2)) / (len(counts) * (len(counts) - 1))
    p = attained.value
    by_variance = p * (1 - p) / variance if variance > 0 else math.inf
    level = 0.5 + confidence / 2
    freedom = (t_quantile(level, max(1, total - 1)) / t_quantile(level, len(counts) - 1)) ** 2
    return max(1.0, min(by_variance * freedom, total / memory))


def binomial_interval(successes: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper and Pearson's interval of a binomial proportion; counts need not be whole."""
    tail = (1 - confidence) / 2
    low = beta_quantile(tail, successes, count - successes + 1) if successes > 0 else 0.0
    high = beta_quantile(1 - tail, successes + 1, count - successes) if successes < count else 1.0
    return low, high


def mser_5(series: Floats) -> int:
    """How many leading points of a series are warm-up: a multiple of five, at most half of them.

    The cut that makes the standard error of the mean of what is left smallest, on means of five. Source: White,
    Simulation 69 (1997) 323; White, Cobb and Spratt, WSC 2000.
    """
    batches = len(series) // MSER_BATCH
    if batches < 2:
        return 0
    means = series[: batches * MSER_BATCH].reshape(batches, MSER_BATCH).mean(axis=1)
    means = means - means.mean()  # so that the sums of squares below do not cancel
    left = np.arange(batches, 0, -1)
    tail_sum = np.cumsum(means[::-1])[::-1]
    tail_squares = np.cumsum(means[::-1] ** 2)[::-1]
    spread = (tail_squares - tail_sum**2 / left) / left**2
    return MSER_BATCH * int(np.argmin(spread[: batches // 2 + 1]))


def slope(times: Floats, values: Floats) -> float:
    """The least-squares slope of values over times."""
    centred = times - times.mean()
    return float(np.sum(centred * values) / np.sum(centred**2))


@lru_cache(QUANTILES_KEPT)  # a planner asks for the same ones, fleet after fleet
def t_quantile(p: float, freedom: float) -> float:
    """The p-quantile of Student's t."""
    if p < 0.5:
        return -t_quantile(1 - p, freedom)
    y = beta_quantile(2 * p - 1, 0.5, freedom / 2)
    return math.sqrt(freedom * y / (1 - y)) if y < 1 else math.inf


def beta_quantile(p: float, a: float, b: float) -> float:
    """The p-quantile of the beta distribution, by bisection: scipy.stats takes a second to import."""
    low, high = 0.0, 1.0
    while (middle := 0.5 * (low + high)) not in (low, high):
        if beta_cdf(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return middle


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)  # where the fraction converges fast
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # Lentz's method, from the first term on.
    d = 1 / (1 - (a + b) * x / (a + 1))
    c, fraction, m = 1.0, d, 0
    while True:
        m += 1
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = fraction
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction *= c * d
        if abs(fraction - before) <= 1e-16 * abs(fraction):
            return math.exp(log_front) * fraction / a
