"""Fits the kernel laws of hsim/costs/laws.py to tables of measured kernels, and scores them on shapes left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from hsim.costs import laws
from hsim.units import GB

OWN_REDUCE = "custom"  # all-reduce of engines; other libraries' are slower, and engines do not take them in decoding
IDEAL_SHARPNESS = 30.0  # a hard maximum, or nearly
LINK_BYTES_PER_S = 450 * GB  # one direction of NVLink 4: the roofline of an exchange


@dataclass(frozen=True)
class Chip:
    """Data-sheet figures that the laws' fractions refer to. `cache_bytes` matters to benchmarks alone: see _warm."""

    memory_bytes_per_s: float
    bf16_flops_per_s: float
    fp8_flops_per_s: float
    fp4_flops_per_s: float
    cache_bytes: float


@dataclass(frozen=True)
class Law:
    """One law: its parameters with start and bounds, its seconds on rows, and what makes two rows the same shape."""

    name: str
    parameters: dict[str, tuple[float, float, float]]
    seconds: Callable[[Any, pd.DataFrame], Any]
    shape: tuple[str, ...]


def _peak(rows: pd.DataFrame) -> Any:
    wide = rows.dtype.isin(["bf16", "fp16"])
    return np.where(wide, rows.peak_bf16, np.where(rows.dtype == "nvfp4", rows.peak_fp4, rows.peak_fp8))


def _weight_bytes(rows: pd.DataFrame) -> Any:
    return rows.dtype.map(laws.ELEMENT_BYTES).to_numpy()


def _gemm(p: Any, rows: pd.DataFrame) -> Any:
    sides = laws.TwoSided(
        rows.bandwidth.to_numpy() * p["bandwidth_fraction"], _peak(rows) * p["flops_fraction"], p["sharpness"]
    )
    law = laws.Gemm(sides, p["launch_s"], _weight_bytes(rows), 2.0, p["per_depth_s"], p["per_activation_s"])
    seconds = law.seconds(rows.gemm_m.to_numpy(), rows.gemm_n.to_numpy(), rows.gemm_k.to_numpy())
    # Outside a CUDA graph a kernel is no faster than the host can launch it. Engines replay graphs: not in the law.
    return np.maximum(seconds, np.where(rows.gemm_m < 32, p["eager_small_s"], p["eager_large_s"]))


def _experts(p: Any, rows: pd.DataFrame) -> Any:
    sides = laws.TwoSided(
        rows.bandwidth.to_numpy() * p["bandwidth_fraction"], _peak(rows) * p["flops_fraction"], p["sharpness"]
    )
    law = laws.ExpertsKernel(
        sides,
        p["launch_s"],
        _weight_bytes(rows),
        2.0,
        p["per_expert_s"],
        p["per_element_s"],
        p["padding_tokens"],
        p["imbalance"],
    )
    m, count, topk = rows.moe_tokens.to_numpy(), rows.moe_experts.to_numpy(), rows.moe_topk.to_numpy()
    shape = laws.ExpertsShape(
        count,
        count / rows.moe_ep.to_numpy(),
        topk,
        rows.moe_hidden.to_numpy(),
        (rows.moe_inter / rows.moe_tp).to_numpy(),
    )
    balanced = np.minimum(shape.count, m * topk * shape.count / count)
    touched = np.where(rows.moe_distribution == "balanced", balanced, law.touched(m, shape))
    return law.seconds(m, touched, shape)


def _warm(rows: pd.DataFrame, kv_bytes: Any, speedup: float) -> Any:
    # A benchmark reads the same keys again and again: what fits in the cache comes from there. A model's steps do not.
    return np.where(kv_bytes < rows.cache, speedup, 1.0)


def _kv_bytes(rows: pd.DataFrame) -> Any:
    element = rows.kv_dtype.map(laws.ELEMENT_BYTES)
    return (rows.batch * rows.kv_tokens_per_seq * 2 * rows.n_kv_heads * rows.head_dim * element).to_numpy()


def _decode(p: Any, rows: pd.DataFrame) -> Any:
    law = laws.DecodeAttention(
        p["launch_s"],
        p["per_element_s"],
        p["per_kv_head_s"],
        p["per_sequence_s"],
        rows.bandwidth.to_numpy() * p["bandwidth_fraction"],
    )
    width, kv_bytes = (rows.n_heads * rows.head_dim).to_numpy(), _kv_bytes(rows)
    return law.seconds(
        rows.batch.to_numpy(), width, rows.n_kv_heads.to_numpy(), kv_bytes / _warm(rows, kv_bytes, p["warm_speedup"])
    )


