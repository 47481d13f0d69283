"""From points to laws: non-negative relative least squares, each with errors on points that its fit had not seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hsim.calibrate.options import Law
from hsim.calibrate.points import Point
from hsim.metrics.statistics import t_quantile

Array = NDArray[np.float64]

FOLDS = 5
FEW = 8  # points, of which each is left out alone
BOUNDS = (0.05, 0.95)
NORMAL = NormalDist()
NUDGE = 1e-4  # of a coefficient: small enough that a curved law is straight over it
GRID, ZOOM, FINEST = 9, 0.6, 1e-4  # points an axis; how much smaller each grid is; the last one's logarithmic width
SOFT = 0.1  # a relative residual beyond this counts by its size, no longer by its square: outliers do not rule


class Way(NamedTuple):
    """A way to write a law: the fewest points that it takes, how it is fitted to them, and how it predicts one."""

    fewest: int
    fit: Callable[[Sequence[Point]], Array]
    predict: Callable[[Array, Point], float]


def tested(
    name: str,
    points: Sequence[Point],
    fewest: int,
    fit: Callable[[Sequence[Point]], Array],
    predict: Callable[[Array, Point], float],
) -> tuple[Array | None, Law]:
    """Fit a law to the clean points (to all where half of them or more are noisy), and test it on points left out."""
    used = used_of(points, fewest)
    noisy = sum(bool(point.marks) for point in points)
    if len(used) < fewest:
        return None, Law(name, len(used), noisy, None, None, f"not fitted: it takes {fewest} points")
    splits, how = _splits(used, fewest)
    errors: list[float] = []
    for rest, held in splits:
        law = fit(rest)
        errors += [abs(predict(law, point) / point.seconds - 1) for point in held]
    return fit(used), law_of(name, len(used), noisy, errors, how)


def chosen(
    name: str, points: Sequence[Point], ways: Sequence[Way], cost: Callable[[int, Law], float]
) -> tuple[int, Array | None, Law]:
    """The way whose test costs least, its law, and a test of it for which the way too was chosen without the points left out:
    the least of several errors is less than what a law so chosen errs by.
    """

    def best(tests: Sequence[Law]) -> int:
        return min(range(len(ways)), key=lambda i: cost(i, tests[i]))

    tried = [tested(name, points, *way) for way in ways]
    number = best([test for _, test in tried])
    law, test = tried[number]
    if law is None or len(ways) == 1:
        return number, law, test
    splits, how = _splits(used_of(points, ways[number].fewest), ways[number].fewest)
    errors: list[float] = []
    for rest, held in splits:
        way = ways[best([tested(name, rest, *way)[1] for way in ways])]
        fitted = way.fit(rest)
        errors += [abs(way.predict(fitted, point) / point.seconds - 1) for point in held]
    return number, law, law_of(name, test.points, test.noisy, errors, how)


def _splits(used: Sequence[Point], fewest: int) -> tuple[list[tuple[list[Point], list[Point]]], str]:
    """Points to fit and points left out, in turn, and how in words.

    Of a few points those at the ends stay in: without them the rest would be asked about what lies beyond it, and no
    simulation does that unwarned.
    """
    folds = min(FOLDS, len(used) - fewest + 1, len(used))
    if folds > 1 and len(used) <= FEW and len({point.seconds for point in used}) > 2:
        order = sorted(used, key=lambda point: point.seconds)
        inner = range(1, len(order) - 1)
        return [(order[:i] + order[i + 1 :], [order[i]]) for i in inner], "each point but the ends left out in turn"
    order = list(used)
    random.Random(0).shuffle(order)
    parts = [[point for i, point in enumerate(order) if i % folds != fold] for fold in range(folds)]
    splits = [(rest, order[fold::folds]) for fold, rest in enumerate(parts)] if folds > 1 else []
    return splits, f"{folds} folds left out in turn"


def used_of(points: Sequence[Point], fewest: int) -> list[Point]:
    """The points that a law is fitted to."""
    clean = [point for point in points if not point.marks]
    return clean if len(clean) > max(fewest, len(points) / 2) else list(points)


def bounds(
    points: Sequence[Point], predict: Callable[[Array, Point], float], law: Array, least: Array | None = None
) -> tuple[Array, Array] | None:
    """Low and high of a law's coefficients, 5 to 95 %, from the residuals of its points. Shapes as the law's.

    Least squares of relative errors, linear near the fit: with f points more than coefficients the standard errors are
    those of Student's t with f degrees of freedom. And all points may be off together, by as much as this machine's
    rounds are apart: it is quicker or slower as a whole. No coefficient goes below its `least` (0). None where no
    point is left to judge by, or where the points do not tell the coefficients apart.
    """
    freedom = len(points) - len(law)
    ratios = np.array([predict(law, point) / point.seconds for point in points])
    slopes = np.stack([_slope(points, predict, law, i) for i in range(len(law))], axis=-1)
    sizes = np.linalg.norm(slopes, axis=0)
    if freedom < 1 or not sizes.all() or np.linalg.matrix_rank(slopes / sizes) < len(law):
        return None
    residual = float(np.sum((ratios - 1.0) ** 2)) / freedom
    inverse = np.linalg.inv(np.linalg.qr(slopes / sizes, mode="r"))  # its rows' squares: the diagonal of (A^T A)^-1
    errors = np.sqrt(residual * np.sum(inverse**2, axis=1)) / sizes
    half = together(t_quantile(BOUNDS[1], freedom) * errors, law * unsteadiness(points))
    low = np.maximum(law - half, np.zeros(len(law)) if least is None else least)
    return np.minimum(low, law), law + half


def together(half: Array, spread: Array) -> Array:
    """Half a width of bounds, and the standard deviation of what moves all points as one, as half a width."""
    return np.asarray(np.hypot(half, NORMAL.inv_cdf(BOUNDS[1]) * spread))


def _slope(points: Sequence[Point], predict: Callable[[Array, Point], float], law: Array, i: int) -> Array:
    """How each point's relative prediction changes with one coefficient. Shape (points,)."""
    step = NUDGE * law[i] or 1.0  # a coefficient at 0 is one of a sum, in which any step gives the same slope
    nudged = law.copy()
    nudged[i] += step
    return np.array([(predict(nudged, point) - predict(law, point)) / step / point.seconds for point in points])


