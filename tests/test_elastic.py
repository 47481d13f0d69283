"""Servers and replicas that break down, are drained and scaled: nobody lost, nothing counted twice, every joule booked."""

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
from test_exact import UNIT_S, GridCosts
from test_laws import JOULES, TICK, TICK_S, TIMES, on_a_grid

from hsim.drivers.live import run_live
from hsim.engine.environment import EngineEnvironment
from hsim.engine.pool import Pool
from hsim.engine.power import Sleep, Sleeper
from hsim.engine.replica import Replica
from hsim.engine.service import Unit
from hsim.errors import DescriptionError
from hsim.log import Log, Outcome, Power, Service, Stage
from hsim.metrics.ledger import Window, keep_books
from hsim.metrics.power import facility_joules
from hsim.metrics.service import in_service
from hsim.policies.scaling import queue, utilisation
from hsim.policies.views import ScalingView

BOOT_S, LOAD_S = 0.0625, 0.03125  # whole units of the grid
BOOT_W = 1500.0


GOES_DOWN = ("sleep_after_s", "scaling", "failures", "drains")


def assumed(data: dict[str, Any], boot_s: float = BOOT_S, load_s: float = LOAD_S) -> dict[str, Any]:
    """The same with the figures assumed that whatever leaves service in it needs, and no others."""
    changed = deepcopy(data)
    figures = changed.setdefault("assume", {})
    for tier in changed["fleet"].values():
        if any(key in tier for key in GOES_DOWN):
            figures.setdefault(tier["server"], {}).update({"off_w": 20.0, "boot_w": BOOT_W, "boot_s": boot_s})
    if any(key in part for part in (changed["fleet"]["gpu-tier"], changed["pools"]["decode"]) for key in GOES_DOWN):
        figures.setdefault("vllm", {})["load_s"] = load_s
    return changed


def broken(data: dict[str, Any], where: str, mtbf_s: Any, repair_s: Any, retries: int = 2) -> dict[str, Any]:
    """The same with breakdowns of a tier, or of a pool's replicas."""
    changed = deepcopy(data)
    section = "fleet" if where in changed["fleet"] else "pools"
    changed[section][where]["failures"] = {"mtbf_s": mtbf_s, "repair_s": repair_s}
    changed["retries"] = {"max_retries": retries}
    return assumed(changed)


# ---- what breaks down


def one_task(**pool: Any) -> dict[str, Any]:
    """One prompt, alone, on one replica."""
    data = generate_only(**pool)
    data["workload"] |= {"tasks": 1, "arrivals": {"kind": "uniform", "rate_per_s": 1}}
    data["workload"]["classes"]["chat"] |= {"input_tokens": 400, "output_tokens": 40}
    return data


def test_a_task_that_is_lost_is_served_from_its_beginning_when_its_replica_is_back() -> None:
    """In the middle of a step: seconds, joules and tokens of the lost attempt, and of the next."""
    whole = run(prepared_of(one_task()))
    served = {name: float(cells[0]) for name, cells in whole.visits.items()}
    steps = whole.steps
    cut_s = served["started_s"] + 0.6 * (served["served_s"] - served["started_s"])
    done = run(prepared_of(broken(one_task(), "decode", cut_s, 10.0)))
    first, second = ({name: cells[i] for name, cells in done.visits.items()} for i in (0, 1))
    assert (first["outcome"], second["outcome"]) == (Outcome.LOST, Outcome.SERVED)
    assert (first["output_tokens"], second["output_tokens"]) == (0, served["output_tokens"])
    assert first["served_s"] == first["ended_s"] == second["ready_s"] == cut_s
    assert second["started_s"] == cut_s + 10.0 + LOAD_S
    took = [row["served_s"] - row["started_s"] for row in (served, second)]
    assert took[1] == pytest.approx(took[0], rel=1e-12)
    assert second["dynamic_j"] == pytest.approx(served["dynamic_j"], rel=1e-12)
    # The lost attempt drew what the steps until then drew, the last of them in part; it is work, and nobody's tokens.
    prefill_s, decode = float(steps["end_s"][0]), {name: float(cells[1]) for name, cells in steps.items()}
    passed = 0
    boundary_s, joules = prefill_s, float(steps["joules"][0])
    while boundary_s + decode["seconds"] + passed * decode["seconds_growth"] <= cut_s:
        boundary_s += decode["seconds"] + passed * decode["seconds_growth"]
        joules += decode["joules"] + passed * decode["joules_growth"]
        passed += 1
    part = (cut_s - boundary_s) / (decode["seconds"] + passed * decode["seconds_growth"])
    assert 0 < part < 1
    joules += part * (decode["joules"] + passed * decode["joules_growth"])
    assert first["dynamic_j"] == pytest.approx(joules, rel=1e-9)
    assert done.tables["losses"]["output_tokens"].tolist() == [1 + passed]
    assert done.tables["losses"]["prefilled_tokens"].tolist() == [400]
    result = done.result()
    assert result.output_tokens == 40
    assert result.service.lost_visits == 1
    assert result.service.lost_tokens == 1 + passed
    assert result.service.lost_j == pytest.approx(first["dynamic_j"] + first["host_dynamic_j"], rel=1e-12)
    assert result.latency["ttft"].mean_s == pytest.approx(second["first_token_s"] - first["ready_s"], rel=1e-12)
    assert result.service.available_fraction["decode"] == pytest.approx(1 - (10 + LOAD_S) / result.window_s, rel=1e-9)


