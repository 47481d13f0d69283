"""Worlds: other values, within their bounds, of the figures that are known only roughly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.description.system import Figures, FigureUse, System
from hsim.log import Log
from hsim.metrics.accounts import Accounts, TierAccounts, accounts_of
from hsim.metrics.ledger import Ledger
from hsim.metrics.meters import ServerRest, rest_of, rows_of
from hsim.workload.streams import uniforms

Floats = NDArray[np.float64]
World = dict[str, float]


def rough_figures(system: System) -> dict[str, FigureUse]:
    """The figures that a run stood on whose bounds differ, by name."""
    uses = system.figures.used.items()
    return {name: use for name, use in sorted(uses) if use.low is not None and use.low != use.high}


def of_the_books(system: System) -> set[str]:
    """The names of figures that change no time and no step's joules: only the books read them."""
    figures = _fresh(system, system.figures.assume)
    accounts_of(replace(system, figures=figures))
    return set(figures.used)


def draw_worlds(rough: Mapping[str, FigureUse], count: int, seed: int) -> list[World]:
    """So many worlds. Each figure is as likely above its value as below, evenly on either side.

    Draws are keyed by the figure's name, so that scenarios share worlds, and stratified (Latin hypercube).
    """
    worlds: list[World] = [{} for _ in range(count)]
    for name, use in rough.items():
        assert use.low is not None and use.high is not None
        u = uniforms(seed, f"world {name}", count)
        strata = np.argsort(np.argsort(u))
        levels = (strata + uniforms(seed, f"stratum {name}", count)) / count
        values = np.interp(levels, [0.0, 0.5, 1.0], [use.low, use.value, use.high])
        for world, value in zip(worlds, values.tolist(), strict=True):
            world[name] = value
    return worlds


def system_in(system: System, world: World) -> System:
    """The system with the figures of a world in place of its own."""
    assume = {**system.figures.assume, **world}
    return replace(system, figures=_fresh(system, assume))


def _fresh(system: System, assume: Mapping[str, float]) -> Figures:
    return system.figures.unread(assume)


def site_joules_in(worlds: Sequence[Accounts], nominal: Accounts, ledger: Ledger, log: Log) -> dict[str, Floats]:
    """Facility joules of a ledger's window at each site by the books of other worlds. Shapes (worlds,)."""
    cores, states, window = log.cores.arrays(), log.states.arrays(), ledger.window
    totals = {site: np.zeros(len(worlds)) for site in nominal.sites}
    for name, own in nominal.tiers.items():
        entries = [e.joules for e in ledger.entries if e.component == "accelerator" and e.tier == name]
        chips_j = sum(entries) - own.spare_accelerators_w * window.seconds
        hosts = [i for i, host in enumerate(log.hosts) if host.tier == name]
        rests = [rest_of(states, log, host, window.start_s, window.end_s) for host in hosts] if own.rest else []
        chips_j -= _rested_chips_j(own, rests, log)
        levels, seconds = _seconds_at_levels(cores, hosts, window.start_s, window.end_s)
        for k, world in enumerate(worlds):
            tier = world.tiers[name]
            constant_w = tier.base_w + tier.spare_accelerators_w + len(hosts) * tier.host.idle_w
            busy_j = sum(tier.host.dynamic_w(n) * s for n, s in zip(levels, seconds, strict=True))
            rested_j = _rested_chips_j(tier, rests, log) + _rested_servers_j(tier, rests)
            totals[own.site][k] += (chips_j + constant_w * window.seconds + busy_j + rested_j) / tier.psu_efficiency
    for entry in ledger.entries:
        if entry.component == "link":
            totals[entry.site] += entry.joules
    return {name: totals[name] * site.pue for name, site in nominal.sites.items()}


def _rested_chips_j(tier: TierAccounts, rests: Sequence[ServerRest], log: Log) -> float:
    """Joules of accelerators without a model, less those that spare ones save while their server is down."""
    if tier.rest is None:
        return 0.0
    chips_s = sum(log.accelerators[i].accelerators * bare_s for rest in rests for i, bare_s in rest.bare_s.items())
    saved_j = sum(w * rest.down_s for w, rest in zip(tier.rest.spare_accelerators_w, rests, strict=True))
    return tier.rest.bare_accelerator_w * chips_s - saved_j


def _rested_servers_j(tier: TierAccounts, rests: Sequence[ServerRest]) -> float:
    """Joules of servers that are off and that boot, less what they would have drawn had they been on and idle."""
    if tier.rest is None:
        return 0.0
    on_w = tier.rest.base_w + tier.host.idle_w
    return sum(tier.rest.off_w * r.off_s + tier.rest.boot_w * r.boot_s - on_w * r.down_s for r in rests)


def _seconds_at_levels(cores: Any, hosts: list[int], start_s: float, end_s: float) -> tuple[list[int], list[float]]:
    """For how long each number of cores of a host was busy inside a window, added up over hosts."""
    at_level: dict[int, float] = {}
    for host in hosts:
        rows = rows_of(cores, host=host)
        edges = np.clip(np.concatenate(([0.0], rows["time_s"], [max(end_s, 0.0)])), start_s, end_s)
        busy = np.concatenate(([0.0], rows["busy"]))
        for level in np.unique(busy):
            at_level[int(level)] = at_level.get(int(level), 0.0) + float(np.diff(edges)[busy == level].sum())
    return list(at_level), list(at_level.values())
