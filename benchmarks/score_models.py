"""Scores hsim's generation model on measured rows it was not fitted on: python benchmarks/score_models.py --data DIR.

Kernels leave one shape out; serving runs leave one architecture out, and each is simulated by hsim's engine; an
accelerator without kernel rows stands on Hopper's laws transferred. What cannot be scored is refused, counted, with why.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent))

import accelerators as acc
import fit_models
import kernel_laws
import rows as measured
import server_power
import serving_fit
from scipy.optimize import least_squares
from simulated_loop import COLD, STEADY, observe

from hsim.costs.composed import ComposedCosts, Placement
from hsim.costs.shapes import StepShape
from hsim.description.hardware import EngineProfile
from hsim.description.system import Figures
from hsim.errors import DescriptionError


def summary(errors: Any) -> str:
    """Mean, median and 90th percentile of absolute relative errors."""
    e = np.abs(np.asarray(errors, dtype=float))
    e = e[np.isfinite(e)]
    return (
        f"{e.mean():6.1%} {np.median(e):6.1%} {np.quantile(e, 0.9):6.1%}  n {len(e)}"
        if len(e)
        else "     -      -      -  n 0"
    )


# ---- kernels


def score_kernels(rows: pd.DataFrame) -> None:
    """Each law on each accelerator: in sample, and on shapes left out."""
    print("\nKernels: in sample, then shapes left out       MAPE median    p90")
    together: dict[str, list[Any]] = {}
    for law, gpu, precision, mine in kernel_laws.groups(rows):
        fitted = kernel_laws.fit_and_leave_out(law, gpu, precision, mine)
        print(f"{gpu:18} {law.name:18} {precision:10} {np.mean(fitted.inside):6.1%}   {summary(fitted.outside)}")
        together.setdefault("attention" if "attention" in law.name else law.name, []).append(fitted.outside)
    for name, errors in together.items():
        print(f"{'all':18} {name:18} {'':10} {'':6}   {summary(np.concatenate(errors))}")


def score_kernel_transfer(rows: pd.DataFrame, kernels: dict[str, fit_models.Values]) -> None:
    """Hopper's laws on every other accelerator that has kernel rows."""
    print("\nKernels transferred from Hopper               MAPE median    p90")
    others, together = rows[~rows.gpu.isin(fit_models.HOPPER_ROWS)], []
    for law, gpu, precision, mine in kernel_laws.groups(others):
        source = kernels["hopper"].get((law.name, precision))
        sheet = acc.BY_ROW[gpu]
        if source is None or sheet.silicon is None:
            continue
        moved = kernel_laws.transferred(source, sheet.silicon)
        ratio = law.seconds(moved, mine) / mine.seconds.to_numpy()
        together.append(ratio - 1)
        print(
            f"{gpu:18} {law.name:18} {precision:8} {summary(ratio - 1)}  median predicted/measured {np.median(ratio):.2f}"
        )
    if together:
        print(f"{'all':18} {'':18} {'':8} {summary(np.concatenate(together))}  target 20 %")


# ---- serving


@dataclass(frozen=True)
class Constants:
    """What serving runs teach, fitted without the architecture that it will predict."""

    host: serving_fit.Host
    power: dict[str, float] | None
    latency_s: dict[str, float]


def engine_of(name: str, host: serving_fit.Host) -> EngineProfile:
    """An engine profile with fitted constants; an engine never seen has the mean of all, and no claim to be right."""
    seen = host.engines.get(name) or {
        k: float(np.mean([e[k] for e in host.engines.values()])) for k in serving_fit.USUAL
    }
    as_figure = lambda value: {"value": value, "tier": "fitted", "source": "this run"}  # noqa: E731
    profile = fit_models.engine_stub(name).model_dump() | {k: as_figure(v) for k, v in seen.items() if k != "fused"}
    profile["host_s_per_expert_layer"] = {
        "fused": as_figure(seen["fused"]),
        serving_fit.ROUTING: as_figure(host.special_s),
    }
    checked: EngineProfile = EngineProfile.model_validate(profile)
    return checked


