"""What a fleet spends of what is minimised, and what it cannot spend less than."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hsim.description.sites import BY_THE_HOUR
from hsim.description.system import System
from hsim.metrics.accounts import Accounts, accounts_of
from hsim.metrics.measured import Measured
from hsim.metrics.summarise import unavailable_of
from hsim.plan.result import Aim
from hsim.units import KWH_J

UNITS: dict[Aim, str] = {"cost": "USD an hour", "tst": "J a task", "co2": "g a task"}


@dataclass(frozen=True)
class Spent:
    """What a fleet took in one window, at the facility, and the tasks completed in it; nan where a figure is unknown."""

    joules: float = math.nan
    grams: float = math.nan
    tasks: int = 0

    def by(self, aim: Aim) -> tuple[float, float]:
        """What is minimised, and over what."""
        return self.grams if aim == "co2" else self.joules, self.tasks


def spent_in(path: Measured, system: System) -> Spent:
    """What a path's window took, by the books that `hsim simulate` reports."""
    unknown = unavailable_of(system)
    joules = math.nan if "energy" in unknown else path.ledger.joules()
    grams = math.nan if "co2" in unknown else path.bill.grams
    return Spent(joules, grams, path.completed)


def least_spent(aim: Aim, system: System, rate_per_s: float | None) -> float:
    """What a fleet spends at least under a load, whatever it does: what it draws idle, at the best hour of each site.

    0 of joules and grams a task where tasks come at no rate.
    """
    if not rate_per_s:
        return 0.0
    accounts = accounts_of(system)
    watts = idle_w(system, accounts)
    if aim == "tst":
        return sum(watts.values()) / rate_per_s
    cleanest = {name: min(site.by_hour("gco2_per_kwh")) / KWH_J for name, site in accounts.sites.items()}
    embodied_g_per_s = sum(tier.embodied_g_per_s for tier in accounts.tiers.values())
    return (sum(watts[name] * cleanest[name] for name in watts) + embodied_g_per_s) / rate_per_s


def idle_w(system: System, accounts: Accounts) -> dict[str, float]:
    """Watts by site that a fleet draws at the facility at least; tiers that may be switched off count as 0."""
    watts = dict.fromkeys(accounts.sites, 0.0)
    for name, tier in accounts.tiers.items():
        if tier.rest is not None:
            continue
        loaded_w = sum(
            pool.replicas * pool.accelerators * system.figures.if_known(chip, "power.loaded_idle_w")
            for pool_name, pool in system.engine_pools().items()
            if system.tier_of(pool_name).name == name and (chip := system.tier_of(pool_name).chip)
        )
        host_w = system.tiers[name].count * tier.host.idle_w
        wall_w = (tier.base_w + tier.spare_accelerators_w + loaded_w + host_w) / tier.psu_efficiency
        watts[tier.site] += wall_w * accounts.sites[tier.site].pue
    return watts


def changes_by_the_hour(system: System) -> bool:
    """Whether what a joule costs or emits depends on when it is drawn."""
    sites = system.scenario.sites_in_use().values()
    return any(len(set(site.by_hour(key))) > 1 for site in sites for key in BY_THE_HOUR)
