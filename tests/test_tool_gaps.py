"""KV cache of a task that waits for a tool: held, moved to host memory, dropped, or what costs least."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import Run, agents, engine_devices, generate_only, prepared_of, run, scenarios, with_kv

from hsim.costs.shapes import StepShape
from hsim.errors import DescriptionError
from hsim.log import Gap, Stage
from hsim.metrics.ledger import Window, keep_books
from hsim.metrics.power import facility_joules
from hsim.policies.gaps import GAPS, GapView, least_joules, least_waste

FREE = {"latency_s": 0, "per_message_s": 0, "bytes_per_s": 1e30, "joules_per_byte": 0}


def treated(data: dict[str, Any], policy: str, **link: float) -> dict[str, Any]:
    """The same with a policy for gaps, and a way to host memory whose figures may be others."""
    changed = deepcopy(data)
    pool = changed["pools"]["decode"]
    pool |= {"tool_gaps": policy, "prefix_caching": True}
    if policy in ("offload", "least-waste", "least-joules"):
        pool |= {"host_link": "pcie5-pinned", "host_kv_bytes": 2e10}
        changed.setdefault("assume", {})["pcie5-pinned"] = link or {}
    return changed


def one_task(wait_s: float = 5.0) -> dict[str, Any]:
    """One agent in three rounds whose context grows, alone."""
    data = agents(split=False)
    data["workload"]["tasks"] = 1
    data["tools"]["slow-api"]["outside_wait_s"] = {"kind": "constant", "value": wait_s}
    data["workload"]["classes"]["agent"] |= {
        "rounds": 3, "tools": {"slow-api": 1}, "first_round_tool": False, "context": "grows",
        "input_tokens": 320, "output_tokens": 33, "max_output_tokens": 48,
    }  # fmt: skip
    return data


def prefilled(done: Run) -> float:
    return float((done.steps["steps"] * done.steps["chunk_tokens"]).sum())


def chosen(done: Run) -> Counter[str]:
    return Counter(Gap(choice).name.lower() for choice in done.tables["gaps"]["choice"])


def test_drop_and_recompute_costs_exactly_one_prefill_of_the_context() -> None:
    """In tokens, seconds and joules, round by round, beside a context that was held."""
    held, dropped = run(prepared_of(treated(one_task(), "hold"))), run(prepared_of(treated(one_task(), "drop")))
    assert chosen(held) == {"hold": 2}
    assert chosen(dropped) == {"drop": 2}
    contexts = held.tables["gaps"]["tokens"]
    assert contexts.tolist() == [(320 + 32) // 16 * 16, (320 + 33 + 320 + 32) // 16 * 16]
    assert prefilled(dropped) - prefilled(held) == contexts.sum()
    costs = held.prepared.replicas["decode"].costs

    def prefill(before: int, tokens: int) -> Any:
        pairs = tokens * before + tokens * (tokens + 1) // 2
        return costs.segment(StepShape(0, 0, 1, tokens, before + tokens, pairs))

    rows = [done.visits_of(stage=Stage.GENERATE) for done in (held, dropped)]
    for i, context in enumerate(contexts.astype(int), start=1):
        whole, rest = prefill(0, int(rows[0]["input_tokens"][i])), None
        rest = prefill(context, int(rows[0]["input_tokens"][i]) - context)
        seconds, joules = ([r["served_s"][i] - r["started_s"][i] for r in rows], [r["dynamic_j"][i] for r in rows])
        assert seconds[1] - seconds[0] == pytest.approx(whole.seconds - rest.seconds, rel=1e-9)
        assert joules[1] - joules[0] == pytest.approx(whole.joules - rest.joules, rel=1e-6)


def test_offloading_for_nothing_equals_holding_with_room_for_all() -> None:
    """And both equal free blocks that nobody needs: to the last bit of every time, whatever the load."""
    reached = Counter[str]()

    @settings(max_examples=25)
    @given(scenarios(routers=["round-robin"]))
    def law(data: dict[str, Any]) -> None:
        for kind in data["workload"]["classes"].values():
            kind["context"] = "grows"
        data["pools"]["decode"]["replicas"] = 1
        data = with_kv(data, 1000)
        held = run(prepared_of(treated(data, "hold")))
        offloaded = run(prepared_of(treated(data, "offload", **FREE)))
        cached = run(prepared_of(treated(data, "cache")))
        for other in (offloaded, cached):
            for column in ("task", "round", "stage", "queued_s", "started_s", "first_token_s", "served_s", "ended_s"):
                np.testing.assert_array_equal(held.visits[column], other.visits[column], err_msg=column)
            for column in ("dynamic_j", "idle_j", "host_dynamic_j", "host_idle_j"):
                np.testing.assert_allclose(held.visits[column], other.visits[column], rtol=1e-9, atol=1e-12)
        reached["held"] += chosen(held)["hold"]
        reached["offloaded"] += chosen(offloaded)["offload"]
        reached["came back"] += len(offloaded.tables["transfers"]["task"]) > len(held.tables["transfers"]["task"])

    law()
    assert {"held", "offloaded", "came back"} <= set(+reached), reached


def test_what_moves_takes_the_time_and_the_joules_of_its_bytes_both_ways() -> None:
    link = {"latency_s": 0.25, "per_message_s": 0, "bytes_per_s": 1e9, "joules_per_byte": 1e-9}
    held = run(prepared_of(treated(one_task(), "hold")))
    moved = run(prepared_of(treated(one_task(), "offload", **link)))
    contexts = moved.tables["gaps"]["tokens"]
    n_bytes = contexts * moved.prepared.replicas["decode"].gaps.kv_bytes_per_token
    transfers = moved.tables["transfers"]
    assert sorted(transfers["bytes"]) == sorted([*n_bytes, *n_bytes])
    np.testing.assert_allclose(transfers["end_s"] - transfers["start_s"], 0.25 + transfers["bytes"] / 1e9, rtol=1e-9)
    np.testing.assert_allclose(transfers["joules"], transfers["bytes"] * 1e-9)
    late_s = np.concatenate([[0.0], np.cumsum(0.25 + n_bytes / 1e9)])
    served = [done.visits_of(stage=Stage.GENERATE)["served_s"] for done in (held, moved)]
    np.testing.assert_allclose(served[1] - served[0], late_s, rtol=1e-6)
    assert prefilled(moved) == prefilled(held)


def test_who_is_back_before_its_context_has_left_finds_it_where_it_was() -> None:
    slow = {"latency_s": 100.0, "per_message_s": 0, "bytes_per_s": 1e9, "joules_per_byte": 0}
    held, moving = (
        run(prepared_of(treated(one_task(), "hold"))),
        run(prepared_of(treated(one_task(), "offload", **slow))),
    )
    np.testing.assert_array_equal(held.visits["served_s"], moving.visits["served_s"])
    assert len(moving.tables["transfers"]["task"]) == 2  # out, and never back


def test_where_host_memory_is_full_the_context_is_dropped() -> None:
    data = treated(one_task(), "offload")
    data["pools"]["decode"]["host_kv_bytes"] = 1e3
    assert chosen(run(prepared_of(data))) == {"drop": 2}


def test_laws_hold_with_every_policy_and_little_memory() -> None:
    """No task is lost, no block leaks, joules balance, and coalesced equals step by step."""
    reached = Counter[str]()

    def law(data: dict[str, Any], policy: str, room: float, timeout_s: float | None) -> None:
        for kind in data["workload"]["classes"].values():
            kind["context"] = "grows"
            if timeout_s:
                kind["timeout_s"] = timeout_s
        prepared = prepared_of(treated(with_kv(data, room), policy))
        done, slow = run(prepared), run(prepared, stepwise=True)
        tables, accounts = done.tables, prepared.accounts
        assert sorted(tables["tasks"]["task"]) == [task.id for task in prepared.drawn.tasks]
        for table in ("tasks", "cores", "transfers", "gaps", "preemptions"):
            for column, values in tables[table].items():
                np.testing.assert_array_equal(values, slow.tables[table][column], err_msg=f"{table}.{column}")
        for replica in engine_devices(done):
            kv = replica.kv
            assert kv.free_blocks == kv.capacity_blocks
            assert not kv._kept
            assert not kv._shared
            assert kv._cached_blocks == sum(kv._cached.values()) <= kv.capacity_blocks
            assert replica._outstanding_tokens == 0
            if replica._gaps:
                assert replica._gaps.at_rest
                assert replica._gaps._store.used_bytes == 0
            reached["evicted"] += kv.evicted_blocks > 0
        end_s = float(tables["tasks"]["ended_s"].max())
        window = Window(0.0, end_s, end_s)
        joules = keep_books(done.log, tables, accounts, window).joules()
        assert joules == pytest.approx(facility_joules(done.log, tables, accounts, window), rel=1e-9)
        reached.update(chosen(done))
        reached["preempted"] += len(tables["preemptions"]["task"])
        reached["given up"] += int((tables["tasks"]["outcome"] == 1).sum())

    rooms, limits = st.sampled_from([1.0, 1.6, 4.0]), st.sampled_from([None, 0.3])
    for policy in sorted(GAPS):  # each so often, and crowded so often: left to chance, one may hardly come up
        for crowded in (False, True):
            drawn = given(scenarios(crowded=crowded), st.just(policy), rooms, limits)
            settings(max_examples=6)(drawn(law))()
    assert {"hold", "offload", "drop", "preempted", "given up", "evicted"} <= set(+reached), reached


def test_a_prompt_in_chunks_is_not_kept_from_ending_by_contexts_that_are_held() -> None:
    """Two contexts leave room for its first chunk alone: they give way, rather than that it begins again for ever."""
    data = one_task(50.0)
    data["workload"] |= {"tasks": 3, "arrivals": {"kind": "uniform", "rate_per_s": 0.2}}
    data["workload"]["classes"]["agent"] |= {"rounds": 2, "input_tokens": 600}
    data["pools"]["decode"]["max_num_batched_tokens"] = 8
    done = run(prepared_of(treated(with_kv(data, 1.0), "hold")))
    assert chosen(done) == {"hold": 3}
    assert not len(done.tables["preemptions"]["task"])
    assert (done.tables["tasks"]["outcome"] == 0).all()


VIEW = GapView(
    context_tokens=1000, expected_gap_s=1.0, recompute_s=0.1, recompute_j=50.0, transfer_s=0.02, transfer_j=0.1,
    fits_host=True, capacity_tokens=100_000, used_fraction=0.5, others_tokens=0, idle_w=200.0,
)  # fmt: skip


def test_the_cheapest_by_memory_depends_on_the_gap_and_on_who_else_waits() -> None:
    assert least_waste(VIEW) == "offload"
    assert least_waste(VIEW._replace(expected_gap_s=0.03)) == "hold"
    assert least_waste(VIEW._replace(fits_host=False)) == "drop"
    assert least_waste(VIEW._replace(fits_host=False, others_tokens=9_500)) == "hold"
    assert least_waste(VIEW._replace(transfer_s=0.06)) == "drop"


def test_the_cheapest_by_joules_holds_what_keeps_nothing_from_anybody() -> None:
    assert least_joules(VIEW._replace(used_fraction=0.0)) == "hold"
    assert least_joules(VIEW) == "offload"  # 0.2 J of links against 1 J of memory and 70 J of computing
    assert least_joules(VIEW._replace(transfer_j=1.0)) == "hold"
    assert least_joules(VIEW._replace(transfer_j=100.0, expected_gap_s=100.0)) == "drop"


def test_what_cannot_be_is_refused_with_what_would_be_right() -> None:
    def refused(**pool: Any) -> str:
        data = generate_only(prefix_caching=True)
        data["pools"]["decode"] |= pool
        with pytest.raises(DescriptionError) as error:
            prepared_of(data)
        return str(error.value)

    assert "did you mean 'hold'?" in refused(tool_gaps="holt")
    assert "set prefix_caching to true" in refused(tool_gaps="hold", prefix_caching=False)
    assert "host_kv_bytes is missing" in refused(tool_gaps="offload")
    assert "host_link is missing" in refused(tool_gaps="offload", host_kv_bytes=1e9)
    link = {"tool_gaps": "offload", "host_link": "pcie5-pinned"}
    assert "of its 2e+12; at most 2e+12" in refused(**link, host_kv_bytes=3e12)
