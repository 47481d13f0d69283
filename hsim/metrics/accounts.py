"""What the books need to know of a system beside its log: constant draws, supplies, prices, the site."""

from __future__ import annotations

from dataclasses import dataclass

from hsim.costs.cpu import HostPower, host_power
from hsim.description.scenario import Site
from hsim.description.system import System
from hsim.units import HOUR_S, YEAR_S


@dataclass(frozen=True)
class TierAccounts:
    """One tier: watts of all its servers that nothing changes, and what its servers cost."""

    base_w: float
    spare_accelerators_w: float
    psu_efficiency: float
    usd_per_s: float
    host: HostPower


@dataclass(frozen=True)
class Accounts:
    """Tiers by name, and the site."""

    tiers: dict[str, TierAccounts]
    site: Site


def accounts_of(system: System) -> Accounts:
    """Read the figures of a system that only the books need; nan where one is unknown."""
    figures, site = system.figures, system.scenario.site
    tiers = {}
    for name, tier in system.tiers.items():
        price = "rent_usd_per_h" if site.cost.basis == "rent" else "capex_usd"
        seconds = HOUR_S if site.cost.basis == "rent" else site.cost.lifetime_years * YEAR_S
        in_use = sum(
            pool.replicas * pool.accelerators
            for pool_name, pool in system.engine_pools().items()
            if system.tier_of(pool_name) is tier
        )
        spare = tier.count * tier.accelerators_per_server - in_use
        spare_w = spare * figures.if_known(tier.chip, "power.idle_w") if tier.chip and spare else 0.0
        tiers[name] = TierAccounts(
            base_w=tier.count * figures.if_known(tier.server, "base_w"),
            spare_accelerators_w=spare_w,
            psu_efficiency=figures.if_known(tier.server, "psu_efficiency"),
            usd_per_s=tier.count * figures.if_known(tier.server, price) / seconds,
            host=host_power(tier, figures),
        )
    return Accounts(tiers, site)
