"""How far hsim's predictions are from measured rows: python benchmarks/accuracy.py --data DIR.

Reads every schema of the measured data that DIR has, and predicts each row: serving runs by simulating them with hsim's
engine, kernels, layers, steps, requests, nodes, servers and CPU stages by what profiles say of them. By default with the
shipped profiles, as a user gets them: rows on whose architecture a profile was fitted are marked. With --leave-one-out all
constants are refitted, each architecture (and kernel shape, and server) predicted by a fit on the others; with
--exclude-architecture or --exclude-gpu those rows alone, by a fit without them. What cannot be predicted is refused,
counted, with why. `--out` keeps every row's prediction.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent))

import accelerators as acc
import cells
import fit_models
import rows as measured
import score_hosts
import score_kernels
import score_serving

Part = tuple[str, Callable[[], pd.DataFrame]]


@dataclass(frozen=True)
class Asked:
    """What to score: a directory, and where the rows to fit on lie where something is to be refitted."""

    data: Path
    fit_data: Path
    leave_one_out: bool
    architecture: str | None
    gpu: str | None
    summary: Path | None = None

    @property
    def refits(self) -> bool:
        return bool(self.leave_one_out or self.architecture or self.gpu)


def shipped_parts(data: Path, refusals: measured.Refusals) -> list[Part]:
    """Every schema by the shipped profiles."""
    world = score_serving.shipped_world()
    simulator = score_serving.Simulator(world, refusals)
    return [
        ("serving", lambda: score_serving.long_table(simulator.predict(measured.serving_rows(data, refusals)))),
        ("kernels", lambda: score_kernels.score_kernels(data, world.chips, refusals)),
        ("layers", lambda: score_kernels.score_layers(data, world.chips, refusals)),
        ("steps", lambda: score_kernels.score_steps(data, world, {}, refusals)),
        ("request_level", lambda: score_hosts.score_requests(data, world, refusals)),
        ("mlperf", lambda: score_hosts.score_nodes(data, world, refusals)),
        ("server_power", lambda: score_hosts.score_servers(data, False, refusals)),
        ("cpu_power", lambda: score_hosts.score_loads(data, refusals)),
        ("cpu_stage", lambda: score_hosts.score_stages(data, refusals)),
    ]


def refitted_parts(asked: Asked, fit: fit_models.Fit, refusals: measured.Refusals) -> list[Part]:
    """Every schema that constants are fitted for, each row by a fit without its like."""
    data = asked.data

    def serving() -> pd.DataFrame:
        rows = measured.serving_rows(data, refusals)
        if asked.gpu:
            rows = rows[rows.gpu == asked.gpu]
        if not len(rows):
            raise measured.Unreadable(f"{data}: no serving run of {asked.gpu} is there to score")
        if asked.leave_one_out or asked.architecture:
            return score_serving.long_table(score_serving.left_out(fit, rows, refusals, asked.architecture))
        world = score_serving.refitted_world(fit, list(rows.engine_profile.unique()))
        found = score_serving.Simulator(world, refusals).predict(rows)
        return score_serving.long_table(found)

    parts: list[Part] = [("serving", serving)]
    if asked.architecture:
        return parts
    without = {gpu: values for gpu, values in fit.kernels.items() if gpu in ("hopper", *fit_models.HOPPER_ROWS)}
    moved = {
        gpu: chip
        for gpu, chip in fit_models.chips_of(without, fit, fit.host.factor).items()
        if gpu not in fit_models.HOPPER_ROWS
    }
    if asked.gpu:
        chips = {asked.gpu: fit_models.chips_of(fit.kernels, fit, fit.host.factor)[asked.gpu]}
        return [*parts, ("kernels", lambda: score_kernels.score_kernels(data, chips, refusals, asked.gpu))]
    world = score_serving.refitted_world(fit, ["vllm"])
    return [
        *parts,
        ("kernels", lambda: score_kernels.score_left_out(data, refusals)),
        ("kernels transferred", lambda: score_kernels.score_transfer(data, fit.kernels, refusals)),
        ("steps", lambda: score_kernels.score_steps(data, world, moved, refusals)),
        ("layers", lambda: score_kernels.score_layers(data, world.chips, refusals)),
        ("server_power", lambda: score_hosts.score_servers(data, True, refusals)),
    ]


def print_table(table: pd.DataFrame) -> None:
    """Cells of every schema, the groups that targets are about, and the worst rows."""
    for schema, mine in table.groupby("schema", sort=False):
        cells.print_cells(mine, str(schema).capitalize().replace("_", " "))
    cells.print_groups(groups(table))
    cells.print_worst(table[table.schema == "serving"])


def groups(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame, str]]:
    """What the targets are about."""
    serving = table[table.schema == "serving"]
    hopper = serving[serving.gpu.isin(fit_models.HOPPER_ROWS) & (serving.engine != "vllm-0.5")]
    speed = lambda t: t[t.quantity.isin(["TPOT", "ITL", "throughput"])]  # noqa: E731
    found = [("H100 and H200: TPOT, ITL and measured throughput", speed(hopper), "target 10 %, p90 20 %")]
    found += [
        ("  on engine paths measured with another architecture", speed(hopper[~hopper.low_confidence]), ""),
        ("  on others, flagged as of low confidence", speed(hopper[hopper.low_confidence]), ""),
    ]
    found += [(f"  {engine}", speed(mine), "") for engine, mine in hopper.groupby("engine")]
    others = serving[~serving.gpu.isin(fit_models.HOPPER_ROWS)]
    found += [(f"{gpu}: TPOT, ITL and measured throughput", speed(mine), "") for gpu, mine in others.groupby("gpu")]
    for source in sorted(serving.source.unique()):
        own = serving[serving.source == source]
        for gpu, mine in own.groupby("gpu"):
            for quantity in ("J/token", "watts"):
                target = "target 12 %, p90 25 %" if quantity == "J/token" and source == "mlenergy_v3" else ""
                found.append((f"{quantity}, {gpu}, {source}", mine[mine.quantity == quantity], target))
    found.append(("TTFT, H100 and H200", hopper[hopper.quantity == "TTFT"], "target median 25 %"))
    for base in ("roofline", "three_coefficients"):
        rows = speed(hopper)
        found.append(
            (
                f"  the same rows by the {base.replace('_', '-').replace('three', '3')}",
                rows.assign(error=rows[base] / rows.measured - 1),
                "",
            )
        )
    kernels = table[table.schema == "kernels"]
    for name, words, target in (
        ("GEMM", "gemm", "target 8 %"),
        ("attention", "attention", "target 10 %"),
        ("experts", "experts", ""),
        ("all-reduce", "all_reduce", ""),
    ):
        found.append((f"kernels: {name}", kernels[kernels.architecture.str.contains(words)], target))
    found.append(("kernels transferred from Hopper", table[table.schema == "kernels transferred"], "target 20 %"))
    found += [(f"steps: {gpu}", mine, "target 20 %") for gpu, mine in table[table.schema == "steps"].groupby("gpu")]
    requests = table[table.schema == "request_level"]
    found += [(f"requests: {quantity}", mine, "") for quantity, mine in requests.groupby("quantity")]
    nodes = table[table.schema == "mlperf"]
    found.append(("nodes: tokens/s of MLPerf Offline", nodes[nodes.quantity == "throughput"], ""))
    found.append(("nodes: wall watts", nodes[nodes.quantity == "node watts"], "target 15 %"))
    servers = table[table.schema == "server_power"]
    found.append(("servers: full watts", servers[servers.quantity == "full watts"], "target 20 %"))
    return [*found, ("servers: idle watts", servers[servers.quantity == "idle watts"], "target median 25 %")]


def score(asked: Asked, refusals: measured.Refusals) -> tuple[pd.DataFrame, int]:
    """Every prediction as one long table, and how many schemas could not be read."""
    if asked.refits:
        fit = fit_models.fit_all(asked.fit_data, measured.Refusals(), asked.gpu)
        parts = refitted_parts(asked, fit, refusals)
    else:
        parts = shipped_parts(asked.data, refusals)
    found, failed = cells.attempt(parts, (measured.Unreadable,))
    tables = [t for t in found if len(t)]
    if not tables:
        return pd.DataFrame(), failed
    table = pd.concat(tables, ignore_index=True)
    for name in ("fitted_on", "low_confidence"):
        table[name] = table[name].fillna(False).astype(bool) if name in table else False
    for name in ("roofline", "three_coefficients"):
        table[name] = pd.to_numeric(table[name], errors="coerce") if name in table else float("nan")
    return cells.without_suspects(table, refusals), failed


def keep_summary(asked: Asked, table: pd.DataFrame) -> None:
    """Replace a document's block of this mode: what it says is then what was computed."""
    assert asked.summary is not None
    mode = "left out" if asked.leave_one_out else "shipped"
    text = asked.summary.read_text(encoding="utf-8")
    block = re.compile(f"(<!-- {mode} -->\n).*?(<!-- end -->)", re.DOTALL)
    remade = block.sub(lambda m: f"{m[1]}{cells.markdown(groups(table))}\n{m[2]}", text)
    asked.summary.write_text(remade, encoding="utf-8")


