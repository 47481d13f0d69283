"""A validation as a page: distributions and timelines overlaid, and the steps' times as predicted and as measured."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from hsim.drawing import Curve, figure, html_page, html_table
from hsim.log import Log
from hsim.metrics.measured import Floats, samples_of
from hsim.units import readable_quantity
from hsim.validate.quantities import only, served_in_all
from hsim.validate.run import Validation

TITLES = {"ttft": "TTFT", "tpot": "TPOT", "answer_ttft": "TTFT of the final answer", "e2e": "End to end"}
MOST_POINTS = 400  # of a curve: a picture has no more


def page(validations: Sequence[tuple[str, Validation]]) -> str:
    """A self-contained HTML page of one or several validations, each under its name."""
    return html_page("Validation", "".join(_section(name, one) for name, one in validations))


def _section(name: str, validation: Validation) -> str:
    head = f"<h2>{escape(name or validation.scenario)}</h2><p>Calibration sha256 {validation.calibration_sha256[:16]}"
    head += f"; {escape(validation.blame.verdict)}.</p>" if validation.blame.verdict else ".</p>"
    head += "".join(f"<p>{escape(note)}.</p>" for note in validation.notes)
    if validation.stopped:
        head += f"<p><b>Stopped: {escape(validation.stopped)}</b></p>"
    rows = [
        (
            row.quantity,
            readable_quantity(row.predicted, row.unit),
            "–"
            if row.low is None or row.high is None
            else f"{readable_quantity(row.low, row.unit)} to {readable_quantity(row.high, row.unit)}",
            readable_quantity(row.measured, row.unit),
            "–" if row.spread_fraction is None else f"{row.spread_fraction:.1%}",
            "–" if row.error_fraction is None else f"{row.error_fraction:+.1%}",
            "–" if row.pace_error_fraction is None else f"{row.pace_error_fraction:+.1%}",
            row.verdict,
        )
        for row in validation.compared
    ]
    columns = ("", "predicted", "stated", "measured", "repeats ±", "error", "error at its pace", "verdict")
    return head + html_table(columns, rows) + "".join(_figures(validation))


def _figures(validation: Validation) -> list[str]:
    if len(validation.logs) < 2:
        return []
    predicted, *measured = validation.logs
    named = [("predicted", predicted), *((f"measured {i}", log) for i, log in enumerate(measured, 1))]
    found, tasks = [], served_in_all(validation.logs)
    compared = [(name, only(log, tasks)) for name, log in named]  # as in the table: of the same tasks
    for latency, title in TITLES.items():
        curves = [_distribution(name, log, latency) for name, log in compared]
        found.append(figure(f"{title}: part of them that took at most so long", curves, "s", logarithmic=True))
    found.append(figure("Tasks in the system over time", [_in_system(name, log) for name, log in named], "s"))
    steps = [_steps(f"measured {i}", log) for i, log in enumerate(measured, 1)]
    found.append(
        figure(
            "Steps: measured (up) against predicted seconds for the same batch",
            steps,
            "s",
            logarithmic=True,
            diagonal=True,
        )
    )
    return found


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    keep = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int)) if len(x) > MOST_POINTS else slice(None)
    return x[keep], y[keep]


def _distribution(name: str, log: Log, latency: str) -> Curve:
    tables = log.arrays()
    sample = samples_of(tables["tasks"], tables["visits"]).get(latency)
    seconds = np.sort(sample.seconds) if sample else np.empty(0)
    x, y = _thinned(seconds, (np.arange(len(seconds)) + 0.5) / max(1, len(seconds)))
    return Curve(name, x.tolist(), y.tolist(), measured=name != "predicted")


def _in_system(name: str, log: Log) -> Curve:
    tasks = log.tasks.arrays()
    first = tasks["arrival_s"].min()
    times = np.concatenate((tasks["arrival_s"], tasks["ended_s"])) - first
    order = np.argsort(times, kind="stable")
    change = np.concatenate((np.ones(len(tasks["task"])), -np.ones(len(tasks["task"]))))[order]
    x, y = np.repeat(times[order], 2)[1:], np.repeat(np.cumsum(change), 2)[:-1]
    return Curve(name, x.tolist(), y.tolist(), measured=name != "predicted")


def _steps(name: str, log: Log) -> Curve:
    steps = log.steps.arrays()
    x, y = _thinned(steps["seconds"], steps["end_s"] - steps["start_s"])
    return Curve(name, x.tolist(), y.tolist(), measured=True, joined=False)
