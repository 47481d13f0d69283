"""The certificate: right on planted problems whatever the distribution of what a replication misses."""

from __future__ import annotations

import numpy as np
import pytest
from planted import KINDS, searched

from hsim.plan.certificate import STAKES, Evidence, replications_without_miss

PROBLEMS = 200


def test_stakes_are_shares_of_one_wealth() -> None:
    assert sum(share for _, share in STAKES) == pytest.approx(1)
    assert Evidence(0.05).log_wealth == pytest.approx(0)


def test_full_stake_without_a_miss_is_the_binomial_law() -> None:
    """59 replications without a miss for 95 %, 299 for 99 %: the fewest of any test that is safe against bursts."""
    assert replications_without_miss(0.05, 0.05) == 59
    assert replications_without_miss(0.01, 0.05) == 299
    evidence = Evidence(0.05)
    for _ in range(59):
        evidence.add(0.0)
    assert evidence.logs[0] - np.log(STAKES[0][1]) == pytest.approx(-59 * np.log(0.95))


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.5])
def test_no_sequence_without_a_miss_is_certified_by_fewer_than_the_binomial_law_allows(limit: float) -> None:
    for risk in (0.05, 0.01):
        evidence, count = Evidence(limit), 0
        while not evidence.shown(risk):
            evidence.add(0.0)
            count += 1
        assert count >= replications_without_miss(limit, risk)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3])
def test_wealth_does_not_grow_in_the_mean_on_the_limit(limit: float) -> None:
    """What Ville's inequality needs, exactly: for values 0 and 1, the extreme ones, with a mean on the limit."""
    for history in ([], [0.0] * 7, [0.0, 1.0, 0.0, 0.5]):
        before = Evidence(limit)
        for value in history:
            before.add(value)
        after = []
        for value in (0.0, 1.0):
            evidence = Evidence(limit)
            for each in (*history, value):
                evidence.add(each)
            after.append(np.exp(evidence.log_wealth))
        assert (1 - limit) * after[0] + limit * after[1] == pytest.approx(np.exp(before.log_wealth))


def _passes(mean: float, problems: int = PROBLEMS) -> int:
    """In how many planted problems, of all kinds in turn, a single fleet with that mean is certified."""
    kinds = list(KINDS.values())
    return sum(searched([kinds[i % len(kinds)](mean)], seed=1000 + i)[0] is not None for i in range(problems))


def test_false_pass_at_the_boundary_is_rare() -> None:
    """200 fleets exactly on the limit, rare bursts among them; 5 % would be 10."""
    assert _passes(0.05) <= 15


@pytest.mark.slow
def test_half_of_what_may_be_missed_passes() -> None:
    assert _passes(0.025) >= 0.8 * PROBLEMS


def test_a_t_interval_would_be_fooled_by_bursts() -> None:
    """The same problems by ten replications and a t test: why whole replications are counted."""
    fooled = 0
    for i in range(PROBLEMS):
        values = KINDS["bursts"](0.05)(np.random.default_rng(i), 10)
        upper = values.mean() + 1.83 * values.std(ddof=1) / np.sqrt(10)
        fooled += upper <= 0.05
    assert fooled > 0.4 * PROBLEMS


def test_clear_cases_take_few_replications() -> None:
    none, done = searched([KINDS["steady"](0.3), KINDS["steady"](0.5)], seed=1)
    assert none is None
    assert all(found.verdict == "FAIL" and found.replications <= 16 for found in done)
    best, done = searched([KINDS["steady"](0.3), KINDS["steady"](0.002)], seed=1)
    assert best is done[1]
    assert best.replications <= 128


def test_verdicts_do_not_depend_on_who_asked_before() -> None:
    fleets = [KINDS["clumped"](mean) for mean in (0.2, 0.06, 0.03, 0.01)]
    one = searched(fleets, seed=3)[1]
    again = searched(fleets, seed=3)[1]
    assert [(f.verdict, f.replications) for f in one] == [(f.verdict, f.replications) for f in again]
