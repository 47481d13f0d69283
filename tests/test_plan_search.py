"""The search against brute force, on spaces of a hundred fleets with known queues."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from planted import stable

from hsim.plan.certificate import Evidence
from hsim.plan.search import Found, Observation, Rules, Search

LIMIT, RISK = 0.05, 0.05
TASKS, WARM_UP = 100, 50


@dataclass(frozen=True)
class Space:
    """Two stages in a row, of 1 to 10 servers each: what a task of the first waits for, then of the second."""

    rate_per_s: float
    service_s: tuple[float, float]
    usd: tuple[float, float]
    within_s: float
    bursty: bool = False

    @cached_property
    def fleets(self) -> list[tuple[int, int]]:
        """Counts of servers, cheapest first."""
        counts = [(a, b) for a in range(1, 11) for b in range(1, 11)]
        return sorted(counts, key=lambda c: (c[0] * self.usd[0] + c[1] * self.usd[1], c))

    def replicate(self, fleet: int, block: int, numbers: range) -> list[Observation]:
        """All replications at once; tasks are those of the block and number, whatever the fleet."""
        draws = [np.random.default_rng([block, n]) for n in numbers]
        gaps = np.array([r.exponential(1 / self.rate_per_s, TASKS + WARM_UP) for r in draws]).T
        if self.bursty:  # one replication in fifty brings all its tasks at ten times the rate
            gaps = gaps * np.where([r.random() < 0.02 for r in draws], 0.1, 1.0)
        time_s = arrival_s = np.cumsum(gaps, axis=0)
        for servers, mean_s in zip(self.fleets[fleet], self.service_s, strict=True):
            service_s = np.array([r.exponential(mean_s, TASKS + WARM_UP) for r in draws]).T
            time_s = _served(time_s, service_s, servers)
        late = (time_s - arrival_s)[WARM_UP:] > self.within_s
        return [Observation((float(fraction),)) for fraction in late.mean(axis=0)]


def _served(arrival_s: np.ndarray, service_s: np.ndarray, servers: int) -> np.ndarray:
    """Ends of service of tasks, first come first served (Kiefer and Wolfowitz). Shapes (tasks, replications)."""
    free = np.zeros((servers, arrival_s.shape[1]))
    order = np.argsort(arrival_s, axis=0)
    ended = np.empty_like(arrival_s)
    columns = np.arange(arrival_s.shape[1])
    for row in order:
        first = free.argmin(axis=0)
        end = np.maximum(free[first, columns], arrival_s[row, columns]) + service_s[row, columns]
        free[first, columns] = ended[row, columns] = end
    return ended


SPACES = [
    Space(3.0, (1.0, 0.5), (1.0, 3.0), 6.0),
    Space(5.0, (0.4, 1.0), (2.0, 3.1), 5.0),
    Space(2.0, (1.5, 1.5), (1.0, 1.7), 9.0),
    Space(6.0, (0.7, 0.3), (5.0, 1.0), 3.5),
    Space(3.0, (1.0, 0.5), (1.3, 2.0), 6.0, bursty=True),
]


def found_in(space: Space) -> list[Found]:
    rules = Rules((LIMIT,), RISK, len(space.fleets), 1)
    done: list[Found] = []
    Search(rules, space.replicate, stable, lambda *_: None).cheapest(range(len(space.fleets)), done)
    return done


def brute_force(space: Space, replications: int) -> int | None:
    """Every fleet gets as many replications; the cheapest that they certify."""
    for fleet in range(len(space.fleets)):
        evidence = Evidence(LIMIT)
        for observation in space.replicate(fleet, 1, range(replications)):
            evidence.add(observation.missed[0])
        if evidence.shown(Rules((LIMIT,), RISK, 1, 1).accepting(1)):
            return fleet
    return None


def test_the_search_finds_what_brute_force_finds_with_a_tenth_of_the_replications() -> None:
    spent = brute = 0
    for space in SPACES:
        done = found_in(space)
        best = done[-1]
        assert best.verdict == "PASS"
        assert brute_force(space, best.replications) == best.fleet
        spent += sum(found.replications for found in done)
        brute += best.replications * len(space.fleets)
    assert brute >= 10 * spent


def test_every_cheaper_fleet_was_refuted_or_is_listed() -> None:
    done = found_in(SPACES[2])
    assert [found.fleet for found in done] == list(range(len(done)))
    assert all(found.verdict in ("FAIL", "UNDECIDED") and (found.by or found.reason) for found in done[:-1])
    assert done[-1].verdict == "PASS"
