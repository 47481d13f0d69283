"""Wall watts of servers without accelerators, idle and full, from year, chips, cores and memory: fitted, and left one out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

YEAR_0, YEARS = 2014.0, 6.0  # centre and scale: numbers near 1
RIDGE = 1e-2


def usable(rows: pd.DataFrame, refusals: Any) -> pd.DataFrame:
    """Rows per node, with the year; what has none, or a year that cannot be, is refused."""
    year = pd.to_datetime(rows.submitted, errors="coerce", format="mixed").dt.year
    rows = rows.assign(year=year)
    rows = refusals.drop("server_power", rows, ~year.between(1998, 2040), "submitted is not a date of our time")
    needs = ["nodes", "chips", "cores", "memory_GB", "cpu_mhz", "wall_power_full_W", "wall_power_idle_W"]
    return refusals.drop("server_power", rows, rows[needs].isna().any(axis=1), "a size or wattage is NaN")


def design(rows: pd.DataFrame) -> Any:
    """Logs of chips, cores a chip, memory and clock of one node, year twice, and how each changed with the years."""
    year = ((rows.year - YEAR_0) / YEARS).to_numpy()
    nodes = rows.nodes.to_numpy()
    sizes = np.log(
        np.column_stack(
            [rows.chips / nodes, rows.cores / rows.chips, rows.memory_GB / nodes / 64.0, rows.cpu_mhz / 2500.0]
        )
    )
    return np.column_stack([np.ones(len(rows)), sizes, year, year**2, year[:, None] * sizes[:, :3]])


@dataclass(frozen=True)
class ServerPower:
    """Fitted coefficients of log watts a node."""

    coefficients: Any

    def watts(self, rows: pd.DataFrame) -> Any:
        return np.exp(design(rows) @ self.coefficients)


def fit(rows: pd.DataFrame, column: str) -> ServerPower:
    matrix, target = design(rows), np.log(rows[column] / rows.nodes).to_numpy()
    return ServerPower(np.linalg.solve(matrix.T @ matrix + RIDGE * np.eye(matrix.shape[1]), matrix.T @ target))


def left_out_errors(rows: pd.DataFrame, column: str) -> Any:
    """Relative error of each server from a fit on all the others, by the hat matrix."""
    matrix, target = design(rows), np.log(rows[column] / rows.nodes).to_numpy()
    hat = matrix @ np.linalg.solve(matrix.T @ matrix + RIDGE * np.eye(matrix.shape[1]), matrix.T)
    miss = (target - hat @ target) / (1 - np.diag(hat))
    return np.exp(-miss) - 1


def load_exponents(rows: pd.DataFrame) -> pd.DataFrame:
    """For each CPU and kind of load: idle and full package watts, the exponent that fits best, and its error."""
    found = []
    for (cpu, kind), mine in rows.groupby(["cpu", "load_kind"]):
        loaded = mine[mine.cpu_load_percent >= 5]
        if len(loaded) < 4:
            continue
        low = mine[(mine.cpu_load_percent < 5) & (mine.package_power_W > 2)].package_power_W
        full = float(loaded.package_power_W.max())
        share = (loaded.cpu_load_percent / loaded.cpu_load_percent.max()).to_numpy()
        measured = loaded.package_power_W.to_numpy()
        best = None
        for idle in [float(low.min())] if len(low) else np.linspace(0.2, 0.95, 16) * measured.min():
            for exponent in np.linspace(0.1, 1.8, 69):
                error = float(np.mean(np.abs((idle + (full - idle) * share**exponent) / measured - 1)))
                if best is None or error < best[0]:
                    best = (error, idle, exponent)
        assert best is not None
        default = float(np.mean(np.abs((best[1] + (full - best[1]) * share**0.7) / measured - 1)))
        found.append(
            {
                "cpu": cpu,
                "load": kind,
                "idle_w": best[1],
                "full_w": full,
                "exponent": best[2],
                "error": best[0],
                "error_at_0.7": default,
            }
        )
    return pd.DataFrame(found)
