"""Memory beside the accelerators' own: weights that stay there, and contexts that several replicas share."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import Run, engine_devices, generate_only, prepared_of, run, scenarios, with_kv
from test_elastic import broken
from test_precision import alike, switched
from test_tool_gaps import FREE, one_task, treated

from hsim.costs.geared import Geared
from hsim.costs.shapes import StepShape
from hsim.costs.streamed import StreamedCosts
from hsim.drivers.prepared import prepare
from hsim.errors import DescriptionError
from hsim.metrics.ledger import Window, keep_books
from hsim.metrics.power import facility_joules
from hsim.runs import system_of

CAPACITY = 3e9


def pooled(data: dict[str, Any], n_bytes: float = CAPACITY, policy: str = "offload", **link: float) -> dict[str, Any]:
    """The same with contexts in gaps in a memory that all replicas share, over a link whose figures may be others."""
    changed = deepcopy(data)
    changed["pools"]["decode"] |= {"tool_gaps": policy, "prefix_caching": True, "memory": "pool"}
    changed["memory"] = {"pool": {"on": "gpu-tier", "bytes": n_bytes, "link": "cxl"}}
    changed.setdefault("assume", {})["cxl"] = {"latency_s": 0, "joules_per_byte": 0, "bytes_per_s": 1e30} | link
    return changed


# ---- weights


def test_weights_that_stay_in_host_memory_leave_their_bytes_to_keys_and_values_and_take_their_time_at_every_step() -> (
    None
):
    plain = prepared_of(generate_only()).replicas["decode"]
    moved = prepared_of(generate_only(host_weight_bytes=5e9, host_link="pcie5-pinned")).replicas["decode"]
    assert (moved.kv_blocks - plain.kv_blocks) * 16 * 131_072 == pytest.approx(5e9, abs=2 * 16 * 131_072)
    for shape in (StepShape(3, 900), StepShape(2, 50, 1, 500, 500, 125_250, 250_000)):
        one, other = plain.costs.segment(shape), moved.costs.segment(shape)
        read_s = 6e-6 + 5e9 / 55.4e9
        assert other.seconds - one.seconds == pytest.approx(read_s, rel=1e-9)
        busy_w = 122.1 - 121.7  # no kernel runs meanwhile
        assert other.joules - one.joules == pytest.approx(5e9 * 40e-12 + busy_w * read_s, rel=1e-6)
        assert (other.seconds_growth, other.context_joules) == pytest.approx((one.seconds_growth, one.context_joules))


def test_a_governor_shifts_caps_of_replicas_whose_weights_stay_elsewhere_too() -> None:
    governor = {"caps_w": [400, 600], "target": 0.5, "every_s": 1, "takes_s": 0}
    data = generate_only(host_weight_bytes=5e9, host_link="pcie5-pinned", governor=governor)
    costs = prepared_of(data).replicas["decode"].costs
    assert isinstance(costs, Geared)
    assert all(isinstance(gear, StreamedCosts) for gear in costs.gears)


def test_a_model_larger_than_its_card_runs_with_the_rest_in_host_memory() -> None:
    data = generate_only() | {"model": "llama-3.1-70b"}
    with pytest.raises(DescriptionError, match=r"has 141.1 GB of weights; 1 x h100-sxm leave 68.0 GB"):
        prepared_of(data)
    data["pools"]["decode"] |= {"host_weight_bytes": 80e9, "host_link": "pcie5-pinned"}
    data["workload"]["tasks"] = 5
    done, slow = run(prepared_of(data)), run(prepared_of(data), stepwise=True)
    alike(done, slow)
    assert (done.steps["seconds"] > 80e9 / 55.4e9).all()
    assert done.result().energy is not None  # the ledger holds


def test_one_copy_serves_all_replicas_and_its_link_is_shared_by_them() -> None:
    def read_s(replicas: int, **link: float) -> float:
        data = generate_only(replicas=replicas, host_weight_bytes=5e9, memory="pool")
        data["memory"] = {"pool": {"on": "gpu-tier", "bytes": 5e9, "link": "cxl"}}
        data.setdefault("assume", {})["cxl"] = {"latency_s": 0, "bytes_per_s": 50e9} | link
        shape, plain = StepShape(1, 100), prepared_of(generate_only(replicas=replicas)).replicas["decode"]
        return prepared_of(data).replicas["decode"].costs.segment(shape).seconds - plain.costs.segment(shape).seconds

    assert read_s(1) == pytest.approx(0.1, rel=1e-9)
    assert read_s(5) == pytest.approx(0.5, rel=1e-9)  # five gigabytes hold the copy of all five
    assert read_s(5, latency_s=1) == pytest.approx(1.5, rel=1e-9)


def test_replicas_of_a_server_share_its_memorys_rate() -> None:
    """Eight links of 55 GB/s want more than two sockets' DRAM gives, were it slower."""
    data = generate_only(replicas=8, host_weight_bytes=5e9, host_link="pcie5-pinned")
    data["assume"]["xeon-8480c"] = {"memory_bytes_per_s": 40e9}
    step = prepared_of(data).replicas["decode"].costs.segment(StepShape(1, 100)).seconds
    plain = prepared_of(generate_only(replicas=8)).replicas["decode"].costs.segment(StepShape(1, 100)).seconds
    assert step - plain == pytest.approx(5e9 / (2 * 40e9 / 8), rel=1e-9)


