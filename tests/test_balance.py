"""Balance: pools that serve the same stage, priorities in queues, who is let in, and how uneven a pool is."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import Impatient, Run, agents, prepared_of, run

from hsim.drivers import simulated
from hsim.drivers.prepared import prepare
from hsim.drivers.simulated import build
from hsim.engine.environment import EngineEnvironment
from hsim.engine.life import arrive_in_time
from hsim.errors import DescriptionError
from hsim.log import Log, Stage
from hsim.policies.views import VisitView
from hsim.runs import system_of as system_of_file
from hsim.workload.tasks import expected_rounds_left

NOBODY = VisitView(-1, 0, 0, 0)


def either(cores: int = 2, steal: bool = True, rate_per_s: float = 300, tools: bool = False) -> dict[str, Any]:
    """Understanding by an encoder on a GPU or by cores of a CPU server, tools by that server's cores or by the host's."""
    data = agents(split=True, cores=cores)
    data["workload"] |= {"tasks": 60, "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s}}
    kind = data["workload"]["classes"]["agent"]
    kind["understand"] = {"op": "encode-minilm", "tokens": {"kind": "uniform", "low": 50, "high": 400}}
    data["pools"]["encode"] = {"runs_on": "gpu-tier.gpu", "model": "minilm-l6", "replicas": 1, "max_num_seqs": 2}
    data["pools"]["host"] = {"runs_on": "gpu-tier.cpu", "cores": cores}
    data["stages"]["understand"] = ["agents", "encode"]
    data["stages"]["tool"] = ["agents", "host"] if tools else "agents"
    data["links"] |= {"agents-encode": "ethernet-100g", "agents-host": "ethernet-100g"}
    data["balance"] = {"choose": "least-loaded", "steal": steal}
    return data


def test_stealing_never_idles_a_capable_pool_with_work_waiting() -> None:
    """When an instant is over, no pool could begin a visit (those on their way to it counted) that waits for another."""
    moved = []

    @settings(max_examples=12, deadline=None)
    @given(
        cores=st.integers(1, 3),
        rate=st.sampled_from([50, 300, 3000]),
        choose=st.sampled_from(["first-free", "least-loaded"]),
        tools=st.booleans(),
        seed=st.integers(0, 999),
    )
    def on_any(cores: int, rate: float, choose: str, tools: bool, seed: int) -> None:
        data = either(cores, rate_per_s=rate, tools=tools)
        data["balance"]["choose"], data["seed"] = choose, seed
        moved.append(watched(data))

    on_any()
    moved.append(watched(either(rate_per_s=3000, tools=True)))
    assert sum(moved) > 0  # the law had something to say


def watched(data: dict[str, Any]) -> int:
    """Assert the law of stealing at every instant of a run; returns how many visits were taken."""
    prepared = prepared_of(data)
    env, log = EngineEnvironment(), Log()
    pipeline = build(env, log, prepared, Impatient(env))
    assert pipeline.balance
    groups = list(pipeline.balance.alternatives.values())
    arrive_in_time(env, log, pipeline, prepared.drawn.tasks)
    while env.peek() < math.inf:
        instant = env.peek()
        while env.peek() == instant:
            env.step()
        for among in groups:
            for pool in among.pools:
                others: list[Any] = [d for other in among.pools if other is not pool for d in other.devices]
                full = [d for d in others if d.view(NOBODY).outstanding > d.view(NOBODY).max_running]
                waiting = any(visit.stage is among.stage for d in full for visit in d.waiting)
                assert not (waiting and among.place(pool).room > 0), (instant, pool.name)
    assert len(log.tasks) == 60
    return sum(among.moved for among in groups)


def test_stealing_shortens_waits_and_serves_everybody_once() -> None:
    """All go to the two cores first; with stealing the encoder takes what they cannot begin."""
    data = either(rate_per_s=2000)
    without, stolen = deepcopy(data), deepcopy(data)
    without["stages"]["understand"] = "agents"
    without["balance"] = {}
    stolen["balance"] = {"choose": "least-loaded", "steal": True}
    alone, both = (run(prepared_of(d)) for d in (without, stolen))
    waits = [waited(its) for its in (alone, both)]
    assert waits[1] < 0.5 * waits[0]
    for finished in (alone, both):
        understood = finished.visits_of(stage=Stage.UNDERSTAND)
        assert sorted(understood["task"]) == list(range(60))
        assert finished.result().energy  # the books balance
    pools = both.visits_of(stage=Stage.UNDERSTAND)["pool"]
    assert len(set(pools)) == 2


def waited(finished: Run) -> float:
    visits = finished.visits_of(stage=Stage.UNDERSTAND)
    return float((visits["started_s"] - visits["queued_s"]).mean())


def test_what_is_taken_crosses_the_link_between_the_pools() -> None:
    finished = run(prepared_of(either(rate_per_s=3000)))
    assert finished.pipeline.balance
    (among,) = finished.pipeline.balance.alternatives.values()
    assert among.moved > 0
    number = list(finished.log.links).index("agents-encode")
    moved = finished.tables["transfers"]["link"] == number
    # Understanding hands over to tools on that link too: one transfer a visit that the encoder served.
    served = finished.visits_of(stage=Stage.UNDERSTAND)
    by_encoder = (served["pool"] == list(finished.log.pools).index("encode")).sum()
    assert moved.sum() == among.moved + by_encoder


@pytest.mark.parametrize("tools", [False, True])
def test_coalesced_equals_stepwise_with_stealing(tools: bool) -> None:
    prepared = prepared_of(either(rate_per_s=1000, tools=tools))
    one, other = (simulated.run(prepared, stepwise).arrays() for stepwise in (False, True))
    for column, values in one["visits"].items():
        exact = not column.endswith("_j")
        assert np.allclose(values, other["visits"][column], rtol=0 if exact else 1e-9, atol=0, equal_nan=True), column


def test_deadlines_hold_while_work_moves() -> None:
    data = either(cores=1, rate_per_s=3000)
    data["workload"]["classes"]["agent"]["timeout_s"] = 0.8
    finished = run(prepared_of(data))
    tasks = finished.tables["tasks"]
    assert len(tasks["task"]) == 60
    late = tasks["outcome"] == 1
    assert late.any()
    assert not late.all()
    running_s = 0.5  # what runs, and waits outside, is worked to its end
    assert (tasks["ended_s"] - tasks["arrival_s"]).max() < 0.8 + running_s


def queued(priority: str | None) -> Run:
    """Agents in rounds in a queue before one core."""
    data = agents(cores=1)
    data["workload"] |= {"tasks": 80, "arrivals": {"kind": "poisson", "rate_per_s": 25}}
    data["workload"]["classes"]["agent"] |= {
        "tools": {"python-exec": 1},
        "rounds": {"kind": "uniform", "low": 1, "high": 4},
    }
    if priority:
        data["pools"]["agents"]["priority"] = priority
    return run(prepared_of(data))


def test_priorities_reorder_a_queue_and_nothing_else() -> None:
    """The same jobs are done in the same busy time; who has been served before waits less, who is new waits more."""
    fifo, started, fewest = (queued(priority) for priority in (None, "started-first", "fewest-rounds-left"))
    for other in (started, fewest):
        assert other.visits["served_s"].shape == fifo.visits["served_s"].shape
    waits = []
    for finished in (fifo, started, fewest):
        tools = finished.visits_of(stage=Stage.TOOL)
        later, wait_s = tools["round"] > 0, tools["started_s"] - tools["queued_s"]
        waits.append((wait_s[later].mean(), wait_s[~later].mean()))
    assert waits[1][0] < 0.5 * waits[0][0]
    # The discipline itself: whenever a task in its first round is begun, none that is further is waiting.
    jobs = started.visits_of(pool=list(started.log.pools).index("agents"))
    for begun in jobs["started_s"][jobs["round"] == 0]:
        waiting = (jobs["round"] > 0) & (jobs["queued_s"] < begun) & (begun < jobs["started_s"])
        assert not waiting.any()


def test_the_rounds_that_are_left_are_expected_from_the_class_and_the_round_alone() -> None:
    """Uniform 1 to 4 after rounding, by hand; a geometric one does not remember."""
    data = agents()
    kind = data["workload"]["classes"]["agent"]
    kind["rounds"] = 3
    constant = expected_rounds_left(prepared_of(data).system.scenario.workload.classes["agent"])
    assert constant == (3.0, 2.0, 1.0)
    kind["rounds"] = {"kind": "geometric", "mean": 2.5}
    geometric = expected_rounds_left(prepared_of(data).system.scenario.workload.classes["agent"])
    assert geometric[0] == pytest.approx(2.5, rel=0.01)
    assert geometric[1] == pytest.approx(2.5, rel=0.02)


def test_new_tasks_are_turned_away_while_the_queue_breaks_the_objective_and_others_keep_it() -> None:
    data = agents(cores=4, max_num_seqs=1, replicas=1)
    data["workload"] |= {"tasks": 150, "arrivals": {"kind": "poisson", "rate_per_s": 20}}
    data["workload"]["classes"]["agent"] |= {"rounds": 1, "tools": {"vector-search-1m": 1}}
    data["slo"] = {"ttft": {"max_s": 1, "p": 0.9}}
    everybody = run(prepared_of(data)).result()
    data["balance"] = {"admission": "within-objective"}
    finished = run(prepared_of(data))
    result = finished.result()
    assert everybody.shed == 0
    assert 0 < result.shed < 150
    assert result.tasks + result.shed == 150
    assert result.latency["ttft"].mean_s < 0.5 * everybody.latency["ttft"].mean_s
    assert result.goodput_tasks_per_s > everybody.goodput_tasks_per_s


def test_imbalance_is_the_busiest_over_the_mean() -> None:
    data = agents(split=False, replicas=2, router="least-energy")
    uneven = run(prepared_of(data))
    use = next(u for u in uneven.result().pools if u.pool == "decode")
    busy = [
        np.ptp(uneven.steps_of(i)["start_s"]) and (uneven.steps_of(i)["end_s"] - uneven.steps_of(i)["start_s"]).sum()
        for i in (0, 1)
    ]
    assert use.imbalance == pytest.approx(max(busy) / (sum(busy) / 2))
    alone = next(u for u in uneven.result().pools if u.pool == "agents")
    assert alone.imbalance == 1.0  # one server


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"balance": {"choose": "first"}}, "balance.choose: there is no chooser 'first'; did you mean 'first-free'"),
        ({"balance": {"steal": True}}, "balance.steal: no stage has several pools; list two under stages"),
        ({"balance": {"admission": "within-objective"}}, "balance.admission: needs an objective; set slo.ttft"),
        ({"balance": {"admission": "all"}}, "there is no admission 'all'; known: everybody, within-objective"),
    ],
)
def test_what_is_not_there_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DescriptionError) as refused:
        prepared_of(agents() | changes)
    assert says in str(refused.value)


def test_a_priority_that_is_not_there_is_refused_by_name() -> None:
    data = agents()
    data["pools"]["agents"]["priority"] = "started"
    with pytest.raises(DescriptionError, match=r"pools\.agents\.priority: there is no priority 'started'"):
        prepared_of(data)


OWN = """
def last(visit, pool):
    return len(pool.devices) - 1

def longest_first(visit):
    return -visit.input_tokens
"""


def test_policies_of_ones_own_are_executed_where_code_is_allowed(tmp_path: Path) -> None:
    """A router that takes the last replica, a priority for long prompts; without --allow-code both are refused."""
    (tmp_path / "mine.py").write_text(OWN)
    data = agents(split=False, replicas=2, router="mine.py:last", priority="mine.py:longest_first")
    (tmp_path / "own.yaml").write_text(json.dumps(data))
    with pytest.raises(DescriptionError, match=r"'mine.py:last' is code of your own; add --allow-code if you trust it"):
        prepare(system_of_file(tmp_path / "own.yaml"))
    finished = run(prepare(system_of_file(tmp_path / "own.yaml", allow_code=True)))
    generated = finished.visits_of(stage=Stage.GENERATE)
    assert set(generated["device"]) == {finished.log.pools["decode"].devices[-1]}
    for name, says in (("mine.py:first", "has no function 'first'"), ("yours.py:last", "there is no file 'yours.py'")):
        with pytest.raises(DescriptionError, match=says):
            prepare(system_of_file(tmp_path / "own.yaml", [f"pools.decode.router={name}"], allow_code=True))
