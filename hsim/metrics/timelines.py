"""Quantities over time, read off a log: power, queues, batches, KV cache, tasks in progress."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.log import Log, Power
from hsim.metrics.accounts import Accounts
from hsim.metrics.meters import rows_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Timeline:
    """A quantity over time, from time 0 on: from times_s[i] on it is values[i]. Shapes (points,)."""

    name: str
    unit: str
    times_s: Floats
    values: Floats

    def at(self, times_s: Floats) -> Floats:
        """The values at instants. Shape of times_s."""
        return np.asarray(self.values[np.searchsorted(self.times_s, times_s, side="right") - 1])

    def means(self, edges_s: Floats) -> Floats:
        """Means over time between neighbouring edges, exact: no peak moves the integral. Shape (edges - 1,)."""
        whole = np.concatenate(([0.0], np.cumsum(self.values[:-1] * np.diff(self.times_s))))
        before = np.searchsorted(self.times_s, edges_s, side="right") - 1
        integral = whole[before] + self.values[before] * (edges_s - self.times_s[before])
        return np.asarray(np.diff(integral) / np.diff(edges_s))


@dataclass(frozen=True)
class Timelines:
    """What a path looks like over time.

    `facility_w` are parts of facility power, losses included, which add up to it; `board_w` what each accelerator
    group and each server's CPU packages draw themselves. Queues are by pool, batches (decoding sequences) and KV cache
    (used fraction) by replica. Within a run of equal steps watts and KV cache are the run's means.
    """

    facility_w: tuple[Timeline, ...]
    board_w: tuple[Timeline, ...]
    queues: tuple[Timeline, ...]
    batches: tuple[Timeline, ...]
    kv_used: tuple[Timeline, ...]
    in_progress: Timeline


def timelines_of(log: Log, accounts: Accounts) -> Timelines:
    """All timelines of a log."""
    tables = log.arrays()
    tasks = tables["tasks"]
    return Timelines(
        facility_w=tuple(_facility_w(log, tables, accounts)),
        board_w=tuple(_board_w(log, tables, accounts)),
        queues=tuple(_queues(log, tables["visits"])),
        batches=tuple(_batches(log, tables["steps"])),
        kv_used=tuple(_kv_used(log, tables["steps"])),
        in_progress=stacked("tasks in progress", "tasks", tasks["arrival_s"], tasks["ended_s"]),
    )


def stacked(name: str, unit: str, start_s: Floats, end_s: Floats, heights: Floats | float = 1.0) -> Timeline:
    """So much from each start to its end, on top of each other."""
    heights = np.broadcast_to(np.asarray(heights, dtype=np.float64), start_s.shape)
    return _of_changes(name, unit, np.concatenate((start_s, end_s)), np.concatenate((heights, -heights)))


def _of_changes(name: str, unit: str, times_s: Floats, changes: Floats) -> Timeline:
    """What starts at 0 at time 0 and changes by so much at each time; of what happens at one instant, how it ends."""
    order = np.argsort(times_s, kind="stable")
    times_s, levels = np.append(0.0, times_s[order]), np.append(0.0, np.cumsum(changes[order]))
    last = np.append(np.diff(times_s) > 0, True)
    return Timeline(name, unit, times_s[last], levels[last])


def _queues(log: Log, visits: Any) -> Iterator[Timeline]:
    for number, name in enumerate(log.pools):
        mine = rows_of(visits, pool=number)
        yield stacked(name, "visits", mine["queued_s"], mine["started_s"])


def _batches(log: Log, steps: Any) -> Iterator[Timeline]:
    for i, device in enumerate(log.accelerators):
        mine = rows_of(steps, device=i)
        yield stacked(device.name, "sequences", mine["start_s"], mine["end_s"], mine["decodes"])


def _kv_used(log: Log, steps: Any) -> Iterator[Timeline]:
    for pool in log.pools.values():
        for i in pool.devices if pool.engine else ():
            mine = rows_of(steps, device=i)
            tokens = mine["context_tokens"] + (mine["steps"] - 1) / 2 * mine["decodes"] + mine["chunk_context_tokens"]
            used = tokens / pool.kv_capacity_tokens
            yield stacked(log.accelerators[i].name, "of its KV cache", mine["start_s"], mine["end_s"], used)


def _steps_w(steps: Any) -> Floats:
    """Mean watts above idle of each run of steps; those of runs that take no time are left out of any picture."""
    n, seconds = steps["steps"], steps["end_s"] - steps["start_s"]
    joules = n * (steps["joules"] + (n - 1) / 2 * steps["joules_growth"])
    return np.asarray(np.divide(joules, seconds, out=np.zeros_like(joules), where=seconds > 0))


@dataclass(frozen=True)
class _Idle:
    """What one server draws while nobody works, in the power states that it and its engines are in."""

    host: Timeline
    engines: dict[int, Timeline]
    spare: Timeline
    base: Timeline


def _idle_of(log: Log, tables: Any, accounts: Accounts, server: int) -> _Idle:
    host = log.hosts[server]
    tier, states = accounts.tiers[host.tier], rows_of(tables["states"], host=server)
    servers = [i for i, other in enumerate(log.hosts) if other.tier == host.tier]
    spare_w, base_w = tier.spare_accelerators_w / len(servers), tier.base_w / len(servers)
    down_w, bare_w = {Power.OFF: 0.0, Power.BOOT: 0.0}, 0.0
    if rest := tier.rest:
        spare_w, bare_w = rest.spare_accelerators_w[servers.index(server)], rest.bare_accelerator_w
        down_w = {Power.OFF: rest.off_w, Power.BOOT: rest.boot_w}
    times_s = np.unique(np.append(0.0, states["time_s"]))
    own = _state_at(states, -1, times_s, Power.IDLE)
    on = own == Power.IDLE

    def line(name: str, watts: Floats | float, down: Floats | float = 0.0) -> Timeline:
        return Timeline(name, "W", times_s, np.where(on, watts, down))

    engines = {}
    for i, engine in enumerate(log.accelerators):
        if engine.host == server:
            loaded = _state_at(states, i, times_s, Power.LOADED) == Power.LOADED
            engines[i] = line(engine.name, np.where(loaded, engine.idle_w, engine.accelerators * bare_w))
    base = line(host.name, base_w, np.where(own == Power.OFF, down_w[Power.OFF], down_w[Power.BOOT]))
    return _Idle(line(f"{host.name} cores", host.idle_w), engines, line(host.name, spare_w), base)


def _state_at(states: Any, device: int, times_s: Floats, at_first: Power) -> Floats:
    mine = rows_of(states, device=device)
    found = np.append(float(at_first), mine["state"])
    return np.asarray(found[np.searchsorted(mine["time_s"], times_s, side="right")])


def _steps_of(log: Log, tables: Any, device: int) -> Timeline:
    """Watts above idle of an accelerator group."""
    mine = rows_of(tables["steps"], device=device)
    return stacked(log.accelerators[device].name, "W", mine["start_s"], mine["end_s"], _steps_w(mine))


def _cores_of(log: Log, tables: Any, accounts: Accounts, server: int) -> Timeline:
    """Watts above idle of the CPU packages of a server."""
    host, mine = log.hosts[server], rows_of(tables["cores"], host=server)
    busy = _of_changes(f"{host.name} cores", "W", mine["time_s"], np.diff(mine["busy"], prepend=0.0))
    levels, which = np.unique(busy.values, return_inverse=True)
    watts = np.array([accounts.tiers[host.tier].host.dynamic_w(round(level)) for level in levels])
    return replace(busy, values=watts[which])


def _board_w(log: Log, tables: Any, accounts: Accounts) -> Iterator[Timeline]:
    idle = [_idle_of(log, tables, accounts, server) for server in range(len(log.hosts))]
    for i, device in enumerate(log.accelerators):
        yield _sum(device.name, [_steps_of(log, tables, i), idle[device.host].engines[i]])
    for server, own in enumerate(idle):
        yield _sum(own.host.name, [_cores_of(log, tables, accounts, server), own.host])


def _facility_w(log: Log, tables: Any, accounts: Accounts) -> Iterator[Timeline]:
    """Accelerators, cores and the rest of each tier, and links: with what supplies and site lose for them."""
    for name, tier in accounts.tiers.items():
        gross = accounts.sites[tier.site].pue / tier.psu_efficiency
        servers = [i for i, host in enumerate(log.hosts) if host.tier == name]
        idle = [_idle_of(log, tables, accounts, server) for server in servers]
        chips = [_steps_of(log, tables, i) for i, device in enumerate(log.accelerators) if device.tier == name]
        if chips or tier.spare_accelerators_w:
            resting = [line for own in idle for line in (*own.engines.values(), own.spare)]
            yield _sum(f"{name} accelerators", chips + resting, gross)
        cores = [_cores_of(log, tables, accounts, server) for server in servers]
        yield _sum(f"{name} cores", cores + [own.host for own in idle], gross)
        yield _sum(f"{name} fans, memory, network", [own.base for own in idle], gross)
    transfers = tables["transfers"]
    seconds = transfers["end_s"] - transfers["start_s"]
    ends = [[accounts.sites[site].pue for site in accounts.ends_of(name)] for name in log.links]
    pue = np.array([sum(its) / len(its) for its in ends] or [1.0])[transfers["link"].astype(np.int64)]
    watts = np.divide(transfers["joules"] * pue, seconds, out=np.zeros_like(seconds), where=seconds > 0)
    if len(watts):
        yield stacked("links", "W", transfers["start_s"], transfers["end_s"], watts)


def _sum(name: str, parts: list[Timeline], times: float = 1.0) -> Timeline:
    changes = np.concatenate([np.diff(part.values, prepend=0.0) for part in parts])
    return _of_changes(name, "W", np.concatenate([part.times_s for part in parts]), times * changes)
