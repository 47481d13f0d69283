"""The question, in the sidebar: scenario, load, fleet, placement, objectives, site and runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import streamlit as st

from hsim.dashboard.parts import folded
from hsim.dashboard.session import changed, key, put, with_changes
from hsim.dashboard.state import MAX_REPLICATIONS, State, shipped_scenarios, value_at
from hsim.dashboard.uploads import choose, scenario_upload, trace_upload
from hsim.description.catalogue import shipped
from hsim.description.scenario import Architecture, EnginePool, Scenario, Stages, TraceArrivals
from hsim.description.yamlfile import read_document
from hsim.policies.routing import ROUTERS
from hsim.report.names import LATENCY_NAMES

OWN = "my own"
SERIES = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)  # steps of a slider within a factor of ten
OBJECTIVES = {"ttft": 2.0, "tpot": 0.1, "answer_ttft": 30.0, "e2e": 60.0}  # proposed when one is added


def question_form(state: State, scenario: Scenario | None) -> None:
    """Everything that can be asked; without a scenario that can be read, only the choice of another."""
    _choose(state)
    if scenario is None:
        return
    with st.expander("Load", expanded=True):
        _load(state, scenario)
    with st.expander("Fleet", expanded=True):
        _fleet(scenario)
    folded("Placement and engine", "placement", lambda: _placement(scenario))
    folded("Idle, routing, contexts", "options", lambda: _options(scenario))
    folded("Objectives", "objectives", lambda: _objectives(scenario))
    folded("Site", "site", lambda: _site(scenario))
    folded("Runs and units", "runs", lambda: _runs(state, scenario))


def _choose(state: State) -> None:
    names = shipped_scenarios()
    options = [*names, OWN] if state.question.text else list(names)
    widget = key("scenario")
    st.selectbox(
        "Scenario",
        options,
        index=options.index(OWN if state.question.text else state.question.base),
        key=widget,
        help="\n\n".join(f"**{name}**: {question}" for name, question in names.items()),
        on_change=_chosen,
        args=(widget,),
    )
    scenario_upload()


def _chosen(widget: str) -> None:
    if (name := st.session_state[widget]) != OWN:
        choose(name)


# ---- widgets that set one value of the scenario


def setting(path: str, convert: Callable[[Any], Any] = lambda value: value) -> tuple[str, Callable[[], None]]:
    """The key and the callback of a widget that sets what stands at a path."""
    widget = key(path)
    return widget, changed(widget, lambda state, value: with_changes(state, {path: convert(value)}))


def number(label: str, path: str, value: float | None, **options: Any) -> None:
    """A number; an empty field is null, for figures that have a default."""
    widget, callback = setting(path)
    st.number_input(label, value=value, key=widget, on_change=callback, **options)


def choice(label: str, path: str, options: Iterable[Any], value: Any, **more: Any) -> None:
    """One of several words."""
    known = list(options)
    known += [] if value in known else [value]
    widget, callback = setting(path)
    st.selectbox(label, known, index=known.index(value), key=widget, on_change=callback, **more)


def steps_about(value: float, base: float, whole: bool = False) -> list[float]:
    """Slider steps from a tenth of a base to ten times as much, with the value among them."""
    size = 10.0**-2
    steps = set()
    while size < base * 100:
        steps |= {round(size * step, 10) for step in SERIES}
        size *= 10
    near = {step for step in steps if base / 10 <= step <= base * 10 and (not whole or step % 1 == 0)}
    return sorted(near | {value})


def slider(label: str, path: str, value: float, base: float, whole: bool = False, **more: Any) -> None:
    """A quantity, on a scale of equal ratios."""
    widget, callback = setting(path, lambda v: int(v) if float(v).is_integer() else v)
    options = steps_about(value, base, whole)
    st.select_slider(label, options, value=value, key=widget, on_change=callback, format_func=plain, **more)


def plain(value: float) -> str:
    return f"{value:,.6g}"


# ---- sections


def _load(state: State, scenario: Scenario) -> None:
    arrivals = scenario.workload.arrivals
    base = state.question.unchanged().data
    for name, label, whole in (
        ("rate_per_s", "Tasks a second", False),
        ("users", "Users", True),
        ("rate_scale", "Speed of the trace", False),
    ):
        if (value := getattr(arrivals, name, None)) is not None:
            path = f"workload.arrivals.{name}"
            slider(label, path, float(value), float(value_at(base, path) or value), whole)
    if isinstance(arrivals, TraceArrivals):
        path = "workload.arrivals.max_input_tokens"
        number("Leave out prompts above", path, arrivals.max_input_tokens, min_value=1, step=1000, placeholder="tokens")
    st.caption(f"{arrivals.kind} arrivals; {', '.join(scenario.workload.classes)}; model {scenario.model}")
    with st.popover("Replay a trace", icon=":material/history:", width="stretch"):
        trace_upload("load")


def _fleet(scenario: Scenario) -> None:
    """A row for each tier: server, how many, and a button that gives it up."""
    servers = shipped_servers()
    for name, tier in scenario.fleet.items():
        kind, count, drop = st.columns([10, 5, 3], vertical_alignment="bottom", gap="xsmall")
        with kind:
            needs_gpu = any(pool.runs_on == f"{name}.gpu" for pool in scenario.pools.values())
            options = [server for server, gpus in servers.items() if gpus or not needs_gpu]
            choice(name, f"fleet.{name}.server", options, tier.server)
        with count:
            number("servers", f"fleet.{name}.count", tier.count, min_value=1, max_value=1000, step=1)
        used = any(pool.runs_on.rpartition(".")[0] == name for pool in scenario.pools.values())
        drop.button(
            "✕",
            key=key(f"drop-{name}"),
            disabled=used,
            on_click=_drop,
            args=(name,),
            help="Give up (when no pool runs on it)",
        )
    st.button("Add servers", icon=":material/add:", key=key("add-tier"), on_click=_add, width="stretch")


def _drop(name: str) -> None:
    state: State = st.session_state["state"]
    fleet = dict(state.question.document().data["fleet"])
    fleet.pop(name)
    put(with_changes(state, {"fleet": fleet}))


def _add() -> None:
    state: State = st.session_state["state"]
    fleet = state.question.document().data["fleet"]
    name = next(f"tier-{n}" for n in range(1, len(fleet) + 2) if f"tier-{n}" not in fleet)
    put(with_changes(state, {f"fleet.{name}": {"server": "epyc-9654-2s", "count": 1}}))


def _placement(scenario: Scenario) -> None:
    if scenario.architectures:
        widget = key("architecture")
        names = [*([] if scenario.architecture else [None]), *scenario.architectures]
        st.selectbox(
            "architecture",
            names,
            index=names.index(scenario.architecture),
            key=widget,
            format_func=lambda name: name or "the scenario's own",
            on_change=changed(widget, _in_architecture),
        )
    servers = shipped_servers()
    serves: dict[str, list[str]] = {}
    for stage in Stages.model_fields:
        for serving in scenario.stages.pools(stage):
            serves.setdefault(serving, []).append(stage)
    if scenario.keep:
        serves.setdefault(scenario.keep.pool, []).append("what is kept")
    for name, pool in scenario.pools.items():
        part = pool.runs_on.rpartition(".")[2]
        fitting = [tier for tier, spec in scenario.fleet.items() if part == "cpu" or servers.get(spec.server, 1)]
        stages = " and ".join(serves.get(name, ["nothing"]))
        choice(f"{name} ({stages}) on", f"pools.{name}.runs_on", [f"{tier}.{part}" for tier in fitting], pool.runs_on)
        if isinstance(pool, EnginePool):
            _engine(name, pool)


def _in_architecture(state: State, name: str) -> State:
    """The state in another architecture, without changes of what that has its own of."""
    kept = [
        s for s in state.question.settings if s.partition("=")[0].partition(".")[0] not in Architecture.model_fields
    ]
    question = replace(state.question, settings=tuple(kept))
    return replace(state, question=question.changed({"architecture": name}), variation=(), plan=())


def _engine(name: str, pool: EnginePool) -> None:
    left, right = st.columns(2)
    with left:
        choice("precision", f"pools.{name}.precision", ("bf16", "fp16", "fp8"), pool.precision)
        number(
            "max_num_seqs", f"pools.{name}.max_num_seqs", pool.max_num_seqs, min_value=1, step=1, placeholder="engine's"
        )
    with right:
        if not pool.on_cores:
            choice("tensor parallel", f"pools.{name}.tensor_parallel", (1, 2, 4, 8), pool.tensor_parallel)
        number("replicas", f"pools.{name}.replicas", pool.replicas, min_value=1, step=1, placeholder="as many as fit")


def _objectives(scenario: Scenario) -> None:
    for metric, title in LATENCY_NAMES.items():
        slo = getattr(scenario.slo, metric)
        widget = key(f"{metric}-on")
        st.checkbox(title, slo is not None, key=widget, on_change=_toggled(widget, metric))
        if slo is not None:
            left, right = st.columns(2)
            with left:
                number("within, s", f"slo.{metric}.max_s", slo.max_s, min_value=0.001, format="%.3g")
            with right:
                number(
                    "in a part of", f"slo.{metric}.p", slo.p, min_value=0.5, max_value=0.999, step=0.01, format="%.3g"
                )


def _toggled(widget: str, metric: str) -> Callable[[], None]:
    return changed(
        widget,
        lambda state, on: with_changes(
            state, {f"slo.{metric}": {"max_s": OBJECTIVES[metric], "p": 0.95} if on else None}
        ),
    )


def _options(scenario: Scenario) -> None:
    """What fleet and engines may do beside serving. The rest of a scenario's options is YAML."""
    for name, tier in scenario.fleet.items():
        path, label = f"fleet.{name}.sleep_after_s", f"switch {name} off when idle for, s"
        number(label, path, tier.sleep_after_s, min_value=0.0, placeholder="never")
    tools = any(kind.tools for kind in scenario.workload.classes.values())
    for name, pool in scenario.pools.items():
        choice(f"{name}: router", f"pools.{name}.router", ROUTERS, pool.router)
        if not isinstance(pool, EnginePool) or pool.on_cores:
            continue
        path, label = f"pools.{name}", f"{name}: unload when idle for, s"
        number(label, f"{path}.unload_after_s", pool.unload_after_s, min_value=0.0, placeholder="never")
        if tools and name in scenario.stages.pools("generate"):
            # Other policies need a link to memory, which only the YAML can say.
            choice(f"{name}: contexts during tools", f"{path}.tool_gaps", ("cache", "hold", "drop"), pool.tool_gaps)


