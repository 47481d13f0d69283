"""What the books need to know of a system beside its log: constant draws, supplies, prices, the site."""

from __future__ import annotations

from dataclasses import dataclass

from hsim.costs.cpu import HostPower, host_power
from hsim.description.scenario import Site
from hsim.description.system import System, Tier
from hsim.units import HOUR_S, YEAR_S


@dataclass(frozen=True)
class Rest:
    """What goes down in a tier: watts of a whole server that is off, and that boots, and of one idle accelerator.

    `base_w` is of a server while it is on, `spare_accelerators_w` of those of each that no pool uses.
    """

    off_w: float
    boot_w: float
    bare_accelerator_w: float
    base_w: float
    spare_accelerators_w: tuple[float, ...]


@dataclass(frozen=True)
class TierAccounts:
    """One tier: watts of all its servers while they are on, and what its servers cost. `rest` where some go down."""

    base_w: float
    spare_accelerators_w: float
    psu_efficiency: float
    usd_per_s: float
    host: HostPower
    rest: Rest | None = None


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
            if system.tier_of(pool_name) is tier and not pool.on_cores
        )
        spare = tier.count * tier.accelerators_per_server - in_use
        spare_w = spare * figures.if_known(tier.chip, "power.idle_w") if tier.chip and spare else 0.0
        tiers[name] = TierAccounts(
            base_w=tier.count * figures.if_known(tier.server, "base_w"),
            spare_accelerators_w=spare_w,
            psu_efficiency=figures.if_known(tier.server, "psu_efficiency"),
            usd_per_s=tier.count * figures.if_known(tier.server, price) / seconds,
            host=host_power(tier, figures),
            rest=_rest(system, tier),
        )
    return Accounts(tiers, site)


def _rest(system: System, tier: Tier) -> Rest | None:
    """What the books need of a tier whose servers, or engines, go down; None where none does."""
    figures, switched = system.figures, system.scenario.fleet[tier.name].goes_down
    pools = {name: pool for name, pool in system.engine_pools().items() if system.tier_of(name) is tier}
    if not switched and not any(pool.unloads for pool in pools.values()):
        return None
    chip_w = figures.if_known(tier.chip, "power.idle_w") if tier.chip else 0.0
    used = [0] * tier.count
    for name, servers in system.placements().items():
        for server in servers if name in pools else ():
            used[server] += 0 if pools[name].on_cores else pools[name].accelerators
    spare = [tier.accelerators_per_server - count for count in used]
    return Rest(
        off_w=figures.if_known(tier.server, "off_w") if switched else 0.0,
        boot_w=figures.if_known(tier.server, "boot_w") if switched else 0.0,
        bare_accelerator_w=chip_w,
        base_w=figures.if_known(tier.server, "base_w"),
        spare_accelerators_w=tuple(count * chip_w if count else 0.0 for count in spare),
    )
