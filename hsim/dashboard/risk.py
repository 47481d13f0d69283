"""Risk: the loss of any one server, how much the load may grow, and which number matters most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from hsim.dashboard import pictures
from hsim.dashboard.jobs import Job
from hsim.dashboard.parts import folded, plot, table, views
from hsim.dashboard.session import progress, watch
from hsim.dashboard.state import Question, State
from hsim.dashboard.trade_offs import FEW, NO_LOAD, load_unit, loads_about
from hsim.dashboard.variants import scaled_lengths
from hsim.dashboard.words import sentence, verdict_of
from hsim.dashboard.work import Compare, Sweep
from hsim.description.system import System
from hsim.metrics.result import Comparison, Study
from hsim.report.names import SHORT_NAMES

GROWTH = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
SWING = 0.2
LENGTHS = {"input_tokens": "prompt length", "output_tokens": "answer length", "rounds": "rounds"}


def page(state: State, system: System) -> None:
    """The page."""
    views(state, system, {"Loss of a server": _loss, "Headroom": _headroom, "Which number matters": _tornado})


# ---- N+1


def _loss(state: State, system: System) -> None:
    st.markdown("**With any one server gone for good**: does the rest still keep the objectives?")
    spare = {name: tier for name, tier in system.tiers.items() if tier.count > 1}
    for name, tier in system.tiers.items():
        if name not in spare:
            st.error(
                f"**{name}** is one {tier.server.name}: without it nothing is served. A second one is the least that helps."
            )
    if spare:
        fleets = tuple(state.question.changed({f"fleet.{n}.count": t.count - 1}) for n, t in spare.items())
        lost = [f"{name}: {tier.count - 1} of {tier.count} {tier.server.name} left" for name, tier in spare.items()]
        watch("loss", Sweep(fleets, state.replications), lambda job: _draw_loss(job, lost, state.replications))


def _draw_loss(job: Job, lost: Sequence[str], wanted: int) -> None:
    progress("loss", job)
    for name, study in zip(lost, job.update.result if job.update else (), strict=False):
        verdict = verdict_of(study, wanted)
        box = {"PASS": st.success, "NONE": st.info, "UNDECIDED": st.warning}.get(verdict, st.error)
        box(f"**{verdict}, {name}.** {sentence(study, verdict, wanted)}")
    st.caption("The steady state after the loss. What happens while it fails, and until it is repaired, is not shown.")


# ---- headroom


def _headroom(state: State, system: System) -> None:
    loads = loads_about(state.question, system, GROWTH)
    if not loads:
        st.info(NO_LOAD)
        return
    if not any(vars(system.scenario.slo).values()):
        st.info("Headroom is how far the load may grow before an objective is missed: set one under Objectives.")
        return
    request = Sweep(tuple(question for _, question in loads), state.replications, rising=True)
    known = [load for load, _ in loads]
    watch("headroom", request, lambda job: _draw_headroom(job, known, load_unit(system), state.replications))


def _draw_headroom(job: Job, loads: Sequence[float], unit: str, wanted: int) -> None:
    progress("headroom", job)
    studies: Sequence[Study] = job.update.result if job.update else ()
    verdicts = [verdict_of(study, wanted) for study in studies]
    st.markdown(f"**{_grows(loads, verdicts)}**")
    rows = []
    for load, study, verdict in zip(loads, studies, verdicts, strict=False):
        rows.append({unit: f"{load:g}", "times now": f"{load / loads[0]:.2f}", "verdict": verdict, **_attained(study)})
    if rows:
        plot("headroom", pictures.headroom(loads, studies, verdicts, unit))
        folded("The figures", "headroom", lambda: table(rows))
    st.caption(
        "Each verdict by itself stands at 95 %. Beyond a load that the fleet cannot keep up with none is simulated."
    )


def _grows(loads: Sequence[float], verdicts: Sequence[str]) -> str:
    """How far the load may grow, in a sentence: up to the last PASS before anything else."""
    passed = 0
    while passed < len(verdicts) and verdicts[passed] == "PASS":
        passed += 1
    if not verdicts:
        return "How far may the load grow?"
    if passed == 0:
        return f"No headroom: at the load of today the verdict is {verdicts[0]}."
    if passed == len(verdicts):
        return f"Passes at every load so far, up to {loads[passed - 1] / loads[0]:.2f} times that of today."
    after = f"{verdicts[passed]} at {loads[passed] / loads[0]:.2f}"
    return f"The load may grow to {loads[passed - 1] / loads[0]:.2f} times that of today; {after}."


def _attained(study: Study) -> Mapping[str, str]:
    return {
        f"{SHORT_NAMES[slo.metric]} in its objective": f"{slo.attained.value:.2%} ({100 * slo.p:.4g} % wanted)"
        for slo in study.slo
        if slo.attained.value is not None
    }


# ---- tornado


def inputs(question: Question, system: System) -> dict[str, tuple[Question, Question]]:
    """Every input that can be swung, at less and at more, by what to call it."""
    found: dict[str, tuple[Question, Question]] = {}

    def swing(name: str, less: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        ends = question.changed(less), question.changed(more)
        if less and question not in ends:
            found[name] = ends

    ends = loads_about(question, system, (1 - SWING, 1 + SWING))
    if len(ends) == 2:
        found["load"] = ends[0][1], ends[1][1]
    data = system.document.data
    for length, name in LENGTHS.items():
        swing(name, *(scaled_lengths(data, length, factor) for factor in (1 - SWING, 1 + SWING)))
    for name, (figure, value) in _figures(system).items():
        swing(name, *({f"assume.{figure}": float(f"{value * f:.4g}")} for f in (1 - SWING, 1 + SWING)))
    return found


def _figures(system: System) -> dict[str, tuple[str, float]]:
    """Figures of the hardware that matter to joules and times, where they are known, by what to call them."""
    found: dict[str, tuple[str, float | None]] = {}
    for tier in system.tiers.values():
        found[f"idle draw of {tier.cpu.name}"] = f"{tier.cpu.name}.idle_w", tier.cpu.idle_w.value
        found[f"base draw of {tier.server.name}"] = f"{tier.server.name}.base_w", tier.server.base_w.value
    for pool in system.engine_pools():
        chip = system.tier_of(pool).chip
        if chip is not None:
            loaded = f"{chip.name}.power.loaded_idle_w", chip.power.loaded_idle_w.value
            found[f"idle draw of {chip.name}, loaded"] = loaded
            memory = f"{chip.name}.memory_bytes_per_s", chip.memory_bytes_per_s.value
            found[f"memory bandwidth of {chip.name}"] = memory
    return {name: (figure, value) for name, (figure, value) in found.items() if value}


def _tornado(state: State, system: System) -> None:
    swings = inputs(state.question, system)
    questions = [state.question, *(end for ends in swings.values() for end in ends)]
    watch("tornado", Compare(tuple(questions), FEW), lambda job: _draw_tornado(job, list(swings)))


def _draw_tornado(job: Job, names: Sequence[str]) -> None:
    st.markdown(f"**What {SWING:.0%} less and {SWING:.0%} more of each input do**: measure the upper ones better first")
    progress("tornado", job)
    comparison: Comparison | None = job.update.result if job.update else None
    if comparison is None:
        return
    for figure, title in (("tst_j", "Energy a task"), ("e2e.mean_s", "Mean time of a task")):
        swings = pictures.swings_of(names, comparison, figure)
        if swings:
            st.markdown(title)
            plot(f"tornado-{figure}", pictures.tornado(swings))
    few = comparison.studies[0].replications == 1
    said = "of a single replication: without intervals" if few else "with intervals that hold together at 95 %"
    st.caption(f"Paired differences on the same tasks, {said}.")
