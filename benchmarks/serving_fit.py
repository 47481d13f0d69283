"""Fits what kernels do not say: the overlap factor, the host time of each engine, and the power of an accelerator.

Every constant is found by non-negative least squares (power: bounded), with a weak pull towards values common to engines,
so that an engine that was seen with two models only does not explain their difference by its host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from closed_loop import Load, mix_of
from rows import Refusals, architecture_of, kv_precision_of, precision_of
from scipy.optimize import least_squares, nnls

from hsim.costs.composed import ComposedCosts, Placement
from hsim.description.hardware import AcceleratorProfile, EngineProfile
from hsim.description.model import ModelArchitecture
from hsim.description.system import Figures
from hsim.errors import DescriptionError

# Host constants are pulled, weakly, towards usual sizes: (usual, how far from it is nothing special), seconds.
USUAL = {"host_s_per_layer": (20e-6, 20e-6), "host_s_per_sequence": (25e-6, 25e-6), "host_s_per_step": (0.3e-3, 0.3e-3),
         "host_s_per_sequence_and_peer": (1e-6, 1e-6), "fused": (5e-6, 40e-6)}  # fmt: skip
PULL, USUAL_FACTOR, PULL_FACTOR = 0.1, 0.95, 0.3
ROUTING = "llama4"  # a code path of experts that engines take unfused, timed apart
BUDGET_TOKENS = 8192


def placement_of(
    row: Any, model: ModelArchitecture, chip: AcceleratorProfile, engine: EngineProfile
) -> Placement | None:
    """How a row's model lies on its devices; None where hsim has no word for its precision."""
    precision = precision_of(row, model)
    if precision is None:
        return None
    groups = int(row.dp) if row.dp == row.dp else 1
    devices = int(row.n_gpus)
    groups = groups if devices % groups == 0 else 1
    return Placement(
        model, chip, engine, devices // groups, precision,  # type: ignore[arg-type]
        data_parallel=groups, expert_parallel=bool(row.ep > 1), kv_precision=kv_precision_of(row, precision),  # type: ignore[arg-type]
    )  # fmt: skip


def load_of(row: Any) -> Load:
    return Load(
        float(row.sequences), float(row.prompt_tokens), float(row.output_tokens_mean), float(row.cv), BUDGET_TOKENS
    )


class Composer:
    """Costs by placement, each composed once."""

    def __init__(self, assume: dict[str, float]) -> None:
        self.assume, self._known = assume, {}

    def costs(self, placement: Placement) -> ComposedCosts:
        p = placement
        key = (
            p.model.name,
            p.chip.name,
            p.engine.name,
            p.tensor_parallel,
            p.data_parallel,
            p.expert_parallel,
            p.precision,
            p.kv_precision,
        )
        if key not in self._known:
            self._known[key] = ComposedCosts(placement, Figures(self.assume))
        return self._known[key]


@dataclass(frozen=True)
class World:
    """Profiles by the names that rows use."""

    models: dict[str, ModelArchitecture]
    chips: dict[str, AcceleratorProfile]
    engines: dict[str, EngineProfile]


def bare(chip: AcceleratorProfile, engine: EngineProfile) -> dict[str, float]:
    """Assumptions that leave the kernels alone: factor 1, no host."""
    zero = {f"{chip.name}.kernels.overlap_factor": 1.0}
    for name in (
        "host_s_per_layer",
        "host_s_per_sequence",
        "host_s_per_step",
        "host_s_per_sequence_and_peer",
        "eager_s_per_layer",
    ):
        if getattr(engine, name) is not None:
            zero[f"{engine.name}.{name}"] = 0.0
    return zero | {f"{engine.name}.host_s_per_expert_layer.{path}": 0.0 for path in engine.host_s_per_expert_layer}


def features(rows: pd.DataFrame, world: World, refusals: Refusals) -> pd.DataFrame:
    """Kernel seconds and joule features of each row that can be composed; the others are refused with the reason."""
    composers: dict[tuple[str, str], Composer] = {}
    found = []
    for row in rows.itertuples():
        model, chip, engine = (
            kind.get(key)
            for kind, key in ((world.models, row.model), (world.chips, row.gpu), (world.engines, row.engine_profile))
        )
        unknown = next(
            (
                what
                for what, it in (
                    (f"model {row.model}", model),
                    (f"GPU {row.gpu}", chip),
                    (f"engine {row.engine_profile}", engine),
                )
                if it is None
            ),
            None,
        )
        if unknown or not (model and chip and engine):
            refusals.refuse("serving", 1, f"no profile of {unknown}")
            continue
        placement = placement_of(row, model, chip, engine)
        if placement is None:
            refusals.refuse("serving", 1, f"precision {row.weight_precision} is not modelled")
            continue
        composer = composers.setdefault((chip.name, engine.name), Composer(bare(chip, engine)))
        try:
            costs = composer.costs(placement)
        except DescriptionError as error:
            refusals.refuse("serving", 1, str(error))
            continue
        found.append(
            {
                "index": row.Index,
                "architecture": architecture_of(model),
                "path": model.path,
                "precision": placement.precision,
            }
            | _features(row, costs)
        )
    return (
        rows.drop(columns="architecture").join(pd.DataFrame(found).set_index("index"), how="inner")
        if found
        else rows.iloc[:0]
    )


