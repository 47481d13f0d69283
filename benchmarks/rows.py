"""Reads the measured rows of a data directory, and refuses what cannot be scored: counted, with the reason."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from accelerators import row_name

from hsim.description.catalogue import shipped
from hsim.description.model import ModelArchitecture
from hsim.description.yamlfile import read_document, validated

# What each schema must have, and the range outside which a number is in another unit.
SCHEMAS: dict[str, dict[str, tuple[float, float] | None]] = {
    "serving": {
        "row_id": None, "source": None, "gpu": None, "model": None, "n_gpus": (1, 4096), "weight_precision": None,
        "engine": None, "engine_version": None, "tp": (1, 1024), "ep": (1, 1024), "dp": (1, 1024), "workload": None,
        "concurrency": (0.5, 1e5), "avg_batch_size": (0.1, 1e5), "input_tokens_mean": (1, 2e6), "output_tokens_mean": (1, 2e6),
        "output_throughput_tok_s": (0.05, 5e6), "output_throughput_derived": None, "ttft_mean_ms": (0.5, 3.6e6),
        "itl_median_ms": (0.2, 5e3), "tpot_mean_ms": (0.2, 5e3), "energy_J_per_output_token": (1e-4, 1e3),
        "avg_power_W": (5, 2e5), "quality_note": None,
    },
    "steps": {
        "row_id": None, "source": None, "gpu": None, "tp": (1, 1024), "model": None, "precision": None, "engine": None,
        "phase": None, "batch": (1, 1e5), "prompt_tokens_per_seq": (1, 2e6), "context_tokens_per_seq": (1, 2e6),
        "step_time_ms": (0.05, 1e6),
    },
    "layers": {
        "row_id": None, "gpu": None, "model": None, "hidden": (64, 1e6), "ffn": (64, 1e7), "n_heads": (1, 4096),
        "n_kv_heads": (1, 4096), "gated_mlp": (0, 1), "tp": (1, 1024), "tokens": (1, 1e7), "qkv_proj_us": (0.5, 1e7),
        "out_proj_us": (0.5, 1e7), "mlp_up_us": (0.5, 1e7), "mlp_down_us": (0.5, 1e7),
    },
    "kernels": {
        "row_id": None, "gpu": None, "op": None, "dtype": None, "kv_dtype": None, "gemm_m": (1, 1e8), "gemm_n": (1, 1e8),
        "gemm_k": (1, 1e8), "batch": (1, 1e6), "q_tokens_per_seq": (1, 1e7), "kv_tokens_per_seq": (1, 1e8),
        "n_heads": (1, 4096), "n_kv_heads": (1, 4096), "head_dim": (8, 4096), "moe_tokens": (1, 1e8),
        "moe_hidden": (8, 1e6), "moe_inter": (8, 1e7), "moe_topk": (1, 1024), "moe_experts": (1, 1e5), "moe_tp": (1, 1024),
        "moe_ep": (1, 1024), "moe_distribution": None, "comm_gpus": (2, 1e5), "comm_bytes": (1, 1e13),
        "time_ms": (5e-4, 1e5), "kernel_source": None,
    },
    "mlperf": {
        "row_id": None, "mlperf_version": None, "platform": None, "accelerator": None, "n_accelerators": (0, 4096),
        "model": None, "scenario": None, "tokens_per_s": (0.01, 1e8), "node_wall_power_W": (20, 1e6), "n_cpus": (0, 64),
    },
    "server_power": {
        "system": None, "submitted": None, "nodes": (1, 1000), "cpu": None, "cpu_mhz": (300, 9000), "chips": (1, 64),
        "cores": (1, 4096), "threads": (1, 8192), "memory_GB": (1, 65536), "wall_power_full_W": (5, 1e5),
        "wall_power_idle_W": (2, 1e5),
    },
    "cpu_power": {
        "cpu": None, "load_kind": None, "requested_load": (0, 100), "cores_used": (0, 4096), "cpu_load_percent": (0, 100.5),
        "package_power_W": (0, 5000),
    },
    "cpu_stage": {"row_id": None, "stage": None, "operation": None, "hardware": None, "work_unit": None, "time_ms_median": (0, 1e8)},
}  # fmt: skip


@dataclass
class Refusals:
    """Rows that were not scored, by schema and reason."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def refuse(self, schema: str, rows: pd.DataFrame | int, reason: str) -> None:
        count = rows if isinstance(rows, int) else len(rows)
        if count:
            self.counts[schema, reason] += count

    def drop(self, schema: str, rows: pd.DataFrame, bad: pd.Series | np.ndarray, reason: str) -> pd.DataFrame:
        """The rows without the bad ones, which are counted."""
        bad = np.asarray(bad, dtype=bool)
        self.refuse(schema, int(bad.sum()), reason)
        return rows[~bad]


