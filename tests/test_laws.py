"""Laws that hold on every path, over random small scenarios. Each test also asserts that it reached what it guards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import step_by_kernels
from simpy.events import Event
from systems import ROUTERS, Run, agents, engine_devices, generate_only, prepared_of, run, scenarios, system_of
from test_exact import UNIT_S, GridCosts

from hsim.costs.cpu import OperationCost
from hsim.drivers.prepared import Prepared, prepare
from hsim.drivers.simulated import build
from hsim.engine.environment import TASK_ARRIVES, EngineEnvironment
from hsim.engine.executor import Done, ModelledTime
from hsim.engine.kv import KvCache
from hsim.engine.life import live, run_tasks
from hsim.engine.link import LinkSpec
from hsim.engine.replica import Replica
from hsim.engine.visits import Prompt
from hsim.log import Log, Stage
from hsim.metrics.ledger import Window, keep_books
from hsim.metrics.power import facility_joules
from hsim.policies.views import DeviceView, PoolView, VisitView

NOBODY = VisitView(0, 0, 1, 1)
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
        for replica in engine_devices(done):  # and the steps did that work, and what was preempted once more
            steps, here = done.steps_of(replica.index), done.visits_of(stage=Stage.GENERATE, device=replica.index)
            lost = done.preemptions_of(replica.index)
            prefilled, decoded = ((steps["steps"] * steps[c]).sum() for c in ("chunk_tokens", "decodes"))
            again = set(lost["task"])
            generated = sum(t - 1 for i, t in zip(here["task"], here["output_tokens"], strict=True) if i in again)
            needed, ends = (
                here["input_tokens"].sum() + lost["computed_tokens"].sum(),
                len(here["task"]) + len(lost["task"]),
            )
            if not replica.kv.prefix_caching:
                assert needed <= prefilled <= needed + generated
            assert prefilled <= needed + generated
            assert here["output_tokens"].sum() - ends <= decoded <= here["output_tokens"].sum() - len(here["task"])
            reached["preempted"] += len(again)
            reached["found in the cache"] += prefilled < needed

    check(law, {"understood", "tool called", "another round", "preempted", "found in the cache"})


class WatchedKv(KvCache):
    """A KV cache that says when its books are wrong. `owners` are the prompts that hold blocks of it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.most_used = 0

    def check(self) -> None:
        assert 0 <= self.free_blocks <= self.capacity_blocks
        assert 0 <= self._cached_blocks == sum(self._cached.values()) <= self.free_blocks, "what is cached is free"
        assert all(self._cached.values())
        assert all(users > 0 and blocks > 0 for users, blocks in self._shared.values())
        assert not self._shared.keys() & self._cached.keys()
        self.most_used = max(self.most_used, self.capacity_blocks - self.free_blocks)

    def take(self, blocks: int) -> None:
        assert blocks >= 0
        super().take(blocks)
        self.check()

    def admit(self, prompt: Prompt) -> None:
        super().admit(prompt)
        self.check()

    def publish(self, prompt: Prompt) -> None:
        super().publish(prompt)
        self.check()

    def release(self, prompt: Prompt, tokens: int) -> None:
        super().release(prompt, tokens)
        self.check()


def test_kv_cache_is_never_overdrawn_and_all_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsim.engine.replica.KvCache", WatchedKv)

    def law(done: Run, reached: Counter[str]) -> None:
        for replica in engine_devices(done):
            kv = replica.kv
            assert kv.free_blocks == kv.capacity_blocks == replica.spec.kv_blocks
            assert not kv._shared
            assert not replica.running
            assert replica.view(NOBODY) == DeviceView(0, 0, 0, 0, replica.spec.pool.max_num_seqs)
            reached["KV full"] += kv.most_used == kv.capacity_blocks
            reached["KV never full"] += kv.most_used < kv.capacity_blocks
            reached["preempted"] += replica.preempted > 0
            reached["evicted"] += kv.evicted_blocks > 0
            reached["cached"] += kv._cached_blocks > 0

    check(law, {"KV full", "KV never full", "preempted", "evicted", "cached"})


def kv_books_balance(kv: WatchedKv, prompts: Sequence[Prompt]) -> None:
    """Every block is free, or shared, or somebody's own."""
    kv.check()
    held = {key: blocks for key, (_, blocks) in kv._shared.items()}
    for key in held:
        assert kv._shared[key][0] == sum(key in prompt.shared_keys for prompt in prompts)
    assert kv.free_blocks + sum(held.values()) + sum(p.own_blocks for p in prompts) == kv.capacity_blocks
    for prompt in prompts:
        assert prompt.held_blocks == prompt.own_blocks + sum(held[key] for key in prompt.shared_keys)


