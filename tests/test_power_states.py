"""Servers that are switched off and engines that unload: what that saves, what it costs, and who waits for it."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import Run, agents, engine_devices, generate_only, prepared_of, run, scenarios

from hsim.drivers.live import run_live
from hsim.errors import DescriptionError
from hsim.log import Power, Stage
from hsim.metrics.accounts import accounts_of
from hsim.metrics.ledger import Window, keep_books
from hsim.metrics.power import facility_joules
from hsim.metrics.rough import site_joules_in, system_in
from hsim.metrics.timelines import timelines_of
from hsim.policies.routing import least_energy
from hsim.policies.views import DeviceView, PoolView, VisitView

OFF_W, BOOT_W, BOOT_S, LOAD_S = 20.0, 1500.0, 30.0, 12.0
SERVERS = ("hgx-h100-8", "epyc-9654-2s")


def sleeping(data: dict[str, Any], after_s: float, boot_s: float = BOOT_S, load_s: float = LOAD_S) -> dict[str, Any]:
    """The same with servers that are switched off after so long, and all that this needs assumed."""
    changed = deepcopy(data)
    for tier in changed["fleet"].values():
        tier["sleep_after_s"] = after_s
        figures = {"off_w": OFF_W, "boot_w": BOOT_W, "boot_s": boot_s}
        changed.setdefault("assume", {}).setdefault(tier["server"], {}).update(figures)
    changed["assume"].setdefault("vllm", {})["load_s"] = load_s
    return changed


def rare(count: int = 3, gap_s: float = 500) -> dict[str, Any]:
    """A few tasks, each long after the one before, for one replica of four cards."""
    data = generate_only(tensor_parallel=4)
    data["workload"]["arrivals"] = {"kind": "uniform", "rate_per_s": 1 / gap_s}
    data["workload"]["tasks"] = count
    return data


def booked(done: Run) -> dict[str, float]:
    return {account: joules for account, _, joules in done.result().energy.accounts}


def test_off_costs_off_watts_only_and_a_boot_its_seconds_times_its_watts() -> None:
    after_s = 60.0
    done, awake = run(prepared_of(sleeping(rare(), after_s))), run(prepared_of(rare()))
    visits, joules = done.visits, booked(done)
    waits = visits["started_s"] - visits["queued_s"]
    np.testing.assert_allclose(waits, BOOT_S + LOAD_S, rtol=1e-12)  # the first came 500 s after the start
    first_s, queued, ends = done.tables["tasks"]["arrival_s"][0], visits["queued_s"], visits["served_s"]
    off_s = queued[0] - first_s + float((queued[1:] - ends[:-1] - after_s).sum())
    boots = len(queued)
    assert joules["gpu-tier servers off"] == pytest.approx(OFF_W * off_s, rel=1e-12)
    assert joules["gpu-tier servers booting"] == pytest.approx(BOOT_W * BOOT_S * boots, rel=1e-12)
    chip, figures = done.prepared.system.tier_of("decode").chip, done.prepared.system.figures
    bare_w, loaded_w = (figures.value(chip, f"power.{name}") for name in ("idle_w", "loaded_idle_w"))
    assert joules["decode accelerators without a model"] == pytest.approx(4 * bare_w * LOAD_S * boots, rel=1e-12)
    assert joules["decode accelerators idle"] == pytest.approx(4 * loaded_w * after_s * (boots - 1), rel=1e-9)
    on_s = done.result().window_s - off_s - BOOT_S * boots
    assert joules["gpu-tier spare accelerators"] == pytest.approx(4 * bare_w * on_s, rel=1e-12)
    assert joules["gpu-tier servers: fans, memory, network"] == pytest.approx(1000 * on_s, rel=1e-12)
    # What serves is the same, a boot and a load later.
    np.testing.assert_allclose(visits["served_s"], awake.visits["served_s"] + BOOT_S + LOAD_S, rtol=1e-12)
    np.testing.assert_allclose(visits["dynamic_j"], awake.visits["dynamic_j"], rtol=1e-9)
    assert done.result().energy.total_j < awake.result().energy.total_j


def test_an_engine_that_unloads_draws_the_idle_watts_of_bare_cards_and_loads_again() -> None:
    data = rare()
    data["pools"]["decode"]["unload_after_s"] = 60
    data["assume"] = {"vllm": {"load_s": LOAD_S}}
    done = run(prepared_of(data))
    np.testing.assert_allclose(done.visits["started_s"] - done.visits["queued_s"], LOAD_S, rtol=1e-12)
    chip, figures = done.prepared.system.tier_of("decode").chip, done.prepared.system.figures
    first_s, queued, ends = done.tables["tasks"]["arrival_s"][0], done.visits["queued_s"], done.visits["served_s"]
    bare_s = queued[0] - first_s + float((queued[1:] - ends[:-1] - 60).sum()) + LOAD_S * len(queued)
    joules = booked(done)
    bare_w = figures.value(chip, "power.idle_w")
    assert joules["decode accelerators without a model"] == pytest.approx(4 * bare_w * bare_s, rel=1e-12)
    assert not any("off" in account or "booting" in account for account in joules)


def test_the_log_says_off_boot_idle_and_loaded_in_this_order() -> None:
    done = run(prepared_of(sleeping(rare(2), 60)))
    rows = zip(*(done.tables["states"][c].tolist() for c in ("device", "state")), strict=True)
    once = [(-1, Power.OFF), (0, Power.OFF), (-1, Power.BOOT), (-1, Power.IDLE), (0, Power.IDLE), (0, Power.LOADED)]
    assert list(rows) == once + once + once[:2]


def test_a_system_that_never_sleeps_is_the_same_to_the_last_byte() -> None:
    data = agents(tensor_parallel=4, replicas=2)
    # Neither is the engine asked anything that it was not asked before: the log of states is empty.
    never, patient = run(prepared_of(data)), run(prepared_of(sleeping(data, 1e9)))
    assert not len(never.tables["states"]["host"])
    for table in never.tables.keys() - {"states"}:  # long after the last task, it does go to sleep
        for column, values in never.tables[table].items():
            np.testing.assert_array_equal(values, patient.tables[table][column], err_msg=f"{table}.{column}")
    assert never.result().energy.accounts == tuple(
        row for row in patient.result().energy.accounts if row[0] != "decode accelerators without a model"
    )


def law_of_joules(done: Run, reached: Counter[str]) -> None:
    """The ledger equals the integral of power, in a window that begins and ends anywhere too."""
    tables, accounts = done.tables, done.prepared.accounts
    end_s = float(tables["tasks"]["ended_s"].max())
    assert done.result().energy.ledger_gap_fraction <= 1e-9
    cuts = [0.0, 0.21 * end_s, 0.5 * end_s, end_s]
    parts = []
    for a, b in pairwise(cuts):
        window = Window(a, b, b)
        ledger = keep_books(done.log, tables, accounts, window)
        integral_j = facility_joules(done.log, tables, accounts, window)
        assert ledger.joules() == pytest.approx(integral_j, rel=1e-9)
        assert all(entry.joules >= -1e-9 * integral_j for entry in ledger.entries)
        (there,) = site_joules_in([accounts], accounts, ledger, done.log).values()
        assert there[0] == pytest.approx(integral_j, rel=1e-9)
        parts.append(integral_j)
        pictured = sum(line.means(np.array([a, b]))[0] for line in timelines_of(done.log, accounts).facility_w)
        assert pictured * (b - a) == pytest.approx(integral_j, rel=1e-2)  # within runs of equal steps it shows means
    whole = facility_joules(done.log, tables, accounts, Window(0.0, end_s, end_s))
    assert sum(parts) == pytest.approx(whole, rel=1e-9)
    states = tables["states"]
    for state in Power:
        reached[f"servers {state.name}"] += int(((states["device"] < 0) & (states["state"] == state)).sum())
        reached[f"engines {state.name}"] += int(((states["device"] >= 0) & (states["state"] == state)).sum())


def test_joules_and_tasks_keep_their_laws_whatever_goes_down() -> None:
    reached = Counter[str]()

    @settings(max_examples=40)
    @given(st.one_of(scenarios(), scenarios(crowded=True)), st.sampled_from([0.02, 0.3]), st.booleans())
    def law(data: dict[str, Any], after_s: float, unloads: bool) -> None:
        data = sleeping(data, after_s, 0.2, 0.1)
        data["fleet"]["gpu-tier"]["stay_on"] = stay_on = data["seed"] % 2
        if unloads:
            data["pools"]["decode"]["unload_after_s"] = 0.05
        done, slow = run(prepared_of(data)), run(prepared_of(data), stepwise=True)
        assert sorted(done.tables["tasks"]["task"]) == [task.id for task in done.prepared.drawn.tasks]
        law_of_joules(done, reached)
        for table in ("tasks", "cores", "transfers", "states"):
            for column, values in done.tables[table].items():
                np.testing.assert_array_equal(values, slow.tables[table][column], err_msg=f"{table}.{column}")
        # Nothing is served while it is down: it came up before the step, or the job, began.
        states, steps = done.tables["states"], done.steps
        for replica in engine_devices(done):
            rows = states["device"] == replica.index
            for start_s in steps["start_s"][steps["device"] == replica.index]:
                before = np.flatnonzero(rows & (states["time_s"] <= start_s))
                assert not len(before) or states["state"][before[-1]] == Power.LOADED
            assert replica.kv.free_blocks == replica.kv.capacity_blocks
        servers = states["device"] < 0
        assert set(states["host"][servers]) <= {
            i for i, h in enumerate(done.log.hosts) if h.name != f"gpu-tier/{stay_on - 1}"
        }
        reached["stayed on beside others"] += bool(stay_on and servers.any())
        reached["unloaded alone"] += unloads and bool((states["device"] >= 0).any())

    law()
    needed = {"servers OFF", "servers BOOT", "servers IDLE", "engines OFF", "engines IDLE", "engines LOADED"}
    assert needed | {"unloaded alone", "stayed on beside others"} <= set(+reached), reached


def test_what_a_cache_held_is_lost_with_the_power() -> None:
    """Two rounds with a long wait between: awake, the second finds its context; asleep, it does not."""
    data = generate_only(prefix_caching=True)
    data["workload"] |= {"arrivals": {"kind": "uniform", "rate_per_s": 0.001}, "tasks": 1}
    data["tools"] = {"slow": {"operation": "http-call", "outside_wait_s": {"kind": "constant", "value": 400}}}
    data["workload"]["classes"] = {
        "a": {
            "rounds": 2, "first_round_tool": False, "tools": {"slow": 1}, "context": "grows",
            "input_tokens": 640, "output_tokens": 64, "max_output_tokens": 64,
        }
    }  # fmt: skip
    data["fleet"]["cpu-tier"] = {"server": "epyc-9654-2s", "count": 1}
    data["pools"]["agents"] = {"runs_on": "cpu-tier.cpu", "cores": 1}
    data["stages"] |= {"tool": "agents"}
    data["links"] = {"agents-decode": "ethernet-100g"}
    asleep = sleeping(data, 60)
    del asleep["fleet"]["cpu-tier"]["sleep_after_s"]
    del asleep["assume"]["epyc-9654-2s"]
    prefilled = [
        float((done.steps["steps"] * done.steps["chunk_tokens"]).sum())
        for done in (run(prepared_of(data)), run(prepared_of(asleep)))
    ]
    first, second = 640, 640 + 64 + 640
    assert prefilled == [first + second - (640 + 63) // 16 * 16, first + second]


def test_least_energy_wakes_nobody_while_somebody_has_room() -> None:
    def chosen(*views: DeviceView) -> int:
        return least_energy(VisitView(0, 0, 1, 1), PoolView(views, 0))

    busy, full = DeviceView(3, 0, 0, 3, 4), DeviceView(6, 0, 2, 4, 4)
    off, boots = DeviceView(0, 0, 0, 0, 4, 0, 50.0), DeviceView(2, 0, 2, 0, 4, 0, 20.0)
    assert chosen(off, busy) == 1
    assert chosen(off, full) == 0
    assert chosen(off, full, boots) == 2, "one that is on its way, rather than one more"
    assert chosen(off, full, replace_outstanding(boots, 4)) == 0


def replace_outstanding(view: DeviceView, outstanding: int) -> DeviceView:
    return view._replace(outstanding=outstanding)


def test_worlds_know_the_watts_of_what_is_off() -> None:
    prepared = prepared_of(sleeping(rare(), 60))
    done = run(prepared)
    tables = done.tables
    end_s = float(tables["tasks"]["ended_s"].max())
    ledger = keep_books(done.log, tables, prepared.accounts, Window(0.0, end_s, end_s))
    dearer = accounts_of(system_in(prepared.system, {"hgx-h100-8.off_w": OFF_W + 10, "h100-sxm.power.idle_w": 80.0}))
    other = keep_books(done.log, tables, dearer, ledger.window).joules()
    (there,) = site_joules_in([dearer], prepared.accounts, ledger, done.log).values()
    assert there[0] == pytest.approx(other, rel=1e-9)
    assert other > ledger.joules()


def test_what_is_unknown_is_asked_for() -> None:
    def refused(data: dict[str, Any]) -> str:
        with pytest.raises(DescriptionError) as error:
            prepared_of(data)
        return str(error.value)

    data = rare()
    data["fleet"]["gpu-tier"]["sleep_after_s"] = 60
    assert "--set assume.hgx-h100-8.boot_s=<value>" in refused(data | {"assume": {"vllm": {"load_s": 1}}})
    data["assume"] = {"hgx-h100-8": {"boot_s": 60}, "vllm": {"load_s": 1}}
    done = run(prepared_of(data))
    result = done.result()
    assert result.energy is None
    assert "assume.hgx-h100-8.off_w" in result.unavailable["energy"]
    engine = rare()
    engine["pools"]["decode"] |= {"unload_after_s": 60, "engine": "sglang"}
    assert "--set assume.sglang.load_s=<value>" in refused(engine)


def test_what_cannot_go_down_is_refused() -> None:
    data = generate_only(prefix_caching=False)
    data["pools"]["first"] = {"runs_on": "gpu-tier.gpu", "replicas": 1, "prefix_caching": False}
    data["stages"]["prefill"] = "first"
    data["links"] = {"first-decode": "nvlink4"}
    with pytest.raises(DescriptionError, match=r"sleep_after_s: pool 'decode' is sent KV cache from 'first'"):
        prepared_of(sleeping(data, 60))
    data["pools"]["decode"]["unload_after_s"] = 5
    with pytest.raises(DescriptionError, match=r"unload_after_s: pool 'decode' is sent KV cache"):
        prepared_of(data)
    with pytest.raises(DescriptionError, match="a live run cannot switch servers off"):
        run_live(prepared_of(sleeping(rare(), 60)), "cpu")


@pytest.mark.parametrize("after_s", [60.0, 5.0])
def test_who_is_given_up_while_a_server_boots_keeps_it_up_no_longer(after_s: float) -> None:
    """The second of 5 s: a server whose engines still load is not at rest."""
    data = sleeping(rare(2), after_s)
    data["workload"]["classes"]["chat"]["timeout_s"] = 10
    done = run(prepared_of(data))
    assert (done.tables["tasks"]["outcome"] == 1).all()
    states, servers = done.tables["states"], done.tables["states"]["device"] < 0
    assert states["state"][servers].tolist() == [Power.OFF, Power.BOOT, Power.IDLE] * 2 + [Power.OFF]
    up_s = BOOT_S + LOAD_S + after_s
    np.testing.assert_allclose(states["time_s"][servers][[0, 3, 6]], [after_s, 500 + up_s, 1000 + up_s])
    assert not len(done.visits_of(stage=Stage.GENERATE, outcome=0)["task"])
