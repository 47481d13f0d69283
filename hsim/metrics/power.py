"""Power over time, rebuilt from the log alone: the check on the ledger, by code that shares nothing with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.log import Log, Power
from hsim.metrics.accounts import Accounts, TierAccounts
from hsim.metrics.ledger import Window


def facility_joules(log: Log, tables: dict[str, Any], accounts: Accounts, window: Window) -> float:
    """The integral of facility power over the window."""
    wall_j = dict.fromkeys(accounts.sites, 0.0)
    for name, tier in accounts.tiers.items():
        direct_j = (tier.base_w + tier.spare_accelerators_w) * window.seconds
        for i, device in enumerate(log.accelerators):
            if device.tier == name:
                direct_j += device.idle_w * window.seconds + _step_joules(tables["steps"], i, window)
        for i, device in enumerate(log.hosts):
            if device.tier == name:
                times, watts = _host_power(tables["cores"], i, tier.host.dynamic_w, window)
                direct_j += float(np.sum((device.idle_w + watts) * np.diff(times)))
        if tier.rest:
            direct_j -= _rested_joules(log, tables["states"], name, tier, window)
        wall_j[tier.site] += direct_j / tier.psu_efficiency
    for link, name in enumerate(log.links):
        moved_j, ends = _transfer_joules(tables["transfers"], link, window), accounts.ends_of(name)
        for site in ends:
            wall_j[site] += moved_j / len(ends)
    return sum(joules * accounts.sites[site].pue for site, joules in wall_j.items())


def _rested_joules(log: Log, states: Any, tier: str, accounts: TierAccounts, window: Window) -> float:
    """What servers saved beside such as are always on with their models loaded: a walk over the states of each."""
    rest, saved_j = accounts.rest, 0.0
    assert rest is not None
    servers = [i for i, host in enumerate(log.hosts) if host.tier == tier]
    for server, spare_w in zip(servers, rest.spare_accelerators_w, strict=True):
        engines = {i: engine for i, engine in enumerate(log.accelerators) if engine.host == server}
        always_w = rest.base_w + spare_w + log.hosts[server].idle_w + sum(e.idle_w for e in engines.values())
        now, since_s = {-1: Power.IDLE, **dict.fromkeys(engines, Power.LOADED)}, window.start_s
        mine = states["host"] == server
        changes = zip(*(states[column][mine].tolist() for column in ("time_s", "device", "state")), strict=True)
        for time_s, device, state in [*changes, (window.end_s, -1, now[-1])]:
            until_s = min(max(time_s, since_s), window.end_s)
            if now[-1] == Power.IDLE:
                watts = rest.base_w + spare_w + log.hosts[server].idle_w
                for i, engine in engines.items():
                    loaded = now[i] == Power.LOADED
                    watts += engine.idle_w if loaded else engine.accelerators * rest.bare_accelerator_w
            else:
                watts = rest.off_w if now[-1] == Power.OFF else rest.boot_w
            saved_j += (always_w - watts) * (until_s - since_s)
            since_s, now[int(device)] = until_s, Power(int(state))
    return saved_j


def _step_joules(steps: Any, device: int, window: Window) -> float:
    """Joules above idle of one device's steps: each whole row in closed form, a row cut by the window step by step."""
    mine = np.flatnonzero(steps["device"] == device)
    rows = {name: column[mine] for name, column in steps.items()}
    whole = (rows["start_s"] >= window.start_s) & (rows["end_s"] <= window.end_s)
    n = rows["steps"][whole]
    total = float(np.sum(n * rows["joules"][whole] + n * (n - 1) / 2 * rows["joules_growth"][whole]))
    cut = ~whole & (rows["end_s"] > window.start_s) & (rows["start_s"] < window.end_s)
    for row in np.flatnonzero(cut):
        k = np.arange(int(rows["steps"][row]))
        seconds = rows["seconds"][row] + k * rows["seconds_growth"][row]
        joules = rows["joules"][row] + k * rows["joules_growth"][row]
        ends = rows["start_s"][row] + np.cumsum(seconds)
        inside = np.clip(ends, window.start_s, window.end_s) - np.clip(ends - seconds, window.start_s, window.end_s)
        total += float(np.sum(joules * inside / seconds))
    return total


def _host_power(
    cores: Any, host: int, dynamic_w: Any, window: Window
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of the window's pieces of constant load, and watts above idle in each. Shapes (n+1,) and (n,)."""
    mine = cores["host"] == host
    times, busy = cores["time_s"][mine], cores["busy"][mine]
    before = int(np.searchsorted(times, window.start_s, side="right"))
    start = busy[before - 1] if before else 0.0
    upto = int(np.searchsorted(times, window.end_s, side="left"))
    edges = np.concatenate(([window.start_s], times[before:upto], [window.end_s]))
    levels = np.concatenate(([start], busy[before:upto]))
    watts_at = {level: dynamic_w(int(level)) for level in set(levels.tolist())}
    return edges, np.array([watts_at[level] for level in levels])


def _transfer_joules(transfers: Any, link: int, window: Window) -> float:
    """Joules of a link's transfers, spread evenly from start to end."""
    mine = transfers["link"] == link
    start, end, joules = (transfers[column][mine] for column in ("start_s", "end_s", "joules"))
    inside = np.clip(end, window.start_s, window.end_s) - np.clip(start, window.start_s, window.end_s)
    return float(np.sum(joules * np.divide(inside, end - start, out=np.ones_like(end), where=end > start)))
