"""Exact oracles for what is shared: cores that slow each other down, batches on a core, networks of several links."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy.events import Event

from hsim.costs.cpu import HostPower
from hsim.engine.cores import Cores, Host
from hsim.engine.environment import TASK_ARRIVES, EngineEnvironment
from hsim.engine.executor import ModelledTime
from hsim.engine.link import LinkSpec, Message, Network, Transfer, fair_rates
from hsim.engine.visits import Job
from hsim.log import Log, Outcome, Stage

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
POWER = HostPower(cores=8, idle_w=80.0, span_w=200.0, exponent=0.6)

# ---- cores that slow each other down


@dataclass
class Work:
    """A job under way or done: seconds of work left, and the joules of its core so far."""

    number: int
    left_s: Fraction
    started_s: Fraction
    served_s: Fraction = Fraction(0)
    joules: float = 0.0

    def speed(self, busy: int, slowdown: float, curves: Curves) -> Fraction:
        """By its own curve, if jobs have any: joined by straight lines from alone, and flat beyond the last point."""
        part = Fraction(max(0, busy - 1), POWER.cores - 1)
        if not curves:
            return 1 / (1 + (Fraction(slowdown) - 1) * part)
        points = [
            (Fraction(0), Fraction(1)),
            *((Fraction(x), Fraction(y)) for x, y in curves[self.number % len(curves)]),
        ]
        for (x, y), (to_x, to_y) in pairwise(points):
            if part <= to_x:
                return 1 / (y + (to_y - y) * (part - x) / (to_x - x))
        return 1 / points[-1][1]


Curves = Sequence[tuple[tuple[float, float], ...]]


def contended(
    pools: dict[int, list[tuple[float, float]]], others: list[tuple[float, int]], slowdown: float, curves: Curves
) -> tuple[list[Work], set[int]]:
    """Every (arrival, seconds) job on its pool of so many cores, by visiting each change of load in exact fractions.

    `others` are cores kept busy by something else: (time, more or fewer). Jobs have curves of contention in turn, where
    there are any. Also the loads that were reached.
    """
    todo = [(Fraction(a), cores, n, Fraction(s)) for cores, jobs in pools.items() for n, (a, s) in enumerate(jobs)]
    todo.sort(key=lambda job: job[0])
    changes = deque((Fraction(t), n) for t, n in others)
    queues: dict[int, deque[tuple[int, Fraction]]] = {cores: deque() for cores in pools}
    running: dict[int, list[Work]] = {cores: [] for cores in pools}
    done: list[tuple[int, Work]] = []
    now, busy_others, loads = Fraction(0), 0, set()
    while todo or any(running.values()):
        busy = busy_others + sum(map(len, running.values()))
        loads.add(busy)
        under_way = [work for its in running.values() for work in its]
        speeds = [work.speed(busy, slowdown, curves) for work in under_way]
        ends = [now + work.left_s / speed for work, speed in zip(under_way, speeds, strict=True)]
        then = min([*ends, *(t for t, *_ in todo[:1]), *(t for t, _ in list(changes)[:1])])
        for work, speed in zip(under_way, speeds, strict=True):
            work.left_s -= (then - now) * speed
            work.joules += POWER.span_w * (busy / POWER.cores) ** POWER.exponent / busy * float(then - now)
        now = then
        while changes and changes[0][0] == now:
            busy_others += changes.popleft()[1]
        for cores, its in running.items():
            for work in [work for work in its if not work.left_s]:
                work.served_s = now
                its.remove(work)
                done.append((cores, work))
        while todo and todo[0][0] == now:
            _, cores, number, seconds = todo.pop(0)
            queues[cores].append((number, seconds))
        for cores, its in running.items():
            while queues[cores] and len(its) < cores:
                number, seconds = queues[cores].popleft()
                its.append(Work(number, seconds, now))
    return [
        work for cores in pools for _, work in sorted((d for d in done if d[0] == cores), key=lambda d: d[1].number)
    ], loads


def serve_contended(
    pools: dict[int, list[tuple[float, float]]], others: list[tuple[float, int]], slowdown: float, curves: Curves
) -> list[Job]:
    env, log, jobs = EngineEnvironment(), Log(), []
    host = Host(env, log, 0, POWER, slowdown)
    for time_s, cores in others:
        env.call_at(time_s, 0, lambda _, cores=cores: host.change(cores))
    for cores, its_jobs in pools.items():
        pool = Cores(env, host, cores, ModelledTime(env))
        for number, (arrival_s, seconds) in enumerate(its_jobs):
            job = Job(len(jobs), 0, Stage.TOOL, 1, Event(env))
            job.seconds, job.queued_s = seconds, arrival_s
            job.contention = curves[number % len(curves)] if curves else ()
            env.call_at(arrival_s, TASK_ARRIVES + job.task, lambda _, pool=pool, job=job: pool.submit(job))
            jobs.append(job)
    env.run()
    assert host.busy == 0
    return jobs


OWN = (((1 / 7, 1.25), (0.5, 1.5), (1.0, 6.0)), ((0.5, 1.0), (0.75, 3.0)), ((1.0, 1.0),))  # rising, late and flat, none


@pytest.mark.parametrize(
    ("slowdown", "curves"), [(1.0, ()), (1.3, ()), (4.0, ()), (1.0, OWN)], ids=["none", "some", "much", "own curves"]
)
@pytest.mark.parametrize("grid", [False, True], ids=["continuous", "with ties"])
def test_contended_cores_are_exactly_a_virtual_clock(slowdown: float, curves: Curves, grid: bool) -> None:
    """Two pools and an engine on one host: every job's start, end and joules, as its core slows down and speeds up."""
    rng = np.random.default_rng([int(10 * slowdown), grid])
    pools = {}
    for cores in (1, 4):
        if grid:
            arrivals, seconds = np.sort(rng.integers(0, 52, 60) / 2), rng.integers(1, 5, 60) / 2.0
        else:
            arrivals, seconds = np.cumsum(rng.exponential(1.1 / cores, 60)), rng.exponential(0.7, 60)
        pools[cores] = list(zip(arrivals.tolist(), seconds.tolist(), strict=True))
    others = [(2.0, 3), (7.5, -3), (11.0, 3), (12.0, -2), (19.0, -1)]
    expected, loads = contended(pools, others, slowdown, curves)
    jobs = serve_contended(pools, others, slowdown, curves)
    assert {0, 8} <= loads, "never idle, or never full"
    assert len(loads) >= 7, "few loads were reached"
    np.testing.assert_allclose([j.started_s for j in jobs], [float(w.started_s) for w in expected], **CLOSE)
    np.testing.assert_allclose([j.served_s for j in jobs], [float(w.served_s) for w in expected], **CLOSE)
    np.testing.assert_allclose([j.dynamic_j for j in jobs], [w.joules for w in expected], **CLOSE)
    np.testing.assert_allclose([j.idle_j for j in jobs], [10.0 * (j.served_s - j.started_s) for j in jobs], **CLOSE)
    took = np.array([j.served_s - j.started_s for j in jobs]) / [j.seconds for j in jobs]
    most = max((times for curve in curves for _, times in curve), default=slowdown)
    assert took.max() <= most * (1 + 1e-9)
    assert most == 1 or took.max() > 1 + 0.5 * (most - 1), "hardly anything was slowed down"