def test_a_task_that_is_lost_too_often_fails_and_says_so() -> None:
    data = broken(one_task(), "decode", 1.2, 3.0, retries=2)  # it takes longer than it holds out
    data["workload"]["classes"]["chat"] |= {"output_tokens": 2000, "max_output_tokens": 2000}
    data["workload"]["arrivals"]["rate_per_s"] = 1000
    done = run(prepared_of(data))
    assert done.tables["tasks"]["outcome"].tolist() == [Outcome.FAILED]
    assert done.visits["outcome"].tolist() == [Outcome.LOST] * 3
    assert not done.visits["output_tokens"].any()
    np.testing.assert_allclose(done.visits["ended_s"], [1.2, 5.4, 9.6])
    assert (done.visits["dynamic_j"] > 0).all()


def test_a_job_on_a_server_that_breaks_down_begins_anew_and_its_part_is_paid() -> None:
    data = agents()
    data["workload"] |= {"tasks": 1, "arrivals": {"kind": "uniform", "rate_per_s": 1}}
    data["workload"]["classes"]["agent"] |= {"rounds": 1, "tools": {"python-exec": 1}}
    whole = run(prepared_of(data))
    tool = {name: cells[0] for name, cells in whole.visits_of(stage=Stage.TOOL).items()}
    cut_s = (tool["started_s"] + tool["served_s"]) / 2
    done = run(prepared_of(broken(data, "cpu-tier", float(cut_s), 5.0)))
    rows = done.visits_of(stage=Stage.TOOL)
    assert rows["outcome"].tolist() == [Outcome.LOST, Outcome.SERVED]
    np.testing.assert_allclose(rows["started_s"], [tool["started_s"], cut_s + 5.0 + BOOT_S])
    np.testing.assert_allclose(rows["dynamic_j"], [tool["dynamic_j"] / 2, tool["dynamic_j"]], rtol=1e-9)
    assert len(done.visits_of(stage=Stage.GENERATE)["task"]) == 1


def test_what_breaks_down_while_it_boots_is_down_until_it_has_booted_again() -> None:
    env, log = EngineEnvironment(), Log()
    unit = Unit(0, Sleeper(env, log, (0, -1), Sleep(float("inf"), 10.0)))
    unit.break_down()
    unit.mend()
    env.call_at(5.0, 0, lambda _: unit.break_down())
    env.call_at(20.0, 0, lambda _: unit.mend())
    env.run_out()
    states = log.states.arrays()
    assert states["time_s"].tolist() == [0, 0, 5, 20, 30]
    assert states["state"].tolist() == [Power.OFF, Power.BOOT, Power.OFF, Power.BOOT, Power.IDLE]


def test_two_fleets_see_the_same_breakdowns() -> None:
    """Draws are keyed by the server and the breakdown: not by load, router, or how many servers there are."""

    def breakdowns(count: int, rate: float, router: str) -> dict[int, list[float]]:
        data = broken(generate_only(router=router), "gpu-tier", {"kind": "exponential", "mean": 0.5}, 0.125)
        data["fleet"]["gpu-tier"]["count"] = count
        del data["pools"]["decode"]["replicas"]
        data["workload"]["arrivals"]["rate_per_s"] = rate
        data["workload"]["tasks"] = round(6 * rate)
        data["workload"]["classes"]["chat"] |= {"output_tokens": 4}
        done = run(prepared_of(data))
        rows = done.tables["service"]
        hosts = [device.host for device in done.log.accelerators]
        found: dict[int, set[float]] = {}
        for device, time_s, state in zip(rows["device"], rows["time_s"], rows["state"], strict=True):
            if state == Service.BROKEN:
                found.setdefault(hosts[int(device)], set()).add(float(time_s))
        return {host: sorted(times) for host, times in found.items()}

    few, many = breakdowns(1, 10, "round-robin"), breakdowns(3, 20, "least-energy")
    assert len(few[0]) > 2
    shared = min(len(few[0]), len(many[0]))
    assert few[0][:shared] == many[0][:shared]
    assert many[0] != many[1]


