"""Simulated runs: builds the engine of a prepared system, lets its tasks live on a simulated clock, returns the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from hsim.costs.cpu import OperationCost
from hsim.costs.geared import Geared
from hsim.drivers.elastic import assemble
from hsim.drivers.prepared import Prepared, no_collector
from hsim.drivers.sites import join_sites
from hsim.engine.balance import Alternatives
from hsim.engine.cores import Cores, Host
from hsim.engine.environment import EngineEnvironment
from hsim.engine.executor import Executor, ModelledTime
from hsim.engine.failures import BreakableCores, BreakableReplica
from hsim.engine.governing import Governor
from hsim.engine.keeping import Keeping
from hsim.engine.life import Balancing, OperationTime, Pipeline, Reader, Send, arrive_in_time, run_tasks
from hsim.engine.link import Link, Message, Network, Window
from hsim.engine.memory import SharedMemory
from hsim.engine.pool import Pool
from hsim.engine.power import Sleep, Sleeper
from hsim.engine.replica import Replica
from hsim.engine.service import ElasticPool
from hsim.engine.visits import Prompt
from hsim.log import Device, Log, PoolRecord, Stage
from hsim.metrics.quality import weights_of
from hsim.workload.tasks import Task


def run(prepared: Prepared, stepwise: bool = False, followed: int | None = None) -> Log:
    """Run every task to its end; with `followed`, those that arrive until the first so many have ended.

    `stepwise` takes each step as an event of its own: the slow reference.
    """
    env, log = EngineEnvironment(), Log()
    pipeline = build(env, log, prepared, ModelledTime(env, stepwise))
    with no_collector():
        if followed is None:
            run_tasks(env, log, pipeline, prepared.drawn.tasks)
        else:
            arrive_in_time(env, log, pipeline, _until_ended(log, prepared.drawn.tasks, followed))
            env.run_out()  # until those under way have ended too
    return log


def _until_ended(log: Log, tasks: list[Task], followed: int) -> Iterator[Task]:
    """The tasks, each asked for when the one before has begun, for as long as one of the first `followed` has not ended."""
    seen, left = 0, followed
    for task in tasks:
        yield task
        ended = log.tasks.column("task", seen)
        seen += len(ended)
        left -= sum(number < followed for number in ended)
        if not left:
            return


def build(env: EngineEnvironment, log: Log, prepared: Prepared, executor: Executor) -> Pipeline:
    """The engine's devices, pools and links for a prepared system, registered in the log."""
    hosts = _hosts(env, log, prepared)
    memories = {name: SharedMemory(env, log, name, spec) for name, spec in prepared.memories.items()}
    pools: dict[str, Pool[Any]] = {}
    for name in prepared.system.engine_pools():
        pools[name] = _engine_pool(env, log, prepared, name, hosts[prepared.system.tier_of(name).name], executor)
        if (gaps := prepared.replicas[name].gaps) and gaps.memory:
            for replica in pools[name].devices:
                assert isinstance(replica, Replica)
                replica.share(memories[gaps.memory])
    for name in prepared.cores:
        pools[name] = _core_pool(env, log, prepared, name, hosts[prepared.system.tier_of(name).name], executor)
    if prepared.elastic:
        assemble(env, prepared.elastic, hosts, pools)
    links = _links(env, log, prepared)
    clients = join_sites(env, log, prepared.system, prepared.site_links, links) if prepared.site_links else None
    stages, wire = prepared.system.scenario.stages, prepared.wire
    serving = {stage: stages.pools(stage.name.lower()) for stage in Stage}
    return Pipeline(
        pools={stage: pools[names[0]] for stage, names in serving.items() if names},
        links=links,
        understand={name: _timed(cost) for name, cost in prepared.understand.items()},
        tools={name: _timed(cost) for name, cost in prepared.tools.items()},
        tool_units={name: prepared.system.tools[name].units for name in prepared.tools},
        bytes_per_message=wire.n_bytes.at_zero,
        bytes_per_token=wire.n_bytes.per_token,
        kv_bytes_per_token=prepared.kv_bytes_per_token,
        codec=None if wire.is_free else wire,
        balance=_balancing(env, prepared, pools),
        prefix_caching=any(spec.pool.prefix_caching for spec in prepared.replicas.values()),
        readers={name: _readers(prepared, name) for name in serving[Stage.UNDERSTAND] if name in prepared.replicas},
        request_latency_s={} if executor.real else prepared.request_latency_s,
        expected_gap_s=prepared.expected_gap_s,
        retries=prepared.system.scenario.retries,
        clients=clients,
        keeping=Keeping(env, log, pools[prepared.keep.pool], prepared.keep) if prepared.keep else None,
    )


def _pool(env: EngineEnvironment, log: Log, prepared: Prepared, name: str, devices: Sequence[Any]) -> Pool[Any]:
    """A pool of devices; an elastic one if any of them goes out of service."""
    router, number = prepared.routers[name], len(log.pools)
    if prepared.elastic and prepared.elastic.moves(name):
        return ElasticPool[Any](env, log, name, devices, router, number)
    return Pool[Any](name, devices, router, number)


