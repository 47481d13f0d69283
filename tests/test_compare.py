"""Comparisons: the same tasks through several fleets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from systems import generate_only, system_of

from hsim.comparison import compare
from hsim.description.yamlfile import Document
from hsim.errors import DescriptionError
from hsim.metrics.result import Comparison, Difference
from hsim.plan import read_problem
from hsim.plan.fair import compare_fairly
from hsim.policies.own import refuse_code
from hsim.runs import Options, as_json

OPTIONS = Options(5, processes=1)


def scenario(servers: Any = 1, rate_per_s: float = 15, **pool: Any) -> dict[str, Any]:
    """Prompts to as many replicas as fit on 8-GPU servers when each takes all of one."""
    data = generate_only(**{"replicas": 1, **pool})
    data["workload"] |= {"tasks": 150, "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s}}
    data["workload"]["classes"]["chat"] |= {
        "output_tokens": {"kind": "lognormal", "median": 40, "p95": 120},
        "max_output_tokens": 200,
    }
    data["fleet"]["gpu-tier"]["count"] = servers
    return data


def of(comparison: Comparison, figure: str, other: int = 0) -> Difference:
    return next(d for d in comparison.differences[other] if d.figure == figure)


def test_pairing_saves_replications() -> None:
    """One more GPU, on the same tasks: the noise that both share leaves the difference."""
    comparison = compare([system_of(scenario(replicas=n)) for n in (1, 2)], OPTIONS)
    for figure in ("tst_j", "tasks_per_s", "e2e.mean_s"):
        ratio = of(comparison, figure).variance_ratio
        assert ratio is not None
        assert ratio > 10, figure
    assert of(comparison, "e2e.mean_s").verdict == "lower"


def test_a_scenario_does_not_differ_from_itself() -> None:
    comparison = compare([system_of(scenario()), system_of(scenario())], OPTIONS)
    assert {(d.interval.value, d.interval.low, d.interval.high) for d in comparison.differences[0]} == {(0.0, 0.0, 0.0)}
    assert {d.verdict for d in comparison.differences[0]} == {"no difference shown"}


def test_differences_are_those_of_the_studies_and_hold_together() -> None:
    """The points are the studies' own; the level is spread over all that is shown (Bonferroni)."""
    comparison = compare([system_of(scenario(replicas=n)) for n in (1, 2, 3)], OPTIONS)
    first, *others = comparison.studies
    for study, differences in zip(others, comparison.differences, strict=True):
        assert study.warm_up is not None
        assert first.warm_up is not None
        assert study.warm_up.tasks == first.warm_up.tasks
        tst = next(d for d in differences if d.figure == "tst_j")
        assert first.energy is not None
        assert study.energy is not None
        assert tst.first == first.energy.tst_j["full"]["facility"].value
        assert tst.other == study.energy.tst_j["full"]["facility"].value
        assert tst.interval.value == pytest.approx(tst.other - tst.first)
    shown = sum(len(differences) for differences in comparison.differences)
    assert comparison.confidence == pytest.approx(1 - 0.05 / shown)


def test_the_longer_warm_up_serves_both() -> None:
    """Long answers fill their pipes slowly; the short ones wait for them, so that windows hold the same tasks."""
    short, long = scenario(rate_per_s=40), scenario(rate_per_s=40)
    for data, tokens in ((short, 2), (long, 150)):
        data["workload"]["tasks"] = 20
        data["workload"]["classes"]["chat"] |= {"output_tokens": tokens, "max_output_tokens": 200}
    alone = compare([system_of(short), system_of(short)], OPTIONS).studies[0].warm_up
    both = [study.warm_up for study in compare([system_of(short), system_of(long)], OPTIONS).studies]
    assert alone is not None
    assert both[0] is not None
    assert both[1] is not None
    assert alone.tasks < both[0].tasks == both[1].tasks


def test_rough_figures_that_both_share_move_the_difference_little() -> None:
    comparison = compare([system_of(scenario(max_num_seqs=n)) for n in (8, 16)], OPTIONS)
    tst, calibration = of(comparison, "tst_j"), comparison.studies[0].calibration
    assert calibration is not None
    assert tst.by_worlds is not None
    alone = calibration.ranges["tst_j"]
    assert tst.by_worlds.high - tst.by_worlds.low < 0.2 * (alone.high - alone.low)


def test_all_use_the_seed_of_the_first() -> None:
    one, other = scenario(), scenario() | {"seed": 5}
    comparison = compare([system_of(one), system_of(other)], OPTIONS)
    assert {study.seed for study in comparison.studies} == {0}


