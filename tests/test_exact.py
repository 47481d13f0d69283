"""Exact oracles: what the engine must return to 1e-9 on any path, worked out by other means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Limits, Request, Serving, Watts, serve, step_by_kernels
from simpy.events import Event
from systems import UTILIZATION, Impatient, agents, generate_only, memory_bytes_for, prepared_of, run, with_kv

from hsim.costs.composed import ComposedCosts
from hsim.costs.cpu import HostPower
from hsim.costs.shapes import Segment, StepShape
from hsim.description.quantities import Figure
from hsim.description.system import Figures, FilledPool
from hsim.drivers.prepared import Prepared
from hsim.engine.cores import Cores, Host
from hsim.engine.environment import TASK_ARRIVES, EngineEnvironment
from hsim.engine.executor import ModelledTime
from hsim.engine.link import Link, LinkSpec
from hsim.engine.replica import Replica, ReplicaSpec
from hsim.engine.visits import Job, Prompt
from hsim.log import Log, Stage
from hsim.policies.batching import decode_first
from hsim.policies.views import DeviceView, VisitView

CLOSE = {"rtol": 1e-9, "atol": 1e-12}

# ---- cores

DRAWS = {
    "exponential": lambda rng, n: rng.exponential(1.0, n),
    "deterministic": lambda rng, n: np.ones(n),
    "hyper-exponential": lambda rng, n: rng.exponential(np.where(rng.random(n) < 0.1, 5.5, 0.5), n),
}


@dataclass
class CoresRun:
    jobs: list[Job]
    log: Log
    power: HostPower


def serve_on_cores(
    pools: dict[int, list[tuple[float, float]]],
    power: HostPower,
    slowdown: float = 1.0,
    batching: tuple[int, float] = (1, 0.0),
) -> CoresRun:
    """Serve (arrival, seconds) jobs on pools of so many cores of one host; a pool is known by its cores."""
    env, log, jobs = EngineEnvironment(), Log(), []
    host = Host(env, log, 0, power, slowdown)
    for cores, its_jobs in pools.items():
        pool = Cores(env, host, cores, ModelledTime(env), batching)
        for arrival_s, seconds in its_jobs:
            job = Job(len(jobs), 0, Stage.TOOL, 1, Event(env))
            job.seconds, job.queued_s = seconds, arrival_s
            env.call_at(arrival_s, TASK_ARRIVES + job.task, lambda _, pool=pool, job=job: pool.submit(job))
            jobs.append(job)
    env.run()
    return CoresRun(jobs, log, power)


def kiefer_wolfowitz(jobs: list[tuple[float, float]], servers: int) -> list[float]:
    """Departures of a first-come-first-served queue, exactly: each job takes the server that is free first (Lindley's for one)."""
    free, ends = [0.0] * servers, []
    for arrival_s, seconds in jobs:
        first = free.index(min(free))
        free[first] = max(free[first], arrival_s) + seconds
        ends.append(free[first])
    return ends


@pytest.mark.parametrize("cores", [1, 2, 5])
@pytest.mark.parametrize("law", DRAWS)
def test_cores_are_exactly_a_first_come_first_served_queue(cores: int, law: str) -> None:
    rng = np.random.default_rng([cores, 7])
    arrivals = np.cumsum(rng.exponential(1 / (0.85 * cores), 1500))
    jobs = list(zip(arrivals.tolist(), DRAWS[law](rng, len(arrivals)).tolist(), strict=True))
    served = serve_on_cores({cores: jobs}, HostPower(8, 50.0, 100.0, 0.7)).jobs
    waited = np.array([job.started_s - job.queued_s for job in served])
    assert (waited > 0).sum() > 100, "nothing queued"
    assert (waited == 0).sum() > 100, "never idle"
    np.testing.assert_allclose([job.served_s for job in served], kiefer_wolfowitz(jobs, cores), **CLOSE)


def test_jobs_share_the_power_of_their_host_equally_at_each_instant() -> None:
    """A job's joules are the integral of P(busy)/busy over its service; here by brute force over all pieces of time."""
    rng = np.random.default_rng(11)
    pools = {
        cores: list(
            zip(np.cumsum(rng.exponential(1.2 / cores, 60)).tolist(), rng.exponential(0.8, 60).tolist(), strict=True)
        )
        for cores in (1, 3)
    }
    power = HostPower(8, 80.0, 200.0, 0.6)
    done = serve_on_cores(pools, power)
    edges = sorted({t for job in done.jobs for t in (job.started_s, job.served_s)})
    expected, total_j, levels = dict.fromkeys(range(len(done.jobs)), 0.0), 0.0, set()
    for start, end in pairwise(edges):
        busy = [job.task for job in done.jobs if job.started_s <= start and job.served_s >= end]
        levels.add(len(busy))
        if busy:
            watts = 200.0 * (len(busy) / 8) ** 0.6
            total_j += watts * (end - start)
            for task in busy:
                expected[task] += watts / len(busy) * (end - start)
    assert levels == {0, 1, 2, 3, 4}, "not every load was reached"
    np.testing.assert_allclose([job.dynamic_j for job in done.jobs], list(expected.values()), **CLOSE)
    np.testing.assert_allclose(
        [job.idle_j for job in done.jobs], [80 / 8 * (j.served_s - j.started_s) for j in done.jobs], **CLOSE
    )
    assert sum(job.dynamic_j for job in done.jobs) == pytest.approx(total_j, rel=1e-9)


# ---- links


def processor_sharing(arrivals: list[float], sizes: list[float], rate: float) -> tuple[list[float], int]:
    """When each transfer ends, in exact fractions, by visiting every change of population; and the largest population."""
    todo = sorted((Fraction(a), i) for i, a in enumerate(arrivals))
    left: dict[int, Fraction] = {}
    now, ends, most = Fraction(0), dict[int, Fraction](), 0
    while todo or left:
        share = Fraction(rate) / max(1, len(left))
        finish = now + min(left.values()) / share if left else None
        arrive = todo[0][0] if todo else None
        then = min(t for t in (finish, arrive) if t is not None)
        left = {i: n - (then - now) * share for i, n in left.items()}
        now = then
        for i in [i for i, n in left.items() if n == 0]:
            del left[i]
            ends[i] = now
        while todo and todo[0][0] == now:
            i = todo.pop(0)[1]
            left[i] = Fraction(sizes[i])
        most = max(most, len(left))
    return [float(ends[i]) for i in range(len(arrivals))], most


def send(arrivals: list[float], sizes: list[float], rate: float, latency_s: float) -> Log:
    env, log = EngineEnvironment(), Log()
    link = Link(env, log, 0, LinkSpec(latency_s, rate, 3.0))
    for i, (arrival_s, n_bytes) in enumerate(zip(arrivals, sizes, strict=True)):
        env.call_at(arrival_s, TASK_ARRIVES + i, lambda _, i=i, n_bytes=n_bytes: link.transfer(i, n_bytes))
    env.run()
    return log


@pytest.mark.parametrize("latency_s", [0.0, 0.375])
@pytest.mark.parametrize("grid", [False, True], ids=["continuous", "with ties"])
def test_link_is_exactly_processor_sharing(latency_s: float, grid: bool) -> None:
    rng = np.random.default_rng(0)
    if grid:  # many arrive at one instant, and some end at the instant at which others join
        arrivals, sizes = np.sort(rng.integers(0, 60, 120) / 4), rng.integers(0, 5, 120) / 4.0
    else:
        arrivals, sizes = np.cumsum(rng.exponential(1.0, 150)), rng.exponential(0.85, 150)
    log = send(arrivals.tolist(), sizes.tolist(), 2.0 if grid else 1.0, latency_s)
    transfers = log.transfers.arrays()
    order = np.argsort(transfers["task"])
    expected, most = processor_sharing((arrivals + latency_s).tolist(), sizes.tolist(), 2.0 if grid else 1.0)
    assert most >= 5, "the link was hardly shared"
    np.testing.assert_allclose(transfers["end_s"][order], expected, **CLOSE)
    np.testing.assert_array_equal(transfers["start_s"][order], arrivals)
    np.testing.assert_allclose(transfers["joules"][order], 3.0 * sizes)


# ---- segments

segments = st.builds(
    Segment,
    seconds=st.floats(1e-5, 2.0),
    seconds_growth=st.one_of(st.just(0.0), st.floats(1e-12, 1e-2)),
    joules=st.floats(0.0, 1e4),
    joules_growth=st.floats(0.0, 10.0),
    context_joules=st.just(0.0),
)


@settings(max_examples=40)
@given(segments, st.integers(0, 2000))
def test_closed_forms_of_a_segment_equal_naive_accumulation(segment: Segment, steps: int) -> None:
    seconds = joules = Fraction(0)
    for k in range(steps):
        seconds += Fraction(segment.seconds) + k * Fraction(segment.seconds_growth)
        joules += Fraction(segment.joules) + k * Fraction(segment.joules_growth)
    assert segment.seconds_of(steps) == pytest.approx(float(seconds), rel=1e-12)
    assert segment.joules_of(steps) == pytest.approx(float(joules), rel=1e-12)


@settings(max_examples=60)
@given(segments, st.one_of(st.just(0.0), st.floats(0, 1e6)), st.integers(1, 300))
def test_steps_by_inverts_boundaries_to_the_last_bit(segment: Segment, start_s: float, steps: int) -> None:
    """On a boundary the step has ended; one bit before it has not: by comparing with every boundary."""
    boundaries = [start_s + segment.seconds_of(k) for k in range(1, steps + 2)]
    on = boundaries[steps - 1]
    before, after, between = math.nextafter(on, -math.inf), math.nextafter(on, math.inf), (on + boundaries[steps]) / 2
    for now_s in (on, before, after, between, start_s):
        assert segment.steps_by(start_s, now_s) == sum(b <= now_s for b in boundaries)
    assert segment.steps_by(start_s, on) == steps


# ---- composed costs

SHAPES = {
    "llama-3.1-8b on one": ("llama-3.1-8b", 1, "bf16"),
    "llama-3.1-8b in fp8": ("llama-3.1-8b", 1, "fp8"),
    "llama-3.1-70b on four": ("llama-3.1-70b", 4, "bf16"),
    "llama-3.1-70b on eight": ("llama-3.1-70b", 8, "bf16"),
    "gemma-2-27b on two": ("gemma-2-27b", 2, "bf16"),
}


def costs_of(placement: str) -> tuple[ComposedCosts, Any]:
    """Costs of a shipped placement, and its figures by name."""
    model, ways, precision = SHAPES[placement]
    prepared = prepared_of(generate_only(tensor_parallel=ways, precision=precision) | {"model": model})
    system, costs = prepared.system, prepared.replicas["decode"].costs
    assert isinstance(costs, ComposedCosts)
    chip, engine = system.tier_of("decode").chip, system.engines["decode"]

    def of(name: str) -> float:
        return system.figures.value(engine if name.startswith("host_") else chip, name)

    return costs, of


def shape_of(contexts: list[int], chunks: list[tuple[int, int]]) -> StepShape:
    pairs = sum(before + i + 1 for before, chunk in chunks for i in range(chunk))
    growth = sum(chunk * chunk for _, chunk in chunks)
    chunk_context = sum(before + chunk for before, chunk in chunks)
    return StepShape(len(contexts), sum(contexts), len(chunks), sum(c for _, c in chunks), chunk_context, pairs, growth)


some_contexts = st.lists(st.one_of(st.integers(1, 200), st.integers(1000, 60_000)), min_size=1, max_size=60)
some_chunks = st.lists(
    st.tuples(st.integers(0, 20_000), st.one_of(st.integers(1, 40), st.integers(1, 2000))), min_size=1, max_size=3
)
batches = st.one_of(
    st.tuples(some_contexts, some_chunks),
    st.tuples(some_contexts, st.just([])),
    st.tuples(st.just([]), some_chunks),
)


@pytest.mark.parametrize("placement", [name for name in SHAPES if name.startswith("llama")])
def test_composed_costs_are_the_sum_of_their_kernels(placement: str) -> None:
    costs, of = costs_of(placement)
    model, ways, precision = costs.placement.model, costs.placement.tensor_parallel, costs.placement.precision
    cap_w = ways * (of("power.cap_w") - of("power.loaded_idle_w")) * (1 - 1e-9)
    reached = Counter[str]()

    @settings(max_examples=60)
    @given(batches)
    def law(batch: tuple[list[int], list[tuple[int, int]]]) -> None:
        contexts, chunks = batch
        segment = costs.segment(shape_of(contexts, chunks))
        seconds, joules = step_by_kernels(model, of, ways, precision, contexts, chunks)
        assert segment.seconds == pytest.approx(seconds, rel=1e-9)
        assert segment.joules == pytest.approx(joules, rel=1e-9)
        if contexts:  # what one more token of context costs, by asking for a thousand more
            longer_s, longer_j = step_by_kernels(
                model, of, ways, precision, [contexts[0] + 1000, *contexts[1:]], chunks
            )
            if (joules / seconds >= cap_w) == (longer_j / longer_s >= cap_w):
                assert segment.context_joules == pytest.approx((longer_j - joules) / 1000, rel=1e-6)
                reached["joules of context"] += 1
        reached["capped" if joules / seconds >= cap_w else "not capped"] += 1
        reached["decode alone" if not chunks else "prefill alone" if not contexts else "both"] += 1

    law()
    assert {"not capped", "joules of context", "decode alone", "prefill alone", "both"} <= set(reached)


def after(batch: tuple[list[int], list[tuple[int, int]]], k: int) -> StepShape:
    """The shape of a batch's step k if nobody joins or leaves."""
    return shape_of([c + k for c in batch[0]], [(before + k * chunk, chunk) for before, chunk in batch[1]])


# On one accelerator a large batch is capped while its context is short, and no longer when it has grown.
near_cap = st.tuples(
    st.integers(120, 250).flatmap(lambda n: st.integers(100, 1500).map(lambda c: [c] * n)), st.just([])
)
decodes_alone = st.tuples(st.lists(st.integers(1, 4000), min_size=1, max_size=250), st.just([]))
near_a_window = st.tuples(st.builds(lambda n, c: [c] * n, st.integers(1, 60), st.integers(3000, 4200)), st.just([]))


def launched_one_by_one() -> tuple[ComposedCosts, Any]:
    """An engine that launches every kernel of a step of over 8 tokens by itself, which takes 150 us a layer."""
    costs, of = costs_of("llama-3.1-8b on one")
    eager = Figure(value=300e-6, tier="assumed", source="a test")
    engine = costs.placement.engine.model_copy(update={"graph_tokens": 8, "eager_s_per_layer": eager})
    return ComposedCosts(replace(costs.placement, engine=engine), Figures({})), of


SWITCHES: dict[str, tuple[Callable[[], tuple[ComposedCosts, Any]], Any, set[str]]] = {
    "llama on one": (partial(costs_of, "llama-3.1-8b on one"), st.one_of(batches, decodes_alone), {"holds for good", "cap begins to bind"}),
    "llama on four": (partial(costs_of, "llama-3.1-70b on four"), st.one_of(batches, decodes_alone), {"holds for good"}),
    "a window": (partial(costs_of, "gemma-2-27b on two"), near_a_window, {"holds for good", "a window fills"}),
    "launching": (launched_one_by_one, st.one_of(batches, decodes_alone), {"holds for good", "kernels outlast launching"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
def test_segment_is_every_step_asked_for_anew_for_exactly_as_long_as_it_says(name: str) -> None:
    """While valid_steps holds the form is the model; at the step after, the model has left the form."""
    make, some_batches, needed = SWITCHES[name]
    costs, of = make()
    ways = costs.placement.tensor_parallel
    cap_w = ways * (of("power.cap_w") - of("power.loaded_idle_w"))
    reached = Counter[str]()

    @settings(max_examples=500)
    @given(some_batches, st.data())
    def law(batch: tuple[list[int], list[tuple[int, int]]], data: st.DataObject) -> None:
        segment = costs.segment(after(batch, 0))
        valid = segment.valid_steps
        last = min(valid - 1, 5000)
        for k in {0, 1, int(last) // 2, int(last), data.draw(st.integers(0, int(last)))}:
            if k < valid:
                anew = costs.segment(after(batch, k))
                assert anew.seconds == pytest.approx(segment.seconds + k * segment.seconds_growth, rel=1e-9)
                assert anew.joules == pytest.approx(segment.joules + k * segment.joules_growth, rel=1e-9)
                assert anew.context_joules == pytest.approx(segment.context_joules, rel=1e-9)
                assert anew.valid_steps == pytest.approx(valid - k, abs=1.01) or anew.valid_steps == valid == math.inf
        assert valid >= 1
        if valid == math.inf or valid > 1e6:
            reached["holds for good"] += 1
            return
        anew = costs.segment(after(batch, int(valid)))
        formed_s, formed_j = (
            a + valid * b
            for a, b in ((segment.seconds, segment.seconds_growth), (segment.joules, segment.joules_growth))
        )
        slopes = (anew.seconds_growth, anew.joules_growth), (segment.seconds_growth, segment.joules_growth)
        assert slopes[0] != pytest.approx(slopes[1], rel=1e-6), "valid_steps ends where nothing switches"
        # A maximum of two lines lies above the line that is left; power under a cap lies below it.
        assert anew.seconds >= formed_s * (1 - 1e-12)
        was, now = (s.joules / s.seconds >= cap_w * (1 - 1e-12) for s in (segment, anew))
        if was != now:
            reached["cap begins to bind" if now else "cap lets go"] += 1
            assert formed_j >= anew.joules * (1 - 1e-9)
        elif anew.seconds_growth < segment.seconds_growth:  # each further token costs fewer layers
            assert anew.seconds == pytest.approx(formed_s, rel=1e-9)
            reached["a window fills"] += 1
        else:
            assert anew.seconds > formed_s
            reached["kernels outlast launching"] += 1

    law()
    assert needed <= set(+reached), reached


@pytest.mark.parametrize("ways", [1, 2, 8])
def test_memory_that_the_weights_leave_is_kv_cache_to_the_token(ways: int) -> None:
    data = generate_only(tensor_parallel=ways, gpu_memory_utilization=UTILIZATION)
    data["workload"]["classes"]["chat"] |= {"input_tokens": 10, "max_output_tokens": 20}
    for room, expected in ((1000.0, 1000), (1000.99, 1000), (999.99, 999)):
        data["assume"] |= {"h100-sxm": {"memory_bytes": memory_bytes_for(room + 1e-3, ways)}}
        for block_tokens in (1, 16, 7):
            data["pools"]["decode"]["block_tokens"] = block_tokens
            assert prepared_of(data).replicas["decode"].kv_blocks == expected // block_tokens


# ---- one replica against brute force

UNIT_S, UNIT_J = 2.0**-10, 2.0**-4  # times on a binary grid are exact sums: ties are ties, to the last bit


@dataclass(frozen=True)
class GridCosts:
    """Costs in whole units, with a kink: above so many tokens of context each one costs more. A StepCosts."""

    base: int
    per_token: int
    per_context: int
    per_pair: int
    kink_tokens: int
    beyond_kink: int

    def step(self, shape: StepShape) -> tuple[float, float, float]:
        """Seconds, joules, and joules of each context token, of this one step."""
        beyond = max(0, shape.context_tokens - self.kink_tokens)
        units = self.base + self.per_token * shape.chunk_tokens + self.per_context * shape.context_tokens
        units += self.per_pair * shape.pairs + self.beyond_kink * beyond
        context_units = 3 + (2 if beyond else 0)
        joules = 7 * shape.new_tokens + 3 * shape.context_tokens + 2 * beyond + 5 * shape.pairs + 11
        return units * UNIT_S, joules * UNIT_J, context_units * UNIT_J

    def segment(self, shape: StepShape) -> Segment:
        seconds, joules, context_j = self.step(shape)
        beyond = shape.context_tokens > self.kink_tokens
        growth = (self.per_context + self.beyond_kink * beyond) * shape.decodes + self.per_pair * shape.pairs_growth
        growth_j = (5 if beyond else 3) * shape.decodes + 5 * shape.pairs_growth
        valid = math.inf
        if shape.decodes and not beyond:
            valid = (self.kink_tokens - shape.context_tokens) // shape.decodes + 1
        return Segment(seconds, growth * UNIT_S, joules, growth_j * UNIT_J, context_j, valid)


HOST = HostPower(cores=4, idle_w=48.0, span_w=96.0, exponent=1.0)
WATTS = Watts(idle_w=64.0, host_dynamic_w=96.0 * 3 / 4, host_idle_w=48.0 * 3 / 4)


def drive(requests: list[Request], costs: Any, limits: Limits, stepwise: bool) -> tuple[list[Prompt], Log, Replica]:
    """The engine's replica, alone, on three cores of a host."""
    env, log = EngineEnvironment(), Log()
    pool = FilledPool(
        runs_on="x.gpu",
        replicas=1,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        gpu_memory_utilization=0.9,
        block_tokens=limits.block_tokens,
        prefix_caching=False,
    )
    spec = ReplicaSpec(pool, costs, decode_first, limits.kv_blocks, WATTS.idle_w, 3)
    replica = Replica(env, log, 0, spec, Host(env, log, 0, HOST), Impatient(env, stepwise))
    prompts = []
    for request in requests:
        prompt = Prompt(request.id, 0, Stage.GENERATE, request.input_tokens, Event(env))
        prompt.output_tokens, prompt.max_output_tokens = request.output_tokens, request.max_output_tokens
        env.call_at(request.arrival_s, TASK_ARRIVES + request.id, lambda _, prompt=prompt: replica.submit(prompt))
        prompts.append(prompt)
    env.run()
    return prompts, log, replica


VISIT = VisitView(0, 0, 1, 1)


def times_of(rows: list[Prompt] | list[Serving]) -> list[tuple[float, float, float]]:
    return [(row.started_s, row.first_token_s, row.served_s) for row in rows]


def joules_of(prompts: list[Prompt]) -> list[list[float]]:
    return [[p.dynamic_j, p.idle_j, p.host_dynamic_j, p.host_idle_j] for p in prompts]


LATE = Request(0, 0.0, 3, 4, 5)
"""One more request, to arrive at the end of some step."""


@st.composite
def replica_workloads(draw: Any) -> tuple[list[Request], GridCosts, Limits]:
    gaps = draw(st.lists(st.sampled_from([0, 0, 1, 3, 8, 20, 60, 400, 4000]), min_size=1, max_size=20))
    requests = []
    for i, arrival in enumerate(np.cumsum(gaps).tolist()):
        output = draw(st.integers(1, 25))
        limit = output + draw(st.sampled_from([0, 1, 15]))
        requests.append(Request(i, arrival * UNIT_S, draw(st.integers(1, 70)), output, limit))
    largest = max(
        [LATE.input_tokens + LATE.max_output_tokens, *(r.input_tokens + r.max_output_tokens for r in requests)]
    )
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    limits = Limits(
        draw(st.sampled_from([1, 2, 4, 50])),
        draw(st.sampled_from([1, 5, 16, 400])),
        math.ceil(largest * draw(st.sampled_from([1, 1, 1.5, 3, 100])) / block_tokens),
        block_tokens,
    )
    costs = GridCosts(
        base=draw(st.integers(1, 30)),
        per_token=draw(st.integers(0, 2)),
        per_context=draw(st.integers(0, 1)),
        per_pair=draw(st.integers(0, 1)),
        kink_tokens=draw(st.sampled_from([0, 40, 90, 10_000])),
        beyond_kink=draw(st.integers(1, 2)),
    )
    return requests, costs, limits


def test_replica_equals_brute_force_with_arrivals_on_boundaries() -> None:
    """Every first token and last one to the bit, every joule to 1e-9, coalesced and step by step."""
    reached = Counter[str]()

    @settings(max_examples=150)
    @given(replica_workloads(), st.lists(st.floats(0, 1), max_size=3))
    def law(workload: tuple[list[Request], GridCosts, Limits], more: list[float]) -> None:
        requests, costs, limits = workload
        for fraction in more:  # one more request, at the end of some step: what came before it stays as it was
            ends_s = serve(requests, costs.step, limits, WATTS).ends_s
            arrival_s = ends_s[int(fraction * (len(ends_s) - 1))]
            requests = [*requests, replace(LATE, id=len(requests), arrival_s=arrival_s)]
        reference = serve(requests, costs.step, limits, WATTS)
        expected, its_reached = reference.served, reference.reached
        for stepwise in (False, True):
            prompts, log, replica = drive(requests, costs, limits, stepwise)
            assert times_of(prompts) == times_of(expected)
            np.testing.assert_allclose(joules_of(prompts), [s.joules for s in expected], **CLOSE)
            assert replica.kv.free_blocks == limits.kv_blocks
            assert replica.view(VISIT) == DeviceView(0, 0, 0, 0, limits.max_num_seqs)
            assert replica.preempted == len(log.preemptions) == sum(s.preempted for s in expected)
            rows = log.steps.arrays()
            assert rows["steps"].sum() == its_reached["steps"]
            several = rows["steps"] > 1
            reached["coalesced decodes"] += bool((several & (rows["chunk_tokens"] == 0)).any())
            reached["coalesced chunks"] += bool((several & (rows["chunk_tokens"] > 0)).any())
            if stepwise:
                assert not several.any()
            at_kink = (rows["context_tokens"] <= costs.kink_tokens) & (
                rows["context_tokens"] + rows["decodes"] > costs.kink_tokens
            )
            reached["cost switched in a batch"] += bool(
                (at_kink[:-1] & (rows["context_tokens"][1:] > costs.kink_tokens)).any()
            )
        reached.update({name for name, count in its_reached.items() if count})

    law()
    needed = {
        "arrival on a boundary of a busy replica", "went idle", "KV full", "prompt in several chunks", "token budget exhausted",
        "max_num_seqs reached", "decodes beside chunks", "coalesced decodes", "coalesced chunks", "cost switched in a batch",
        "preempted while decoding", "preempted in its prompt", "preempted again",
    }  # fmt: skip
    assert needed <= set(+reached), f"never reached: {needed - set(+reached)}"


def step_costs(costs: ComposedCosts, shape: StepShape) -> tuple[float, float, float]:
    segment = costs.segment(shape)
    return segment.seconds, segment.joules, segment.context_joules


@settings(max_examples=25)
@given(
    st.integers(0, 10_000), st.sampled_from([1, 3, 64]), st.sampled_from([24, 200, 2048]), st.sampled_from([1, 1.4, 30])
)
def test_generate_stage_equals_brute_force_with_composed_costs(seed: int, seqs: int, tokens: int, room: float) -> None:
    """The whole way from the scenario to the log, real costs asked for at every step."""
    data = generate_only(max_num_seqs=seqs, max_num_batched_tokens=tokens, block_tokens=8, prefix_caching=False)
    prepared = prepared_of(with_kv(data | {"seed": seed}, room))
    spec = prepared.replicas["decode"]
    requests = [
        Request(t.id, t.arrival_s, t.rounds[0].input_tokens, t.rounds[0].output_tokens, t.max_output_tokens)
        for t in prepared.drawn.tasks
    ]
    host = prepared.hosts["gpu-tier"]
    watts = Watts(spec.idle_w, host.dynamic_w(spec.host_cores), host.idle_w * spec.host_cores / host.cores)
    limits = Limits(seqs, tokens, spec.kv_blocks, spec.pool.block_tokens)
    expected = serve(requests, partial(step_costs, spec.costs), limits, watts).served
    for stepwise in (False, True):
        visits = run(prepared, stepwise).visits
        order = np.argsort(visits["task"])
        times = np.column_stack([visits[c][order] for c in ("started_s", "first_token_s", "served_s")])
        np.testing.assert_allclose(times, times_of(expected), **CLOSE)
        joules = np.column_stack([visits[c][order] for c in ("dynamic_j", "idle_j", "host_dynamic_j", "host_idle_j")])
        np.testing.assert_allclose(joules, [s.joules for s in expected], rtol=1e-9, atol=1e-9)


# ---- one task alone


@dataclass
class Alone:
    """A task with the whole system to itself, worked out part by part."""

    prepared: Prepared
    now_s: float
    place: str = ""
    transfer_j: float = 0.0

    def move(self, pool: str, tokens: int) -> None:
        path = self.prepared.system.paths.get(frozenset((self.place, pool)))
        if path and self.place != pool:
            (link,) = (self.prepared.networks[name] for name in path)
            payload = self.prepared.system.scenario.payload
            n_bytes = payload.bytes_per_message + tokens * payload.bytes_per_token
            self.now_s += link.latency_s + n_bytes / link.bytes_per_s
            self.transfer_j += n_bytes * link.joules_per_byte
        self.place = pool

    def job(self, tier: str, seconds: float) -> list[float]:
        """Joules of one busy core: its own, idle, and no host of an engine."""
        host = self.prepared.hosts[tier]
        self.now_s += seconds
        return [host.dynamic_w(1) * seconds, host.idle_w / host.cores * seconds, 0.0, 0.0]

    def answer(self, input_tokens: int, output_tokens: int) -> tuple[list[float], float]:
        """Joules of a visit to the model, and when its first token came: each step asked for by itself."""
        spec, started_s = self.prepared.replicas["decode"], self.now_s
        budget, joules, before = spec.pool.max_num_batched_tokens, 0.0, 0
        assert budget is not None
        shapes = []
        while before < input_tokens:
            chunk = min(budget, input_tokens - before)
            shapes.append(shape_of([], [(before, chunk)]))
            before += chunk
        prefill_steps = len(shapes)
        shapes += [shape_of([input_tokens + n], []) for n in range(1, output_tokens)]
        first_token_s = math.nan
        for number, shape in enumerate(shapes, 1):
            segment = spec.costs.segment(shape)
            self.now_s += segment.seconds
            joules += segment.joules
            if number == prefill_steps:
                first_token_s = self.now_s
        host, seconds = self.prepared.hosts["gpu-tier"], self.now_s - started_s
        host_idle_w = host.idle_w * spec.host_cores / host.cores
        return [
            joules,
            spec.idle_w * seconds,
            host.dynamic_w(spec.host_cores) * seconds,
            host_idle_w * seconds,
        ], first_token_s


@pytest.mark.parametrize("split", [True, False], ids=["split", "gpu-only"])
@pytest.mark.parametrize("ways", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_alone_a_task_takes_the_sum_of_its_parts(split: bool, ways: int, seed: int) -> None:
    data = agents(split, tensor_parallel=ways, replicas=2, max_num_batched_tokens=64) | {"seed": seed}
    for tier in data["fleet"].values():
        tier["count"] = 2
    data["site"] = {"pue": 1.5}
    data["workload"]["tasks"] = 1
    data["workload"]["classes"]["agent"]["rounds"] = 3
    prepared = prepared_of(data)
    (task,), system = prepared.drawn.tasks, prepared.system
    alone = Alone(prepared, task.arrival_s)
    tier, expected, first_tokens = system.tier_of("agents").name, [], []

    alone.move("agents", task.understand_tokens)
    expected.append(alone.job(tier, prepared.understand["agent"].seconds(task.understand_tokens)))
    carried = task.understand_tokens
    for this in task.rounds:
        assert this.call is not None
        alone.move("agents", carried)
        expected.append(alone.job(tier, prepared.tools[this.call.tool].seconds(system.tools[this.call.tool].units)))
        alone.now_s += this.call.outside_wait_s
        alone.move("decode", this.input_tokens)
        joules, first_token_s = alone.answer(this.input_tokens, this.output_tokens)
        expected.append(joules)
        first_tokens.append(first_token_s)
        carried = this.output_tokens

    done = run(prepared)
    visits, (ended_s,) = done.visits, done.tables["tasks"]["ended_s"]
    assert ended_s == pytest.approx(alone.now_s, rel=1e-9)
    generated = visits["stage"] == Stage.GENERATE
    np.testing.assert_allclose(visits["first_token_s"][generated], first_tokens, **CLOSE)
    joules = np.column_stack([visits[c] for c in ("dynamic_j", "idle_j", "host_dynamic_j", "host_idle_j")])
    np.testing.assert_allclose(joules, expected, **CLOSE)
    assert len(done.tables["transfers"]["task"]) == (5 if split else 0), "there and back, but for the last way back"
    assert max(r.input_tokens for r in task.rounds) > 64, "no prompt took several chunks"

    # The books of the whole window, account by account, behind each tier's supply.
    figures = system.figures
    window_s, wall_j, dynamic_j = alone.now_s - task.arrival_s, 0.0, alone.transfer_j * 1.5
    for name, its in system.tiers.items():
        watts = 2 * (figures.value(its.server, "base_w") + prepared.hosts[name].idle_w)
        if its.chip:
            watts += 2 * ways * figures.value(its.chip, "power.loaded_idle_w")
            watts += (16 - 2 * ways) * figures.value(its.chip, "power.idle_w")
        own_j = sum(
            sum(row[i] for i in (0, 2))
            for row, g in zip(expected, generated, strict=True)
            if name == ("gpu-tier" if g else tier)
        )
        efficiency = figures.value(its.server, "psu_efficiency")
        wall_j += (watts * window_s + own_j) / efficiency
        dynamic_j += own_j / efficiency * 1.5
    energy = done.result().energy
    assert energy.total_j == pytest.approx(wall_j * 1.5 + alone.transfer_j * 1.5, rel=1e-9)
    assert energy.tst_j["marginal"]["facility"] == pytest.approx(dynamic_j, rel=1e-9)
    if split:
        assert energy.tst_j["full"]["accelerator"] == pytest.approx(
            (2 * ways * 121.7 + (16 - 2 * ways) * 71.8) * window_s
            + sum(j[0] for j, g in zip(expected, generated, strict=True) if g),
            rel=1e-9,
        )