def _prefill(p: Any, rows: pd.DataFrame) -> Any:
    before = rows.kv_tokens_per_seq - rows.q_tokens_per_seq
    pairs = rows.batch * rows.q_tokens_per_seq * (before + (rows.q_tokens_per_seq + 1) / 2)
    pair_s = rows.n_heads * (4 * rows.head_dim / (rows.peak_bf16 * p["flops_fraction"]) + p["per_pair_s"])
    read_s = _kv_bytes(rows) / (rows.bandwidth * 0.9)
    each_s = rows.batch * rows.q_tokens_per_seq * rows.n_heads * rows.head_dim * p["per_element_s"]
    return (p["launch_s"] + pairs * pair_s + read_s + each_s + rows.kv_tokens_per_seq * p["per_depth_s"]).to_numpy()


def _all_reduce(p: Any, rows: pd.DataFrame) -> Any:
    law = laws.AllReduce(p["launch_s"], p["per_peer_s"], p["bytes_per_s"])
    return law.seconds(rows.comm_gpus.to_numpy(), rows.comm_bytes.to_numpy())


_SIDES = {"bandwidth_fraction": (0.88, 0.1, 0.95), "flops_fraction": (0.7, 0.1, 0.95), "sharpness": (4.0, 1.0, 12.0)}
GEMM = Law(
    "gemm",
    {"launch_s": (5e-6, 0, 2e-5), "per_depth_s": (1e-10, 0, 1e-8), "per_activation_s": (1e-12, 0, 1e-10), **_SIDES,
     "eager_small_s": (5e-5, 0, 2e-4), "eager_large_s": (9e-5, 0, 2e-4)},
    _gemm, ("gemm_n", "gemm_k"),
)  # fmt: skip
EXPERTS = Law(
    "experts",
    {"launch_s": (2e-5, 0, 1e-4), **_SIDES, "per_expert_s": (1e-7, 0, 2e-6), "per_element_s": (1e-12, 0, 1e-10),
     "padding_tokens": (30.0, 0, 128), "imbalance": (0.9, 0.3, 1.0)},
    _experts, ("moe_hidden", "moe_inter"),
)  # fmt: skip
DECODE = Law(
    "decode_attention",
    {"launch_s": (1e-5, 0, 1e-4), "per_element_s": (3e-12, 0, 1e-10), "per_kv_head_s": (2e-8, 0, 1e-6),
     "per_sequence_s": (1e-8, 0, 1e-6), "bandwidth_fraction": (0.9, 0.1, 1.0), "warm_speedup": (2.0, 1.0, 10.0)},
    _decode, ("n_heads", "n_kv_heads", "head_dim"),
)  # fmt: skip
PREFILL = Law(
    "prefill_attention",
    {"launch_s": (1.2e-5, 0, 1e-4), "flops_fraction": (0.66, 0.1, 0.8), "per_element_s": (3e-12, 0, 1e-9),
     "per_pair_s": (1e-13, 0, 1e-11), "per_depth_s": (1e-9, 0, 1e-7)},
    _prefill, ("n_heads", "n_kv_heads", "head_dim"),
)  # fmt: skip
ALL_REDUCE = Law(
    "all_reduce",
    {"launch_s": (4e-6, 0, 1e-4), "per_peer_s": (2e-7, 0, 1e-5), "bytes_per_s": (250 * GB, 10 * GB, 2000 * GB)},
    _all_reduce, ("comm_gpus",),
)  # fmt: skip
LAWS = {law.name: law for law in (GEMM, EXPERTS, DECODE, PREFILL, ALL_REDUCE)}
OPS = {"gemm": GEMM, "moe_ffn": EXPERTS, "attn_decode": DECODE, "attn_prefill": PREFILL, "allreduce": ALL_REDUCE}


def with_chip(rows: pd.DataFrame, chip: Chip) -> pd.DataFrame:
    """Rows with the data-sheet figures of the chip they were measured on; keys and values as the rest where unsaid."""
    if "kv_dtype" in rows:
        rows = rows.assign(kv_dtype=rows.kv_dtype.where(rows.kv_dtype != "", rows.dtype))
    return rows.assign(
        seconds=rows.time_ms * 1e-3, bandwidth=chip.memory_bytes_per_s, peak_bf16=chip.bf16_flops_per_s,
        peak_fp8=chip.fp8_flops_per_s, peak_fp4=chip.fp4_flops_per_s, cache=chip.cache_bytes,
    )  # fmt: skip