# ---- batches on a core


@dataclass(frozen=True)
class Ask:
    """A job for a core that serves batches."""

    arrival_s: float
    operation: str
    base_s: float
    own_s: float


@dataclass
class Batch:
    start_s: float
    end_s: float
    members: list[int] = field(default_factory=list)


def batches(asks: Sequence[Ask], cores: int, max_batch: int, window_s: float, reached: Counter[str]) -> list[Batch]:
    """The batches that are served: at each instant whoever is due starts, by a full look at all that wait."""
    waiting: list[int] = []
    running: list[Batch] = []
    done: list[Batch] = []
    todo = deque(range(len(asks)))
    now = 0.0

    def dispatch() -> None:
        while waiting and len(running) < cores:
            first = asks[waiting[0]]
            alike = [i for i in waiting if asks[i].operation == first.operation][:max_batch]
            if len(alike) < max_batch and now < first.arrival_s + window_s:
                return
            seconds = sum(asks[i].own_s for i in alike) + first.base_s
            running.append(Batch(now, now + seconds, alike))
            waiting[:] = [i for i in waiting if i not in alike]
            reached["full batch" if len(alike) == max_batch else "window over"] += max_batch > 1
            reached["others left behind"] += bool(waiting) and len(alike) > 1

    while todo or waiting or running:
        times = [batch.end_s for batch in running] + [asks[i].arrival_s for i in list(todo)[:1]]
        if waiting and len(running) < cores:
            times.append(asks[waiting[0]].arrival_s + window_s)
        now = min(times)
        for batch in [batch for batch in running if batch.end_s <= now]:
            running.remove(batch)
            done.append(batch)
            reached["core free before the window is over"] += (
                bool(waiting) and now < asks[waiting[0]].arrival_s + window_s
            )
        dispatch()
        while todo and asks[todo[0]].arrival_s == now:
            waiting.append(todo.popleft())
            dispatch()
    return done


