"""Whether tasks bring more work than a system can do, known from drawn tasks: then no warm-up is long enough."""

from __future__ import annotations

from hsim.description.system import System
from hsim.drivers.offered import needed_s
from hsim.drivers.prepared import Prepared, prepare
from hsim.metrics import statistics
from hsim.runs.paths import drawing, seeded

DRAWN = 2000  # tasks from which the mean work of one is known
BLOCKS = 20
RISK = 1e-6  # of saying so of a system that could do the work


def is_overloaded(system: System) -> bool:
    """Whether open arrivals at a mean rate bring some pool more work than it can do, whatever is simulated.

    A few tasks may come in a burst; these are many, at the rate that is declared. Never where tasks may be lost: that
    makes room.
    """
    if may_lose_tasks(system):
        return False
    prepared = prepare(drawing(seeded(system, 0), DRAWN))
    rate_per_s = getattr(system.scenario.workload.arrivals, "rate_per_s")  # noqa: B009
    return any(
        rate_per_s * (busy_s.value - busy_s.half_width(1 - 2 * RISK)) > _capacity(prepared, pool)
        for pool, busy_s in work_of_one(prepared).items()
    )


def work_of_one(prepared: Prepared) -> dict[str, statistics.Estimate]:
    """Least busy seconds of each pool that one of the drawn tasks brings."""
    tasks = prepared.drawn.tasks
    each = len(tasks) // BLOCKS
    blocks = [needed_s(prepared, tasks[i * each : (i + 1) * each]) for i in range(BLOCKS)]
    return {pool: statistics.mean([block[pool] / each for block in blocks]) for pool in blocks[0]}


def may_lose_tasks(system: System) -> bool:
    """Whether tasks are shed, given up, or lost with what breaks down: what they would have needed makes room for others."""
    scenario, engines = system.scenario, system.engine_pools().values()
    return (
        scenario.balance.admission != "everybody"
        or any(kind.timeout_s for kind in scenario.workload.classes.values())
        or any(pool.max_waiting or pool.failures for pool in engines)
        or any(tier.failures for tier in scenario.fleet.values())
    )


def _capacity(prepared: Prepared, pool: str) -> int:
    """Replicas of a pool, or the cores that it has over its tier."""
    if pool in prepared.replicas:
        return prepared.replicas[pool].pool.replicas
    return prepared.cores[pool] * prepared.system.tier_of(pool).count