class Scorer:
    """Simulates serving rows under constants that were fitted without them."""

    def __init__(self, fit: fit_models.Fit, exclude_gpu: str | None) -> None:
        self.fit, self.models = fit, measured.catalogue()
        self.learn = fit_models.host_rows(fit.rows)
        if exclude_gpu:
            self.learn = self.learn[self.learn.gpu != exclude_gpu]

    def constants_without(self, architecture: str | None) -> Constants:
        """Host, power and first-token latency from all rows but one architecture's."""
        rows = self.learn[self.learn.architecture != architecture]
        host = serving_fit.fit_host(rows)
        powered = rows[(rows.gpu == "H100-SXM-80GB") & rows.avg_power_W.notna()]
        power = fit_models.fit_h100_power(powered, host) if len(powered) > 20 else None
        return Constants(host, power, {})

    def predict(self, rows: pd.DataFrame, constants: Constants) -> pd.DataFrame:
        """One row of predictions for each row that can be simulated."""
        fit = fit_models.Fit(self.fit.kernels, constants.host, constants.power or self.fit.power, rows)
        chips = fit_models.chips_of(self.fit.kernels, fit, constants.host.factor)
        engines = {name: engine_of(name, constants.host) for name in rows.engine_profile.unique()}
        composer, found = serving_fit.Composer({}), []
        closed = constants.host.seconds(rows)
        for row, closed_s in zip(rows.itertuples(), closed, strict=True):
            placement = serving_fit.placement_of(
                row, self.models[row.model], chips[row.gpu], engines[row.engine_profile]
            )
            assert placement is not None  # rows with features have one
            costs = composer.costs(placement)
            steady = row.source.startswith("mlenergy")
            idle_w = placement.devices * Figures({}).if_known(placement.chip, "power.loaded_idle_w")
            seen = observe(costs, serving_fit.load_of(row), STEADY if steady else COLD, idle_w)
            found.append(
                {"index": row.Index, "step_s": seen.tpot_s, "throughput": seen.tokens_per_s, "itl_s": seen.itl_median_s, "ttft_s": seen.ttft_s,
                 "watts": seen.watts, "joules": seen.joules_per_token, "closed_s": closed_s, "roofline_s": _roofline(row, placement)}
            )  # fmt: skip
        return pd.DataFrame(found).set_index("index")


def _roofline(row: Any, placement: Placement) -> float:
    """Weights and context once over the bandwidth, or FLOPs at the peak: what plain arithmetic says of a step."""
    costs = ComposedCosts(placement, Figures({}))
    shape = StepShape(
        max(1, round(row.sequences)), round(row.sequences * (row.prompt_tokens + row.output_tokens_mean / 2))
    )
    n_bytes, flops, _ = costs.work(shape)
    chip = placement.chip
    bandwidth, peak = chip.memory_bytes_per_s.value or np.nan, chip.peak_flops_per_s["bf16"].value or np.nan
    return max(n_bytes / bandwidth, flops / peak) / placement.devices


def baseline_seconds(rows: pd.DataFrame) -> Any:
    """The three-coefficient baseline of the data's README over the roofline."""
    return 1.65 * rows.roofline_s - 1.06e-3 + 0.054e-3 * rows.sequences


def measured_targets(rows: pd.DataFrame) -> dict[str, Callable[[pd.DataFrame], Any]]:
    """Relative errors by what was measured; throughput that was derived is no measurement."""
    derived = rows.output_throughput_derived.astype(str) == "True"
    real = rows.output_throughput_tok_s.where(~derived)
    return {
        "TPOT": lambda p: p.step_s / (rows.tpot_mean_ms * 1e-3) - 1,
        "ITL": lambda p: p.itl_s / (rows.itl_median_ms * 1e-3) - 1,
        "throughput": lambda p: p.throughput / real - 1,
        "TTFT": lambda p: p.ttft_s / (rows.ttft_mean_ms * 1e-3) - 1,
        "watts": lambda p: p.watts / rows.avg_power_W - 1,
        "J/token": lambda p: p.joules / rows.energy_J_per_output_token - 1,
    }


