"""Options of engine pools: experts shared out, groups, keys and values of 8 bits, a power cap; and the way to the queue."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from systems import generate_only, prepared_of, run

from hsim.drivers.live import _check_decoders
from hsim.errors import DescriptionError

MOE = {"model": "qwen3-30b-a3b"}
KV_PER_TOKEN = 2 * 2 * 48 * 4 * 128  # bytes of qwen3-30b-a3b: keys and values of 48 layers, 4 heads, 128 wide


def moe(**pool: Any) -> dict[str, Any]:
    return generate_only(**pool) | MOE


def test_a_replica_takes_the_accelerators_of_all_its_groups() -> None:
    prepared = prepared_of(moe(tensor_parallel=2, data_parallel=2, replicas=2))
    assert prepared.replicas["decode"].idle_w == pytest.approx(4 * 121.7)
    with pytest.raises(DescriptionError, match="3 replicas of 4 accelerators do not fit on tier 'gpu-tier'; 2 fit"):
        prepared_of(moe(tensor_parallel=2, data_parallel=2, replicas=3))
    with pytest.raises(DescriptionError, match="16 accelerators do not fit in one hgx-h100-8 with 8"):
        prepared_of(moe(tensor_parallel=8, data_parallel=2))
    finished = run(prepared)
    assert finished.log.pools["decode"].what == "2 x 4 h100-sxm"
    assert finished.result().energy is not None  # the ledger balances: four more stand spare


def test_every_group_has_its_own_copy_of_all_but_the_experts() -> None:
    """Arithmetic: memory of the devices, less experts once and everything else once a group, over bytes a token."""
    model = prepared_of(moe(tensor_parallel=2, replicas=1)).system.model
    others = 2 * (model.parameters - model.expert_parameters)
    usable = 80e9 * 0.9 - 4e9
    for ways, groups in ((2, 1), (2, 2), (1, 4)):
        spec = prepared_of(moe(tensor_parallel=ways, data_parallel=groups, replicas=1)).replicas["decode"]
        free = ways * groups * usable - 2 * model.expert_parameters - groups * others
        assert spec.kv_blocks == int(free // KV_PER_TOKEN) // 16


def test_whole_experts_or_slices_of_them_take_other_times() -> None:
    sliced, whole = (run(prepared_of(moe(tensor_parallel=4, expert_parallel=e))).steps for e in (False, True))
    assert sliced["seconds"][0] != whole["seconds"][0]


def test_keys_and_values_of_8_bits_take_half_the_cache_and_half_the_time_a_token_of_context() -> None:
    data = generate_only(), generate_only(kv_precision="fp8")
    plain, eight = (prepared_of(d) for d in data)
    assert eight.kv_bytes_per_token == plain.kv_bytes_per_token / 2
    assert eight.replicas["decode"].kv_blocks == pytest.approx(2 * plain.replicas["decode"].kv_blocks, abs=1)
    assert run(eight).steps["seconds_growth"].sum() < run(plain).steps["seconds_growth"].sum()


def test_a_capped_pool_never_draws_more_and_is_slower() -> None:
    """Above idle, by step of the log; and the ledger holds, which result() asserts."""
    data = generate_only(), generate_only(power_cap_w=400)
    for each in data:
        each["workload"]["classes"]["chat"]["input_tokens"] = 2000
    free, capped = (run(prepared_of(d)) for d in data)
    above_w = capped.steps["joules"] / capped.steps["seconds"]
    assert above_w.max() <= 400 - 121.7 + 1e-6
    assert (free.steps["joules"] / free.steps["seconds"]).max() > 400
    assert capped.visits["served_s"].max() > free.visits["served_s"].max()
    assert capped.result().energy.mean_w < free.result().energy.mean_w


def test_a_cap_that_no_clock_keeps_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        DescriptionError, match=r"pools.decode.power_cap_w: a step of 1 sequences draws \d+ W more than the cap"
    ):
        prepared_of(generate_only(power_cap_w=130))


@pytest.mark.parametrize("stepwise", [False, True])
def test_the_way_to_the_queue_delays_the_first_token_and_holds_nothing(stepwise: bool) -> None:
    """Every visit is queued later by as much; with nobody in the way, served later by as much, for the same joules."""
    data = generate_only()
    data["workload"]["arrivals"]["rate_per_s"] = 0.5
    later = data | {"assume": {"vllm": {"request_latency_s": 0.25}}}
    base, other = (run(prepared_of(d), stepwise) for d in (data, later))
    np.testing.assert_allclose(other.visits["queued_s"] - other.visits["ready_s"], 0.25, rtol=1e-9)
    np.testing.assert_allclose(other.visits["first_token_s"] - base.visits["first_token_s"], 0.25, rtol=1e-9)
    np.testing.assert_allclose(other.visits["dynamic_j"], base.visits["dynamic_j"], rtol=1e-9)


@pytest.mark.parametrize("option", [{"kv_precision": "fp8"}, {"power_cap_w": 500}])
def test_a_live_run_refuses_what_its_decoder_does_not_set(option: dict[str, Any]) -> None:
    prepared = prepared_of(generate_only(prefix_caching=False, **option))
    with pytest.raises(
        DescriptionError, match=f"pools.decode.{next(iter(option))}: hsim's own decoder does not set it"
    ):
        _check_decoders(prepared)


def test_an_engine_profile_without_that_figure_delays_nothing() -> None:
    data = generate_only(engine="vllm-0.11.1")
    del data["assume"]
    finished = run(prepared_of(data))
    assert (finished.visits["queued_s"] == finished.visits["ready_s"]).all()


def test_a_result_says_how_far_such_predictions_erred_and_warns_where_nobody_measured() -> None:
    known, unknown = (
        run(prepared_of(d)).result()
        for d in (
            generate_only(),
            generate_only()
            | {"model": "llama-4-scout", "pools": {"decode": {"runs_on": "gpu-tier.gpu", "tensor_parallel": 8}}},
        )
    )
    assert any("TPOT of dense models on h100-sxm under vllm erred by" in line for line in known.accuracy)
    assert not any("low confidence" in warning for warning in known.warnings)
    assert any("no run of experts-llama4 models under vllm was measured" in line for line in unknown.accuracy)
    assert any(w.startswith("pool decode: low confidence: vllm was not measured on the path") for w in unknown.warnings)
