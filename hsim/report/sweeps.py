"""A sweep for a terminal: what was varied, the verdict, and the figures that people look at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hsim.metrics.result import Interval
from hsim.report.tables import VERDICT_STYLES, _cell, _table
from hsim.sweeps import Row, Sweep

SHOWN = 60  # rows; the file has all
FIGURES = {
    "tasks_per_s": ("Throughput", "tasks/s"),
    "tst_j": ("TST", "J"),
    "usd_per_task": ("cost a task", "USD"),
    "e2e.mean_s": ("e2e mean", "s"),
    "e2e.p95_s": ("e2e p95", "s"),
}


def sweep_tables(found: Sweep) -> RenderableType:
    """One line a point, in the order of the points."""
    head = Text(f"{Path(found.scenario).stem}: {len(found.rows)} of {found.points} points", style="bold")
    names = [path.rpartition(".")[2] for path in found.paths]
    # A last word that two paths share says nothing.
    titles = [name if names.count(name) == 1 else path for name, path in zip(names, found.paths, strict=True)]
    table = _table(*titles, *(title for title, _ in FIGURES.values()), "verdict")
    for row in found.rows[:SHOWN]:
        verdict = row["verdict"] or "–"
        cells = [_figure(row, name, unit) for name, (_, unit) in FIGURES.items()]
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