class MissingColumns(Exception):
    """A file without a column that its schema needs."""


def read(file: Path, schema: str, refusals: Refusals, needs: tuple[str, ...] = ()) -> pd.DataFrame:
    """Rows of a CSV. A missing column stops the file; NaN in `needs` and numbers out of range refuse the row."""
    rows = pd.read_csv(file, low_memory=False)
    wanted = SCHEMAS[schema]
    missing = [name for name in wanted if name not in rows.columns]
    if missing:
        raise MissingColumns(f"{file}: column {', '.join(missing)} is missing; the {schema} schema needs it")
    for name, span in wanted.items():
        if span is None:
            continue
        numbers = pd.to_numeric(rows[name], errors="coerce")
        rows = refusals.drop(schema, rows, (numbers.isna() & rows[name].notna()).to_numpy(), f"{name} is not a number")
        rows = rows.assign(**{name: pd.to_numeric(rows[name])})
        low, high = span
        out = rows[name].notna() & ((rows[name] < low) | (rows[name] > high))
        rows = refusals.drop(schema, rows, out, f"{name} is outside {low:g} to {high:g}: another unit?")
    for name in needs:
        rows = refusals.drop(schema, rows, rows[name].isna(), f"{name} is NaN")
    if "gpu" in rows:
        rows = rows.assign(gpu=rows.gpu.map(str).map(row_name))
    return refusals.drop(schema, rows, rows.duplicated(subset=[c for c in rows if c != "row_id"]), "the same row twice")


def catalogue() -> dict[str, ModelArchitecture]:
    """Shipped architectures by the Hugging Face names that they stand for."""
    models = {}
    for file in sorted(shipped("models").glob("*.yaml")):
        model = validated(read_document(file), ModelArchitecture)
        models |= dict.fromkeys(model.hugging_face, model)
    return models


def architecture_of(model: ModelArchitecture) -> str:
    """The cell that a model counts in: models of the same architecture are one."""
    return {"llama-3.3-70b": "llama-3.1-70b", "deepseek-r1": "deepseek-v3"}.get(model.name, model.name)


# ML.ENERGY gives no prompt lengths; means as the data's README advises, by workload.
PROMPT_TOKENS = {
    "lm-arena-chat": 250.0,
    "gpqa": 300.0,
    "sourcegraph-fim": 1500.0,
    "sharegpt-chat": 250.0,
    "evalplus-code": 200.0,
}
FIXED_LENGTH_CV = 0.065  # lengths drawn evenly from 80 to 100 % of the nominal ones: (0.2 / sqrt 12) / 0.9
UNKNOWN_CV = 0.6


def output_spreads(data: Path) -> dict[tuple[str, str], float]:
    """Coefficient of variation of answer lengths by workload and model, from the histograms where there are any."""
    file = data / "traces" / "mlenergy_output_length_hist.csv.gz"
    if not file.is_file():
        return {}
    bins = pd.read_csv(file)
    middle = (bins.bin_lo_tokens + bins.bin_hi_tokens) / 2
    spreads = {}
    for key, group in bins.assign(middle=middle).groupby(["task", "model"]):
        mean = np.average(group.middle, weights=group["count"])
        spreads[str(key[0]), str(key[1])] = (
            math.sqrt(np.average((group.middle - mean) ** 2, weights=group["count"])) / mean
        )
    return spreads


