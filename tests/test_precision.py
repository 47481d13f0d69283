"""Pruned weights, and replicas that go over to other weights under load: exact costs, and laws on every path."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import Run, agents, generate_only, prepared_of, run, scenarios, with_kv

from hsim.costs.composed import ComposedCosts, Placement
from hsim.costs.memory import weight_bytes
from hsim.costs.shapes import StepShape
from hsim.costs.sparsity import sparsity_of
from hsim.description.catalogue import load_model, load_profile
from hsim.description.hardware import AcceleratorProfile, EngineProfile, SparsityProfile
from hsim.description.model import Solved
from hsim.description.quantities import Figure
from hsim.description.scenario import Switch
from hsim.description.system import Figures
from hsim.drivers.prepared import prepare
from hsim.drivers.simulated import build
from hsim.engine.environment import EngineEnvironment
from hsim.engine.executor import ModelledTime
from hsim.engine.life import run_tasks
from hsim.engine.precision import Cost, Switching, SwitchSpec
from hsim.errors import DescriptionError
from hsim.log import Log
from hsim.metrics.ledger import Window, keep_books
from hsim.metrics.power import facility_joules
from hsim.metrics.quality import solved_by
from hsim.metrics.result import Interval, PoolUse
from hsim.metrics.summarise import problems_of
from hsim.policies.precision import SWITCHES, SwitchView
from hsim.runs import system_of

PATTERNS = load_profile("sparsity", SparsityProfile, "test")[0]


def placed(pattern: str | None = None, chip: str = "h100-sxm", **more: Any) -> Placement:
    pruned = sparsity_of(PATTERNS, pattern, Figures({})) if pattern else None
    accelerator = load_profile(chip, AcceleratorProfile, "test")[0]
    engine = load_profile("vllm", EngineProfile, "test")[0]
    model = load_model(more.pop("model", "llama-3.1-8b"), "test", Path())
    return Placement(model, accelerator, engine, 1, more.pop("precision", "bf16"), sparsity=pruned, **more)


def test_pruned_weights_are_so_many_bytes_and_no_more() -> None:
    """Two of four weights of two bytes, with two bits each: 9/16 of a product's; embedding, head and norms stay whole."""
    dense, pruned = placed(), placed("2:4")
    model = dense.model
    assert weight_bytes(dense) - weight_bytes(pruned) == pytest.approx(7 / 16 * 2 * model.layer_parameters, rel=1e-12)
    shape = StepShape(8, 4000)
    lost = ComposedCosts(dense, Figures({})).work(shape)[0] - ComposedCosts(pruned, Figures({})).work(shape)[0]
    assert lost == pytest.approx(7 / 16 * 2 * model.layer_parameters, rel=1e-9)


