"""Anatomy: where a task's seconds and joules go, and what devices did over time."""

from __future__ import annotations

import streamlit as st

from hsim.dashboard.parts import LATER, of_the_answer, plot, table, views
from hsim.dashboard.state import State
from hsim.dashboard.work import Update
from hsim.description.system import System
from hsim.metrics.result import Study
from hsim.report import figures
from hsim.units import readable_seconds


def page(state: State, system: System) -> None:
    """The page."""
    known = {"A task's journey": _journey, "The joules": _joules, "Over time": _over_time, "Latencies": _latencies}
    views(state, system, {name: of_the_answer(draw) for name, draw in known.items()})


def _journey(update: Update) -> None:
    study: Study = update.result
    st.markdown(f"**{study.bottleneck}.**")
    plot("anatomy", figures.stage_anatomy(study.stages, study.energy is not None))
    rows = [
        {
            "stage": s.stage,
            "pool": s.pool,
            "visits a task": f"{s.visits_per_task:.2f}",
            **{part: readable_seconds(getattr(s, f"{part}_s")) for part in figures.TIME_COLOURS},
        }
        for s in study.stages
    ]
    table(rows)
    rows = [
        {
            "pool": use.pool,
            "what": use.what,
            "busy": f"{use.busy_fraction:.1%}",
            "sequences a step": "–" if use.mean_batch is None else f"{use.mean_batch:.1f}",
            "KV cache in use": "–" if use.kv_used_fraction is None else f"{use.kv_used_fraction:.0%}",
        }
        for use in study.pools
    ]
    table(rows)


def _joules(update: Update) -> None:
    study: Study = update.result
    if study.energy is None:
        why = study.unavailable.get("energy", "no figure")
        st.info(
            f"Energy is unavailable: {why}. What to change stands on Answer, every figure that is missing on Evidence."
        )
        return
    st.markdown("**Every joule of a task, from the site's meter to the account it is booked to**")
    plot("ledger", figures.ledger_sankey(study.energy.accounts))
    st.caption(
        "The ledger equals the integral of power, recomputed from the log by separate code, to "
        f"{study.energy.ledger_gap_fraction:.1g} of it."
    )


def _over_time(update: Update) -> None:
    if (closeup := update.closeup) is None:
        st.caption(LATER)
        return
    st.markdown("**One replication from its start**; the window that is measured is shaded")
    plot("timelines", figures.timelines(closeup.timelines, closeup.window, closeup.end_s))


def _latencies(update: Update) -> None:
    if (closeup := update.closeup) is None:
        st.caption(LATER)
        return
    if not closeup.latency:
        st.info("There is no steady state, and so there are no latencies of one. What to change stands on Answer.")
        return
    st.markdown("**How many take how long**, over all replications; dotted where fewer than ten points lie beyond")
    plot("cdf", figures.latency_cdf(closeup.latency, closeup.study.slo))
