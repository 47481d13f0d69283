"""What a trace is like: its rate, how bursty it is, lengths, rounds and shared prefixes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.units import HOUR_S, readable_seconds
from hsim.workload.traces.trace import Floats, Ints, Trace

MIN_TAIL_POINTS = 10
RATE_BINS = 60  # about as many bins of the rate over time as a picture shows
MIN_SPAN_S = 1e-6  # traces are not timed more finely: within it everybody arrives at once
NICE = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)


@dataclass(frozen=True)
class Spread:
    """A sample. A quantile with fewer than ten points beyond it is None: not estimable."""

    mean: float
    p50: float | None
    p90: float | None
    p99: float | None
    max: float


@dataclass(frozen=True)
class Rate:
    """Arrivals over time. `counts` arrivals in each bin of bin_s. Shape (bins,).

    `gap_variation` is the standard deviation of the gaps between arrivals over their mean: 1 for Poisson.
    `burstiness` is the shape of the gamma arrivals with that variation. `dispersion` is the variance of `counts` over
    their mean: 1 for Poisson at a constant rate. None where too few arrive to say.
    """

    span_s: float
    per_s: float
    bin_s: float
    counts: Ints
    gap_variation: float | None
    burstiness: float | None
    dispersion: float | None


@dataclass(frozen=True)
class Summary:
    """A trace in figures. Lengths are of requests: each round of a session counts.

    `length_correlation` is between the logarithms of prompt and answer. `kept_fraction` is the part of all prompt tokens
    that a session's earlier rounds left in its context; `repeated_fraction` the part whose blocks an earlier request
    has had, as a prefix cache without end would find them.
    """

    format: str
    tasks: int
    requests: int
    skipped: int
    unused: tuple[str, ...]
    notes: tuple[str, ...]
    rate: Rate | None
    input_tokens: Spread
    output_tokens: Spread
    length_correlation: float | None
    rounds: Spread | None
    wait_s: Spread | None
    kept_fraction: float | None
    block_tokens: int | None
    repeated_fraction: float | None

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON-ready data."""
        data = asdict(self)
        if self.rate:
            data["rate"]["counts"] = self.rate.counts.tolist()
        return data


def summary_of(trace: Trace) -> Summary:
    """The figures of a trace."""
    sessions = trace.sessions
    between = None
    if sessions:  # the wait after a session's last round leads nowhere
        between = np.ones(len(trace.input_tokens), dtype=bool)
        between[sessions.first_rows[1:] - 1] = False
    waits = sessions.wait_after_s[between] if sessions and between is not None else np.empty(0)
    prompts = int(trace.input_tokens.sum())
    return Summary(
        format=trace.format,
        tasks=trace.tasks,
        requests=len(trace.input_tokens),
        skipped=trace.skipped,
        unused=trace.unused,
        notes=trace.notes,
        rate=_rate(trace.arrival_s),
        input_tokens=_spread(trace.input_tokens),
        output_tokens=_spread(trace.output_tokens),
        length_correlation=_correlation(np.log(trace.input_tokens), np.log(trace.output_tokens)),
        rounds=_spread(np.diff(sessions.first_rows)) if sessions else None,
        wait_s=_spread(waits) if len(waits) else None,
        kept_fraction=int(sessions.context_tokens.sum()) / prompts if sessions else None,
        block_tokens=trace.block_tokens,
        repeated_fraction=repeated_tokens(trace).sum() / prompts if trace.block_tokens else None,
    )


def _spread(values: NDArray[Any]) -> Spread:
    def quantile(p: float) -> float | None:
        return float(np.quantile(values, p)) if len(values) * (1 - p) >= MIN_TAIL_POINTS else None

    return Spread(float(values.mean()), quantile(0.5), quantile(0.9), quantile(0.99), float(values.max()))