# ---- laws, whatever leaves service


@st.composite
def leaving(draw: Any, crowded: bool = False) -> dict[str, Any]:
    """Random scenarios in which servers and replicas break down, are drained and scaled."""
    data = draw(scenarios(crowded=crowded))
    data["retries"] = {"max_retries": draw(st.integers(0, 3)), "after_s": draw(st.sampled_from([0, 0.0, 0.125]))}
    seconds = st.sampled_from([0.5, 0.25, {"kind": "exponential", "mean": 0.4}])
    repairs = st.sampled_from([0.0, 0.0625, {"kind": "exponential", "mean": 0.1}])
    failures = st.fixed_dictionaries({"mtbf_s": seconds, "repair_s": repairs})
    for name, tier in data["fleet"].items():
        if draw(st.booleans()):
            tier["failures"] = draw(failures)
        if draw(st.booleans()):
            tier["drains"] = {"0": {"at_s": draw(st.sampled_from([0.0, 0.125, 0.3])), "for_s": 0.25}}
        if name == "cpu-tier" and draw(st.booleans()):
            tier["scaling"] = draw(scalings(tier["count"]))
    pool, gpu = data["pools"]["decode"], data["fleet"]["gpu-tier"]
    if draw(st.booleans()):
        pool["failures"] = draw(failures)
    scaled = draw(st.sampled_from(["", "tier", "pool"]))
    if scaled == "tier":
        gpu["scaling"] = draw(scalings(gpu["count"])) | {"standby": draw(st.integers(0, 1))}
    elif scaled == "pool":
        pool["scaling"] = draw(scalings(pool["replicas"]))
    elif draw(st.booleans()):
        gpu["sleep_after_s"] = 0.125
    return assumed(data)


def scalings(count: int) -> Any:
    reactive = st.fixed_dictionaries({
        "kind": st.just("reactive"),
        "policy": st.sampled_from(["utilisation", "queue"]),
        "target": st.sampled_from([0.5, 1.0, 2.0]),
        "every_s": st.sampled_from([0.0625, 0.125]),
        "cooldown_s": st.sampled_from([0.0, 0.25]),
        "floor": st.integers(0, count),
    })  # fmt: skip
    return st.one_of(reactive, st.just({"kind": "scheduled", "hours": {"0-24": count}}))


def same_in_both_modes(done: Run, slow: Run) -> None:
    """Every time and every choice to the last bit, every joule to 1e-9."""
    for column in ("task", "round", "stage", "pool", "device", "outcome", "output_tokens", *TIMES):
        np.testing.assert_array_equal(done.visits[column], slow.visits[column], err_msg=column)
    for column in JOULES:
        np.testing.assert_allclose(done.visits[column], slow.visits[column], rtol=1e-9, atol=1e-9, err_msg=column)
    assert lasting(done) == lasting(slow)
    for table in ("tasks", "transfers", "states", "service", "losses"):
        for column, values in done.tables[table].items():
            np.testing.assert_array_equal(values, slow.tables[table][column], err_msg=f"{table}.{column}")


def lasting(done: Run) -> dict[tuple[float, float], float]:
    """How many cores of each host were busy from each instant on: where several things end in one, after the last."""
    cores = done.tables["cores"]
    return {(host, at): busy for host, at, busy in zip(cores["host"], cores["time_s"], cores["busy"], strict=True)}


def law_of_tasks(done: Run, reached: Counter[str]) -> None:
    """Every task ends once; every round that it was served is served once; lost attempts deliver nothing."""
    tasks, visits, most = done.tables["tasks"], done.visits, done.prepared.system.scenario.retries.max_retries
    assert sorted(tasks["task"]) == [task.id for task in done.prepared.drawn.tasks]
    outcome = dict(zip(tasks["task"], tasks["outcome"], strict=True))
    assert set(outcome.values()) <= {Outcome.SERVED, Outcome.FAILED}
    attempts: dict[Any, list[float]] = {}
    for *key, how, tokens in zip(
        *(visits[c] for c in ("task", "stage", "round", "outcome", "output_tokens")), strict=True
    ):
        attempts.setdefault(tuple(key), []).append(how)
        assert how == Outcome.SERVED or not tokens
    failed = set()
    for (task, _, _), hows in attempts.items():
        assert len(hows) <= most + 1
        assert all(how == Outcome.LOST for how in hows[:-1])
        if hows[-1] == Outcome.LOST:
            assert len(hows) == most + 1, "it was not sent again"
            assert outcome[task] == Outcome.FAILED
            failed.add(task)
        reached["sent again"] += len(hows) > 1
    assert failed == {task for task, how in outcome.items() if how == Outcome.FAILED}
    delivered = sum(r.output_tokens for t in done.prepared.drawn.tasks if t.id not in failed for r in t.rounds)
    assert visits["output_tokens"][np.isin(visits["task"], list(outcome.keys() - failed))].sum() == delivered
    reached["failed"] += len(failed)
    reached["lost while it ran"] += int((done.tables["losses"]["prefilled_tokens"] > 0).sum())
    reached["lost while it waited"] += int((done.tables["losses"]["prefilled_tokens"] == 0).sum())
    reached["lost on a core"] += int(((visits["outcome"] == Outcome.LOST) & (visits["stage"] != Stage.GENERATE)).sum())


