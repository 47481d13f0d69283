"""Measured kernels, layer products and steps against the kernel laws: of shipped profiles, or refitted without a shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerators as acc
import fit_models
import fitted
import kernel_laws
import numpy as np
import pandas as pd
import rows as measured
from cells import predicted_rows

from hsim.costs.composed import ComposedCosts, Placement
from hsim.costs.shapes import StepShape
from hsim.description.hardware import AcceleratorProfile, EngineProfile
from hsim.description.system import Figures
from hsim.errors import DescriptionError

Chips = dict[str, AcceleratorProfile]
IN_BF16 = ("decode_attention", "prefill_attention", "all_reduce")  # laws that profiles hold once


def law_values(chip: AcceleratorProfile, law: kernel_laws.Law, precision: str) -> dict[str, float] | None:
    """A profile's figures as a law's parameters, with the effects that only a benchmark has; None without such a law."""
    kernels = chip.kernels
    given: Any = getattr(kernels, law.name)
    if law.name not in IN_BF16:
        given = given.get(precision)
    if given is None:
        return None
    effects = fitted.read().benchmark_effects
    values = {}
    for name in law.parameters:
        figure = getattr(given, name, None)
        value = effects.get(name, 0.0) if figure is None else figure.value
        if value is None:
            return None
        values[name] = value
    block = law is kernel_laws.GEMM and precision == "fp8_block"
    return values | ({} if block else {"eager_small_s": 0.0, "eager_large_s": 0.0} if law is kernel_laws.GEMM else {})


def score_kernels(data: Path, chips: Chips, refusals: measured.Refusals, only: str | None = None) -> pd.DataFrame:
    """Every kernel row, or those of one GPU, by profiles."""
    tables = []
    rows = fit_models.kernel_rows(data, refusals)
    rows = rows[rows.gpu == only] if only else rows
    for law, gpu, precision, mine in kernel_laws.groups(rows, refusals):
        values = law_values(chips[gpu], law, precision)
        if values is None:
            refusals.refuse("kernels", mine, f"{chips[gpu].name} has no {law.name} figures for {precision}")
            continue
        tables.append(_kernel_table(law, precision, mine, law.seconds(values, mine)))
    return pd.concat(tables) if tables else pd.DataFrame()


def score_left_out(data: Path, refusals: measured.Refusals) -> pd.DataFrame:
    """Every kernel row, by a fit on the other shapes of its kind."""
    tables = []
    for law, _, precision, mine in kernel_laws.groups(fit_models.kernel_rows(data, refusals), refusals):
        predicted = kernel_laws.left_out_seconds(law, mine)
        alone = predicted.isna()
        refusals.refuse("kernels", mine[alone], "the only shape of its kind: nothing to predict it from")
        tables.append(_kernel_table(law, precision, mine[~alone], predicted[~alone]))
    return pd.concat(tables) if tables else pd.DataFrame()


def score_transfer(data: Path, kernels: dict[str, fit_models.Values], refusals: measured.Refusals) -> pd.DataFrame:
    """Hopper's laws on every other accelerator that has kernel rows."""
    rows = fit_models.kernel_rows(data, measured.Refusals())
    tables = []
    for law, gpu, precision, mine in kernel_laws.groups(
        rows[~rows.gpu.isin(fit_models.HOPPER_ROWS)], measured.Refusals()
    ):
        source, sheet = kernels["hopper"].get((law.name, precision)), acc.BY_ROW[gpu]
        if source is None or sheet.silicon is None:
            refusals.refuse("kernels", mine, f"Hopper has no law of {law.name} in {precision} to transfer")
            continue
        predicted = law.seconds(kernel_laws.transferred(source, sheet.silicon), mine)
        tables.append(_kernel_table(law, precision, mine, predicted).assign(schema="kernels transferred"))
    return pd.concat(tables) if tables else pd.DataFrame()


def _kernel_table(law: kernel_laws.Law, precision: str, rows: pd.DataFrame, predicted: Any) -> pd.DataFrame:
    own = rows.assign(
        roofline=kernel_laws.ideal_seconds(law, rows), engine="", source=rows.framework if "framework" in rows else "",
        architecture=f"{law.name} {precision}",
    )  # fmt: skip
    return predicted_rows("kernels", own, "seconds", rows.seconds, predicted)


# ---- the products of a layer


