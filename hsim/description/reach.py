"""Whether sites are there that a scenario names, and reach each other."""

from __future__ import annotations

from itertools import combinations

from hsim.description.scenario import Scenario
from hsim.description.sites import HERE
from hsim.description.yamlfile import Document, did_you_mean
from hsim.errors import DescriptionError, MistakeError

STAGES = ("understand", "tool", "prefill", "generate")


def check_sites(scenario: Scenario, document: Document) -> None:
    """Raises DescriptionError for a site that is not there, or that cannot reach one that it must."""
    if HERE in scenario.sites:
        at = document.where(("sites", HERE))
        raise DescriptionError(at, f"{HERE!r} is what the scenario's own site is called", "give it another name")
    _check_names(scenario, document)
    _check_links_stay(scenario, document)
    used = sites_that_talk(scenario)
    if len(used) > 1 and scenario.workload.arrives_at is None:
        at = document.where(("workload", "arrives_at"))
        raise DescriptionError(at, f"is missing, and servers stand at {', '.join(used)}", "say where tasks come from")
    for a, b in combinations(used, 2):
        if link_between(scenario, a, b) is None:
            what = f"what goes between sites {a!r} and {b!r} has no network"
            remedy = f"add site_links: {{{a}-{b}: {{round_trip_s: ..., bytes_per_s: ...}}}}"
            raise DescriptionError(document.where(("site_links",)), what, remedy)


def link_between(scenario: Scenario, a: str, b: str) -> str | None:
    """The name of the network between two sites; None where there is none."""
    return next((name for name in (f"{a}-{b}", f"{b}-{a}") if name in scenario.site_links), None)


def site_of_pool(scenario: Scenario, pool: str) -> str:
    """The site of a pool's servers."""
    return scenario.site_of(scenario.pools[pool].runs_on.rpartition(".")[0])


def sites_that_talk(scenario: Scenario) -> list[str]:
    """Sites of the pools that serve, and of the clients where that is said."""
    pools = [pool for stage in STAGES for pool in scenario.serving(stage)]
    clients = [scenario.workload.arrives_at] if scenario.workload.arrives_at else []
    return list(dict.fromkeys([*clients, *(site_of_pool(scenario, pool) for pool in pools)]))


def site_of_link(scenario: Scenario, link: str) -> str:
    """The site inside which a link, or a network of links, lies; the scenario's own where nothing uses it."""
    for name, way in scenario.links.items():
        if link == name or (not isinstance(way, str) and link in way):
            for pool in scenario.pools:
                if name.startswith(f"{pool}-") and name[len(pool) + 1 :] in scenario.pools:
                    return site_of_pool(scenario, pool)
    return HERE


def _check_names(scenario: Scenario, document: Document) -> None:
    known = [*scenario.sites, HERE]
    for tier, its in scenario.fleet.items():
        at = document.where(("fleet", tier, "site"))
        if its.site is not None and its.site not in known:
            raise MistakeError(at, f"there is no site {its.site!r}", did_you_mean(its.site, known))
        if its.site is None and scenario.sites and "site" not in scenario.model_fields_set:
            remedy = f"name one of {', '.join(scenario.sites)}, or describe `site`, where the others stand"
            raise DescriptionError(at, "is missing, and the scenario has several sites", remedy)
    clients = scenario.workload.arrives_at
    if clients is not None and clients not in known:
        at = document.where(("workload", "arrives_at"))
        raise MistakeError(at, f"there is no site {clients!r}", did_you_mean(clients, known))
    named = {f"{a}-{b}" for a in known for b in known if a != b}
    for name in scenario.site_links:
        if name not in named:
            at = document.where(("site_links", name))
            raise MistakeError(at, f"{name!r} does not name two sites", did_you_mean(name, sorted(named)))


def _check_links_stay(scenario: Scenario, document: Document) -> None:
    """A link, and all that share a network, lie inside one site; and work is stolen inside one."""
    site_of_network: dict[str, str] = {}
    for name, way in scenario.links.items():
        ends = [
            pool
            for pool in scenario.pools
            for other in scenario.pools
            if name in (f"{pool}-{other}", f"{other}-{pool}")
        ]
        sites = list(dict.fromkeys(site_of_pool(scenario, end) for end in ends))
        at = document.where(("links", name))
        if len(sites) > 1:
            remedy = f"remove it: site_links: {{{sites[0]}-{sites[1]}: ...}} joins them"
            raise DescriptionError(at, f"joins pools at two sites, {sites[0]!r} and {sites[1]!r}", remedy)
        for network in () if isinstance(way, str) or not sites else way:
            if site_of_network.setdefault(network, sites[0]) != sites[0]:
                what = f"network {network!r} would lie at two sites, {site_of_network[network]!r} and {sites[0]!r}"
                raise DescriptionError(at, what, "give each site a network of its own")
    for stage in STAGES if scenario.balance.steal else ():
        sites = list(dict.fromkeys(site_of_pool(scenario, pool) for pool in scenario.stages.pools(stage)))
        if len(sites) > 1:
            at = document.where(("balance", "steal"))
            raise DescriptionError(at, f"pools of {stage} stand at {' and '.join(sites)}", "steal inside one site")
