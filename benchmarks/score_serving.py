"""Measured serving runs against runs simulated by hsim's engine, with shipped profiles or with refitted ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerators as acc
import fit_models
import numpy as np
import pandas as pd
import rows as measured
import serving_fit
from cells import PARTS, predicted_rows
from closed_loop import mix_of
from simulated_loop import COLD, STEADY, Observed, observe

from hsim.costs.composed import ComposedCosts, Placement
from hsim.costs.laws import ELEMENT_BYTES, working_precision
from hsim.costs.shapes import StepShape
from hsim.description.catalogue import load_profile
from hsim.description.hardware import AcceleratorProfile, EngineProfile
from hsim.description.system import Figures
from hsim.errors import DescriptionError

# 1.65 x roofline - 1.06 ms + 0.054 ms x batch: fitted on H100 dense chat rows, by the README of the data.
THREE = (1.65, -1.06e-3, 0.054e-3)


def shipped_world() -> serving_fit.World:
    """Profiles as a user gets them, by the names that rows use."""
    chips = {row: load_profile(sheet.name, AcceleratorProfile, row)[0] for row, sheet in acc.BY_ROW.items()}
    names = [*fit_models.ENGINES, *fit_models.ALSO]
    engines = {name: load_profile(name, EngineProfile, name)[0] for name in names}
    return serving_fit.World(measured.catalogue(), chips, engines)


def engine_of(name: str, host: serving_fit.Host) -> EngineProfile:
    """An engine profile with fitted constants; an engine never seen has the mean of all, and no claim to be right."""
    usual = {k: float(np.mean([e[k] for e in host.engines.values()])) for k in serving_fit.USUAL}
    seen = host.engines.get(name) or usual
    as_figure = lambda value: {"value": value, "tier": "fitted", "source": "this run"}  # noqa: E731
    profile = fit_models.engine_stub(name).model_dump() | {k: as_figure(v) for k, v in seen.items() if k != "fused"}
    routing = {"fused": as_figure(seen["fused"]), serving_fit.ROUTING: as_figure(host.special_s)}
    checked: EngineProfile = EngineProfile.model_validate(profile | {"host_s_per_expert_layer": routing})
    return checked


def refitted_world(fit: fit_models.Fit, names: list[str]) -> serving_fit.World:
    """Profiles of a fit."""
    chips = fit_models.chips_of(fit.kernels, fit, fit.host.factor)
    return serving_fit.World(measured.catalogue(), chips, {name: engine_of(name, fit.host) for name in names})


@dataclass
class Simulator:
    """Simulates serving rows in a world of profiles; rows that have no place in it are refused."""

    world: serving_fit.World
    refusals: measured.Refusals
    _known: dict[Any, ComposedCosts | str] = field(default_factory=dict)

    def predict(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows that could be simulated, with what was predicted for each and seconds of a step by what takes them."""
        found = []
        for row in rows.itertuples():
            costs = self._costs(row)
            if isinstance(costs, str):
                self.refusals.refuse("serving", 1, costs)
                continue
            found.append({"index": row.Index} | self._row(row, costs))
        if not found:
            return rows.iloc[:0]
        plain = rows.drop(columns=["architecture", "path"], errors="ignore")
        return plain.join(pd.DataFrame(found).set_index("index"), how="inner")

    def _costs(self, row: Any) -> ComposedCosts | str:
        """Costs of a row's placement, or why there are none."""
        world = self.world
        if world.models.get(row.model) is None:
            return measured.no_model(row.model)
        if row.gpu not in world.chips:
            return f"no profile of GPU {row.gpu}: add it to benchmarks/accelerators.py and hardware_profiles/"
        if row.engine_profile not in world.engines:
            return f"no profile of engine {row.engine_profile}: known are {', '.join(world.engines)}"
        model, chip, engine = world.models[row.model], world.chips[row.gpu], world.engines[row.engine_profile]
        placement = serving_fit.placement_of(row, model, chip, engine)
        if placement is None:
            return f"weights in {row.weight_precision} are not modelled"
        key = (model.name, chip.name, engine.name, placement.tensor_parallel, placement.data_parallel,
               placement.expert_parallel, placement.precision, placement.kv_precision)  # fmt: skip
        if key not in self._known:
            self._known[key] = _composed(placement)
        return self._known[key]

    def _row(self, row: Any, costs: ComposedCosts) -> dict[str, Any]:
        placement, load = costs.placement, serving_fit.load_of(row)
        model, engine = placement.model, placement.engine
        idle_w = placement.devices * Figures({}).if_known(placement.chip, "power.loaded_idle_w")
        seen = observe(costs, load, STEADY if row.source.startswith("mlenergy") else COLD, idle_w)
        roofline_s = roofline(row, placement)
        three = THREE[0] * roofline_s + THREE[1] + THREE[2] * row.sequences
        names = {name for error in engine.errors for name in error.architectures}
        return {
            "architecture": measured.architecture_of(model), "path": model.path,
            "fitted_on": measured.architecture_of(model) in names, "low_confidence": bool(costs.notes),
            "roofline_s": roofline_s, "three_s": three, "latency_s": _latency_s(engine),
            "what": f"{row.engine} {row.engine_version} {row.model} x{placement.devices} {placement.precision}, "
                    f"{row.sequences:.0f} sequences, {row.prompt_tokens:.0f} in, {row.output_tokens_mean:.0f} out",
        } | _observed(seen) | _parts(costs, load)  # fmt: skip


