"""The Answer: one sentence, four figures with intervals, one picture; all else when asked for."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from hsim.dashboard import pictures, planner
from hsim.dashboard.jobs import Job
from hsim.dashboard.parts import folded, plot, share, tile_row
from hsim.dashboard.session import previewed, previews, progress, put, watch
from hsim.dashboard.state import State
from hsim.dashboard.words import Advice, advice, sentence, tiles, verdict_of
from hsim.dashboard.work import Simulate
from hsim.description.system import System
from hsim.metrics.result import Result, Study

BOXES = {"PASS": st.success, "FAIL": st.error, "UNDECIDED": st.warning, "UNSTABLE": st.error, "NONE": st.info}


def ahead(state: State) -> None:
    """Begin the preview, while all else is drawn."""
    previews(Simulate(state.question, state.replications), [state.question])


def page(state: State, system: System) -> None:
    """The page."""
    if asked := state.question.asks:
        st.markdown(f"##### {asked}")
    request = Simulate(state.question, state.replications)
    shown = previewed("answer", request, [state.question])
    watch("answer", request, lambda job: _draw(job, state, system, shown))
    label = "Find fleet, or use what I have"
    if state.plan:  # a search ends when nobody watches it, and so it is watched while its section is folded too
        with st.expander(label, expanded=True):
            planner.section(state, system)
    else:
        folded(label, "plan", lambda: planner.section(state, system))


def _draw(job: Job, state: State, system: System, shown: Sequence[Job]) -> None:
    study: Study | None = job.update.result if job.update else None
    if study is None:
        for preview in shown:
            _preview(preview.watched(), state)
        progress("answer", job)
        return
    assert job.update is not None
    wanted = job.update.wanted
    verdict = verdict_of(study, wanted)
    head = "" if verdict == "NONE" else f"**{verdict}.** "
    BOXES[verdict](head + sentence(study, verdict, wanted))
    tile_row(tiles(study, state))
    progress("answer", job)
    plot("goes", pictures.where_it_goes(study.stages, study.energy.accounts if study.energy else ()))
    st.markdown(f"**Bottleneck.** {study.bottleneck}.")
    _next(advice(study, verdict, system))
    for warning in study.warnings:
        st.caption(f":material/warning: {warning}")
    folded("All figures, with intervals", "figures", lambda: st.dataframe(study.to_frame(), width="stretch"))
    found, closeup = study if job.ended else None, job.update.closeup
    folded("Share, reproduce, download", "share", lambda: share(state, state.question, found, closeup))


def _preview(job: Job, state: State) -> None:
    """What one short path says, while the study is on its way."""
    if job.state == "failed":
        st.error(job.error)
    if job.update is None:
        st.info("Simulating")  # letters beyond ASCII would make Streamlit load its emoji first
        tile_row([])
        return
    result: Study | Result = job.update.result
    st.info(f"**Preview** of one short path ({result.tasks:,} tasks), without intervals; the simulated result follows.")
    tile_row(tiles(result, state), preview=True)
    plot("goes", pictures.where_it_goes(result.stages, result.energy.accounts if result.energy else ()))


def _next(advised: Advice) -> None:
    left, right = st.columns([5, 1], vertical_alignment="center")
    left.markdown(f"**Next.** {advised.text}")
    if advised.settings:
        right.button("Try it", on_click=_try, args=(advised,), width="stretch", help="Shows it on What if")


def _try(advised: Advice) -> None:
    from dataclasses import replace

    state: State = st.session_state["state"]
    assert advised.settings is not None
    put(replace(replace(state, variation=()).with_variation(advised.settings), page="What if"))
