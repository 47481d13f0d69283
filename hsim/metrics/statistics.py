"""Estimates with intervals from independent replications, warm-up, drift: plain statistics that know nothing of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
MIN_TAIL_POINTS = 10
MSER_BATCH = 5


@dataclass(frozen=True)
class Estimate:
    """A point estimate, and how far each replication's own value pulls it: all that an interval needs.

    The variance of the point is sum(pulls^2) / (R (R - 1)). Shape (replications,).
    """

    value: float
    pulls: Floats

    def half_width(self, confidence: float = CONFIDENCE) -> float:
        """Half the width of the t interval; nan from a single replication, which has none."""
        count = len(self.pulls)
        if count < 2:
            return math.nan
        error = math.sqrt(float(np.sum(self.pulls**2)) / (count * (count - 1)))
        return t_quantile(0.5 + confidence / 2, count - 1) * error

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


def quantile(samples: Sequence[Floats], p: float) -> Estimate | None:
    """A quantile by sectioning: the point from all samples together, its interval from the replications' own.

    None, which is not estimable, with fewer than ten points beyond it. Source: Asmussen and Glynn, Stochastic
    Simulation, III.5a; Nakayama, ACM TOMACS 24 (2014) 10.
    """
    pooled = np.concatenate(samples)
    if len(pooled) * min(p, 1 - p) < MIN_TAIL_POINTS or any(len(sample) == 0 for sample in samples):
        return None
    value = float(np.quantile(pooled, p))
    return Estimate(value, np.array([np.quantile(sample, p) for sample in samples]) - value)


def proportion(
    within: Sequence[int], counts: Sequence[int], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """A fraction over replications, and an interval that is no narrower than if all points were independent.

    The t interval of the ratio heeds the dependence of points within a replication. Where hardly any point is
    outside it sees no variance at all, and Clopper and Pearson's exact binomial interval takes over.
    """
    attained = ratio(within, counts)
    half = attained.half_width(confidence)
    low, high = binomial_interval(sum(within), sum(counts), confidence)
    return attained.value, max(0.0, min(low, attained.value - half)), min(1.0, max(high, attained.value + half))


def binomial_interval(successes: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper and Pearson's interval of a binomial proportion."""
    tail = (1 - confidence) / 2
    low = beta_quantile(tail, successes, count - successes + 1) if successes else 0.0
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
