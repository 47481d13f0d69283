"""Measured servers, CPUs, whole nodes and requests against what hsim says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerators as acc
import fitted
import numpy as np
import pandas as pd
import rows as measured
import server_power
import serving_fit
import vllm_replay
from cells import predicted_rows
from closed_loop import Load, means

from hsim.costs.composed import ComposedCosts, Placement
from hsim.costs.cpu import operation_cost
from hsim.costs.memory import kv_capacity_tokens
from hsim.costs.shapes import StepShape
from hsim.description.catalogue import load_profile
from hsim.description.hardware import CpuProfile
from hsim.description.system import Figures
from hsim.errors import DescriptionError

# ---- servers and CPU packages


def score_servers(data: Path, leave_out: bool, refusals: measured.Refusals) -> pd.DataFrame:
    """Wall watts of CPU servers: by the kept coefficients, or each by a fit on the others."""
    rows = server_power.usable(measured.read(data / "server_power_spec.csv", "server_power", refusals), refusals)
    tables = []
    for column, quantity in (("wall_power_full_W", "full watts"), ("wall_power_idle_W", "idle watts")):
        watts = rows[column] / rows.nodes
        if leave_out:
            predicted = watts * (1 + server_power.left_out_errors(rows, column))
        else:
            predicted = server_power.ServerPower(np.array(fitted.read().server_watts[column])).watts(rows)
        own = rows.assign(row_id=rows.system, gpu="server", architecture="", engine="", source="SPECpower")
        tables.append(predicted_rows("server_power", own, quantity, watts, predicted))
    return pd.concat(tables)


EXPONENT = 0.7  # the shipped load_power_exponent of every CPU profile that nobody calibrated


def score_loads(data: Path, refusals: measured.Refusals) -> pd.DataFrame:
    """CPU packages between their own idle and full watts, by the shipped exponent."""
    needs = ("cpu", "package_power_W", "cpu_load_percent")
    rows = measured.read(data / "cpu_load_power.csv", "cpu_power", refusals, needs)
    rows = refusals.drop("cpu_power", rows, rows.package_power_W < 2.0, "a package under 2 W: a bad reading")
    curves, tables = server_power.load_exponents(rows), []
    for c in curves.itertuples():
        mine = rows[(rows.cpu == c.cpu) & (rows.load_kind == c.load) & rows.cpu_load_percent.between(5, 95)]
        predicted = c.idle_w + (c.full_w - c.idle_w) * (mine.cpu_load_percent / 100.0) ** EXPONENT
        own = mine.assign(row_id=mine.cpu, gpu=mine.cpu, architecture=mine.load_kind, engine="", source="RAPL")
        tables.append(predicted_rows("cpu_power", own, "package watts", mine.package_power_W, predicted))
    scored = sum(len(t) for t in tables)
    refusals.refuse(
        "cpu_power", len(rows) - scored, "idle or full load, which the curve goes through, or too few loads"
    )
    return pd.concat(tables) if tables else pd.DataFrame()


# ---- CPU stages

STAGE_CPU = "epyc-9654"
TOKENS_PER_KIB, QUERY_TOKENS = 256.0, 32.0  # four bytes a token of English; a short query: neither is in the rows
STAGES = (  # words of a row's operation, most it may be batched, hsim's operation, its units
    ("HF tokenizers Python", 1, "tokenise", TOKENS_PER_KIB), ("HF tokenizers Rust", 1, "tokenise", TOKENS_PER_KIB),
    ("all-MiniLM-L6-v2 (22.7M), PyTorch", 1, "encode-minilm", QUERY_TOKENS), ("LexRank", 8, "summarise-lexrank", 1.0),
    ("freshQA node: summarize", 8, "summarise-lexrank", 1.0),
)  # fmt: skip


def score_stages(data: Path, refusals: measured.Refusals) -> pd.DataFrame:
    """CPU operations that hsim has a figure for, whatever CPU they ran on: its profiles' are transferred."""
    rows = measured.read(data / "cpu_stage.csv", "cpu_stage", refusals, ("operation",))
    time_ms = rows.time_ms_median.fillna(rows.time_ms_mean)
    rows = refusals.drop("cpu_stage", rows.assign(time_ms=time_ms), time_ms.isna(), "neither a median nor a mean time")
    cpu, figures = load_profile(STAGE_CPU, CpuProfile, STAGE_CPU)[0], Figures({})
    batch = pd.to_numeric(rows.batch_or_concurrency.str.extract(r"(\d+)")[0], errors="coerce").fillna(1)
    tables = []
    for words, most, operation, units in STAGES:
        mine = rows[rows.operation.str.contains(words, regex=False) & (batch <= most)]
        predicted = operation_cost(cpu, operation, figures).seconds(units)
        own = mine.assign(gpu=mine.hardware, architecture=operation, engine="")
        tables.append(predicted_rows("cpu_stage", own, "seconds", mine.time_ms * 1e-3, np.full(len(mine), predicted)))
    scored = pd.concat(tables)
    left = rows[~rows.index.isin(scored.index)]
    for stage, mine in left.groupby("stage"):
        refusals.refuse("cpu_stage", mine, f"{stage}: no operation of hsim's profiles is this one")
    return scored