def with_latency(rows: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """First-token latency of each engine, the median of what simulation leaves over, learnt from other architectures."""
    left = rows.ttft_mean_ms * 1e-3 - predicted.ttft_s
    added = pd.Series(0.0, index=rows.index)
    for _, mine in rows.groupby("engine_profile"):
        for architecture in mine.architecture.unique():
            own = mine.index[mine.architecture == architecture]
            others = mine.index[mine.architecture != architecture]
            known = left[others if len(others) else own].dropna()
            added[own] = max(0.0, float(known.median())) if len(known) else 0.0
    return predicted.assign(ttft_s=predicted.ttft_s + added)


def first_token_latencies(fit: fit_models.Fit) -> dict[str, float]:
    """Seconds that each engine's first tokens come later than simulated, at the median of its rows with a TTFT."""
    scorer = Scorer(fit, None)
    rows = scorer.learn[scorer.learn.ttft_mean_ms.notna()]
    left = rows.ttft_mean_ms * 1e-3 - scorer.predict(rows, scorer.constants_without(None)).ttft_s
    return {str(engine): max(0.0, float(mine.median())) for engine, mine in left.groupby(rows.engine_profile)}


def score_serving(scorer: Scorer, rows: pd.DataFrame, only: str | None) -> pd.DataFrame:
    """Every architecture from constants fitted on the others; prints cells, then groups that the targets are about."""
    parts = []
    for architecture in sorted(rows.architecture.unique()):
        if only and architecture != only:
            continue
        mine = rows[rows.architecture == architecture]
        parts.append(scorer.predict(mine, scorer.constants_without(architecture)))
    predicted = pd.concat(parts)
    rows = rows.loc[predicted.index]
    predicted = with_latency(rows, predicted)
    table = rows.join(predicted)
    errors = {name: of(predicted) for name, of in measured_targets(rows).items()}
    print("\nServing, one architecture left out, simulated      MAPE median    p90")
    for (gpu, engine, architecture), mine in rows.groupby(["gpu", "engine_profile", "architecture"]):
        for name, error in errors.items():
            own = error.loc[mine.index].dropna()
            if len(own):
                bias = f"median predicted/measured {1 + np.median(own):.2f}"
                print(f"{gpu:15} {engine:13} {architecture:20} {name:10} {summary(own)}  {bias}")
    _groups(rows, errors, table)
    return table.join(pd.DataFrame({f"error_{name}": error for name, error in errors.items()}))


def _seen_paths(rows: pd.DataFrame) -> pd.Series:
    """Whether a row's code path was seen on its engine with an architecture other than its own."""
    known = rows.groupby(["engine_profile", "path"]).architecture.transform("nunique")
    return known > 1


def _groups(rows: pd.DataFrame, errors: dict[str, Any], table: pd.DataFrame) -> None:
    hopper = rows.gpu.isin(fit_models.HOPPER_ROWS) & (rows.engine_profile != serving_fit.HOST_BOUND)
    print("\nH100 and H200, all left out:                       MAPE median    p90")
    speed = pd.concat([errors[n][hopper] for n in ("TPOT", "ITL", "throughput")])
    print(f"{'TPOT, ITL and measured throughput':48} {summary(speed)}   target 10 %, p90 20 %")
    seen = hopper & _seen_paths(rows[hopper]).reindex(rows.index, fill_value=False)
    by_path = pd.concat([errors[n][seen] for n in ("TPOT", "ITL", "throughput")])
    print(f"{'  engine paths that another architecture takes':48} {summary(by_path)}")
    unseen = pd.concat([errors[n][hopper & ~seen] for n in ("TPOT", "ITL", "throughput")])
    print(f"{'  others: low confidence, and flagged as such':48} {summary(unseen)}")
    for engine in sorted(rows.engine_profile[hopper].unique()):
        own = hopper & (rows.engine_profile == engine)
        print(f"{'  ' + engine:48} {summary(pd.concat([errors[n][own] for n in ('TPOT', 'ITL', 'throughput')]))}")
    new = hopper & (rows.source == "mlenergy_v3")
    print(f"{'J per token, H100, ML.ENERGY v3':48} {summary(errors['J/token'][new])}   target 12 %, p90 25 %")
    print(f"{'watts, H100, ML.ENERGY v3':48} {summary(errors['watts'][new])}")
    old = (rows.source == "mlenergy_v2") & (rows.gpu == "H100-SXM-80GB")
    print(f"{'J per token, H100, ML.ENERGY v2 (host-bound)':48} {summary(errors['J/token'][old])}")
    print(f"{'TTFT':48} {summary(errors['TTFT'][hopper])}   target median 25 %")
    step_s = serving_fit.measured_step_s(rows)
    print(f"{'mean step: plain roofline':48} {summary((table.roofline_s / step_s - 1)[hopper])}")
    print(f"{'mean step: three-coefficient baseline':48} {summary((baseline_seconds(table) / step_s - 1)[hopper])}")
    print(f"{'mean step: closed form':48} {summary((table.closed_s / step_s - 1)[hopper])}")
    joined = pd.concat(
        [errors[n][hopper].abs().rename("e").to_frame().assign(what=n) for n in ("TPOT", "ITL", "throughput")]
    ).dropna()
    print("\nWorst rows")
    for index, row in joined.sort_values("e", ascending=False).head(8).iterrows():
        r = rows.loc[index]
        print(
            f"  {r.row_id}: {row.what} {row.e:.0%}; {r.engine_profile} {r.model} {r.gpu} x{int(r.n_gpus)}, {r.sequences:.0f} sequences, {r.prompt_tokens:.0f} in, {r.output_tokens_mean:.0f} out"
        )


# ---- steps and layers


def step_shape(row: Any) -> StepShape:
    batch, prompt = (
        int(row.batch),
        int(row.prompt_tokens_per_seq) if row.prompt_tokens_per_seq == row.prompt_tokens_per_seq else 0,
    )
    if row.phase == "prefill":
        return StepShape(0, 0, batch, batch * prompt, batch * prompt, batch * prompt * (prompt + 1) // 2)
    return StepShape(batch, round(batch * row.context_tokens_per_seq))


def composed_steps(rows: pd.DataFrame, fit: fit_models.Fit, host: bool, refusals: measured.Refusals) -> pd.DataFrame:
    """Rows with the seconds of their steps: kernels alone, or with the host of their engine."""
    without = {gpu: values for gpu, values in fit.kernels.items() if gpu != "A100-SXM-80GB"}  # transferred, as asked
    chips, models, found = fit_models.chips_of(without, fit, fit.host.factor), measured.catalogue(), []
    for row in rows.itertuples():
        model, chip = models.get(row.model), chips.get(row.gpu)
        if model is None or chip is None:
            refusals.refuse("steps", 1, f"no profile of {row.model if model is None else row.gpu}")
            continue
        engine = engine_of("vllm", fit.host) if host else fit_models.engine_stub("none")
        try:
            costs = ComposedCosts(Placement(model, chip, engine, int(row.tp), "bf16"), Figures({}))
        except DescriptionError as error:
            refusals.refuse("steps", 1, str(error))
            continue
        shape = step_shape(row)
        _, flops, _ = costs.work(shape)
        fastest = flops / (row.tp * (chip.peak_flops_per_s["bf16"].value or np.nan))
        if row.step_time_ms * 1e-3 < fastest:
            refusals.refuse("steps", 1, "faster than the peak FLOP/s allows: not believed")
            continue
        found.append({"index": row.Index, "predicted_s": costs.timing(shape).seconds})
    return (
        rows.join(pd.DataFrame(found).set_index("index"), how="inner")
        if found
        else rows.iloc[:0].assign(predicted_s=[])
    )


def score_steps(data: Path, fit: fit_models.Fit, refusals: measured.Refusals) -> None:
    """Splitwise: its engine of 2023 fitted on the H100 rows, the A100 rows predicted. Other windows as they are."""
    file = data / "measured_steps.csv"
    rows = measured.read(file, "steps", refusals, ("gpu", "model", "tp", "batch", "step_time_ms"))
    print("\nSteps                                              MAPE median    p90")
    old = rows.engine.astype(str).str.contains("2023")
    split = composed_steps(rows[old], fit, False, refusals)
    learn = split.gpu == "H100-SXM-80GB"
    if learn.sum() > 10:
        predicted = _old_engine(split, split[learn])
        for (gpu, phase), mine in split.groupby(["gpu", "phase"]):
            note = (
                "its engine fitted on these"
                if gpu == "H100-SXM-80GB"
                else "engine of the H100 rows, kernels transferred; target 20 %"
            )
            print(
                f"{gpu:22} {phase:10} tp {'/'.join(f'{t:.0f}' for t in sorted(mine.tp.unique()))} {summary(predicted[mine.index] / (mine.step_time_ms * 1e-3) - 1)}  {note}"
            )
    else:
        refusals.refuse("steps", split, "an engine of 2023 without H100 rows to fit it on")
    others = composed_steps(rows[~old], fit, True, refusals)
    for (gpu, model), mine in others.groupby(["gpu", "model"]):
        ratio = mine.predicted_s / (mine.step_time_ms * 1e-3)
        print(
            f"{gpu:22} {model[-24:]:24} {summary(ratio - 1)}  kernels and host transferred; median predicted/measured {ratio.median():.2f}"
        )


def _old_engine(rows: pd.DataFrame, learn: pd.DataFrame) -> pd.Series:
    """Seconds of steps of vLLM in 2023: slower kernels, eager launches, Python on each sequence, token and peer."""

    def seconds(p: Any, r: pd.DataFrame) -> Any:
        tokens = np.where(r.phase == "prefill", r.batch * r.prompt_tokens_per_seq, 0)
        return (
            p[0] * r.predicted_s + p[1] * 1e-3 + p[2] * 1e-6 * r.batch + p[3] * 1e-9 * tokens + p[4] * 1e-3 * (r.tp - 1)
        )

    target = np.log(learn.step_time_ms * 1e-3)
    found = least_squares(lambda p: np.log(seconds(p, learn)) - target, [1.2, 8, 200, 100, 2.0],
                          bounds=([0.9, 0, 0, 0, 0], [1.8, 60, 3000, 20000, 8]), loss="soft_l1", f_scale=0.1)  # fmt: skip
    return pd.Series(seconds(found.x, rows), index=rows.index)


def score_layers(data: Path, fit: fit_models.Fit, refusals: measured.Refusals) -> None:
    """The four products of a layer by the GEMM law of the accelerator, or Hopper's transferred."""
    rows = measured.read(data / "measured_layer_ops.csv", "layers", refusals, ("gpu", "hidden", "ffn", "tokens", "tp"))
    print("\nLayer products by the GEMM law                     MAPE median    p90")
    rows = rows.dropna(subset=["qkv_proj_us", "out_proj_us", "mlp_up_us", "mlp_down_us"])
    for gpu, mine in rows.groupby("gpu"):
        sheet = acc.BY_ROW.get(str(gpu))
        if sheet is None or sheet.silicon is None:
            refusals.refuse("layers", mine, f"no data sheet of GPU {gpu}")
            continue
        own = fit.kernels.get(str(gpu), {}).get(("gemm", "bf16"))
        values = own or kernel_laws.transferred(fit.kernels["hopper"]["gemm", "bf16"], sheet.silicon)
        head = mine.hidden / mine.n_heads
        shapes = {
            "qkv_proj_us": ((mine.n_heads + 2 * mine.n_kv_heads) * head / mine.tp, mine.hidden),
            "out_proj_us": (mine.hidden, mine.n_heads * head / mine.tp),
            "mlp_up_us": ((1 + mine.gated_mlp) * mine.ffn / mine.tp, mine.hidden),
            "mlp_down_us": (mine.hidden, mine.ffn / mine.tp),
        }
        chip = kernel_laws.Chip(
            sheet.memory_bytes_per_s, sheet.peaks["bf16"] or np.nan, sheet.peaks.get("fp8") or np.nan, 50e6
        )
        errors = []
        for column, (outputs, inputs) in shapes.items():
            table = pd.DataFrame(
                {
                    "gemm_m": mine.tokens,
                    "gemm_n": outputs,
                    "gemm_k": inputs,
                    "dtype": "bf16",
                    "time_ms": mine[column] * 1e-3,
                }
            )
            errors.append(
                kernel_laws.GEMM.seconds(values, kernel_laws.with_chip(table, chip)) / (mine[column].to_numpy() * 1e-6)
                - 1
            )
        print(f"{gpu:24} {'own law' if own else 'transferred':12} {summary(np.concatenate(errors))}")


# ---- servers and nodes


def score_servers(data: Path, refusals: measured.Refusals) -> None:
    """Wall watts of CPU servers, one left out; load curves of CPU packages."""
    rows = server_power.usable(measured.read(data / "server_power_spec.csv", "server_power", refusals), refusals)
    print("\nServers, one left out                              MAPE median    p90")
    for column, target in (("wall_power_full_W", "target 20 %"), ("wall_power_idle_W", "target median 25 %")):
        print(f"{column:48} {summary(server_power.left_out_errors(rows, column))}   {target}")
    loads = measured.read(
        data / "cpu_load_power.csv", "cpu_power", refusals, ("cpu", "package_power_W", "cpu_load_percent")
    )
    print("\nCPU packages: idle + (full - idle) load^exponent")
    for row in server_power.load_exponents(loads).itertuples():
        print(f"{row.cpu[:44]:44} {row.load:14} exponent {row.exponent:.2f}, errs {row.error:.1%}; at 0.7 {row._7:.1%}")


# Mean prompt and answer tokens of MLPerf's LLM tasks, and architectures: MLPerf inference rules and dataset notes.
MLPERF = {
    "llama2-70b": ("llama-2-70b", 294.0, 294.0),
    "mixtral-8x7b": ("mixtral-8x7b", 280.0, 145.0),
    "gptj": ("gpt-j-6b", 870.0, 69.0),
}
NODE_BASE_W, NODE_HOST_W, PSU = 1000.0, 500.0, 0.94
MLPERF_SEQUENCES = 512.0


def score_nodes(data: Path, fit: fit_models.Fit, refusals: measured.Refusals) -> None:
    """Wall watts of whole nodes: the accelerators' cap fitted on the first row of a system, the others predicted."""
    rows = measured.read(data / "mlperf_llm.csv", "mlperf", refusals)
    powered = rows[rows.node_wall_power_W.notna() & (rows.n_accelerators > 0)]
    refusals.refuse("mlperf", rows[rows.node_wall_power_W.isna()], "no wall power")
    print("\nNodes at the wall (GPU cap fitted on one row)      MAPE median    p90   target 15 %")
    models = {m.name: m for m in measured.catalogue().values()}
    chips = fit_models.chips_of(fit.kernels, fit, fit.host.factor)
    for platform, mine in powered.groupby("platform"):
        found = []
        for row in mine.itertuples():
            key = next((k for k in MLPERF if str(row.model).startswith(k)), None)
            chip = chips.get(acc.row_name(str(row.accelerator)))
            model = models.get(MLPERF[key][0]) if key else None
            if key is None or chip is None or model is None:
                refusals.refuse("mlperf", 1, f"no profile of {row.model} or {row.accelerator}")
                continue
            found.append((row, _uncapped_w(row, chip, model, key, fit)))
        if len(found) < 2:
            continue
        first, free_w = found[0]
        rest_w = NODE_BASE_W + NODE_HOST_W
        cap_w = min(free_w, (first.node_wall_power_W * PSU - rest_w) / first.n_accelerators)
        errors = [(min(cap_w, w) * r.n_accelerators + rest_w) / PSU / r.node_wall_power_W - 1 for r, w in found[1:]]
        print(f"{platform[:40]:40} cap {cap_w:4.0f} W {summary(errors)}")
        for (r, w), e in zip(found[1:], errors, strict=True):
            print(
                f"    {r.model:18} {r.scenario:12} measured {r.node_wall_power_W:6.0f} W, GPU {min(cap_w, w):4.0f} W, error {e:+.1%}"
            )


def _uncapped_w(row: Any, chip: Any, model: Any, key: str, fit: fit_models.Fit) -> float:
    """Watts of one accelerator at the measured rate of tokens, as if nothing capped it."""
    _, prompt, answer = MLPERF[key]
    precision = "fp8" if "fp8" in chip.kernels.gemm else "bf16"
    ways = 1
    costs = ComposedCosts(Placement(model, chip, engine_of("tensorrt-llm", fit.host), ways, precision), Figures({}))  # type: ignore[arg-type]
    joins = MLPERF_SEQUENCES / answer
    chunk = round(joins * prompt)
    shape = StepShape(
        round(MLPERF_SEQUENCES),
        round(MLPERF_SEQUENCES * (prompt + answer / 2)),
        max(1, round(joins)),
        chunk,
        chunk,
        round(chunk * prompt / 2),
    )
    timing = costs.timing(shape)
    n_bytes, flops, _ = costs.work(shape)
    steps_per_s = row.tokens_per_s / row.n_accelerators / MLPERF_SEQUENCES
    p = fit.power
    busy = min(1.0, steps_per_s * (timing.seconds - timing.host_s))
    rate = steps_per_s * (
        n_bytes * p["joules_per_byte"] + flops * p["joules_per_flop"] + MLPERF_SEQUENCES * p["joules_per_output_token"]
    )
    return float(p["floor_w"] + p["kernel_w"] * busy + rate)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of measured rows")
    parser.add_argument("--exclude-architecture", help="score this one only, fitted on the others")
    parser.add_argument("--exclude-gpu", help="fit host and power without this accelerator's runs")
    parser.add_argument("--out", type=Path, help="write every serving row's prediction here (parquet)")
    options = parser.parse_args()
    refusals = measured.Refusals()
    parts: list[Callable[[], Any]] = []
    try:
        fit = fit_models.fit_all(options.data, refusals)
        kernels = fit_models.kernel_rows(options.data, measured.Refusals())
    except (measured.MissingColumns, FileNotFoundError) as error:
        print(f"cannot fit: {error}", file=sys.stderr)
        return 2
    score_kernels(kernels)
    score_kernel_transfer(kernels, fit.kernels)
    table = score_serving(Scorer(fit, options.exclude_gpu), fit.rows, options.exclude_architecture)
    if options.out:
        table.drop(columns=["quality_note"], errors="ignore").to_parquet(options.out)
    parts = [
        lambda: score_steps(options.data, fit, refusals), lambda: score_layers(options.data, fit, refusals),
        lambda: score_servers(options.data, refusals), lambda: score_nodes(options.data, fit, refusals),
    ]  # fmt: skip
    failed = 0
    for part in parts:
        try:
            part()
        except (measured.MissingColumns, FileNotFoundError) as error:
            failed += 1
            missing = isinstance(error, FileNotFoundError)
            print(f"not scored: {error.filename}: there is no such file" if missing else f"not scored: {error}")
    print("\nRefused")
    for (schema, reason), count in sorted(refusals.counts.items()):
        print(f"  {count:5} {schema:13} {reason}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