def _composed(placement: Placement) -> ComposedCosts | str:
    try:
        costs = ComposedCosts(placement, Figures({}))
    except DescriptionError as error:
        return str(error)
    held = placement.model.parameters * ELEMENT_BYTES[placement.precision]
    room = placement.devices * (placement.chip.memory_bytes.value or np.inf)
    if held > room:
        return f"{placement.model.name} in {placement.precision} does not fit into {placement.devices} x {placement.chip.name}"
    return costs


def _latency_s(engine: EngineProfile) -> float:
    figure = engine.request_latency_s
    return figure.value if figure is not None and figure.value is not None else 0.0


def _observed(seen: Observed) -> dict[str, float]:
    return {"step_s": seen.tpot_s, "throughput": seen.tokens_per_s, "itl_s": seen.itl_median_s, "ttft_s": seen.ttft_s,
            "watts": seen.watts, "joules": seen.joules_per_token}  # fmt: skip


def _parts(costs: ComposedCosts, load: Any) -> dict[str, float]:
    """Mean seconds of a step by what takes them."""
    mix = mix_of(load)
    table = pd.DataFrame([costs.parts(shape) for shape in mix.shapes])
    return {PARTS + str(name): float(np.array(mix.weights) @ table[name].to_numpy()) for name in table}


def roofline(row: Any, placement: Placement) -> float:
    """Weights and context once over the bandwidth, or FLOPs at the peak: what plain arithmetic says of a step."""
    costs = ComposedCosts(placement, Figures({}))
    sequences = max(1, round(row.sequences))
    shape = StepShape(sequences, round(row.sequences * (row.prompt_tokens + row.output_tokens_mean / 2)))
    n_bytes, flops, _ = costs.work(shape)
    chip = placement.chip
    peaks = chip.peak_flops_per_s
    known = peaks.get("bf16") or peaks.get(working_precision(placement.precision))  # type: ignore[call-overload]
    bandwidth, peak = chip.memory_bytes_per_s.value or np.nan, (known.value if known else None) or np.nan
    return max(n_bytes / bandwidth, flops / peak) / placement.devices


