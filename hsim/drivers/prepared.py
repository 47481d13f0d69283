"""A system ready to run: every cost worked out, every task drawn. Making one is where bad input is found."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path
from typing import TypeVar

from hsim.costs.clocks import ClockedCosts
from hsim.costs.composed import ELEMENT_BYTES, ComposedCosts, Placement, check_runs, working_precision
from hsim.costs.cores import CoreCosts, CorePlacement, check_runs_on_cores, kv_capacity_on_cores
from hsim.costs.cpu import HostPower, OperationCost, host_power, operation_cost
from hsim.costs.encoder import EncoderCosts
from hsim.costs.geared import Geared
from hsim.costs.measured import MeasuredCosts, TimedWhole, scaled
from hsim.costs.memory import kv_capacity_tokens, weight_bytes
from hsim.costs.shapes import StepCosts, StepShape
from hsim.costs.streamed import StreamedCosts
from hsim.costs.wire import Wire, wire_of
from hsim.description.hardware import Tool
from hsim.description.model import ModelArchitecture
from hsim.description.scenario import Workload
from hsim.description.system import FilledPool, System, Tier
from hsim.description.yamlfile import did_you_mean
from hsim.drivers.elastic import Elastic, elastic_of, governors_of
from hsim.drivers.gaps import expected_gaps, gap_spec
from hsim.drivers.keeping import keep_spec
from hsim.drivers.memory import check_streamed, link_spec, memory_specs, streamed
from hsim.drivers.precision import other_weights, sparsity_in, switch_spec
from hsim.drivers.sites import crossing_specs
from hsim.engine.governing import GovernorSpec
from hsim.engine.keeping import KeepSpec
from hsim.engine.link import LinkSpec
from hsim.engine.memory import MemorySpec
from hsim.engine.power import Sleep
from hsim.engine.precision import SwitchSpec
from hsim.engine.replica import ReplicaSpec
from hsim.engine.sites import CrossingSpec
from hsim.errors import DescriptionError, MistakeError
from hsim.log import Stage
from hsim.metrics.accounts import Accounts, accounts_of
from hsim.policies.balance import ADMISSIONS, CHOOSERS, PRIORITIES, Admission, Chooser, Priority
from hsim.policies.batching import Batcher, decode_first, whole_prompts
from hsim.policies.keeping import KEEPERS
from hsim.policies.own import is_own, own_policy
from hsim.policies.routing import ROUTERS, Router
from hsim.workload.tasks import Drawn, check_tasks_fit, check_understanding_fits, draw_tasks, expected_rounds_left

P = TypeVar("P")


@dataclass(frozen=True)
class BalanceSpec:
    """What is balanced, where anything is.

    `operations` are the costs on the cores of each stage's pools: of understanding by class, of tools by name.
    """

    chooser: Chooser
    priorities: dict[str, Priority]
    admission: Admission
    objective_s: float
    operations: dict[tuple[Stage, str], dict[str, OperationCost]]
    rounds_left: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Prepared:
    """Everything that a driver needs, found to be right."""

    system: System
    drawn: Drawn
    replicas: dict[str, ReplicaSpec]
    cores: dict[str, int]
    hosts: dict[str, HostPower]
    routers: dict[str, Router]
    slowdown: dict[str, float]
    networks: dict[str, LinkSpec]
    site_links: dict[str, CrossingSpec]
    keep: KeepSpec | None
    sleep: dict[str, Sleep]
    understand: dict[str, OperationCost]
    tools: dict[str, OperationCost]
    kv_bytes_per_token: float
    wire: Wire
    balance: BalanceSpec | None
    request_latency_s: dict[str, float]
    expected_gap_s: dict[str, float]
    elastic: Elastic | None
    governors: dict[str, GovernorSpec]
    accounts: Accounts
    memories: dict[str, MemorySpec]


@contextmanager
def no_collector() -> Iterator[None]:
    """Without Python's collector of cycles: tasks and their runs make none, and it would walk over every live task."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@no_collector()