# ---- whole nodes

# Architecture, mean prompt and answer tokens of MLPerf's tasks: MLPerf inference rules and dataset notes.
MLPERF = {
    "llama2-70b": ("llama-2-70b", 294.0, 294.0), "mixtral-8x7b": ("mixtral-8x7b", 280.0, 145.0), "gptj": ("gpt-j-6b", 870.0, 69.0),
}  # fmt: skip
NODE_BASE_W, NODE_HOST_W, PSU = 1000.0, 500.0, 0.94
MLPERF_SEQUENCES, MOST_SEQUENCES = 512.0, 2048
WEIGHTS = {"fp8": "fp8", "bf16": "bf16", "fp16": "bf16"}


def score_nodes(data: Path, world: serving_fit.World, refusals: measured.Refusals) -> pd.DataFrame:
    """Tokens/s of nodes, never fitted, and the wall watts of those that give them, under the cap of their platform."""
    table = nodes(data, world, refusals)
    if table.empty:
        return table
    offline = table[table.scenario == "Offline"]
    refusals.refuse("mlperf", len(table) - len(offline), "tokens/s of a Server run hangs on its latency limit")
    tuned = offline.node_wall_power_W.notna() | offline.model.str.startswith("gptj")
    offline = refusals.drop("mlperf", offline, tuned, "tokens/s: clocks tuned for power, or four beams (gptj)")
    rates = predicted_rows("mlperf", offline, "throughput", offline.tokens_per_s, offline.rate)
    return pd.concat([rates, _node_watts(table, refusals)])


def nodes(data: Path, world: serving_fit.World, refusals: measured.Refusals) -> pd.DataFrame:
    """Rows of nodes with the watts of an uncapped accelerator at their rate, and the rate that hsim predicts."""
    rows = measured.read(data / "mlperf_llm.csv", "mlperf", refusals, ("model", "accelerator"))
    rows = refusals.drop("mlperf", rows, ~(rows.n_accelerators > 0), "no accelerator: hsim has no engine on CPUs")
    rows = refusals.drop("mlperf", rows, rows.tokens_per_s.isna(), "tokens_per_s is NaN")
    rows = rows.assign(n_nodes=rows.n_nodes.fillna(1))
    models = {m.name: m for m in world.models.values()}
    found = []
    for row in rows.itertuples():
        key = next((k for k in MLPERF if row.model.startswith(k)), None)
        chip = world.chips.get(acc.row_name(row.accelerator))
        if key is None or chip is None:
            refusals.refuse(
                "mlperf", 1, f"no task lengths of {row.model}" if key is None else f"no profile of {row.accelerator}"
            )
            continue
        model, prompt, answer = models[MLPERF[key][0]], *MLPERF[key][1:]
        precision: Any = "fp8" if "fp8" in chip.kernels.gemm else "bf16"
        engine = world.engines["tensorrt-llm"]
        try:
            placement = _smallest(Placement(model, chip, engine, 1, precision))
        except DescriptionError as error:
            refusals.refuse("mlperf", 1, str(error))
            continue
        watts = _uncapped_w(row, ComposedCosts(placement, Figures({})), prompt, answer)
        found.append({"index": row.Index, "architecture": model.name, "free_w": watts, "gpu": acc.row_name(row.accelerator),
                      "rate": _tokens_per_s(placement, prompt, answer) * row.n_accelerators * row.n_nodes / placement.devices})  # fmt: skip
    if not found:
        return pd.DataFrame()
    return rows.join(pd.DataFrame(found).set_index("index"), how="inner").assign(engine="tensorrt-llm", source="MLPerf")


def node_caps(table: pd.DataFrame) -> dict[str, float]:
    """The cap of one accelerator that the first row of each platform with several implies."""
    caps = {}
    for platform, mine in table[table.node_wall_power_W.notna()].groupby("platform"):
        if len(mine) > 1:
            caps[str(platform)] = _cap_w(mine.iloc[0])
    return caps


def _cap_w(row: Any) -> float:
    implied_w = (row.node_wall_power_W * PSU - NODE_BASE_W - NODE_HOST_W) / row.n_accelerators
    return float(min(row.free_w, implied_w))


def _node_watts(table: pd.DataFrame, refusals: measured.Refusals) -> pd.DataFrame:
    """Of the rows with wall power: the cap is that of the first row of its platform, here or among the development rows."""
    powered = table[table.node_wall_power_W.notna()]
    refusals.refuse("mlperf", len(table) - len(powered), "no wall power to compare")
    kept, predicted = fitted.read().node_caps_w, pd.Series(np.nan, index=powered.index)
    rest_w = NODE_BASE_W + NODE_HOST_W
    for platform, mine in powered.groupby("platform"):
        first = mine.iloc[0]
        learnt = platform not in kept or np.isclose(kept[str(platform)], _cap_w(first), rtol=1e-3)
        others = mine.iloc[1:] if learnt else mine
        refusals.refuse("mlperf", int(learnt), "its platform's cap is fitted on it")
        cap_w = kept.get(str(platform), _cap_w(first))
        predicted[others.index] = (np.minimum(cap_w, others.free_w) * others.n_accelerators + rest_w) / PSU
    known = predicted.notna()
    return predicted_rows("mlperf", powered[known], "node watts", powered[known].node_wall_power_W, predicted[known])


