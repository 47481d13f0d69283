"""Arrival times of open workloads. Time i depends on the gaps up to i alone: adding tasks moves no earlier arrival.

Every process is a renewal process of mean gap 1, stretched: arrival i comes when the integral of the rate reaches the
sum of the first i gaps. So a change of the rate moves arrivals but not their pattern.
"""

from __future__ import annotations

from math import gamma

import numpy as np

from hsim.description.scenario import (
    GammaArrivals,
    HourlyArrivals,
    OnOffArrivals,
    OpenArrivals,
    PoissonArrivals,
    UniformArrivals,
    WeibullArrivals,
)
from hsim.units import HOUR_S
from hsim.workload.streams import Floats, exponentials, generator, uniforms

FIRST_SWITCHES = 64  # how many switches of an on-off process are drawn at first; doubled until they suffice


def arrival_times(arrivals: OpenArrivals, count: int, seed: int) -> Floats:
    """When the first `count` tasks arrive, rising. Shape (count,), seconds from the start of the run."""
    match arrivals:
        case PoissonArrivals():
            return _poisson(seed, count) / arrivals.rate_per_s
        case UniformArrivals():
            return np.arange(1.0, count + 1.0) / arrivals.rate_per_s
        case GammaArrivals():
            return _gamma(seed, count, arrivals.burstiness) / arrivals.rate_per_s
        case WeibullArrivals():
            shape = arrivals.burstiness
            gaps = exponentials(uniforms(seed, "arrivals", count)) ** (1 / shape) / gamma(1 + 1 / shape)
            return np.cumsum(gaps) / arrivals.rate_per_s
        case OnOffArrivals():
            return _on_off(arrivals, seed, _poisson(seed, count))
        case HourlyArrivals():
            return _hourly(arrivals, _gamma(seed, count, arrivals.burstiness))


def _poisson(seed: int, count: int) -> Floats:
    return np.cumsum(exponentials(uniforms(seed, "arrivals", count)))


def _gamma(seed: int, count: int, shape: float) -> Floats:
    """Sums of gaps of mean 1 and the given gamma shape."""
    if shape == 1:
        return _poisson(seed, count)
    # NumPy draws a gamma value by rejection, from as many uniform numbers as it takes, one value after the other. So
    # value i depends on those before it, as an arrival does anyway, and never on how many follow.
    return np.cumsum(generator(seed, "arrivals-gamma").standard_gamma(shape, count)) / shape


def _on_off(arrivals: OnOffArrivals, seed: int, expected: Floats) -> Floats:
    """Times at which the integral of a rate that switches on and off reaches `expected`."""
    on_s, off_s, fraction = arrivals.mean_on_s, arrivals.mean_off_s, arrivals.off_rate_fraction
    on_rate = arrivals.rate_per_s * (on_s + off_s) / (on_s + fraction * off_s)
    # The first state is drawn as an observer at a random time finds it, so that the mean rate holds from time 0 on.
    starts_on = bool(uniforms(seed, "on-off-start", 1)[0] < on_s / (on_s + off_s))
    switches = FIRST_SWITCHES
    while True:
        on = (np.arange(switches) % 2 == 0) == starts_on
        stays_s = exponentials(uniforms(seed, "on-off", switches)) * np.where(on, on_s, off_s)
        times_s = np.concatenate([[0.0], np.cumsum(stays_s)])
        arrived = np.concatenate([[0.0], np.cumsum(stays_s * np.where(on, on_rate, fraction * on_rate))])
        if arrived[-1] >= expected[-1]:
            return np.asarray(np.interp(expected, arrived, times_s))
        switches *= 2


def _hourly(arrivals: HourlyArrivals, expected: Floats) -> Floats:
    """Times at which the integral of a rate that repeats by the hour reaches `expected`."""
    relative = np.array(arrivals.relative_rates)
    rates_per_s = arrivals.rate_per_s * relative / relative.mean()
    arrived = np.concatenate([[0.0], np.cumsum(rates_per_s * HOUR_S)])
    times_s = np.arange(len(arrived)) * HOUR_S
    cycles, within = np.divmod(expected, arrived[-1])
    return np.asarray(cycles * times_s[-1] + np.interp(within, arrived, times_s))