def _features(row: Any, costs: ComposedCosts) -> dict[str, float]:
    mix, model = mix_of(load_of(row)), costs.placement.model
    weights = np.array(mix.weights)
    timings = [costs.timing(shape) for shape in mix.shapes]
    seconds = np.array([t.seconds for t in timings])
    order = np.argsort(seconds)
    middle = order[np.searchsorted(np.cumsum(weights[order]), 0.5)]
    sequences = np.array([s.sequences for s in mix.shapes])
    work = np.array([costs.work(shape) for shape in mix.shapes])  # bytes, FLOPs, unpacked bytes of all devices
    special = model.experts is not None and model.experts.routing == ROUTING
    devices = costs.placement.devices
    return {
        "kernel_s": float(weights @ seconds), "kernel_median_s": float(seconds[middle]), "layers": model.layers,
        "all_sequences": float(weights @ sequences), "median_sequences": float(sequences[middle]), "peers": devices - 1,
        "fused_layers": 0 if special else model.expert_layers, "special_layers": model.expert_layers if special else 0,
        "bytes": float(weights @ work[:, 0]) / devices, "flops": float(weights @ work[:, 1]) / devices,
        "unpacked": float(weights @ work[:, 2]) / devices, "tokens": float(weights @ np.array([s.decodes for s in mix.shapes])) / devices,
    }  # fmt: skip


def measured_step_s(rows: pd.DataFrame) -> Any:
    """Mean seconds of a step as measured: from throughput where that was measured, else from mean TPOT."""
    by_rate = rows.sequences / rows.output_throughput_tok_s.where(rows.output_throughput_derived.astype(str) != "True")
    closed = rows.source.str.startswith("mlenergy")
    return by_rate.where(closed).fillna(rows.tpot_mean_ms * 1e-3)


@dataclass
class Host:
    """Fitted constants of serving: one factor on kernels, and host seconds by engine; `special_s` per unfused layer."""

    factor: float
    special_s: float
    engines: dict[str, dict[str, float]]

    def seconds(self, rows: pd.DataFrame, median: bool = False) -> Any:
        """Predicted mean (or median) seconds of a step."""
        columns = _columns(rows, median)
        total = self.factor * columns["kernel"] + self.special_s * columns["special"]
        usual = {name: np.mean([e[name] for e in self.engines.values()]) for name in USUAL}
        for name in USUAL:
            total = (
                total
                + columns[name] * rows.engine_profile.map(lambda e, n=name: self.engines.get(e, usual)[n]).to_numpy()
            )
        return total


def _columns(rows: pd.DataFrame, median: bool) -> dict[str, Any]:
    sequences = (rows.median_sequences if median else rows.all_sequences).to_numpy()
    return {
        "kernel": (rows.kernel_median_s if median else rows.kernel_s).to_numpy(),
        "host_s_per_layer": rows.layers.to_numpy(), "host_s_per_sequence": sequences,
        "host_s_per_step": np.ones(len(rows)), "host_s_per_sequence_and_peer": sequences * rows.peers.to_numpy(),
        "fused": rows.fused_layers.to_numpy(), "special": rows.special_layers.to_numpy(),
    }  # fmt: skip


HOST_BOUND = "vllm-0.5"  # fitted apart: its rows know nothing of kernels


def fit_host(rows: pd.DataFrame) -> Host:
    """Factor and host constants from rows with features, by relative error, robustly, none negative."""
    bound = rows.engine_profile == HOST_BOUND
    host = _fit_host(rows[~bound], None)
    if bound.any():
        host.engines |= _fit_host(rows[bound], host.factor).engines
    return host