def test_kv_blocks_of_prompts_with_common_prefixes_are_free_shared_or_own() -> None:
    """Prompts come, are computed, and leave in any order, many with the same beginning: block by block."""
    reached = Counter[str]()

    @settings(max_examples=400)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        size = data.draw(st.sampled_from([1, 4]))
        kv = WatchedKv(data.draw(st.integers(10, 40)), size, True)
        inside: list[Prompt] = []
        env = EngineEnvironment()
        for number in range(data.draw(st.integers(1, 25))):
            if inside and data.draw(st.booleans()):
                prompt = inside.pop(data.draw(st.integers(0, len(inside) - 1)))
                kv.release(prompt, prompt.prefill_tokens)
                assert (prompt.own_blocks, prompt.held_blocks, prompt.shared_keys) == (0, 0, [])
                kv_books_balance(kv, inside)
                continue
            pieces = data.draw(st.lists(st.integers(1, 12), min_size=0, max_size=3))
            prefix = tuple((tuple(pieces[: i + 1]), n) for i, n in enumerate(pieces))
            context = data.draw(st.sampled_from([None, "one", "another"]))
            if context and not any(prompt.context_key == context for prompt in inside):  # one round of a task at a time
                pieces = pieces[:1]
                prefix = tuple((context, n) for n in pieces)
            else:
                context = None
            tokens = max(1, sum(pieces) + data.draw(st.integers(0, 6)))
            prompt = Prompt(number, 0, Stage.GENERATE, tokens, Event(env))
            prompt.prefix, prompt.context_key = prefix, context
            before = kv.cached_tokens(prefix)
            whole = [min(n, size * (kv._shared.get(key, (0, 0))[1] or kv._cached.get(key, 0))) for key, n in prefix]
            gap = next((i for i, n in enumerate(pieces) if whole[i] < n), len(pieces))
            assert before == sum(whole[: gap + 1]), "up to the first piece that is not whole"
            reached["a piece behind a gap"] += any(whole[gap + 1 :])
            kv.match(prompt)
            found = prompt.prefill_tokens - prompt.prompt_left
            assert found == min(before, prompt.prefill_tokens - 1) // size * size, (
                "whole blocks, but for the last token"
            )
            needed = kv.blocks(prompt.prefill_tokens) - prompt.held_blocks
            if needed > kv.free_blocks:
                reached["no room"] += 1
                continue
            prompt.held_blocks = 0
            if found:
                kv.admit(prompt)
                reached["found"] += 1
                assert kv.cached_tokens(prefix) >= found
            assert prompt.held_blocks >= found // size
            inside.append(prompt)
            kv_books_balance(kv, inside)
            evicted = kv.evicted_blocks
            kv.grow(prompt, prompt.prefill_tokens)
            reached["evicted"] += kv.evicted_blocks > evicted
            kv_books_balance(kv, inside)
            assert prompt.held_blocks >= kv.blocks(prompt.prefill_tokens)
            kv.publish(prompt)
            kv_books_balance(kv, inside)
            reached["shared by two"] += any(users > 1 for users, _ in kv._shared.values())
            if all(n % size == 0 for n in pieces):
                reached["found whole"] += bool(pieces)
        for prompt in inside:
            kv.release(prompt, prompt.prefill_tokens)
        assert kv.free_blocks == kv.capacity_blocks
        kv_books_balance(kv, [])

    law()
    needed = {"no room", "found", "evicted", "shared by two", "found whole", "a piece behind a gap"}
    assert needed <= set(+reached), reached


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
        # Decoding sequences, from the steps: each decodes from its first token on, unless it was preempted.
        for replica in range(len(done.log.accelerators)):
            steps, here = done.steps_of(replica), done.visits_of(stage=Stage.GENERATE, device=replica)
            decoding_s = float((steps["decodes"] * (steps["end_s"] - steps["start_s"])).sum())
            paused_s = float((here["served_s"] - here["first_token_s"]).sum()) - decoding_s
            assert paused_s >= -1e-9 * max(1.0, decoding_s)
            if not len(done.preemptions_of(replica)["task"]):
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
        visits, linked = done.visits, done.prepared.networks
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
    return frozenset((_pool_of(done, a), _pool_of(done, b))) in done.prepared.system.paths


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