def prepare(system: System, like: Prepared | None = None) -> Prepared:
    """Work out all costs and draw all tasks, or take those of a system `like` it. Raises DescriptionError for what cannot run."""
    figures, scenario = system.figures, system.scenario
    replicas = {name: _replica(system, name, pool) for name, pool in system.engine_pools().items()}
    replicas = {name: replace(spec, gaps=gap_spec(system, name, spec)) for name, spec in replicas.items()}
    _check_engine_cores(system, replicas)
    drawn = like.drawn if like and _tasks_of(like.system) == _tasks_of(system) else draw_tasks(*_tasks_of(system))
    _check_visits_fit(system, replicas, drawn)
    _check_never_preempted(system, replicas, drawn)
    networks = {name: link_spec(link, system) for name, link in system.networks.items()}
    tools = _tool_costs(system)
    gaps = any(spec.gaps for spec in replicas.values())
    prepared = Prepared(
        system=system,
        drawn=drawn,
        replicas=replicas,
        cores={name: _cores(system, name, replicas) for name in system.core_pools()},
        hosts={name: host_power(tier, figures) for name, tier in system.tiers.items()},
        routers={name: _router(system, name) for name in scenario.pools},
        slowdown={name: figures.value(tier.cpu, "contention_slowdown") for name, tier in system.tiers.items()},
        networks=networks,
        site_links=crossing_specs(system, len(drawn.tasks)),
        keep=_keep(system, replicas, drawn),
        sleep=_sleep(system),
        understand=_understanding(system),
        tools=tools,
        kv_bytes_per_token=_kv_bytes_per_token(system),
        wire=wire_of(system),
        balance=_balance(system),
        request_latency_s={name: _request_latency_s(system, name) for name in replicas},
        expected_gap_s=expected_gaps(system, tools) if gaps else {},
        elastic=elastic_of(system),
        governors=governors_of(system),
        accounts=accounts_of(system),
        memories=memory_specs(system),
    )
    figures.check_all_assumptions_used(system.document)
    return prepared


def _tasks_of(system: System) -> tuple[Workload, Mapping[str, Tool], int, Path]:
    """All that drawn tasks depend on."""
    return system.scenario.workload, system.tools, system.scenario.seed, Path(system.document.file).parent


def _check_visits_fit(system: System, replicas: dict[str, ReplicaSpec], drawn: Drawn) -> None:
    """Raises DescriptionError for a visit that no replica could ever serve."""
    stages, workload = system.scenario.stages, system.scenario.workload
    at = system.document.where(("workload",))
    for stage in ("prefill", "generate", "understand"):
        for pool in stages.pools(stage):
            if pool in replicas:
                capacity = replicas[pool].kv_blocks * replicas[pool].pool.block_tokens
                model = system.model_of(pool)
                if stage == "understand":
                    limit = min(capacity, model.max_context_tokens)
                    check_understanding_fits(drawn.tasks, _besides(workload, model), limit, at)
                else:
                    check_tasks_fit(drawn.tasks, capacity, model.max_context_tokens, at)