def _fixed(law: Law, rows: pd.DataFrame) -> dict[str, float]:
    """Parameters that rows of this precision do not have."""
    fixed = {}
    if law is GEMM:
        if set(rows.dtype) != {"fp8_block"}:
            fixed |= {"eager_small_s": 0.0, "eager_large_s": 0.0}
        if set(rows.dtype) <= {"bf16", "fp16"}:
            fixed["per_activation_s"] = 0.0
    return fixed


def fit(law: Law, rows: pd.DataFrame, start: dict[str, float] | None = None) -> dict[str, float]:
    """Least absolute-like error of log(predicted / measured); every parameter within its bounds, none negative."""
    fixed = _fixed(law, rows)
    free = [name for name in law.parameters if name not in fixed]
    bounds = np.array([law.parameters[name][1:] for name in free], dtype=float).T
    first = np.array([(start or {}).get(name, law.parameters[name][0]) for name in free])
    scale = np.array([law.parameters[name][0] for name in free])
    first = np.clip(first, bounds[0] + 1e-9 * scale, bounds[1] * (1 - 1e-9))
    measured = np.log(rows.seconds.to_numpy())

    def residuals(x: Any) -> Any:
        values = dict(zip(free, x * scale, strict=True)) | fixed
        return np.log(np.maximum(law.seconds(values, rows), 1e-12)) - measured

    found = least_squares(
        residuals, first / scale, bounds=(bounds[0] / scale, bounds[1] / scale), loss="soft_l1", f_scale=0.1
    )
    return dict(zip(free, (found.x * scale).tolist(), strict=True)) | fixed


def groups(rows: pd.DataFrame, refusals: Any = None) -> Iterator[tuple[Law, str, str, pd.DataFrame]]:
    """Rows of one law, chip and precision; keys and values of 8 bits are a precision of their own."""
    for op, law in OPS.items():
        mine = rows[rows.op == op]
        if law is ALL_REDUCE:
            other = ~mine.kernel_source.str.contains(OWN_REDUCE)
            if refusals is not None:
                refusals.refuse("kernels", mine[other], "all-reduce of a library that engines do not take in decoding")
            mine = mine[~other]
        precision = mine.dtype.where(mine.kv_dtype == mine.dtype, "kv_" + mine.kv_dtype)
        for (chip, name), group in mine.groupby(["gpu", precision]):
            yield law, str(chip), str(name), group


def left_out_seconds(law: Law, rows: pd.DataFrame) -> pd.Series:
    """Predicted seconds of each row by a fit on all other shapes; nan where there is no other."""
    start, found = fit(law, rows), pd.Series(np.nan, index=rows.index)
    for shape in rows.groupby(list(law.shape)).groups:
        key = shape if isinstance(shape, tuple) else (shape,)
        mine = np.all([rows[c] == v for c, v in zip(law.shape, key, strict=True)], axis=0)
        if not mine.all():
            found[mine] = law.seconds(fit(law, rows[~mine], start), rows[mine])
    return found


def ideal_seconds(law: Law, rows: pd.DataFrame) -> Any:
    """The plain roofline: all bytes at the full bandwidth or all FLOPs at the peak, and nothing else."""
    values = dict.fromkeys(law.parameters, 0.0)
    values |= {
        "bandwidth_fraction": 1.0,
        "flops_fraction": 1.0,
        "sharpness": IDEAL_SHARPNESS,
        "imbalance": 1.0,
        "warm_speedup": 1.0,
    }
    return law.seconds(values | {"bytes_per_s": LINK_BYTES_PER_S}, rows)


@dataclass(frozen=True)
class Silicon:
    """What a transfer scales by beside bandwidth and peaks: published units (SMs), their clock, bandwidth."""

    units: float
    clock_hz: float
    memory_bytes_per_s: float


HOPPER = Silicon(132, 1.98e9, 3.35e12)
_BY_CLOCK = ("launch_s", "per_depth_s", "per_expert_s", "per_peer_s")
_BY_UNITS = ("per_element_s", "per_kv_head_s", "per_sequence_s", "per_pair_s")


def transferred(values: dict[str, float], to: Silicon, source: Silicon = HOPPER) -> dict[str, float]:
    """A law's parameters on other silicon: latencies go with the clock, per-item work with units times clock.

    Fractions of bandwidth and peak stay. Quantising goes with bandwidth.
    """
    clock = source.clock_hz / to.clock_hz
    units = clock * source.units / to.units
    scale = dict.fromkeys(_BY_CLOCK, clock) | dict.fromkeys(_BY_UNITS, units)
    scale["per_activation_s"] = source.memory_bytes_per_s / to.memory_bytes_per_s
    return {name: value * scale.get(name, 1.0) for name, value in values.items()}
