"""Validation judges honestly: where a run is the simulation with one cost changed, that cost and no other is to blame."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from itertools import count
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from systems import agents, prepared_of

from hsim.drivers.live import LiveRun, Record
from hsim.drivers.prepared import Prepared
from hsim.drivers.simulated import run
from hsim.log import Log, Outcome, Stage, Table
from hsim.report.live import validation_tables
from hsim.validate.blame import ALL, Blame, blame
from hsim.validate.compared import Compared
from hsim.validate.loads import LoadsValidation, _closed, _kinds, validate_loads
from hsim.validate.pace import Paced
from hsim.validate.page import page
from hsim.validate.quantities import Accounted, parts_of_e2e, quantities
from hsim.validate.run import Measured, Options, Prediction, Validation, judged
from hsim.validate.terms import CHUNK, DECODE, HAND_OVER, Factors, operation_term, repaired, seen_terms


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_of(agents(split=False, cores=2, prefix_caching=False))


def as_if_live(prepared: Prepared, factors: Factors) -> LiveRun:
    """A live run in which some terms really took so many times what was predicted: simulated, and told as live runs are."""
    log = run(repaired(prepared, factors), stepwise=True)
    rows, record, told = log.steps.arrays(), Record(), Table(*log.steps.columns)
    for i in range(len(log.steps)):
        row = {name: float(cells[i]) for name, cells in rows.items()}
        factor = factors.get(CHUNK if row["chunk_tokens"] else DECODE, 1.0)
        row["seconds"] /= np.interp(row["decodes"], *zip(*factor, strict=True)) if isinstance(factor, tuple) else factor
        told.append(tuple(row.values()))
        seconds = row["end_s"] - row["start_s"]
        record.steps.append((seconds, seconds, np.nan))
    visits = log.visits.arrays()
    for i in np.flatnonzero(visits["stage"] <= Stage.TOOL):
        handed_s = factors.get(HAND_OVER, 0.0)
        assert isinstance(handed_s, float)
        seconds = visits["served_s"][i] - visits["started_s"][i] - handed_s
        record.jobs.append((visits["task"][i], visits["round"][i], visits["stage"][i], seconds, seconds))
    return LiveRun(replace(log, steps=told), (), (), record)


def blamed(prepared: Prepared, factors: Factors) -> Blame:
    return blame(run(prepared), prepared, [as_if_live(prepared, factors)], {})


@pytest.mark.parametrize("term", [DECODE, CHUNK])
def test_the_term_that_was_wrong_is_to_blame_and_putting_it_right_explains_all(prepared: Prepared, term: str) -> None:
    found = blamed(prepared, {term: 1.5})
    charges = {charge.term: charge for charge in found.charges}
    seen = charges[term].seen
    assert seen is not None and seen.factor == pytest.approx(1.5, rel=1e-6)
    assert found.verdict.startswith(f"{term} carry 100% of the end-to-end error")
    assert charges[term].e2e_if_right_s == pytest.approx(found.e2e_measured_s, rel=1e-6)
    assert charges[ALL].e2e_if_right_s == pytest.approx(found.e2e_measured_s, rel=0.01)
    other = CHUNK if term == DECODE else DECODE
    assert charges[other].e2e_if_right_s == pytest.approx(found.e2e_predicted_s, rel=1e-6)


def test_an_error_that_goes_with_the_batch_is_repaired_for_each_batch(prepared: Prepared) -> None:
    """Quicker alone and slower together: the mean over steps is about right, and each of them is wrong."""
    found = blamed(prepared, {DECODE: ((1.0, 0.5), (4.0, 2.0))})
    charges = {charge.term: charge for charge in found.charges}
    assert found.e2e_measured_s != pytest.approx(found.e2e_predicted_s, rel=0.1)
    assert charges[ALL].e2e_if_right_s == pytest.approx(found.e2e_measured_s, rel=0.02)
    seen = charges[DECODE].seen
    assert seen is not None
    assert dict(seen.by_sequences)[1.0] == pytest.approx(0.5, rel=1e-6)


def test_an_operation_that_takes_longer_is_found_among_its_like(prepared: Prepared) -> None:
    term = operation_term(next(iter(prepared.tools.values())).operation)
    seen = {one.term: one for one in seen_terms(prepared, run(prepared), [as_if_live(prepared, {term: 40.0})])}
    assert seen[term].factor == pytest.approx(40.0, rel=0.05)  # other cores were busy at other times
    assert all(
        one.factor == pytest.approx(1.0, rel=0.3)
        for name, one in seen.items()
        if name not in (term, "hand-over of a job")
    )


def test_a_hand_over_that_nobody_predicted_is_to_blame(prepared: Prepared) -> None:
    found = blamed(prepared, {HAND_OVER: 0.5})
    charges = {charge.term: charge for charge in found.charges}
    seen = charges[HAND_OVER].seen
    assert seen is not None
    assert (seen.predicted_s, seen.measured_s) == (0.0, pytest.approx(0.5, rel=0.05))  # contended like a job's own work
    assert found.verdict.startswith(f"{HAND_OVER} carry")
    assert charges[HAND_OVER].e2e_if_right_s == pytest.approx(found.e2e_measured_s, rel=0.02)


def test_a_hand_over_that_was_predicted_is_no_part_of_the_work(prepared: Prepared) -> None:
    handed = repaired(prepared, {HAND_OVER: 0.5})
    live = as_if_live(handed, {HAND_OVER: 0.5})
    seen = {one.term: one for one in seen_terms(handed, run(handed), [live])}
    assert seen[HAND_OVER].predicted_s == 0.5
    assert all(one.factor == pytest.approx(1.0, rel=1e-6) for name, one in seen.items() if name.startswith("operation"))


def test_nothing_is_to_blame_where_nothing_was_wrong(prepared: Prepared) -> None:
    found = blamed(prepared, {})
    assert found.verdict.startswith("nothing is to blame")
    assert found.e2e_measured_s == pytest.approx(found.e2e_predicted_s, rel=1e-9)


def test_the_parts_of_a_task_s_life_add_up_to_its_end_to_end_time(prepared: Prepared) -> None:
    log = run(prepared)
    assert sum(parts_of_e2e(log).values()) == pytest.approx(quantities(log)["e2e mean"][0], rel=1e-9)


def test_quantities_are_of_served_tasks_and_a_run_that_served_nobody_has_none(prepared: Prepared) -> None:
    log = Log()
    log.tasks.append((0, 0.0, 1.0, Outcome.FAILED))
    assert quantities(log) == {}
    assert blame(run(prepared), prepared, [], {}) == Blame()


def with_failed(live: LiveRun, part: float) -> LiveRun:
    """The run with this part of its tasks failed: those that took longest, after 5 s more of each of their visits."""
    rows, told = live.log.tasks.arrays(), Table(*live.log.tasks.columns)
    order = np.argsort(rows["arrival_s"] - rows["ended_s"], kind="stable")
    longest = set(order[: round(part * len(order))].tolist())
    for i, row in enumerate(zip(*rows.values(), strict=True)):
        told.append((*row[:-1], Outcome.FAILED if i in longest else row[-1]))
    failed = rows["task"][list(longest)]
    columns, visits = live.log.visits.arrays(), Table(*live.log.visits.columns)
    columns["served_s"] = columns["served_s"] + 5.0 * np.isin(columns["task"], failed)
    for row in zip(*columns.values(), strict=True):
        visits.append(row)
    return replace(live, log=replace(live.log, tasks=told, visits=visits))


def judge(prepared: Prepared, *runs: LiveRun) -> Validation:
    return judged(Prediction.of(prepared, Options(worlds=0)), Measured(list(runs)), Options())


def test_latencies_are_of_the_tasks_that_were_served_on_both_sides(prepared: Prepared) -> None:
    """An exact run, but that the tasks that take longest failed in it: whom it served it served as predicted."""
    exact = as_if_live(prepared, {})
    found = judge(prepared, exact, with_failed(exact, 0.5))
    rows = {row.quantity: row for row in found.compared}
    latencies = {name: row.error_fraction for name, row in rows.items() if row.unit == "s"}
    assert {"ttft mean", "e2e mean", "e2e p50", "generate service mean", "tool service mean"} <= set(latencies)
    assert all(error == pytest.approx(0.0, abs=1e-9) for error in latencies.values())
    assert found.blame.e2e_measured_s == pytest.approx(found.blame.e2e_predicted_s, rel=1e-9)
    assert rows["tasks"].measured == pytest.approx(0.75 * rows["tasks"].predicted)  # the run's: what failures cost
    tokens = quantities(exact.log)["output tokens"][0]
    assert rows["output tokens"].predicted == pytest.approx(tokens)
    assert rows["output tokens"].measured < 0.75 * tokens  # of served tasks alone
    assert {row.verdict for row in rows.values()} == {"unjudged"}
    assert "latencies are of 15 of 30 tasks: the others failed or timed out" in found.notes


def test_a_run_that_lost_few_is_judged(prepared: Prepared) -> None:
    found = judge(prepared, *2 * [with_failed(as_if_live(prepared, {}), 1 / 30)])
    e2e = next(row for row in found.compared if row.quantity == "e2e mean")
    assert (e2e.verdict, e2e.served_fraction) == ("within", pytest.approx(29 / 30))
    assert "latencies are of 29 of 30 tasks: the others failed or timed out" in found.notes


def test_tasks_that_the_prediction_loses_are_in_no_latency_either(prepared: Prepared) -> None:
    exact = as_if_live(prepared, {})
    simulated = Prediction.of(prepared, Options(worlds=0))
    lost = replace(simulated, run=replace(simulated.run, log=with_failed(exact, 0.5).log))
    found = judged(lost, Measured([exact]), Options())
    assert all(row.error_fraction == pytest.approx(0.0, abs=1e-9) for row in found.compared if row.unit == "s")
    assert any("15 of 30 tasks" in note and "15 of them in the prediction" in note for note in found.notes)


def test_a_run_that_served_nobody_is_told_and_is_in_no_figure(prepared: Prepared) -> None:
    exact = as_if_live(prepared, {})
    nobody = with_failed(exact, 1.0)
    found = judge(prepared, nobody, exact, exact)
    assert {row.spread_fraction for row in found.compared} == {0.0}
    assert found.blame.e2e_measured_s > 0
    assert "run 1 of 3 served nobody: it is in no figure" in found.notes
    alone = judge(prepared, nobody)
    assert (alone.compared, alone.blame) == ((), Blame())
    assert "run 1 of 1 served nobody: it is in no figure" in alone.notes
    assert "served nobody" in page([("", alone)])


def test_the_page_s_distributions_are_of_the_same_tasks(prepared: Prepared) -> None:
    found = judge(prepared, with_failed(as_if_live(prepared, {}), 0.5))
    end_to_end = page([("", found)]).split("<svg")[4]
    predicted, measured = re.findall(r'<path class="(?:predicted|measured)" d="([^"]+)"', end_to_end)
    assert predicted == measured


def test_what_lies_beyond_the_calibrated_range_is_told(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = Prediction.of(prepared, Options(worlds=0))
    warned = {id(simulated.run.log): ("3 % beyond",)}
    monkeypatch.setattr("hsim.validate.run.beyond_measured", lambda log, _: warned.get(id(log), ("9 % beyond",)))
    found = judged(simulated, Measured([as_if_live(prepared, {})]), Options())
    assert {"prediction: 3 % beyond", "run 1: 9 % beyond"} <= set(found.notes)


def compared(**given: Any) -> Compared:
    of = {"quantity": "e2e mean", "unit": "s", "predicted": 1.0, "low": None, "high": None, "measured": 1.0}
    return Compared(**(of | {"spread_fraction": None, "at_pace": None} | given))


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"measured": 1.05}, "unjudged"),  # by what?
        ({"measured": 1.05, "spread_fraction": 0.02}, "beyond"),
        ({"measured": 1.05, "low": 0.9, "high": 1.1}, "within"),
        ({"measured": 1.05, "low": 0.9, "high": 1.1, "served_fraction": 0.95}, "within"),
        ({"measured": 1.05, "low": 0.9, "high": 1.1, "served_fraction": 0.94}, "unjudged"),
        ({"measured": 1.2, "low": 0.9, "high": 1.1, "spread_fraction": 0.05}, "noise"),
        ({"measured": 1.2, "low": 0.9, "high": 1.1, "spread_fraction": 0.04}, "beyond"),
        ({"measured": 30.0, "spread_fraction": 0.6}, "noise"),  # it says that nothing can be said, not that all is well
    ],
)
def test_an_error_is_judged_by_what_was_stated_and_by_the_noise_of_repeats(given: dict[str, Any], verdict: str) -> None:
    assert compared(**given).verdict == verdict


def test_errors_are_relative_to_what_was_measured() -> None:
    found = compared(measured=2.0, at_pace=1.9)
    assert found.error_fraction == pytest.approx(-0.5)
    assert found.pace_error_fraction == pytest.approx(-0.05)


def test_the_page_overlays_what_was_predicted_and_measured(prepared: Prepared) -> None:
    live = as_if_live(prepared, {DECODE: 1.2})
    tasks = Accounted(len(prepared.drawn.tasks), len(live.log.tasks), 0, 0, 0)
    validation = Validation(
        "x.yaml", "0" * 64, "cpu", 1, (compared(),), Blame(verdict="a <b>"), (), (tasks,), {}, (), (), "",
        (run(prepared), live.log),
    )  # fmt: skip
    text = page([("30 %", validation)])
    assert text.count("<svg") == 6
    assert "a &lt;b&gt;." in text
    assert "TTFT" in text and "Tasks in the system over time" in text
    assert text.count('class="measured"') == 5 and "key-predicted" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert set(validation.as_dict()) >= {"compared", "blame", "tasks", "failures", "stopped"}
    assert "logs" not in validation.as_dict()


def test_one_run_without_bounds_is_not_judged() -> None:
    one = Validation("x.yaml", "0" * 64, "cpu", 1, (compared(),), Blame(), (), (), {}, (), (), "")
    console = Console(record=True, width=160, file=StringIO())
    console.print(validation_tables(one))
    text = console.export_text()
    assert "unjudged" in text and "--repeats 3" in text
    assert "too few" not in text
    assert "beyond" not in text.replace("else beyond", "")


def test_loads_are_of_agentic_and_of_single_shot_tasks_and_of_a_crowd() -> None:
    kinds = _kinds("agents-gpu-only", [])
    assert list(kinds) == ["agentic", "single-shot"]
    assert kinds["single-shot"] == ["workload.classes.support-agent.rounds=1"]
    assert list(_kinds("agents-gpu-only", kinds["single-shot"])) == ["single-shot"]
    closed = _closed("agents-gpu-only", ["workload.tasks=40"])
    assert len({task.user for task in closed.drawn.tasks}) == 20  # no more than half of the tasks


class DriftingStand:
    """Stands in for workers of a machine whose steps take longer run by run; Ctrl-C comes instead of run number `stops`."""

    notes = ()
    last: DriftingStand

    def __init__(self, prepared: Any, *_: Any) -> None:
        self.ran: list[Any] = []
        DriftingStand.last = self

    def __enter__(self) -> DriftingStand:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, prepared: Prepared) -> LiveRun:
        if len(self.ran) == self.stops:
            raise KeyboardInterrupt
        self.ran.append(prepared)
        return as_if_live(prepared, {DECODE: 1.0 + 0.1 * len(self.ran), CHUNK: 1.0 + 0.1 * len(self.ran)})

    stops = -1


def drifted(
    monkeypatch: pytest.MonkeyPatch, stops: int = -1, look: Callable[[], list[Paced]] = list
) -> LoadsValidation:
    monkeypatch.setattr("hsim.validate.loads.Stand", type("Stand", (DriftingStand,), {"stops": stops}))
    monkeypatch.setattr("hsim.validate.run.measure_pace", lambda stand, prepared: look())
    single = ["workload.tasks=60", "workload.classes.support-agent.rounds=1"]
    return validate_loads("agents-gpu-only", single, [0.3, 0.6], Options(repeats=3, worlds=0))


def test_repeats_go_round_all_loads_so_that_drift_shows_in_their_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine runs, each slower than the one before: every load has its share of all the drift."""
    found = drifted(monkeypatch)
    assert [one.name for one in found.runs] == ["single-shot, closed loop", "single-shot, 30%", "single-shot, 60%"]
    ran = DriftingStand.last.ran
    assert len(ran) == 9
    assert ran[:3] == ran[3:6] == ran[6:]
    for one in found.runs[1:]:
        tpot = next(c for c in one.validation.compared if c.quantity == "tpot mean")
        assert tpot.spread_fraction is not None
        assert tpot.spread_fraction > 0.1, "its three runs followed each other"


def test_a_look_at_the_pace_after_a_load_is_that_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = count(1)
    found = drifted(monkeypatch, look=lambda: [Paced(DECODE, "a step", 1.0, float(next(looks)))])
    seen = [[int(paced.measured_s) for paced in one.validation.pace] for one in found.runs]
    assert seen == [[1, 2, 5, 8], [2, 3, 6, 9], [3, 4, 7, 10]]


def test_a_validation_that_is_stopped_tells_what_was_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drifted(monkeypatch, stops=4)
    assert found.stopped == "Ctrl-C"
    assert [len(one.validation.tasks) for one in found.runs] == [2, 1, 1]
    early = drifted(monkeypatch, stops=1)
    assert [one.name for one in early.runs] == ["single-shot, closed loop", "single-shot, 30%"]
    assert [bool(one.validation.compared) for one in early.runs] == [True, False]