def _fit_host(rows: pd.DataFrame, factor: float | None) -> Host:
    engines = sorted(rows.engine_profile.unique())
    width, names = 2 + len(engines) * len(USUAL), list(USUAL)
    blocks, weights = [], []
    cell = rows.groupby(["engine_profile", "architecture"]).architecture.transform("size")
    for median, target in ((False, measured_step_s(rows)), (True, rows.itl_median_ms * 1e-3)):
        mine = rows[target.notna()]
        if mine.empty:
            continue
        columns, block = _columns(mine, median), np.zeros((len(mine), width))
        block[:, 0], block[:, 1] = columns["kernel"], columns["special"] * 1e-4
        for i, engine in enumerate(engines):
            own = (mine.engine_profile == engine).to_numpy()
            for j, name in enumerate(names):
                block[own, 2 + i * len(names) + j] = columns[name][own] * USUAL[name][1]
        blocks.append(block / target[mine.index].to_numpy()[:, None])
        weights.append(1 / np.sqrt(cell[mine.index].to_numpy()))
    strength = PULL if factor is None else PULL / 100  # the host-bound engine is unlike the others
    pull = strength * np.eye(width)
    to_factor = PULL_FACTOR if factor is None else 1e3
    pull[0, 0], pull[1, 1] = to_factor, 0.0
    wanted = np.tile([strength * usual / far for usual, far in USUAL.values()], len(engines))
    wanted = np.concatenate([[0.0, 0.0], wanted])
    wanted[0], wanted[1] = to_factor * (factor or USUAL_FACTOR), 0.0
    matrix, base = np.vstack(blocks), np.concatenate(weights)
    weight = base.copy()
    for _ in range(12):
        solution, _ = nnls(np.vstack([matrix * weight[:, None], pull]), np.concatenate([weight, wanted]))
        miss = np.abs(matrix @ solution - 1)
        weight = base * np.sqrt(0.05 / np.maximum(miss, 0.05))  # beyond 5 % a row counts by its error, not its square
    constants = {
        engine: {n: float(solution[2 + i * len(names) + j] * USUAL[n][1]) for j, n in enumerate(names)}
        for i, engine in enumerate(engines)
    }
    return Host(float(solution[0]), float(solution[1]) * 1e-4, constants)


POWER = (
    "floor_w",
    "joules_per_byte",
    "joules_per_flop",
    "joules_per_output_token",
    "joules_per_unpacked_byte",
    "kernel_w",
)
_POWER_START = (125.0, 80e-12, 1.2e-12, 0.014, 100e-12, 160.0)
_POWER_MOST = (300.0, 400e-12, 4e-12, 0.1, 500e-12, 500.0)
OLD_SOURCE_WEIGHT = 0.5  # ML.ENERGY v2 is host-bound almost everywhere: it fixes the floor, and should do little else


def watts(values: dict[str, float], rows: pd.DataFrame, step_s: Any, factor: float) -> Any:
    """Predicted watts of one accelerator, before the cap."""
    busy = np.minimum(1.0, factor * rows.kernel_s.to_numpy() / step_s)
    work = sum(
        values[name] * rows[column].to_numpy()
        for name, column in (
            ("joules_per_byte", "bytes"), ("joules_per_flop", "flops"), ("joules_per_output_token", "tokens"), ("joules_per_unpacked_byte", "unpacked"),
        )
    )  # fmt: skip
    return values["floor_w"] + values["kernel_w"] * busy + work / step_s


def fit_power(rows: pd.DataFrame, factor: float, cap_w: float, floor_least_w: float) -> dict[str, float]:
    """Power constants from rows with measured watts, at their measured step times; a smooth cap while fitting."""
    step_s = (rows.sequences / rows.output_throughput_tok_s).to_numpy()
    measured = (rows.avg_power_W / rows.n_gpus).to_numpy()
    weight = 1 / np.sqrt(rows.groupby("architecture").architecture.transform("size").to_numpy())
    weight = 4 * weight * np.where(rows.source == "mlenergy_v2", OLD_SOURCE_WEIGHT, 1.0)
    scale = np.array(_POWER_START)

    def residuals(x: Any) -> Any:
        plain = np.maximum(1.0, watts(dict(zip(POWER, x * scale, strict=True)), rows, step_s, factor))
        return (np.log((cap_w**-16.0 + plain**-16.0) ** (-1 / 16)) - np.log(measured)) * weight

    least = np.array([floor_least_w / scale[0], 0, 0, 0, 0, 0])
    start = np.maximum(np.ones(6), least + 1e-6)
    found = least_squares(residuals, start, bounds=(least, np.array(_POWER_MOST) / scale), loss="soft_l1", f_scale=0.5)
    return dict(zip(POWER, (found.x * scale).tolist(), strict=True))