def _balancing(env: EngineEnvironment, prepared: Prepared, pools: dict[str, Pool[Any]]) -> Balancing | None:
    """Balance between a prepared system's pools, if there is any; their queues' priorities are set."""
    if (spec := prepared.balance) is None:
        return None
    scenario = prepared.system.scenario
    for name, priority in spec.priorities.items():
        pools[name].priority = priority
    alternatives = {}
    for stage in (Stage.UNDERSTAND, Stage.TOOL):
        names = scenario.stages.pools(stage.name.lower())
        if len(names) > 1:
            among = [pools[name] for name in names]
            alternatives[stage] = Alternatives(env, stage, among, spec.chooser, scenario.balance.steal)
    operations = {pool: {name: _timed(cost) for name, cost in costs.items()} for pool, costs in spec.operations.items()}
    return Balancing(alternatives, operations, spec.rounds_left, spec.admission, spec.objective_s)


def _readers(prepared: Prepared, pool: str) -> dict[str, Reader]:
    """How an engine pool understands each class."""
    encoder = prepared.system.model_of(pool).is_encoder
    return {
        name: Reader(kind.understand.instruction_tokens, kind.understand.max_output_tokens, encoder)
        for name, kind in prepared.system.scenario.workload.classes.items()
        if kind.understand
    }


def _timed(cost: OperationCost) -> OperationTime:
    return OperationTime(cost.operation, cost.seconds, cost.once_s, cost.contention)


def _links(env: EngineEnvironment, log: Log, prepared: Prepared) -> dict[tuple[str, str], Send]:
    """How bytes go from pool to pool, both ways. A link that no path shares is simulated alone, which is quicker."""
    indices = {name: i for i, name in enumerate(prepared.networks, len(log.links))}  # after links to host memory
    log.links.extend(prepared.networks)
    network = Network(env, log, {indices[name]: spec for name, spec in prepared.networks.items()})
    paths = prepared.system.paths
    users = [name for path in paths.values() for name in path]
    sends: dict[tuple[str, str], Send] = {}
    for ends, path in paths.items():
        a, b = sorted(ends)
        if len(path) == 1 and users.count(path[0]) == 1:
            link = Link(env, log, indices[path[0]], prepared.networks[path[0]])
            send: Send = link.transfer
            move: Callable[[Sequence[Message]], None] = link.move
        else:
            way = tuple(indices[name] for name in path)
            send, move = partial(network.transfer, path=way), partial(network.move, path=way)
        sends[a, b] = sends[b, a] = send
        if window_s := prepared.system.scenario.payload.window_s:
            sends[a, b], sends[b, a] = (Window(env, window_s, move).transfer for _ in range(2))
    return sends


def _hosts(env: EngineEnvironment, log: Log, prepared: Prepared) -> dict[str, list[Host]]:
    hosts: dict[str, list[Host]] = {}
    for name, tier in prepared.system.tiers.items():
        power = prepared.hosts[name]
        for number in range(tier.count):
            host = Host(env, log, len(log.hosts), power, prepared.slowdown[name])
            spec, stays = prepared.system.scenario.fleet[name], number < prepared.system.scenario.fleet[name].stay_on
            if name in prepared.sleep and (spec.leaves or not stays):
                sleep = Sleep(inf, prepared.sleep[name].wake_s) if stays else prepared.sleep[name]
                host.sleeper = Sleeper(env, log, (host.index, -1), sleep)
                host.sleeper.rest()
            hosts.setdefault(name, []).append(host)
            log.hosts.append(Device(f"{name}/{number}", name, power.idle_w, power.cores))
    return hosts


def _core_pool(
    env: EngineEnvironment, log: Log, prepared: Prepared, name: str, hosts: list[Host], executor: Executor
) -> Pool[Any]:
    tier, pool, cores = prepared.system.tier_of(name), prepared.system.core_pools()[name], prepared.cores[name]
    kind = BreakableCores if prepared.elastic and prepared.elastic.breaks(name) else Cores
    devices = [kind(env, host, cores, executor, (pool.max_batch, pool.batch_window_s)) for host in hosts]
    made = _pool(env, log, prepared, name, devices)  # numbered by those that the log has
    what = f"{cores} cores on each of {tier.count} x {tier.server.name}"
    log.pools[name] = PoolRecord(what, False, tuple(d.index for d in devices), cores * tier.count)
    return made


def _engine_pool(
    env: EngineEnvironment, log: Log, prepared: Prepared, name: str, hosts: list[Host], executor: Executor
) -> Pool[Prompt]:
    spec, tier = prepared.replicas[name], prepared.system.tier_of(name)
    geared = Geared(spec.costs.gears) if isinstance(spec.costs, Geared) else None  # of this run: it is shifted
    spec = replace(spec, costs=geared) if geared else spec
    kind = BreakableReplica if prepared.elastic and prepared.elastic.breaks(name) else Replica
    replicas = []
    for number, server in enumerate(prepared.system.placements()[name]):
        host = hosts[server]
        replicas.append(kind(env, log, len(log.accelerators), spec, host, executor))
        ways, cores = 0 if spec.pool.on_cores else spec.pool.accelerators, spec.host_cores
        device = Device(
            f"{name}/{number}", tier.name, spec.idle_w, host=host.index, host_cores=cores, accelerators=ways
        )
        log.accelerators.append(device)
    on = f"{spec.pool.accelerators} {tier.chip.name}" if tier.chip else ""
    if spec.pool.on_cores:
        on = f"{spec.pool.cores_per_replica} cores of {tier.cpu.name}"
    pool = _pool(env, log, prepared, name, replicas)
    if geared:
        Governor(env, log, pool, geared, prepared.governors[name])
    log.pools[name] = PoolRecord(
        f"{len(replicas)} x {on}",
        True,
        tuple(r.index for r in replicas),
        len(replicas),
        spec.kv_blocks * spec.pool.block_tokens,
        tuple(weights_of(spec.pool)),
    )
    return pool