def test_without_a_steady_state_there_is_no_difference() -> None:
    comparison = compare(
        [system_of(scenario(rate_per_s=15)), system_of(scenario(rate_per_s=15, max_num_seqs=1))], OPTIONS
    )
    assert comparison.studies[1].stability is not None
    assert comparison.studies[1].stability.verdict == "unstable"
    assert comparison.differences == ((),)


def test_steady_and_terminating_are_not_compared() -> None:
    finite = scenario()
    finite["workload"]["measure"] = "terminating"
    with pytest.raises(DescriptionError, match="some of the scenarios are steady and others terminating"):
        compare([system_of(scenario()), system_of(finite)], OPTIONS)


# ---- each at its own cheapest fleet


def written(folder: Path, name: str, data: dict[str, Any]) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(data, indent=1))
    return file


def fair_pair(folder: Path, rate_per_s: float) -> list[Path]:
    """Replicas of one sequence at a time that each take a whole server, and of two: half the fleet will do."""
    files = []
    for name, sequences in (("one", 1), ("two", 2)):
        data = scenario([1, 2, 3, 4], rate_per_s, max_num_seqs=sequences, tensor_parallel=8)
        del data["pools"]["decode"]["replicas"]
        data["slo"] = {"ttft": {"max_s": 1, "p": 0.8}}
        files.append(written(folder, name, data))
    return files


def test_fleets_are_tried_cheapest_first_until_one_passes(tmp_path: Path) -> None:
    comparison = compare_fairly(fair_pair(tmp_path, 12), options=OPTIONS)
    for tried in comparison.fleets:
        assert [fleet.usd_per_h for fleet in tried] == sorted(fleet.usd_per_h for fleet in tried)
        assert {fleet.verdict for fleet in tried[:-1]} <= {"FAIL", "UNDECIDED", "UNSTABLE"}
        assert tried[-1].verdict == "PASS"
    one, two = (tried[-1].servers["hgx-h100-8"] for tried in comparison.fleets)
    assert one > two
    assert comparison.studies[0].pools[0].what.startswith(f"{one} x 8")
    assert of(comparison, "usd_per_task").verdict == "lower"


def test_where_no_fleet_passes_there_is_nothing_to_compare(tmp_path: Path) -> None:
    comparison = compare_fairly(fair_pair(tmp_path, 60), ["fleet.gpu-tier.count=[1, 2]"], OPTIONS)
    assert comparison.studies == ()
    assert [len(tried) for tried in comparison.fleets] == [2, 2]
    assert json.loads(as_json(comparison))["fleets"][0][0]["verdict"] == "UNSTABLE"


def test_fleets_with_policies_of_ones_own_are_planned_where_code_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def first(visit, pool):\n    return 0\n")
    files = fair_pair(tmp_path, 3)
    own = ["pools.decode.router=mine.py:first", "pools.decode.tensor_parallel=4", "fleet.gpu-tier.count=1"]
    for refused in (lambda: compare_fairly(files, own, OPTIONS), lambda: read_problem(files[0], own)):
        with pytest.raises(
            DescriptionError, match=r"'mine.py:first' is code of your own; add --allow-code if you trust"
        ):
            refused()
    refuse_code(Document("x.yaml", {"tools": {"grep": {"source": "timed by bench.py:12"}}}))  # words, and no code
    comparison = compare_fairly(files, own, OPTIONS, allow_code=True)
    for study in comparison.studies:  # one of two replicas has all the work
        (decode,) = study.pools
        assert decode.imbalance == pytest.approx(2)


def test_what_cannot_be_compared_fairly_is_refused(tmp_path: Path) -> None:
    one, two = fair_pair(tmp_path, 12)
    with pytest.raises(DescriptionError, match="there is no objective"):
        compare_fairly([one, two], ["slo={}"], OPTIONS)
    other = written(tmp_path, "other", json.loads(two.read_text()) | {"slo": {"e2e": {"max_s": 1, "p": 0.8}}})
    with pytest.raises(DescriptionError, match="the objectives differ from the first scenario's"):
        compare_fairly([one, other], (), OPTIONS)
    with pytest.raises(DescriptionError, match=r"count: is an empty list; list choices to try"):
        compare_fairly([one, two], ["fleet.gpu-tier.count=[]"], OPTIONS)
    with pytest.raises(DescriptionError, match=r"has no price: .*; set assume.hgx-h100-8.capex_usd"):
        compare_fairly([one, two], ["site.cost={basis: own}"], OPTIONS)
