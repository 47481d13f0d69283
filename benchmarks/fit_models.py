"""Refits every constant of hsim's generation model from measured rows: python benchmarks/fit_models.py --data DIR [--write].

Prints the constants with their errors; --write puts them into hardware_profiles/. Kernel laws come from the kernel tables,
host time and the overlap factor from serving runs over those laws, power from the runs with watts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).resolve().parent))

import accelerators as acc
import fitted
import kernel_laws
import rows as measured
import server_power
import serving_fit

from hsim.costs import laws
from hsim.description.hardware import AcceleratorProfile, EngineProfile
from hsim.description.yamlfile import parse_document, validated

PROFILES = Path(__file__).resolve().parent.parent / "hardware_profiles"
HOPPER_ROWS = ("H100-SXM-80GB", "H200-SXM-141GB")
CACHES = {"H100-SXM-80GB": 50e6, "H200-SXM-141GB": 50e6, "A100-SXM-80GB": 40e6, "L40S-48GB": 96e6}
Values = dict[tuple[str, str], dict[str, float]]


def kernel_rows(data: Path, refusals: measured.Refusals) -> pd.DataFrame:
    """Kernel rows of every accelerator whose data sheet is known."""
    tables, unread = [], []
    for file in sorted(data.glob("*_kernels.csv")):
        try:
            rows = measured.read(file, "kernels", refusals, ("gpu", "op", "dtype", "time_ms"))
        except measured.Unreadable as error:
            unread.append(str(error))
            continue
        for gpu, mine in rows.groupby("gpu"):
            sheet = acc.BY_ROW.get(str(gpu))
            if sheet is None:
                refusals.refuse("kernels", mine, f"no data sheet of GPU {gpu}")
                continue
            tables.append(kernel_laws.with_chip(mine, kernel_chip(sheet)))
    if not tables:
        raise measured.Unreadable("; ".join(unread) or f"{data}: there is no *_kernels.csv of a known GPU")
    known = pd.concat(tables)
    odd = ~known.op.isin(kernel_laws.OPS)
    known = refusals.drop("kernels", known, odd, "an operation that hsim has no law for")
    strange = known.dtype.map(laws.ELEMENT_BYTES).isna()
    known = refusals.drop("kernels", known, strange & (known.op != "allreduce"), "a precision that hsim has no law for")
    if "window" in known:
        windowed = pd.to_numeric(known.window, errors="coerce") > 0
        why = "attention within a window: composed from context, not a law of its own"
        known = refusals.drop("kernels", known, windowed, why)
    return refusals.drop("kernels", known, _lacking(known), "a size that its law needs is NaN")


def kernel_chip(sheet: acc.Sheet) -> kernel_laws.Chip:
    """What kernel laws need of a data sheet."""
    peak = sheet.peaks["bf16"] or 0.0
    fp8 = sheet.peaks.get("fp8") or peak
    fp4 = sheet.peaks.get("nvfp4") or fp8
    return kernel_laws.Chip(sheet.memory_bytes_per_s, peak, fp8, fp4, CACHES.get(sheet.row_name, 50e6))


def _lacking(rows: pd.DataFrame) -> Any:
    needs = {
        "gemm": ["gemm_m", "gemm_n", "gemm_k"],
        "moe_ffn": ["moe_tokens", "moe_hidden", "moe_inter", "moe_topk", "moe_experts", "moe_tp", "moe_ep"],
        "attn_decode": ["batch", "kv_tokens_per_seq", "n_heads", "n_kv_heads", "head_dim"],
        "attn_prefill": ["batch", "q_tokens_per_seq", "kv_tokens_per_seq", "n_heads", "n_kv_heads", "head_dim"],
        "allreduce": ["comm_gpus", "comm_bytes"],
    }
    bad = np.zeros(len(rows), dtype=bool)
    for op, columns in needs.items():
        bad |= ((rows.op == op) & rows[columns].isna().any(axis=1)).to_numpy()
    return bad


def fit_kernels(rows: pd.DataFrame) -> dict[str, Values]:
    """Law parameters by GPU name, and of both Hoppers together under `hopper`."""
    found: dict[str, Values] = {}
    for law, gpu, precision, mine in kernel_laws.groups(rows):
        if not precision.startswith("kv_"):
            found.setdefault(gpu, {})[law.name, precision] = kernel_laws.fit(law, _believed(law, mine))
    hopper = rows[rows.gpu.isin(HOPPER_ROWS)].assign(gpu="hopper")
    if hopper.empty:
        raise measured.Unreadable("no kernels of H100 or H200 are left to fit on")
    for law, gpu, precision, mine in kernel_laws.groups(hopper):
        if not precision.startswith("kv_"):
            found.setdefault(gpu, {})[law.name, precision] = kernel_laws.fit(law, _believed(law, mine))
    _settle_block(found)
    return found


def _believed(law: kernel_laws.Law, rows: pd.DataFrame) -> pd.DataFrame:
    """Experts in real models are reached unevenly: the balanced rows are left out where there are others."""
    uneven = rows[rows.moe_distribution != "balanced"]
    return uneven if law is kernel_laws.EXPERTS and len(uneven) else rows


def _settle_block(found: dict[str, Values]) -> None:
    """fp8_block GEMMs below 100 us were timed launch by launch: only the H200 table says what they cost in a graph."""
    seen = found.get("H200-SXM-141GB", {}).get(("gemm", "fp8_block"))
    for values in found.values():
        if seen and ("gemm", "fp8_block") in values:
            values["gemm", "fp8_block"] |= {"launch_s": seen["launch_s"]}
        if ("experts", "fp8_block") in values:  # one scale a tensor or one a block of weights: the same kernel
            values.setdefault(("experts", "fp8"), dict(values["experts", "fp8_block"]))


# No kernel table has mxfp4: its law is fitted over serving runs of gpt-oss, the rest of the step being known.
MXFP4_START = {"launch_s": 27e-6, "bandwidth_fraction": 0.65, "flops_fraction": 0.22, "per_expert_s": 0.0, "per_element_s": 2e-12,
               "padding_tokens": 7.5, "imbalance": 1.0, "sharpness": 4.0}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """All constants."""

    kernels: dict[str, Values]
    host: serving_fit.Host
    power: dict[str, float] | None
    rows: pd.DataFrame


def profile_text(sheet: acc.Sheet, fitted: Fit | None, kernels: dict[str, Values], factor: float) -> str:
    """The YAML of an accelerator profile, from fits on its own kernels where there are any."""
    own = kernels.get(sheet.row_name)
    hopper = acc.Laws(kernels["hopper"], {}, "fitted")
    if own:
        values = {key: own[key] for key in own}
        fills = {key: value for key, value in acc.transferred_laws(hopper, sheet).values.items() if key not in values}
        sources = dict.fromkeys(values, f"{acc.AIC}, {sheet.row_name}")
        sources |= {
            key: acc.TRANSFER if key[1] != "mxfp4" else "serving runs of gpt-oss-120b on vLLM: no kernel table has it"
            for key in fills
        }
        if sheet.row_name in HOPPER_ROWS:
            fills = {k: v for k, v in fills.items() if k[0] != "all_reduce" or sheet.link_bytes_per_s}
        law = acc.Laws(values | fills, sources, "fitted")
    else:
        law = acc.transferred_laws(hopper, sheet)
    law = _ordered(law)
    note = _factor_line(factor, sheet)
    extras = _extra_lines(sheet)
    power, tier, source, spread = _power_of(sheet, fitted)
    comment = [
        f"{sheet.description}. Peaks are dense.",
        "Written by benchmarks/fit_models.py; docs/models.md says how well it predicts; `hsim calibrate` replaces it.",
    ]
    clocks = acc.clock_lines(sheet)
    return acc.render(
        acc.header_lines(sheet, comment),
        acc.kernel_lines(law, note, extras),
        acc.power_lines(sheet, power, tier, source, spread),
        clocks,
    )


def _ordered(law: acc.Laws) -> acc.Laws:
    order = ("bf16", "fp8", "fp8_block", "mxfp4", "nvfp4")
    keys = sorted(law.values, key=lambda k: (k[0], order.index(k[1]) if k[1] in order else 9))
    return acc.Laws({k: law.values[k] for k in keys}, law.sources, law.tier)


def _factor_line(factor: float, sheet: acc.Sheet) -> str:
    tier = "fitted" if sheet.row_name in HOPPER_ROWS else "transferred"
    return acc.figure(
        factor, tier, "serving runs of ML.ENERGY v3 (H100) and InferenceMAX (H100, H200) over the kernel laws", 0.04
    )


def _extra_lines(sheet: acc.Sheet) -> list[str]:
    """What no table of kernels has."""
    vidur = "unfused norms and gates reach 0.5 in Vidur's layer profiles @7d47513 (A100, H100); fused ones of today move half as many bytes"
    lines = ["  elementwise:", f"    bandwidth_fraction: {acc.figure(0.75, 'assumed', vidur, 0.3)}"]
    state = "no state kernel was measured: as other kernels bound by memory; Nemotron-Nano-9B-v2 on H100 fits"
    lines += [
        "  state:",
        f"    launch_s: {acc.figure(10e-6, 'assumed', state, 0.5)}",
        f"    bandwidth_fraction: {acc.figure(0.85, 'assumed', state, 0.15)}",
    ]
    lines.append(
        f"    per_element_s: {acc.figure(3e-12, 'assumed', 'as prefill attention; nobody published chunked-scan times', 0.6)}"
    )
    if sheet.link_bytes_per_s:
        wire = f"0.6 of {sheet.link_bytes_per_s / 1e9:.0f} GB/s a direction; DeepEP README: 153 to 158 GB/s dispatch of 160 on NVLink"
        lines += ["  all_to_all:", f"    launch_s: {acc.figure(20e-6, 'assumed', 'two kernels and a handshake', 0.5)}"]
        lines.append(f"    bytes_per_s: {acc.figure(0.6 * sheet.link_bytes_per_s, 'assumed', wire, 0.5)}")
    return lines


def _power_of(sheet: acc.Sheet, fitted: Fit | None) -> tuple[dict[str, float] | None, str, str, float | None]:
    if fitted is None:
        return (
            dict.fromkeys(("loaded_idle_w", "cap_w", *serving_fit.POWER), 0.0) | {"cap_w": 1.0},
            "fitted",
            "not fitted yet",
            None,
        )
    h100 = fitted.power
    if h100 is None:
        return None, "published", "no run with watts to fit on", None
    runs = "ML.ENERGY v3 and v2 runs (H100, NVML)"
    if sheet.name == "h100-sxm":
        return h100, "fitted", runs, None
    if sheet.tdp_w is None:
        return None, "published", "", None
    return (
        acc.scaled_power(h100, sheet),
        "transferred",
        f"{runs}, by fractions of TDP, bandwidth and peak; H100 to A100 erred by 17 %, p90 35 %",
        0.3,
    )


def in_memory(text: str, kind: type[Any]) -> Any:
    return validated(parse_document(text, "fit"), kind)


def chips_of(
    kernels: dict[str, Values], fitted: Fit | None = None, factor: float = 1.0
) -> dict[str, AcceleratorProfile]:
    """Profiles of all accelerators by the names that rows use."""
    made = {
        name: in_memory(profile_text(sheet, fitted, kernels, factor), AcceleratorProfile)
        for name, sheet in acc.SHEETS.items()
    }
    return {row_name: made[sheet.name] for row_name, sheet in acc.BY_ROW.items()}


ENGINES: Mapping[str, tuple[str, str]] = {
    "vllm": ("vLLM V1, versions 0.11.2 to 0.22", "InferenceMAX runs of vLLM 0.11.2 to 0.18"),
    "vllm-0.11.1": ("vLLM V1, version 0.11.1 and earlier 0.11", "ML.ENERGY v3 runs of vLLM 0.11.1"),
    "vllm-0.5": ("vLLM V0, version 0.5.4, bound by its host almost everywhere", "ML.ENERGY v2 runs of vLLM 0.5.4"),
    "sglang": ("SGLang 0.5", "InferenceMAX and NVIDIA runs of SGLang 0.5.6 and 0.5.9"),
    "tensorrt-llm": ("TensorRT-LLM 1.0 to 1.3", "InferenceMAX and NVIDIA runs of TensorRT-LLM 1.0 to 1.3"),
}


# Tokens of a block of KV cache, and whether prefixes are cached by default, where it is not as in vLLM's V1 engine.
BLOCKS = {"vllm-0.5": (16, False), "sglang": (1, True), "tensorrt-llm": (32, True)}


# Code paths on which an engine runs shared experts with the routed ones: SGLang does unless disable_shared_experts_fusion.
FUSED = {"sglang": ("experts-fused/latent",)}


def engine_stub(name: str) -> EngineProfile:
    """An engine without host time: what features are made with."""
    zero = {"value": 0.0, "tier": "fitted", "source": "not fitted yet"}
    fields = (
        "host_s_per_layer",
        "host_s_per_sequence",
        "reserved_bytes",
        "host_cores_per_replica",
        "host_cores_per_accelerator",
    )
    plain = {
        "name": name,
        "kind": "engine",
        "max_num_seqs": 1024,
        "max_num_batched_tokens": 8192,
        "gpu_memory_utilization": 0.9,
        "block_tokens": 16,
        "prefix_caching": False,
        "defaults_source": "stub",
    }
    plain |= {"fused_shared_experts": FUSED.get(name, ())}
    profile: EngineProfile = EngineProfile.model_validate(plain | dict.fromkeys(fields, zero))
    return profile


def fit_mxfp4(
    rows: pd.DataFrame, world: serving_fit.World, host: serving_fit.Host, kernels: dict[str, Values]
) -> dict[str, float]:
    """The law of mxfp4 experts from serving runs of gpt-oss on vLLM: launch, byte rate, FLOP rate and padding."""
    mine = rows[(rows.precision == "mxfp4") & rows.engine_profile.str.startswith("vllm")]
    if len(mine) < 20:
        return dict(MXFP4_START)
    target = serving_fit.measured_step_s(mine).to_numpy()
    free = {
        "launch_s": (10e-6, 60e-6),
        "bandwidth_fraction": (0.3, 0.9),
        "flops_fraction": (0.1, 0.8),
        "padding_tokens": (0.0, 32.0),
    }
    scale = np.array([MXFP4_START[n] for n in free])

    def residuals(x: Any) -> Any:
        trial = MXFP4_START | dict(zip(free, x * scale, strict=True))
        chips = chips_of(
            {gpu: values | {("experts", "mxfp4"): _mxfp4_on(trial, gpu)} for gpu, values in kernels.items()}
        )
        again = serving_fit.features(
            mine.drop(columns=FEATURES, errors="ignore").assign(architecture=""),
            serving_fit.World(world.models, chips, world.engines),
            measured.Refusals(),
        )
        return np.log(host.seconds(again) / target)

    bounds = np.array(list(free.values())).T / scale
    found = least_squares(
        residuals,
        np.clip(np.ones(len(free)), bounds[0] + 1e-6, bounds[1] - 1e-6),
        bounds=bounds,
        loss="soft_l1",
        f_scale=0.1,
        diff_step=1e-2,
        max_nfev=12,
    )
    return MXFP4_START | dict(zip(free, (found.x * scale).tolist(), strict=True))


def _mxfp4_on(values: dict[str, float], gpu: str) -> dict[str, float]:
    """Unpacking is as fast on both Hoppers: a part of the H200's bandwidth, and at most 0.9 of the H100's."""
    rate = values["bandwidth_fraction"] * 4.8e12
    sheet = acc.BY_ROW.get(gpu)
    return (
        values
        if gpu == "hopper" or sheet is None
        else values | {"bandwidth_fraction": min(0.9, rate / sheet.memory_bytes_per_s)}
    )


FEATURES = ["kernel_s", "kernel_median_s", "layers", "all_sequences", "median_sequences", "peers", "fused_layers", "special_layers",
            "bytes", "flops", "unpacked", "tokens", "path", "precision"]  # fmt: skip


def fit_all(data: Path, refusals: measured.Refusals, without_gpu: str | None = None) -> Fit:
    """Kernels, then host time, then mxfp4 and host time again, then power; perhaps without one GPU's rows."""
    kernels = fit_kernels(_without(kernel_rows(data, refusals), without_gpu))
    serving = _without(measured.serving_rows(data, refusals), without_gpu)
    models, engines = measured.catalogue(), {name: engine_stub(name) for name in ENGINES}

    def featured(count: measured.Refusals) -> tuple[pd.DataFrame, serving_fit.World]:
        with_mxfp4 = {
            gpu: values | ({("experts", "mxfp4"): _mxfp4_on(mxfp4, gpu)} if gpu in (*HOPPER_ROWS, "hopper") else {})
            for gpu, values in kernels.items()
        }
        world = serving_fit.World(models, chips_of(with_mxfp4), engines)
        return serving_fit.features(serving, world, count), world

    mxfp4 = dict(MXFP4_START)
    rows, world = featured(measured.Refusals())
    if host_rows(rows).empty:
        raise measured.Unreadable(f"{data}: no serving run on H100 or H200 is left to fit on")
    host = serving_fit.fit_host(host_rows(rows))
    mxfp4 = fit_mxfp4(rows, world, host, kernels)
    rows, world = featured(refusals)
    for gpu in {*HOPPER_ROWS, "hopper"} & set(kernels):
        kernels[gpu]["experts", "mxfp4"] = _mxfp4_on(mxfp4, gpu)
    host = serving_fit.fit_host(host_rows(rows))
    return Fit(kernels, host, fit_h100_power(rows, host) if powered(rows) else None, rows)


