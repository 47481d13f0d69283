"""What the books need to know of a system beside its log: constant draws, supplies, prices, the sites."""

from __future__ import annotations

from dataclasses import dataclass, field

from hsim.costs.cpu import HostPower, host_power
from hsim.description.reach import site_of_link, site_of_pool
from hsim.description.sites import HERE, Site
from hsim.description.system import System, Tier
from hsim.log import host_memory
from hsim.units import HOUR_S, KG_G, YEAR_S


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
    """One tier: its site, watts of all its servers while they are on, and what its servers cost and what making them
    emitted, over their lifetime. `rest` where some go down.
    """

    base_w: float
    spare_accelerators_w: float
    psu_efficiency: float
    usd_per_s: float
    host: HostPower
    rest: Rest | None = None
    site: str = HERE
    embodied_g_per_s: float = 0.0


@dataclass(frozen=True)
class Accounts:
    """Tiers and sites by name; and by link the sites where its joules are drawn, in equal parts."""

    tiers: dict[str, TierAccounts]
    sites: dict[str, Site]
    ends: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def ends_of(self, link: str) -> tuple[str, ...]:
        """The sites where a link's joules are drawn; of one that nobody named, the first."""
        return self.ends.get(link) or tuple(self.sites)[:1]

    @property
    def basis(self) -> str:
        """How servers are paid for: rent, own, or `rent and own`."""
        bases = {self.sites[tier.site].cost.basis for tier in self.tiers.values()}
        return " and ".join(sorted(bases, reverse=True))


def accounts_of(system: System) -> Accounts:
    """Read the figures of a system that only the books need; nan where one is unknown."""
    figures, scenario = system.figures, system.scenario
    tiers, sites = {}, scenario.sites_in_use()
    for name, tier in system.tiers.items():
        site = sites[scenario.site_of(name)]
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
            site=scenario.site_of(name),
            embodied_g_per_s=_embodied_g_per_s(system, tier, site) if site.embodied else 0.0,
        )
    return Accounts(tiers, sites, _ends(system))


def _embodied_g_per_s(system: System, tier: Tier, site: Site) -> float:
    """What making a tier's servers emitted, over their lifetime."""
    server_kg = system.figures.if_known(tier.server, "embodied_kgco2")
    if tier.chip:
        server_kg += tier.accelerators_per_server * system.figures.if_known(tier.chip, "embodied_kgco2")
    return tier.count * server_kg * KG_G / (site.cost.lifetime_years * YEAR_S)


def _ends(system: System) -> dict[str, tuple[str, ...]]:
    """Where the joules of each link are drawn: inside its site, or half at each end of a network between two."""
    scenario = system.scenario
    ends = {name: (site_of_link(scenario, name),) for name in system.networks}
    ends |= {host_memory(name): (site_of_pool(scenario, name),) for name in system.host_links}
    ends |= {name: (scenario.site_of(memory.on),) for name, memory in scenario.memory.items()}
    ends |= {name: (scenario.site_of(memory.on),) for name, memory in scenario.memory.items()}
    known = (*scenario.sites, HERE)
    return ends | {f"{a}-{b}": (a, b) for a in known for b in known if f"{a}-{b}" in scenario.site_links}


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