def test_a_step_bound_by_bytes_or_by_flops_gains_what_its_pattern_says() -> None:
    def seconds(pattern: str | None, shape: StepShape) -> float:
        return ComposedCosts(placed(pattern), Figures({})).parts(shape)["products"]

    few, many = StepShape(1, 100), StepShape(0, 0, 1, 8192, 8192, 8192 * 8193 // 2)
    assert 1.55 < seconds(None, few) / seconds("2:4", few) < 16 / 9  # launches stay
    assert seconds(None, many) / seconds("2:4", many) == pytest.approx(1.22, rel=0.03)
    assert seconds(None, many) < seconds("unstructured-50", many)  # unpacking takes time, and nothing is left out
    assert seconds(None, few) > seconds("unstructured-50", few)


def switched(data: dict[str, Any], **switch: Any) -> dict[str, Any]:
    changed = deepcopy(data)
    own = {"precision": "fp8", "policy": "waiting", "above": 0, "below": 0, "stay_s": 0, "weights": "resident"}
    changed["pools"]["decode"]["switch"] = own | switch
    return changed


def alike(done: Run, slow: Run) -> None:
    """The same to the last bit. What cores do within one instant may stand in another order: two tasks can be in step."""
    for table in ("tasks", "transfers", "gaps", "preemptions", "switches", "memory"):
        for column, values in done.tables[table].items():
            np.testing.assert_array_equal(values, slow.tables[table][column], err_msg=f"{table}.{column}")
    for column in ("started_s", "first_token_s", "served_s"):
        np.testing.assert_array_equal(done.visits[column], slow.visits[column], err_msg=column)
    for column in ("dynamic_j", "idle_j"):
        np.testing.assert_allclose(done.visits[column], slow.visits[column], rtol=1e-9, atol=1e-9)


def test_laws_hold_whatever_goes_over_and_back() -> None:
    """Coalesced equals step by step, joules balance, nobody goes over before his time, and back comes after over."""
    reached = Counter[str]()

    @settings(max_examples=40)
    @given(
        st.one_of(scenarios(), scenarios(crowded=True)), st.sampled_from(["waiting", "kv"]),
        st.sampled_from([("fp8", None), (None, "2:4"), ("fp8", "unstructured-50")]), st.sampled_from([0.0, 0.05]),
    )  # fmt: skip
    def law(data: dict[str, Any], policy: str, other: tuple[Any, Any], stay_s: float) -> None:
        cost = (
            {"weights": "reload", "link": "pcie5-pinned"}
            if stay_s
            else {"switch_s": 0.001, "weights": "reload", "link": "cxl"}
        )
        above = {"waiting": 1, "kv": 0.3}[policy]
        weights = {"precision": other[0], "sparsity": other[1]}
        data = switched(data, policy=policy, above=above, below=above / 2, stay_s=stay_s, **cost, **weights)
        prepared = prepared_of(data)
        done, slow = run(prepared), run(prepared, stepwise=True)
        alike(done, slow)
        assert sorted(done.tables["tasks"]["task"]) == [task.id for task in prepared.drawn.tasks]
        tables, accounts = done.tables, prepared.accounts
        end_s = float(tables["tasks"]["ended_s"].max())
        window = Window(0.3 * end_s, end_s, end_s)
        joules = keep_books(done.log, tables, accounts, window).joules()
        assert joules == pytest.approx(facility_joules(done.log, tables, accounts, window), rel=1e-9)
        for device in {int(i) for i in tables["switches"]["device"]}:
            mine = tables["switches"]["device"] == device
            others, times = tables["switches"]["other"][mine], tables["switches"]["time_s"][mine]
            assert others.tolist() == [float(i % 2 == 0) for i in range(len(others))]
            assert all(b - a >= stay_s for a, b in pairwise(times))
            law_of_steps(done, device, times, reached)
            reached["over"] += 1
            reached["back"] += len(others) > 1
        reached["never"] += not len(tables["switches"]["device"])
        use = next(use for use in done.result().pools if use.pool == "decode")
        assert use.weights is not None
        assert sum(use.weights.values()) == pytest.approx(1)
        reached["mixed"] += 0 < list(use.weights.values())[1] < 1

    law()
    assert {"over", "back", "never", "mixed", "a step that paid"} <= set(+reached), reached


def law_of_steps(done: Run, device: int, times: Any, reached: Counter[str]) -> None:
    """Every run of decode steps takes as long as the weights of its time say; one that follows a switch is of one step, and
    pays for it beside.
    """
    spec = done.prepared.replicas["decode"]
    assert spec.switch
    steps, starts = done.steps_of(device), set(times)
    sets = ((spec.costs, spec.switch.back), (spec.switch.costs, spec.switch.over))
    for row in np.flatnonzero(steps["chunk_tokens"] == 0):
        start_s = steps["start_s"][row]
        costs, cost = sets[int(np.searchsorted(times, start_s, side="right")) % 2]
        plain = costs.segment(StepShape(int(steps["decodes"][row]), int(steps["context_tokens"][row])))
        pays = start_s in starts
        assert steps["seconds"][row] == plain.seconds + (cost.seconds if pays else 0)
        assert steps["joules"][row] == plain.joules + (cost.joules if pays else 0)
        assert steps["steps"][row] == 1 or not pays
        reached["a step that paid"] += pays


def events(data: dict[str, Any]) -> int:
    """How many events a run puts on its agenda."""
    prepared = prepared_of(data)
    env, log = EngineEnvironment(), Log()
    run_tasks(env, log, build(env, log, prepared, ModelledTime(env)), prepared.drawn.tasks)
    return next(env._eid)


def test_a_switch_that_never_happens_changes_nothing_and_costs_no_event() -> None:
    data = with_kv(agents(router="least-outstanding"), 50)
    never = switched(data, above=1e9, below=0, weights="reload", link="pcie5-pinned")
    plain, patient = run(prepared_of(data)), run(prepared_of(never))
    for table in plain.tables:
        for column, values in plain.tables[table].items():
            np.testing.assert_array_equal(values, patient.tables[table][column], err_msg=f"{table}.{column}")
    assert events(data) == events(never)
    off = deepcopy(data)
    off["pools"]["decode"] |= {"switch": None, "sparsity": None, "memory": None, "host_weight_bytes": None}
    assert events(off) == events(data)


def test_dirty_electricity_from_the_start_is_as_the_other_weights_alone() -> None:
    data = with_kv(generate_only(), 1000)
    other = deepcopy(data)
    other["pools"]["decode"]["precision"] = "fp8"
    over, alone = run(prepared_of(switched(data, policy="carbon", above=100, below=50))), run(prepared_of(other))
    np.testing.assert_allclose(over.visits["served_s"], alone.visits["served_s"], rtol=1e-12)
    np.testing.assert_allclose(over.visits["dynamic_j"], alone.visits["dynamic_j"], rtol=1e-9)
    assert over.result().pools[0].weights == {"bf16": 0.0, "fp8": 1.0}
    clean = switched(data, policy="carbon", above=100, below=50) | {"site": {"gco2_per_kwh": 40}}
    assert run(prepared_of(clean)).result().pools[0].weights == {"bf16": 1.0, "fp8": 0.0}


def test_hours_of_dirty_electricity_are_served_with_the_other_weights() -> None:
    """A task every five minutes for three hours, dirty in the second: what is decoded then, and no more, is with fp8."""
    data = switched(generate_only(), policy="carbon", above=400, below=200)
    data["site"] = {"hourly": {"gco2_per_kwh": [100, 500, 100] * 8}}
    data["workload"] |= {"arrivals": {"kind": "uniform", "rate_per_s": 1 / 310}, "tasks": 34}
    done = run(prepared_of(data))
    switches = done.tables["switches"]
    assert switches["other"].tolist() == [1.0, 0.0]
    starts = done.visits["started_s"]
    over, back = (float(starts[starts >= hour * 3600].min()) for hour in (1, 2))
    assert switches["time_s"].tolist() == [over, back]
    steps = done.steps
    dirty = (steps["start_s"] >= over) & (steps["start_s"] < back)
    tokens = steps["steps"] * steps["decodes"]
    weights = done.result().pools[0].weights
    assert weights is not None
    assert weights["fp8"] == pytest.approx(tokens[dirty].sum() / tokens.sum())


def test_both_sets_in_memory_leave_less_for_keys_and_values_than_the_larger_alone() -> None:
    own, both, read = (
        prepared_of(data).replicas["decode"].kv_blocks
        for data in (
            generate_only(),
            switched(generate_only()),
            switched(generate_only(), weights="reload", link="pcie5-pinned"),
        )
    )
    eight = weight_bytes(placed(precision="fp8"))
    assert read == own
    assert (own - both) * 16 * 131_072 == pytest.approx(eight, abs=2 * 16 * 131_072)


def test_reading_other_weights_takes_their_bytes_over_all_links_side_by_side() -> None:
    data = switched(generate_only(tensor_parallel=4), weights="reload", link="pcie5-pinned", switch_s=2)
    spec = prepared_of(data).replicas["decode"].switch
    assert spec
    four = Placement(placed().model, placed().chip, placed().engine, 4, "fp8")
    assert spec.over.seconds == pytest.approx(2 + weight_bytes(four) / (4 * 55.4e9))
    assert spec.over.joules == pytest.approx(weight_bytes(four) * 40e-12)
    assert spec.back.seconds > spec.over.seconds


def test_nobody_goes_back_before_having_stayed() -> None:
    costs = ComposedCosts(placed(), Figures({}))
    spec = SwitchSpec(SWITCHES["waiting"], costs, 4, 2, 10.0, Cost(1.0, 5.0), Cost(0.5, 2.0), lambda _: 350)
    log = Log()
    switching = Switching(log, 7, spec, costs)
    for now_s, waiting in ((0.0, 4), (1.0, 5), (2.0, 0), (10.9, 0), (11.0, 3), (12.0, 2), (13.0, 9), (22.0, 9)):
        switching.look(now_s, waiting, 0.0)
    assert log.switches.column("time_s") == [1.0, 12.0, 22.0]
    assert log.switches.column("other") == [1.0, 0.0, 1.0]
    shape = StepShape(1, 100)
    paid, plain = switching.segment(shape), switching.segment(shape)
    assert (paid.seconds - plain.seconds, paid.joules - plain.joules) == pytest.approx((1.0, 5.0))
    assert paid.valid_steps == 1


def test_between_the_bounds_nothing_changes() -> None:
    view = SwitchView(False, 5, 0.5, 300, above=4, below=2)
    assert SWITCHES["waiting"](view)
    assert not SWITCHES["waiting"](view._replace(waiting=4))
    assert SWITCHES["waiting"](view._replace(waiting=3, other=True))
    assert not SWITCHES["waiting"](view._replace(waiting=2, other=True))
    assert SWITCHES["kv"](view._replace(above=0.4, below=0.1))
    assert SWITCHES["carbon"](view._replace(above=250))


def test_what_a_chip_or_a_model_lacks_is_refused_before_anything_runs() -> None:
    def refused(data: dict[str, Any]) -> str:
        with pytest.raises(DescriptionError) as error:
            prepared_of(data)
        return str(error.value)

    a100 = switched(generate_only())
    a100["fleet"]["gpu-tier"]["server"] = "hgx-a100-8"
    assert "switch.precision: a100-80g-sxm has no figures for fp8" in refused(a100)
    plain = generate_only(precision="fp8")
    plain["fleet"]["gpu-tier"]["server"] = "hgx-a100-8"
    assert "precision: a100-80g-sxm has no figures for fp8; it has bf16" in refused(plain)
    amd = generate_only(sparsity="2:4")
    amd["fleet"]["gpu-tier"]["server"] = "mi300x-8"
    assert "sparsity: mi300x has no products for 2:4; these have: a100-40g-sxm" in refused(amd)
    assert "there is no pattern '2:5'" in refused(generate_only(sparsity="2:5"))
    assert "has experts, and no law prunes them" in refused(generate_only(sparsity="2:4") | {"model": "qwen3-30b-a3b"})
    assert "there is no policy 'queue'" in refused(switched(generate_only(), policy="queue"))
    assert "below 3 is more than above 2; it would go to and fro" in refused(
        switched(generate_only(), above=2, below=3)
    )
    assert "link is missing" in refused(switched(generate_only(), weights="reload"))
    assert "is what the pool has already" in refused(switched(generate_only(), precision="bf16"))


def test_problems_a_joule_count_what_each_set_of_weights_solves() -> None:
    """PPT x TPW, and PPT that of the tokens: so many with the pruned weights, which solve 0.9837 as many."""
    system = prepared_of(generate_only(sparsity="2:4-distilled")).system
    assert not solved_by(system)  # nothing is published of that model
    figure = Figure(value=2e-5, low=1e-5, high=4e-5, tier="published", source="test")
    known = (Solved(benchmark="b", precision="bf16", problems_per_token=figure),)
    system = replace(system, model=system.model.model_copy(update={"problems_per_token": known}))
    (solved,) = solved_by(system)
    assert solved.problems_per_token.value == pytest.approx(0.9837 * 2e-5)
    pool = system.scenario.pools["decode"].model_copy(
        update={"sparsity": None, "switch": Switch(sparsity="2:4-distilled", above=1, below=0, weights="resident")}
    )
    system = replace(system, scenario=system.scenario.model_copy(update={"pools": {"decode": pool}}))
    use = PoolUse("decode", "", 1.0, weights={"bf16": 0.75, "bf16 2:4-distilled": 0.25})
    (solved,) = solved_by(system, [use])
    ppt = (0.75 + 0.25 * 0.9837) * 2e-5
    assert solved.problems_per_token.value == pytest.approx(ppt)
    (problems,) = problems_of(system, Interval(3.0), [use])
    assert problems.per_j.value == pytest.approx(3 * ppt)
    assert (problems.ppt_low, problems.ppt_high) == pytest.approx((ppt / 2, 2 * ppt))


def test_pruning_shows_in_what_answers_are_worth_and_stays_unknown_where_nobody_said() -> None:
    half = run(prepared_of(generate_only(sparsity="2:4-distilled"))).result().quality[0]
    assert half.score_fraction == pytest.approx(0.9837)
    assert run(prepared_of(generate_only(sparsity="unstructured-50"))).result().quality[0].score_fraction is None


@pytest.mark.parametrize("architecture", ["switching", "resident", "pruned"])
def test_the_shipped_scenario_runs(architecture: str) -> None:
    few = ["workload.tasks=120", "workload.arrivals.rate_per_s=20"]
    done = run(prepare(system_of("quantise-under-load", [f"architecture={architecture}", *few])))
    result = done.result()
    assert result.energy is not None
    assert result.quality[0].score_fraction is not None
    assert len(done.tables["switches"]["device"]) == 0 or architecture != "pruned"
