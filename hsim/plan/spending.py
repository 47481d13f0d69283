"""What a fleet spends of what is minimised, and what it cannot spend less than."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hsim.description.sites import Site
from hsim.description.system import System
from hsim.metrics import statistics
from hsim.metrics.accounts import Accounts, accounts_of
from hsim.metrics.measured import Measured
from hsim.metrics.study import dollars_of
from hsim.metrics.summarise import unavailable_of
from hsim.plan.result import Aim
from hsim.units import HOUR_S, KWH_J

UNITS: dict[Aim, str] = {"cost": "USD an hour", "tst": "J a task", "co2": "g a task"}


@dataclass(frozen=True)
class Spent:
    """What a fleet took in one window, at the facility; nan where a figure is unknown. How long it was, and the tasks
    completed in it. `usd` are of servers, and of electricity where that is not in the rent.
    """

    joules: float = math.nan
    grams: float = math.nan
    usd: float = math.nan
    tasks: int = 0
    hours: float = 0.0

    def by(self, aim: Aim) -> tuple[float, float]:
        """What is minimised, and over what."""
        return {"cost": (self.usd, self.hours), "tst": (self.joules, self.tasks), "co2": (self.grams, self.tasks)}[aim]


def spent_in(path: Measured, system: System) -> Spent:
    """What a path's window took, by the books that `hsim simulate` reports."""
    unknown = unavailable_of(system)
    joules = math.nan if "energy" in unknown else path.ledger.joules()
    grams = math.nan if "co2" in unknown else path.bill.grams
    seconds, usd = path.window.seconds, math.nan
    if "money" not in unknown:
        usd = float(dollars_of(accounts_of(system), np.array(seconds), np.array(path.bill.electricity_usd)))
    return Spent(joules, grams, usd, path.completed, seconds / HOUR_S)


def cost_of(paths: Sequence[Measured], system: System) -> statistics.Estimate:
    """USD an hour of a fleet in its own run, the electricity of owned servers included."""
    spent = [spent_in(path, system) for path in paths]
    return statistics.ratio([each.usd for each in spent], [each.hours for each in spent])


def least_spent(aim: Aim, system: System, rate_per_s: float | None) -> float:
    """What a fleet spends at least under a load, whatever it does: what it draws idle, at the best hour of each site.

    0 of joules and grams a task where tasks come at no rate.
    """
    accounts = accounts_of(system)
    watts = idle_w(system, accounts)
    if aim == "cost":
        usd_per_s = sum(tier.usd_per_s for tier in accounts.tiers.values())
        for name, site in accounts.sites.items():
            if buys_electricity(site):
                usd_per_s += watts[name] * min(site.by_hour("usd_per_kwh")) / KWH_J
        return usd_per_s * HOUR_S
    if not rate_per_s:
        return 0.0
    if aim == "tst":
        return sum(watts.values()) / rate_per_s
    grams_per_s = sum(watts[name] * min(site.by_hour("gco2_per_kwh")) for name, site in accounts.sites.items()) / KWH_J
    return (grams_per_s + sum(tier.embodied_g_per_s for tier in accounts.tiers.values())) / rate_per_s


def idle_w(system: System, accounts: Accounts) -> dict[str, float]:
    """Watts by site that a fleet draws at the facility at least; what may be switched off or unloaded counts as 0."""
    watts = dict.fromkeys(accounts.sites, 0.0)
    for name, tier in accounts.tiers.items():
        if tier.rest is not None:
            continue
        loaded_w = sum(
            pool.replicas * pool.accelerators * system.figures.if_known(chip, "power.loaded_idle_w")
            for pool_name, pool in system.engine_pools().items()
            if system.tier_of(pool_name).name == name and not pool.unloads and (chip := system.tier_of(pool_name).chip)
        )
        host_w = system.tiers[name].count * tier.host.idle_w
        wall_w = (tier.base_w + tier.spare_accelerators_w + loaded_w + host_w) / tier.psu_efficiency
        watts[tier.site] += wall_w * accounts.sites[tier.site].pue
    return watts


def buys_electricity(site: Site) -> bool:
    """Whether electricity is paid for beside the servers: it is in the rent."""
    return site.cost.basis == "own" and max(site.by_hour("usd_per_kwh")) > 0


def changes_by_the_hour(aim: Aim, system: System) -> bool:
    """Whether what a joule counts depends on when it is drawn."""
    sites = system.scenario.sites_in_use().values()
    if aim == "cost":
        return any(buys_electricity(site) and len(set(site.by_hour("usd_per_kwh"))) > 1 for site in sites)
    return aim == "co2" and any(len(set(site.by_hour("gco2_per_kwh"))) > 1 for site in sites)
