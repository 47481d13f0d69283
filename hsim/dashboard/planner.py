"""Find fleet, and use what you have: the planner's form, its progress, and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from hsim.dashboard.jobs import Job
from hsim.dashboard.parts import table, tile_row
from hsim.dashboard.session import key, progress, put, watch
from hsim.dashboard.sidebar import shipped_servers
from hsim.dashboard.state import State, inline
from hsim.dashboard.variants import bought, is_split
from hsim.dashboard.words import tiles
from hsim.dashboard.work import FindFleet
from hsim.description.system import System
from hsim.plan import Plan, Step

AIMS = {"cost": "dollars", "tst": "joules a task", "co2": "CO2 a task"}
SHOWN = 12  # fleets of the why-not table, nearest to the answer


def section(state: State, system: System) -> None:
    """The form; and what is found, once it was asked for."""
    find, use = st.tabs(["Find fleet", "Use what I have"])
    with find:
        _find_form(state, system)
    with use:
        _use_form(state, system)
    if state.plan:
        request = FindFleet(state.question, state.plan)
        watch("plan", request, lambda job: _draw(job, state), "plan")


# ---- what is asked


def _find_form(state: State, system: System) -> None:
    """Which servers may be bought, and how many."""
    choices = state.question.choices()
    asked: dict[str, Any] = {}
    aim = st.segmented_control(
        "The least", list(AIMS), default="cost", key=key("aim"), format_func=AIMS.__getitem__, required=True
    )
    servers = shipped_servers()
    for name, tier in system.tiers.items():
        left, right = st.columns([4, 1])
        like = [server for server, chips in servers.items() if bool(chips) == bool(tier.accelerators_per_server)]
        default = choices.get(f"fleet.{name}.server", [tier.server.name])
        kinds = left.multiselect(f"{name}: kinds of server", like, default, key=key(f"kinds-{name}"))
        most = max(choices.get(f"fleet.{name}.count", [2 * tier.count + 1]))
        count = right.number_input("at most", 1, 64, most, key=key(f"most-{name}"))
        asked |= {f"fleet.{name}.server": kinds, f"fleet.{name}.count": list(range(1, count + 1))}
    for path, values in choices.items():
        if not path.startswith("fleet."):
            asked[path] = values
    if is_split(system) and not any(path.endswith("runs_on") for path in choices):
        asked |= _without_cpu_tier(system)
    of = "Rent; or, of servers that are owned, what they cost over their lifetime: their electricity comes on top."
    budget = st.number_input("USD an hour at most", 0.0, value=None, placeholder="no limit", key=key("budget"), help=of)
    if budget:
        asked["plan.max_usd_per_h"] = budget
    asked["plan.minimise"] = aim
    ready = all(values for path, values in asked.items() if path.endswith(".server"))
    st.button("Find the fleet", type="primary", key=key("find"), disabled=not ready, on_click=_ask, args=(asked,))


def _without_cpu_tier(system: System) -> dict[str, Any]:
    """The choice to do without CPU servers, where the GPU servers' own cores may serve."""
    return _alone(system) if st.checkbox("Perhaps without CPU servers", value=True, key=key("alone")) else {}


def _use_form(state: State, system: System) -> None:
    """How many of each server are there."""
    st.caption("Which of the machines that you own should serve, and what would one more or one fewer change?")
    asked: dict[str, Any] = {}
    for (name, tier), column in zip(system.tiers.items(), st.columns(len(system.tiers)), strict=True):
        owned = column.number_input(f"{tier.server.name}", 1, 64, tier.count, key=key(f"have-{name}"))
        asked[f"fleet.{name}.count"] = list(range(1, owned + 1))
        asked[f"plan.have.{tier.server.name}"] = owned
    if is_split(system):
        asked |= _alone(system)
    asked["plan.minimise"] = "tst"
    st.button("Use these best", type="primary", key=key("use"), on_click=_ask, args=(asked,))


def _alone(system: System) -> dict[str, Any]:
    """The first pool of cores that stands apart may stand on the GPU servers too."""
    host = system.tier_of(system.scenario.stages.generate).name
    apart = [pool for pool in system.core_pools() if system.tier_of(pool).name != host]
    return {f"pools.{pool}.runs_on": [system.scenario.pools[pool].runs_on, f"{host}.cpu"] for pool in apart[:1]}


def _ask(asked: dict[str, Any]) -> None:
    state: State = st.session_state["state"]
    put(replace(state, plan=tuple(f"{path}={inline(value)}" for path, value in asked.items())), by_widget=True)


# ---- what is found


def _draw(job: Job, state: State) -> None:
    progress("plan", job)
    found = job.update.result if job.update else None
    if isinstance(found, Step):
        at = f" {found.fleet}:" if found.fleet else ""
        st.caption(f"{found.phase}:{at} {found.message}; {found.replications:,} replications so far")
    elif isinstance(found, Plan):
        _answer(found, state)


def _answer(found: Plan, state: State) -> None:
    if found.chosen is None:
        st.error(f"**No fleet was certified.** {found.binding or found.claim}")
    else:
        fleet = found.chosen.fleet
        price = f" at {fleet.usd_per_h:,.2f} USD an hour{_in_servers(found)}" if fleet.usd_per_h is not None else ""
        st.success(f"**{fleet.name}**{price}. {found.claim}")
        if found.study:
            tile_row(tiles(found.study, state))
        st.button("Take this fleet", type="primary", key=key("take"), on_click=_take, args=(fleet.choices,))
    st.markdown(_effort(found))
    table(_why_not(found))
    if len(found.judged) > SHOWN:
        st.caption(f"{len(found.judged):,} fleets were judged; the {SHOWN} nearest to the answer are shown.")


def _in_servers(found: Plan) -> str:
    """Said of a price where electricity comes on top."""
    return " in servers" if any(judged.fleet.electricity for judged in found.judged) else ""


def _effort(found: Plan) -> str:
    bound = found.bound
    said = f"{found.replications:,} replications instead of {found.brute_force_replications:,}."
    if bound.milp_usd_per_h is not None:
        least = f"{bound.milp_usd_per_h:,.2f} USD an hour{_in_servers(found)}"
        said += f" No fleet of the {found.space:,} can do the work for less than {least}."
    if found.undecided:
        said += f" Undecided: {', '.join(judged.fleet.name for judged in found.undecided[:3])}."
    return said


def _why_not(found: Plan) -> Sequence[dict[str, str]]:
    nearest = sorted(found.judged, key=lambda j: (not j.replications, -(j.fleet.usd_per_h or 0.0)))[:SHOWN]
    return [
        {
            "fleet": judged.fleet.name,
            f"USD an hour{_in_servers(found)}": "–"
            if judged.fleet.usd_per_h is None
            else f"{judged.fleet.usd_per_h:,.2f}",
            "verdict": "WORSE" if judged.by == "worse" else judged.verdict,
            "why": judged.reason,
        }
        for judged in nearest
    ]


def _take(choices: dict[str, Any]) -> None:
    state: State = st.session_state["state"]
    put(replace(state, question=bought(state.question, choices), variation=(), plan=()))
