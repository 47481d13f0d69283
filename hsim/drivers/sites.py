"""Networks between the sites of a prepared system: what they are like, and what they join."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from hsim.description.reach import link_between, site_of_pool
from hsim.description.system import System
from hsim.engine.environment import EngineEnvironment
from hsim.engine.life import Send
from hsim.engine.link import LinkSpec
from hsim.engine.sites import Clients, Crossing, CrossingSpec
from hsim.log import Log
from hsim.workload.crossings import RoundTrips
from hsim.workload.histograms import with_histograms_read


def crossing_specs(system: System, tasks: int) -> dict[str, CrossingSpec]:
    """Every network between sites, by name, with the chance of so many tasks."""
    scenario, specs = system.scenario, {}
    for name, described in scenario.site_links.items():
        link = with_histograms_read(described, Path(system.document.file).parent)
        byte_j = link.joules_per_byte
        if byte_j is None:
            at = system.document.where(("site_links", name, "joules_per_byte"))
            remedy = f"give it, or assume it: --set site_links.{name}.joules_per_byte=<value>"
            system.figures.unknown[f"site_links.{name}.joules_per_byte"] = f"{at}: is unknown; {remedy}"
        round_trips = RoundTrips(name, link.round_trip_s, scenario.seed, tasks)
        wire = LinkSpec(0.0, link.bytes_per_s, math.nan if byte_j is None else byte_j)
        specs[name] = CrossingSpec(wire, link.loss_fraction, link.packet_bytes, round_trips)
    return specs


def join_sites(
    env: EngineEnvironment, log: Log, system: System, specs: dict[str, CrossingSpec], sends: dict[tuple[str, str], Send]
) -> Clients | None:
    """Let pools of different sites send to each other over `sends`, and clients, who have no place yet, to pools.

    What is given back are the ways from pools to clients; None where clients and pools stand at one site.
    """
    scenario = system.scenario
    crossings = {name: Crossing(env, log, name, spec) for name, spec in specs.items()}
    site_of = {pool: site_of_pool(scenario, pool) for pool in scenario.pools}
    if scenario.workload.arrives_at is not None:
        site_of[""] = scenario.workload.arrives_at
    homeward: dict[str, tuple[Crossing, int]] = {}
    for a, here in site_of.items():
        for b, there in site_of.items():
            name = link_between(scenario, here, there) if here != there else None
            if name is not None:
                way = int(name != f"{here}-{there}")
                sends[a, b] = partial(crossings[name].send, way=way)
                homeward |= {a: (crossings[name], way)} if not b else {}
    return Clients(homeward) if homeward else None