def serving_rows(data: Path, refusals: Refusals) -> pd.DataFrame:
    """Closed-loop serving runs that can be predicted, with their loads."""
    name = "serving"
    rows = read(data / "measured_serving.csv", name, refusals, ("gpu", "model", "output_tokens_mean"))
    rows = refusals.drop(
        name,
        rows,
        rows.n_gpus.isna() | rows.quality_note.fillna("").str.contains("ambiguous"),
        "number of GPUs unknown",
    )
    rows = refusals.drop(
        name, rows, rows.concurrency.isna() & rows.avg_batch_size.isna(), "open arrivals: scored per request elsewhere"
    )
    odd = (rows.source == "aic_silicon_nvidia") & (rows.engine == "vllm") & (rows.engine_version == "0.12.0")
    rows = refusals.drop(name, rows, odd, "imply an MFU of up to 1.0: not believed")
    drafts = (rows.engine == "trtllm") & rows.model.str.contains("DeepSeek-R1") & (rows.tp == 8) & (rows.ep == 8)
    rows = refusals.drop(
        name, rows, drafts, "looks like speculative decoding: faster than V3 in the same configuration"
    )
    if "pp" in rows:
        rows = refusals.drop(name, rows, rows.pp.fillna(1) > 1, "pipeline parallelism is not modelled")
    latency = rows.ttft_mean_ms + rows.tpot_mean_ms * rows.output_tokens_mean
    queued = rows.ttft_mean_ms > 0.3 * latency
    rows = refusals.drop(
        name, rows, queued.fillna(False), "TTFT above 30 % of end to end: a batch limit that the row does not state"
    )
    spreads = output_spreads(data)
    cv = [
        spreads.get((w, m), UNKNOWN_CV) if s.startswith("mlenergy") else FIXED_LENGTH_CV
        for s, w, m in zip(rows.source, rows.workload, rows.model, strict=True)
    ]
    # InferenceMAX gives the nominal lengths and draws from 80 to 100 % of them.
    drawn = np.where(rows.source.str.endswith("inferencemax"), 0.9, 1.0)
    rows = rows.assign(
        input_tokens_mean=rows.input_tokens_mean * drawn, output_tokens_mean=rows.output_tokens_mean * drawn
    )
    prompt = rows.input_tokens_mean.fillna(rows.workload.map(PROMPT_TOKENS)).fillna(250.0)
    batch = (
        rows.avg_batch_size.where(rows.source.str.startswith("mlenergy"))
        .fillna(rows.concurrency)
        .fillna(rows.avg_batch_size)
    )
    return rows.assign(
        cv=cv, prompt_tokens=prompt, sequences=batch, architecture="", engine_profile=rows.apply(engine_of, axis=1)
    )


def engine_of(row: pd.Series) -> str:
    """The engine profile that stands for a row's engine and version."""
    version = str(row.engine_version)
    if row.engine == "vllm":
        if row.source == "mlenergy_v2" or version.startswith("0.5"):
            return "vllm-0.5"
        return "vllm-0.11.1" if version.startswith(("0.11.0", "0.11.1")) else "vllm"
    return {"trtllm": "tensorrt-llm", "sglang": "sglang"}.get(str(row.engine), str(row.engine))


def precision_of(row: pd.Series, model: ModelArchitecture) -> str | None:
    """The precision of a row's weights in hsim's words; None where it is none of them."""
    if model.name.startswith("gpt-oss"):
        return "mxfp4"
    given = row.weight_precision
    if given == "fp8" and model.latent:
        return "fp8_block"  # DeepSeek's own checkpoints
    if pd.isna(given):
        return "bf16"
    return {"bf16": "bf16", "fp16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "mxfp4": "mxfp4"}.get(str(given))


def kv_precision_of(row: pd.Series, precision: str) -> str | None:
    """Keys and values of 8 bits in InferenceMAX's quantised vLLM and TensorRT-LLM runs, by their recipes; else as usual."""
    eight = str(row.source).endswith("inferencemax") and row.engine in ("vllm", "trtllm") and precision != "bf16"
    return "fp8" if eight else None