def _site(scenario: Scenario) -> None:
    """Each place's meter and money."""
    sites = {"site": scenario.site} | {f"sites.{name}": site for name, site in scenario.sites.items()}
    for path, site in sites.items():
        if scenario.sites:
            st.markdown(
                f"**{path.rpartition('.')[2]}**" if path != "site" else "**site**, where tiers stand that name none"
            )
        number("PUE", f"{path}.pue", site.pue, min_value=1.0, max_value=3.0, step=0.05)
        by_hour = {} if site.hourly.relative else site.hourly.model_dump()  # then the figure is the mean of those
        for label, figure, most, step in (
            ("USD a kWh", "usd_per_kwh", 5.0, 0.01),
            ("g CO2 a kWh", "gco2_per_kwh", 2000.0, 10.0),
        ):
            if by_hour.get(figure):
                st.caption(f"{label}: by the hour, {getattr(site, figure):.3g} in the mean")
            else:
                number(label, f"{path}.{figure}", getattr(site, figure), min_value=0.0, max_value=most, step=step)
        choice("Servers are", f"{path}.cost.basis", ("rent", "own"), site.cost.basis)
        choice(
            "CO2 of making the servers",
            f"{path}.embodied",
            (False, True),
            site.embodied,
            format_func=("left out", "counted").__getitem__,
        )


