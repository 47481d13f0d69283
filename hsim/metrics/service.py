"""Who was in service: for how long devices took new work or were broken, and what was lost with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hsim.log import Log, Outcome, Power, Service
from hsim.metrics.ledger import Window
from hsim.metrics.meters import inside, rows_of


@dataclass(frozen=True)
class DeviceTime:
    """Seconds of a pool's devices in a window: open to new work, broken (until they were open again), and in all."""

    open_s: float
    broken_s: float
    all_s: float


@dataclass(frozen=True)
class InService:
    """Device-seconds by pool; visits that were lost in a window, tokens that had been generated for them, joules of work
    that they had cost; and how often a server booted.
    """

    pools: dict[str, DeviceTime]
    lost_visits: int
    lost_tokens: int
    lost_j: float
    boots: int


def in_service(log: Log, tables: dict[str, Any], window: Window) -> InService:
    """What a window shows of what left service. Where nothing ever does, it says that all were open."""
    pools = {}
    for number, (name, pool) in enumerate(log.pools.items()):
        rows = rows_of(tables["service"], pool=number)
        out_s = dict.fromkeys(Service, 0.0)
        for device in pool.devices if len(rows["time_s"]) else ():
            mine = rows_of(rows, device=device)
            ends_s = np.append(mine["time_s"][1:], np.inf)
            start_s, end_s = inside(mine["time_s"], ends_s[: len(mine["time_s"])], window.start_s, window.end_s)
            for state in (Service.CLOSED, Service.BROKEN):
                out_s[state] += float((end_s - start_s)[mine["state"] == state].sum())
        all_s = len(pool.devices) * window.seconds
        broken_s = out_s[Service.BROKEN]
        pools[name] = DeviceTime(all_s - out_s[Service.CLOSED] - broken_s, broken_s, all_s)
    visits, losses, states = tables["visits"], tables["losses"], tables["states"]
    lost = rows_of(visits, within(visits["ended_s"], window), outcome=Outcome.LOST)
    boots = rows_of(states, within(states["time_s"], window), device=-1, state=Power.BOOT)
    return InService(
        pools=pools,
        lost_visits=len(lost["task"]),
        lost_tokens=int(losses["output_tokens"][within(losses["time_s"], window)].sum()),
        lost_j=float((lost["dynamic_j"] + lost["host_dynamic_j"]).sum()),
        boots=len(boots["host"]),
    )


def within(times_s: Any, window: Window) -> Any:
    """Which instants fall into a window, its end included."""
    return (times_s > window.start_s) & (times_s <= window.end_s)
