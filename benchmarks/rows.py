"""Reads the measured rows of a data directory, and refuses what cannot be scored: counted, with the reason."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        "row_id": None, "mlperf_version": None, "platform": None, "accelerator": None, "n_accelerators": (0, 4096), "n_nodes": (1, 4096),
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
    "cpu_stage": {
        "row_id": None, "stage": None, "operation": None, "hardware": None, "work_unit": None, "batch_or_concurrency": None,
        "time_ms_median": (1e-5, 1e8), "time_ms_mean": (1e-5, 1e8), "source": None,
    },
    "request_level": {
        "run": None, "gpu": None, "model": None, "tp": (1, 1024), "dp": (1, 1024), "max_num_seqs": (1, 1e5),
        "max_num_batched_tokens": (1, 1e7), "vllm_version": None, "request_id": None, "arrival_s": (0, 1e7),
        "input_tokens": (1, 2e6), "output_tokens": (1, 2e6), "ttft_ms": (0.5, 3.6e6), "tpot_ms": (0.05, 5e3), "e2e_ms": (0.5, 3.6e7),
        "source": None,
    },
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


class Unreadable(Exception):
    """A file that cannot be read at all, with why: it is not there, is no table, or lacks a column of its schema."""


def read(file: Path, schema: str, refusals: Refusals, needs: tuple[str, ...] = ()) -> pd.DataFrame:
    """Rows of a CSV, text without NaN. A missing column stops the file, and all its rows are counted as refused.

    NaN in `needs` and numbers out of range refuse the row.
    """
    if not file.is_file():
        raise Unreadable(f"{file}: there is no such file")
    try:
        rows = pd.read_csv(file, low_memory=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        refusals.refuse(schema, 1, f"{file.name} is no table")
        raise Unreadable(f"{file}: is no table ({error}); a CSV with a header is needed") from None
    wanted = SCHEMAS[schema]
    missing = [name for name in wanted if name not in rows.columns]
    if missing:
        refusals.refuse(schema, rows, f"{file.name} has no column {', '.join(missing)}")
        raise Unreadable(f"{file}: column {', '.join(missing)} is missing; the {schema} schema needs it")
    for name, span in wanted.items():
        if span is None:
            rows = rows.assign(**{name: rows[name].astype(object).where(rows[name].notna(), "").astype(str)})
            continue
        numbers = pd.to_numeric(rows[name], errors="coerce")
        rows = refusals.drop(schema, rows, (numbers.isna() & rows[name].notna()).to_numpy(), f"{name} is not a number")
        rows = rows.assign(**{name: pd.to_numeric(rows[name])})
        low, high = span
        out = rows[name].notna() & ((rows[name] < low) | (rows[name] > high))
        rows = refusals.drop(schema, rows, out, f"{name} is outside {low:g} to {high:g}: another unit?")
    for name in needs:
        rows = refusals.drop(schema, rows, rows[name].isna() | (rows[name].astype(str) == ""), f"{name} is NaN")
    if "gpu" in rows:
        rows = rows.assign(gpu=rows.gpu.map(str).map(row_name))
    return refusals.drop(schema, rows, rows.duplicated(subset=[c for c in rows if c != "row_id"]), "the same row twice")


class Catalogue(dict[str, ModelArchitecture]):
    """Shipped architectures by the names that rows may know them by: Hugging Face's, hsim's, or one of these in other words."""

    def __missing__(self, name: str) -> ModelArchitecture:
        """By its words alone: without owner, precision, kind of tuning and date. Raises KeyError where none is that model."""
        plain = plain_name(name)
        found = next((model for known, model in self.items() if plain_name(known) == plain), None)
        if found is None:
            raise KeyError(name)
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """As dict.get, with other words for the same model."""
        try:
            return self[name]
        except KeyError:
            return default


# Words of a name that say nothing of the architecture: precisions, kinds of tuning, dates, formats.
_DECORATION = re.compile(r"^(fp8|fp4|nvfp4|mxfp4|bf16|fp16|w8a8|w4a16|int8|int4|awq|gptq|dynamic|block|instruct|it|pt|chat|hf|base|thinking"
                         r"|preview|latest|meta|nvidia|v0\.\d|2[45]\d\d|0\d{3}|\d{4})$")  # fmt: skip


def plain_name(name: str) -> str:
    """A model's name in small letters without its owner and words that say nothing of its architecture."""
    words = re.split(r"[-_ ]+", name.rpartition("/")[2].lower())
    return "-".join(word for word in words if not _DECORATION.match(word))