def _smallest(placement: Placement) -> Placement:
    """On as few accelerators as hold the model with room for a batch."""
    for ways in (1, 2, 4, 8):
        tried = Placement(placement.model, placement.chip, placement.engine, ways, placement.precision)
        try:
            if kv_capacity_tokens(tried, 0.9, Figures({}), placement.model.name) > 20_000:
                return tried
        except DescriptionError:
            continue
    raise DescriptionError(placement.model.name, f"does not fit into 8 x {placement.chip.name}", "it needs more")


def _tokens_per_s(placement: Placement, prompt: float, answer: float) -> float:
    """Of one replica that always has work, with as many sequences as its memory holds."""
    room = kv_capacity_tokens(placement, 0.9, Figures({}), placement.model.name)
    sequences = min(MOST_SEQUENCES, room // (prompt + answer))
    return means(ComposedCosts(placement, Figures({})), Load(sequences, prompt, answer, 0.6)).tokens_per_s


def _uncapped_w(row: Any, costs: ComposedCosts, prompt: float, answer: float) -> float:
    """Watts of one accelerator at the measured rate of tokens, as if nothing capped it."""
    joins = MLPERF_SEQUENCES / answer
    chunk = round(joins * prompt)
    contexts = round(MLPERF_SEQUENCES * (prompt + answer / 2))
    shape = StepShape(round(MLPERF_SEQUENCES), contexts, max(1, round(joins)), chunk, chunk, round(chunk * prompt / 2))
    timing, power = costs.timing(shape), costs.placement.chip.power
    n_bytes, flops, _ = costs.work(shape)
    steps_per_s = (
        row.tokens_per_s / row.n_accelerators / row.n_nodes / MLPERF_SEQUENCES
    )  # of each accelerator's share of a step
    read = lambda figure: np.nan if figure is None or figure.value is None else figure.value  # noqa: E731
    busy = min(1.0, steps_per_s * costs.placement.devices * (timing.seconds - timing.host_s))
    rate = n_bytes * read(power.joules_per_byte) + flops * read(power.joules_per_flop)
    rate += MLPERF_SEQUENCES * read(power.joules_per_output_token)
    return float(read(power.floor_w) + read(power.kernel_w) * busy + steps_per_s * rate)


# ---- requests


def score_requests(data: Path, world: serving_fit.World, refusals: measured.Refusals) -> pd.DataFrame:
    """Each request of real logs, replayed with its arrival and lengths through the engine, by profiles alone."""
    files = sorted(data.glob("request_level*.csv*"))
    if not files:
        raise measured.Unreadable(f"{data}: there is no request_level*.csv")
    tables = []
    for file in files:
        needs = ("arrival_s", "input_tokens", "output_tokens", "max_num_seqs", "max_num_batched_tokens", "tp", "dp")
        rows = measured.read(file, "request_level", refusals, needs)
        for run, mine in rows.groupby("run"):
            found = _replayed(mine.sort_values("arrival_s"), world)
            if isinstance(found, str):
                refusals.refuse("request_level", mine, f"{run}: {found}")
            else:
                tables += found
    return pd.concat(tables) if tables else pd.DataFrame()


def _replayed(rows: pd.DataFrame, world: serving_fit.World) -> list[pd.DataFrame] | str:
    """Predictions for the requests of one run, or why there are none."""
    first = rows.iloc[0]
    model, chip = world.models.get(first.model), world.chips.get(first.gpu)
    if model is None or chip is None:
        return measured.no_model(first.model) if model is None else f"no profile of GPU {first.gpu}"
    engine = world.engines["vllm-0.19" if first.vllm_version.startswith("0.19") else "vllm"]
    groups = int(first.dp) if model.experts else 1
    try:
        costs = ComposedCosts(Placement(model, chip, engine, int(first.tp), "bf16", groups, groups > 1), Figures({}))
    except DescriptionError as error:
        return str(error)
    if first.dp > 1 and not model.experts:
        return "data-parallel copies of a dense model: which request went where is not in the rows"
    log = vllm_replay.log_of(rows.to_dict("records"))
    predicted = vllm_replay.replay(log, costs)
    latency = engine.request_latency_s
    predicted["ttft"] = predicted["ttft"] + (latency.value if latency and latency.value else 0.0)
    own = rows.assign(row_id=rows.request_id, architecture=measured.architecture_of(model), engine=engine.name, source=rows.source,
                      low_confidence=bool(costs.notes))  # fmt: skip
    names = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end"}
    return [
        predicted_rows("request_level", own, names[q], log.measured[q], predicted[q]) for q in vllm_replay.QUANTITIES
    ]