def unsteadiness(points: Sequence[Point]) -> float:
    """How far this machine as a whole moves between rounds, as a standard deviation: half of the median range."""
    spreads = [point.spread for point in points if point.rounds > 1]
    return 0.5 * float(np.median(spreads)) if spreads else 0.0


def law_of(name: str, points: int, noisy: int, errors: Sequence[float], method: str) -> Law:
    """A law's record from the absolute relative errors of held-out points."""
    if not len(errors):
        return Law(name, points, noisy, None, None, "no point could be held out")
    median, p90 = np.quantile(errors, (0.5, 0.9))
    return Law(name, points, noisy, float(median), float(p90), method, tuple(errors))


def relative_nonnegative(
    columns: Array, seconds: Array, least: Array | None = None, explained_s: Array | None = None
) -> Array:
    """Coefficients >= `least` (default 0) whose sum over columns misses `seconds` least, relative to each.

    Shapes (points, coefficients), (points,), (coefficients,); `explained_s`, shape (points,), is taken off first. Each
    column is scaled to its own size: seconds per launch and seconds per FLOP lie twelve orders of magnitude apart.
    """
    least = np.zeros(columns.shape[1]) if least is None else least
    target = (seconds - columns @ least - (0.0 if explained_s is None else explained_s)) / seconds
    scaled = columns / seconds[:, None]
    sizes = np.linalg.norm(scaled, axis=0)
    sizes[sizes == 0] = 1.0
    return np.asarray(nonnegative(scaled / sizes, target) / sizes + least)


def nonnegative(columns: Array, target: Array) -> Array:
    """The least squares solution with no coefficient below zero, for a few columns.

    It is the plain solution on those of its columns that it uses, so all choices of columns are tried. (scipy has a
    general one; a machine that is calibrated need not have scipy.)
    """
    count = columns.shape[1]
    best, least_cost = np.zeros(count), float(target @ target)
    for used in range(1, 1 << count):
        chosen = [i for i in range(count) if used >> i & 1]
        solution = np.linalg.lstsq(columns[:, chosen], target, rcond=None)[0]
        cost = float(np.sum((columns[:, chosen] @ solution - target) ** 2))
        if (solution >= 0).all() and cost < least_cost:
            best, least_cost = np.zeros(count), cost
            best[chosen] = solution
    return best


