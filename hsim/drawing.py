"""Pages with curves and points over their axes: self-contained HTML and SVG, for reports that need no library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from hsim.units import readable

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 260, 62, 28, 34, 30
TICKS = 4
LEAST = 1e-9  # below it a logarithmic axis does not go
STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --faint: #75818e; --line: #dfe5ea; --first: #2f6fab; --others: #b3541e;
  --paper: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --faint: #93a1af; --line: #2c3945; --first: #6aa9e4;
  --others: #e79b63; --paper: #121a21; } }
body { font: 15px system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); }
table { border-collapse: collapse; margin: 1rem 0; } td, th { text-align: right; padding: .1rem .8rem .1rem 0; }
td:first-child, th:first-child { text-align: left; } th { color: var(--faint); font-weight: 600; }
svg { font: 11px system-ui, sans-serif; width: 460px; max-width: 100%; height: auto; margin: .3rem; }
text { fill: var(--faint); } .title { fill: var(--ink); font-weight: 600; } .grid { stroke: var(--line); }
.predicted { stroke: var(--first); fill: none; stroke-width: 1.6; }
.measured { stroke: var(--others); fill: none; stroke-opacity: .75; stroke-width: 1.2; }
.points { fill: var(--others); fill-opacity: .45; stroke: none; } .noisy { fill: var(--faint); }
.key-predicted { fill: var(--first); } .key-measured { fill: var(--others); }
"""


@dataclass(frozen=True)
class Curve:
    """A line, or points where not `joined`. What was measured and what was predicted have colours of their own."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    measured: bool = False
    joined: bool = True


def html_page(title: str, body: str) -> str:
    """A self-contained page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its first column is to the left."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


@dataclass(frozen=True)
class _Axis:
    """From values to 0..1."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[float], logarithmic: bool) -> _Axis:
        """An axis that holds the values; a linear one begins at 0 where none is below it."""
        if logarithmic:
            logs = [math.log10(max(value, LEAST)) for value in values]
            low, high = min(logs), max(logs)
            return cls(low, high if high > low else low + 1.0, True)
        low, high = min(0.0, *values), max(values)
        return cls(low, high if high > low else low + 1.0, False)

    def place(self, value: float) -> float:
        """Where a value stands."""
        at = math.log10(max(value, LEAST)) if self.logarithmic else value
        return (at - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, float]]:
        """Places and values of a few marks."""
        places = [i / TICKS for i in range(TICKS + 1)]
        values = [self.low + place * (self.high - self.low) for place in places]
        return [(p, 10.0**v if self.logarithmic else v) for p, v in zip(places, values, strict=True)]


def figure(
    title: str, curves: Sequence[Curve], unit: str, logarithmic: bool = False, diagonal: bool = False, up: str = ""
) -> str:
    """Curves and points over common axes, as SVG. `unit` is that of x, and of y where it is the `diagonal`'s too."""
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return ""
    both = logarithmic and bool(up)
    across = _Axis.of([x for curve in curves for x in curve.x], logarithmic)
    upward = _Axis.of([y for curve in curves for y in curve.y], both)
    if diagonal:
        across = upward = _Axis.of([v for curve in curves for v in (*curve.x, *curve.y)], logarithmic)
        up = unit
    parts = [f'<text class="title" x="4" y="16">{escape(title)}</text>', *_grid(across, upward, unit, up)]
    if diagonal:
        parts.append(f'<path class="predicted" d="M{_x(0):.1f} {_y(0):.1f}L{_x(1):.1f} {_y(1):.1f}"/>')
    parts += [_drawn(curve, across, upward) for curve in curves]
    parts += _key(curves)
    label = escape(title, quote=True)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _x(place: float) -> float:
    return LEFT + place * (WIDTH - LEFT - RIGHT)


def _y(place: float) -> float:
    return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)


def _grid(across: _Axis, upward: _Axis, unit: str, up: str) -> list[str]:
    marks = []
    for place, value in across.ticks():
        marks.append(
            f'<text x="{_x(place):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(_told(value, unit))}</text>'
        )
    for place, value in upward.ticks():
        y = _y(place)
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{escape(_told(value, up))}</text>')
    return marks


def _told(value: float, unit: str) -> str:
    return readable(value, unit, 2) if unit in ("s", "B") else f"{value:.3g}"


def _drawn(curve: Curve, across: _Axis, upward: _Axis) -> str:
    places = [(_x(across.place(x)), _y(upward.place(y))) for x, y in zip(curve.x, curve.y, strict=True)]
    if not curve.joined:
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in places)
        return f'<g class="points">{dots}</g>'
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f'<path class="{"measured" if curve.measured else "predicted"}" d="M{line}"/>'


def _key(curves: Sequence[Curve]) -> list[str]:
    kinds = dict.fromkeys("measured" if curve.measured else "predicted" for curve in curves)
    return [
        f'<text class="key-{kind}" x="{WIDTH - RIGHT}" y="{TOP + 6 + 13 * i}" text-anchor="end">{kind}</text>'
        for i, kind in enumerate(kinds)
    ]
