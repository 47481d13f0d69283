"""A calibration as a page: every law against the points that it was fitted to, errors, and what could not be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from hsim.calibrate.options import Law
from hsim.calibrate.points import Point
from hsim.calibrate.steptable import SecondsAlone, predicted_s
from hsim.costs.measured import MeasuredCosts
from hsim.costs.shapes import StepShape
from hsim.description.hardware import StepTable
from hsim.drawing import Curve, figure, html_page, html_table

LINE_POINTS = 60


@dataclass(frozen=True)
class Fitted:
    """A law and its points: seconds (or watts) measured and as the law has them, in the same order.

    `across` names the parameter that the law is a curve of, if it is one of a single parameter; `curve` is that curve.
    """

    name: str
    points: tuple[Point, ...]
    predicted: tuple[float, ...]
    unit: str = "s"
    across: str = ""
    curve: tuple[tuple[float, float], ...] = ()


def calibration_page(title: str, machine: Any, laws: Sequence[Law], sections: Sequence[str]) -> str:
    """The whole page."""
    rows = [(key, str(value)) for key, value in asdict(machine).items()]
    held_out = [
        (law.name, str(law.points), str(law.noisy), _percent(law.median_error), _percent(law.p90_error), law.method)
        for law in laws
    ]
    columns = ("Law", "points", "noisy", "median error", "p90 error", "held out by")
    body = html_table(("Machine", ""), rows) + html_table(columns, held_out) + "".join(sections)
    return html_page(title, body)


def _percent(error: float | None) -> str:
    return "–" if error is None else f"{error:.1%}"


def section(title: str, figures: Sequence[str]) -> str:
    """A heading and its figures; nothing where there are none."""
    drawn = "".join(figures)
    return f"<h2>{escape(title)}</h2>{drawn}" if drawn else ""


def fitted_figure(fitted: Fitted) -> str:
    """A law as a curve through its points where it is one of a single parameter, else measured against predicted."""
    measured = [point.seconds for point in fitted.points]
    if fitted.curve:
        x, y = zip(*fitted.curve, strict=True)
        across = [point.number(fitted.across) for point in fitted.points]
        curves = [Curve(fitted.name, x, y), Curve("points", across, measured, measured=True, joined=False)]
        return figure(f"{fitted.name}: {fitted.unit} by {fitted.across}", curves, "", logarithmic=True, up=fitted.unit)
    points = Curve("points", fitted.predicted, measured, measured=True, joined=False)
    return figure(
        f"{fitted.name}: measured (up) against the law", [points], fitted.unit, logarithmic=True, diagonal=True
    )


def line_over(values: Sequence[float]) -> list[float]:
    """Where to draw a curve through points at these values: evenly on a logarithmic axis."""
    low, high = min(values), max(values)
    return np.geomspace(low, high, LINE_POINTS).tolist() if 0 < low < high else sorted(set(values))


def step_figures(table: StepTable, points: Sequence[Point]) -> list[str]:
    """Decode steps by context for each number of sequences, chunks by tokens, and the steps kept out of the table."""
    costs = MeasuredCosts(table, SecondsAlone())
    found = []
    for decodes in table.decodes:
        mine = [p for p in points if p.parameters["role"] == "decode" and p.number("decodes") == decodes]
        contexts = line_over([float(context) for context in table.contexts])
        line = [
            costs.segment(StepShape(decodes, int(decodes * context))).seconds - table.between(decodes)
            for context in contexts
        ]
        dots = Curve(
            "points", [p.number("context") for p in mine], [p.seconds for p in mine], measured=True, joined=False
        )
        title = f"Decode steps of {decodes} sequences: s by context tokens"
        found.append(figure(title, [Curve("table", contexts, line), dots], "", logarithmic=True, up="s"))
    for role, title in (("chunk", "Steps with one chunk"), ("mixed", "Steps of both"), ("check", "Steps kept out")):
        mine = [p for p in points if p.parameters["role"] == role]
        predicted = [predicted_s(table, p) for p in mine]
        dots = Curve("points", predicted, [p.seconds for p in mine], measured=True, joined=False)
        found.append(figure(f"{title}: measured (up) against the table", [dots], "s", logarithmic=True, diagonal=True))
    return found


def contention_figures(slower: dict[str, dict[str, float]]) -> list[str]:
    """How many times longer each operation takes when more and more cores do it at the same time."""
    found: list[Curve] = []
    for name, by_cores in slower.items():
        cores = [1.0, *map(float, by_cores)]
        times = [1.0, *by_cores.values()]
        found.append(Curve(name, cores, times, measured=True))
    return [figure("Times as long by busy cores, a line for each operation", found, "")]


def told_unavailable(unavailable: dict[str, str]) -> str:
    """What could not be had, and why."""
    return html_table(("Unavailable", "why"), list(unavailable.items())) if unavailable else ""
