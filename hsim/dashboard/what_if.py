"""What if: the question and a variation of it side by side, on the same tasks, with paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import streamlit as st

from hsim.dashboard import pictures
from hsim.dashboard.jobs import Job
from hsim.dashboard.limits import admitted
from hsim.dashboard.parts import folded, plot, share, table, tile_row
from hsim.dashboard.session import changed, key, previewed, progress, put, watch
from hsim.dashboard.sidebar import plain, steps_about
from hsim.dashboard.state import State
from hsim.dashboard.variants import gpu_only, is_split, length_ratio, scaled_lengths, split
from hsim.dashboard.words import differences_table, says_difference, tiles
from hsim.dashboard.work import Compare
from hsim.description.hardware import LinkProfile
from hsim.description.system import System
from hsim.errors import HsimError
from hsim.metrics.result import Comparison
from hsim.units import readable

LENGTHS = {"input_tokens": "Prompt length ×", "output_tokens": "Answer length ×", "rounds": "Rounds ×"}
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
PRECISIONS = ("bf16", "fp16", "fp8")
BATCHES = (8, 16, 32, 64, 128, 256, 512, 1024)
CAPS = (0.5, 0.6, 0.7, 0.8, 0.9)
NETWORKS = (0.01, 0.1, 0.25, 0.5, 2.0, 4.0)


def page(state: State, system: System) -> None:
    """The page."""
    _presets(state, system)
    try:
        other = admitted(state.varied)
    except HsimError as error:
        st.error(f"**This variation cannot be simulated.** {error}")
        st.button("Take it back", on_click=_vary, args=({}, True))
        return
    with st.expander("Vary by slider", expanded=not state.variation):
        _sliders(system, other)
    if not state.variation:
        st.info("Choose a change above: the same tasks then go through both, and differences are shown with intervals.")
        return
    st.caption("Changed: " + "; ".join(f"`{setting}`" for setting in state.variation))
    request = Compare((state.question, state.varied), state.replications)
    previews = previewed("what-if", request, (state.question, state.varied))
    watch("what-if", request, lambda job: _draw(job, state, previews))


def _draw(job: Job, state: State, previews: Sequence[Job]) -> None:
    comparison: Comparison | None = job.update.result if job.update else None
    if comparison is None:
        _preview(previews, state)
        progress("what-if", job)
        return
    here, there = comparison.studies
    st.markdown(f"### {says_difference(comparison)}")
    for title, study, other in (("Now", here, there), ("With the change", there, here)):
        st.caption(title)
        tile_row(tiles(study, state, other if other.latency else None))
    progress("what-if", job)
    if comparison.differences and comparison.differences[0]:
        plot("differences", pictures.what_changes(comparison.differences[0]))
        st.caption(
            "The same tasks through both, paired by replication; all intervals together hold at "
            f"{1 - (1 - comparison.confidence) * len(comparison.differences[0]):.0%} (Bonferroni)."
        )
        folded("All differences", "differences", lambda: table(differences_table(comparison)))
    found = there if job.ended else None
    folded("Share, reproduce, download the changed scenario", "share", lambda: share(state, state.varied, found))


def _preview(jobs: Sequence[Job], state: State) -> None:
    """One short path of each, at once."""
    st.info("**Preview:** one short path each; differences with intervals follow.")
    for title, job in zip(("Now", "With the change"), jobs, strict=False):
        st.caption(title)
        update = job.watched().update
        if job.state == "failed":
            st.error(job.error)
        tile_row(tiles(update.result, state) if update else [], preview=True)


# ---- changes


def _vary(changes: Mapping[str, Any], anew: bool = False) -> None:
    state: State = st.session_state["state"]
    put((replace(state, variation=()) if anew else state).with_variation(changes))


def _adopt() -> None:
    state: State = st.session_state["state"]
    put(replace(state, question=state.varied, variation=()))


def _presets(state: State, system: System) -> None:
    """One click each; they start anew from the question."""
    known: dict[str, Mapping[str, Any]] = {}
    for name in system.scenario.architectures:
        if name != system.scenario.architecture:
            known[f"Architecture {name}"] = {"architecture": name}
    if system.core_pools() and not known:
        known["GPU servers alone" if is_split(system) else "Split: add a CPU server"] = (
            gpu_only(system) if is_split(system) else split(system)
        )
    for name, tier in system.tiers.items():
        known[f"+1 {tier.server.name}"] = {f"fleet.{name}.count": tier.count + 1}
    for name, pool in system.engine_pools().items():
        if pool.precision != "fp8":
            known[f"{name} in fp8"] = {f"pools.{name}.precision": "fp8"}
    with st.container(horizontal=True):
        for label, changes in known.items():
            st.button(label, key=key(f"preset-{label}"), on_click=_vary, args=(changes, True))
        if state.variation:
            st.button("Reset", key=key("reset"), icon=":material/undo:", on_click=_vary, args=({}, True))
            st.button("Take it over", key=key("adopt"), icon=":material/check:", on_click=_adopt, type="primary")


def _sliders(system: System, other: System) -> None:
    columns = st.columns(3, gap="large")
    with columns[0]:
        _load_sliders(system, other)
    with columns[1]:
        for name, tier in other.tiers.items():
            count = system.tiers[name].count if name in system.tiers else tier.count
            _slider(f"{name}: servers", f"fleet.{name}.count", tier.count, steps_about(tier.count, count, whole=True))
        for name, pool in other.engine_pools().items():
            _slider(f"{name}: largest batch", f"pools.{name}.max_num_seqs", pool.max_num_seqs, BATCHES)
    with columns[2]:
        for name in other.engine_pools():
            _engine_sliders(name, other)
        for link in {link.name: link for link in other.networks.values()}.values():
            _network(link, other)


def _slider(label: str, path: str, value: float, options: Sequence[float], **more: Any) -> None:
    """A slider that sets what stands at a path of the variation."""
    widget = key(f"vary-{path}")
    callback = changed(widget, lambda state, v: state.with_variation({path: v}))
    more = {"format_func": plain} | more
    st.select_slider(label, sorted({*options, value}), value, key=widget, on_change=callback, **more)


def _load_sliders(system: System, other: System) -> None:
    arrivals = other.scenario.workload.arrivals
    for name, label in (("rate_per_s", "Tasks a second"), ("users", "Users")):
        if (value := getattr(arrivals, name, None)) is not None:
            base = getattr(system.scenario.workload.arrivals, name)
            _slider(label, f"workload.arrivals.{name}", value, steps_about(value, base, whole=name == "users"))
    before, after = system.document.data, other.document.data
    for length, label in LENGTHS.items():
        if (now := length_ratio(before, after, length)) is not None:
            widget = key(f"vary-{length}")
            callback = changed(widget, partial(_scaled, before, length))
            st.select_slider(label, sorted({*FACTORS, now}), now, key=widget, on_change=callback, format_func=plain)


def _scaled(before: Any, length: str, state: State, factor: float) -> State:
    return state.with_variation(scaled_lengths(before, length, factor))


def _engine_sliders(name: str, other: System) -> None:
    pool, chip = other.engine_pools()[name], other.tier_of(name).chip
    widget = key(f"vary-pools.{name}.precision")
    callback = changed(widget, lambda state, v: state.with_variation({f"pools.{name}.precision": v}))
    options = [*PRECISIONS, *([] if pool.precision in PRECISIONS else [pool.precision])]
    st.segmented_control(
        f"{name}: precision", options, default=pool.precision, key=widget, on_change=callback, required=True
    )
    if chip is not None and not pool.on_cores and (most := chip.power.cap_w.value) is not None:
        caps = [round(most * fraction) for fraction in CAPS]
        _slider(f"{name}: power cap, W", f"pools.{name}.power_cap_w", pool.power_cap_w or most, [*caps, most])


def _network(link: LinkProfile, other: System) -> None:
    """A slider over a link's bandwidth, which it sets under `assume`."""
    if (profile := link.bytes_per_s.value) is not None:
        figure = f"{link.name}.bytes_per_s"
        options = [float(f"{profile * factor:.3g}") for factor in NETWORKS]
        now = other.scenario.assume.get(figure, profile)
        _slider(f"{link.name}: bandwidth", f"assume.{figure}", now, [*options, profile], format_func=_per_s)


def _per_s(value: float) -> str:
    return readable(value, "B/s")