def law_of_tokens(done: Run, reached: Counter[str]) -> None:
    """What the steps made was delivered, or is among the losses; what a broken step would have made is neither."""
    if len(done.tables["preemptions"]["task"]):
        return  # recomputed tokens are counted elsewhere
    steps, losses = done.steps, done.tables["losses"]
    generated = done.visits_of(stage=Stage.GENERATE, outcome=Outcome.SERVED)["output_tokens"]
    lost = losses["output_tokens"]
    assert (steps["steps"] * steps["decodes"]).sum() == (generated - 1).sum() + (lost[lost > 0] - 1).sum()
    reached["a step broke off"] += int(((steps["decodes"] == 0) & (steps["chunk_tokens"] == 0)).sum())


def law_of_service(done: Run, reached: Counter[str]) -> None:
    """Nobody works on what is broken; who is closed takes nobody new."""
    rows, visits = done.tables["service"], done.visits
    for number, pool in enumerate(done.log.pools.values()):
        for device in pool.devices:
            mine = (rows["pool"] == number) & (rows["device"] == device)
            times = [*rows["time_s"][mine].tolist(), np.inf]
            here = (visits["pool"] == number) & (visits["device"] == device)
            queued, started, served = (visits[c][here] for c in ("queued_s", "started_s", "served_s"))
            worked = served > started
            for (since, until), state in zip(pairwise(times), rows["state"][mine].tolist(), strict=True):
                if state == Service.BROKEN:
                    assert not (worked & (started < until) & (served > since)).any()
                    if pool.engine:
                        own = done.steps["device"] == device
                        busy = own & (done.steps["start_s"] < until) & (done.steps["end_s"] > since)
                        assert not busy.any()
                if state != Service.OPEN:
                    came = (queued > since) & (queued < until)
                    assert (started[came] >= until).all()
                    drained = (queued <= since) & (started > since) & (state == Service.CLOSED)
                    reached["finished what it had"] += int(drained.sum())
                    reached["waited for somebody"] += int(came.sum())
    for replica in engine_devices(done):
        assert replica.kv.free_blocks == replica.kv.capacity_blocks
        assert not replica.running


def law_of_joules(done: Run) -> None:
    """The ledger equals the integral of power in any window, and the shares of visits what devices drew."""
    tables, accounts = done.tables, done.prepared.accounts
    end_s = float(tables["tasks"]["ended_s"].max())
    for a, b in pairwise([0.0, 0.21 * end_s, 0.5 * end_s, end_s]):
        ledger = keep_books(done.log, tables, accounts, Window(a, b, b))
        integral_j = facility_joules(done.log, tables, accounts, Window(a, b, b))
        assert ledger.joules() == pytest.approx(integral_j, rel=1e-9)
        assert all(entry.joules >= -1e-9 * integral_j for entry in ledger.entries)
    if (tables["tasks"]["outcome"] == Outcome.SERVED).any():
        assert done.result().energy.ledger_gap_fraction <= 1e-9
    whole = in_service(done.log, tables, Window(0.0, end_s, end_s))
    for pool in whole.pools.values():
        assert pool.open_s >= -1e-9 and pool.open_s + pool.broken_s <= pool.all_s * (1 + 1e-9)


def test_tasks_tokens_and_joules_keep_their_laws_whatever_leaves_service() -> None:
    reached = Counter[str]()

    @settings(max_examples=60)
    @given(st.one_of(leaving(), leaving(crowded=True)))
    def law(data: dict[str, Any]) -> None:
        done, slow = run(prepared_of(data)), run(prepared_of(data), stepwise=True)
        same_in_both_modes(done, slow)
        law_of_tasks(done, reached)
        law_of_tokens(done, reached)
        law_of_service(done, reached)
        law_of_joules(done)
        states = done.tables["states"]
        reached["booted"] += int(((states["device"] < 0) & (states["state"] == Power.BOOT)).sum())

    law()
    needed = {
        "sent again", "failed", "lost while it ran", "lost while it waited", "lost on a core", "a step broke off",
        "finished what it had", "waited for somebody", "booted",
    }  # fmt: skip
    assert needed <= set(+reached), f"never reached: {needed - set(+reached)}"


