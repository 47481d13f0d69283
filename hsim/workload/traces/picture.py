"""A picture of a trace as SVG, alone or in a page: rate over time, lengths, how they go together, rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from hsim.units import HOUR_S
from hsim.workload.traces.summary import Rate, Spread, described, nice_above, round_time, summary_of
from hsim.workload.traces.trace import Floats, Ints, Trace

WIDTH, HEIGHT, GAP, LEFT, RIGHT, TOP, BOTTOM = 960, 210, 32, 56, 20, 34, 34
BINS_A_DECADE = 10
CELLS_A_DECADE = 8
DARKEST = 0.9
FEW_BINS = 5
POWERS = ("1", "10", "100", "1k", "10k", "100k", "1M", "10M", "100M", "1G", "more")
STYLE = """
svg { --ink: #1c2733; --faint: #8592a0; --line: #dfe5ea; --fill: #2f6fab; --mark: #b3541e; background: #ffffff;
  font: 12px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6ebf0; --faint: #93a1af; --line: #2c3945; --fill: #6aa9e4;
  --mark: #e79b63; background: #121a21; } }
text { fill: var(--faint); } .title { fill: var(--ink); font-weight: 600; } .grid { stroke: var(--line); }
.bar { fill: var(--fill); } .mark { stroke: var(--mark); stroke-dasharray: 4 3; }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }} body {{ font: 15px system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
padding: 0 1rem; }} th {{ text-align: left; font-weight: 600; padding-right: 1.5rem; vertical-align: top; }}
svg {{ background: none !important; width: 100%; height: auto; margin-top: 1rem; }}
</style></head><body><h1>{title}</h1><table>{rows}</table>{picture}</body></html>
"""


def page(trace: Trace, title: str) -> str:
    """A self-contained HTML page: the figures of a trace, and its picture."""
    rows = "".join(
        f"<tr><th>{escape(what)}</th><td>{escape(much)}</td></tr>" for what, much in described(summary_of(trace))
    )
    return PAGE.format(title=escape(title), rows=rows, picture=picture(trace))


def picture(trace: Trace) -> str:
    """A self-contained SVG of a trace."""
    summary = summary_of(trace)
    half = (WIDTH - GAP) // 2
    panels: list[str] = []
    y = 0.0
    if summary.rate:
        panels.append(_rate_panel(summary.rate, Frame(0, y, WIDTH)))
        y += HEIGHT
    panels.append(
        _lengths_panel(trace.input_tokens, summary.input_tokens, "Input tokens of requests", Frame(0, y, half))
    )
    panels.append(
        _lengths_panel(
            trace.output_tokens, summary.output_tokens, "Output tokens of requests", Frame(half + GAP, y, half)
        )
    )
    y += HEIGHT
    panels.append(_together_panel(trace, Frame(0, y, half if trace.sessions else WIDTH)))
    if trace.sessions:
        panels.append(_rounds_panel(np.diff(trace.first_rows), Frame(half + GAP, y, half)))
    y += HEIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:g}" role="img" aria-label="A trace of requests">'
    return f"{head}<style>{STYLE}</style>{''.join(panels)}</svg>\n"


@dataclass(frozen=True)
class Frame:
    """Where a panel stands. Its data lie in a box within, from 0 to 1 both ways, y upward."""

    left: float
    top: float
    width: float

    def x(self, fraction: float) -> float:
        return self.left + LEFT + fraction * (self.width - LEFT - RIGHT)

    def y(self, fraction: float) -> float:
        return self.top + HEIGHT - BOTTOM - fraction * (HEIGHT - TOP - BOTTOM)

    def title(self, text: str) -> str:
        return f'<text class="title" x="{self.left + 4:.1f}" y="{self.top + 20:.1f}">{escape(text)}</text>'

    def bars(self, edges: Floats, heights: NDArray[np.float64]) -> str:
        """Bars between neighbouring edges, all as fractions."""
        rects = []
        for low, high, height in zip(edges[:-1], edges[1:], heights, strict=True):
            if height:
                x, y, width = self.x(low), self.y(height), self.x(high) - self.x(low)
                rects.append(f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{self.y(0) - y:.2f}"/>')
        return f'<g class="bar">{"".join(rects)}</g>'

    def ticks_below(self, ticks: Sequence[tuple[float, str]]) -> str:
        y = self.y(0) + 16
        return "".join(
            f'<text x="{self.x(f):.1f}" y="{y:.1f}" text-anchor="middle">{escape(t)}</text>' for f, t in ticks
        )

    def ticks_beside(self, ticks: Sequence[tuple[float, str]]) -> str:
        marks = []
        for fraction, text in ticks:
            y = self.y(fraction)
            marks.append(f'<line class="grid" x1="{self.x(0):.1f}" x2="{self.x(1):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            marks.append(f'<text x="{self.x(0) - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
        return "".join(marks)

    def mark(self, fraction: float) -> str:
        """A dashed line upright."""
        x = self.x(fraction)
        return f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{self.y(0):.1f}" y2="{self.y(1):.1f}"/>'


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis of whole decades that holds some lengths."""

    low: int
    high: int

    @staticmethod
    def of(tokens: Ints) -> Axis:
        low = int(np.floor(np.log10(float(tokens.min()))))
        return Axis(low, max(low + 1, int(np.ceil(np.log10(float(tokens.max()) + 1)))))

    @property
    def decades(self) -> int:
        return self.high - self.low

    def place(self, tokens: NDArray[np.float64] | Ints) -> Floats:
        """Where lengths stand, from 0 to 1."""
        return np.asarray((np.log10(tokens) - self.low) / self.decades)

    def ticks(self) -> list[tuple[float, str]]:
        return [(i / self.decades, POWERS[min(self.low + i, len(POWERS) - 1)]) for i in range(self.decades + 1)]


