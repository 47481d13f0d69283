"""Random numbers keyed by what they are for, so that two fleets see the very same tasks."""

from __future__ import annotations

from statistics import NormalDist
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from hsim.description.quantities import (
    Clipped,
    Constant,
    Distribution,
    Exponential,
    Geometric,
    Histogram,
    Lognormal,
    Uniform,
)

Floats = NDArray[np.float64]

_NORMAL = NormalDist()
_P95 = _NORMAL.inv_cdf(0.95)
_inverse_normal = np.vectorize(_NORMAL.inv_cdf, otypes=[np.float64])


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """The stream of a purpose (and of a round, a call). It gives the same numbers whatever other streams are used."""
    key = np.random.SeedSequence([seed, crc32(purpose.encode()), *indices])
    return np.random.Generator(np.random.Philox(key))


def uniforms(seed: int, purpose: str, count: int, *indices: int) -> Floats:
    """Uniform draws in (0, 1), one per task. Shape (count,).

    Element i depends on the seed, the purpose, the indices (a round, a call) and i alone: adding tasks, rounds or
    purposes moves no other draw.
    """
    # random() is in [0, 1) on a grid of 2**-53; 0 itself is moved off, since logarithms and quantiles end there.
    return np.maximum(generator(seed, purpose, *indices).random(count), 2.0**-54)


def exponentials(u: Floats) -> Floats:
    """Exponential values of mean 1 at probabilities u."""
    return -np.log1p(-u)


def quantiles(distribution: Distribution, u: Floats) -> Floats:
    """Values of a distribution at probabilities u, by inversion: common random numbers stay monotone."""
    if isinstance(distribution, Constant):
        return np.full(len(u), distribution.value)
    values = _unclipped(distribution, u)
    if distribution.at_least is None and distribution.at_most is None:
        return values
    return np.clip(values, distribution.at_least, distribution.at_most)


def _unclipped(distribution: Clipped, u: Floats) -> Floats:
    match distribution:
        case Lognormal():
            sigma = np.log(distribution.p95 / distribution.median) / _P95
            return np.asarray(distribution.median * np.exp(sigma * _inverse_normal(u)))
        case Geometric():
            if distribution.mean == 1:
                return np.ones(len(u))
            return np.asarray(np.ceil(np.log1p(-u) / np.log1p(-1 / distribution.mean)))
        case Uniform():
            return np.asarray(distribution.low + (distribution.high - distribution.low) * u)
        case Exponential():
            return np.asarray(distribution.mean * exponentials(u))
        case Histogram():
            assert distribution.edges, "a histogram in a file is read before anything is drawn from it"
            below = np.concatenate([[0.0], np.cumsum(distribution.counts)])
            return np.interp(u, below / below[-1], distribution.edges)
    raise AssertionError(f"no quantiles for {distribution!r}")


def whole(values: Floats, at_least: int) -> NDArray[np.int64]:
    """Rounded to whole numbers, and no less than `at_least`."""
    return np.maximum(at_least, np.rint(values)).astype(np.int64)
