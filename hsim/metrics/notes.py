"""What a result says in words: the bottleneck, warnings, and what it assumed."""

from __future__ import annotations

import math

import numpy as np

from hsim.description.sites import HERE
from hsim.description.system import System
from hsim.log import Log
from hsim.metrics.ledger import Window
from hsim.metrics.result import POOLS_JOINED, Assumption, PoolUse, Stability, StageAnatomy, WarmUp
from hsim.units import readable_seconds
from hsim.workload.tasks import Drawn

FULL = 0.95  # a pool of cores busier than this, or a KV cache reserved beyond it, is called full
UNEVEN = 1.5  # a pool whose busiest device has more than so many times the mean's work is called uneven
QUEUE = 0.1  # a stage that waits for longer than this part of a task's time is called a queue
LONG_DRAIN = 0.2
ERRING = {"tpot": "TPOT", "ttft": "TTFT", "joules_per_token": "J per token"}  # quantities whose errors are printed
STRETCHES = 10  # with fewer independent stretches in a replication, its mean is too skewed for t intervals


def bottleneck_of(stages: tuple[StageAnatomy, ...], pools: tuple[PoolUse, ...]) -> str:
    """Where a task's time goes, in one sentence."""
    total_s = sum(s.transfer_s + s.wait_s + s.service_s + s.outside_s for s in stages)
    parts = [(s.wait_s, "waiting for", s) for s in stages] + [(s.transfer_s, "moving to", s) for s in stages]
    parts += [(s.service_s, "in", s) for s in stages] + [
        (s.outside_s, "waiting for something outside in", s) for s in stages
    ]
    queue = max(stages, key=lambda s: s.wait_s)
    part_s, doing, stage = max(parts, key=lambda part: part[0])
    if queue.wait_s > QUEUE * total_s:
        part_s, doing, stage = queue.wait_s, "waiting for", queue
    use = max((p for p in pools if p.pool in stage.pool.split(POOLS_JOINED)), key=lambda p: p.busy_fraction)
    load = f"{use.busy_fraction:.0%} busy"
    if use.mean_batch is not None and use.kv_used_fraction is not None:
        load += f", {use.mean_batch:.1f} sequences a step, {use.kv_used_fraction:.0%} of its KV cache in use"
    share = part_s / total_s if total_s else 0.0
    return f"{share:.0%} of a task's {readable_seconds(total_s)} goes {doing} {stage.stage} on pool {use.pool} ({load})"


def warnings_of(
    drawn: Drawn, stages: tuple[StageAnatomy, ...], pools: tuple[PoolUse, ...], window: Window
) -> tuple[str, ...]:
    """What a reader must know before trusting the figures."""
    warnings = []
    total_s = sum(s.transfer_s + s.wait_s + s.service_s + s.outside_s for s in stages)
    for use in pools:
        if use.imbalance is not None and use.imbalance > UNEVEN and use.busy_fraction > QUEUE:
            warnings.append(
                f"pool {use.pool} is uneven: its busiest device has {use.imbalance:.1f} times the mean's work"
            )
        waits = sum(s.wait_s for s in stages if use.pool in s.pool.split(POOLS_JOINED)) > QUEUE * total_s
        full = use.busy_fraction if use.kv_used_fraction is None else use.kv_used_fraction
        if waits and (full > FULL or use.busy_fraction > FULL):
            warnings.append(
                f"pool {use.pool} is full and tasks queue for it: under this load for longer the queue may grow without end"
            )
    arrivals_s = window.arrivals_end_s - window.start_s
    drain_s = window.end_s - window.arrivals_end_s
    if drain_s > LONG_DRAIN * arrivals_s:
        warnings.append(
            f"the last task ended {readable_seconds(drain_s)} after the last arrival, and arrivals took {readable_seconds(arrivals_s)}: "
            "joules per task hold much of the drain; simulate more tasks"
        )
    if drawn.truncated:
        warnings.append(f"{drawn.truncated} of the drawn answers were longer than max_output_tokens and were cut there")
    return (*warnings, *drawn.notes)


def choices_taken(system: System) -> tuple[str, ...]:
    """What was taken of a scenario whose lists stand for choices."""
    taken = ", ".join(f"{path} {value}" for path, value in system.document.first_of_many.items())
    return (
        (f"of the choices that the scenario lists the first were taken ({taken}); hsim plan finds the best",)
        if taken
        else ()
    )


def study_warnings(
    stability: Stability | None, warm_up: WarmUp | None, cohort_tasks: int, truncated: int
) -> tuple[str, ...]:
    """What a reader must know before trusting the intervals."""
    warnings = []
    if stability is not None and stability.verdict == "undecided":
        warnings.append(stability.reason)
    if warm_up is not None and warm_up.asked_tasks > warm_up.tasks:
        asked = f"the warm-up was {warm_up.tasks:,} tasks, and the replications ask for {warm_up.asked_tasks:,}"
        unstable = stability is not None and stability.verdict == "unstable"
        rest = "it was filling up still, and may complete more later" if unstable else "simulate more"
        warnings.append(f"{asked}: {rest}")
    if warm_up is not None and cohort_tasks < STRETCHES * warm_up.memory_tasks:
        warnings.append(
            f"sojourn times hang together over {warm_up.memory_tasks:,.0f} tasks, so that a replication holds few independent "
            f"stretches and intervals may be too narrow: set workload.tasks to {math.ceil(STRETCHES * warm_up.memory_tasks):,} or more"
        )
    if truncated:
        warnings.append(f"{truncated:,} of the drawn answers were longer than max_output_tokens and were cut there")
    return tuple(warnings)


