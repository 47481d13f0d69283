"""Memory beside the accelerators' own: shared ones, and weights that stay in them; found to fit, and what they cost."""

from __future__ import annotations

from collections import Counter

from hsim.costs.composed import Placement, Streamed
from hsim.costs.memory import weight_bytes
from hsim.description.hardware import LinkProfile
from hsim.description.system import FilledPool, System
from hsim.engine.link import LinkSpec
from hsim.engine.memory import MemorySpec
from hsim.errors import DescriptionError
from hsim.units import GB


def link_spec(link: LinkProfile, system: System, ways: int = 1) -> LinkSpec:
    """A link with its figures, so many of them side by side."""
    figures = system.figures
    return LinkSpec(
        figures.value(link, "latency_s"),
        ways * figures.value(link, "bytes_per_s"),
        figures.if_known(link, "joules_per_byte"),
        figures.value(link, "per_message_s") if link.per_message_s else 0.0,
    )


def own_way(system: System, name: str, pool: FilledPool) -> LinkSpec | None:
    """A replica's own way to its host, all of its accelerators side by side; None where it is free."""
    link = system.host_links.get(name)
    return link_spec(link, system, pool.accelerators) if link else None


def memory_specs(system: System) -> dict[str, MemorySpec]:
    """The memories that contexts go to. Raises DescriptionError for those that do not fit on their servers."""
    specs = {}
    pools = system.engine_pools()
    for name, memory in system.scenario.memory.items():
        tier, at = system.tiers[memory.on], system.document.where(("memory", name, "bytes"))
        there = tier.count * system.figures.value(tier.server, "memory_bytes")
        if memory.bytes > there:
            what = f"{memory.bytes / GB:,.0f} GB of memory are more than {tier.count} x {tier.server.name} have"
            raise DescriptionError(at, what, f"at most {there:.3g} bytes")
        for pool_name, pool in pools.items():
            here, there_too = (system.scenario.site_of(t) for t in (memory.on, system.tier_of(pool_name).name))
            if pool.memory == name and here != there_too:
                what = f"pool {pool_name!r} stands at {there_too!r}, and the memory at {here!r}"
                raise DescriptionError(at, what, "name a memory of its own site")
        weights = sum(pool.host_weight_bytes or 0.0 for pool in pools.values() if pool.memory == name)
        if weights > memory.bytes:
            what = f"{weights / GB:,.1f} GB of weights are to stay in {memory.bytes / GB:,.1f} GB"
            raise DescriptionError(at, what, "make it larger, or keep more weights on the accelerators")
        if any(pool.memory == name and pool.tool_gaps != "cache" for pool in pools.values()):
            if weights:
                what = f"weights are read from {name!r} in every step, and contexts go there too"
                raise DescriptionError(
                    at, what, "give contexts a memory of their own: their link is shared by the step"
                )
            specs[name] = MemorySpec(memory.bytes, link_spec(system.memory_links[name], system))
    return specs


def streamed(system: System, name: str, pool: FilledPool) -> Streamed | None:
    """The weights of a pool's replicas that stay elsewhere, read at the rate that each has while all read.

    Raises DescriptionError for what cannot be.
    """
    n_bytes, at = pool.host_weight_bytes, system.document.where(("pools", name, "host_weight_bytes"))
    if n_bytes is None:
        return None
    own = own_way(system, name, pool)
    if own is None and pool.memory is None:
        raise DescriptionError(at, "host_link is missing, over which they are read", "say host_link: pcie5-pinned")
    if system.model_of(name).experts:
        what = f"{system.model_of(name).name} has experts, of which a step needs some"
        raise DescriptionError(at, what, "no law describes that: leave it out")
    ways = [own] if own else []
    if pool.memory:
        ways.append(_share(link_spec(system.memory_links[pool.memory], system), _readers(system, pool.memory)))
    else:
        ways.append(_host_memory(system, name, n_bytes))
    seconds = sum(way.latency_s for way in ways) + max(way.per_message_s + n_bytes / way.bytes_per_s for way in ways)
    return Streamed(n_bytes, seconds, n_bytes * sum(way.joules_per_byte for way in ways))


def check_streamed(placement: Placement, where: str) -> None:
    """Raises DescriptionError where more weights are to stay elsewhere than there are."""
    there = weight_bytes(placement)
    if placement.streamed and placement.streamed.n_bytes > there:
        what = f"{placement.streamed.n_bytes / GB:.1f} GB are more than the {there / GB:.1f} GB of weights"
        raise DescriptionError(where, what, "let fewer stay there")


def _readers(system: System, memory: str) -> int:
    """Replicas that read weights from a shared memory in every step."""
    pools = system.engine_pools().values()
    return sum(pool.replicas for pool in pools if pool.memory == memory and pool.host_weight_bytes)


def _host_memory(system: System, name: str, n_bytes: float) -> LinkSpec:
    """What the memory of a pool's fullest server gives each replica there. Raises DescriptionError where it is too small."""
    tier, figures = system.tier_of(name), system.figures
    pools = {n: p for n, p in system.engine_pools().items() if p.host_weight_bytes and not p.memory}
    placed = {n: Counter(system.placements()[n]) for n in pools if system.tier_of(n) is tier}
    readers = max(sum(here[server] for here in placed.values()) for server in range(tier.count))
    kept = sum(pools[n].host_weight_bytes or 0.0 for n in placed)
    there = figures.value(tier.server, "memory_bytes")
    if kept > there:
        at = system.document.where(("pools", name, "host_weight_bytes"))
        what = f"{kept / GB:,.0f} GB of weights do not fit in the memory of one {tier.server.name}"
        raise DescriptionError(at, what, f"at most {there:.3g} bytes")
    bytes_per_s = tier.server.sockets * figures.value(tier.cpu, "memory_bytes_per_s")
    return _share(LinkSpec(0.0, bytes_per_s, 0.0), readers)


def _share(link: LinkSpec, readers: int) -> LinkSpec:
    """What each of so many has of a link when all use it."""
    return LinkSpec(link.latency_s, link.bytes_per_s / readers, link.joules_per_byte, link.per_message_s)