def _runs(state: State, scenario: Scenario) -> None:
    widget = key("replications")
    st.slider(
        "Replications",
        2,
        MAX_REPLICATIONS,
        min(max(2, state.replications), MAX_REPLICATIONS),
        key=widget,
        help="Independent runs of which intervals are made",
        on_change=changed(widget, lambda s, value: replace(s, replications=value)),
    )
    if scenario.workload.tasks:
        slider("Tasks in each", "workload.tasks", scenario.workload.tasks, 2000, whole=True)
    number("Seed", "seed", scenario.seed, min_value=0, step=1)
    for name, label, options in (("energy", "Energy in", ("J", "Wh")), ("per", "Figures by", ("task", "1k tokens"))):
        widget = key(name)
        chosen = getattr(state, name)
        change = changed(widget, partial(_with, name))
        st.radio(label, options, options.index(chosen), key=widget, horizontal=True, on_change=change)


def _with(name: str, state: State, value: Any) -> State:
    return replace(state, **{name: value})


@cache
def shipped_servers() -> dict[str, int]:
    """Servers of the shipped profiles, with how many accelerators each has."""
    found = {}
    for file in sorted(shipped("hardware_profiles").glob("*.yaml")):
        data = read_document(file).data
        if data["kind"] == "server":
            found[data["name"]] = (data.get("accelerators") or {}).get("count", 0)
    return found