def test_batches_on_cores_are_exactly_those_of_a_full_look_at_the_queue() -> None:
    """Who is served with whom, from when to when, and what each pays of seconds and joules."""
    reached = Counter[str]()

    @settings(max_examples=150)
    @given(
        st.lists(
            st.tuples(st.sampled_from([0, 0, 1, 2, 5, 30]), st.sampled_from("aab"), st.integers(0, 9)),
            min_size=1,
            max_size=25,
        ),
        st.integers(1, 3),
        st.integers(1, 4),
        st.sampled_from([0, 1, 4, 20]),
    )
    def law(gaps: list[tuple[int, str, int]], cores: int, max_batch: int, window: int) -> None:
        arrivals = np.cumsum([gap for gap, _, _ in gaps]) / 8
        bases = {"a": 0.5, "b": 2.0}
        asks = [Ask(t, op, bases[op], 0.125 * own) for t, (_, op, own) in zip(arrivals.tolist(), gaps, strict=True)]
        env, log = EngineEnvironment(), Log()
        pool = Cores(env, Host(env, log, 0, POWER), cores, ModelledTime(env), (max_batch, window / 8))
        jobs = []
        for i, ask in enumerate(asks):
            job = Job(i, 0, Stage.TOOL, 1, Event(env))
            job.operation, job.base_s, job.seconds = ask.operation, ask.base_s, ask.base_s + ask.own_s
            job.queued_s = ask.arrival_s
            env.call_at(ask.arrival_s, TASK_ARRIVES + i, lambda _, job=job: pool.submit(job))
            jobs.append(job)
        env.run()
        served = batches(asks, cores, max_batch, window / 8, reached)
        assert sum(len(batch.members) for batch in served) == len(asks)
        for batch in served:
            its = [jobs[i] for i in batch.members]
            assert {(j.started_s, j.served_s) for j in its} == {(batch.start_s, batch.end_s)}
            seconds = batch.end_s - batch.start_s
            for job, i in zip(its, batch.members, strict=True):  # its own part, and an equal part of the base
                part_s = asks[i].own_s + asks[i].base_s / len(its)
                assert job.idle_j == pytest.approx(10.0 * part_s, rel=1e-9)
            if seconds:
                total_j = sum(job.dynamic_j for job in its)
                parts = [asks[i].own_s + asks[i].base_s / len(its) for i in batch.members]
                np.testing.assert_allclose([j.dynamic_j for j in its], [p / seconds * total_j for p in parts], **CLOSE)
        # All the joules of busy cores, and no others.
        edges = sorted({t for batch in served for t in (batch.start_s, batch.end_s)})
        expected_j = 0.0
        for start_s, end_s in pairwise(edges):
            busy = sum(b.start_s <= start_s and b.end_s >= end_s for b in served)
            expected_j += POWER.dynamic_w(busy) * (end_s - start_s)
        assert sum(job.dynamic_j for job in jobs) == pytest.approx(expected_j, rel=1e-9, abs=1e-12)

    law()
    needed = {"full batch", "window over", "others left behind", "core free before the window is over"}
    assert needed <= set(+reached), f"never reached: {needed - set(+reached)}"


def test_a_job_given_up_in_the_queue_leaves_at_once_and_keeps_nobody() -> None:
    env, log = EngineEnvironment(), Log()
    pool = Cores(env, Host(env, log, 0, POWER), 1, ModelledTime(env), (3, 1.0))
    jobs = [Job(i, 0, Stage.TOOL, 1, Event(env)) for i in range(3)]
    for job, arrival_s in zip(jobs, (0.0, 0.25, 0.5), strict=True):
        job.seconds, job.queued_s, job.operation = 2.0, arrival_s, "abc"[job.task]
        env.call_at(arrival_s, TASK_ARRIVES + job.task, lambda _, job=job: pool.submit(job))
    env.call_at(1.5, 1, lambda _: pool.give_up(jobs[0]))  # it runs, and is worked to its end
    env.call_at(2.0, 1, lambda _: pool.give_up(jobs[1]))
    env.run()
    assert [(j.started_s, j.served_s) for j in jobs] == [(1.0, 3.0), (2.0, 2.0), (3.0, 5.0)]
    assert [j.outcome for j in jobs] == [Outcome.TIMED_OUT, Outcome.TIMED_OUT, Outcome.SERVED]


# ---- networks


def filled(paths: Sequence[Sequence[int]], capacity: dict[int, Fraction]) -> list[Fraction]:
    """Max-min fair rates: raise all rates alike, and stop those on a link that is full, until all have stopped."""
    rates, rising = [Fraction(0)] * len(paths), set(range(len(paths)))
    while rising:
        room = {
            link: (has - sum(rates[i] for i, path in enumerate(paths) if link in path))
            / sum(link in paths[i] for i in rising)
            for link, has in capacity.items()
            if any(link in paths[i] for i in rising)
        }
        step = min(room.values())
        for i in rising:
            rates[i] += step
        full = {link for link, its_room in room.items() if its_room == step}
        rising = {i for i in rising if not full & set(paths[i])}
    return rates


