"""Communication: representations and their cost at both ends, batching of messages, compression, kinds of memory."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from systems import Run, agents, generate_only, prepared_of, run

from hsim.errors import DescriptionError
from hsim.log import Stage

LATENCY_S, RATE, MESSAGE_S = 1e-4, 1e9, 2e-3


def with_link(
    data: dict[str, Any], latency_s: float = LATENCY_S, rate: float = RATE, set_up_s: float = MESSAGE_S
) -> Any:
    """Its link takes so long, and each of its messages holds it for set_up_s."""
    changed = deepcopy(data)
    changed["links"] = dict.fromkeys(changed["links"], "ethernet-100g-batched")
    figures = {"latency_s": latency_s, "bytes_per_s": rate, "per_message_s": set_up_s}
    changed.setdefault("assume", {})["ethernet-100g-batched"] = figures
    return changed


def together(tasks: int, window_s: float = 0.0) -> dict[str, Any]:
    """So many tools that end in one instant, whose prompts then cross one link."""
    data = agents(cores=tasks)
    data["workload"] |= {"tasks": tasks, "arrivals": {"kind": "uniform", "rate_per_s": 1e15}}
    kind = data["workload"]["classes"]["agent"]
    del kind["understand"]
    kind |= {"rounds": 1, "tools": {"vector-search-1m": 1}, "input_tokens": 100}
    data["stages"] = {"tool": "agents", "generate": "decode"}
    data["assume"] |= {"epyc-9654": {"contention_slowdown": 1}}
    data["payload"] = {"window_s": window_s}
    return with_link(data)


def prompts_there_s(finished: Run) -> Any:
    """When each prompt was at the engine, after its tool had ended."""
    tools, prompts = finished.visits_of(stage=Stage.TOOL), finished.visits_of(stage=Stage.GENERATE)
    return np.sort(prompts["queued_s"]) - tools["ended_s"].max()


@pytest.mark.parametrize("k", [1, 2, 7])
def test_batching_k_messages_saves_k_less_one_set_ups(k: int) -> None:
    """Together they take latency, one set-up and all their bytes; one by one each pays its set-up."""
    window_s = 1e-2
    alone, batched = (prompts_there_s(run(prepared_of(together(k, w)))) for w in (0.0, window_s))
    n_bytes = k * (512 + 4 * 100)
    assert alone[-1] == pytest.approx(LATENCY_S + k * MESSAGE_S + n_bytes / RATE, rel=1e-9)
    assert np.allclose(batched, window_s + LATENCY_S + MESSAGE_S + n_bytes / RATE, rtol=1e-9)
    assert alone[-1] - (batched[-1] - window_s) == pytest.approx((k - 1) * MESSAGE_S, abs=1e-12)


def test_messages_of_a_window_are_booked_each_to_its_own_task() -> None:
    finished = run(prepared_of(together(5, 1e-2)))
    transfers = finished.tables["transfers"]
    assert sorted(transfers["task"]) == list(range(5))
    assert set(transfers["bytes"]) == {912.0}
    assert transfers["joules"].sum() == pytest.approx(5 * 912 * 32e-12)
    assert finished.result().energy is not None  # the books balance


def test_a_transfer_that_costs_nothing_equals_none() -> None:
    """A link on one server that takes no time, beside no link at all: the same run."""
    plain = agents(split=False)
    free = deepcopy(plain) | {"links": {"agents-decode": "ethernet-100g"}}
    free["assume"] |= {"ethernet-100g": {"latency_s": 0, "bytes_per_s": 1e30, "joules_per_byte": 0}}
    without, over = (run(prepared_of(data)) for data in (plain, free))
    assert len(over.tables["transfers"]["task"]) > 30
    for column, values in without.visits.items():
        assert np.allclose(over.visits[column], values, rtol=1e-12, atol=1e-12, equal_nan=True), column
    ours, theirs = without.result().energy, over.result().energy
    assert ours
    assert theirs
    assert theirs.total_j == pytest.approx(ours.total_j, rel=1e-12)


def alone(**payload: Any) -> dict[str, Any]:
    """One task with understanding and one tool on a CPU server, one prompt, one answer."""
    data = agents()
    data["workload"]["tasks"] = 1
    data["workload"]["classes"]["agent"] |= {
        "understand": {"op": "encode-minilm", "tokens": 200}, "rounds": 2, "tools": {"vector-search-1m": 1},
        "input_tokens": 1000, "output_tokens": 40,
    }  # fmt: skip
    data["payload"] = payload
    return with_link(data)


# (bytes of a message of n tokens, core-seconds of writing them, of reading them), from the profile wire by hand
KINDS = {
    "text": (lambda n: 512 + 3.6 * n, lambda n: 80e-9 * n, lambda n: 30e-6 + 1e-6 * n),
    "token-ids": (lambda n: 512 + 4 * n, lambda n: 0.0, lambda n: 0.0),
    "token-ids-json": (lambda n: 512 + 7.13 * n, lambda n: 44e-9 * n, lambda n: 42e-9 * n),
    "embedding": (lambda n: 512 + 1536.0, lambda n: 0.0, lambda n: 0.0),
    "hidden-states": (lambda n: 512 + 2 * 4096 * n, lambda n: 0.0, lambda n: 0.0),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_representation_has_its_bytes_and_its_cost_at_both_ends(name: str) -> None:
    """tool -> model: the tool's core writes 1,000 tokens, the link carries them, the engine's server reads them; and
    model -> tool: 40 tokens, written by the engine's server and read by the tool's core."""
    n_bytes, write_s, read_s = KINDS[name]
    free, finished = run(prepared_of(alone())), run(prepared_of(alone(representation=name)))
    tools, prompts = finished.visits_of(stage=Stage.TOOL), finished.visits_of(stage=Stage.GENERATE)
    plain = free.visits_of(stage=Stage.TOOL)

    def link_s(n: int) -> float:
        return LATENCY_S + MESSAGE_S + n_bytes(n) / RATE

    assert (prompts["queued_s"] - prompts["ready_s"]).tolist() == pytest.approx([link_s(1000) + read_s(1000)] * 2)
    assert tools["queued_s"][1] - tools["ready_s"][1] == pytest.approx(write_s(40) + link_s(40))
    added_s = (tools["served_s"] - tools["started_s"]) - (plain["served_s"] - plain["started_s"])
    assert added_s.tolist() == pytest.approx([write_s(1000), read_s(40) + write_s(1000)], abs=1e-12)
    assert sorted(finished.tables["transfers"]["bytes"]) == pytest.approx(
        sorted([n_bytes(1000), n_bytes(40), n_bytes(1000)])
    )


def test_cores_that_write_and_read_draw_joules() -> None:
    joules = [
        run(prepared_of(alone(representation=name))).visits_of(stage=Stage.TOOL)["dynamic_j"]
        for name in ("token-ids", "text")
    ]
    assert (joules[1] > joules[0]).all()


def test_compression_trades_bytes_for_core_seconds() -> None:
    """zstd-1 of 4,512 bytes: 2.887 times fewer, at 510 MB/s at one end and 1,580 MB/s at the other."""
    free, finished = (run(prepared_of(alone(**payload))) for payload in ({}, {"compression": "zstd-1"}))
    assert max(finished.tables["transfers"]["bytes"]) == pytest.approx(4512 / 2.887)
    prompts = finished.visits_of(stage=Stage.GENERATE)
    moved_s = LATENCY_S + MESSAGE_S + 4512 / 2.887 / RATE + 4512 / 1580e6
    assert (prompts["queued_s"] - prompts["ready_s"])[0] == pytest.approx(moved_s)
    first = [its.visits_of(stage=Stage.TOOL) for its in (free, finished)]
    ours, theirs = (float(its["served_s"][0] - its["started_s"][0]) for its in first)
    assert theirs - ours == pytest.approx(4512 / 510e6, rel=1e-6)


def handed_over(memory: str) -> dict[str, Any]:
    """Prompts prefilled on cores, their KV cache moved to a GPU of the same server over PCIe."""
    data = generate_only(prefix_caching=False)
    data["workload"] |= {"tasks": 6, "arrivals": {"kind": "uniform", "rate_per_s": 0.5}}
    data["workload"]["classes"]["chat"]["input_tokens"] = 300
    data["pools"]["first"] = {"runs_on": "gpu-tier.cpu", "engine": "vllm-cpu", "cores_per_replica": 56}
    data["stages"]["prefill"] = "first"
    data["links"] = {"first-decode": memory}
    return data


def test_prefill_on_cores_hands_its_cache_to_the_gpu_by_the_kind_of_memory() -> None:
    """131,072 bytes a token: pageable memory is staged by a core, pinned and zero-copy are not."""
    n_bytes = 512 + 131_072 * 300
    expected = {
        "pcie5-pageable": 6e-6 + n_bytes / 16.5e9, "pcie5-pinned": 6e-6 + n_bytes / 55.4e9,
        "pcie5-zero-copy": 1e-6 + n_bytes / 55.4e9,
    }  # fmt: skip
    for memory, seconds in expected.items():
        finished = run(prepared_of(handed_over(memory)))
        visits = finished.visits_of(stage=Stage.GENERATE)
        assert (visits["queued_s"] - visits["ready_s"]) == pytest.approx(seconds, rel=1e-9)
        energy = finished.result().energy
        assert energy
        booked = {(account, kind): joules for account, kind, joules in energy.accounts}
        assert booked["transfer", "dynamic"] == pytest.approx(len(visits["task"]) * n_bytes * 40e-12)
        assert booked["prefill: host cores", "dynamic"] > 0


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({"representation": "txt"}, "payload.representation: there is no representation 'txt'; did you mean 'text'"),
        ({"compression": "zip"}, "payload.compression: there is no compression 'zip'; known: lz4, zstd-1"),
        ({"representation": "text", "bytes_per_token": 3}, "bytes_per_token is said by the representation"),
    ],
)
def test_what_is_not_there_is_refused_by_name(payload: dict[str, Any], says: str) -> None:
    with pytest.raises(DescriptionError) as refused:
        prepared_of(alone(**payload))
    assert says in str(refused.value)
