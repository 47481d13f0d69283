"""Tasks kept at the edge: what a router of some accuracy saves, who falls back, and what it costs in quality."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from systems import Run, generate_only, prepared_of, run, system_of

from hsim.description.catalogue import load_model
from hsim.drivers.offered import needed_s
from hsim.errors import DescriptionError
from hsim.log import Kept, Stage
from hsim.metrics.result import Result
from hsim.runs.studies import Options, study

EASY, TASKS = 0.887, 400


def edge(tasks: int = TASKS, rate_per_s: float = 0.02, **keep: Any) -> dict[str, Any]:
    """A small model on an edge server and a large one in the cloud; so seldom that each task is alone."""
    data = generate_only(tensor_parallel=4, model="llama-3.1-70b")
    data["workload"] |= {
        "tasks": tasks,
        "arrivals": {"kind": "uniform", "rate_per_s": rate_per_s},
        "measure": "terminating",
    }
    data["workload"]["classes"]["chat"] |= {"input_tokens": 200, "output_tokens": 4}
    data["fleet"]["edge"] = {"server": "l4-1", "count": 1}
    data["pools"]["small"] = {"runs_on": "edge.gpu", "model": "llama-3.2-1b", "max_num_seqs": 2}
    data["links"] = {"small-decode": "ethernet-100g"}
    data["keep"] = {"pool": "small", "easy_fraction": EASY} | keep
    return data


def marginal_j(done: Run) -> float:
    """Joules of work of all tasks."""
    return float(sum(done.visits[column].sum() for column in ("dynamic_j", "host_dynamic_j")))


@cache
def alone(**keep: Any) -> tuple[Run, Result]:
    done = run(prepared_of(edge(**keep)))
    return done, done.result()


# ---- the law


def test_a_router_of_accuracy_a_saves_a_times_what_the_oracle_saves() -> None:
    """Its answers judged, every hard task ends in the cloud. Then it saves a of the oracle's saving, less the edge's work on
    hard tasks taken for easy; which is exact for tasks that are alone and alike, and small where the edge is cheap.
    """
    cloud_j = marginal_j(alone(policy="none")[0]) / TASKS
    edge_j = marginal_j(alone(policy="all")[0]) / TASKS
    assert edge_j < 0.1 * cloud_j
    oracle = 1 - marginal_j(alone(router_accuracy=1.0)[0]) / (TASKS * cloud_j)
    for accuracy in (0.8, 0.5):
        done, result = alone(router_accuracy=accuracy, check_accuracy=1.0)
        spec = done.prepared.keep
        easy, wanted = np.array(spec.easy), np.array(spec.wanted)
        saved = 1 - marginal_j(done) / (TASKS * cloud_j)
        exact = ((easy & wanted).sum() * (cloud_j - edge_j) - (~easy & wanted).sum() * edge_j) / (TASKS * cloud_j)
        assert saved == pytest.approx(exact, rel=1e-6)
        # In expectation: a - (1 - a) (1 - f) / f * e / (c - e). Four standard errors of the draws of a.
        expected = accuracy - (1 - accuracy) * (1 - EASY) / EASY * edge_j / (cloud_j - edge_j)
        error = 4 * (accuracy * (1 - accuracy) / TASKS) ** 0.5
        assert error < 0.12
        assert saved / oracle == pytest.approx(expected, abs=error)
        assert result.keeps["wrongly_kept_fraction"] == 0


def test_unjudged_it_saves_more_and_answers_some_wrongly() -> None:
    judged, unjudged = (alone(router_accuracy=0.8, **more) for more in ({"check_accuracy": 1.0}, {}))
    assert marginal_j(unjudged[0]) < marginal_j(judged[0])
    spec = unjudged[0].prepared.keep
    wrong = np.array(spec.wanted) & ~np.array(spec.easy)
    assert unjudged[1].keeps["wrongly_kept_fraction"] == wrong.mean() > 0
    assert judged[1].keeps["asked_again_fraction"] == wrong.mean()
    assert judged[1].keeps["kept_fraction"] + wrong.mean() == pytest.approx(unjudged[1].keeps["kept_fraction"])


def test_difficulty_and_luck_are_keyed_by_task_under_every_policy() -> None:
    specs = [prepared_of(edge(router_accuracy=a)).keep for a in (0.5, 0.8, 1.0)]
    assert specs[0].easy == specs[1].easy == specs[2].easy == specs[2].wanted
    right = [np.array(spec.wanted) == np.array(spec.easy) for spec in specs]
    assert (right[0] <= right[1]).all()  # who is seen rightly by a poor router is so by a better one
    assert right[1].mean() == pytest.approx(0.8, abs=0.08)
    assert np.mean(specs[0].easy) == pytest.approx(EASY, abs=0.06)
    more = prepared_of(edge(tasks=500)).keep
    assert more.easy[:TASKS] == specs[0].easy


# ---- fall-back


def test_an_answer_that_is_not_good_enough_costs_both_models_and_counts_once() -> None:
    data = edge(tasks=1, policy="all", easy_fraction=0, check_accuracy=1)
    done = run(prepared_of(data))
    visits = done.visits
    assert [done.log.keeping.arrays()["choice"][0]] == [Kept.ASKED_AGAIN]
    assert len(visits["task"]) == 2
    assert visits["output_tokens"].tolist() == [0, 4]
    assert visits["queued_s"][1] > visits["served_s"][0]
    assert (visits["dynamic_j"] > 0).all()
    result = done.result()
    assert result.output_tokens == 4
    assert result.latency["ttft"].count == 1
    only = run(prepared_of(data | {"keep": data["keep"] | {"policy": "none"}})).result()
    assert result.latency["e2e"].mean_s > only.latency["e2e"].mean_s
    assert result.energy.tst_j["marginal"]["wall"] > only.energy.tst_j["marginal"]["wall"]


def test_a_judge_who_errs_lets_bad_answers_pass_and_sends_good_ones_on() -> None:
    keeps = alone(policy="all", check_accuracy=0.7)[1].keeps
    assert keeps["wrongly_kept_fraction"] == pytest.approx((1 - EASY) * 0.3, abs=0.05)
    assert keeps["asked_again_fraction"] == pytest.approx(EASY * 0.3 + (1 - EASY) * 0.7, abs=0.1)


def test_a_full_edge_sends_tasks_on_and_a_patient_one_keeps_them() -> None:
    crowd = edge(tasks=60, rate_per_s=1000, policy="all", easy_fraction=1)
    choices = {}
    for most in (0, 3, None):
        data = crowd | {"keep": crowd["keep"] | {"max_waiting": most}}
        done = run(prepared_of(data))
        choices[most] = np.bincount(done.tables["keeping"]["choice"].astype(int), minlength=4)
        small = done.visits_of(pool=list(done.log.pools).index("small"))
        starts = np.sort(small["queued_s"])
        waiting = [((small["queued_s"] <= t) & (small["started_s"] > t)).sum() for t in starts]
        assert most is None or max(waiting) <= most + 2  # two may have a seat and begin at the next boundary
    assert choices[0][Kept.FULL] > choices[3][Kept.FULL] > choices[None][Kept.FULL] == 0
    assert choices[None][Kept.KEPT] == 60


def test_an_edge_that_is_out_of_service_keeps_nobody() -> None:
    data = edge(tasks=40, policy="all", easy_fraction=1)
    start_s, for_s = 500.0, 700.0  # tasks come every 50 s
    data["fleet"]["edge"]["drains"] = {"0": {"at_s": start_s, "for_s": for_s}}
    data["assume"] |= {"l4-1": {"off_w": 20, "boot_w": 200, "boot_s": 60}}
    data["assume"]["vllm"] = data["assume"]["vllm"] | {"load_s": 30}
    done = run(prepared_of(data))
    keeping = done.tables["keeping"]
    gone = (keeping["time_s"] > start_s) & (keeping["time_s"] < start_s + for_s + 90)
    assert (keeping["choice"] == np.where(gone, Kept.FULL, Kept.KEPT)).all()
    assert 10 < gone.sum() < 20
    assert done.result().tasks == 40


# ---- policies


def test_policies_keep_by_length_and_by_class() -> None:
    data = edge(tasks=80)
    classes = data["workload"]["classes"]
    classes["chat"]["input_tokens"] = {"kind": "uniform", "low": 50, "high": 500}
    classes["code"] = deepcopy(classes["chat"])
    for policy, more in (("by-length", {"max_input_tokens": 200}), ("by-class", {"classes": ["code"]})):
        prepared = prepared_of(data | {"keep": data["keep"] | {"policy": policy} | more})
        tasks = prepared.drawn.tasks
        kept = [t.rounds[0].input_tokens <= 200 if policy == "by-length" else t.class_name == "code" for t in tasks]
        assert prepared.keep.wanted == kept
        assert 0 < sum(kept) < 80
    easy = prepared_of(data | {"keep": data["keep"] | {"easy_fraction": {"chat": 1.0, "code": 0.0}}})
    assert easy.keep.easy == [task.class_name == "chat" for task in easy.drawn.tasks]


def test_what_is_too_long_for_the_edge_is_never_kept() -> None:
    data = edge(tasks=40, policy="all")
    data["workload"]["classes"]["chat"]["input_tokens"] = {"kind": "uniform", "low": 50, "high": 3000}
    model = load_model("llama-3.2-1b", "test", Path())
    room_bytes = 4e9 + 2.0 * (
        model.parameters + 2000 * model.kv_elements_per_token
    )  # vllm's own, weights, 2,000 tokens
    data["pools"]["small"]["gpu_memory_utilization"] = room_bytes / 24e9
    prepared = prepared_of(data)
    room = prepared.replicas["small"].kv_blocks * prepared.replicas["small"].pool.block_tokens
    fits = [task.rounds[0].input_tokens + task.max_output_tokens <= room for task in prepared.drawn.tasks]
    assert prepared.keep.wanted == fits
    assert 0 < sum(fits) < 40


def test_rounds_stay_where_their_task_is() -> None:
    data = edge(tasks=40, router_accuracy=0.7, check_accuracy=1.0)
    data["workload"]["classes"]["chat"] |= {"rounds": 3, "first_round_tool": False}
    done = run(prepared_of(data))
    pools = list(done.log.pools)
    choice = dict(zip(done.tables["keeping"]["task"], done.tables["keeping"]["choice"], strict=True))
    assert set(choice.values()) == {Kept.SENT, Kept.KEPT, Kept.ASKED_AGAIN}
    for task, its in choice.items():
        mine = done.visits_of(task=task, stage=Stage.GENERATE)
        where = [pools[int(pool)] for pool in mine["pool"]]
        asked = {Kept.SENT: ["decode"] * 3, Kept.KEPT: ["small"] * 3, Kept.ASKED_AGAIN: ["small", *["decode"] * 3]}
        assert where == asked[Kept(int(its))]


# ---- with the rest


def test_the_load_that_cannot_be_avoided_is_that_of_who_has_to_come() -> None:
    for keep in ({"max_waiting": None}, {"max_waiting": 0}, {"policy": "none"}):
        done = run(prepared_of(edge(tasks=40, rate_per_s=50, check_accuracy=0.9, **keep)))
        least_s = needed_s(done.prepared, done.prepared.drawn.tasks)
        for name, pool in done.log.pools.items():
            busy_s = sum((s["end_s"] - s["start_s"]).sum() for s in map(done.steps_of, pool.devices))
            assert least_s[name] <= busy_s * (1 + 1e-9)
        assert least_s["decode"] > 0
        assert (least_s["small"] > 0) == (keep.get("max_waiting", 0) is None)


def test_a_study_shows_what_was_kept_with_intervals() -> None:
    data = edge(tasks=60, rate_per_s=2, router_accuracy=0.8)
    data["workload"] |= {"arrivals": {"kind": "poisson", "rate_per_s": 2}, "measure": "steady"}
    found = study(system_of(data), Options(replications=4, processes=1))
    kept = found.figures()["kept_fraction"]
    assert kept.low is not None
    assert kept.low < EASY * 0.8 + (1 - EASY) * 0.2 < kept.high
    assert found.figures()["marginal_tst_j"].value < found.figures()["tst_j"].value


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ({"pool": "smal"}, "keep.pool: 'smal' is no engine pool beside 'decode'; did you mean 'small'?"),
        ({"pool": "decode"}, "keep.pool: 'decode' is no engine pool beside 'decode'"),
        ({"policy": "by-lenght"}, "keep.policy: there is no keep policy 'by-lenght'; did you mean 'by-length'?"),
        ({"policy": "by-length"}, "keep.max_input_tokens: is missing, and the policy is by-length"),
        ({"policy": "by-class", "classes": ["chut"]}, "keep.classes: there is no class 'chut'; did you mean 'chat'?"),
        ({"easy_fraction": {}}, "keep.easy_fraction: says nothing of class 'chat'"),
        ({"router_accuracy": 1.2}, "keep.router_accuracy: is 1.2; input should be less than or equal to 1"),
    ],
)
def test_an_edge_that_cannot_be_is_refused(keep: dict[str, Any], said: str) -> None:
    with pytest.raises(DescriptionError) as error:
        prepared_of(edge(**keep))
    assert said in str(error.value)
