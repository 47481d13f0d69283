"""A system ready to run: every cost worked out, every task drawn. Making one is where bad input is found."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from hsim.costs.composed import ComposedCosts, Placement, check_runs
from hsim.costs.cpu import HostPower, OperationCost, host_power, operation_cost
from hsim.costs.measured import MeasuredCosts
from hsim.costs.memory import kv_capacity_tokens
from hsim.costs.shapes import StepCosts
from hsim.description.system import FilledPool, System, Tier
from hsim.description.yamlfile import did_you_mean
from hsim.engine.replica import ReplicaSpec
from hsim.errors import DescriptionError
from hsim.metrics.accounts import Accounts, accounts_of
from hsim.policies.batching import decode_first
from hsim.policies.routing import ROUTERS, Router
from hsim.workload.tasks import Drawn, check_tasks_fit, draw_tasks


@dataclass(frozen=True)
class LinkCosts:
    """Seconds and joules of a link."""

    latency_s: float
    bytes_per_s: float
    joules_per_byte: float


@dataclass(frozen=True)
class Prepared:
    """Everything that a driver needs, found to be right."""

    system: System
    drawn: Drawn
    replicas: dict[str, ReplicaSpec]
    cores: dict[str, int]
    hosts: dict[str, HostPower]
    routers: dict[str, Router]
    links: dict[frozenset[str], LinkCosts]
    understand: dict[str, OperationCost]
    tool_s: dict[str, float]
    accounts: Accounts


def prepare(system: System) -> Prepared:
    """Work out all costs and draw all tasks. Raises DescriptionError for what cannot run."""
    figures, scenario = system.figures, system.scenario
    replicas = {name: _replica(system, name, pool) for name, pool in system.engine_pools().items()}
    drawn = draw_tasks(scenario.workload, system.tools, scenario.seed, Path(system.document.file).parent)
    generate = scenario.stages.generate
    check_tasks_fit(
        drawn.tasks,
        replicas[generate].kv_capacity_tokens,
        system.model.max_context_tokens,
        system.document.where(("workload",)),
    )
    links = {
        ends: LinkCosts(
            figures.value(link, "latency_s"),
            figures.value(link, "bytes_per_s"),
            figures.if_known(link, "joules_per_byte"),
        )
        for ends, link in system.links.items()
    }
    prepared = Prepared(
        system=system,
        drawn=drawn,
        replicas=replicas,
        cores={name: _cores(system, name, replicas) for name in system.core_pools()},
        hosts={name: host_power(tier, figures) for name, tier in system.tiers.items()},
        routers={name: _router(system, name) for name in scenario.pools},
        links=links,
        understand=_understanding(system),
        tool_s=_tool_seconds(system),
        accounts=accounts_of(system),
    )
    figures.check_all_assumptions_used(system.document)
    return prepared


def _replica(system: System, name: str, pool: FilledPool) -> ReplicaSpec:
    tier, engine, figures = system.tier_of(name), system.engines[name], system.figures
    assert tier.chip is not None
    placement = Placement(system.model, tier.chip, engine, pool.tensor_parallel, pool.precision)
    check_runs(placement, system.document.where(("pools", name, "precision")))
    at = system.document.where(("pools", name))
    host_cores = figures.value(engine, "host_cores_per_replica")
    host_cores += pool.tensor_parallel * figures.value(engine, "host_cores_per_accelerator")
    return ReplicaSpec(
        pool=pool,
        costs=_step_costs(system, name, placement),
        batcher=decode_first,
        kv_capacity_tokens=kv_capacity_tokens(placement, pool.gpu_memory_utilization, figures, at),
        idle_w=pool.tensor_parallel * figures.if_known(tier.chip, "power.loaded_idle_w"),
        host_cores=ceil(host_cores),
    )


def _step_costs(system: System, name: str, placement: Placement) -> StepCosts:
    """Measured steps where there is a table of them, else kernel laws composed."""
    composed = ComposedCosts(placement, system.figures)
    table = system.step_tables.get(name)
    if table is None:
        return composed
    system.figures.stands_on(table.name, len(table.decodes) * len(table.contexts), table.tier, table.source)
    return MeasuredCosts(table, composed)


def replicas_per_server(pool: FilledPool, tier: Tier) -> int:
    """How many replicas of a pool a server of its tier holds; the first servers are filled first."""
    return tier.accelerators_per_server // pool.tensor_parallel


def _engine_cores(tier: Tier, system: System, replicas: dict[str, ReplicaSpec]) -> int:
    """Cores of a server that engines keep for themselves, at most."""
    mine = [spec for name, spec in replicas.items() if system.tier_of(name) is tier]
    return sum(replicas_per_server(spec.pool, tier) * spec.host_cores for spec in mine)


def _cores(system: System, name: str, replicas: dict[str, ReplicaSpec]) -> int:
    """Cores per server that a pool has."""
    tier, pool = system.tier_of(name), system.core_pools()[name]
    sharing = [n for n in system.core_pools() if system.tier_of(n) is tier]
    reserved = _engine_cores(tier, system, replicas)
    free = tier.cores_per_server - reserved
    at = system.document.where(("pools", name, "cores"))
    claimed = sum(system.core_pools()[n].cores or 0 for n in sharing)
    if len(sharing) > 1 and any(system.core_pools()[n].cores is None for n in sharing):
        raise DescriptionError(
            at, f"pools {', '.join(sharing)} share tier {tier.name!r}", "say how many cores each has"
        )
    if (pool.cores or 1) > free or claimed > free:
        what = (
            f"{tier.server.name} has {free} cores for pools ({tier.cores_per_server} less {reserved} that engines keep)"
        )
        raise DescriptionError(at, what, f"ask for {free} or fewer in all" if free > 0 else "use another tier")
    return pool.cores or free


def _router(system: System, name: str) -> Router:
    router = system.scenario.pools[name].router
    if router not in ROUTERS:
        at = system.document.where(("pools", name, "router"))
        raise DescriptionError(at, f"there is no router {router!r}", did_you_mean(router, list(ROUTERS)))
    return ROUTERS[router]


def _understanding(system: System) -> dict[str, OperationCost]:
    pool = system.scenario.stages.understand
    return {
        name: operation_cost(system.tier_of(pool).cpu, kind.understand.op, system.figures)
        for name, kind in system.scenario.workload.classes.items()
        if kind.understand and pool
    }


def _tool_seconds(system: System) -> dict[str, float]:
    pool = system.scenario.stages.tool
    used = {tool for kind in system.scenario.workload.classes.values() for tool in kind.tools}
    if pool is None:
        return {}
    cpu = system.tier_of(pool).cpu
    tools = {name: system.tools[name] for name in sorted(used)}
    return {n: operation_cost(cpu, t.operation, system.figures).seconds(t.units) for n, t in tools.items()}