def beyond_measured(log: Log, system: System) -> tuple[str, ...]:
    """Warnings about steps that lay beyond the table of measured ones that their pool read."""
    warnings = []
    steps = log.steps.arrays() if system.step_tables else {}
    for name, table in system.step_tables.items():
        mine = np.isin(steps["device"], log.pools[name].devices)
        rows = {column: values[mine] for column, values in steps.items()}
        decodes = np.maximum(rows["decodes"], 1)
        reached = {
            "sequences": (rows["decodes"], table.decodes[-1]),
            "prompt tokens a step": (rows["chunk_tokens"], table.chunk_tokens[-1]),
            "context tokens a sequence": (rows["context_tokens"] / decodes + rows["steps"] - 1, table.contexts[-1]),
        }
        for what, (values, last) in reached.items():
            if (beyond := values > last).any():
                warnings.append(
                    f"{beyond.mean():.0%} of {name}'s runs of steps lie beyond the {last} {what} that {table.name} measured, "
                    f"the farthest at {values.max():.0f}: extrapolated"
                )
    return tuple(warnings)


def assumptions_of(system: System) -> tuple[Assumption, ...]:
    """Figures that are assumed or rough, and defaults that mattered, each with why it was taken."""
    found = []
    for use in system.figures.used.values():
        if use.tier == "assumed" or use.low is not None:
            span = f" ({use.low:g} to {use.high:g})" if use.low is not None else ""
            found.append(Assumption(use.name, f"{use.value:g}{span}", f"{use.tier}: {use.source}"))
    scenario = system.scenario
    found += [
        Assumption(f"{_called(name)}.{key}", f"{getattr(site, key):g}", "default of hsim; set your site's own")
        for name, site in scenario.sites_in_use().items()
        for key in ("pue", "usd_per_kwh", "gco2_per_kwh")
        if key not in site.model_fields_set
    ]
    for name, pool in system.engine_pools().items():
        engine = system.engines[name]
        for key in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "gpu_memory_utilization",
            "block_tokens",
            "prefix_caching",
            "replicas",
        ):
            if getattr(scenario.pools[name], key) is None:
                why = "as many as fit" if key == "replicas" else f"default of {engine.name}: {engine.defaults_source}"
                found.append(Assumption(f"pools.{name}.{key}", f"{getattr(pool, key):g}", why))
    return tuple(found)


def _called(site: str) -> str:
    return site if site == HERE else f"sites.{site}"


def accuracy_of(system: System) -> tuple[str, ...]:
    """How far predictions of such pools have erred on measured runs: the uncertainty that no replication shows."""
    said = []
    for name in system.engine_pools():
        table = system.step_tables.get(name)
        if table is None:
            said += [f"pool {name}: {line}" for line in _composed_errors(system, name)]
        elif table.median_error_fraction is not None:
            tail = f" (p90 {table.p90_error_fraction:.0%})" if table.p90_error_fraction is not None else ""
            said.append(f"pool {name}: steps read from {table.name} erred by {table.median_error_fraction:.0%}{tail}")
    return tuple(said)


def _composed_errors(system: System, name: str) -> list[str]:
    """One line a quantity: of this chip and code path where there are runs of it, else of the chip with the worst."""
    engine, chip, path = system.engines[name], system.tier_of(name).chip, system.model_of(name).path
    if system.engine_pools()[name].on_cores:
        return ["no run of a model on cores was measured here: error unknown"]
    assert chip is not None
    lines = []
    for quantity, called in ERRING.items():
        known = [e for e in engine.errors if e.quantity == quantity and e.path == path]
        here = [e for e in known if e.chip == chip.name]
        if known:
            e = max(here or known, key=lambda error: error.p90_fraction)
            where = "" if here else f"; on {chip.name} none was measured"
            as_engine = "" if e.engine == engine.name else f", as {e.engine}"
            lines.append(
                f"{called} of {e.path} models on {e.chip} under {engine.name}{as_engine} erred by {e.mean_fraction:.0%} "
                f"(p90 {e.p90_fraction:.0%}) on {e.runs} runs that it was not fitted on{where}"
            )
    if not lines:
        paths = ", ".join(sorted({e.path for e in engine.errors})) or "none"
        lines = [f"no run of {path} models under {engine.name} was measured (it was on {paths}): error unknown"]
    return lines


def evidence_of(system: System) -> dict[str, int]:
    """How many of the run's figures stand on each tier of evidence."""
    counts: dict[str, int] = {}
    for use in system.figures.used.values():
        counts[use.tier] = counts.get(use.tier, 0) + 1
    return counts