def _rate_panel(rate: Rate, frame: Frame) -> str:
    counts = rate.counts[:-1] if len(rate.counts) > FEW_BINS else rate.counts  # the last bin is part full
    end_s = len(counts) * rate.bin_s
    per_s = counts / rate.bin_s
    top, ticks = _upright(float(per_s.max()), lambda value: f"{value:g}")
    edges = np.arange(len(per_s) + 1) / len(per_s)
    step_s = nice_above(end_s / 8)
    unit_s = HOUR_S if step_s >= HOUR_S else 60 if step_s >= 60 else 1
    unit = {1: "s", 60: "min", HOUR_S: "h"}[unit_s]
    below = [(t / end_s, f"{t / unit_s:g} {unit}") for t in np.arange(0, end_s * 1.0001, step_s)]
    title = f"Arrivals: tasks/s, in bins of {round_time(rate.bin_s)}"
    return frame.title(title) + frame.ticks_beside(ticks) + frame.bars(edges, per_s / top) + frame.ticks_below(below)


def _lengths_panel(tokens: Ints, spread: Spread, title: str, frame: Frame) -> str:
    """A histogram on a logarithmic axis, with those quantiles that can be estimated."""
    axis = Axis.of(tokens)
    # Bins end between whole numbers, so that short lengths leave no gaps.
    edges = np.unique(np.ceil(10.0 ** np.linspace(axis.low, axis.high, axis.decades * BINS_A_DECADE + 1))) - 0.5
    share = np.histogram(tokens, edges)[0] / len(tokens)
    top, ticks = _upright(float(share.max()), lambda value: f"{value:.3g} %", 100)
    quantiles = {name: value for name, value in (("p50", spread.p50), ("p99", spread.p99)) if value is not None}
    marks = "".join(frame.mark(float(axis.place(np.array([value]))[0])) for value in quantiles.values())
    if quantiles:
        title += "; dashed: " + ", ".join(f"{name} {value:,.0f}" for name, value in quantiles.items())
    bars = frame.bars(np.clip(axis.place(edges), 0, 1), share / top)
    return frame.title(title) + frame.ticks_beside(ticks) + bars + frame.ticks_below(axis.ticks()) + marks


def _together_panel(trace: Trace, frame: Frame) -> str:
    """How prompts and answers go together: the darker a cell, the more requests."""
    across, up = Axis.of(trace.input_tokens), Axis.of(trace.output_tokens)
    columns, rows = across.decades * CELLS_A_DECADE, up.decades * CELLS_A_DECADE
    x, y = across.place(trace.input_tokens), up.place(trace.output_tokens)
    counts = np.histogram2d(x, y, (columns, rows), ((0, 1), (0, 1)))[0]
    depth = DARKEST * np.sqrt(counts / counts.max())  # in proportion, all but the most frequent pairs would vanish
    width, height = frame.x(1 / columns) - frame.x(0), frame.y(0) - frame.y(1 / rows)
    cells = [
        f'<rect x="{frame.x(i / columns):.2f}" y="{frame.y((j + 1) / rows):.2f}" width="{width:.2f}" '
        f'height="{height:.2f}" fill-opacity="{depth[i, j]:.3f}"/>'
        for i, j in np.argwhere(counts)
    ]
    grid = frame.ticks_beside(up.ticks()) + frame.ticks_below(across.ticks())
    return frame.title("Output (up) against input tokens (across)") + grid + f'<g class="bar">{"".join(cells)}</g>'


def _rounds_panel(rounds: Ints, frame: Frame) -> str:
    most = int(rounds.max())
    share = np.bincount(rounds, minlength=most + 1)[1:] / len(rounds)
    top, ticks = _upright(float(share.max()), lambda value: f"{value:.3g} %", 100)
    step = max(1, round(nice_above(most / 10)))
    below = [((n - 0.5) / most, str(n)) for n in range(step, most + 1, step)]
    edges = np.linspace(0, 1, most + 1)
    return frame.title("Rounds of tasks") + frame.ticks_beside(ticks) + frame.bars(edges, share / top) + frame.ticks_below(below)  # fmt: skip


def _upright(most: float, name: Callable[[float], str], scale: float = 1) -> tuple[float, list[tuple[float, str]]]:
    """The top of an upright axis, a round number at or above `most`, and its ticks as (fraction, name)."""
    step = nice_step(most / 4)
    top = step * np.ceil(most / step * 0.9999)
    return float(top), [(i * step / top, name(i * step * scale)) for i in range(round(top / step) + 1)]


def nice_step(size: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, the least at or above `size`."""
    decade = 10.0 ** np.floor(np.log10(size))
    return float(next(decade * step for step in (1, 2, 2.5, 5, 10) if decade * step >= size * 0.9999))
