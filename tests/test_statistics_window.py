"""The books of any window: laws that hold however its edges cut tasks, steps, jobs and transfers."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.prepared import Prepared, prepare
from hsim.drivers.simulated import run
from hsim.log import Log, Stage
from hsim.metrics import measured
from hsim.metrics.ledger import Ledger, Window, keep_books, shares_gap_j
from hsim.metrics.measured import Cohort, Lens, _delivered_tokens, measure
from hsim.metrics.power import facility_joules

AGENTS: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "workload": {
        "arrivals": {"kind": "poisson", "rate_per_s": 30},
        "tasks": 60,
        "classes": {
            "agent": {
                "understand": {"op": "encode-minilm", "tokens": {"kind": "lognormal", "median": 200, "p95": 700}},
                "rounds": {"kind": "geometric", "mean": 2},
                "tools": {"vector-search-1m": 2, "python-exec": 1, "http-api": 1},
                "input_tokens": {"kind": "lognormal", "median": 400, "p95": 2000},
                "output_tokens": {"kind": "lognormal", "median": 30, "p95": 120},
                "max_output_tokens": 200,
            }
        },
    },
    "fleet": {"cpu": {"server": "epyc-9654-2s", "count": 1}, "gpu": {"server": "hgx-h100-8", "count": 1}},
    "pools": {
        "agents": {"runs_on": "cpu.cpu", "cores": 2},
        "decode": {"runs_on": "gpu.gpu", "replicas": 2, "max_num_seqs": 6},
    },
    "stages": {"understand": "agents", "tool": "agents", "generate": "decode"},
    "links": {"agents-decode": "ethernet-100g"},
}
VARIANTS: dict[str, list[str]] = {
    "split": [],
    "batched-jobs": ["pools.agents.max_batch=4", "pools.agents.batch_window_s=0.02"],
    "gpu-only": ["pools.agents.runs_on=gpu.cpu", "links={}"],
    "prefill-pool": [
        "pools.first={runs_on: gpu.gpu, replicas: 1}",
        "stages.prefill=first",
        "links={agents-first: ethernet-100g, agents-decode: ethernet-100g, first-decode: nvlink4}",
    ],
    "given-up": ["workload.classes.agent.timeout_s=1.2", "pools.decode.max_waiting=3"],
}


@cache
def path_of(variant: str) -> tuple[Prepared, Log]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "scenario.yaml"
        file.write_text(json.dumps(AGENTS))
        prepared = prepare(resolve(*load(file, VARIANTS[variant])))
        return prepared, run(prepared)


def books(variant: str, start: float, end: float) -> tuple[Ledger, float]:
    """The ledger of a window given by parts of the run, and the integral of power over it."""
    prepared, log = path_of(variant)
    tables = log.arrays()
    last_s = float(tables["tasks"]["ended_s"].max())
    window = Window(start * last_s, end * last_s, end * last_s)
    ledger = keep_books(log, tables, prepared.accounts, window)
    return ledger, facility_joules(log, tables, prepared.accounts, window)


edges = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda pair: pair[1] - pair[0] > 1e-3)


@given(st.sampled_from(sorted(VARIANTS)), edges)
def test_books_equal_the_integral_of_power_on_any_window(variant: str, edge: list[float]) -> None:
    ledger, integral_j = books(variant, *edge)
    assert ledger.joules() == pytest.approx(integral_j, rel=1e-9)
    assert all(entry.joules >= -1e-6 for entry in ledger.entries), "no account can be owed joules"


@given(st.sampled_from(sorted(VARIANTS)), edges, st.floats(0, 1))
def test_accounts_of_windows_that_join_add_up(variant: str, edge: list[float], part: float) -> None:
    middle = edge[0] + part * (edge[1] - edge[0])
    whole, first, second = (books(variant, *pair)[0] for pair in (edge, (edge[0], middle), (middle, edge[1])))
    joined: dict[tuple[str, str, str], float] = {}
    for entry in (*first.entries, *second.entries):
        key = (entry.account, entry.kind, entry.tier)
        joined[key] = joined.get(key, 0.0) + entry.joules
    for entry in whole.entries:
        found = joined.pop((entry.account, entry.kind, entry.tier), 0.0)
        assert found == pytest.approx(entry.joules, rel=1e-9, abs=1e-9 * whole.joules())
    assert all(abs(joules) <= 1e-9 * whole.joules() for joules in joined.values())


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_over_a_whole_run_each_stage_holds_what_its_visits_were_charged(variant: str) -> None:
    """The books go by devices and the charges by running sums in the engine: two ways to the same joules."""
    prepared, log = path_of(variant)
    tables = log.arrays()
    ledger, _ = books(variant, 0, 1)
    visits = tables["visits"]
    for stage in Stage:
        mine = visits["stage"] == stage
        name = stage.name.lower()
        for account, kind, column in (
            (name, "dynamic", "dynamic_j"), (name, "occupied", "idle_j"),
            (f"{name}: host cores", "dynamic", "host_dynamic_j"), (f"{name}: host cores", "occupied", "host_idle_j"),
        ):  # fmt: skip
            booked = sum(e.joules for e in ledger.entries if (e.account, e.kind) == (account, kind))
            assert booked == pytest.approx(visits[column][mine].sum(), rel=1e-9, abs=1e-9 * ledger.joules())
    assert shares_gap_j(log, tables, prepared.accounts) <= 1e-9 * ledger.joules()


def test_a_joule_charged_to_nobody_is_noticed() -> None:
    prepared, log = path_of("split")
    tables = log.arrays()
    tables["visits"]["dynamic_j"] = tables["visits"]["dynamic_j"] + (np.arange(len(tables["visits"]["task"])) == 7)
    assert shares_gap_j(log, tables, prepared.accounts) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("part", "passes"), [(0.9e-9, True), (1.1e-9, False)])
def test_shares_may_err_by_so_much_of_the_whole_log_however_short_the_window(
    part: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short window of an overloaded system is followed by hours of log, whose rounding is not the window's."""
    prepared, log = path_of("split")
    scenario, tables = prepared.system.scenario, log.arrays()
    end_s = float(tables["tasks"]["ended_s"].max())
    whole_j = facility_joules(log, tables, prepared.accounts, Window(0.0, end_s, end_s))
    monkeypatch.setattr(measured, "shares_gap_j", lambda *_: part * whole_j)
    lens = Lens(prepared.accounts, scenario.slo, Cohort(30, 2))
    with nullcontext() if passes else pytest.raises(AssertionError, match="visits' shares and devices' meters differ"):
        path = measure(log, lens)
        assert path.ledger.joules() < 0.1 * whole_j, "the window is not short: the test reaches nothing"