# ---- contexts


def law_of_bytes(done: Run, capacity: float) -> None:
    """What is in the memory is what came and has not left: never above capacity, nothing left at the end."""
    held, gaps = done.tables["memory"], done.tables["gaps"]
    kv_bytes = done.prepared.replicas["decode"].gaps.kv_bytes_per_token  # type: ignore[union-attr]
    assert (held["bytes"] >= 0).all()
    assert (held["bytes"] <= capacity).all()
    offered = gaps["tokens"][gaps["choice"] == 2]
    if len(held["bytes"]):
        assert held["bytes"][-1] == 0
        changes = np.diff(held["bytes"], prepend=0.0)
        came, left = changes[changes > 0], -changes[changes < 0]
        assert came.sum() == pytest.approx(left.sum(), rel=1e-9)
        np.testing.assert_allclose(np.sort(came), np.sort(offered * kv_bytes), rtol=1e-6)
        np.testing.assert_allclose(np.sort(came), np.sort(left), rtol=1e-6)


def test_bytes_of_a_pool_are_conserved_and_laws_hold_however_little_it_has() -> None:
    reached = Counter[str]()

    @settings(max_examples=40)
    @given(
        st.one_of(scenarios(), scenarios(crowded=True)), st.sampled_from([1.0, 1.6, 50.0]), st.sampled_from([2e7, 1e8, 1e11]),
        st.sampled_from([None, 0.3]), st.sampled_from([1e30, 2e10, 2e8]), st.booleans(),
    )  # fmt: skip
    def law(data: dict[str, Any], room: float, n_bytes: float, timeout_s: Any, rate: float, own: bool) -> None:
        for kind in data["workload"]["classes"].values():
            kind["context"] = "grows"
            if timeout_s:
                kind["timeout_s"] = timeout_s
        policy = ["offload", "least-waste", "least-joules"][data["seed"] % 3]
        data = pooled(with_kv(data, room), n_bytes, policy, bytes_per_s=rate, joules_per_byte=1e-10)
        if own:
            data["pools"]["decode"]["host_link"] = "pcie5-pinned"
        prepared = prepared_of(data)
        done, slow = run(prepared), run(prepared, stepwise=True)
        alike(done, slow)
        law_of_bytes(done, n_bytes)
        tables, accounts = done.tables, prepared.accounts
        assert sorted(tables["tasks"]["task"]) == [task.id for task in prepared.drawn.tasks]
        for replica in engine_devices(done):
            assert replica.kv.free_blocks == replica.kv.capacity_blocks
            assert not replica.kv._kept
            assert replica._gaps is None or not len(replica._gaps._store)
        end_s = float(tables["tasks"]["ended_s"].max())
        window = Window(0.0, end_s, end_s)
        joules = keep_books(done.log, tables, accounts, window).joules()
        assert joules == pytest.approx(facility_joules(done.log, tables, accounts, window), rel=1e-9)
        choices, gaps = Counter(tables["gaps"]["choice"].tolist()), tables["gaps"]
        reached["offloaded"] += choices[2]
        reached["no room"] += choices[3]
        reached["given up"] += int((tables["tasks"]["outcome"] == 1).sum())
        after = {
            (t, r - 1): d
            for t, r, d in zip(*(done.visits_of(stage=3)[c] for c in ("task", "round", "device")), strict=True)
        }
        moved = [
            (t, r, d)
            for t, r, d, c in zip(*(gaps[c] for c in ("task", "round", "device", "choice")), strict=True)
            if c == 2
        ]
        reached["to another replica"] += sum(after.get((t, r), d) != d for t, r, d in moved)
        reached["back to its own"] += sum(after.get((t, r), -1) == d for t, r, d in moved)

    law()
    needed = {"offloaded", "no room", "given up", "to another replica", "back to its own"}
    assert needed <= set(+reached), reached


def test_a_pool_outlives_its_replicas_and_switches_go_on_after_breakdowns() -> None:
    """Replicas break down every so often: what is in the pool stays there, what is on its way is gone, and no byte leaks."""
    reached = Counter[str]()

    @settings(max_examples=20)
    @given(scenarios(), st.sampled_from([0.05, 0.2, 1.0]), st.booleans())
    def law(data: dict[str, Any], mtbf_s: float, switches: bool) -> None:
        for kind in data["workload"]["classes"].values():
            kind["context"] = "grows"
        data = broken(pooled(with_kv(data, 2), 1e11, bytes_per_s=1e9), "decode", mtbf_s, 0.01, retries=1)
        data["assume"]["vllm"]["load_s"] = 0.01
        if switches:
            data = switched(data, policy="kv", above=0.2, below=0.1, weights="reload", link="pcie5-pinned")
        prepared = prepared_of(data)
        done, slow = run(prepared), run(prepared, stepwise=True)
        alike(done, slow)
        law_of_bytes(done, 1e11)
        assert sorted(done.tables["tasks"]["task"]) == [task.id for task in prepared.drawn.tasks]
        if (done.tables["tasks"]["outcome"] == 0).any():
            assert done.result().energy.ledger_gap_fraction <= 1e-9
        reached["lost"] += len(done.tables["losses"]["task"])
        reached["offloaded"] += len(done.tables["memory"]["time_s"])
        reached["both"] += bool(len(done.tables["losses"]["task"]) and len(done.tables["switches"]["device"]))

    law()
    assert {"lost", "offloaded", "both"} <= set(+reached), reached


