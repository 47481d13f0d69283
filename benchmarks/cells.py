"""Predictions beside what was measured: one long table for all schemas, its cells with their errors, and the worst rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from rows import Refusals

ORDER = ("TPOT", "ITL", "throughput", "TTFT", "watts", "J/token")  # of quantities; others follow by name
UNIT = 50.0  # no prediction has erred by this factor: a row that differs by more is in another unit
WAIT_UNIT = 500.0  # the same for times that may hold a queue
WAITS = ("TTFT", "end to end")
KEYS = ["schema", "gpu", "architecture", "source", "engine", "quantity"]
SMALL_GROUP = 4  # rows below which no term can be told from chance


def predicted_rows(schema: str, rows: pd.DataFrame, quantity: str, measured: Any, predicted: Any) -> pd.DataFrame:
    """The long table of one quantity: an error for each row that has a measured value. Missing columns are left empty."""
    given = {name: rows[name] for name in ("row_id", "source", "gpu", "architecture", "engine") if name in rows}
    table = pd.DataFrame(given, index=rows.index).assign(schema=schema, quantity=quantity)
    table = table.assign(measured=np.asarray(measured, dtype=float), predicted=np.asarray(predicted, dtype=float))
    more = ("roofline", "three_coefficients", "fitted_on", "low_confidence")
    table = table.assign(**{name: rows[name] for name in more if name in rows})
    return table[table.measured.notna()]


def without_suspects(table: pd.DataFrame, refusals: Refusals) -> pd.DataFrame:
    """Errors of all rows; those that no prediction could miss by so much are in another unit, and refused."""
    table = table.assign(error=table.predicted / table.measured - 1)
    unknown = table.predicted.isna()
    for (schema, quantity), mine in table[unknown].groupby(["schema", "quantity"]):
        refusals.refuse(str(schema), mine, f"{quantity}: a figure that it needs is null")
    ratio = table.predicted / table.measured
    most = np.where(table.quantity.isin(WAITS), WAIT_UNIT, UNIT)
    odd = (ratio > most) | (ratio < 1 / most)
    for (schema, quantity), mine in table[odd].groupby(["schema", "quantity"]):
        refusals.refuse(str(schema), mine, f"{quantity}: {most.min():.0f} times from any prediction: another unit?")
    return table[~unknown & ~odd]


def mean_median_p90(errors: Any) -> tuple[float, float, float]:
    """Of absolute relative errors; nan where there is none."""
    e = np.abs(np.asarray(errors, dtype=float))
    e = e[np.isfinite(e)]
    return (float(e.mean()), float(np.median(e)), float(np.quantile(e, 0.9))) if len(e) else (np.nan,) * 3


def summary(errors: Any) -> str:
    """Mean, median and 90th percentile of absolute relative errors, and how many there are."""
    figures = "".join(f"{x:7.1%}" if np.isfinite(x) else "      -" for x in mean_median_p90(errors))
    return f"{figures}  n {np.isfinite(np.asarray(errors, dtype=float)).sum():4}"


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: its errors, its bias, and those of the baselines on the same rows."""
    found = []
    for key, mine in table.groupby(KEYS, sort=True):
        mean, median, p90 = mean_median_p90(mine.error)
        base = {f"{name}_mape": _base(mine, name) for name in ("roofline", "three_coefficients")}
        marks = {name: bool(mine[name].any()) for name in ("fitted_on", "low_confidence")}
        found.append(dict(zip(KEYS, key, strict=True)) | {"rows": len(mine), "mape": mean, "median": median, "p90": p90,
                     "bias": float(mine.predicted.div(mine.measured).median())} | base | marks)  # fmt: skip
    return pd.DataFrame(found)


def _base(table: pd.DataFrame, name: str) -> float:
    return mean_median_p90(table[name] / table.measured - 1)[0]


