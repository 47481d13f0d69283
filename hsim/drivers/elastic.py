"""What goes out of service in a system: found to be possible, and put into the engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hsim.description.elastic import Failures, ReactiveScaling, Scaling
from hsim.description.scenario import EnginePool, FleetTier
from hsim.description.system import FilledPool, System
from hsim.description.yamlfile import KeyPath, did_you_mean
from hsim.engine.cores import Host
from hsim.engine.environment import EngineEnvironment
from hsim.engine.failures import Breaker, drain
from hsim.engine.governing import GovernorSpec
from hsim.engine.pool import Pool
from hsim.engine.replica import Replica
from hsim.engine.scaling import ReactiveScaler, ScaleSpec, ScheduledScaler, Timetable
from hsim.engine.service import ElasticPool, Member, Unit
from hsim.errors import DescriptionError, MistakeError
from hsim.policies.governing import GOVERNORS, GovernorPolicy
from hsim.policies.own import is_own, own_policy
from hsim.policies.scaling import SCALERS, ScalingPolicy
from hsim.units import HOUR_S
from hsim.workload.streams import quantiles, uniforms

Pools = Mapping[str, Pool[Any]]
P = TypeVar("P")


LONGEST = 1 - 1e-6  # what holds out longer than so many of all times hardly ever does


@dataclass(frozen=True)
class Elastic:
    """A system of which something goes out of service, and how its tiers and pools are scaled, by name."""

    system: System
    tiers: Mapping[str, ScaleSpec | Timetable]
    pools: Mapping[str, ScaleSpec | Timetable]

    def moves(self, pool: str) -> bool:
        """Whether devices of a pool leave service and come back."""
        own = self.system.scenario.pools[pool]
        return self._tier(pool).leaves or (isinstance(own, EnginePool) and own.leaves)

    def breaks(self, pool: str) -> bool:
        """Whether devices of a pool break down."""
        return bool(self._tier(pool).failures or getattr(self.system.scenario.pools[pool], "failures", None))

    def _tier(self, pool: str) -> FleetTier:
        return self.system.scenario.fleet[self.system.tier_of(pool).name]


def elastic_of(system: System) -> Elastic | None:
    """What goes out of service in a system; None where nothing does. Raises DescriptionError for what cannot be."""
    fleet = {name: tier for name, tier in system.scenario.fleet.items() if tier.leaves}
    pools = {name: pool for name, pool in system.engine_pools().items() if pool.leaves}
    if not fleet and not pools:
        return None
    _check_stages(system, [("fleet", n) for n in fleet] + [("pools", n) for n in pools])
    for name, tier in fleet.items():
        _check_tier(system, name, tier)
    for name, pool in pools.items():
        _check_pool(system, name, pool)
    return Elastic(
        system,
        {n: _scaling(system, t.scaling, t.count, ("fleet", n, "scaling")) for n, t in fleet.items() if t.scaling},
        {n: _scaling(system, p.scaling, p.replicas, ("pools", n, "scaling")) for n, p in pools.items() if p.scaling},
    )


def _check_tier(system: System, name: str, tier: FleetTier) -> None:
    where = system.document.where
    for number in tier.drains:
        if number >= tier.count:
            at = where(("fleet", name, "drains", str(number)))
            raise DescriptionError(at, f"the tier has {tier.count} servers", f"they are 0 to {tier.count - 1}")
    if tier.scaling and tier.sleep_after_s is not None:
        raise DescriptionError(
            where(("fleet", name, "sleep_after_s")), "scaling says which servers are on", "leave one of them out"
        )
    if tier.failures:
        engines = [system.engines[n] for n in system.engine_pools() if system.tier_of(n).name == name]
        comes_up_s = system.figures.value(system.tiers[name].server, "boot_s")
        comes_up_s += max((system.figures.value(engine, "load_s") for engine in engines), default=0.0)
        _check_holds_out(system, tier.failures, comes_up_s, ("fleet", name, "failures"))


def _check_pool(system: System, name: str, pool: FilledPool) -> None:
    where = system.document.where
    if pool.scaling:
        if pool.unload_after_s is not None:
            at = where(("pools", name, "unload_after_s"))
            raise DescriptionError(at, "scaling says which replicas are loaded", "leave one of them out")
        if system.scenario.fleet[system.tier_of(name).name].scaling:
            at = where(("pools", name, "scaling"))
            raise DescriptionError(at, "its tier is scaled too, and one would undo the other", "leave one of them out")
        if pool.scaling.standby:
            at = where(("pools", name, "scaling", "standby"))
            raise DescriptionError(at, "replicas that do not serve all stand by without a model", "leave it out")
    if pool.failures:
        comes_up_s = system.figures.value(system.engines[name], "load_s")
        _check_holds_out(system, pool.failures, comes_up_s, ("pools", name, "failures"))


def _check_stages(system: System, paths: Sequence[KeyPath]) -> None:
    """Raises DescriptionError where what leaves would be sent KV cache, or be one of several pools of a stage."""
    stages, where = system.scenario.stages, system.document.where
    for path in paths:
        if stages.prefill:
            what = "leaves service, and KV cache that is handed over would be lost with it"
            raise DescriptionError(where(path), what, "leave stages.prefill out")
        for stage in ("understand", "tool"):
            if len(stages.pools(stage)) > 1:
                what = f"leaves service, and the stage {stage!r} has several pools"
                raise DescriptionError(where(path), what, f"name one pool under stages.{stage}")


def _check_holds_out(system: System, failures: Failures, needed_s: float, path: KeyPath) -> None:
    """Raises DescriptionError where something would break down before it has come up, each time for good."""
    most_s = float(quantiles(failures.mtbf_s, np.array([LONGEST]))[0])
    if most_s <= needed_s:
        at = system.document.where((*path, "mtbf_s"))
        what = f"it takes {needed_s:g} s to come up again, and breaks down after {most_s:g} s at most"
        raise DescriptionError(at, what, "give it longer")


def governors_of(system: System) -> dict[str, GovernorSpec]:
    """How the caps of pools follow their load. Raises DescriptionError for a policy that is not there."""
    found = {}
    for name, pool in system.engine_pools().items():
        if governor := pool.governor:
            policy: GovernorPolicy = _policy(system, GOVERNORS, governor.policy, ("pools", name, "governor", "policy"))
            wanted = partial(_with, policy, governor.target, len(governor.caps_w))
            found[name] = GovernorSpec(governor.caps_w, wanted, governor.every_s, governor.hold_s, governor.takes_s)
    return found


def _scaling(system: System, scaling: Scaling, count: int, path: KeyPath) -> ScaleSpec | Timetable:
    """Raises DescriptionError for a policy that is not there, and numbers that the fleet cannot hold."""
    where = system.document.where
    if not isinstance(scaling, ReactiveScaling):
        for start, end, wanted in scaling.stretches():
            if wanted > count:
                at = where((*path, "hours", f"{start}-{end}"))
                raise DescriptionError(at, f"{wanted} are to serve, and there are {count}", "raise the count")
        return Timetable([(start * HOUR_S, wanted) for start, _, wanted in scaling.stretches()], scaling.standby)
    for key in ("floor", "ceiling"):
        value = getattr(scaling, key)
        if value is not None and value > count:
            what = f"{value} is more than the {count} that there are"
            raise DescriptionError(where((*path, key)), what, f"use at most {count}, or raise the count")
    policy: ScalingPolicy = _policy(system, SCALERS, scaling.policy, (*path, "policy"))
    return ScaleSpec(
        desired=partial(_with, policy, scaling.target),
        every_s=scaling.every_s,
        cooldown_s=scaling.cooldown_s,
        floor=scaling.floor,
        ceiling=scaling.ceiling or count,
        standby=scaling.standby,
    )


def _with(policy: Callable[..., int], *rest: Any) -> int:
    """What a policy says of a view, which comes last here."""
    *numbers, view = rest
    return policy(view, *numbers)


def _policy(system: System, known: Mapping[str, P], name: str, path: KeyPath) -> P:
    """The policy of that name: one of hsim's, or a function in a file of the user's."""
    where = system.document.where(path)
    if is_own(name):
        return own_policy(name, Path(system.document.file).parent, system.allow_code, where)  # type: ignore[return-value]
    if name not in known:
        raise MistakeError(where, f"there is no policy {name!r}", did_you_mean(name, list(known)))
    return known[name]


# ---- into the engine


def assemble(env: EngineEnvironment, prepared: Elastic, hosts: Mapping[str, Sequence[Host]], pools: Pools) -> None:
    """Make units and members of all that leaves service, and set on them breakdowns, drains and scalers."""
    system, count = prepared.system, itertools.count()
    servers: dict[int, Unit] = {}
    for tier, its_hosts in hosts.items():
        for host in its_hosts if system.scenario.fleet[tier].leaves else ():
            assert host.sleeper
            servers[host.index] = Unit(next(count), host.sleeper)
    replicas: dict[str, list[Unit]] = {}
    elastic = {name: pool for name, pool in pools.items() if isinstance(pool, ElasticPool)}
    for name, pool in elastic.items():
        devices: Sequence[Any] = pool.devices
        for device in devices:
            server, sleeper = servers.get(device.host.index), device.host.sleeper
            units = [server] if server else []
            if isinstance(device, Replica) and device.sleeper:
                sleeper = device.sleeper
                units.append(Unit(next(count), sleeper, server))
                replicas.setdefault(name, []).append(units[-1])
            assert sleeper
            Member(pool, device, sleeper, units)
    for tier, spec in system.scenario.fleet.items():
        its_units = [servers[host.index] for host in hosts[tier]] if spec.leaves else []
        _break(env, system, tier, its_units, spec.failures)
        for number, planned in sorted(spec.drains.items()):
            drain(env, its_units[number], planned.at_s, planned.for_s)
        on_it = [pool for name, pool in elastic.items() if system.tier_of(name).name == tier]
        _scale(env, next(count), its_units, on_it, prepared.tiers.get(tier))
    for name, pool_spec in system.engine_pools().items():
        _break(env, system, name, replicas.get(name, []), pool_spec.failures)
        own = [elastic[name]] if name in elastic else []
        _scale(env, next(count), replicas.get(name, []), own, prepared.pools.get(name))


def _break(env: EngineEnvironment, system: System, name: str, units: Sequence[Unit], failures: Failures | None) -> None:
    """Let each unit of a tier or a pool break down, by draws keyed by its number there and that of the breakdown."""
    if failures is None:
        return

    def draw(number: int, nth: int) -> tuple[float, float]:
        seconds = []
        for what, spread in (("mtbf", failures.mtbf_s), ("repair", failures.repair_s)):
            u = uniforms(system.scenario.seed, f"{what} of {name}", 1, number, nth)
            seconds.append(float(quantiles(spread, u)[0]))
        return seconds[0], seconds[1]

    for number, unit in enumerate(units):
        Breaker(env, unit, partial(draw, number))


def _scale(
    env: EngineEnvironment,
    number: int,
    units: Sequence[Unit],
    pools: Sequence[ElasticPool[Any]],
    spec: ScaleSpec | Timetable | None,
) -> None:
    if isinstance(spec, Timetable):
        ScheduledScaler(env, number, units, spec)
    elif spec:
        ReactiveScaler(env, number, units, pools, spec)
