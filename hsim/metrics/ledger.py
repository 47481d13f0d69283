"""The joule ledger: every joule of a window booked to a task's stage or to a named idle account."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hsim.description.sites import HERE
from hsim.log import Log, Stage
from hsim.metrics.accounts import Accounts, TierAccounts
from hsim.metrics.meters import HostMeter, ServerRest, host_meters, inside, rest_of, rows_of, steps_until

Attribution = Literal["marginal", "occupancy", "full"]
Boundary = Literal["accelerator", "wall", "facility"]
Kind = Literal["dynamic", "occupied", "idle"]
Component = Literal["accelerator", "cpu", "base", "link"]

ATTRIBUTIONS: tuple[Attribution, ...] = ("marginal", "occupancy", "full")
BOUNDARIES: tuple[Boundary, ...] = ("accelerator", "wall", "facility")


@dataclass(frozen=True)
class Window:
    """A stretch of a run; after arrivals_end_s nobody arrives, and what follows is the drain.

    A terminating run's window goes from its first arrival to its last completion. A steady one's goes from one
    arrival to another, while others arrive before and after: tasks are in progress at both its edges.
    """

    start_s: float
    arrivals_end_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Entry:
    """Joules on one account, behind the power supply, drawn at a site.

    `kind` is dynamic (work for tasks), occupied (idle draw of a device while it serves a task) or idle (of nobody).
    `component` is accelerator, cpu, base or link.
    """

    account: str
    kind: Kind
    component: Component
    tier: str
    joules: float
    site: str = HERE


@dataclass(frozen=True)
class Ledger:
    """The entries of a window, and what their tiers' supplies and their sites' PUE add."""

    window: Window
    entries: tuple[Entry, ...]
    psu_efficiency: dict[str, float]
    pue: dict[str, float]

    def joules(self, attribution: Attribution = "full", boundary: Boundary = "facility") -> float:
        """Joules of the window by attribution, inside a measurement boundary."""
        kinds = {"marginal": ("dynamic",), "occupancy": ("dynamic", "occupied")}.get(attribution)
        return sum(self._within(e, boundary) for e in self.entries if kinds is None or e.kind in kinds)

    def joules_at(self, site: str, boundary: Boundary = "facility") -> float:
        """Joules of the window that were drawn at a site."""
        return sum(self._within(e, boundary) for e in self.entries if e.site == site)

    def _within(self, entry: Entry, boundary: Boundary) -> float:
        if boundary == "accelerator":
            return entry.joules if entry.component == "accelerator" else 0.0
        wall_j = entry.joules / self.psu_efficiency.get(entry.tier, 1.0)
        return wall_j if boundary == "wall" else wall_j * self.pue[entry.site]

    def accounts(self) -> list[tuple[str, str, float]]:
        """(account, kind, joules) with the losses as accounts of their own; their sum is joules()."""
        by_account: dict[tuple[str, str], float] = {}
        for entry in self.entries:
            key = (entry.account, entry.kind)
            by_account[key] = by_account.get(key, 0.0) + entry.joules
        direct_j = sum(entry.joules for entry in self.entries)
        rows = [(account, kind, joules) for (account, kind), joules in by_account.items()]
        rows.append(("power supplies", "loss", self.joules("full", "wall") - direct_j))
        gross = {site: self.joules_at(site) - self.joules_at(site, "wall") for site in self.pue}
        return [*rows, *((f"{site} (PUE)", "loss", joules) for site, joules in gross.items())]


def keep_books(log: Log, tables: dict[str, Any], accounts: Accounts, window: Window) -> Ledger:
    """Book every joule of the window.

    What is booked to a stage is what its visits drew inside the window, those that began before it or end after it
    included. Devices have meters that can be cut at any instant; `shares_gap_j` is the law that ties them to visits.
    """
    rests = [rest_of(tables["states"], log, i, window.start_s, window.end_s) for i in range(len(log.hosts))]
    entries = [
        *_accelerator_entries(log, tables, accounts, window, rests),
        *_host_entries(log, tables, accounts, window, rests),
        *_transfer_entries(log, tables["transfers"], accounts, window),
    ]
    for name, tier in accounts.tiers.items():
        mine = [rest for rest, host in zip(rests, log.hosts, strict=True) if host.tier == name]
        entries.extend(_server_entries(name, tier, window, mine))
    efficiency = {name: tier.psu_efficiency for name, tier in accounts.tiers.items()}
    placed = tuple(e if e.component == "link" else replace(e, site=accounts.tiers[e.tier].site) for e in entries)
    return Ledger(window, placed, efficiency, {name: site.pue for name, site in accounts.sites.items()})


def _server_entries(name: str, tier: TierAccounts, window: Window, rests: Sequence[ServerRest]) -> Iterator[Entry]:
    """What servers draw whatever they do: while they are on, off and booting."""
    base_j, spare_j = tier.base_w * window.seconds, tier.spare_accelerators_w * window.seconds
    if tier.rest:
        base_j -= tier.rest.base_w * sum(rest.down_s for rest in rests)
        spares = zip(tier.rest.spare_accelerators_w, rests, strict=True)
        spare_j -= sum(watts * rest.down_s for watts, rest in spares)
    yield Entry(f"{name} servers: fans, memory, network", "idle", "base", name, base_j)
    if tier.spare_accelerators_w:
        yield Entry(f"{name} spare accelerators", "idle", "accelerator", name, spare_j)
    if tier.rest and any(rest.down_s for rest in rests):
        off_s, boot_s = (sum(getattr(rest, key) for rest in rests) for key in ("off_s", "boot_s"))
        yield Entry(f"{name} servers off", "idle", "base", name, tier.rest.off_w * off_s)
        yield Entry(f"{name} servers booting", "idle", "base", name, tier.rest.boot_w * boot_s)


def shares_gap_j(log: Log, tables: dict[str, Any], accounts: Accounts) -> float:
    """By how many joules the shares of visits differ from what their devices drew for them, over a whole log.

    Every joule of work, and every joule of idle in use, belongs to exactly one visit.
    """
    visits, steps = tables["visits"], tables["steps"]
    on_engines = log.on_engines(visits)
    gap_j = 0.0
    for i, device in enumerate(log.accelerators):
        mine = on_engines & (visits["device"] == i)
        drawn = steps_until(rows_of(steps, device=i))
        gap_j += abs(drawn.joules - visits["dynamic_j"][mine].sum())
        gap_j += abs(device.idle_w * drawn.seconds - visits["idle_j"][mine].sum())
    meters = host_meters(log, tables, accounts)
    work_j = sum(meter.until().joules for meter in meters)
    idle_j = sum(meter.core_idle_w * meter.until().seconds for meter in meters)
    gap_j += abs(work_j - visits["dynamic_j"][~on_engines].sum() - visits["host_dynamic_j"].sum())
    gap_j += abs(idle_j - visits["idle_j"][~on_engines].sum() - visits["host_idle_j"].sum())
    return float(gap_j)


class _Totals:
    """Adds up joules by account, kind and tier."""

    def __init__(self, component: Component) -> None:
        self.component, self._joules = component, dict[tuple[str, Kind, str], float]()

    def add(self, account: str, kind: Kind, tier: str, joules: float) -> None:
        key = (account, kind, tier)
        self._joules[key] = self._joules.get(key, 0.0) + joules

    def entries(self) -> Iterator[Entry]:
        for (account, kind, tier), joules in self._joules.items():
            yield Entry(account, kind, self.component, tier, joules)


def _accelerator_entries(
    log: Log, tables: dict[str, Any], accounts: Accounts, window: Window, rests: Sequence[ServerRest]
) -> Iterator[Entry]:
    totals, on_engines = _Totals("accelerator"), rows_of(tables["visits"], log.on_engines(tables["visits"]))
    for i, device in enumerate(log.accelerators):
        steps = rows_of(tables["steps"], device=i)
        drawn = steps_until(steps, window.end_s).minus(steps_until(steps, window.start_s))
        for stage, part in _parts(on_engines, i, window).items():
            totals.add(stage, "dynamic", device.tier, drawn.joules * part)
            totals.add(stage, "occupied", device.tier, device.idle_w * drawn.seconds * part)
        pool, rest = device.name.rpartition("/")[0], accounts.tiers[device.tier].rest
        idle_j = device.idle_w * (window.seconds - drawn.seconds)
        if rest:
            bare_s, down_s = rests[device.host].bare_s[i], rests[device.host].down_s
            idle_j -= device.idle_w * (bare_s + down_s)
            bare_j = device.accelerators * rest.bare_accelerator_w * bare_s
            totals.add(f"{pool} accelerators without a model", "idle", device.tier, bare_j)
        totals.add(f"{pool} accelerators idle", "idle", device.tier, idle_j)
    return totals.entries()


def _parts(on_engines: Any, device: int, window: Window) -> dict[str, float]:
    """What part of an engine's joules goes to each stage that it serves: all of it, unless several share the pool.

    Then by the time that visits of each spent there.
    """
    mine = rows_of(on_engines, device=device)
    stages = [stage for stage in Stage if (mine["stage"] == stage).any()]
    if len(stages) < 2:
        return {stage.name.lower(): 1.0 for stage in stages}
    start_s, end_s = inside(mine["started_s"], mine["served_s"], window.start_s, window.end_s)
    by_stage = {stage.name.lower(): float((end_s - start_s)[mine["stage"] == stage].sum()) for stage in stages}
    total = sum(by_stage.values())
    return {stage: seconds / total for stage, seconds in by_stage.items()} if total else {}


def _host_entries(
    log: Log, tables: dict[str, Any], accounts: Accounts, window: Window, rests: Sequence[ServerRest]
) -> Iterator[Entry]:
    """Cores that did jobs, cores that ran engines while those were in a step, and cores that nobody used."""
    totals, engines = _Totals("cpu"), log.on_engines(tables["visits"])
    on_cores, on_engines = rows_of(tables["visits"], ~engines), rows_of(tables["visits"], engines)
    meters = host_meters(log, tables, accounts)
    for i, (host, meter) in enumerate(zip(log.hosts, meters, strict=True)):
        busy = meter.until(window.end_s).minus(meter.until(window.start_s))
        idle_core_s = host.capacity * (window.seconds - rests[i].down_s) - busy.seconds
        totals.add(f"{host.tier} cores idle", "idle", host.tier, meter.core_idle_w * idle_core_s)
        for stage in Stage:
            jobs = rows_of(on_cores, device=i, stage=stage)
            if len(jobs["task"]):
                work_j, idle_j = _jobs_within(meter, jobs, window)
                totals.add(stage.name.lower(), "dynamic", host.tier, work_j)
                totals.add(stage.name.lower(), "occupied", host.tier, idle_j)
    for i, device in enumerate(log.accelerators):
        steps, meter = rows_of(tables["steps"], device=i), meters[device.host]
        start_s, end_s = inside(steps["start_s"], steps["end_s"], window.start_s, window.end_s)
        work_j = device.host_cores * float(meter.job_joules(start_s, end_s).sum())
        idle_j = device.host_cores * meter.core_idle_w * float((end_s - start_s).sum())
        for name, part in _parts(on_engines, i, window).items():
            totals.add(f"{name}: host cores", "dynamic", device.tier, work_j * part)
            totals.add(f"{name}: host cores", "occupied", device.tier, idle_j * part)
    return totals.entries()


def _jobs_within(meter: HostMeter, jobs: Any, window: Window) -> tuple[float, float]:
    """Joules of work and of idle in use of one host's jobs inside the window: as booked, an edge cutting by meter."""
    start_s, end_s = inside(jobs["started_s"], jobs["served_s"], window.start_s, window.end_s)
    whole = (start_s == jobs["started_s"]) & (end_s == jobs["served_s"])
    cut = ~whole & (end_s > start_s)
    service_s = (jobs["served_s"] - jobs["started_s"])[cut]
    core_j = meter.job_joules(jobs["started_s"][cut], jobs["served_s"][cut])
    part = np.divide(meter.job_joules(start_s[cut], end_s[cut]), core_j, out=np.zeros_like(core_j), where=core_j > 0)
    work_j = jobs["dynamic_j"][whole].sum() + (jobs["dynamic_j"][cut] * part).sum()
    idle_j = jobs["idle_j"][whole].sum() + (jobs["idle_j"][cut] * (end_s - start_s)[cut] / service_s).sum()
    return float(work_j), float(idle_j)


def _transfer_entries(log: Log, transfers: Any, accounts: Accounts, window: Window) -> Iterator[Entry]:
    """Joules of transfers, drawn in equal parts at the ends of their links."""
    if not len(transfers["joules"]):
        return
    ends = [accounts.ends_of(name) for name in log.links]
    for sites in dict.fromkeys(ends):
        joules = _moved_j(
            rows_of(transfers, np.isin(transfers["link"], [i for i, its in enumerate(ends) if its == sites])), window
        )
        account = "transfer" if len(sites) == 1 else f"network {'-'.join(sites)}"
        for site in sites:
            yield Entry(account, "dynamic", "link", "", joules / len(sites), site)


def _moved_j(transfers: Any, window: Window) -> float:
    """Joules of transfers inside a window; of one that an edge cuts the part of its time that lies inside."""
    start_s, end_s = inside(transfers["start_s"], transfers["end_s"], window.start_s, window.end_s)
    whole = (start_s == transfers["start_s"]) & (end_s == transfers["end_s"])
    cut = ~whole & (end_s > start_s)
    part = (end_s - start_s)[cut] / (transfers["end_s"] - transfers["start_s"])[cut]
    return float(transfers["joules"][whole].sum() + (transfers["joules"][cut] * part).sum())
