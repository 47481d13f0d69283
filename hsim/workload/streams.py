"""Random numbers keyed by what they are for, so that two fleets see the very same tasks."""

from __future__ import annotations

from statistics import NormalDist
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from hsim.description.quantities import Constant, Geometric, Lognormal

Floats = NDArray[np.float64]

_NORMAL = NormalDist()
_P95 = _NORMAL.inv_cdf(0.95)
_inverse_normal = np.vectorize(_NORMAL.inv_cdf, otypes=[np.float64])


def uniforms(seed: int, purpose: str, count: int, *indices: int) -> Floats:
    """Uniform draws in (0, 1), one per task. Shape (count,).

    Element i depends on the seed, the purpose, the indices (a round, a call) and i alone: adding tasks, rounds or
    purposes moves no other draw.
    """
    key = np.random.SeedSequence([seed, crc32(purpose.encode()), *indices])
    generator = np.random.Generator(np.random.Philox(key))
    # random() is in [0, 1) on a grid of 2**-53; 0 itself is moved off, since logarithms and quantiles end there.
    return np.maximum(generator.random(count), 2.0**-54)


def quantiles(distribution: Constant | Lognormal | Geometric, u: Floats) -> Floats:
    """Values of a distribution at probabilities u, by inversion: common random numbers stay monotone."""
    if isinstance(distribution, Constant):
        return np.full(len(u), distribution.value)
    if isinstance(distribution, Lognormal):
        sigma = np.log(distribution.p95 / distribution.median) / _P95
        return np.asarray(distribution.median * np.exp(sigma * _inverse_normal(u)))
    if distribution.mean == 1:
        return np.ones(len(u))
    return np.asarray(np.ceil(np.log1p(-u) / np.log1p(-1 / distribution.mean)))


def whole(values: Floats, at_least: int) -> NDArray[np.int64]:
    """Rounded to whole numbers, and no less than `at_least`."""
    return np.maximum(at_least, np.rint(values)).astype(np.int64)
