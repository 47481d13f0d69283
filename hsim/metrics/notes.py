"""What a result says in words: the bottleneck, warnings, and what it assumed."""

from __future__ import annotations

from hsim.description.system import System
from hsim.metrics.ledger import Window
from hsim.metrics.result import Assumption, PoolUse, StageAnatomy
from hsim.units import readable_seconds
from hsim.workload.tasks import Drawn

BUSY = 0.95  # a pool busier than this over a whole window is called saturated
WAITING = 0.1  # a stage whose waiting is more than this part of a task's time is called a queue
LONG_DRAIN = 0.2


def bottleneck_of(stages: tuple[StageAnatomy, ...], pools: tuple[PoolUse, ...]) -> str:
    """Where a task's time goes, in one sentence."""
    total_s = sum(s.transfer_s + s.wait_s + s.service_s + s.outside_s for s in stages)
    parts = [(s.wait_s, "waits for", s) for s in stages] + [(s.transfer_s, "is moved to", s) for s in stages]
    parts += [(s.service_s, "is served by", s) for s in stages] + [(s.outside_s, "waits outside, in", s) for s in stages]
    longest_s, verb, stage = max(parts, key=lambda part: part[0])
    busy = {pool.pool: pool.busy_fraction for pool in pools}
    waiting = max(stages, key=lambda s: s.wait_s)
    if waiting.wait_s > WAITING * total_s and verb != "waits for":
        longest_s, verb, stage = waiting.wait_s, "waits for", waiting
    return (
        f"Of the {readable_seconds(total_s)} that a task takes on average, it {verb} {stage.stage} on {stage.pool} for "
        f"{readable_seconds(longest_s)} ({longest_s / total_s:.0%}); {stage.pool} is busy {busy[stage.pool]:.0%} of the time."
    )


def warnings_of(system: System, drawn: Drawn, pools: tuple[PoolUse, ...], window: Window) -> tuple[str, ...]:
    """What a reader must know before trusting the figures."""
    warnings = []
    for pool in pools:
        if pool.busy_fraction > BUSY:
            warnings.append(
                f"{pool.pool} is busy {pool.busy_fraction:.1%} of the window: at this load for longer, its queue may grow without end"
            )
    arrivals_s = window.arrivals_end_s - window.start_s
    if window.end_s - window.arrivals_end_s > LONG_DRAIN * arrivals_s:
        drain_s = window.end_s - window.arrivals_end_s
        warnings.append(
            f"after the last arrival the fleet needs {readable_seconds(drain_s)} more, against {readable_seconds(arrivals_s)} of "
            "arrivals: joules per task hold much idle time and latencies are those of a short burst; simulate more tasks"
        )
    if drawn.truncated:
        warnings.append(f"{drawn.truncated} answers were longer than max_output_tokens and were cut there")
    return tuple(warnings)


def assumptions_of(system: System) -> tuple[Assumption, ...]:
    """Figures that are assumed or rough, and defaults that mattered, each with why it was taken."""
    found = []
    for use in system.figures.used.values():
        if use.tier == "assumed" or use.low is not None:
            span = f" ({use.low:g} to {use.high:g})" if use.low is not None else ""
            found.append(Assumption(use.name, f"{use.value:g}{span}", f"{use.tier}: {use.source}"))
    scenario = system.scenario
    for key in ("pue", "usd_per_kwh", "gco2_per_kwh"):
        if key not in scenario.site.model_fields_set:
            found.append(Assumption(f"site.{key}", f"{getattr(scenario.site, key):g}", "default; set site." + key))
    for name, pool in system.engine_pools().items():
        described = scenario.pools[name]
        for key in ("max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "replicas"):
            if getattr(described, key) is None:
                why = "as many as fit" if key == "replicas" else f"default of {system.engines[name].name}: {system.engines[name].defaults_source}"
                found.append(Assumption(f"pools.{name}.{key}", f"{getattr(pool, key):g}", why))
    return tuple(found)


def tiers_of(system: System) -> dict[str, int]:
    """How many of the run's figures stand on each tier of evidence."""
    counts: dict[str, int] = {}
    for use in system.figures.used.values():
        counts[use.tier] = counts.get(use.tier, 0) + 1
    return counts