def test_a_pool_of_one_replica_with_a_free_link_is_its_own_host_memory() -> None:
    reached = Counter[str]()

    @settings(max_examples=15)
    @given(scenarios(routers=["round-robin"]))
    def law(data: dict[str, Any]) -> None:
        for kind in data["workload"]["classes"].values():
            kind["context"] = "grows"
        data["pools"]["decode"]["replicas"] = 1
        data = with_kv(data, 2)
        own, shared = run(prepared_of(treated(data, "offload", **FREE))), run(prepared_of(pooled(data, 2e10)))
        for column in ("task", "round", "queued_s", "started_s", "served_s", "ended_s"):
            np.testing.assert_array_equal(own.visits[column], shared.visits[column], err_msg=column)
        reached["offloaded"] += len(shared.tables["memory"]["time_s"])

    law()
    assert reached["offloaded"]


def test_contexts_that_move_at_once_share_the_link() -> None:
    """Two tasks in step on two replicas: their contexts take twice as long on the shared link as one alone."""
    link = {"bytes_per_s": 1e9, "latency_s": 0.25, "joules_per_byte": 1e-9}
    alone, two = one_task(50.0), one_task(50.0)
    two["workload"] |= {"tasks": 2, "arrivals": {"kind": "closed", "users": 2}}
    two["pools"]["decode"]["replicas"] = 2
    two["workload"]["classes"]["agent"].pop("understand")
    alone["workload"]["classes"]["agent"].pop("understand")
    took = []
    for data in (alone, two):
        transfers = run(prepared_of(pooled(data, **link))).tables["transfers"]
        took.append(transfers["end_s"] - transfers["start_s"])
        np.testing.assert_allclose(transfers["joules"], transfers["bytes"] * 1e-9)
    first = 352 * 131_072 / 1e9  # whole blocks of 320 + 32 tokens
    assert took[0][0] == pytest.approx(0.25 + first, rel=1e-9)
    assert took[1][:2] == pytest.approx([0.25 + 2 * first] * 2, rel=1e-9)


def test_what_cannot_be_is_refused() -> None:
    def refused(data: dict[str, Any]) -> str:
        with pytest.raises(DescriptionError) as error:
            prepared_of(data)
        return str(error.value)

    data = generate_only(prefix_caching=True)
    assert "there is no memory 'pool'" in refused(pooled(data) | {"memory": {}})
    assert "the fleet has no tier 'gpu'" in refused(
        pooled(data) | {"memory": {"pool": {"on": "gpu", "bytes": 1, "link": "cxl"}}}
    )
    unused = pooled(data, policy="cache")
    assert "nothing of pool 'decode' goes to the memory 'pool'; say what goes there" in refused(unused)
    assert "are more than 1 x hgx-h100-8 have; at most 2e+12 bytes" in refused(pooled(data, 3e12))
    both = pooled(data)
    both["pools"]["decode"]["host_weight_bytes"] = 1e9
    assert "give contexts a memory of their own" in refused(both)
    assert "host_link is missing" in refused(generate_only(host_weight_bytes=1e9))
    large = generate_only(host_weight_bytes=10e9, memory="pool")
    large["memory"] = {"pool": {"on": "gpu-tier", "bytes": 5e9, "link": "cxl"}}
    assert "10.0 GB of weights are to stay in 5.0 GB" in refused(large)
    moe = generate_only(host_weight_bytes=1e9, host_link="pcie5-pinned") | {"model": "qwen3-30b-a3b"}
    assert "has experts, of which a step needs some" in refused(moe)
    more = generate_only(host_weight_bytes=20e9, host_link="pcie5-pinned")
    assert "more than the 16.1 GB of weights" in refused(more)


@pytest.mark.parametrize("architecture", ["offload", "pruned"])
def test_the_shipped_scenario_of_a_large_model_runs(architecture: str) -> None:
    done = run(prepare(system_of("bigger-than-card", [f"architecture={architecture}", "workload.tasks=12"])))
    assert done.result().energy is not None


@pytest.mark.parametrize(("architecture", "n_bytes"), [("cxl", 240e9), ("remote", 600e9)])
def test_the_shipped_scenario_of_pools_conserves_bytes(architecture: str, n_bytes: float) -> None:
    done = run(prepare(system_of("memory-pool", [f"architecture={architecture}", "workload.tasks=12"])))
    assert len(done.tables["memory"]["bytes"])
    law_of_bytes(done, n_bytes)