def _without(rows: pd.DataFrame, gpu: str | None) -> pd.DataFrame:
    return rows[rows.gpu != gpu] if gpu else rows


LEAST_POWERED = 20  # runs on H100 with watts that a fit of six constants needs


def powered(rows: pd.DataFrame) -> bool:
    """Whether there are enough runs with watts to fit power on."""
    return bool(((rows.gpu == "H100-SXM-80GB") & rows.avg_power_W.notna()).sum() > LEAST_POWERED)


def host_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that host constants are fitted on: Hopper, and vLLM 0.5 too."""
    return rows[rows.gpu.isin(HOPPER_ROWS) & serving_fit.measured_step_s(rows).notna()]


H100_CAP_W, H100_FLOOR_LEAST_W = 690.0, 121.7  # NVML's highest reading in the rows; loaded idle


def fit_h100_power(rows: pd.DataFrame, host: serving_fit.Host) -> dict[str, float]:
    with_watts = rows[(rows.gpu == "H100-SXM-80GB") & rows.avg_power_W.notna()]
    return serving_fit.fit_power(with_watts, host.factor, H100_CAP_W, H100_FLOOR_LEAST_W) | {"cap_w": H100_CAP_W}


ALSO = {  # engines without serving runs of their own that could be fitted
    "vllm-0.19": ("vLLM V1, version 0.19", "vllm"),
    "vllm-0.22": ("vLLM V1, version 0.22", "vllm"),
}
BUDGETS = {"vllm-0.5": (256, 4096), "sglang": (1024, 8192), "tensorrt-llm": (2048, 8192)}
_DEFAULTS = {
    "vllm": "vllm/engine/arg_utils.py: API server on cards of 70 GiB and more that are no A100",
    "vllm-0.5": "vllm 0.5.4 arg_utils.py: max_num_seqs 256; batched tokens as the runs of ML.ENERGY v2 need",
    "sglang": "as vLLM's: SGLang derives its own from memory",
    "tensorrt-llm": "TensorRT-LLM max_batch_size 2048, max_num_tokens 8192",
}


LOADS = {
    "vllm": 'load_s: {value: 60, low: 30, high: 100, tier: transferred, source: "vLLM blog, 26 October 2025 (Sleep Mode): 30 to 100 seconds and more to load a model again; between them"}',
}


def engine_text(name: str, like: str, description: str, fit: Fit, latency_s: float | None, errors: list[str]) -> str:
    """The YAML of an engine profile."""
    constants, own = fit.host.engines[like], name == like
    tier, runs = (
        ("fitted", ENGINES[like][1])
        if own
        else ("transferred", f"as {like}: no serving run of this version could be fitted")
    )
    seqs, tokens = BUDGETS.get(like, (1024, 8192))
    vllm = "vLLM docs, CPU resources for GPU deployments"
    defaults = _DEFAULTS.get(like, _DEFAULTS["vllm"])
    lines = [
        f"# {description}. Host times written by benchmarks/fit_models.py; docs/models.md says how well they predict."
    ]
    lines += [
        f"name: {name}",
        "kind: engine",
        f"description: {description}",
        f"max_num_seqs: {seqs}",
        f"max_num_batched_tokens: {tokens}",
    ]
    block_tokens, prefix_caching = BLOCKS.get(name, (16, True))
    lines += [
        "gpu_memory_utilization: 0.9",
        f"block_tokens: {block_tokens}",
        f"prefix_caching: {str(prefix_caching).lower()}",
    ]
    lines += [f'defaults_source: "{defaults}"']
    for field in ("host_s_per_step", "host_s_per_layer", "host_s_per_sequence", "host_s_per_sequence_and_peer"):
        note = "; may include sampling on the GPU" if field == "host_s_per_sequence" else ""
        lines.append(f"{field}: {acc.figure(constants[field], tier, runs + note, 0.4)}")
    lines.append("host_s_per_expert_layer:")
    lines.append(f"  fused: {acc.figure(constants['fused'], tier, runs, 0.6)}")
    if like == "vllm-0.11.1":
        lines.append(
            f"  {serving_fit.ROUTING}: {acc.figure(fit.host.special_s, tier, 'ML.ENERGY v3 runs of Llama-4-Scout and -Maverick', 0.2)}"
        )
    lines.append(
        f"request_latency_s: {acc.figure(latency_s, tier if latency_s is not None else 'published', 'median of measured TTFT less simulated: ' + runs if latency_s is not None else 'no run with a measured TTFT')}"
    )
    lines += [LOADS[name]] if name in LOADS else []
    paths = sorted(fit.rows.path[fit.rows.engine_profile == like].unique())
    lines.append(f"measured_paths: [{', '.join(paths)}]")
    lines += [f"fused_shared_experts: [{', '.join(FUSED[like])}]"] if like in FUSED else []
    lines += ["errors:", *errors] if errors else []
    lines.append(
        "reserved_bytes: {value: 4e9, low: 2e9, high: 8e9, tier: assumed, source: 'CUDA context, graphs and activation peak of one GPU; vLLM measures it at start'}"
    )
    lines.append(
        f'host_cores_per_replica: {{value: 2, tier: published, source: "{vllm}: one API server, one engine core that runs a busy loop"}}'
    )
    lines.append(f'host_cores_per_accelerator: {{value: 1, tier: published, source: "{vllm}: one worker per GPU"}}')
    return "\n".join(lines) + "\n"


def write_profiles(fit: Fit, latencies_s: dict[str, float], errors: dict[str, list[str]]) -> None:
    """Accelerators and engines into hardware_profiles/."""
    for sheet in acc.SHEETS.values():
        (PROFILES / f"{sheet.name}.yaml").write_text(
            profile_text(sheet, fit, fit.kernels, fit.host.factor), encoding="utf-8"
        )
    for name, (description, _) in ENGINES.items():
        if name in fit.host.engines:
            text = engine_text(name, name, description, fit, latencies_s.get(name), errors.get(name, []))
            (PROFILES / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, (description, like) in ALSO.items():
        text = engine_text(name, like, description, fit, latencies_s.get(like), errors.get(like, []))
        (PROFILES / f"{name}.yaml").write_text(text, encoding="utf-8")


QUANTITIES = {"TPOT": "tpot", "ITL": "tpot", "throughput": "throughput", "TTFT": "ttft", "J/token": "joules_per_token"}


def errors_by_engine(data: Path, fit: Fit) -> dict[str, list[str]]:
    """Lines of YAML: errors of each engine by chip, code path and quantity, every architecture left out in turn."""
    import cells  # these import this module
    import score_serving

    rows = measured.serving_rows(data, measured.Refusals())
    table = score_serving.long_table(score_serving.left_out(fit, rows, measured.Refusals(), None))
    table = cells.without_suspects(table, measured.Refusals())
    table = table.assign(called=table.quantity.map(QUANTITIES)).dropna(subset="called")
    found: dict[str, list[str]] = {}
    for (engine, gpu, path, quantity), mine in table.groupby(["engine", "gpu", "path", "called"]):
        mean, median, p90 = (f"{x:.3f}" for x in cells.mean_median_p90(mine.error))
        names = ", ".join(sorted(mine.architecture.unique()))
        found.setdefault(str(engine), []).append(
            f"  - {{engine: {engine}, chip: {acc.BY_ROW[gpu].name}, path: {path}, quantity: {quantity}, mean_fraction: {mean}, "
            f"median_fraction: {median}, p90_fraction: {p90}, runs: {mine.row_id.nunique()}, architectures: [{names}]}}"
        )
    return found


def kept(data: Path, fit: Fit) -> fitted.Fitted:
    """What only the scoring scripts need, fitted on the same rows."""
    import score_hosts  # these import this module
    import score_kernels
    import score_serving

    steps = measured.read(data / "measured_steps.csv", "steps", measured.Refusals())
    steps = steps[steps.engine.str.contains("2023") & (steps.gpu == "H100-SXM-80GB")]
    world = score_serving.refitted_world(fit, ["tensorrt-llm"])
    composed = score_kernels.composed(steps, world.chips, engine_stub("none"), world.models, measured.Refusals())
    servers = measured.read(data / "server_power_spec.csv", "server_power", measured.Refusals())
    servers = server_power.usable(servers, measured.Refusals())
    columns = ("wall_power_full_W", "wall_power_idle_W")
    hopper = fit.kernels["hopper"]
    return fitted.Fitted(
        {"warm_speedup": hopper["decode_attention", "bf16"]["warm_speedup"]}
        | {name: hopper["gemm", "fp8_block"][name] for name in ("eager_small_s", "eager_large_s")},
        fitted.fit_splitwise(composed),
        score_hosts.node_caps(score_hosts.nodes(data, world, measured.Refusals())),
        {column: server_power.fit(servers, column).coefficients.tolist() for column in columns},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of measured rows")
    parser.add_argument("--write", action="store_true", help="write hardware_profiles/")
    options = parser.parse_args()
    refusals = measured.Refusals()
    try:
        fit = fit_all(options.data, refusals)
    except (measured.Unreadable, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    for gpu, values in fit.kernels.items():
        for (law, precision), numbers in values.items():
            print(f"{gpu} {law} {precision}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
    print(f"factor {fit.host.factor:.4g}, unfused experts {fit.host.special_s * 1e6:.0f} us a layer")
    for engine, constants in fit.host.engines.items():
        print(f"{engine}: " + ", ".join(f"{name} {value * 1e6:.1f} us" for name, value in constants.items()))
    print("H100 power: " + ", ".join(f"{k} {v:.4g}" for k, v in (fit.power or {}).items()))
    for (schema, reason), count in sorted(refusals.counts.items()):
        print(f"refused {count} {schema} rows: {reason}")
    if options.write:
        from score_serving import first_token_latencies  # it imports this module

        write_profiles(fit, first_token_latencies(fit), errors_by_engine(options.data, fit))
        kept(options.data, fit).write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