def _correlation(a: Floats, b: Floats) -> float | None:
    if len(a) < MIN_TAIL_POINTS or not np.ptp(a) or not np.ptp(b):
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _rate(arrival_s: Floats | None) -> Rate | None:
    """The rate over time; None without times, or if all arrive at once."""
    if arrival_s is None or arrival_s[-1] < MIN_SPAN_S:
        return None
    span_s = float(arrival_s[-1])
    bin_s = nice_above(span_s / RATE_BINS)
    bins = int(span_s // bin_s) + 1
    counts = np.bincount((arrival_s // bin_s).astype(np.int64), minlength=bins)
    gaps_s, full = np.diff(arrival_s), counts[:-1]  # the last bin is part full
    enough = len(gaps_s) >= MIN_TAIL_POINTS
    variation = float(gaps_s.std() / gaps_s.mean()) if enough else None
    return Rate(
        span_s=span_s,
        per_s=len(gaps_s) / span_s,
        bin_s=bin_s,
        counts=counts,
        gap_variation=variation,
        burstiness=variation**-2 if variation else None,
        dispersion=float(full.var() / full.mean()) if len(full) >= MIN_TAIL_POINTS and full.any() else None,
    )


def nice_above(seconds: float) -> float:
    """The least duration of at least so many seconds that people would choose: 1, 2, 5 ... 1800 s, or whole hours."""
    if seconds > NICE[-1]:
        return float(np.ceil(seconds / HOUR_S)) * HOUR_S
    if seconds > NICE[0]:
        return float(next(nice for nice in NICE if nice >= seconds))
    decade = 10.0 ** np.floor(np.log10(seconds))
    return float(next(decade * step for step in (1, 2, 5, 10) if decade * step >= seconds))


def round_time(seconds: float) -> str:
    """A duration that nice_above gives, as `20 s`, `5 min` or `3 h`."""
    if seconds >= HOUR_S:
        return f"{seconds / HOUR_S:g} h"
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def repeated_tokens(trace: Trace) -> Ints:
    """Tokens of each prompt in leading blocks that an earlier request has had. Shape (rows,)."""
    assert trace.prefix_blocks is not None and trace.block_tokens is not None
    seen: set[int] = set()
    repeated = np.zeros(len(trace.prefix_blocks), dtype=np.int64)
    for row, hashes in enumerate(trace.prefix_blocks):
        leading = next((i for i, block in enumerate(hashes) if block not in seen), len(hashes))
        repeated[row] = min(leading * trace.block_tokens, trace.input_tokens[row])
        seen.update(hashes)
    return repeated


def described(summary: Summary) -> list[tuple[str, str]]:
    """The summary in words, as pairs of what and how much."""
    rows = [("format", summary.format), ("tasks", f"{summary.tasks:,}")]
    if summary.rounds:
        rows.append(("requests", f"{summary.requests:,}, the rounds of all tasks"))
    rows += _rate_described(summary.rate)
    rows += [("input tokens", _in_words(summary.input_tokens)), ("output tokens", _in_words(summary.output_tokens))]
    if summary.length_correlation is not None:
        rows.append(("correlation of lengths", f"{summary.length_correlation:+.2f} between their logarithms"))
    if summary.rounds:
        rows.append(("rounds a task", _in_words(summary.rounds)))
    if summary.wait_s:
        rows.append(("wait between rounds", _in_words(summary.wait_s, seconds=True)))
    if summary.kept_fraction is not None:
        rows.append(("context", f"{summary.kept_fraction:.0%} of prompt tokens stand there from earlier rounds"))
    if summary.repeated_fraction is not None:
        repeated = f"{summary.repeated_fraction:.0%} of prompt tokens repeat an earlier prompt's blocks"
        rows.append(("shared prefixes", f"{repeated} of {summary.block_tokens}"))
    if summary.unused:
        rows.append(("columns not read", ", ".join(summary.unused)))
    return rows + [("note", note) for note in summary.notes]


def _rate_described(rate: Rate | None) -> list[tuple[str, str]]:
    if rate is None:
        return [("arrival times", "none; a workload samples it at a rate of its own (sampled_from)")]
    peak = rate.counts.max() / rate.bin_s
    rows = [
        ("span", readable_seconds(rate.span_s)),
        ("rate", f"{rate.per_s:.3g} tasks/s; at most {peak:.3g} tasks/s in {round_time(rate.bin_s)}"),
    ]
    if rate.gap_variation is not None:
        variation = f"gaps vary by {rate.gap_variation:.2f} of their mean (Poisson: 1)"
        rows.append(
            ("burstiness", variation + (f"; as gamma arrivals {rate.burstiness:.2g}" if rate.burstiness else ""))
        )
    if rate.dispersion is not None:
        counts = f"counts in {round_time(rate.bin_s)} have {rate.dispersion:.2g} times the variance of Poisson's"
        rows.append(("dispersion", counts))
    return rows


def _in_words(spread: Spread, seconds: bool = False) -> str:
    def word(value: float | None) -> str:
        if value is None:
            return "not estimable"
        return readable_seconds(value) if seconds else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    values = {"mean": spread.mean, "p50": spread.p50, "p90": spread.p90, "p99": spread.p99, "max": spread.max}
    return ", ".join(f"{name} {word(value)}" for name, value in values.items())