def asked_of(arguments: list[str] | None) -> tuple[Asked, Path | None]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of measured rows")
    parser.add_argument(
        "--leave-one-out", action="store_true", help="refit, each architecture, shape and server left out"
    )
    parser.add_argument(
        "--exclude-architecture", metavar="MODEL", help="refit without it and score it alone: a name of models/"
    )
    parser.add_argument(
        "--exclude-gpu", metavar="GPU", help="refit without its rows and score them alone: a row's name of it"
    )
    parser.add_argument("--fit-data", type=Path, help="rows to refit on, where not those of --data")
    parser.add_argument(
        "--summary", type=Path, help="put the groups of this mode into this document, between its marks"
    )
    parser.add_argument("--out", type=Path, help="write every row's prediction here (parquet)")
    o = parser.parse_args(arguments)
    gpu = acc.row_name(o.exclude_gpu) if o.exclude_gpu else None
    architecture = o.exclude_architecture
    models = measured.catalogue()
    if architecture is not None:
        if models.get(architecture) is None:
            parser.error(f"--exclude-architecture: {measured.no_model(architecture)}")
        architecture = measured.architecture_of(models[architecture])
    if gpu is not None and gpu not in acc.BY_ROW:
        parser.error(f"--exclude-gpu: there is no GPU {gpu!r}; rows name {', '.join(acc.BY_ROW)}")
    if not o.data.is_dir():
        parser.error(f"--data: there is no directory {o.data}")
    return Asked(o.data, o.fit_data or o.data, o.leave_one_out, architecture, gpu, o.summary), o.out


def main(arguments: list[str] | None = None) -> int:
    asked, out = asked_of(arguments)
    refusals = measured.Refusals()
    try:
        table, failed = score(asked, refusals)
    except measured.Unreadable as error:
        print(f"cannot refit: {error}; give the rows to fit on with --fit-data", file=sys.stderr)
        return 2
    if len(table):
        print_table(table)
        if asked.summary:
            keep_summary(asked, table)
        if out:
            table.to_parquet(out, index=False)
            print(f"\nWrote {len(table):,} predictions to {out}")
    print(f"\nPredicted {len(table):,} values. Refused rows, by schema and reason:")
    for (schema, reason), count in sorted(refusals.counts.items()):
        print(f"  {count:5} {schema:13} {reason}")
    return 1 if failed or table.empty else 0


if __name__ == "__main__":
    sys.exit(main())
