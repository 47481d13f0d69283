"""The life of a task where it is more than visits one after another: closed loops, deadlines, full queues, handed-over KV."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import agents, engine_devices, generate_only, prepared_of, run, scenarios
from test_exact import shape_of

from hsim.drivers.prepared import Prepared
from hsim.log import Outcome, Stage

# ---- closed loops


def closed(users: int, think: Any, tasks: int = 24) -> dict[str, Any]:
    data = agents(cores=1)
    data["workload"] |= {"arrivals": {"kind": "closed", "users": users, "think_s": think}, "tasks": tasks}
    return data


@pytest.mark.parametrize("users", [1, 5, 40])
@pytest.mark.parametrize("think", [0, {"kind": "exponential", "mean": 0.5}], ids=["no thinking", "thinking"])
def test_a_user_thinks_asks_and_waits_for_the_answer(users: int, think: Any) -> None:
    done = run(prepared_of(closed(users, think)))
    tasks = done.tables["tasks"]
    arrival_s, ended_s = (dict(zip(tasks["task"], tasks[c], strict=True)) for c in ("arrival_s", "ended_s"))
    drawn = done.prepared.drawn.tasks
    assert sorted(arrival_s) == [task.id for task in drawn]
    assert {task.user for task in drawn} == set(range(min(users, len(drawn))))
    for user in range(users):
        free_s = 0.0
        for task in [task for task in drawn if task.user == user]:
            assert (task.think_s > 0) == (think != 0)
            assert arrival_s[task.id] == free_s + task.think_s
            free_s = ended_s[task.id]
    starts, ends = np.sort(tasks["arrival_s"]), np.sort(tasks["ended_s"])
    present = [int((starts <= t).sum() - (ends <= t).sum()) for t in starts]
    assert max(present) <= users
    assert users == 40 or max(present) == users


def test_more_users_have_the_same_tasks() -> None:
    few, many = (prepared_of(closed(n, {"kind": "exponential", "mean": 0.5})).drawn.tasks for n in (3, 10))
    assert [(t.rounds, t.think_s) for t in few] == [(t.rounds, t.think_s) for t in many]
    assert [t.user for t in few] != [t.user for t in many]


# ---- deadlines and full queues


def test_who_is_given_up_on_the_way_never_queues() -> None:
    """The link to the engine takes longer than clients wait: nobody prompts it, though tools were in time."""
    data = agents()
    data["workload"]["tasks"] = 8
    data["workload"]["classes"]["agent"]["timeout_s"] = 50.0
    data["assume"]["ethernet-100g"] = {"latency_s": 60.0}
    done = run(prepared_of(data))
    assert set(done.visits["stage"]) == {Stage.UNDERSTAND, Stage.TOOL}
    assert (done.tables["tasks"]["outcome"] == Outcome.TIMED_OUT).all()


def test_nobody_waits_for_a_tool_beyond_the_deadline() -> None:
    data = agents()
    data["workload"]["tasks"] = 8
    data["tools"] = {"slow": {"operation": "http-call", "outside_wait_s": {"kind": "constant", "value": 600.0}}}
    data["workload"]["classes"]["agent"] |= {"tools": {"slow": 1}, "timeout_s": 50.0}
    tasks = run(prepared_of(data)).tables["tasks"]
    assert (tasks["outcome"] == Outcome.TIMED_OUT).all()
    np.testing.assert_array_equal(tasks["ended_s"], tasks["arrival_s"] + 50.0)


def test_who_is_given_up_leaves_a_queue_at_once_a_replica_at_the_next_boundary_and_a_core_when_it_is_done() -> None:
    reached = Counter[str]()

    @settings(max_examples=40)
    @given(st.one_of(scenarios(), scenarios(crowded=True)), st.sampled_from([0.05, 0.3, 1.0]), st.booleans())
    def law(data: dict[str, Any], timeout_s: float, stepwise: bool) -> None:
        for kind in data["workload"]["classes"].values():
            kind["timeout_s"] = timeout_s
        done = run(prepared_of(data), stepwise)
        tasks, visits = done.tables["tasks"], done.visits
        order = np.argsort(tasks["task"])
        assert tasks["task"][order].tolist() == [task.id for task in done.prepared.drawn.tasks]
        arrival_s, ended_s, outcome = (tasks[c][order] for c in ("arrival_s", "ended_s", "outcome"))
        assert (outcome == np.where(ended_s < arrival_s + timeout_s, Outcome.SERVED, Outcome.TIMED_OUT)).all()
        deadline_s = (arrival_s + timeout_s)[visits["task"].astype(int)]
        assert (visits["queued_s"] < deadline_s).all(), "nobody queues who has been given up"
        gone = visits["outcome"] == Outcome.TIMED_OUT
        assert (outcome[visits["task"][gone].astype(int)] == Outcome.TIMED_OUT).all()
        ends = {i: done.steps_of(i)["end_s"] for i in range(len(done.log.accelerators))}
        rows = zip(
            *(visits[c][gone] for c in ("started_s", "served_s", "stage", "device")), deadline_s[gone], strict=True
        )
        for started_s, served_s, stage, device, due_s in rows:
            assert served_s >= due_s
            assert served_s > started_s or served_s == due_s
            if served_s == due_s:
                reached["left a queue" if started_s == served_s else "left a queue after it was preempted"] += 1
            elif stage == Stage.GENERATE:
                assert served_s == ends[int(device)][ends[int(device)] >= due_s].min()
                reached["left a replica"] += 1
            else:
                reached["worked to its end"] += 1
        served = ~gone & (visits["stage"] == Stage.GENERATE)
        tokens = {(t.id, n): r.output_tokens for t in done.prepared.drawn.tasks for n, r in enumerate(t.rounds)}
        for i, number, said in zip(*(visits[c][served] for c in ("task", "round", "output_tokens")), strict=True):
            assert said == tokens[int(i), int(number)]
        reached["served"] += int((outcome == Outcome.SERVED).sum())
        for replica in engine_devices(done):
            assert replica.kv.free_blocks == replica.kv.capacity_blocks
            assert replica._outstanding_tokens == 0

    law()
    assert {"left a queue", "left a replica", "worked to its end", "served"} <= set(+reached), reached


def test_a_deadline_that_nobody_misses_changes_nothing() -> None:
    data = agents(cores=1, replicas=2)
    patient = run(prepared_of(data))
    data["workload"]["classes"]["agent"]["timeout_s"] = 1e6
    done = run(prepared_of(data))
    for column, values in patient.visits.items():
        np.testing.assert_array_equal(values, done.visits[column], err_msg=column)


@pytest.mark.parametrize("limit", [1, 3])
def test_a_visit_that_finds_a_full_queue_is_shed(limit: int) -> None:
    data = generate_only(max_num_seqs=2, max_waiting=limit)
    data["workload"]["tasks"] = 60
    done = run(prepared_of(data))
    visits, tasks = done.visits, done.tables["tasks"]
    shed = visits["outcome"] == Outcome.SHED
    assert 5 < shed.sum() < 55
    for moment in ("started_s", "served_s", "ended_s"):
        np.testing.assert_array_equal(visits[moment][shed], visits["queued_s"][shed])
    assert set(tasks["task"][tasks["outcome"] == Outcome.SHED]) == set(visits["task"][shed])
    kept = {column: values[~shed] for column, values in visits.items()}
    for queued_s, is_shed in zip(visits["queued_s"], shed, strict=True):
        waiting = ((kept["queued_s"] < queued_s) & (kept["started_s"] > queued_s)).sum()
        assert waiting <= limit
        assert is_shed == (waiting == limit)
    assert done.result().shed == shed.sum()


def test_a_task_that_failed_is_late_as_often_as_others_have_visits() -> None:
    """Else nine in ten of the prompts would seem to be in time where a quarter of the tasks were turned away."""
    data = generate_only(max_num_seqs=2, max_waiting=1)
    data["workload"]["tasks"] = 90
    data["workload"]["classes"]["chat"]["rounds"] = {"kind": "constant", "value": 3}
    data["slo"] = {"ttft": {"max_s": 1e6, "p": 0.5}, "e2e": {"max_s": 1e6, "p": 0.5}}
    result = run(prepared_of(data)).result()
    assert 5 < result.shed < 85
    served = 1 - result.shed / 90
    assert {each.metric: each.attained for each in result.slo} == pytest.approx({"ttft": served, "e2e": served})


# ---- prefill in a pool of its own, and prefixes


def with_prefill_pool(**pool: Any) -> dict[str, Any]:
    data = generate_only(prefix_caching=False)
    data["fleet"]["prefill-tier"] = {"server": "hgx-h100-8", "count": 1}
    data["pools"]["prefill"] = {"runs_on": "prefill-tier.gpu", "replicas": 1, "prefix_caching": False, **pool}
    data["stages"]["prefill"] = "prefill"
    data["links"] = {"prefill-decode": "ethernet-100g"}
    return data


@pytest.mark.parametrize("output_tokens", [1, 2, 30])
def test_alone_with_a_prefill_pool_a_task_takes_the_sum_of_its_parts(output_tokens: int) -> None:
    """Its prompt in one pool, its keys and values over the link, its answer but for the first token in the other."""
    data = with_prefill_pool(max_num_batched_tokens=64)
    data["workload"]["tasks"] = 1
    data["workload"]["classes"]["chat"] |= {"input_tokens": 150, "output_tokens": output_tokens}
    prepared = prepared_of(data)
    done, (task,), link = run(prepared), prepared.drawn.tasks, prepared.networks["prefill-decode"]
    costs = prepared.replicas["prefill"].costs
    now_s = task.arrival_s
    for before, chunk in ((0, 64), (64, 64), (128, 22)):
        now_s += costs.segment(shape_of([], [(before, chunk)])).seconds
    first = done.visits_of(stage=Stage.PREFILL)
    assert first["first_token_s"] == first["ended_s"] == pytest.approx(now_s, rel=1e-9)
    assert first["output_tokens"] == 1
    if output_tokens > 1:
        kv_bytes = 150 * 2 * prepared.system.model.kv_elements_per_token
        now_s += link.latency_s + (512 + kv_bytes) / link.bytes_per_s
        second = done.visits_of(stage=Stage.GENERATE)
        assert second["queued_s"] == second["started_s"] == pytest.approx(now_s, rel=1e-9)
        assert second["output_tokens"] == output_tokens - 1
        for n in range(1, output_tokens):
            now_s += prepared.replicas["decode"].costs.segment(shape_of([150 + n], [])).seconds
    assert done.tables["tasks"]["ended_s"] == pytest.approx(now_s, rel=1e-9)
    assert len(done.tables["transfers"]["task"]) == (output_tokens > 1)
    for replica in (*done.pipeline.pools[Stage.PREFILL].devices, *engine_devices(done)):
        assert replica.kv.free_blocks == replica.kv.capacity_blocks


def test_keys_and_values_stay_where_they_were_made_until_they_have_arrived_elsewhere() -> None:
    """A prefill replica with room for one prompt: the next begins when the link has taken the last one's away."""
    data = with_prefill_pool(gpu_memory_utilization=0.9)
    data["workload"]["classes"]["chat"] |= {"input_tokens": 150, "output_tokens": 5}
    data["workload"]["tasks"] = 6
    data["workload"]["arrivals"]["rate_per_s"] = 1e4
    prepared = prepared_of(data)
    blocks = -(-214 // prepared.replicas["prefill"].pool.block_tokens)
    prefill = replace(prepared.replicas["prefill"], kv_blocks=blocks)
    done = run(replace(prepared, replicas=prepared.replicas | {"prefill": prefill}))
    first, second = (done.visits_of(stage=stage) for stage in (Stage.PREFILL, Stage.GENERATE))
    assert len(first["task"]) == len(second["task"]) == 6
    assert (first["started_s"][1:] == second["queued_s"][:-1]).all()
    assert (second["queued_s"] > first["ended_s"]).all()


def prefilled_tokens(prepared: Prepared) -> list[int]:
    """Prompt tokens computed for each round of the one task."""
    done = run(prepared, stepwise=True)
    steps, rounds = done.steps, done.visits_of(stage=Stage.GENERATE)
    return [
        int(steps["chunk_tokens"][(steps["start_s"] >= start_s) & (steps["end_s"] <= end_s)].sum())
        for start_s, end_s in zip(rounds["started_s"], rounds["served_s"], strict=True)
    ]


@pytest.mark.parametrize("size", [1, 16])
@pytest.mark.parametrize("caching", [True, False])
def test_a_round_computes_what_the_cache_has_not_kept_of_the_one_before(size: int, caching: bool) -> None:
    data = agents(split=False, block_tokens=size, prefix_caching=caching)
    data["workload"]["tasks"] = 1
    data["workload"]["classes"]["agent"] |= {"rounds": 4, "context": "grows"}
    prepared = prepared_of(data)
    expected, kept = [], 0
    for this in prepared.drawn.tasks[0].rounds:
        found = min(kept, this.shared_tokens) // size * size
        expected.append(this.input_tokens - found)
        # What has been through the model: all but the last token of the answer, in whole blocks.
        kept = (this.input_tokens + this.output_tokens - 1) // size * size if caching else 0
    assert prefilled_tokens(prepared) == expected
    assert caching == (sum(expected[1:]) < sum(r.input_tokens for r in prepared.drawn.tasks[0].rounds[1:]))