def test_breakdowns_at_the_instants_of_boundaries_are_the_same_in_both_modes() -> None:
    """On a grid where steps end, tasks arrive, and replicas and servers break down and are mended, at one instant."""
    reached = Counter[str]()

    @settings(max_examples=40)
    @given(leaving(crowded=True), st.integers(1, 4), st.sampled_from([1, 2, 5]))
    def law(data: dict[str, Any], base: int, ticks: int) -> None:
        grid = {"mtbf_s": 8 * ticks * TICK_S, "repair_s": ticks * TICK_S}
        data["pools"]["decode"]["failures"] = grid
        for tier in data["fleet"].values():
            if "failures" in tier:
                tier["failures"] = grid
        prepared = on_a_grid(prepared_of(assumed(data)), GridCosts(TICK * base, 0, 0, 0, 10_000, TICK))
        done, slow = run(prepared), run(prepared, stepwise=True)
        same_in_both_modes(done, slow)
        law_of_tasks(done, reached)
        law_of_service(done, reached)
        running = done.tables["losses"]["prefilled_tokens"] > 0
        ends = slow.steps["end_s"][(slow.steps["decodes"] + slow.steps["chunk_tokens"]) > 0]
        reached["at a boundary"] += bool(np.isin(done.tables["losses"]["time_s"][running], ends).any())

    assert BOOT_S % UNIT_S == LOAD_S % UNIT_S == 0
    law()
    assert {"at a boundary", "sent again"} <= set(+reached), reached


def test_an_option_that_is_off_changes_nothing() -> None:
    """Breakdowns that never come, and a schedule of all: the same log, to the last byte."""
    data = agents(tensor_parallel=4, replicas=2)
    never = run(prepared_of(data))
    patient = broken(data, "gpu-tier", 1e9, 1.0)
    patient["fleet"]["cpu-tier"]["scaling"] = {"kind": "scheduled", "hours": {"0-24": 1}}
    done = run(prepared_of(assumed(patient)))
    for table, columns in never.tables.items():
        for column, values in columns.items():
            np.testing.assert_array_equal(values, done.tables[table][column], err_msg=f"{table}.{column}")
    assert never.result().service is None
    assert all(type(pool) is Pool for pool in never.pipeline.pools.values())
    assert type(engine_devices(never)[0]) is Replica
    events = [next(engine_devices(run)[0].env._eid) for run in (never, done)]
    assert events[1] - events[0] == 2, "the one breakdown that would come, and the next hour of the schedule"
    assert done.result().service.available_fraction == {"decode": 1.0, "agents": 1.0}


# ---- what is scaled


def hours(counts: dict[str, int], **more: Any) -> dict[str, Any]:
    return {"kind": "scheduled", "hours": counts, **more}


def reactive(**more: Any) -> dict[str, Any]:
    return {"kind": "reactive", "policy": "queue", "target": 4, "every_s": 10, **more}


def served_by(done: Run) -> Counter[int]:
    return Counter(done.visits_of(stage=Stage.GENERATE)["device"].astype(int).tolist())


def test_a_schedule_switches_servers_on_and_off_at_its_hours() -> None:
    """One server, from 1 o'clock two, from 2 o'clock one: off, booting, loading and serving for exactly so long."""
    data = generate_only(tensor_parallel=8, router="round-robin")
    del data["pools"]["decode"]["replicas"]
    data["fleet"]["gpu-tier"] |= {"count": 2}
    data["workload"] |= {"tasks": 3600, "arrivals": {"kind": "uniform", "rate_per_s": 1 / 3}}
    data["workload"]["classes"]["chat"] |= {"output_tokens": 3, "input_tokens": 20}
    data["fleet"]["gpu-tier"]["scaling"] = hours({"0-1": 1, "1-2": 2, "2-24": 1})
    done = run(prepared_of(assumed(data, boot_s=120.0, load_s=60.0)))
    visits = done.visits_of(stage=Stage.GENERATE)
    second = visits["queued_s"][visits["device"] == 1]
    assert 3600 + 180 <= second.min() < 3600 + 180 + 6.1
    assert second.max() <= 7200
    states = {name: cells[done.tables["states"]["host"] == 1] for name, cells in done.tables["states"].items()}
    server = states["device"] < 0
    assert states["state"][server].tolist() == [Power.OFF, Power.BOOT, Power.IDLE, Power.OFF]
    np.testing.assert_allclose(states["time_s"][server][:3], [0, 3600, 3720])
    assert states["time_s"][server][3] < 7200 + 1
    window_s = done.result().window_s
    assert done.result().service.serving["decode"] == pytest.approx(1 + (3600 - 180) / window_s, rel=1e-3)
    booked = {account: joules for account, _, joules in done.result().energy.accounts}
    assert booked["gpu-tier servers booting"] == pytest.approx(BOOT_W * 120.0)