def long_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Every quantity that was measured beside its prediction; throughput that was derived is no measurement."""
    if rows.empty:
        return rows
    real = rows.output_throughput_tok_s.where(rows.output_throughput_derived.str.lower() != "true")
    first_s = rows.ttft_s + rows.latency_s
    quantities: dict[str, tuple[Any, Any, Callable[[Any], Any]]] = {
        "TPOT": (rows.tpot_mean_ms * 1e-3, rows.step_s, lambda s: s),
        "ITL": (rows.itl_median_ms * 1e-3, rows.itl_s, lambda s: s),
        "throughput": (real, rows.throughput, lambda s: rows.sequences / s),
        "TTFT": (rows.ttft_mean_ms * 1e-3, first_s, lambda s: np.nan * s),
        "watts": (rows.avg_power_W, rows.watts, lambda s: np.nan * s),
        "J/token": (rows.energy_J_per_output_token, rows.joules, lambda s: np.nan * s),
    }
    parts = [name for name in rows if name.startswith(PARTS)]
    tables = []
    for quantity, (value, predicted, baseline) in quantities.items():
        own = rows.assign(
            roofline=baseline(rows.roofline_s), three_coefficients=baseline(rows.three_s), engine=rows.engine_profile
        )
        table = predicted_rows("serving", own, quantity, value, predicted)
        tables.append(table.join(rows[[*parts, "what", "path", "sequences"]]))
    return pd.concat(tables)


def load(data: Path, refusals: measured.Refusals) -> pd.DataFrame:
    """Serving runs of a directory."""
    return measured.serving_rows(data, refusals)


# ---- one architecture left out at a time


def left_out(fit: fit_models.Fit, rows: pd.DataFrame, refusals: measured.Refusals, only: str | None) -> pd.DataFrame:
    """Each architecture predicted with host times, factor, power and first-token latency fitted on the others' runs."""
    learn, parts = fit_models.host_rows(fit.rows), []
    models = measured.catalogue()
    known = rows[rows.model.isin([name for name in rows.model.unique() if models.get(name) is not None])]
    refuse = rows.drop(known.index)
    for name, mine in refuse.groupby("model"):
        refusals.refuse("serving", mine, measured.no_model(str(name)))
    own = known.assign(architecture=[measured.architecture_of(models[name]) for name in known.model])
    for architecture, mine in own.groupby("architecture"):
        if only and architecture != only:
            continue
        others = learn[learn.architecture != architecture]
        host = serving_fit.fit_host(others)
        power = fit_models.fit_h100_power(others, host) if fit_models.powered(others) else None
        without = fit_models.Fit(fit.kernels, host, power, others)
        world = refitted_world(without, list(mine.engine_profile.unique()))
        parts.append(Simulator(world, refusals).predict(mine).assign(fitted_on=False))
    if not parts:
        return rows.iloc[:0]
    together = pd.concat(parts)
    return with_latency(together, seen_paths(together))


def seen_paths(rows: pd.DataFrame) -> Any:
    """Whether a row's code path was seen on its engine with an architecture other than its own."""
    return rows.groupby(["engine_profile", "path"]).architecture.transform("nunique") > 1


def with_latency(rows: pd.DataFrame, seen: Any) -> pd.DataFrame:
    """First-token latency of each engine, the median of what simulation leaves over, learnt from other architectures."""
    left = rows.ttft_mean_ms * 1e-3 - rows.ttft_s
    added = pd.Series(0.0, index=rows.index)
    for _, mine in rows.groupby("engine_profile"):
        for architecture in mine.architecture.unique():
            own = mine.index[mine.architecture == architecture]
            known = left[mine.index[mine.architecture != architecture]].dropna()
            added[own] = max(0.0, float(known.median())) if len(known) else 0.0
    return rows.assign(latency_s=added, low_confidence=~seen)


def first_token_latencies(fit: fit_models.Fit) -> dict[str, float]:
    """Seconds that each engine's first tokens come later than simulated, at the median of its rows with a TTFT."""
    rows = fit_models.host_rows(fit.rows)
    rows = rows[rows.ttft_mean_ms.notna()]
    world = refitted_world(fit, list(rows.engine_profile.unique()))
    found = Simulator(world, measured.Refusals()).predict(rows)
    left = found.ttft_mean_ms * 1e-3 - found.ttft_s
    return {str(engine): max(0.0, float(mine.median())) for engine, mine in left.groupby(found.engine_profile)}
