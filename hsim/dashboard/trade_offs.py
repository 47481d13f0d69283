"""Trade-offs: fleets by cost, joules and latency; GPU-only against split, load by load; efficiency against load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import streamlit as st

from hsim.dashboard import pictures
from hsim.dashboard.jobs import Job
from hsim.dashboard.parts import plot, table
from hsim.dashboard.session import key, progress, watch
from hsim.dashboard.state import Question, State
from hsim.dashboard.variants import gpu_only, is_split, split
from hsim.dashboard.words import fleet_words, verdict_of
from hsim.dashboard.work import BreakEven, Sweep
from hsim.description.system import System

FEW = 4  # replications of each point: a picture of many points, and not a verdict on one
LOADS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
MOST_FLEETS = 12
FIGURES = {"tst_j": "energy a task", "usd_per_task": "cost a task", "e2e.mean_s": "mean time of a task"}


def page(state: State, system: System) -> None:
    """The page."""
    names = ["Efficiency against load", "Fleets: cost, energy, latency", "GPU-only or split"]
    chosen = st.segmented_control(
        "View", names, default=names[0], key=key("trade-off"), required=True, label_visibility="collapsed"
    )
    {names[0]: _load, names[1]: _fleets, names[2]: _break_even}[chosen or names[0]](state, system)


# ---- one fleet, several loads


def loads_about(question: Question, system: System, factors: Sequence[float]) -> list[tuple[float, Question]]:
    """(load, question) for multiples of the scenario's own load; none for one that no rate describes."""
    arrivals = system.scenario.workload.arrivals
    for name in ("rate_per_s", "users", "rate_scale"):
        if (value := getattr(arrivals, name, None)) is not None:
            loads = sorted(
                {max(1, round(value * f)) if name == "users" else float(f"{value * f:.3g}") for f in factors}
            )
            return [(load, question.changed({f"workload.arrivals.{name}": load})) for load in loads]
    return []


def _load(state: State, system: System) -> None:
    loads = loads_about(state.question, system, LOADS)
    request = Sweep(tuple(question for _, question in loads), FEW)
    watch("loads", request, lambda job: _draw_loads(job, [load for load, _ in loads]))


def _draw_loads(job: Job, loads: Sequence[float]) -> None:
    st.markdown("**What a task costs as the load grows**: idle draw is shared by more tasks, until queues grow")
    progress("loads", job)
    if job.update:
        studies = job.update.result
        plot("loads", pictures.against_load(loads[: len(studies)], studies))
        st.caption(f"{FEW} replications a point, on common random numbers; bars are 95 % intervals.")


# ---- one load, several fleets


def _around(count: int) -> list[int]:
    return sorted({max(1, count - 1), count, count + 1, 2 * count})


def neighbours(question: Question, system: System) -> list[Question]:
    """Fleets around the one that was asked for, and the other architecture; no more than MOST_FLEETS."""
    tiers = list(system.tiers.values())
    found = []
    for counts in product(*(_around(tier.count) for tier in tiers)):
        changes = {f"fleet.{tier.name}.count": count for tier, count in zip(tiers, counts, strict=True)}
        distance = sum(abs(count - tier.count) for tier, count in zip(tiers, counts, strict=True))
        found.append((distance, question.changed(changes)))
    if is_split(system):
        alone = question.changed(gpu_only(system))
        found += [(0, alone), *((1, fleet) for fleet in _of_other_sizes(alone))]
    found.sort(key=lambda pair: pair[0])
    return [fleet for _, fleet in found[:MOST_FLEETS]]


def _of_other_sizes(question: Question) -> list[Question]:
    system = question.system()
    counts = [(name, count) for name, tier in system.tiers.items() for count in _around(tier.count)]
    return [question.changed({f"fleet.{name}.count": count}) for name, count in counts[:3]]


def _fleets(state: State, system: System) -> None:
    fleets = neighbours(state.question, system)
    request = Sweep(tuple(fleets), FEW)
    names = [fleet_words(fleet.system()) for fleet in fleets]
    watch("fleets", request, lambda job: _draw_fleets(job, names))


def _draw_fleets(job: Job, names: Sequence[str]) -> None:
    st.markdown("**Fleets around yours**: left and low is better; crosses miss an objective or cannot keep up")
    progress("fleets", job)
    if not job.update:
        return
    studies = job.update.result
    verdicts = [verdict_of(study, FEW) for study in studies]
    plot("fleets", pictures.fleets(names, studies, verdicts))
    st.caption(
        f"{FEW} replications a fleet, on common random numbers; bars are 95 % intervals. The line joins fleets that no "
        "other beats in both. *Find fleet* on Answer searches with a certificate."
    )
    table([_row(*each) for each in zip(names, studies, verdicts, strict=False)])


def _row(name: str, study: Any, verdict: str) -> Mapping[str, str]:
    figures = study.figures()
    shown = {"fleet": name, "verdict": verdict}
    for figure, title in FIGURES.items():
        value = figures[figure].value if figure in figures else None
        shown[title] = "–" if value is None or verdict == "UNSTABLE" else pictures.shown(figure, value)
    return shown


# ---- two architectures, several loads


def _break_even(state: State, system: System) -> None:
    if not system.core_pools():
        st.info("This scenario has no stage on cores: there is nothing to split.")
        return
    other = state.question.changed(gpu_only(system) if is_split(system) else split(system))
    alone, apart = (other, state.question) if is_split(system) else (state.question, other)
    both = zip(loads_about(alone, system, LOADS), loads_about(apart, system, LOADS), strict=True)
    pairs = tuple((first, second) for (_, first), (_, second) in both)
    loads = [load for load, _ in loads_about(alone, system, LOADS)]
    watch("break-even", BreakEven(pairs, FEW), lambda job: _draw_break_even(job, loads))


def _draw_break_even(job: Job, loads: Sequence[float]) -> None:
    st.markdown("**Split less GPU-only, load by load**: below zero the split is better")
    progress("break-even", job)
    if job.update:
        comparisons = job.update.result
        plot("break-even", pictures.break_even(loads[: len(comparisons)], comparisons))
        st.caption(
            f"Paired differences over {FEW} replications of the same tasks; bars hold together at 95 % for each load. "
            "Machines are whole, so that winners may change more than once. Grey: neither shown better; "
            "a gap: one of the two cannot keep up."
        )