def test_standby_comes_back_after_its_model_is_loaded_and_off_after_a_boot_too() -> None:
    for standby, after_s in ((0, 180.0), (1, 60.0)):
        data = generate_only(tensor_parallel=8)
        del data["pools"]["decode"]["replicas"]
        data["fleet"]["gpu-tier"] |= {"count": 2}
        data["workload"] |= {"tasks": 2000, "arrivals": {"kind": "uniform", "rate_per_s": 0.5}}
        data["workload"]["classes"]["chat"] |= {"output_tokens": 3, "input_tokens": 20}
        data["fleet"]["gpu-tier"]["scaling"] = hours({"0-1": 1, "1-24": 2}, standby=standby)
        done = run(prepared_of(assumed(data, boot_s=120.0, load_s=60.0)))
        opened = done.tables["service"]["time_s"][done.tables["service"]["state"] == Service.OPEN]
        np.testing.assert_allclose(opened, [3600 + after_s])
        boots = done.result().service.boots
        assert boots == (0 if standby else 1)


def test_who_finds_nobody_starts_one_and_waits_for_it() -> None:
    """Scale to zero: the first task waits for boot and load; later ones find it up, until it is let go."""
    data = generate_only(tensor_parallel=8)
    del data["pools"]["decode"]["replicas"]
    data["workload"] |= {"tasks": 3, "arrivals": {"kind": "uniform", "rate_per_s": 0.001}}
    data["fleet"]["gpu-tier"]["scaling"] = reactive(floor=0)
    done = run(prepared_of(assumed(data, boot_s=120.0, load_s=60.0)))
    visits = done.visits_of(stage=Stage.GENERATE)
    np.testing.assert_allclose(visits["started_s"] - visits["queued_s"], 180.0)
    states = done.tables["states"]
    assert int(((states["device"] < 0) & (states["state"] == Power.BOOT)).sum()) == 3
    assert done.result().energy.ledger_gap_fraction < 1e-9


def test_a_reactive_scaler_follows_a_burst_and_lets_go_after_its_cooldown() -> None:
    data = generate_only(replicas=4, max_num_seqs=4, router="join-shortest-queue")
    data["workload"] |= {"tasks": 400, "arrivals": {"kind": "uniform", "rate_per_s": 10}}
    data["workload"]["classes"]["chat"] |= {"output_tokens": 60}
    counts = {}
    for cooldown_s in (0, 30):
        data["pools"]["decode"]["scaling"] = reactive(target=2, every_s=2, floor=1, cooldown_s=cooldown_s)
        done = run(prepared_of(assumed(data, load_s=5.0)))
        counts[cooldown_s] = done.result().service.serving["decode"]
        rows = done.tables["service"]
        opened = rows["time_s"][rows["state"] == Service.OPEN]
        assert len(opened) and (opened >= 2 + 5).all()
        loads = served_by(done)
        assert loads[0] > 0 and sum(loads.values()) == 400
    assert 1 < counts[0] < counts[30] < 4


def test_a_round_returns_to_the_replica_that_goes_and_holds_its_context() -> None:
    data = generate_only(replicas=2, prefix_caching=True, tool_gaps="hold", router="round-robin")
    data["workload"] |= {"arrivals": {"kind": "uniform", "rate_per_s": 1}, "tasks": 2}
    data["tools"] = {"slow": {"operation": "http-call", "outside_wait_s": {"kind": "constant", "value": 4000}}}
    data["workload"]["classes"] = {
        "a": {
            "rounds": 2, "first_round_tool": False, "tools": {"slow": 1}, "context": "grows",
            "input_tokens": 640, "output_tokens": 64, "max_output_tokens": 64,
        }
    }  # fmt: skip
    data["pools"]["agents"] = {"runs_on": "gpu-tier.cpu", "cores": 1}
    data["stages"] |= {"tool": "agents"}
    data["pools"]["decode"]["scaling"] = hours({"0-1": 2, "1-24": 1})
    done = run(prepared_of(assumed(data)))
    visits = done.visits_of(stage=Stage.GENERATE)
    devices = dict(zip(zip(visits["task"], visits["round"], strict=True), visits["device"], strict=True))
    assert {devices[0, 0], devices[1, 0]} == {0, 1}
    assert [devices[task, 1] for task in (0, 1)] == [devices[task, 0] for task in (0, 1)]
    assert visits["queued_s"].max() > 3600
    engine = done.tables["states"]["device"] == 1
    assert done.tables["states"]["state"][engine].tolist() == [Power.IDLE]  # unloads when the round has been served
    assert done.tables["states"]["time_s"][engine][0] == visits["served_s"][visits["device"] == 1].max()