def print_cells(table: pd.DataFrame, title: str) -> None:
    """Cells as a table for people."""
    if table.empty:
        return
    print(f"\n{title}\n{'':74}   MAPE median    p90        bias  roofline  3 coeff.")
    rank = {name: i for i, name in enumerate(ORDER)}
    shown = cells(table)
    shown = shown.assign(rank=shown.quantity.map(rank).fillna(len(rank)))
    for c in shown.sort_values(["gpu", "engine", "architecture", "source", "rank", "quantity"]).itertuples():
        name = f"{c.gpu[:20]:20} {c.architecture[:20]:20} {c.source[-13:]:13} {c.engine[:9]:9} {c.quantity[:8]:8}"
        baselines = "".join(
            f"{x:9.0%}" if np.isfinite(x) else "        -" for x in (c.roofline_mape, c.three_coefficients_mape)
        )
        marks = (" fitted on" if c.fitted_on else "") + (" LOW CONFIDENCE" if c.low_confidence else "")
        print(f"{name} {c.mape:6.1%} {c.median:6.1%} {c.p90:6.1%} n {c.rows:4} x{c.bias:5.2f} {baselines}{marks}")


def print_groups(groups: Iterable[tuple[str, pd.DataFrame, str]]) -> None:
    """Lines over many cells: name, rows, and what was aimed at."""
    print(f"\n{'':58}   MAPE median    p90")
    for name, rows, target in groups:
        if len(rows):
            print(f"{name:58} {summary(rows.error)}   {target}")


def markdown(groups: Iterable[tuple[str, pd.DataFrame, str]]) -> str:
    """The same lines as a table of a document."""
    lines = ["| rows | MAPE | median | p90 | n | aimed at |", "|---|---|---|---|---|---|"]
    for name, rows, target in groups:
        if len(rows):
            figures = " | ".join(f"{x:.1%}" for x in mean_median_p90(rows.error))
            lines.append(f"| {name.strip()} | {figures} | {len(rows):,} | {target.removeprefix('target ')} |")
    return "\n".join(lines)


PARTS = "part: "  # columns of the serving table that hold seconds of a step by what takes them


def blame(table: pd.DataFrame) -> tuple[str, str]:
    """The one term of a step which, scaled, would explain most of some rows' errors: its name, and what it would do.

    Residual seconds against each term's seconds, by least absolute error over a grid of factors.
    """
    if len(table) < SMALL_GROUP:
        return "unknown", f"fewer than {SMALL_GROUP} rows"
    names = [name for name in table if name.startswith(PARTS)]
    before, best = float(np.mean(np.abs(table.error))), ("none alone", 1.0, np.inf)
    total = table[names].sum(axis=1)
    for name in names:
        if not table[name].gt(0.01 * total).any():
            continue
        for factor in np.linspace(0.2, 2.5, 47):
            share = (total + (factor - 1) * table[name]) / total
            after = float(np.mean(np.abs(table.predicted * share / table.measured - 1)))
            if after < best[2]:
                best = (name.removeprefix(PARTS), float(factor), after)
    name, factor, after = best
    if after > 0.8 * before:
        return "none alone", "no single term explains it"
    return name, f"x {factor:.2f} would take the cell from {before:.0%} to {after:.0%}"


EACH = 3  # of one engine


def print_worst(table: pd.DataFrame, count: int = 12) -> None:
    """The rows that are farthest off, each with the term of its cell to blame."""
    speed = table[table.quantity.isin(["TPOT", "ITL"])]
    if speed.empty:
        return
    worst = speed.reindex(speed.error.abs().sort_values(ascending=False).index)
    worst = worst.drop_duplicates(["gpu", "engine", "architecture"]).groupby("engine").head(EACH).head(count)
    print(
        "\nThe worst row of each of the worst cells by TPOT and ITL, and the term that would explain most of its cell"
    )
    for row in worst.itertuples():
        mine = speed[(speed.gpu == row.gpu) & (speed.engine == row.engine) & (speed.architecture == row.architecture)]
        term, effect = blame(mine)
        print(f"  {row.row_id} {row.quantity} {row.error:+.0%}: {row.what}; blame: {term} ({effect})")


def attempt(
    parts: Iterable[tuple[str, Callable[[], Any]]], failures: tuple[type[Exception], ...]
) -> tuple[list[Any], int]:
    """What each part returns; a part that cannot be read is said, and left out."""
    found, failed = [], 0
    for name, part in parts:
        try:
            found.append(part())
        except failures as error:
            failed += 1
            print(f"not scored: {name}: {error}")
    return found, failed