class Watching(ModelledTime):
    """Modelled time that looks at every step of a replica as it begins, by walking over the whole of it."""

    def __init__(self, env: EngineEnvironment, reached: Counter[str]) -> None:
        super().__init__(env, stepwise=True)
        self.reached = reached

    def steps(self, replica: Replica, end_s: float, done: Done) -> None:
        pool, run, waiting = replica.spec.pool, replica._run, replica.waiting
        assert run is not None
        size, reached = pool.block_tokens, self.reached
        contexts, chunks = [], []
        for prompt in replica.running:
            assert prompt.decoding != (prompt in replica.prefilling)
            if prompt.decoding:
                contexts.append(prompt.prefill_tokens + replica._step - prompt.first_step + 1)
        for prompt, chunk in zip(replica.prefilling, run.chunks, strict=True):
            chunks.append((prompt.prefill_tokens - prompt.prompt_left + chunk * run.taken, chunk))
        assert run.shape.decodes == len(contexts), "every sequence that decodes takes part in every step"
        assert run.shape.context_tokens + run.taken * len(contexts) == sum(contexts)
        assert run.shape.chunk_tokens == sum(chunk for _, chunk in chunks)
        tokens = len(contexts) + run.shape.chunk_tokens
        assert len(replica.running) <= pool.max_num_seqs
        assert 0 < tokens <= pool.max_num_batched_tokens
        reached["decodes beside chunks"] += bool(contexts and run.shape.chunks)
        reached["chunked prefill"] += any(before for before, chunk in chunks if chunk)
        if not replica.kv.prefix_caching:  # else some blocks are shared
            used = sum(-(-context // size) for context in contexts) + sum(-(-(b + c) // size) for b, c in chunks)
            assert used <= replica.spec.kv_blocks
            if waiting and len(replica.running) < pool.max_num_seqs and tokens < pool.max_num_batched_tokens:
                first = min(waiting[0].prompt_left, pool.max_num_batched_tokens - tokens)
                assert used + -(-first // size) > replica.spec.kv_blocks, "a replica left admissible work waiting"
                reached["KV full"] += 1
        reached["max_num_seqs reached"] += bool(waiting) and len(replica.running) == pool.max_num_seqs
        reached["token budget exhausted"] += bool(waiting) and tokens == pool.max_num_batched_tokens
        reached["preempted"] += replica.preempted
        super().steps(replica, end_s, done)


def test_batches_keep_their_limits_and_no_replica_holds_back_work() -> None:
    """Within its limits a step takes all it can; whoever waits through it does so for a limit."""
    reached = Counter[str]()

    @settings(max_examples=40)
    @given(st.one_of(scenarios(), scenarios(crowded=True)))
    def law(data: dict[str, Any]) -> None:
        prepared = prepared_of(data)
        env, log = EngineEnvironment(), Log()
        pipeline = build(env, log, prepared, Watching(env, reached))
        run_tasks(env, log, pipeline, prepared.drawn.tasks)
        done = Run(prepared, log, pipeline, log.arrays())
        for replica in engine_devices(done):
            steps, here = done.steps_of(replica.index), done.visits_of(stage=Stage.GENERATE, device=replica.index)
            assert (steps["end_s"][:-1] <= steps["start_s"][1:]).all(), "one step at a time"
            for end_s, next_s in zip(steps["end_s"][:-1], steps["start_s"][1:], strict=True):
                if next_s > end_s:
                    reached["went idle"] += 1
                    assert not ((here["queued_s"] < next_s) & (here["served_s"] > end_s)).any(), (
                        "idle while work waited"
                    )

    law()
    needed = {
        "chunked prefill", "decodes beside chunks", "max_num_seqs reached", "token budget exhausted", "KV full",
        "preempted", "went idle",
    }  # fmt: skip
    assert needed <= set(+reached), f"never reached: {needed - set(+reached)}"


def seen_by_walking(replica: Replica) -> DeviceView:
    """What a router should see of a replica in a step-by-step run: every prompt asked for what it has left."""
    tokens = sum(p.input_tokens + p.max_output_tokens for p in replica.waiting)  # and again if it was preempted
    for prompt in replica.running:
        tokens += prompt.max_output_tokens - prompt.generated_tokens
        if prompt.decoding:
            tokens -= replica._step - prompt.first_step
        else:
            tokens += prompt.prompt_left
    if run := replica._run:
        tokens -= run.taken * sum(run.chunks)
    waiting, running = len(replica.waiting), len(replica.running)
    return DeviceView(waiting + running, tokens, waiting, running, replica.spec.pool.max_num_seqs)


def best(router: str, loads: list[DeviceView], position: int) -> set[int]:
    """The devices that a router may choose, by the rule that its docstring states."""
    everybody = range(len(loads))

    def least(key: Callable[[DeviceView], Any]) -> set[int]:
        return {min(everybody, key=lambda i: key(loads[i]))}

    match router:
        case "round-robin":
            return {position % len(loads)}
        case "least-outstanding":
            return least(lambda v: v.outstanding)
        case "join-shortest-queue":
            return least(lambda v: (v.waiting, v.running))
        case "least-outstanding-tokens":
            return least(lambda v: v.outstanding_tokens)
        case "prefix-affinity":
            return least(lambda v: v.outstanding_tokens - v.cached_tokens)
        case "power-of-two":  # of any two the one with fewer: so never the one that has more than all others
            most = sorted((v.outstanding for v in loads), reverse=True)
            return {i for i in everybody if len(loads) == 1 or most[0] == most[1] or loads[i].outstanding < most[0]}
    assert router == "least-energy"
    room = [i for i in everybody if not loads[i].waiting and loads[i].running < loads[i].max_running]
    return {max(room, key=lambda i: loads[i].running)} if room else least(lambda v: v.outstanding)


@pytest.mark.parametrize("router", ROUTERS)
def test_routers_choose_by_the_state_at_the_last_boundary(router: str) -> None:
    """At each choice, the state by walking over every replica, and the choice that the rule makes of it."""
    reached = Counter[str]()

    @settings(max_examples=25)
    @given(scenarios(crowded=True, routers=[router]))
    def law(data: dict[str, Any]) -> None:
        data["pools"]["decode"]["prefix_caching"] = router == "prefix-affinity"
        prepared = prepared_of(data)
        env, log = EngineEnvironment(), Log()
        pipeline = build(env, log, prepared, ModelledTime(env, stepwise=True))
        pool = pipeline.pools[Stage.GENERATE]
        choose, position = pool._router, Counter[str]()

        def watched(visit: VisitView, view: PoolView) -> int:
            walked = [seen_by_walking(replica) for replica in pool.devices]
            if router != "prefix-affinity":  # a prompt that found a part of itself has less to do than it declares
                assert list(view.devices) == walked
            for device, replica in zip(view.devices, pool.devices, strict=True):
                assert device.cached_tokens == replica.kv.cached_tokens(visit.prefix)
                assert device[2:5] == seen_by_walking(replica)[2:5]
            chosen = choose(visit, view)
            assert chosen in best(router, list(view.devices), position["routed"])
            position["routed"] += 1
            reached["all busy"] += min(device.outstanding for device in walked) > 0
            reached["not the first"] += chosen > 0
            reached["context of its own"] += view.devices[chosen].cached_tokens > 0
            reached["some preempted"] += any(replica.preempted for replica in pool.devices)
            return chosen

        pool._router = watched
        run_tasks(env, log, pipeline, prepared.drawn.tasks)
        assert position["routed"] == len(
            Run(prepared, log, pipeline, log.arrays()).visits_of(stage=Stage.GENERATE)["task"]
        )

    law()
    assert reached["not the first"]
    assert reached["all busy"]
    assert reached["some preempted"]
    assert reached["context of its own"] or router != "prefix-affinity"


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
        understand={name: OperationCost(name, TICK_S) for name in prepared.understand},
        tools={name: OperationCost(name, 2 * TICK_S) for name in prepared.tools},
        slowdown=dict.fromkeys(prepared.slowdown, 1.0),
        networks={name: LinkSpec(TICK_S, 2.0**40, 0.0) for name in prepared.networks},
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
    longer["assume"].pop("h100-sxm", None)  # memory for all
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
    dear["assume"] = data["assume"] | {"hgx-h100-8": {"capex_usd": 300_000}, "epyc-9654-2s": {"capex_usd": 40_000}}
    base, other = run(prepared_of(data)), run(prepared_of(dear))
    np.testing.assert_array_equal(base.visits["ended_s"], other.visits["ended_s"])
    a, b = base.result(), other.result()
    assert b.energy.total_j == pytest.approx(2 * a.energy.total_j)  # pue 1.25 by default
    assert b.gco2_per_task == pytest.approx(4 * a.gco2_per_task)
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
            # The last query of a chunk sees all before it; how many pairs the others see, the log does not say.
            context = context + rows["chunk_context_tokens"] + k * rows["chunk_tokens"]
            new_tokens = rows["decodes"] + rows["chunk_tokens"]
            flops = 2 * model.layer_parameters * new_tokens
            flops += 4 * model.layers * model.attention_heads * model.head_dim * context
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
    chip, figures = done.prepared.system.tier_of("decode").chip, done.prepared.system.figures
    cap_w, idle_w = (figures.value(chip, f"power.{name}") for name in ("cap_w", "loaded_idle_w"))
    watts = idle_w + done.steps["joules"] / done.steps["seconds"]
    assert watts.max() == pytest.approx(cap_w, rel=1e-12)
    assert ((done.steps["chunk_tokens"] > 4000) & (watts > cap_w - 0.1)).any()


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
    return int(pipeline.pools[Stage.GENERATE].devices[0].view(NOBODY).outstanding_tokens)
