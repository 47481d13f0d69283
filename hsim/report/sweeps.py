"""A sweep for a terminal: what was varied, the verdict, and the figures that people look at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hsim.metrics.result import Interval
from hsim.report.tables import VERDICT_STYLES, _cell, _table
from hsim.sweeps import Row, Sweep
from hsim.units import plain_error

SHOWN = 60  # rows; the file has all
FIGURES = {"tst_j": ("TST", "J"), "e2e.mean_s": ("e2e mean", "s"), "e2e.p95_s": ("e2e p95", "s")}
PLAIN = {"tasks_per_s": ("tasks/s", 1), "usd_per_task": ("USD for 1,000", 1000)}  # whose title says the unit


def sweep_tables(found: Sweep) -> RenderableType:
    """One line a point, in the order of the points."""
    head = Text(f"{Path(found.scenario).stem}: {len(found.rows)} of {found.points} points", style="bold")
    names = [path.rpartition(".")[2] for path in found.paths]
    # A last word that two paths share says nothing.
    titles = [name if names.count(name) == 1 else path for name, path in zip(names, found.paths, strict=True)]
    table = _table(*titles, *(title for title, _ in (PLAIN | FIGURES).values()), "verdict")
    for row in found.rows[:SHOWN]:
        verdict = row["verdict"] or "–"
        cells = [_plain(row, name, times) for name, (_, times) in PLAIN.items()]
        cells += [_figure(row, name, unit) for name, (_, unit) in FIGURES.items()]
        shown = Text(verdict, style=VERDICT_STYLES.get(verdict, "" if verdict == "–" else "bold red"))
        table.add_row(*(_value(row[path]) for path in found.paths), *cells, shown)
    lines = [Text(f"{len(found.rows) - SHOWN} more rows are not shown.")] if len(found.rows) > SHOWN else []
    errors = [row for row in found.rows if row["verdict"] == "ERROR"]
    lines += [Text(f"ERROR       point {row['point']}: {row['reason']}", style="bold red") for row in errors]
    note = (
        "All points see the same random numbers. ± are 95 % of sampling, of each figure by itself; a verdict is the worst of a "
        "point's objectives."
    )
    return Group(head, Text(), table, Text(), *lines, Text(note, style="dim"))


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _figure(row: Row, name: str, unit: str) -> str:
    if name not in row:
        return "–"
    return _cell(Interval(row[name], row[f"{name}.low"], row[f"{name}.high"]), unit)


def _plain(row: Row, name: str, times: float) -> str:
    value, half = row.get(name), row.get(f"{name}.half_width")
    if value is None:
        return "–"
    return f"{times * value:.4g}" if half is None else plain_error(times * value, times * half)
