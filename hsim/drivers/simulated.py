"""Simulated runs: builds the engine of a prepared system, lets its tasks live on a simulated clock, returns the log."""

from __future__ import annotations

import gc

from hsim.drivers.prepared import Prepared, replicas_per_server
from hsim.engine.cores import Cores, Host
from hsim.engine.environment import EngineEnvironment
from hsim.engine.executor import Executor, ModelledTime
from hsim.engine.life import Pipeline, run_tasks
from hsim.engine.link import Link
from hsim.engine.pool import Pool
from hsim.engine.replica import Replica
from hsim.engine.visits import Job, Prompt
from hsim.log import Device, Log, PoolRecord, Stage


def run(prepared: Prepared, stepwise: bool = False) -> Log:
    """Run every task to its end. `stepwise` takes each step as an event of its own: the slow reference."""
    env, log = EngineEnvironment(), Log()
    pipeline = build(env, log, prepared, ModelledTime(env, stepwise))
    # Nothing here makes cycles that must be collected during a run; the collector would walk over every live task.
    gc.disable()
    try:
        run_tasks(env, log, pipeline, prepared.drawn.tasks)
    finally:
        gc.enable()
    return log


def build(env: EngineEnvironment, log: Log, prepared: Prepared, executor: Executor) -> Pipeline:
    """The engine's devices, pools and links for a prepared system, registered in the log."""
    hosts = _hosts(env, log, prepared)
    pools: dict[str, Pool[Job] | Pool[Prompt]] = {}
    for name in prepared.system.engine_pools():
        pools[name] = _engine_pool(env, log, prepared, name, hosts[prepared.system.tier_of(name).name], executor)
    for name, cores in prepared.cores.items():
        tier = prepared.system.tier_of(name)
        devices = [Cores(env, host, cores, executor) for host in hosts[tier.name]]
        pools[name] = Pool[Job](name, devices, prepared.routers[name])
        what = f"{cores} cores on each of {tier.count} x {tier.server.name}"
        log.pools[name] = PoolRecord(what, False, tuple(d.index for d in devices), cores * tier.count)
    links: dict[tuple[str, str], Link] = {}
    for ends, costs in prepared.links.items():
        link = Link(env, log, len(log.links), costs.latency_s, costs.bytes_per_s, costs.joules_per_byte)
        a, b = sorted(ends)
        log.links.append(f"{a}-{b}")
        links[a, b] = links[b, a] = link
    stages, payload = prepared.system.scenario.stages, prepared.system.scenario.payload
    serving = {Stage.UNDERSTAND: stages.understand, Stage.TOOL: stages.tool, Stage.GENERATE: stages.generate}
    return Pipeline(
        pools={stage: pools[name] for stage, name in serving.items() if name},
        links=links,
        understand_s={name: cost.seconds for name, cost in prepared.understand.items()},
        tool_s=prepared.tool_s,
        bytes_per_message=payload.bytes_per_message,
        bytes_per_token=payload.bytes_per_token,
    )


def _hosts(env: EngineEnvironment, log: Log, prepared: Prepared) -> dict[str, list[Host]]:
    hosts: dict[str, list[Host]] = {}
    for name, tier in prepared.system.tiers.items():
        power = prepared.hosts[name]
        for number in range(tier.count):
            hosts.setdefault(name, []).append(Host(env, log, len(log.hosts), power))
            log.hosts.append(Device(f"{name}/{number}", name, power.idle_w, power.cores))
    return hosts


def _engine_pool(
    env: EngineEnvironment, log: Log, prepared: Prepared, name: str, hosts: list[Host], executor: Executor
) -> Pool[Prompt]:
    spec, tier = prepared.replicas[name], prepared.system.tier_of(name)
    per_server = replicas_per_server(spec.pool, tier)
    replicas = []
    for number in range(spec.pool.replicas):
        host = hosts[number // per_server]
        replicas.append(Replica(env, log, len(log.accelerators), spec, host, executor))
        log.accelerators.append(Device(f"{name}/{number}", tier.name, spec.idle_w))
    assert tier.chip is not None
    what = f"{len(replicas)} x {spec.pool.tensor_parallel} {tier.chip.name}"
    log.pools[name] = PoolRecord(what, True, tuple(r.index for r in replicas), len(replicas), spec.kv_capacity_tokens)
    return Pool[Prompt](name, replicas, prepared.routers[name])
