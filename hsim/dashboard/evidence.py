"""Evidence: what the figures stand on, how sure they are, how far off predictions were, what is not modelled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from hsim.dashboard.parts import LATER, folded, of_the_answer, plot, table, views
from hsim.dashboard.state import State
from hsim.dashboard.work import Update
from hsim.description.hardware import StepTable
from hsim.description.system import System
from hsim.metrics.result import Assumption, Study
from hsim.report import figures
from hsim.report.page import limits

TIERS = {
    "measured": "on this very hardware",
    "published": "by its maker or a primary source",
    "fitted": "to measurements",
    "transferred": "from a relative",
    "assumed": "since nobody published one",
}


def page(state: State, system: System) -> None:
    """The page."""
    sure, stands = of_the_answer(_sampling), of_the_answer(_provenance)
    known = {"How sure": sure, "What it stands on": stands, "Calibration": _calibration, "Not modelled": _limits}
    views(state, system, known)


def _limits(state: State, system: System) -> None:
    st.markdown("\n".join(f"- {point}" for point in limits()))


def _sampling(update: Update) -> None:
    """Both uncertainties side by side, the replications, and the warm-up."""
    if (closeup := update.closeup) is None:
        st.caption(LATER)
        return
    study = closeup.study
    if not study.latency:
        st.info("There is no steady state: what follows has no intervals.")
    else:
        st.markdown("**Two uncertainties.** More replications shrink the first; only measuring shrinks the second.")
        plot("uncertainty", figures.uncertainty(study))
    if len(next(iter(closeup.by_replication.values()), ())) > 1:
        st.markdown("**Independent replications**, with the figure and its 95 % interval")
        plot("replications", figures.replications(closeup.by_replication, study.figures()))
    if study.warm_up:
        st.markdown(f"**Warm-up.** The first {study.warm_up.tasks:,} tasks, before the dashed line, are left out.")
        plot("warm-up", figures.warm_up(closeup.sojourn_s, closeup.in_progress, study.warm_up.tasks))
    st.caption(
        "Intervals cover sampling error, on the condition that the model is right. How they are made, and how it was "
        "tested that they hold, is in docs/statistics.md."
    )


def _provenance(update: Update) -> None:
    study: Study = update.result
    total = sum(study.evidence.values())
    counts = ", ".join(f"{count} {tier} ({TIERS[tier]})" for tier, count in study.evidence.items())
    st.markdown(f"**This result stands on {total} figures of profiles**: {counts}.")
    for what, why in study.unavailable.items():
        st.warning(f"{what} is unavailable: {why}")
    for line in study.accuracy:
        st.caption(f"{line}.")
    assumed = [a for a in study.assumptions if a.why.startswith("assumed")]
    if assumed:
        st.markdown("**Assumed, since nobody published them**: measure these first")
        _reasons(assumed)
    others = [a for a in study.assumptions if a not in assumed]
    folded("Rough, transferred or by default", "others", lambda: _reasons(others), expanded=not assumed)


def _reasons(assumptions: Sequence[Assumption]) -> None:
    """Assumptions with their reasons, which are sentences and wrap."""
    rows = [{"figure": a.name, "value": a.value, "why": a.why.removeprefix("assumed: ")} for a in assumptions]
    wide = {"figure": {"width": 230}, "value": {"width": 150}, "why": {"width": 390}}
    st.dataframe(rows, width="stretch", hide_index=True, row_height=66, column_config=wide)


def _calibration(state: State, system: System) -> None:
    """Step tables that were measured for this run, and validations that lie here."""
    if not system.step_tables:
        st.info(
            "No step of this model was measured on this hardware: its times are composed from kernel laws that were "
            "fitted to measurements of others (docs/models.md has their errors). `hsim calibrate` measures your own."
        )
    for pool, measured in system.step_tables.items():
        st.markdown(f"**{measured.name}**, measured, for pool {pool}: {measured.source}")
        plot(f"steps-{pool}", _steps(measured))
        if measured.median_error_fraction is not None:
            st.caption(f"Held-out error: median {measured.median_error_fraction:.1%}")
    validations = sorted(Path().glob("validation*.json"))
    for file in validations:
        _validation(file)
    if not validations:
        st.caption("`hsim validate my.yaml --out .` puts predicted beside measured here.")


def _steps(measured: StepTable) -> figures.Figure:
    """Measured seconds of a decode step by batch, a line for each context."""
    data = []
    for j, context in enumerate(measured.contexts):
        y = [1000 * row[j] for row in measured.decode_s]
        line = {"color": figures.COLOURS[j % len(figures.COLOURS)]}
        drawn = {"type": "scatter", "mode": "lines+markers", "line": line}
        data.append({"x": list(measured.decodes), "y": y, "name": f"context {context:,}", **drawn})
    axes = {"xaxis": {"title": {"text": "sequences in a step"}}, "yaxis": {"title": {"text": "ms a decode step"}}}
    return {"data": data, "layout": {**axes, "height": 320}}


def _validation(file: Path) -> None:
    """Predicted beside measured, from a file that `hsim validate` wrote: of one load, or of several."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        runs: list[dict[str, Any]] = found.get("runs", [{"name": "", **found}])
        shown = [
            (", ".join(filter(None, (file.name, run["name"]))), _told(run), [_row(row) for row in run["compared"]])
            for run in runs
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        st.warning(f"{file}: is not a validation that hsim wrote ({error})")
        return
    for name, told, rows in shown:
        st.markdown(f"**{name}**: {told}")
        table(rows)


def _told(run: dict[str, Any]) -> str:
    times = f", {len(run['tasks'])} times" if len(run["tasks"]) > 1 else ""
    return f"{run['tasks'][0]['asked']:,} tasks predicted, then run live on {run['device']}{times}"


def _row(row: dict[str, Any]) -> dict[str, Any]:
    spread = row["spread_fraction"]
    return {
        "": row["quantity"],
        "unit": row["unit"],
        "predicted": row["predicted"],
        "measured": row["measured"],
        "repeats ±": "–" if spread is None else f"{spread:.1%}",
        "error": "–" if row["error_fraction"] is None else f"{row['error_fraction']:+.1%}",
        "verdict": row["verdict"],
    }
