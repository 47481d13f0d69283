"""The joule ledger: every joule of a window booked to a task's stage or to a named idle account."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hsim.log import Log, Stage
from hsim.metrics.accounts import Accounts

Attribution = Literal["marginal", "occupancy", "full"]
Boundary = Literal["accelerator", "wall", "facility"]

ATTRIBUTIONS: tuple[Attribution, ...] = ("marginal", "occupancy", "full")
BOUNDARIES: tuple[Boundary, ...] = ("accelerator", "wall", "facility")


@dataclass(frozen=True)
class Window:
    """From the first arrival to the last completion; arrivals_end_s is the last arrival: what follows is the drain."""

    start_s: float
    arrivals_end_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Entry:
    """Joules on one account, behind the power supply.

    `kind` is dynamic (work for tasks), occupied (idle draw of a device while it serves a task) or idle (of nobody).
    `component` is accelerator, cpu, base or link.
    """

    account: str
    kind: Literal["dynamic", "occupied", "idle"]
    component: Literal["accelerator", "cpu", "base", "link"]
    tier: str
    joules: float


@dataclass(frozen=True)
class Ledger:
    """The entries of a window, and what their tiers' supplies and the site's PUE add."""

    window: Window
    entries: tuple[Entry, ...]
    psu_efficiency: dict[str, float]
    pue: float

    def joules(self, attribution: Attribution = "full", boundary: Boundary = "facility") -> float:
        """Joules of the window by attribution, inside a measurement boundary."""
        kinds = {"marginal": ("dynamic",), "occupancy": ("dynamic", "occupied")}.get(attribution)
        return sum(self._within(e, boundary) for e in self.entries if kinds is None or e.kind in kinds)

    def _within(self, entry: Entry, boundary: Boundary) -> float:
        if boundary == "accelerator":
            return entry.joules if entry.component == "accelerator" else 0.0
        wall_j = entry.joules / self.psu_efficiency.get(entry.tier, 1.0)
        return wall_j if boundary == "wall" else wall_j * self.pue

    def accounts(self) -> list[tuple[str, str, float]]:
        """(account, kind, joules) with the losses as accounts of their own; their sum is joules()."""
        by_account: dict[tuple[str, str], float] = {}
        for entry in self.entries:
            key = (entry.account, entry.kind)
            by_account[key] = by_account.get(key, 0.0) + entry.joules
        direct_j = sum(entry.joules for entry in self.entries)
        wall_j, facility_j = self.joules("full", "wall"), self.joules()
        rows = [(account, kind, joules) for (account, kind), joules in by_account.items()]
        return [*rows, ("power supplies", "loss", wall_j - direct_j), ("site (PUE)", "loss", facility_j - wall_j)]


def keep_books(log: Log, tables: dict[str, Any], accounts: Accounts, window: Window) -> Ledger:
    """Book every joule of the window."""
    entries = [
        *_task_entries(log, tables["visits"]),
        *_transfer_entries(tables["transfers"]),
        *_idle_accelerators(log, tables["steps"], window),
        *_idle_hosts(log, tables["cores"], window),
    ]
    for name, tier in accounts.tiers.items():
        entries.append(
            Entry(f"{name} servers: fans, memory, network", "idle", "base", name, tier.base_w * window.seconds)
        )
        if tier.spare_accelerators_w:
            spare_j = tier.spare_accelerators_w * window.seconds
            entries.append(Entry(f"{name} spare accelerators", "idle", "accelerator", name, spare_j))
    efficiency = {name: tier.psu_efficiency for name, tier in accounts.tiers.items()}
    return Ledger(window, tuple(entries), efficiency, accounts.site.pue)


def _task_entries(log: Log, visits: Any) -> Iterator[Entry]:
    tier_of_host = np.array([device.tier for device in log.hosts])
    tier_of_accelerator = np.array([device.tier for device in log.accelerators])
    for stage in Stage:
        mine = visits["stage"] == stage
        devices = visits["device"][mine].astype(np.int64)
        generates = stage in (Stage.PREFILL, Stage.GENERATE)
        tiers = (tier_of_accelerator if generates else tier_of_host)[devices] if len(devices) else np.array([])
        for tier in np.unique(tiers):
            here = tiers == tier

            def total(column: str, mine: Any = mine, here: Any = here) -> float:
                return float(visits[column][mine][here].sum())

            name = stage.name.lower()
            component: Literal["accelerator", "cpu"] = "accelerator" if generates else "cpu"
            yield Entry(name, "dynamic", component, str(tier), total("dynamic_j"))
            yield Entry(name, "occupied", component, str(tier), total("idle_j"))
            if generates:
                yield Entry(f"{name}: host cores", "dynamic", "cpu", str(tier), total("host_dynamic_j"))
                yield Entry(f"{name}: host cores", "occupied", "cpu", str(tier), total("host_idle_j"))


def _transfer_entries(transfers: Any) -> Iterator[Entry]:
    if len(transfers["joules"]):
        yield Entry("transfer", "dynamic", "link", "", float(transfers["joules"].sum()))


def _idle_accelerators(log: Log, steps: Any, window: Window) -> Iterator[Entry]:
    busy_s = busy_seconds(log, steps)
    by_pool: dict[tuple[str, str], float] = {}
    for device, its_busy_s in zip(log.accelerators, busy_s, strict=True):
        key = (device.name.rpartition("/")[0], device.tier)
        by_pool[key] = by_pool.get(key, 0.0) + device.idle_w * (window.seconds - its_busy_s)
    for (pool, tier), joules in by_pool.items():
        yield Entry(f"{pool} accelerators idle", "idle", "accelerator", tier, joules)


def _idle_hosts(log: Log, cores: Any, window: Window) -> Iterator[Entry]:
    busy_core_s = busy_core_seconds(log, cores, window)
    by_tier: dict[str, float] = {}
    for device, its_busy_s in zip(log.hosts, busy_core_s, strict=True):
        idle_core_s = device.capacity * window.seconds - its_busy_s
        by_tier[device.tier] = by_tier.get(device.tier, 0.0) + device.idle_w / device.capacity * idle_core_s
    for tier, joules in by_tier.items():
        yield Entry(f"{tier} cores idle", "idle", "cpu", tier, joules)


def busy_seconds(log: Log, steps: Any) -> list[float]:
    """Seconds that each accelerator group spent in steps."""
    durations = steps["end_s"] - steps["start_s"]
    return [float(durations[steps["device"] == i].sum()) for i in range(len(log.accelerators))]


def busy_core_seconds(log: Log, cores: Any, window: Window) -> list[float]:
    """Core-seconds that each host's cores were busy in the window."""
    totals = []
    for i in range(len(log.hosts)):
        mine = cores["host"] == i
        times = np.append(cores["time_s"][mine], window.end_s)
        totals.append(float((np.diff(times) * cores["busy"][mine]).sum()))
    return totals