def test_policies_ask_for_what_their_targets_say() -> None:
    view = ScalingView(serving=2, wanted=2, waiting=5, running=16, places=8)
    assert utilisation(view, 1.0) == 2
    assert utilisation(view, 0.5) == 4
    assert queue(view, 7) == 3
    assert queue(view._replace(waiting=0, running=0), 7) == utilisation(view._replace(running=0), 0.5) == 0


# ---- caps that follow the load


def governed(data: dict[str, Any], target: float, policy: str = "all-or-least", **more: Any) -> dict[str, Any]:
    changed = deepcopy(data)
    changed["pools"]["decode"]["governor"] = {
        "caps_w": [400, 500, 690], "policy": policy, "target": target, "every_s": 0.25, "takes_s": 0.0625, **more
    }  # fmt: skip
    return changed


def test_a_governor_that_stays_at_a_cap_is_that_cap() -> None:
    """Where nobody ever looks, or load asks for the lowest from before the first task on: to the last byte."""
    data = generate_only()
    data["workload"] |= {"tasks": 12, "arrivals": {"kind": "uniform", "rate_per_s": 1}}
    data["pools"]["decode"] |= {"max_num_seqs": 32, "max_num_batched_tokens": 512}
    for every_s, cap_w in ((1e6, 690), (0.25, 400)):
        capped = deepcopy(data)
        capped["pools"]["decode"]["power_cap_w"] = cap_w
        always, follows = run(prepared_of(capped)), run(prepared_of(governed(data, 1.0, every_s=every_s)))
        for table in ("tasks", "visits", "steps"):
            for column, values in always.tables[table].items():
                np.testing.assert_array_equal(values, follows.tables[table][column], err_msg=f"{table}.{column}")
        shifts = follows.tables["caps"]["cap_w"].tolist()
        assert shifts == ([] if cap_w == 690 else [400])


def test_a_lower_cap_holds_from_the_next_step_on() -> None:
    """In the middle of answers that decode together: the clock falls at the boundary after the shift."""
    data = generate_only()
    data["workload"] |= {"tasks": 64, "arrivals": {"kind": "uniform", "rate_per_s": 1e4}}
    data["workload"]["classes"]["chat"] |= {"input_tokens": 1000, "output_tokens": 400, "max_output_tokens": 400}
    done = run(prepared_of(governed(data, 1.0, every_s=4.0, takes_s=0.5)))
    steps, (shift_s,) = done.steps, done.tables["caps"]["time_s"]
    watts = done.log.accelerators[0].idle_w + steps["joules"] / steps["seconds"]
    before = steps["start_s"] <= shift_s
    assert (watts[before & (steps["chunk_tokens"] == 0)] > 450).any()
    assert (watts[~before] <= 400 * (1 + 1e-9)).all()
    assert steps["end_s"][before].max() - shift_s < 2 * steps["seconds"][before][-1]


def test_caps_follow_the_load_alike_in_both_modes_and_no_step_draws_more() -> None:
    reached = Counter[str]()

    @settings(max_examples=25)
    @given(scenarios(), st.sampled_from([0.1, 0.5]), st.sampled_from(["by-load", "all-or-least"]), st.booleans())
    def law(data: dict[str, Any], target: float, policy: str, fails: bool) -> None:
        data = governed(data, target, policy, every_s=0.03125, takes_s=0.0, hold_s=0.0625)
        data["pools"]["decode"] |= {"max_num_seqs": 8, "max_num_batched_tokens": 300}
        if fails:
            data = broken(data, "decode", {"kind": "exponential", "mean": 0.4}, 0.0625)
        done, slow = run(prepared_of(data)), run(prepared_of(data), stepwise=True)
        same_in_both_modes(done, slow)
        law_of_tasks(done, reached)
        law_of_joules(done)
        caps, steps = done.tables["caps"], done.steps
        for column in ("time_s", "cap_w"):
            np.testing.assert_array_equal(caps[column], slow.tables["caps"][column])
        from_s, cap_w = np.append(-1.0, caps["time_s"]), np.append(690.0, caps["cap_w"])
        # A step that begins at the instant of a shift was planned before it.
        before = np.searchsorted(from_s, steps["start_s"], side="left") - 1
        chips = np.array([device.accelerators for device in done.log.accelerators])[steps["device"].astype(int)]
        idle_w = np.array([device.idle_w for device in done.log.accelerators])[steps["device"].astype(int)]
        watts = (idle_w + steps["joules"] / steps["seconds"]) / chips
        assert (watts <= cap_w[before] * (1 + 1e-9)).all()
        reached["shifted"] += len(caps["cap_w"])
        reached["bound by a lower cap"] += int((np.abs(watts / cap_w[before] - 1)[cap_w[before] < 690] < 0.1).sum())
        reached["several caps"] += len(set(caps["cap_w"])) > 1

    law()
    assert {"shifted", "several caps"} <= set(+reached), reached