some_paths = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True).map(tuple), min_size=1, max_size=12
)
some_capacities = st.lists(st.one_of(st.integers(1, 9), st.floats(0.5, 1e6)), min_size=5, max_size=5)


@settings(max_examples=200)
@given(some_paths, some_capacities)
def test_rates_are_max_min_fair(paths: list[tuple[int, ...]], capacities: list[float]) -> None:
    """No rate can rise without lowering a smaller one: each stops at a full link on which none is larger."""
    moving = [Transfer([Message(i, 1.0, 0.0, Event(EngineEnvironment()))], 0.0, path) for i, path in enumerate(paths)]
    fair_rates(moving, dict(enumerate(map(float, capacities))))
    rates = [m.rate for m in moving]
    assert min(rates) > 0
    used = {link: sum(r for r, path in zip(rates, paths, strict=True) if link in path) for link in range(5)}
    for link, has in enumerate(capacities):
        assert used[link] <= has * (1 + 1e-12)
    for rate, path in zip(rates, paths, strict=True):
        assert any(
            used[link] >= capacities[link] * (1 - 1e-12)
            and rate >= max(r for r, other in zip(rates, paths, strict=True) if link in other) * (1 - 1e-12)
            for link in path
        ), "it could have more and nobody with less would lose"
    exact = filled(paths, {link: Fraction(has) for link, has in enumerate(capacities)})
    np.testing.assert_allclose(rates, [float(r) for r in exact], rtol=1e-9)


SPECS = {0: LinkSpec(0.25, 2.0, 3.0), 1: LinkSpec(0.5, 1.0, 5.0), 2: LinkSpec(0.0, 3.0, 7.0)}
PATHS = [(0,), (0, 1), (1, 2), (2,), (0, 1, 2)]


def network_ends(asks: list[tuple[float, float, tuple[int, ...]]]) -> tuple[list[float], int]:
    """When each (arrival, bytes, path) ends, by refilling all rates at every change; and how many shared links at most."""
    capacity = {link: Fraction(spec.bytes_per_s) for link, spec in SPECS.items()}
    todo = sorted(
        (Fraction(t) + sum(Fraction(SPECS[x].latency_s) for x in path), i) for i, (t, _, path) in enumerate(asks)
    )
    left: dict[int, Fraction] = {}
    now, ends, most = Fraction(0), dict[int, Fraction](), 0
    while todo or left:
        rates = dict(zip(left, filled([asks[i][2] for i in left], capacity), strict=True))
        then = min([now + left[i] / rates[i] for i in left] + [t for t, _ in todo[:1]])
        left = {i: n - (then - now) * rates[i] for i, n in left.items()}
        now = then
        for i in [i for i, n in left.items() if not n]:
            del left[i]
            ends[i] = now
        while todo and todo[0][0] == now:
            i = todo.pop(0)[1]
            left[i] = Fraction(asks[i][1])
        most = max(most, len({asks[i][2] for i in left}))
    return [float(ends[i]) for i in range(len(asks))], most


@pytest.mark.parametrize("grid", [False, True], ids=["continuous", "with ties"])
def test_a_network_moves_bytes_exactly_max_min_fairly(grid: bool) -> None:
    rng = np.random.default_rng([3, grid])
    count = 80
    if grid:
        arrivals, sizes = np.sort(rng.integers(0, 80, count) / 4), rng.integers(0, 5, count) / 4.0
    else:
        arrivals, sizes = np.cumsum(rng.exponential(0.5, count)), rng.exponential(0.7, count)
    paths = [PATHS[i] for i in rng.integers(0, len(PATHS), count)]
    asks = list(zip(arrivals.tolist(), sizes.tolist(), paths, strict=True))
    env, log = EngineEnvironment(), Log()
    network = Network(env, log, SPECS)
    for i, (arrival_s, n_bytes, path) in enumerate(asks):
        env.call_at(arrival_s, TASK_ARRIVES + i, lambda _, ask=(i, n_bytes, path): network.transfer(*ask))
    env.run()
    expected, most = network_ends(asks)
    assert most >= 4, "links were hardly shared by different paths"
    transfers = log.transfers.arrays()
    order = np.argsort(transfers["task"])
    np.testing.assert_allclose(transfers["end_s"][order], expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(transfers["start_s"][order], arrivals)
    np.testing.assert_array_equal(transfers["link"][order], [path[0] for path in paths])
    byte_j = np.array([math.fsum(SPECS[link].joules_per_byte for link in path) for path in paths])
    np.testing.assert_allclose(transfers["joules"][order], byte_j * sizes)
