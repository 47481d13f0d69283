"""Trade-offs: fleets by cost, joules and latency; GPU-only against split, load by load; efficiency against load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import streamlit as st

from hsim.dashboard import pictures
from hsim.dashboard.jobs import Job
from hsim.dashboard.parts import plot, table, views
from hsim.dashboard.session import key, progress, watch
from hsim.dashboard.state import Question, State
from hsim.dashboard.variants import gpu_only, is_split, split
from hsim.dashboard.words import fleet_words, nearest_quantile, verdict_of
from hsim.dashboard.work import BreakEven, Sweep
from hsim.description.system import System
from hsim.metrics.result import SloVerdict, Study
from hsim.report.names import SHORT_NAMES, figure_name

FEW = 4  # replications of each point: a picture of many points, and not a verdict on one
LOADS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
LOAD_UNITS = {"rate_per_s": "tasks a second", "users": "users", "rate_scale": "times the trace's speed"}
NO_LOAD = "The load of this scenario is no rate and no number of users: nothing can be scaled."
MOST_FLEETS = 12


def page(state: State, system: System) -> None:
    """The page."""
    known = {
        "Efficiency against load": _load,
        "Fleets: cost, energy, latency": _fleets,
        "GPU-only or split": _break_even,
    }
    views(state, system, known)


# ---- one fleet, several loads


def loads_about(question: Question, system: System, factors: Sequence[float]) -> list[tuple[float, Question]]:
    """(load, question) for multiples of the scenario's own load; none for one that no rate describes."""
    arrivals = system.scenario.workload.arrivals
    for name in LOAD_UNITS:
        if (value := getattr(arrivals, name, None)) is not None:
            loads = sorted(
                {max(1, round(value * f)) if name == "users" else float(f"{value * f:.3g}") for f in factors}
            )
            return [(load, question.changed({f"workload.arrivals.{name}": load})) for load in loads]
    return []


def load_unit(system: System) -> str:
    """What the numbers of `loads_about` count."""
    arrivals = system.scenario.workload.arrivals
    return next((unit for name, unit in LOAD_UNITS.items() if hasattr(arrivals, name)), "load")


def _load(state: State, system: System) -> None:
    loads = loads_about(state.question, system, LOADS)
    if not loads:
        st.info(NO_LOAD)
        return
    request = Sweep(tuple(question for _, question in loads), FEW, rising=True)
    watch("loads", request, lambda job: _draw_loads(job, [load for load, _ in loads], load_unit(system)))


def _draw_loads(job: Job, loads: Sequence[float], unit: str) -> None:
    st.markdown("**What a task costs as the load grows**: idle draw is shared by more tasks, until queues grow")
    progress("loads", job)
    if job.update:
        studies = job.update.result
        plot("loads", pictures.against_load(loads[: len(studies)], studies, unit))
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
    return list(dict.fromkeys(fleet for _, fleet in found))[:MOST_FLEETS]


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
    studies: Sequence[Study] = job.update.result
    verdicts = [verdict_of(study, FEW) for study in studies]
    latency, slo = _latency(studies)
    plot("fleets", pictures.fleets(names, studies, verdicts, latency, slo))
    st.caption(
        f"{FEW} replications a fleet, on common random numbers; bars are 95 % intervals. The dotted line joins fleets that "
        "no other beats in dollars and joules; the box is what the objective allows. *Find fleet* on Answer searches with "
        "a certificate."
    )
    rows = enumerate(zip(names, studies, verdicts, strict=False), 1)
    table([{"": str(number), **_row(*each, latency)} for number, each in rows])


def _latency(studies: Sequence[Study]) -> tuple[str, SloVerdict | None]:
    """The latency to draw, as a figure's name: that of the objective which is asked for, where there is one."""
    objectives = {slo.metric: slo for study in studies for slo in study.slo}
    if not objectives:
        return "e2e.mean_s", None
    metric = next(metric for metric in ("e2e", "answer_ttft", "ttft", "tpot") if metric in objectives)
    if len(objectives) > 1:
        asked = st.segmented_control(
            "Objective",
            list(objectives),
            default=metric,
            key=key("objective"),
            format_func=SHORT_NAMES.get,
            required=True,
        )
        metric = asked or metric
    known = [figures for figures in (study.figures() for study in studies) if f"{metric}.mean_s" in figures]
    return (nearest_quantile(known[0], metric, objectives[metric].p) if known else "e2e.mean_s"), objectives[metric]


def _row(name: str, study: Study, verdict: str, latency: str) -> Mapping[str, str]:
    figures = study.figures()
    shown = {"fleet": name, "verdict": verdict}
    for figure, title in {"tst_j": "energy a task", latency: figure_name(latency)[0]}.items():
        value = figures[figure].value if figure in figures else None
        shown[title] = "–" if value is None or verdict == "UNSTABLE" else pictures.shown(figure, value)
    cost = figures["usd_per_task"].value if "usd_per_task" in figures else None
    return shown | {"cost of 1,000 tasks": "–" if cost is None or verdict == "UNSTABLE" else f"${1000 * cost:.2f}"}


# ---- two architectures, several loads


def _break_even(state: State, system: System) -> None:
    if not system.core_pools():
        st.info("This scenario has no stage on cores: there is nothing to split.")
        return
    other = state.question.changed(gpu_only(system) if is_split(system) else split(system))
    alone, apart = (other, state.question) if is_split(system) else (state.question, other)
    first, second = loads_about(alone, system, LOADS), loads_about(apart, system, LOADS)
    if not first:
        st.info(NO_LOAD)
        return
    pairs = tuple((one, other) for (_, one), (_, other) in zip(first, second, strict=True))
    loads = [load for load, _ in first]
    watch("break-even", BreakEven(pairs, FEW), lambda job: _draw_break_even(job, loads, load_unit(system)))


def _draw_break_even(job: Job, loads: Sequence[float], unit: str) -> None:
    st.markdown("**Split less GPU-only, load by load**: below zero the split is better")
    progress("break-even", job)
    if job.update:
        comparisons = job.update.result
        plot("break-even", pictures.break_even(loads[: len(comparisons)], comparisons, unit))
        st.caption(
            f"Paired differences over {FEW} replications of the same tasks; bars hold together at 95 % for each load. "
            "Machines are whole, so that winners may change more than once. Grey: neither shown better; "
            "a gap: one of the two cannot keep up."
        )