@pytest.mark.parametrize("variant", ["split", "prefill-pool", "given-up"])
def test_tokens_of_windows_that_join_add_up_to_all_that_were_delivered(variant: str) -> None:
    tables = path_of(variant)[1].arrays()
    tasks, visits = tables["tasks"], tables["visits"]
    last_s = float(tasks["ended_s"].max())
    cuts = [0.0, *np.sort(np.random.default_rng(1).random(20)) * last_s, last_s]
    delivered = sum(_delivered_tokens(tasks, visits, Window(a, b, b)) for a, b in pairwise(cuts))
    served = np.isin(visits["task"], tasks["task"][tasks["outcome"] == 0])
    assert delivered == pytest.approx(visits["output_tokens"][served].sum(), rel=1e-12)


def test_a_cohort_is_followed_beyond_its_window() -> None:
    prepared, log = path_of("split")
    scenario = prepared.system.scenario
    path = measure(log, Lens(prepared.accounts, scenario.slo, Cohort(10, 30)))
    tasks = log.arrays()["tasks"]
    arrival_s, ended_s = (tasks[name][np.argsort(tasks["task"])] for name in ("arrival_s", "ended_s"))
    assert (path.window.start_s, path.window.end_s) == (arrival_s[10], arrival_s[40])
    assert sorted(path.latency["e2e"]) == sorted((ended_s - arrival_s)[10:40])
    inside = (ended_s > arrival_s[10]) & (ended_s <= arrival_s[40])
    assert path.completed == inside.sum()
    assert not inside[10:40].all(), "no task of the cohort ends after the window: the test reaches nothing"
    assert inside[:10].any(), "no earlier task ends in the window: the test reaches nothing"
    assert path.covered == (ended_s[:40].max() <= arrival_s[-1])
