"""Laws that hold on every path, over random small scenarios. Each test also asserts that it reached what it guards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import step_by_kernels
from systems import ROUTERS, Run, agents, engine_devices, generate_only, prepared_of, run, scenarios, system_of
from test_exact import UNIT_S, GridCosts

from hsim.costs.cpu import OperationCost
from hsim.description.scenario import EnginePool
from hsim.drivers.prepared import LinkCosts, Prepared, prepare
from hsim.drivers.simulated import build
from hsim.engine.environment import TASK_ARRIVES, EngineEnvironment
from hsim.engine.executor import ModelledTime
from hsim.engine.life import live
from hsim.log import Log, Stage
from hsim.metrics.ledger import Window, keep_books
from hsim.metrics.power import facility_joules

TIMES = ("ready_s", "queued_s", "started_s", "first_token_s", "served_s", "ended_s")
JOULES = ("dynamic_j", "idle_j", "host_dynamic_j", "host_idle_j")


def check(
    law: Callable[[Run, Counter[str]], None],
    needed: set[str],
    examples: int = 25,
    stepwise: bool = False,
    **scenario: Any,
) -> None:
    """The law holds on runs of random scenarios, and between them they reached all that it needs."""
    reached = Counter[str]()

    @settings(max_examples=examples)
    @given(st.one_of(scenarios(), scenarios(crowded=True)))
    def on_any_scenario(data: dict[str, Any]) -> None:
        law(run(prepared_of(data | scenario), stepwise), reached)

    on_any_scenario()
    assert needed <= set(+reached), f"never reached: {needed - set(+reached)}"


def population(starts: Any, ends: Any) -> tuple[Any, Any]:
    """Instants at which a population changes, and how many are present from each on; who leaves goes first."""
    times, counts = np.concatenate([ends, starts]), np.concatenate([-np.ones(len(ends)), np.ones(len(starts))])
    order = np.argsort(times, kind="stable")
    return times[order], np.cumsum(counts[order])


def integral(times: Any, levels: Any) -> float:
    return float((np.diff(times) * levels[:-1]).sum())


# ---- conservation


def test_no_task_visit_or_token_is_lost_or_invented() -> None:
    def law(done: Run, reached: Counter[str]) -> None:
        asked, ended = done.prepared.drawn.tasks, done.tables["tasks"]
        assert sorted(ended["task"]) == [task.id for task in asked]
        visits = {}
        for row in zip(
            *(done.visits[c] for c in ("task", "stage", "round", "input_tokens", "output_tokens")), strict=True
        ):
            assert row[:3] not in visits, "a visit was made twice"
            visits[row[:3]] = row[3:]
        for task in asked:
            carried = task.understand_tokens
            if carried:
                assert visits.pop((task.id, Stage.UNDERSTAND, 0)) == (carried, 0)
                reached["understood"] += 1
            for number, this in enumerate(task.rounds):
                if this.call:
                    assert visits.pop((task.id, Stage.TOOL, number)) == (carried, 0)
                    reached["tool called"] += 1
                assert visits.pop((task.id, Stage.GENERATE, number)) == (this.input_tokens, this.output_tokens)
                carried = this.output_tokens
                reached["another round"] += number > 0
        assert not visits
        for replica in range(len(done.log.accelerators)):  # and the steps did that work, no more and no less
            steps, here = done.steps_of(replica), done.visits_of(stage=Stage.GENERATE, device=replica)
            assert (steps["steps"] * steps["chunk_tokens"]).sum() == here["input_tokens"].sum()
            assert (steps["steps"] * steps["decodes"]).sum() == (here["output_tokens"] - 1).sum()

    check(law, {"understood", "tool called", "another round"})


def test_kv_cache_is_never_overdrawn_and_all_given_back() -> None:
    def law(done: Run, reached: Counter[str]) -> None:
        for replica in engine_devices(done):
            capacity = replica.spec.kv_capacity_tokens
            assert replica.free_kv_tokens == capacity
            assert replica.view() == (0, 0)
            here = done.visits_of(stage=Stage.GENERATE, device=replica.index)
            reserves = done.reserves(here)
            times, changes = np.append(here["served_s"], here["started_s"]), np.append(-reserves, reserves)
            order = np.lexsort((changes, times))
            held = np.cumsum(changes[order])
            assert not len(held) or 0 <= held.min() <= held.max() <= capacity
            # The head of the queue needs what is left and more: it waits for memory.
            for queued_s, started_s, reserve in zip(here["queued_s"], here["started_s"], reserves, strict=True):
                at = np.searchsorted(times[order], np.nextafter(started_s, -np.inf), side="right") - 1
                reached["KV full"] += bool(started_s > queued_s and at >= 0 and held[at] + reserve > capacity)
            reached["several at once"] += bool(len(held) and held.max() > reserves.max())

    check(law, {"KV full", "several at once"})


def test_every_joule_is_booked_once() -> None:
    """Ledger = integral of power = joules of visits and transfers + idle accounts, whatever the scenario."""

    def law(done: Run, reached: Counter[str]) -> None:
        result, visits = done.result(), done.visits
        for column in JOULES:
            assert (visits[column] >= 0).all()
        energy, site = result.energy, done.prepared.system.scenario.site
        assert energy.ledger_gap_fraction <= 1e-9
        by_kind = Counter[str]()
        for _, kind, joules in energy.accounts:
            assert joules >= -1e-9 * energy.total_j
            by_kind[kind] += joules
        assert sum(by_kind.values()) == pytest.approx(energy.total_j, rel=1e-9)
        own = float(
            sum(visits[c].sum() for c in ("dynamic_j", "host_dynamic_j")) + done.tables["transfers"]["joules"].sum()
        )
        assert by_kind["dynamic"] == pytest.approx(own, rel=1e-9)
        assert by_kind["occupied"] == pytest.approx(
            float(visits["idle_j"].sum() + visits["host_idle_j"].sum()), rel=1e-9
        )
        for boundary in ("accelerator", "wall", "facility"):
            full, occupancy, marginal = (energy.tst_j[a][boundary] for a in ("full", "occupancy", "marginal"))
            assert 0 < marginal <= occupancy <= full
        assert energy.total_j == pytest.approx(energy.tst_j["full"]["wall"] * result.tasks * site.pue, rel=1e-9)
        assert energy.mean_w * result.window_s == pytest.approx(energy.total_j, rel=1e-12)
        assert result.output_tokens / energy.total_j == pytest.approx(
            energy.tpw_tokens_per_j["full"]["facility"], rel=1e-12
        )
        reached["moved over a link"] += len(done.tables["transfers"]["task"]) > 0
        reached["drained"] += 0 < energy.drain_j < energy.total_j
        reached["no link"] += not done.log.links

    check(law, {"moved over a link", "drained", "no link"})


def test_power_adds_up_over_windows() -> None:
    """The integral over a window is that over its parts, wherever it is cut: within steps, jobs and transfers too."""

    def law(done: Run, reached: Counter[str]) -> None:
        tables, accounts = done.tables, done.prepared.accounts
        start, end = float(tables["tasks"]["arrival_s"].min()), float(tables["tasks"]["ended_s"].max())
        cuts = [start, *(start + (end - start) * f for f in (0.1, 1 / 3, 0.5, 0.77)), end]
        parts = [facility_joules(done.log, tables, accounts, Window(a, b, b)) for a, b in pairwise(cuts)]
        whole = facility_joules(done.log, tables, accounts, Window(start, end, end))
        assert sum(parts) == pytest.approx(whole, rel=1e-9)
        assert keep_books(done.log, tables, accounts, Window(start, end, end)).joules() == pytest.approx(
            whole, rel=1e-9
        )
        rows = tables["steps"]
        several = rows["steps"] > 1
        reached["cut within coalesced steps"] += any(
            bool((several & (rows["start_s"] < cut) & (cut < rows["end_s"])).any()) for cut in cuts[1:-1]
        )

    check(law, {"cut within coalesced steps"})


# ---- Little's law, order, capacity


def test_littles_law_is_an_identity() -> None:
    """The integral of a population is the sum of its sojourns: populations from the devices' rows, sojourns from the visits'."""

    def law(done: Run, reached: Counter[str]) -> None:
        tasks, visits, tables = done.tables["tasks"], done.visits, done.tables
        sojourns_s = float((tasks["ended_s"] - tasks["arrival_s"]).sum())
        assert integral(*population(tasks["arrival_s"], tasks["ended_s"])) == pytest.approx(sojourns_s, rel=1e-9)
        assert (visits["ended_s"] - visits["ready_s"]).sum() == pytest.approx(sojourns_s, rel=1e-9)
        result = done.result()
        anatomy = [s.transfer_s + s.wait_s + s.service_s + s.outside_s for s in result.stages]
        assert sum(anatomy) * result.tasks == pytest.approx(sojourns_s, rel=1e-9)
        assert result.latency["e2e"].mean_s * result.tasks == pytest.approx(sojourns_s, rel=1e-9)
        # Decoding sequences, from the steps: each decodes from its first token on.
        for replica in range(len(done.log.accelerators)):
            steps, here = done.steps_of(replica), done.visits_of(stage=Stage.GENERATE, device=replica)
            decoding_s = float((steps["decodes"] * (steps["end_s"] - steps["start_s"])).sum())
            paused_s = float((here["served_s"] - here["first_token_s"]).sum()) - decoding_s
            assert paused_s == pytest.approx(0, abs=1e-9 * max(1.0, decoding_s))
            reached["decodes"] += decoding_s > 0
        # Busy cores, from the hosts: the jobs in service, and what engines keep while they step.
        step_s = tables["steps"]["end_s"] - tables["steps"]["start_s"]
        for host, device in enumerate(done.log.hosts):
            mine = tables["cores"]["host"] == host
            busy_s = integral(tables["cores"]["time_s"][mine], tables["cores"]["busy"][mine]) if mine.any() else 0.0
            jobs = (visits["stage"] != Stage.GENERATE) & (visits["device"] == host)
            expected_s = float((visits["served_s"] - visits["started_s"])[jobs].sum())
            for replica in engine_devices(done):
                if replica.host.index == host:
                    expected_s += replica.spec.host_cores * float(
                        step_s[tables["steps"]["device"] == replica.index].sum()
                    )
                    reached["engine and jobs on one host"] += bool(jobs.any())
            assert busy_s == pytest.approx(expected_s, rel=1e-9), device.name

    check(law, {"decodes", "engine and jobs on one host"})


def test_times_are_in_causal_order() -> None:
    def law(done: Run, reached: Counter[str]) -> None:
        visits, linked = done.visits, done.prepared.links
        generated = visits["stage"] == Stage.GENERATE
        for earlier, later in pairwise(("ready_s", "queued_s", "started_s", "served_s", "ended_s")):
            assert (visits[earlier] <= visits[later]).all()
        assert (visits["started_s"] < visits["served_s"]).all()
        assert (visits["started_s"] < visits["first_token_s"])[generated].all()
        assert (visits["first_token_s"] <= visits["served_s"])[generated].all()
        assert np.isnan(visits["first_token_s"][~generated]).all()
        for task in done.prepared.drawn.tasks:
            mine = done.visits_of(task=task.id)
            assert mine["ready_s"][0] == task.arrival_s
            np.testing.assert_array_equal(mine["ready_s"][1:], mine["ended_s"][:-1])
            assert mine["ended_s"][-1] == done.tables["tasks"]["ended_s"][done.tables["tasks"]["task"] == task.id]
            stages = [(int(n), Stage(int(s))) for n, s in zip(mine["round"], mine["stage"], strict=True)]
            assert stages == sorted(stages), "rounds in order; in each the tool before the model"
            reached["waited outside"] += bool((mine["ended_s"] > mine["served_s"]).any())
            reached["waited in a queue"] += bool((mine["started_s"] > mine["queued_s"]).any())
            moved = mine["queued_s"] > mine["ready_s"]
            assert moved.any() <= bool(linked)
            if linked:  # whoever changes place is moved, at no less than latency and bytes take alone
                assert not moved[0]
                costs = next(iter(linked.values()))
                changes = [done.log.pools and _pool_of(done, a) != _pool_of(done, b) for a, b in pairwise(stages)]
                assert moved[1:].tolist() == [
                    c and bool(_linked(done, a, b)) for c, (a, b) in zip(changes, pairwise(stages), strict=True)
                ]
                alone_s = costs.latency_s + (512 + 4 * mine["input_tokens"][moved]) / costs.bytes_per_s
                assert ((mine["queued_s"] - mine["ready_s"])[moved] >= alone_s * (1 - 1e-9)).all()
                reached["moved"] += int(moved.sum())

    check(law, {"waited outside", "waited in a queue", "moved"})


def _pool_of(done: Run, stage: tuple[int, Stage]) -> str:
    return str(getattr(done.prepared.system.scenario.stages, stage[1].name.lower()))


def _linked(done: Run, a: tuple[int, Stage], b: tuple[int, Stage]) -> bool:
    return frozenset((_pool_of(done, a), _pool_of(done, b))) in done.prepared.links


def test_first_come_first_served_at_every_device() -> None:
    def law(done: Run, reached: Counter[str]) -> None:
        for _, devices, stages in _queues(done):
            for device in devices:
                here = done.visits_of(device=device)
                mine = np.isin(here["stage"], stages)
                # At one instant tasks go on in order of their ids.
                order = np.lexsort((here["task"][mine], here["queued_s"][mine]))
                started_s = here["started_s"][mine][order]
                assert (np.diff(started_s) >= 0).all()
                reached["a queue"] += bool((started_s > here["queued_s"][mine][order]).sum() > 1)

    check(law, {"a queue"})


def _queues(done: Run) -> list[tuple[str, tuple[int, ...], list[Stage]]]:
    """Each pool with its devices, and the stages whose visits queue there. Pools may share a host, never a queue."""
    stages = done.prepared.system.scenario.stages
    served = {name: [s for s in Stage if getattr(stages, s.name.lower()) == name] for name in done.log.pools}
    return [(name, pool.devices, served[name]) for name, pool in done.log.pools.items()]


def test_cores_are_never_oversubscribed_nor_idle_while_a_job_waits() -> None:
    def law(done: Run, reached: Counter[str]) -> None:
        cores = done.tables["cores"]
        for host, device in enumerate(done.log.hosts):
            busy = cores["busy"][cores["host"] == host]
            assert not len(busy) or 0 <= busy.min() <= busy.max() <= device.capacity
            assert not len(busy) or busy[-1] == 0
        for name, devices, stages in _queues(done):
            its_cores = done.prepared.cores.get(name, 0)
            for device in devices if its_cores else ():
                here = done.visits_of(device=device)
                mine = np.isin(here["stage"], stages)
                here = {column: values[mine] for column, values in here.items()}
                times, in_service = population(here["started_s"], here["served_s"])
                # Where several changes share an instant, only the last of them is a state that lasts.
                lasting = np.append(np.diff(times) > 0, True)[: len(times)]
                assert not len(times) or 0 <= in_service[lasting].min() <= in_service[lasting].max() <= its_cores
                for queued_s, started_s in zip(here["queued_s"], here["started_s"], strict=True):
                    waited = lasting & (times >= queued_s) & (times < started_s)
                    assert (in_service[waited] == its_cores).all(), "a core was idle while a job waited"
                    reached["jobs waited"] += bool(waited.any())
                reached["all cores busy"] += bool(len(times) and in_service.max() == its_cores)

    check(law, {"jobs waited", "all cores busy"})


def test_batches_keep_their_limits_and_no_replica_holds_back_work() -> None:
    """Step by step: within its limits a step takes all it can; whoever waits through it does so for a limit."""

    def law(done: Run, reached: Counter[str]) -> None:
        for replica in engine_devices(done):
            pool: EnginePool = replica.spec.pool
            seqs, tokens, capacity = pool.max_num_seqs, pool.max_num_batched_tokens, replica.spec.kv_capacity_tokens
            assert seqs is not None
            assert tokens is not None
            steps, here = done.steps_of(replica.index), done.visits_of(stage=Stage.GENERATE, device=replica.index)
            reserves = done.reserves(here)
            assert (steps["end_s"][:-1] <= steps["start_s"][1:]).all(), "one step at a time"
            for start_s, end_s, decodes, chunk in zip(
                *(steps[c] for c in ("start_s", "end_s", "decodes", "chunk_tokens")), strict=True
            ):
                inside = (here["started_s"] <= start_s) & (here["served_s"] > start_s)
                decoding = inside & (here["first_token_s"] <= start_s)
                assert decodes == decoding.sum(), "every sequence that decodes takes part in every step"
                assert inside.sum() <= seqs
                assert decodes + chunk <= tokens
                waits = (here["queued_s"] < start_s) & (here["started_s"] > start_s)
                if (inside & ~decoding).any():
                    reached["chunked prefill"] += bool((here["first_token_s"] > end_s)[inside].any())
                    reached["decodes beside chunks"] += bool(decodes and chunk)
                if waits.any():
                    head = int(np.flatnonzero(waits)[np.lexsort((here["task"][waits], here["queued_s"][waits]))[0]])
                    reasons = {
                        "max_num_seqs reached": inside.sum() == seqs,
                        "token budget exhausted": decodes + chunk == tokens,
                        "KV full": reserves[inside].sum() + reserves[head] > capacity,
                    }
                    assert any(reasons.values()), "a replica left admissible work waiting"
                    reached.update(name for name, holds in reasons.items() if holds)
            for end_s, next_s in [*zip(steps["end_s"][:-1], steps["start_s"][1:], strict=True)]:
                if next_s > end_s:
                    reached["went idle"] += 1
                    assert not ((here["queued_s"] < next_s) & (here["served_s"] > end_s)).any(), (
                        "idle while work waited"
                    )

    check(
        law,
        {
            "chunked prefill",
            "decodes beside chunks",
            "max_num_seqs reached",
            "token budget exhausted",
            "KV full",
            "went idle",
        },
        examples=25,
        stepwise=True,
    )


@pytest.mark.parametrize("router", ROUTERS)
def test_routers_choose_by_the_state_at_the_last_boundary(router: str) -> None:
    """From the step-by-step log, the state that each choice saw, and the choice that its rule makes."""
    reached = Counter[str]()

    @settings(max_examples=15)
    @given(scenarios(crowded=True, routers=[router]))
    def law(data: dict[str, Any]) -> None:
        done = run(prepared_of(data), stepwise=True)
        replicas = engine_devices(done)
        here = done.visits_of(stage=Stage.GENERATE)
        reserves, limits = done.reserves(here), {task.id: task.max_output_tokens for task in done.prepared.drawn.tasks}
        limit = np.array([limits[int(i)] for i in here["task"]])
        order = np.lexsort((here["task"], here["queued_s"]))
        for position, visit in enumerate(order):
            now, before = here["queued_s"][visit], order[:position]
            loads = []
            for replica in replicas:
                sent = before[here["device"][before] == replica.index]
                left = sent[here["served_s"][sent] > now]
                if router == "least-outstanding":
                    loads.append(len(left))
                    continue
                steps = done.steps_of(replica.index)
                processed = ((steps["decodes"] + steps["chunk_tokens"]) * steps["steps"])[steps["end_s"] <= now].sum()
                finished = sent[here["served_s"][sent] <= now]
                returned = (limit[finished] - here["output_tokens"][finished]).sum()
                loads.append(reserves[sent].sum() - processed - (here["first_token_s"][sent] <= now).sum() - returned)
            chosen = position % len(replicas) if router == "round-robin" else loads.index(min(loads))
            assert here["device"][visit] == replicas[chosen].index
            reached["all busy"] += len(replicas) > 1 and bool(loads) and min(loads) > 0
            reached["not the first"] += chosen > 0

    law()
    assert reached["not the first"]
    assert reached["all busy"] or router == "round-robin"


# ---- what results say


def test_latencies_and_objectives_are_what_their_definitions_say() -> None:
    """TTFT and TPOT per visit to the model, answer TTFT and end to end per task; one plain loop over the visits."""

    def law(done: Run, reached: Counter[str]) -> None:
        result = done.result()
        samples: dict[str, list[tuple[int, float]]] = {"ttft": [], "tpot": [], "answer_ttft": [], "e2e": []}
        for task in done.prepared.drawn.tasks:
            rows = done.visits_of(task=task.id, stage=Stage.GENERATE)
            for ready_s, first_s, served_s, tokens in zip(
                *(rows[c] for c in ("ready_s", "first_token_s", "served_s", "output_tokens")), strict=True
            ):
                samples["ttft"].append((task.id, first_s - ready_s))
                if tokens > 1:
                    samples["tpot"].append((task.id, (served_s - first_s) / (tokens - 1)))
            samples["answer_ttft"].append((task.id, rows["first_token_s"][-1] - task.arrival_s))
            samples["e2e"].append((task.id, rows["served_s"][-1] - task.arrival_s))
        good = {task.id for task in done.prepared.drawn.tasks}
        outcomes = {outcome.metric: outcome for outcome in result.slo}
        for metric, pairs in samples.items():
            if not pairs:
                assert metric not in result.latency
                continue
            values = np.array([seconds for _, seconds in pairs])
            spread = result.latency[metric]
            assert (spread.count, spread.max_s) == (len(values), pytest.approx(values.max()))
            assert spread.mean_s == pytest.approx(values.mean())
            for p, said in ((0.5, spread.p50_s), (0.9, spread.p90_s), (0.95, spread.p95_s), (0.99, spread.p99_s)):
                reached["estimable" if said is not None else "not estimable"] += 1
                assert (said is not None) == (len(values) * (1 - p) >= 10)
                assert said is None or said == pytest.approx(np.quantile(values, p))
            objective = getattr(done.prepared.system.scenario.slo, metric)
            kept = [seconds <= objective.max_s for _, seconds in pairs]
            assert outcomes[metric].attained == pytest.approx(np.mean(kept))
            assert outcomes[metric].met == (np.mean(kept) >= objective.p)
            reached["kept" if outcomes[metric].met else "missed"] += 1
            good -= {task for (task, _), keeps in zip(pairs, kept, strict=True) if not keeps}
        assert result.goodput_tasks_per_s * result.window_s == pytest.approx(len(good))
        reached["some tasks good"] += 0 < len(good) < result.tasks

    objectives = {"ttft": 0.05, "tpot": 0.012, "answer_ttft": 0.4, "e2e": 0.8}
    check(
        law,
        {"estimable", "not estimable", "kept", "missed", "some tasks good"},
        slo={metric: {"max_s": max_s, "p": 0.5} for metric, max_s in objectives.items()},
    )


def test_pools_are_as_busy_as_their_devices() -> None:
    def law(done: Run, reached: Counter[str]) -> None:
        result, tables = done.result(), done.tables
        for use in result.pools:
            pool = done.log.pools[use.pool]
            if pool.engine:
                rows = np.isin(tables["steps"]["device"], pool.devices)
                seconds = (tables["steps"]["end_s"] - tables["steps"]["start_s"])[rows]
                assert use.mean_batch == pytest.approx(
                    float((tables["steps"]["decodes"][rows] * seconds).sum() / seconds.sum())
                )
                capacity, busy_s = len(pool.devices), seconds.sum()
            else:
                stages = next(stages for name, _, stages in _queues(done) if name == use.pool)
                mine = np.isin(done.visits["stage"], stages)
                busy_s = (done.visits["served_s"] - done.visits["started_s"])[mine].sum()
                capacity = done.prepared.cores[use.pool] * len(pool.devices)
            assert use.busy_fraction == pytest.approx(busy_s / capacity / result.window_s)
            assert use.busy_fraction <= 1 + 1e-9
            reached["busy"] += use.busy_fraction > 0.5

    check(law, {"busy"})


# ---- equivalences


def test_coalesced_equals_step_by_step() -> None:
    """Times bit for bit, joules to 1e-9, and the coalesced run did coalesce."""

    def law(done: Run, reached: Counter[str]) -> None:
        slow = run(done.prepared, stepwise=True)
        for column in ("task", "round", "stage", "device", *TIMES):
            np.testing.assert_array_equal(done.visits[column], slow.visits[column], err_msg=column)
        for column in JOULES:
            np.testing.assert_allclose(done.visits[column], slow.visits[column], rtol=1e-9, atol=1e-12, err_msg=column)
        for table in ("tasks", "cores", "transfers"):
            for column, values in done.tables[table].items():
                np.testing.assert_array_equal(values, slow.tables[table][column], err_msg=f"{table}.{column}")
        fast_rows, slow_rows = done.steps, slow.steps
        assert (slow_rows["steps"] == 1).all()
        assert fast_rows["steps"].sum() == slow_rows["steps"].sum()
        reached["coalesced"] += len(fast_rows["steps"]) < len(slow_rows["steps"]) / 2
        reached["coalesced chunks"] += bool(((fast_rows["steps"] > 1) & (fast_rows["chunk_tokens"] > 0)).any())
        # A segment cut by an arrival: it ends, and the next begins with more sequences, without any having finished.
        same = fast_rows["end_s"][:-1] == fast_rows["start_s"][1:]
        cut = same & (fast_rows["chunk_tokens"][:-1] == 0) & (fast_rows["chunk_tokens"][1:] > 0)
        reached["cut by an arrival"] += bool((cut & (fast_rows["steps"][:-1] > 1)).any())
        fast, total = done.result(), slow.result()
        assert fast.energy.total_j == pytest.approx(total.energy.total_j, rel=1e-9)
        assert fast.latency == total.latency

    check(law, {"coalesced", "coalesced chunks", "cut by an arrival"}, examples=40)


TICK = 32
TICK_S = TICK * UNIT_S


def on_a_grid(prepared: Prepared, costs: GridCosts) -> Prepared:
    """The same system with all times whole multiples of one unit: ends, arrivals and boundaries meet all the time."""

    def whole(seconds: float) -> float:
        return round(seconds / TICK_S) * TICK_S

    tasks = []
    for task in prepared.drawn.tasks:
        rounds = [
            r if r.call is None else replace(r, call=replace(r.call, outside_wait_s=whole(r.call.outside_wait_s)))
            for r in task.rounds
        ]
        tasks.append(replace(task, arrival_s=whole(task.arrival_s), rounds=tuple(rounds)))
    return replace(
        prepared,
        drawn=replace(prepared.drawn, tasks=tasks),
        replicas={name: replace(spec, costs=costs) for name, spec in prepared.replicas.items()},
        understand={name: OperationCost(TICK_S) for name in prepared.understand},
        tool_s=dict.fromkeys(prepared.tool_s, 2 * TICK_S),
        links={ends: LinkCosts(TICK_S, 2.0**40, 0.0) for ends in prepared.links},
    )


def test_coalesced_equals_step_by_step_where_everything_meets() -> None:
    """One order among the events of an instant: tasks that reach a replica at the end of its step, several at once."""
    reached = Counter[str]()

    @settings(max_examples=40)
    @given(st.one_of(scenarios(), scenarios(crowded=True)), st.integers(1, 4), st.integers(0, 1))
    def law(data: dict[str, Any], base: int, per_token: int) -> None:
        prepared = on_a_grid(prepared_of(data), GridCosts(TICK * base, TICK * per_token, 0, 0, 60, TICK))
        fast, slow = run(prepared), run(prepared, stepwise=True)
        for column in ("task", "round", "stage", "device", *TIMES):
            np.testing.assert_array_equal(fast.visits[column], slow.visits[column], err_msg=column)
        for column in JOULES:
            np.testing.assert_allclose(fast.visits[column], slow.visits[column], rtol=1e-9, atol=1e-9, err_msg=column)
        for replica in engine_devices(slow):
            steps, here = slow.steps_of(replica.index), slow.visits_of(stage=Stage.GENERATE, device=replica.index)
            queued_s, ids = np.unique(here["queued_s"], return_counts=True)
            reached["several at one instant"] += bool((ids > 1).any())
            met = np.isin(here["queued_s"], np.intersect1d(steps["end_s"][:-1], steps["start_s"][1:]))
            reached["arrived at the end of a step"] += bool(met.any())
            reached["arrived together at the end of a step"] += bool(
                (ids > 1)[np.isin(queued_s, here["queued_s"][met])].any()
            )
        reached["coalesced"] += len(fast.steps["steps"]) < len(slow.steps["steps"]) / 2

    law()
    needed = {
        "several at one instant",
        "arrived at the end of a step",
        "arrived together at the end of a step",
        "coalesced",
    }
    assert needed <= set(+reached), f"never reached: {needed - set(+reached)}"


def digest(data: dict[str, Any]) -> str:
    """Everything that a run says, as one hash."""
    done = run(prepared_of(data))
    said = json.dumps({k: v for k, v in done.result().as_dict().items() if k != "scenario"})
    columns = (column.tobytes() for table in done.tables.values() for column in table.values())
    return hashlib.sha256(b"".join([said.encode(), *columns])).hexdigest()


def test_same_seed_same_bytes_in_every_process() -> None:
    data = agents(cores=2, tensor_parallel=4, replicas=2)
    code = f"import sys; sys.path[:0] = {sys.path!r}\nfrom test_laws import digest\nprint(digest({data!r}))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {digest(data)}
    assert digest(data | {"seed": 1}) != digest(data)


@settings(max_examples=15)
@given(scenarios(), st.integers(1, 30))
def test_tasks_do_not_depend_on_the_fleet_nor_on_tasks_or_classes_beside_them(data: dict[str, Any], more: int) -> None:
    drawn = prepared_of(data).drawn.tasks
    other_fleet = deepcopy(data)
    other_fleet["fleet"]["gpu-tier"]["count"] = 4
    other_fleet["pools"]["decode"] |= {"replicas": 4, "max_num_seqs": 5}
    assert prepared_of(other_fleet).drawn.tasks == drawn

    longer = deepcopy(data)
    longer["workload"]["tasks"] += more
    longer["assume"] = {}  # memory for all
    assert prepared_of(longer).drawn.tasks[: len(drawn)] == drawn

    with_class = deepcopy(longer)
    with_class["workload"]["tasks"] -= more
    with_class["workload"]["classes"]["new"] = {"input_tokens": 7, "output_tokens": 3, "max_output_tokens": 8}
    changed = prepared_of(with_class).drawn.tasks
    assert [task.arrival_s for task in changed] == [task.arrival_s for task in drawn]
    same_class = [(a, b) for a, b in zip(drawn, changed, strict=True) if a.class_name == b.class_name]
    assert all(a == b for a, b in same_class)


# ---- metamorphic


def slower(data: dict[str, Any], k: float) -> dict[str, Any]:
    """The same system and load with all seconds k times as long, and so all watts a k-th. Names end in their units."""
    system = system_of(data)
    prepare(system)
    changed = deepcopy(data)
    assume = changed.setdefault("assume", {})
    for name, use in system.figures.used.items():
        figure = name.split(".", 1)[1]
        if re.search(r"per_s\b", figure):
            factor = 1 / k
        elif figure.endswith("_s") or "_s_per_" in figure:
            factor = k
        elif figure.endswith("_w"):
            factor = 1 / k
        else:
            factor = 1.0
        at = assume
        *parents, last = name.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = use.value * factor
    changed["workload"]["arrivals"]["rate_per_s"] /= k
    for tool in changed["tools"].values():
        tool["outside_wait_s"] |= {key: k * tool["outside_wait_s"][key] for key in ("median", "p95")}
    return changed


def test_scaling_all_times_scales_all_sojourns_and_no_joule() -> None:
    reached = Counter[str]()

    @settings(max_examples=15)
    @given(scenarios(), st.sampled_from([0.5, 2.0, 8.0]))
    def law(data: dict[str, Any], k: float) -> None:
        base, scaled = run(prepared_of(data)), run(prepared_of(slower(data, k)))
        for column in TIMES:
            np.testing.assert_allclose(scaled.visits[column], k * base.visits[column], rtol=1e-9)
        for column in JOULES:
            np.testing.assert_allclose(scaled.visits[column], base.visits[column], rtol=1e-9, atol=1e-12)
        assert scaled.result().energy.total_j == pytest.approx(base.result().energy.total_j, rel=1e-9)
        reached["queued"] += bool((base.visits["started_s"] > base.visits["queued_s"]).any())
        reached["waited outside"] += bool((base.visits["ended_s"] > base.visits["served_s"]).any())
        reached["moved"] += len(base.tables["transfers"]["task"]) > 0

    law()
    assert {"queued", "waited outside", "moved"} <= set(+reached)


def test_prices_and_the_site_change_no_second_and_no_direct_joule() -> None:
    data = agents(tensor_parallel=4)
    dear = data | {"site": {"pue": 2.5, "usd_per_kwh": 1.2, "gco2_per_kwh": 700, "cost": {"basis": "own"}}}
    dear["assume"] = {"hgx-h100-8": {"capex_usd": 300_000}, "epyc-9654-2s": {"capex_usd": 40_000}}
    base, other = run(prepared_of(data)), run(prepared_of(dear))
    np.testing.assert_array_equal(base.visits["ended_s"], other.visits["ended_s"])
    a, b = base.result(), other.result()
    assert b.energy.total_j == pytest.approx(2 * a.energy.total_j)  # pue 1.25 by default
    assert b.money.gco2_per_task == pytest.approx(4 * a.money.gco2_per_task)
    years_s = 4 * 365.25 * 24 * 3600
    assert b.money.servers_usd == pytest.approx(340_000 / years_s * b.window_s)
    assert b.money.electricity_usd == pytest.approx(b.energy.total_j / 3.6e6 * 1.2)
    assert a.money.electricity_usd == 0
    assert a.money.servers_usd == pytest.approx((23.6 + 4.76) / 3600 * a.window_s)
    assert b.money.usd_per_task * b.tasks == pytest.approx(b.money.servers_usd + b.money.electricity_usd)


# ---- physics guards


def test_no_step_beats_the_chip_and_power_stays_between_floor_and_cap() -> None:
    """FLOPs and bytes are counted here, from the model alone; seconds and joules come from the log."""

    def law(done: Run, reached: Counter[str]) -> None:
        system, model = done.prepared.system, done.prepared.system.model
        chip, figures = system.tier_of("decode").chip, system.figures
        ways = done.prepared.replicas["decode"].pool.tensor_parallel
        peak, bandwidth, floor_w, cap_w, idle_w = (
            ways * figures.value(chip, name)
            for name in (
                "peak_flops_per_s.bf16",
                "memory_bytes_per_s",
                "power.floor_w",
                "power.cap_w",
                "power.loaded_idle_w",
            )
        )
        weights = model.layer_parameters + model.vocabulary * model.hidden_size
        rows = done.steps
        for k in (0, rows["steps"] - 1):
            seconds = rows["seconds"] + k * rows["seconds_growth"]
            watts = idle_w + (rows["joules"] + k * rows["joules_growth"]) / seconds
            context = rows["context_tokens"] + k * rows["decodes"]
            new_tokens = rows["decodes"] + rows["chunk_tokens"]
            flops = 2 * model.layer_parameters * new_tokens
            flops += 4 * model.layers * model.attention_heads * model.head_dim * (rows["pairs"] + context)
            assert (flops <= peak * seconds).all()
            assert (2 * weights + 2 * model.kv_elements_per_token * context <= bandwidth * seconds).all()
            assert (watts >= floor_w * (1 - 1e-12)).all()
            assert (watts <= cap_w * (1 + 1e-12)).all()
            reached["near the bandwidth"] += bool((2 * weights > 0.5 * bandwidth * seconds).any())
        assert (rows["end_s"] > rows["start_s"]).all()
        assert rows["end_s"] - rows["start_s"] == pytest.approx(
            rows["steps"] * (rows["seconds"] + (rows["steps"] - 1) / 2 * rows["seconds_growth"]), rel=1e-9, abs=1e-9
        )

    check(law, {"near the bandwidth"})


def test_power_reaches_the_cap_and_no_further() -> None:
    data = generate_only(max_num_batched_tokens=8192)
    data["workload"]["classes"]["chat"] |= {"input_tokens": 6000, "output_tokens": 2}
    done = run(prepared_of(data))
    watts = 121.7 + done.steps["joules"] / done.steps["seconds"]
    assert watts.max() == pytest.approx(686, rel=1e-12)
    assert ((done.steps["chunk_tokens"] > 4000) & (watts > 685.9)).any()


def test_a_replica_at_full_load_makes_the_tokens_that_its_steps_allow() -> None:
    """Saturation: a batch that is always full makes max_num_seqs tokens in the seconds that one such step takes."""
    data = generate_only(max_num_seqs=8)
    data["workload"]["arrivals"]["rate_per_s"] = 1e4
    data["workload"]["tasks"] = 64
    data["workload"]["classes"]["chat"] |= {"input_tokens": 100, "output_tokens": 64}
    prepared = prepared_of(data)
    done, figures, chip = run(prepared), prepared.system.figures, prepared.system.tier_of("decode").chip

    def of(name: str) -> float:
        return figures.value(prepared.system.engines["decode"] if name.startswith("host_") else chip, name)

    def step_s(context: int) -> float:
        return step_by_kernels(prepared.system.model, of, 1, "bf16", [context] * 8, [])[0]

    full = done.steps["decodes"] == 8
    rate = (done.steps["steps"] * 8)[full].sum() / (done.steps["end_s"] - done.steps["start_s"])[full].sum()
    assert 8 / step_s(164) <= rate <= 8 / step_s(101)
    assert (done.steps["steps"][full]).sum() > 400


def test_outstanding_tokens_fall_step_by_step() -> None:
    """What a router sees of a busy replica falls within a coalesced segment as it does step by step."""
    data = generate_only()
    data["workload"]["classes"]["chat"] |= {"input_tokens": 100, "output_tokens": 60}
    data["workload"]["tasks"] = 1
    prepared = prepared_of(data)
    arrival_s = prepared.drawn.tasks[0].arrival_s
    seen = [
        [_outstanding_at(prepared, arrival_s + t, stepwise) for t in np.linspace(0.001, 0.6, 40)]
        for stepwise in (False, True)
    ]
    assert seen[0] == seen[1]
    assert all(a >= b for a, b in pairwise(seen[0]))
    assert len(set(seen[0])) > 20
    assert seen[0][0] == 164
    assert seen[0][-1] == 0


def _outstanding_at(prepared: Prepared, time_s: float, stepwise: bool) -> int:
    env, log = EngineEnvironment(), Log()
    pipeline = build(env, log, prepared, ModelledTime(env, stepwise))
    task = prepared.drawn.tasks[0]
    env.call_at(task.arrival_s, TASK_ARRIVES, lambda _: env.process(live(env, log, pipeline, task)))
    env.run(until=time_s)
    return int(pipeline.pools[Stage.GENERATE].devices[0].view().outstanding_tokens)
