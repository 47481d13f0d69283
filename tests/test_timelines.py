"""Timelines: their integrals are what the books and the result say, and their levels what a count of the log says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import agents, generate_only, prepared_of, run
from test_power_states import rare, sleeping

from hsim.log import Power, Stage
from hsim.metrics.ledger import Window
from hsim.metrics.measured import Lens, measure
from hsim.metrics.power import facility_joules
from hsim.metrics.summarise import pools_of
from hsim.metrics.timelines import Timeline, stacked, timelines_of


def two_pools() -> dict[str, Any]:
    """A prefill pool, so that KV cache moves over a link that costs joules."""
    data = agents(replicas=1)
    data["pools"]["first"] = {"runs_on": "gpu-tier.gpu", "replicas": 1}
    data["stages"]["prefill"] = "first"
    data["links"] |= {"agents-first": "ethernet-100g", "first-decode": "nvlink4"}
    data["assume"] = {"nvlink4": {"joules_per_byte": 1e-10}, "ethernet-100g": {"joules_per_byte": 1e-9}}
    return data


def sleepy() -> dict[str, Any]:
    """Two GPU servers in long lulls: one is switched off and boots again, engines unload their models before."""
    data = rare()
    data["fleet"]["gpu-tier"]["count"] = 2
    data["pools"]["decode"] |= {"replicas": 2, "unload_after_s": 20}
    return sleeping(data, 100)


SYSTEMS = {"sleepy": sleepy(), "generate": generate_only(replicas=2), "agents": agents(), "prefill": two_pools()}


def integral(line: Timeline, start_s: float, end_s: float) -> float:
    return float(line.means(np.array([start_s, end_s]))[0] * (end_s - start_s))


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_parts_of_facility_power_add_up_to_its_joules(name: str) -> None:
    """Against the integral that checks the ledger, over all of the run: rows of steps are not cut."""
    done = run(prepared_of(SYSTEMS[name]))
    accounts = done.prepared.accounts
    end_s = float(done.tables["tasks"]["ended_s"].max())
    lines = timelines_of(done.log, accounts)
    expected = facility_joules(done.log, done.tables, accounts, Window(0.0, end_s, end_s))
    assert sum(integral(line, 0.0, end_s) for line in lines.facility_w) == pytest.approx(expected, rel=1e-9)
    if name == "sleepy":
        assert {Power.OFF, Power.BOOT, Power.IDLE, Power.LOADED} <= set(done.tables["states"]["state"])
    if name == "prefill":
        (links,) = (line for line in lines.facility_w if line.name == "links")
        joules = accounts.sites["site"].pue * done.tables["transfers"]["joules"].sum()
        assert integral(links, 0.0, end_s) == pytest.approx(joules, rel=1e-9)
        assert joules > 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_batches_and_kv_cache_are_those_of_the_result(name: str) -> None:
    done = run(prepared_of(SYSTEMS[name]))
    scenario = done.prepared.system.scenario
    lines = timelines_of(done.log, done.prepared.accounts)
    path = measure(done.log, Lens(done.prepared.accounts, scenario.slo))
    window = path.window
    for use in pools_of([path]):
        if use.kv_used_fraction is not None and use.mean_batch is not None:
            mine = [line for line in lines.kv_used if line.name.startswith(use.pool + "/")]
            mean = np.mean([integral(line, window.start_s, window.end_s) for line in mine]) / window.seconds
            assert mean == pytest.approx(use.kv_used_fraction, rel=1e-9)
            batches = [line for line in lines.batches if line.name.startswith(use.pool + "/")]
            decode_s = sum(integral(line, window.start_s, window.end_s) for line in batches)
            assert decode_s == pytest.approx(path.pools[use.pool].decode_s, rel=1e-9)


def test_queues_and_tasks_in_progress_are_counts_of_the_log() -> None:
    """By looking at every row, halfway between changes, where a count of those under way is beyond doubt."""
    data = agents(cores=1, max_num_seqs=2)
    data["workload"]["arrivals"]["rate_per_s"] = 400
    done = run(prepared_of(data))
    stages = done.prepared.system.scenario.stages
    lines = timelines_of(done.log, done.prepared.accounts)
    visits, tasks = done.visits, done.tables["tasks"]
    changes = np.unique(np.concatenate([lines.in_progress.times_s, *(line.times_s for line in lines.queues)]))
    for at in (changes[:-1] + changes[1:]) / 2:
        under_way = ((tasks["arrival_s"] < at) & (at < tasks["ended_s"])).sum()
        assert lines.in_progress.at(at) == under_way
        for line in lines.queues:
            served = [stage for stage in Stage if getattr(stages, stage.name.lower()) == line.name]
            waiting = np.isin(visits["stage"], served) & (visits["queued_s"] < at) & (at < visits["started_s"])
            assert line.at(at) == waiting.sum()
    assert all(line.values.max() > 2 for line in lines.queues), "nothing waits: the test reaches nothing"
    assert all(line.values[-1] == 0 for line in (*lines.queues, lines.in_progress))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.floats(0.1, 5)), max_size=12), st.data())
def test_means_are_exact_integrals(stretches: list[tuple[int, int, float]], data: st.DataObject) -> None:
    start_s = np.array([start for start, _, _ in stretches], dtype=np.float64)
    end_s = start_s + np.array([length for _, length, _ in stretches])
    heights = np.array([height for *_, height in stretches])
    edges = np.array(sorted(data.draw(st.sets(st.integers(0, 120), min_size=2, max_size=6)))) / 4
    line = stacked("x", "W", start_s, end_s, heights)
    inside = np.clip(end_s, edges[:-1, None], edges[1:, None]) - np.clip(start_s, edges[:-1, None], edges[1:, None])
    assert line.means(edges) == pytest.approx((inside * heights).sum(axis=1) / np.diff(edges), abs=1e-9)
