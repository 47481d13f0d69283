"""Pools whose weights are pruned, or that go over to other weights: found to be possible, and what that costs."""

from __future__ import annotations

from dataclasses import replace

from hsim.costs.composed import Placement, check_runs
from hsim.costs.laws import working_precision
from hsim.costs.memory import weight_bytes
from hsim.costs.shapes import StepCosts
from hsim.costs.sparsity import Sparsity, check_sparse, sparsity_of
from hsim.description.system import System
from hsim.description.yamlfile import did_you_mean
from hsim.engine.precision import Cost, SwitchSpec
from hsim.errors import DescriptionError, MistakeError
from hsim.policies.precision import SWITCHES
from hsim.units import HOUR_S


def sparsity_in(system: System, name: str, pattern: str | None, key: tuple[str, ...]) -> Sparsity | None:
    """The pattern in which a pool's weights are pruned. Raises DescriptionError where its chip or model cannot."""
    chip = system.tier_of(name).chip
    if pattern is None or chip is None or system.sparsity is None:
        return None
    at = system.document.where(("pools", name, *key))
    check_sparse(system.sparsity, pattern, chip, system.model_of(name), at)
    return sparsity_of(system.sparsity, pattern, system.figures)


def other_weights(system: System, name: str, placement: Placement) -> Placement:
    """A pool's replica with the weights that it may go over to. Raises DescriptionError for what its chip lacks."""
    switch, where = system.engine_pools()[name].switch, system.document.where
    assert switch
    pruned = sparsity_in(system, name, switch.sparsity, ("switch", "sparsity"))
    other = replace(placement, precision=switch.precision or placement.precision, sparsity=pruned)
    at = where(("pools", name, "switch", "precision"))
    check_runs(other, at)
    own, theirs = (p.kv_precision or working_precision(p.precision) for p in (placement, other))
    if own != theirs:
        what = f"keys and values are {own} beside {placement.precision} and {theirs} beside {other.precision}"
        raise DescriptionError(at, what, "set kv_precision: the cache must outlive a switch")
    if (other.precision, other.sparsity) == (placement.precision, placement.sparsity):
        raise DescriptionError(at, "is what the pool has already", "name another precision or sparsity")
    return other


def switch_spec(system: System, name: str, sets: tuple[Placement, Placement], costs: StepCosts) -> SwitchSpec:
    """How a pool's replicas go over from one set of weights to the other, and back."""
    switch, where = system.engine_pools()[name].switch, system.document.where
    assert switch
    if switch.policy not in SWITCHES:
        at = where(("pools", name, "switch", "policy"))
        raise MistakeError(at, f"there is no policy {switch.policy!r}", did_you_mean(switch.policy, list(SWITCHES)))
    own, other = sets
    site = system.scenario.sites_in_use()[system.scenario.site_of(system.tier_of(name).name)]
    by_hour = site.by_hour("gco2_per_kwh")
    if switch.policy == "carbon" and len(set(by_hour)) == 1:
        system.figures.cautions[
            f"pool {name} minds carbon, and its site's is the same at every hour: set site.hourly"
        ] = None
    return SwitchSpec(
        policy=SWITCHES[switch.policy],
        costs=costs,
        above=switch.above,
        below=switch.below,
        stay_s=switch.stay_s,
        over=_cost(system, name, other),
        back=_cost(system, name, own),
        gco2_per_kwh=lambda now_s: by_hour[int(now_s // HOUR_S) % len(by_hour)],
    )


def _cost(system: System, name: str, to: Placement) -> Cost:
    """Seconds and joules above idle of going over to a set of weights."""
    switch, figures = system.engine_pools()[name].switch, system.figures
    assert switch
    if switch.weights == "resident":
        return Cost(switch.switch_s, 0.0)
    link, n_bytes = system.switch_links[name], weight_bytes(to)
    read_s = figures.value(link, "latency_s") + n_bytes / (to.devices * figures.value(link, "bytes_per_s"))
    return Cost(switch.switch_s + read_s, n_bytes * figures.if_known(link, "joules_per_byte"))