# ---- products


def gemm_bytes(point: Point, element_bytes: float, working_bytes: float) -> float:
    """Bytes that a product moves: its weights, and its inputs and outputs in the working precision."""
    m, n, k = (point.number(x) for x in "mnk")
    return n * k * element_bytes + (m * k + m * n) * working_bytes


def gemm_flops(point: Point) -> float:
    """Floating-point operations of a product."""
    return 2.0 * point.number("m") * point.number("n") * point.number("k")


def fit_gemm(bytes_s: Array, flops_s: Array, seconds: Array) -> Array:
    """(launch_s, bandwidth_fraction, flops_fraction) of GemmLaw.

    `bytes_s` and `flops_s` are the seconds that bytes and FLOPs take at the peaks; fractions stay in (0, 1]. The
    three are searched on grids in their logarithms, each finer and around the best of the one before.
    """

    def cost(x: Array) -> Array:
        """Of many candidates at once, shape (candidates, 3): soft in outliers."""
        launch_s, bandwidth, flops = np.exp(x).T[:, :, None]
        both_s = ((bytes_s / bandwidth) ** 4 + (flops_s / flops) ** 4) ** 0.25
        errors = ((launch_s + both_s) / seconds - 1.0) / SOFT
        return np.asarray(np.sum(np.sqrt(1.0 + errors**2), axis=1))

    shortest_s = float(seconds.min())
    low = np.log([shortest_s * 1e-3, 1e-3, 1e-3])
    high = np.log([shortest_s * 1.5, 1.0, 1.0])
    middle, width = (low + high) / 2, high - low
    while width.max() > FINEST:
        axes = [
            np.clip(m + w * np.linspace(-0.5, 0.5, GRID), a, b)
            for m, w, a, b in zip(middle, width, low, high, strict=True)
        ]
        grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3)
        middle, width = grid[int(np.argmin(cost(grid)))], width * ZOOM
    return np.asarray(np.exp(middle))


def gemm_seconds(law: Array, bytes_s: float, flops_s: float) -> float:
    """Seconds by GemmLaw."""
    launch_s, bandwidth, flops = law
    return float(launch_s + ((bytes_s / bandwidth) ** 4 + (flops_s / flops) ** 4) ** 0.25)


# ---- attention and operations: laws that are sums of terms


def fit_sum(
    terms: Callable[[Point], Sequence[float]],
    least: Sequence[float],
    explained_s: Callable[[Point], float] = lambda point: 0.0,
) -> tuple[Callable[[Sequence[Point]], Array], Callable[[Array, Point], float]]:
    """How to fit a law that is a sum of coefficients times terms on top of what is explained, and to predict by it."""

    def fit(points: Sequence[Point]) -> Array:
        columns = np.array([terms(point) for point in points])
        explained = np.array([explained_s(point) for point in points])
        return relative_nonnegative(columns, np.array([point.seconds for point in points]), np.array(least), explained)

    def predict(law: Array, point: Point) -> float:
        return explained_s(point) + float(np.dot(terms(point), law))

    return fit, predict


def decode_attention_terms(point: Point, element_bytes: float) -> tuple[float, float, float, float]:
    """Of DecodeAttentionLaw: launch, elements of the queries, sequences, bytes of keys and values."""
    batch, width = point.number("batch"), point.number("heads") * point.number("head_dim")
    return 1.0, batch * width, batch, kv_bytes(point, batch * point.number("context"), element_bytes)


def kv_bytes(point: Point, tokens: float, element_bytes: float) -> float:
    """Bytes of keys and values of one layer."""
    return 2 * tokens * point.number("kv_heads") * point.number("head_dim") * element_bytes


def prefill_attention_terms(point: Point) -> tuple[float, float, float]:
    """Of PrefillAttentionLaw: launch, FLOPs of the pairs that causality leaves, elements of the queries."""
    tokens, width = point.number("tokens"), point.number("heads") * point.number("head_dim")
    return 1.0, 4 * width * tokens * (tokens + 1) / 2, tokens * width


def rising(values: Sequence[float]) -> list[float]:
    """The nearest sequence (in squares) that nowhere falls: neighbours that do are replaced by their mean."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [mean for mean, count in blocks for _ in range(count)]
