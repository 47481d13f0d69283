"""Changes that one click makes: GPU-only from split and back, more servers, another precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hsim.dashboard.state import Question, value_at
from hsim.description.system import System

CPU_TIER = "cpu-tier"
CPU_SERVER = "epyc-9654-2s"
NETWORK = "ethernet-100g"
LENGTHS = ("value", "median", "p95", "mean", "low", "high")

Changes = Mapping[str, Any]


def is_split(system: System) -> bool:
    """Whether some stage runs on servers that have no accelerator."""
    return any(not system.tier_of(pool).accelerators_per_server for pool in system.core_pools())


def gpu_only(system: System) -> Changes:
    """Move pools of cores to the GPU servers' own, and give up servers that then have none."""
    data = system.document.data
    host = system.tier_of(system.scenario.stages.generate).name
    moved = {pool: {**data["pools"][pool], "runs_on": f"{host}.cpu"} for pool in system.core_pools()}
    pools = {**data["pools"], **moved}
    used = {pool["runs_on"].rpartition(".")[0] for pool in pools.values()}
    changes: dict[str, Any] = {"pools": pools, "fleet": {t: spec for t, spec in data["fleet"].items() if t in used}}
    links = {
        name: way
        for name, way in data.get("links", {}).items()
        if not any(name == f"{a}-{b}" for a, b in _pairs(moved, pools))
    }
    if "links" in data:
        changes["links"] = links
    return changes


def _pairs(moved: Changes, pools: Changes) -> list[tuple[str, str]]:
    """Pools that stand on one server now, and need no link."""
    engines = [name for name, pool in pools.items() if pool["runs_on"].endswith(".gpu")]
    both = [(a, b) for a in moved for b in (*engines, *moved) if a != b]
    return [*both, *((b, a) for a, b in both)]


def split(system: System, server: str = CPU_SERVER, count: int = 1) -> Changes:
    """Move pools of cores to CPU servers of their own, joined by a network."""
    data = system.document.data
    tier = next(name for name in (CPU_TIER, "new-cpu-tier") if name not in data["fleet"])
    generate, prefill = system.scenario.stages.generate, system.scenario.stages.prefill
    engines = [pool for pool in (generate, prefill) if pool]
    changes: dict[str, Any] = {f"fleet.{tier}": {"server": server, "count": count}}
    links = dict(data.get("links", {}))
    for pool in system.core_pools():
        changes[f"pools.{pool}"] = {**data["pools"][pool], "runs_on": f"{tier}.cpu"}
        changes[f"pools.{pool}"].pop("cores", None)
        for engine in engines:
            if f"{pool}-{engine}" not in links and f"{engine}-{pool}" not in links:
                links[f"{pool}-{engine}"] = NETWORK
    return {**changes, "links": links}


def bought(question: Question, choices: Changes) -> Question:
    """The question with a planner's choices made: only what serves is bought, and no link joins what stands together."""
    chosen = question.changed(choices)
    data = chosen.document().data
    tiers = {pool["runs_on"].rpartition(".")[0] for pool in data["pools"].values()}
    changes: dict[str, Any] = {"fleet": {name: tier for name, tier in data["fleet"].items() if name in tiers}}
    if set(data["fleet"]) != tiers:
        pools = data["pools"].items()
        apart = [f"{a}-{b}" for a, one in pools for b, other in pools if _tier(one) != _tier(other)]
        changes["links"] = {name: way for name, way in data.get("links", {}).items() if name in apart}
    return chosen.changed(changes)


def _tier(pool: Changes) -> str:
    return str(pool["runs_on"]).rpartition(".")[0]


def scaled_lengths(data: Any, length: str, factor: float) -> Changes:
    """Every class's lengths of a kind (input_tokens, output_tokens, rounds) times a factor."""
    changes = {}
    for name, kind in data["workload"].get("classes", {}).items():
        if (value := kind.get(length)) is not None:
            changes[f"workload.classes.{name}.{length}"] = _scaled(value, factor)
    return changes


def _scaled(value: Any, factor: float) -> Any:
    """A distribution with all its lengths scaled; whole where it is a count, and at least 1."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key not in LENGTHS}
        return kept | {key: max(1, round(inner * factor, 6)) for key, inner in value.items() if key in LENGTHS}
    return max(1, round(value * factor))


def length_ratio(before: Any, after: Any, length: str) -> float | None:
    """By how much the first class's lengths were scaled; None where there is nothing to scale."""
    name = next(iter(before["workload"].get("classes", {})), None)
    sizes = [_size(value_at(data, f"workload.classes.{name}.{length}")) for data in (before, after)]
    return round(sizes[1] / sizes[0], 3) if sizes[0] and sizes[1] else None


def _size(value: Any) -> float | None:
    if isinstance(value, dict):
        return next((float(value[key]) for key in LENGTHS if key in value), None)
    return None if value is None else float(value)