def test_a_governor_that_cannot_be_is_refused() -> None:
    def refused(**more: Any) -> str:
        data = governed(generate_only(), 0.5, **{key: value for key, value in more.items() if key != "power_cap_w"})
        data["pools"]["decode"] |= {key: value for key, value in more.items() if key == "power_cap_w"}
        with pytest.raises(DescriptionError) as error:
            prepared_of(data)
        return str(error.value)

    assert "caps_w do not rise" in refused(caps_w=[690, 400])
    assert "900 W is more than h100-sxm ever draws" in refused(caps_w=[400, 900])
    assert "there is no policy 'by-loads'; did you mean 'by-load'" in refused(policy="by-loads")
    assert "power_cap_w is set, and a governor too" in refused(power_cap_w=500)
    assert "even at its lowest clock" in refused(caps_w=[130, 690])


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fleet": reactive(floor=3)}, "scaling.floor: 3 is more than the 2 that there are"),
        ({"fleet": reactive(ceiling=5)}, "scaling.ceiling: 5 is more than the 2 that there are"),
        ({"fleet": reactive(floor=2, ceiling=1)}, "ceiling 1 is below floor 2"),
        ({"fleet": hours({"0-8": 1, "9-24": 2})}, "hours has no count from 8 to 9"),
        ({"fleet": hours({"0-8": 1})}, "hours has no count from 8 to 24"),
        ({"fleet": hours({"0-12": 1, "8-24": 2})}, "hours has two counts from 8 to 12"),
        ({"fleet": hours({"0-24": 0})}, "hours are all 0"),
        ({"fleet": hours({"8-4": 1})}, "'8-4' is no stretch of a day"),
        ({"fleet": hours({"0-24": 3})}, "3 are to serve, and there are 2"),
        ({"fleet": reactive(policy="queues")}, "there is no policy 'queues'; did you mean 'queue'"),
        ({"pool": reactive(floor=9)}, "scaling.floor: 9 is more than the 4 that there are"),
        ({"pool": reactive(standby=1)}, "all stand by without a model"),
        ({"both": reactive()}, "its tier is scaled too"),
    ],
)  # fmt: skip
def test_scaling_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    data = generate_only(replicas=4)
    data["fleet"]["gpu-tier"]["count"] = 2
    for where, scaling in change.items():
        if where != "pool":
            data["fleet"]["gpu-tier"]["scaling"] = scaling
        if where != "fleet":
            data["pools"]["decode"]["scaling"] = scaling
    with pytest.raises(DescriptionError) as error:
        prepared_of(assumed(data))
    assert said in str(error.value)


def test_faults_that_cannot_be_are_refused() -> None:
    def refused(data: dict[str, Any]) -> str:
        with pytest.raises(DescriptionError) as error:
            prepared_of(data)
        return str(error.value)

    data = broken(generate_only(), "gpu-tier", 0.05, 1)
    assert "it takes 0.09375 s to come up again, and breaks down after 0.05 s at most" in refused(data)
    data = generate_only()
    data["fleet"]["gpu-tier"]["drains"] = {"1": {"at_s": 5, "for_s": 5}}
    assert "the tier has 1 servers; they are 0 to 0" in refused(assumed(data))
    data = broken(generate_only(), "gpu-tier", 50, 1)
    del data["fleet"]["gpu-tier"]["failures"]["repair_s"]
    assert "repair_s" in refused(data)
    data = broken(generate_only(), "gpu-tier", 50, 1)
    del data["assume"]
    assert "--set assume.hgx-h100-8.boot_s=<value>" in refused(data)
    data = generate_only(prefix_caching=False)
    data["pools"]["first"] = {"runs_on": "gpu-tier.gpu", "replicas": 1, "prefix_caching": False}
    data["stages"]["prefill"] = "first"
    data["links"] = {"first-decode": "nvlink4"}
    assert "KV cache" in refused(broken(data, "gpu-tier", 50, 1))
    with pytest.raises(DescriptionError, match="a live run cannot"):
        run_live(prepared_of(broken(generate_only(), "gpu-tier", 50, 1)), "cpu")
    with pytest.raises(DescriptionError, match="a live run cannot scale or break replicas"):
        run_live(prepared_of(broken(generate_only(), "decode", 50, 1)), "cpu")


def test_code_of_your_own_scales_only_where_it_is_allowed() -> None:
    data = generate_only(replicas=2)
    data["pools"]["decode"]["scaling"] = reactive(policy="mine.py:mine")
    with pytest.raises(DescriptionError, match="add --allow-code"):
        prepared_of(assumed(data))