def _check_never_preempted(system: System, replicas: dict[str, ReplicaSpec], drawn: Drawn) -> None:
    """Raises DescriptionError where a chip that is made for decoding alone could have to compute a prompt again."""
    visits = [(this.input_tokens, task.max_output_tokens) for task in drawn.tasks for this in task.rounds]
    for name, spec in replicas.items():
        chip = None if spec.pool.on_cores else system.tier_of(name).chip
        if chip and chip.phases == ("decode",) and visits:
            largest = max(-(-(tokens + answer) // spec.pool.block_tokens) for tokens, answer in visits)
            if spec.pool.max_num_seqs * largest > spec.kv_blocks:
                what = (
                    f"{spec.pool.max_num_seqs} sequences of up to {largest} blocks may outgrow the KV cache of "
                    f"{spec.kv_blocks}, and {chip.name} cannot prefill again who is preempted"
                )
                at = system.document.where(("pools", name, "max_num_seqs"))
                raise DescriptionError(at, what, f"use {spec.kv_blocks // largest} or fewer")


def _besides(workload: Workload, model: ModelArchitecture) -> dict[str, int]:
    """The tokens that a model that understands has to hold beside a text of each class."""
    return {
        name: 0 if model.is_encoder else kind.understand.instruction_tokens + kind.understand.max_output_tokens
        for name, kind in workload.classes.items()
        if kind.understand
    }


def _sleep(system: System) -> dict[str, Sleep]:
    """When the servers of each tier that goes down are switched off by themselves, and how long they take to boot.

    Raises DescriptionError where KV cache would be sent to a server, or an engine, that is down.
    """
    stages, fleet, where = system.scenario.stages, system.scenario.fleet, system.document.where
    if stages.prefill:
        tier = system.tier_of(stages.generate).name
        unloads = system.engine_pools()[stages.generate].unload_after_s
        for sleeps, path in (
            (fleet[tier].sleep_after_s, ("fleet", tier, "sleep_after_s")),
            (unloads, ("pools", stages.generate, "unload_after_s")),
        ):
            if sleeps is not None:
                what = (
                    f"pool {stages.generate!r} is sent KV cache from {stages.prefill!r}, and must be there to take it"
                )
                raise DescriptionError(where(path), what, "leave it out")
    return {
        name: Sleep(fleet[name].sleep_after_s or inf, system.figures.value(tier.server, "boot_s"))
        for name, tier in system.tiers.items()
        if fleet[name].goes_down
    }


def _kv_bytes_per_token(system: System) -> float:
    """Bytes of keys and values that one token weighs where they are handed over: as the generate pool keeps them."""
    generate = system.scenario.stages.generate
    pool = system.engine_pools()[generate]
    elements = system.model_of(generate).kv_elements_per_token
    return ELEMENT_BYTES[pool.kv_precision or working_precision(pool.precision)] * elements


def _request_latency_s(system: System, name: str) -> float:
    """Seconds between a client and the queue of a pool's engine: 0 where its profile has no such figure, or it is null."""
    engine = system.engines[name]
    figure, assumed = engine.request_latency_s, f"{engine.name}.request_latency_s" in system.figures.assume
    known = figure is not None and (figure.value is not None or assumed)
    return system.figures.value(engine, "request_latency_s") if known else 0.0


def _batcher(system: System, name: str) -> Batcher:
    return whole_prompts if system.model_of(name).is_encoder else decode_first


def _replica_on_cores(system: System, name: str, pool: FilledPool) -> ReplicaSpec:
    """A replica that is made of its host's cores: what it draws, they draw."""
    tier, engine, figures = system.tier_of(name), system.engines[name], system.figures
    assert pool.cores_per_replica is not None
    placement = CorePlacement(system.model_of(name), tier, engine, pool.cores_per_replica, pool.precision)
    at = system.document.where(("pools", name))
    check_runs_on_cores(placement, at)
    return ReplicaSpec(
        pool=pool,
        costs=CoreCosts(placement, figures),
        batcher=_batcher(system, name),
        kv_blocks=kv_capacity_on_cores(placement, pool.gpu_memory_utilization, figures, at) // pool.block_tokens,
        idle_w=0.0,
        host_cores=pool.cores_per_replica + ceil(figures.value(engine, "host_cores_per_replica")),
        load_s=figures.value(engine, "load_s") if system.scenario.fleet[tier.name].goes_down else 0.0,
    )


def _replica(system: System, name: str, pool: FilledPool) -> ReplicaSpec:
    if pool.on_cores:
        return _replica_on_cores(system, name, pool)
    tier, engine, figures = system.tier_of(name), system.engines[name], system.figures
    assert tier.chip is not None
    placement = Placement(
        system.model_of(name), tier.chip, engine, pool.tensor_parallel, pool.precision, pool.data_parallel,
        pool.expert_parallel, pool.kv_precision, power_cap_w=pool.power_cap_w,
        pipeline_parallel=pool.pipeline_parallel, sparsity=sparsity_in(system, name, pool.sparsity, ("sparsity",)),
        streamed=streamed(system, name, pool),
    )  # fmt: skip
    check_streamed(placement, system.document.where(("pools", name, "host_weight_bytes")))
    if name not in system.step_tables:
        check_runs(placement, system.document.where(("pools", name, "precision")))
    other = other_weights(system, name, placement) if pool.switch else None
    host_cores = figures.value(engine, "host_cores_per_replica")
    host_cores += placement.devices * figures.value(engine, "host_cores_per_accelerator")
    goes_down = pool.unloads or system.scenario.fleet[tier.name].goes_down
    return ReplicaSpec(
        pool=pool,
        costs=_step_costs(system, name, placement),
        batcher=_batcher(system, name),
        kv_blocks=_kv_tokens(system, name, placement, other) // pool.block_tokens,
        idle_w=placement.devices * figures.if_known(tier.chip, "power.loaded_idle_w"),
        host_cores=ceil(host_cores),
        window_tokens=placement.model.window.tokens if placement.model.window else 0,
        load_s=figures.value(engine, "load_s") if goes_down else 0.0,
        switch=_switch(system, name, placement, other) if other else None,
    )


def _kv_tokens(system: System, name: str, placement: Placement, other: Placement | None) -> int:
    """Tokens of KV cache that a replica's weights leave, the larger of two sets, or both where both are in memory."""
    pool, at = system.engine_pools()[name], system.document.where(("pools", name))
    utilization, figures = pool.gpu_memory_utilization, system.figures
    most = system.tier_of(name).accelerators_per_server
    if other is None or pool.switch is None:
        return kv_capacity_tokens(placement, utilization, figures, at, most=most)
    if pool.switch.weights == "resident":
        return kv_capacity_tokens(placement, utilization, figures, at, weight_bytes(other), most)
    return min(kv_capacity_tokens(each, utilization, figures, at, most=most) for each in (placement, other))


def _switch(system: System, name: str, own: Placement, other: Placement) -> SwitchSpec:
    """How a pool's replicas go over to other weights. Measured tables are of its own."""
    return switch_spec(system, name, (own, other), _step_costs(replace(system, step_tables={}), name, other))


def _step_costs(system: System, name: str, placement: Placement) -> StepCosts:
    """The costs of a replica's steps, and of reading weights before them that stay elsewhere."""
    costs = _kernel_costs(system, name, placement)
    if not placement.streamed:
        return costs
    if isinstance(costs, Geared):  # a governor shifts what it knows
        return Geared([StreamedCosts(gear, placement, system.figures) for gear in costs.gears])
    return StreamedCosts(costs, placement, system.figures)


def _kernel_costs(system: System, name: str, placement: Placement) -> StepCosts:
    """Measured steps where there is a table of them, else kernel laws composed, at clocks under a cap if there is one."""
    if governor := system.engine_pools()[name].governor:
        caps = [replace(placement, power_cap_w=cap_w) for cap_w in governor.caps_w]
        return Geared([_clocked(system, name, capped, "governor") for capped in caps])
    if placement.power_cap_w is not None:
        return _clocked(system, name, placement, "power_cap_w")
    table = system.step_tables.get(name)
    if table is None:
        composed = ComposedCosts(placement, system.figures)
        system.figures.cautions |= dict.fromkeys(f"pool {name}: {note}" for note in composed.notes)
        return EncoderCosts(composed) if placement.model.is_encoder else composed
    system.figures.stands_on(table.name, len(table.decodes) * len(table.contexts), table.tier, table.source)
    if table.scale:
        table = scaled(table, system.figures.value(table, "scale"))
    if placement.chip.kernels.gemm:
        return MeasuredCosts(table, ComposedCosts(placement, system.figures))
    return MeasuredCosts(table, TimedWhole(placement, system.figures))


def _clocked(system: System, name: str, placement: Placement, key: str) -> ClockedCosts:
    """Costs under a cap. Raises DescriptionError where the heaviest step does not fit under it."""
    clocked = ClockedCosts(placement, system.figures, system.document.where(("pools", name, key)))
    clocked.check_fits(_heaviest(system, name))
    system.figures.cautions |= dict.fromkeys(f"pool {name}: {note}" for note in clocked.notes)
    return clocked


def _heaviest(system: System, name: str) -> list[StepShape]:
    """Steps that draw the most: a budget full of prompt, and as many sequences as may run, short and long."""
    pool, longest = system.engine_pools()[name], system.model_of(name).max_context_tokens
    seqs, budget = min(pool.max_num_seqs, pool.max_num_batched_tokens), pool.max_num_batched_tokens
    chunk = min(budget, longest)
    prompts = StepShape(0, 0, 1, chunk, chunk, chunk * (chunk + 1) // 2)
    return [prompts, StepShape(seqs, seqs), StepShape(seqs, seqs * longest)]


def _engine_cores(tier: Tier, system: System, replicas: dict[str, ReplicaSpec]) -> int:
    """Cores that engines keep for themselves on the server of a tier on which they keep most."""
    kept = [0] * tier.count
    for name, servers in system.placements().items():
        if system.tier_of(name) is tier:
            for server in servers:
                kept[server] += replicas[name].host_cores
    return max(kept)


def _check_engine_cores(system: System, replicas: dict[str, ReplicaSpec]) -> None:
    for name in replicas:
        tier = system.tier_of(name)
        reserved = _engine_cores(tier, system, replicas)
        if reserved > tier.cores_per_server:
            at = system.document.where(("pools", name))
            what = f"engines keep {reserved} cores of each {tier.server.name}, which has {tier.cores_per_server}"
            raise DescriptionError(at, what, "use fewer replicas, or a server with more cores")


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
    at = system.document.where(("pools", name, "router"))
    return _named(system, ROUTERS, system.scenario.pools[name].router, "router", at)


def _balance(system: System) -> BalanceSpec | None:
    """Balance between pools and in queues, None where there is none. Raises DescriptionError for names that are not there."""
    scenario, where = system.scenario, system.document.where
    balance, stages = scenario.balance, scenario.stages
    chooser = _named(system, CHOOSERS, balance.choose, "chooser", where(("balance", "choose")))
    admission = _named(system, ADMISSIONS, balance.admission, "admission", where(("balance", "admission")))
    priorities = {
        name: _named(system, PRIORITIES, pool.priority, "priority", where(("pools", name, "priority")))
        for name, pool in scenario.pools.items()
        if pool.priority is not None
    }
    if balance.admission != "everybody" and scenario.slo.ttft is None:
        raise DescriptionError(where(("balance", "admission")), "needs an objective", "set slo.ttft")
    several = [stage for stage in ("understand", "tool") if len(stages.pools(stage)) > 1]
    if balance.steal and not several:
        raise DescriptionError(where(("balance", "steal")), "no stage has several pools", "list two under stages")
    if not several and not priorities and balance.admission == "everybody":
        return None
    cores = system.core_pools()
    operations = {
        (Stage[stage.upper()], pool): costs_on(system, pool)
        for stage, costs_on in (("understand", _understanding_on), ("tool", _tools_on))
        for pool in stages.pools(stage)
        if pool in cores
    }
    objective_s = scenario.slo.ttft.max_s if scenario.slo.ttft else inf
    rounds_left = {name: expected_rounds_left(kind) for name, kind in scenario.workload.classes.items()}
    return BalanceSpec(chooser, priorities, admission, objective_s, operations, rounds_left)


def _keep(system: System, replicas: dict[str, ReplicaSpec], drawn: Drawn) -> KeepSpec | None:
    """Which tasks stay at the edge; None where all go to the generate stage's own pool."""
    if (keep := system.scenario.keep) is None:
        return None
    policy = _named(system, KEEPERS, keep.policy, "keep policy", system.document.where(("keep", "policy")))
    return keep_spec(system, keep, policy, replicas[keep.pool], drawn.tasks)


def _named(system: System, known: dict[str, P], name: str, what: str, where: str) -> P:
    """The policy of that name: one of hsim's, or a function in a file of the user's."""
    if is_own(name):
        return own_policy(name, Path(system.document.file).parent, system.allow_code, where)  # type: ignore[return-value]
    if name not in known:
        raise MistakeError(where, f"there is no {what} {name!r}", did_you_mean(name, list(known)))
    return known[name]


def _understanding(system: System) -> dict[str, OperationCost]:
    cores = [pool for pool in system.scenario.stages.pools("understand") if pool in system.core_pools()]
    return _understanding_on(system, cores[0]) if cores else {}


def _understanding_on(system: System, pool: str) -> dict[str, OperationCost]:
    """What understanding costs on a pool's cores, by class."""
    return {
        name: operation_cost(system.tier_of(pool).cpu, kind.understand.op, system.figures)
        for name, kind in system.scenario.workload.classes.items()
        if kind.understand and kind.understand.op
    }


def _tool_costs(system: System) -> dict[str, OperationCost]:
    pools = system.scenario.stages.pools("tool")
    return _tools_on(system, pools[0]) if pools else {}


def _tools_on(system: System, pool: str) -> dict[str, OperationCost]:
    """What tools cost on a pool's cores, by name."""
    used = {tool for kind in system.scenario.workload.classes.values() for tool in kind.tools}
    cpu = system.tier_of(pool).cpu
    return {name: operation_cost(cpu, system.tools[name].operation, system.figures) for name in sorted(used)}
