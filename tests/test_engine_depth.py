"""The engine with everything on: coalesced runs equal step-by-step ones, and nothing leaks.

Random scenarios cover paged KV cache, preemption, prefix caching, prefill pools, timeouts, shedding, batched and
contended cores, shared networks and every router; each is run coalesced and step by step.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.clocks import ManualClock
from hsim.drivers.live import sleep_through
from hsim.drivers.prepared import Prepared, prepare
from hsim.drivers.simulated import build, run
from hsim.engine.environment import EngineEnvironment
from hsim.engine.executor import ModelledTime
from hsim.engine.life import run_tasks
from hsim.engine.replica import Replica
from hsim.log import Log
from hsim.metrics.summarise import summarise
from hsim.policies.routing import ROUTERS
from hsim.workload.tasks import Task

BASE = """
model: llama-3.1-70b
workload:
  arrivals: {kind: poisson, rate_per_s: 6}
  tasks: 60
  classes:
    a:
      understand: {op: encode-minilm, tokens: {kind: lognormal, median: 300, p95: 1200}}
      rounds: {kind: geometric, mean: 2}
      tools: {vector-search-1m: 0.4, http-api: 0.3, python-exec: 0.3}
      input_tokens: {kind: lognormal, median: 600, p95: 2000}
      output_tokens: {kind: lognormal, median: 180, p95: 600}
      max_output_tokens: 900
      timeout_s: 60
fleet:
  gpu-tier: {server: hgx-h100-8, count: 2}
pools:
  agents: {runs_on: gpu-tier.cpu, cores: 3}
  decode: {runs_on: gpu-tier.gpu, tensor_parallel: 4}
