"""Queueing theory, with error bars. Slow: the exact oracles of test_exact.py see more, in seconds; these see whether
random arrivals and sizes add up to what theory says of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from systems import generate_only, prepared_of, run
from test_exact import DRAWS, send, serve_on_cores

from hsim.costs.cpu import HostPower

pytestmark = pytest.mark.slow

ARRIVALS, WARM_UP, REPLICATIONS = 12_000, 2_000, 30
SECOND_MOMENT = {"exponential": 2.0, "deterministic": 1.0, "hyper-exponential": 2 * (0.1 * 5.5**2 + 0.9 * 0.5**2)}


def assert_agrees(samples: list[float], theory: float, precision: float, sigmas: float = 4.0) -> None:
    """The estimate is precise enough to be worth testing, and within `sigmas` standard errors of theory."""
    mean, error = float(np.mean(samples)), float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
    assert error < precision * theory, f"not precise enough to test: {mean:.4g} +- {error:.2g}"
    assert abs(mean - theory) < sigmas * error, f"{mean:.4g} +- {error:.2g}, theory {theory:.4g}"


def workload(rate: float, law: str, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Poisson arrivals, and sizes of mean 1."""
    rng = np.random.default_rng([seed, 17])
    return np.cumsum(rng.exponential(1 / rate, ARRIVALS)), DRAWS[law](rng, ARRIVALS)


def mean_wait_s(rate: float, law: str, cores: int, seed: int) -> float:
    """Mean wait in the queue of jobs after the warm-up, all followed to their end."""
    arrivals, sizes = workload(rate, law, seed)
    jobs = serve_on_cores(
        {cores: list(zip(arrivals.tolist(), sizes.tolist(), strict=True))}, HostPower(8, 1.0, 1.0, 1.0)
    ).jobs
    return float(np.mean([job.started_s - job.queued_s for job in jobs[WARM_UP:]]))


def erlang_c_wait_s(rate: float, servers: int) -> float:
    """Mean wait of M/M/c with service of mean 1 (Erlang's C formula)."""
    tail = rate**servers / math.factorial(servers) / (1 - rate / servers)
    return tail / (sum(rate**k / math.factorial(k) for k in range(servers)) + tail) / (servers - rate)


@pytest.mark.parametrize(("cores", "load"), [(1, 0.7), (2, 0.8), (4, 0.8)])
def test_exponential_jobs_wait_as_erlang_says(cores: int, load: float) -> None:
    samples = [mean_wait_s(load * cores, "exponential", cores, seed) for seed in range(REPLICATIONS)]
    assert_agrees(samples, erlang_c_wait_s(load * cores, cores), precision=0.05)


@pytest.mark.parametrize("law", DRAWS)
def test_jobs_on_one_core_wait_as_pollaczek_and_khinchine_say(law: str) -> None:
    samples = [mean_wait_s(0.6, law, 1, seed) for seed in range(REPLICATIONS)]
    assert_agrees(samples, 0.6 * SECOND_MOMENT[law] / (2 * (1 - 0.6)), precision=0.05)


@pytest.mark.parametrize("law", DRAWS)
def test_transfers_take_as_long_whatever_the_law_of_their_sizes(law: str) -> None:
    """M/G/1 processor sharing is insensitive: mean time size / (rate (1 - load)) for all three, after the latency."""
    samples, load, latency_s, rate = [], 0.6, 0.25, 4.0
    for seed in range(REPLICATIONS):
        arrivals, sizes = workload(load, law, seed)
        transfers = send(arrivals.tolist(), (sizes * rate).tolist(), rate, latency_s).transfers.arrays()
        took_s = (transfers["end_s"] - transfers["start_s"])[np.argsort(transfers["task"])]
        samples.append(float(took_s[WARM_UP:].mean()) - latency_s)
    assert_agrees(samples, 1 / (1 - load), precision=0.04)


@pytest.mark.parametrize(
    "repair", [{"kind": "exponential", "mean": 5.0}, {"kind": "lognormal", "median": 3.0, "p95": 15.0}]
)
def test_replicas_that_break_down_are_there_as_renewal_theory_says(repair: dict[str, Any]) -> None:
    """The part of their time for which they are not depends on means alone, but for weights that are still loading when
    the next breakdown comes."""
    holds_s, load_s = 20.0, 0.5
    mean_s = repair.get("mean") or repair["median"] * math.exp(
        (math.log(repair["p95"] / repair["median"]) / 1.6449) ** 2 / 2
    )
    data = generate_only(replicas=2)
    data["workload"] |= {"tasks": 1500, "arrivals": {"kind": "uniform", "rate_per_s": 1}, "measure": "terminating"}
    data["workload"]["classes"]["chat"] |= {"input_tokens": 20, "output_tokens": 2}
    data["pools"]["decode"]["failures"] = {"mtbf_s": {"kind": "exponential", "mean": holds_s}, "repair_s": repair}
    data |= {"retries": {"max_retries": 20}, "assume": {"vllm": {"load_s": load_s}}}
    samples = []
    for seed in range(REPLICATIONS):
        service = run(prepared_of(data | {"seed": seed})).result().service
        assert service
        samples.append(1 - service.available_fraction["decode"])
    loading_s = holds_s * (1 - math.exp(-load_s / holds_s))
    assert_agrees(samples, (mean_s + loading_s) / (holds_s + mean_s), precision=0.03)