def score_layers(data: Path, chips: Chips, refusals: measured.Refusals) -> pd.DataFrame:
    """The four products of a layer by the GEMM law of the accelerator."""
    products = ["qkv_proj_us", "out_proj_us", "mlp_up_us", "mlp_down_us"]
    needs = ("gpu", "hidden", "ffn", "n_heads", "n_kv_heads", "tokens", "tp", *products)
    rows = measured.read(data / "measured_layer_ops.csv", "layers", refusals, needs)
    tables = []
    for gpu, mine in rows.groupby("gpu"):
        chip = chips.get(str(gpu))
        values = law_values(chip, kernel_laws.GEMM, "bf16") if chip else None
        if chip is None or values is None:
            refusals.refuse("layers", mine, f"no profile of GPU {gpu}")
            continue
        head = mine.hidden / mine.n_heads
        shapes = {
            "qkv_proj_us": ((mine.n_heads + 2 * mine.n_kv_heads) * head / mine.tp, mine.hidden),
            "out_proj_us": (mine.hidden, mine.n_heads * head / mine.tp),
            "mlp_up_us": ((1 + mine.gated_mlp.fillna(1)) * mine.ffn / mine.tp, mine.hidden),
            "mlp_down_us": (mine.hidden, mine.ffn / mine.tp),
        }
        for column, (outputs, inputs) in shapes.items():
            gemms = pd.DataFrame(
                {
                    "gemm_m": mine.tokens,
                    "gemm_n": outputs,
                    "gemm_k": inputs,
                    "dtype": "bf16",
                    "time_ms": mine[column] * 1e-3,
                }
            )
            gemms = kernel_laws.with_chip(gemms, fit_models.kernel_chip(acc.BY_ROW[str(gpu)]))
            own = mine.assign(
                roofline=kernel_laws.ideal_seconds(kernel_laws.GEMM, gemms), architecture=mine.model.str.rpartition("/")[2], engine="", source="vidur",
            )  # fmt: skip
            predicted = kernel_laws.GEMM.seconds(values, gemms)
            tables.append(predicted_rows("layers", own, column.removesuffix("_us"), gemms.seconds, predicted))
    return pd.concat(tables) if tables else pd.DataFrame()


# ---- steps


def score_steps(data: Path, world: Any, transferred: Chips, refusals: measured.Refusals) -> pd.DataFrame:
    """Splitwise on kernels transferred and its engine of 2023; other windows by the profiles of their engine and chip."""
    rows = measured.read(
        data / "measured_steps.csv", "steps", refusals, ("gpu", "model", "tp", "batch", "step_time_ms", "phase")
    )
    sized = rows.prompt_tokens_per_seq.where(rows.phase == "prefill", rows.context_tokens_per_seq)
    rows = refusals.drop("steps", rows, sized.isna(), "the size that its phase needs is NaN")
    old = rows.engine.str.contains("2023")
    chips = world.chips | transferred
    split = composed(rows[old], chips, fit_models.engine_stub("none"), world.models, refusals)
    if len(split):
        split = split.assign(predicted_s=fitted.read().splitwise_engine_s(split), engine="vllm of 2023")
    others = composed(rows[~old], world.chips, world.engines["vllm"], world.models, refusals)
    both = [t for t in (split, others) if len(t)]
    if not both:
        return pd.DataFrame()
    table = pd.concat(both)
    return predicted_rows("steps", table, "step", table.step_time_ms * 1e-3, table.predicted_s).assign(
        quantity=table.phase
    )


def composed(
    rows: pd.DataFrame, chips: Chips, engine: EngineProfile, models: measured.Catalogue, refusals: measured.Refusals
) -> pd.DataFrame:
    """Rows with the seconds of their steps."""
    found = []
    for row in rows.itertuples():
        model, chip = models.get(row.model), chips.get(row.gpu)
        if model is None or chip is None:
            refusals.refuse(
                "steps", 1, measured.no_model(row.model) if model is None else f"no profile of GPU {row.gpu}"
            )
            continue
        try:
            costs = ComposedCosts(Placement(model, chip, engine, int(row.tp), "bf16"), Figures({}))
        except DescriptionError as error:
            refusals.refuse("steps", 1, str(error))
            continue
        shape = step_shape(row)
        n_bytes, flops, _ = costs.work(shape)
        fastest = flops / (row.tp * (chip.peak_flops_per_s["bf16"].value or np.nan))
        if row.step_time_ms * 1e-3 < fastest:
            refusals.refuse("steps", 1, "faster than the peak FLOP/s allows: not believed")
            continue
        slowest = n_bytes / (row.tp * (chip.memory_bytes_per_s.value or np.nan))
        found.append({"index": row.Index, "predicted_s": costs.timing(shape).seconds, "roofline": max(fastest, slowest),
                      "architecture": measured.architecture_of(model)})  # fmt: skip
    return rows.join(pd.DataFrame(found).set_index("index"), how="inner") if found else rows.iloc[:0]


def step_shape(row: Any) -> StepShape:
    """The step that a row timed: a batch of whole prompts, or one token for each of a batch."""
    batch = int(row.batch)
    if row.phase == "prefill":
        prompt = int(row.prompt_tokens_per_seq)
        return StepShape(0, 0, batch, batch * prompt, batch * prompt, batch * prompt * (prompt + 1) // 2)
    return StepShape(batch, round(batch * row.context_tokens_per_seq))