stages: {understand: agents, tool: agents, generate: decode}
"""

PREFILL_POOL = (
    "fleet.prefill-tier={server: hgx-h100-8, count: 1}",
    "pools.prefill={runs_on: prefill-tier.gpu, tensor_parallel: 4, gpu_memory_utilization: 0.52}",
    "stages.prefill=prefill",
    "networks={rack: ethernet-100g, spine: ethernet-100g}",
    "links={prefill-decode: [rack, spine], agents-prefill: [rack]}",
)


def random_prepared(seed: int, folder: Path) -> Prepared:
    """A small scenario, different for every seed, its KV cache small and its rounds and tasks sharing prefixes."""
    pick = random.Random(seed)
    settings = [
        f"seed={seed}",
        f"workload.arrivals.rate_per_s={pick.choice([2, 8, 20, 60])}",
        f"pools.decode.gpu_memory_utilization={pick.choice([0.51, 0.515, 0.52, 0.55])}",
        f"pools.decode.max_num_batched_tokens={pick.choice([64, 300, 512, 8192])}",
        f"pools.decode.max_num_seqs={pick.choice([2, 8, 1024])}",
        f"pools.decode.router={pick.choice(sorted(ROUTERS))}",
        f"pools.decode.max_waiting={pick.choice([3, 1000])}",
        f"pools.decode.block_tokens={pick.choice([1, 16, 32])}",
        f"pools.decode.prefix_caching={pick.choice(['true', 'true', 'false'])}",
        f"workload.classes.a.timeout_s={pick.choice([5, 20, 500])}",
        f"pools.agents.max_batch={pick.choice([1, 4])}",
        f"pools.agents.batch_window_s={pick.choice([0, 0.01])}",
        *(PREFILL_POOL if pick.random() < 0.4 else ()),
    ]
    file = folder / "scenario.yaml"
    file.write_text(BASE)
    prepared = prepare(resolve(*load(file, settings)))
    prepared.drawn.tasks[:] = [with_prefixes(task, pick) for task in prepared.drawn.tasks]
    return prepared


def with_prefixes(task: Task, pick: random.Random) -> Task:
    """The task with rounds that repeat its context, or that begin with pieces common to several tasks."""
    rounds, context = [], 0
    common = pick.random() < 0.5
    for this in task.rounds:
        if common and pick.random() < 0.7:
            keys = [
                ("common", pick.randrange(3)) if i < 2 else (i, task.id % 5) for i in range(this.input_tokens // 64)
            ]
            rounds.append(dataclasses.replace(this, prefix=tuple((key, 64) for key in keys)))
        else:
            tokens = min(this.input_tokens + context, 2400)
            shared = min(context, tokens, 1500)
            rounds.append(dataclasses.replace(this, input_tokens=tokens, shared_tokens=shared))
        context = rounds[-1].input_tokens + this.output_tokens
    return dataclasses.replace(task, rounds=tuple(rounds))


def run_and_keep_replicas(prepared: Prepared, stepwise: bool) -> tuple[Log, list[Replica]]:
    env, log = EngineEnvironment(), Log()
    pipeline = build(env, log, prepared, ModelledTime(env, stepwise))
    run_tasks(env, log, pipeline, prepared.drawn.tasks)
    devices = [device for pool in pipeline.pools.values() for device in pool.devices]
    return log, [device for device in devices if isinstance(device, Replica)]


def assert_same(fast: Log, slow: Log) -> None:
    """Times bit for bit, joules to 1e-9."""
    for table in ("visits", "tasks", "transfers", "cores", "preemptions"):
        left, right = fast.arrays()[table], slow.arrays()[table]
        for column in left:
            if column.endswith("_j") or column == "joules":
                np.testing.assert_allclose(left[column], right[column], rtol=1e-9, atol=1e-9, err_msg=column)
            else:
                np.testing.assert_array_equal(left[column], right[column], err_msg=f"{table}.{column}")


def test_coalesced_equals_step_by_step_with_everything_on(tmp_path: Path) -> None:
    reached: Counter[str] = Counter()
    for seed in range(24):
        prepared = random_prepared(seed, tmp_path)
        fast, replicas = run_and_keep_replicas(prepared, stepwise=False)
        slow, _ = run_and_keep_replicas(prepared, stepwise=True)
        assert_same(fast, slow)
        visits = fast.visits.arrays()
        outcomes = fast.tasks.arrays()["outcome"]
        reached["coalesced"] += len(slow.steps) - len(fast.steps)
        reached["preempted"] += len(fast.preemptions)
        reached["timed out"] += int((outcomes == 1).sum())
        reached["shed"] += int((outcomes == 2).sum())
        reached["evicted"] += sum(replica.kv.evicted_blocks for replica in replicas)
        reached["prefill pool"] += "prefill" in fast.pools
        reached["waited for a core"] += int((visits["started_s"] > visits["queued_s"])[visits["stage"] < 2].sum())
    everything = ("coalesced", "preempted", "timed out", "shed", "evicted", "prefill pool", "waited for a core")
    assert all(reached[state] > 0 for state in everything), reached


@pytest.mark.parametrize("seed", range(8))
def test_nothing_leaks(seed: int, tmp_path: Path) -> None:
    """At the end every block is free, nobody is counted as outstanding, and every task has one outcome."""
    prepared = random_prepared(1000 + seed, tmp_path)
    log, replicas = run_and_keep_replicas(prepared, stepwise=False)
    for replica in replicas:
        assert replica.kv.free_blocks == replica.kv.capacity_blocks
        assert not replica.kv._shared
        assert replica.kv._cached_blocks == sum(replica.kv._cached.values()) <= replica.kv.capacity_blocks
        assert not replica.running
        assert not replica.waiting
        assert replica._outstanding_tokens == 0
        assert replica._context_tokens == 0
        assert not any(replica._due)
    assert sorted(log.tasks.arrays()["task"]) == [task.id for task in prepared.drawn.tasks]
    summarise(log, prepared.system, prepared.accounts, prepared.drawn)  # asserts that the ledger balances


def test_delivered_tokens_are_what_was_asked(tmp_path: Path) -> None:
    """Preemption recomputes tokens; it delivers none twice."""
    preempted = 0
    for seed in range(24):
        prepared = random_prepared(seed, tmp_path)
        log = run(prepared)
        preempted += len(log.preemptions)
        visits, tasks = log.visits.arrays(), log.tasks.arrays()
        served = set(tasks["task"][tasks["outcome"] == 0])
        for task in prepared.drawn.tasks:
            if task.id in served:
                assert visits["output_tokens"][visits["task"] == task.id].sum() == task.output_tokens
    assert preempted > 0


def test_a_live_run_on_a_manual_clock_is_the_simulation(tmp_path: Path) -> None:
    for seed in (3, 4):
        prepared = random_prepared(seed, tmp_path)
        assert_same(run(prepared), sleep_through(prepared, ManualClock()))
