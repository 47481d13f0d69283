"""A run in the words of vLLM's benchmark: against the log taken apart by other means, and read back as a trace."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.prepared import prepare
from hsim.drivers.simulated import run
from hsim.log import Log, Stage
from hsim.metrics.summarise import summarise
from hsim.metrics.vllm_bench import vllm_bench
from hsim.workload.traces import read_trace

SCENARIO = """
model: llama-3.1-8b
workload:
  arrivals: {kind: poisson, rate_per_s: 30}
  tasks: 200
  classes:
    chat:
      input_tokens: {kind: lognormal, median: 300, p95: 2000, at_most: 3000}
      output_tokens: {kind: geometric, mean: 60, at_most: 300}
      max_output_tokens: 300
fleet: {gpu-tier: {server: hgx-h100-8, count: 1}}
pools: {decode: {runs_on: gpu-tier.gpu, replicas: 2}}
stages: {generate: decode}
slo: {ttft: {max_s: 0.03, p: 0.9}, tpot: {max_s: 0.01, p: 0.9}}
assume: {vllm: {request_latency_s: 0}}
"""
TIGHT = ["pools.decode.replicas=1", "pools.decode.max_num_batched_tokens=512", "assume.h100-sxm.memory_bytes=2.33e10"]


def simulated(folder: Path, *settings: str, stepwise: bool = False) -> tuple[Log, dict[str, Any], Any]:
    (folder / "s.yaml").write_text(SCENARIO)
    prepared = prepare(resolve(*load(folder / "s.yaml", settings)))
    log = run(prepared, stepwise)
    result = summarise(log, prepared.system, prepared.accounts, prepared.drawn)
    return log, vllm_bench(log, prepared.system.scenario), result


def token_times(bench: dict[str, Any]) -> list[list[float]]:
    """When each request had its second token and the others."""
    firsts = np.array(bench["start_times"]) + np.array(bench["ttfts"])
    return [(first + np.cumsum(gaps)).tolist() for first, gaps in zip(firsts, bench["itls"], strict=True)]


def test_keys_are_those_of_vllm(tmp_path: Path) -> None:
    """The keys that `vllm bench serve` writes with --save-detailed, but for generated_texts; hsim adds its own."""
    _, bench, _ = simulated(tmp_path)
    metrics = {
        f"{what}_{name}_ms"
        for what in ("mean", "median", "std", "p90", "p95", "p99")
        for name in ("ttft", "tpot", "itl", "e2el")
    }
    detailed = {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "errors"}
    heading = {
        "date",
        "endpoint_type",
        "backend",
        "label",
        "model_id",
        "tokenizer_id",
        "num_prompts",
        "request_rate",
        "burstiness",
        "max_concurrency",
    }
    totals = {
        "duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput",
        "output_throughput", "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests", "rtfx",
    }  # fmt: skip
    own = {key for key in bench if key.startswith("hsim_")}
    assert set(bench) - own == metrics | detailed | heading | totals
    assert json.loads(json.dumps(bench, allow_nan=False)) == bench


@pytest.mark.parametrize("settings", [[], TIGHT, ["workload.classes.chat.rounds=2"]])
def test_figures_agree_with_those_of_the_result(tmp_path: Path, settings: list[str]) -> None:
    """The same run, summed up twice by code that shares nothing."""
    _, bench, result = simulated(tmp_path, *settings)
    assert bench["completed"] == sum(n > 0 for n in bench["output_lens"]) == result.latency["ttft"].count
    assert bench["total_output_tokens"] == result.output_tokens
    assert bench["mean_ttft_ms"] == pytest.approx(1000 * result.latency["ttft"].mean_s, rel=1e-12)
    assert bench["mean_tpot_ms"] == pytest.approx(1000 * result.latency["tpot"].mean_s, rel=1e-9)
    assert bench["p90_ttft_ms"] == pytest.approx(1000 * result.latency["ttft"].p90_s, rel=1e-12)
    assert bench["duration"] == pytest.approx(result.window_s, rel=1e-9)
    both = [
        t <= 0.03 and (n < 2 or (e - t) / (n - 1) <= 0.01)
        for t, e, n in zip(bench["ttfts"], bench["latencies"], bench["output_lens"], strict=True)
    ]
    assert 0 < sum(both) < len(both)
    assert bench["request_goodput"] == pytest.approx(sum(both) / bench["duration"])


def test_tokens_come_when_steps_end(tmp_path: Path) -> None:
    """Step by step the log says how many sequences decode in each step: so many later tokens appear at its end."""
    log, bench, _ = simulated(tmp_path, stepwise=True)
    steps = log.arrays()["steps"]
    assert (steps["steps"] == 1).all()
    expected = Counter({round(end, 9): int(n) for end, n in zip(steps["end_s"], steps["decodes"], strict=True) if n})
    found = Counter(round(time, 9) for times in token_times(bench) for time in times)
    assert len(set(steps["end_s"])) == len(steps["end_s"]), "the two replicas never end a step together"
    assert found == expected


@pytest.mark.parametrize("settings", [[], TIGHT])
def test_coalesced_steps_give_the_same_tokens(tmp_path: Path, settings: list[str]) -> None:
    log, bench, result = simulated(tmp_path, *settings)
    assert (log.arrays()["steps"]["steps"] > 1).any()
    assert bool(result.preemptions) == bool(settings)
    stepwise = simulated(tmp_path, *settings, stepwise=True)[1]
    assert token_times(bench) == [pytest.approx(times, abs=1e-9) for times in token_times(stepwise)]
    for key, value in bench.items():
        numeric = isinstance(value, float) or (isinstance(value, list) and isinstance(value[0], float))
        if key != "itls":
            assert value == (pytest.approx(stepwise[key], rel=1e-9) if numeric else stepwise[key]), key


def test_a_preempted_request_has_no_token_until_it_is_computed_again(tmp_path: Path) -> None:
    log, bench, _ = simulated(tmp_path, *TIGHT, stepwise=True)
    tables = log.arrays()
    lost = tables["preemptions"]
    once = [task for task, times in Counter(lost["task"].tolist()).items() if times == 1]
    assert len(once) > 5
    visits = tables["visits"]
    waited = 0
    for task in once:
        row = int(np.flatnonzero(visits["task"] == task)[0])
        number = bench["start_times"].index(visits["ready_s"][row])
        lost_s = lost["time_s"][lost["task"] == task][0]
        times = np.array([visits["first_token_s"][row], *token_times(bench)[number]])
        assert len(times) == bench["output_lens"][number]
        assert times[-1] == pytest.approx(visits["served_s"][row])
        if times[0] < lost_s:
            ends = tables["steps"]["end_s"]
            after = times[times > lost_s + 1e-12]
            assert (ends[(ends > lost_s) & (ends < after[0] - 1e-12)]).size > 0, "at least a step without it"
            waited += 1
    assert waited


def test_prefill_pools_make_one_request_of_two_visits(tmp_path: Path) -> None:
    pools = "pools={p: {runs_on: gpu-tier.gpu, replicas: 1}, decode: {runs_on: gpu-tier.gpu, replicas: 1}}"
    log, bench, result = simulated(
        tmp_path, pools, "stages={prefill: p, generate: decode}", "links={p-decode: nvlink4}"
    )
    stages = log.arrays()["visits"]["stage"]
    assert (stages == Stage.PREFILL).sum() == bench["completed"] == 200
    assert bench["mean_ttft_ms"] == pytest.approx(1000 * result.latency["ttft"].mean_s, rel=1e-12)
    for first, gaps, latency, tokens in zip(
        bench["ttfts"], bench["itls"], bench["latencies"], bench["output_lens"], strict=True
    ):
        assert len(gaps) == tokens - 1
        assert first + sum(gaps) == pytest.approx(latency)


def test_failed_requests_have_an_error_and_no_tokens(tmp_path: Path) -> None:
    _, bench, result = simulated(
        tmp_path, "workload.classes.chat.timeout_s=0.5", "pools.decode.replicas=1", "pools.decode.max_waiting=3"
    )
    errors = Counter(bench["errors"])
    assert errors["timed out"] == result.timed_out > 0
    assert errors["shed: the queue was full"] == result.shed
    assert (bench["completed"], bench["failed"]) == (errors[""], 200 - errors[""])
    for error, tokens, gaps in zip(bench["errors"], bench["output_lens"], bench["itls"], strict=True):
        assert not error or (tokens, gaps) == (0, [])


def test_a_request_given_up_between_prefill_and_decode_has_failed(tmp_path: Path) -> None:
    """KV caches that take a second to move: clients are gone before they arrive, though the prefill was served."""
    pools = "pools={p: {runs_on: gpu-tier.gpu, replicas: 1}, decode: {runs_on: gpu-tier.gpu, replicas: 1}}"
    slow = ["links={p-decode: nvlink4}", "assume.nvlink4.latency_s=1", "workload.classes.chat.timeout_s=0.9"]
    log, bench, result = simulated(tmp_path, pools, "stages={prefill: p, generate: decode}", *slow)
    served = log.arrays()["visits"]
    assert (served["outcome"] == 0).all(), "no visit failed"
    assert bench["failed"] == result.timed_out > 0
    assert bench["completed"] == result.tasks == sum(n == 1 for n in bench["output_lens"])


def test_the_json_is_a_trace_of_the_same_requests(tmp_path: Path) -> None:
    _, bench, _ = simulated(tmp_path)
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    trace = read_trace(tmp_path / "bench.json")
    assert trace.format == "vLLM benchmark"
    assert trace.input_tokens.tolist() == bench["input_lens"]
    assert trace.output_tokens.tolist() == bench["output_lens"]
    assert trace.arrival_s == pytest.approx(np.array(bench["start_times"]) - bench["start_times"][0])


def test_heading_names_the_load(tmp_path: Path) -> None:
    def heading(*settings: str) -> tuple[Any, ...]:
        bench = simulated(tmp_path, "workload.tasks=20", *settings)[1]
        return bench["request_rate"], bench["burstiness"], bench["max_concurrency"]

    assert heading() == (30, 1.0, None)
    assert heading("workload.arrivals={kind: gamma, rate_per_s: 5, burstiness: 0.5}") == (5, 0.5, None)
    assert heading("workload.arrivals={kind: closed, users: 4}") == ("inf", 1.0, 4)
    assert heading("workload.classes.chat.rounds=2") == (None, 1.0, None), (
        "tasks per second are not requests per second"
    )
    assert simulated(tmp_path, "slo={}")[1]["request_goodput"] is None


def test_four_users_have_four_requests_under_way(tmp_path: Path) -> None:
    """A user who does not think asks again in the instant of the answer, and is counted once."""
    _, bench, _ = simulated(tmp_path, "workload.arrivals={kind: closed, users: 4}", "workload.tasks=40")
    ends = {s + e for s, e in zip(bench["start_times"], bench["latencies"], strict=True)}
    assert ends & set(bench["start_times"]), "somebody does"
    assert bench["max_concurrent_requests"] == 4


def test_the_most_requests_at_once_and_the_busiest_second(tmp_path: Path) -> None:
    _, bench, _ = simulated(tmp_path)
    starts = np.array(bench["start_times"])
    ends = starts + np.array(bench["latencies"])
    assert bench["max_concurrent_requests"] == max(int(((starts <= s) & (ends > s + 1e-12)).sum()) for s in starts)
    times = np.concatenate(
        [[first, *later] for first, later in zip(starts + np.array(bench["ttfts"]), token_times(bench), strict=True)]
    )
    assert (
        bench["max_output_tokens_per_s"] == Counter(np.floor(times - starts[0] + 1e-12).tolist()).most_common(1)[0][1]
    )