def catalogue() -> Catalogue:
    """Every shipped architecture."""
    models = Catalogue()
    for file in sorted(shipped("models").glob("*.yaml")):
        model = validated(read_document(file), ModelArchitecture)
        models |= dict.fromkeys((*model.hugging_face, model.name), model)
    return models


def no_model(name: str) -> str:
    """Why a row of an unknown model is refused, and what would let it in."""
    return f"no model {name!r}: add models/<name>.yaml whose hugging_face names it, from its config.json"


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
    unsure = rows.n_gpus.isna() | rows.quality_note.str.contains("ambiguous")
    rows = refusals.drop(name, rows, unsure, "number of GPUs unknown")
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
        rows = refusals.drop(
            name, rows, pd.to_numeric(rows.pp, errors="coerce") > 1, "pipeline parallelism is not modelled"
        )
    rows = _without_contradictions(rows, refusals)
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
    engines = [engine_of(row) for row in rows.itertuples()]
    return rows.assign(cv=cv, prompt_tokens=prompt, sequences=batch, architecture="", engine_profile=engines)


CONTRADICTION = 20.0  # numbers of one run that should agree and differ by more are in different units


def _without_contradictions(rows: pd.DataFrame, refusals: Refusals) -> pd.DataFrame:
    """Refuse runs whose numbers contradict each other: no run of their size has both."""
    sequences = rows.concurrency.fillna(rows.avg_batch_size)
    in_flight = rows.output_throughput_tok_s * rows.tpot_mean_ms.fillna(rows.itl_median_ms) * 1e-3 / sequences
    watts = rows.output_throughput_tok_s * rows.energy_J_per_output_token / rows.avg_power_W
    for what, ratio in (
        ("tokens/s times seconds a token is not the sequences in flight", in_flight),
        ("tokens/s times J a token is not the watts", watts),
    ):
        odd = (ratio > CONTRADICTION) | (ratio < 1 / CONTRADICTION)
        rows = refusals.drop("serving", rows, odd.reindex(rows.index), f"{what}: another unit?")
    return rows


def engine_of(row: Any) -> str:
    """The engine profile that stands for a row's engine and version."""
    version = str(row.engine_version)
    if row.engine == "vllm":
        if row.source == "mlenergy_v2" or version.startswith("0.5"):
            return "vllm-0.5"
        return "vllm-0.11.1" if version.startswith(("0.11.0", "0.11.1")) else "vllm"
    known = {"trtllm": "tensorrt-llm", "tensorrt_llm": "tensorrt-llm", "trt-llm": "tensorrt-llm"}
    return known.get(str(row.engine).lower(), str(row.engine).lower())


def precision_of(row: Any, model: ModelArchitecture) -> str | None:
    """The precision of a row's weights in hsim's words; None where it is none of them."""
    if model.name.startswith("gpt-oss"):
        return "mxfp4"
    given = str(row.weight_precision).lower() or "bf16"
    if given == "fp8" and model.latent:
        return "fp8_block"  # DeepSeek's own checkpoints
    return {"bf16": "bf16", "fp16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "mxfp4": "mxfp4",
            "nvfp4": "nvfp4", "fp4": "nvfp4"}.get(given)  # fmt: skip


def kv_precision_of(row: Any, precision: str) -> str | None:
    """Keys and values of 8 bits in InferenceMAX's quantised vLLM and TensorRT-LLM runs, by their recipes; else as usual."""
    eight = str(row.source).endswith("inferencemax") and row.engine in ("vllm", "trtllm") and precision != "bf16"
    return "fp8" if eight else None
