"""Planted planning problems with known answers: replications drawn instead of simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hsim.plan.result import Verdict
from hsim.plan.search import Found, Observation, Rules, Search

Draw = Callable[[np.random.Generator, int], np.ndarray]


def steady(mean: float) -> Draw:
    """Tasks miss independently, 100 in a replication."""
    return lambda random, count: random.binomial(100, mean, count) / 100


def clumped(mean: float) -> Draw:
    """What a replication misses varies much: beta distributed."""
    return lambda random, count: random.beta(0.3, 0.3 * (1 - mean) / mean, count)


def bursts(mean: float, missed: float = 1.0) -> Draw:
    """Nothing is missed, but in rare replications nearly all: the case that fools a t interval."""
    return lambda random, count: missed * (random.random(count) < mean / missed)


def mixed(mean: float) -> Draw:
    """Half of the misses are steady, the other half come in bursts."""
    return lambda random, count: np.clip(
        random.binomial(100, mean / 2, count) / 100 + (random.random(count) < mean / 2), 0, 1
    )


KINDS: dict[str, Callable[[float], Draw]] = {"steady": steady, "clumped": clumped, "bursts": bursts, "mixed": mixed}


@dataclass
class Planted:
    """Fleets with known distributions of what they miss; `seed` is that of the world."""

    fleets: Sequence[Draw]
    seed: int

    def replicate(self, fleet: int, block: int, numbers: range) -> list[Observation]:
        """Replications by number, whatever was asked for before."""
        return [
            Observation((float(self.fleets[fleet](np.random.default_rng([self.seed, fleet, block, n]), 1)[0]),))
            for n in numbers
        ]


def stable(fleet: int, risk: float) -> tuple[Verdict, str]:
    """A gate that lets all pass."""
    return "PASS", ""


def searched(
    fleets: Sequence[Draw], seed: int, limit: float = 0.05, risk: float = 0.05
) -> tuple[Found | None, list[Found]]:
    """The cheapest fleet, of fleets in order of price, and all that were looked at."""
    rules = Rules((limit,), risk, len(fleets), 1)
    done: list[Found] = []
    search = Search(rules, Planted(fleets, seed).replicate, stable, lambda *_: None)
    return search.cheapest(range(len(fleets)), done), done
