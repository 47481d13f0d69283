"""Anatomy: where a task's seconds and joules go, and what devices did over time."""

from __future__ import annotations

import streamlit as st

from hsim.dashboard.jobs import Job
from hsim.dashboard.parts import plot, table
from hsim.dashboard.session import progress, watch
from hsim.dashboard.state import State
from hsim.dashboard.work import Simulate, Trace, Traced
from hsim.description.system import System
from hsim.metrics.result import Study
from hsim.report import figures
from hsim.units import readable_seconds

PATH_TASKS = 2000


def page(state: State, system: System) -> None:
    """The page."""
    journey, joules, time, latency = st.tabs(["A task's journey", "The joules", "Over time", "Latencies"])
    study = Simulate(state.question, state.replications)
    path = Trace(state.question, PATH_TASKS)
    with journey:
        watch("answer", study, _journey)
    with joules:
        watch("answer", study, _joules)
    with time:
        watch("trace", path, _over_time)
    with latency:
        watch("trace", path, _latencies)


def _journey(job: Job) -> None:
    if (study := _study(job, "journey")) is None:
        return
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


def _joules(job: Job) -> None:
    if (study := _study(job, "joules")) is None:
        return
    if study.energy is None:
        st.info(f"Energy is unavailable: {study.unavailable.get('energy', 'no figure')}")
        return
    st.markdown("**Every joule of a task, from the site's meter to the account it is booked to**")
    plot("ledger", figures.ledger_sankey(study.energy.accounts))
    st.caption(
        "The ledger equals the integral of power, recomputed from the log by separate code, to "
        f"{study.energy.ledger_gap_fraction:.1g} of it."
    )


def _over_time(job: Job) -> None:
    if (traced := _traced(job, "time")) is not None:
        st.markdown(f"**One path of {traced.result.tasks:,} tasks**, from an empty system to an empty one")
        plot("timelines", figures.timelines(traced.lines, traced.window, traced.end_s))


def _latencies(job: Job) -> None:
    if (traced := _traced(job, "latencies")) is not None:
        st.markdown("**How many take how long**: one path; dotted where fewer than ten points lie beyond")
        plot("cdf", figures.latency_cdf(traced.latency, traced.result.slo))


def _study(job: Job, tab: str) -> Study | None:
    progress(f"answer-{tab}", job)
    return job.update.result if job.update else None


def _traced(job: Job, tab: str) -> Traced | None:
    progress(f"trace-{tab}", job)
    return job.update.result if job.update else None
