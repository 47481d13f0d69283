"""Energy is validated like time: what meters counted over a live run beside what the books of its simulation say."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from itertools import count
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from systems import agents, generate_only, prepared_of
from test_live import CorePuppet, Use, closed_loop, on_puppets  # noqa: F401  # a fixture
from test_validation import DriftingStand, as_if_live, with_failed

from hsim.backends.endpoint import EndpointSpec
from hsim.backends.meters import Counter, Meter, Replay
from hsim.calibrate.served import NOT_SEEN
from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers import live as live_driver
from hsim.drivers.endpoint import RemoteSpec
from hsim.drivers.live import LiveRun, MeteredJoules, meters_beside, run_live
from hsim.drivers.prepared import Prepared, prepare
from hsim.log import Log
from hsim.metrics.ledger import Window
from hsim.metrics.power import _host_power
from hsim.report.live import loads_tables, validation_tables
from hsim.validate.compared import Compared
from hsim.validate.loads import validate_loads
from hsim.validate.page import page
from hsim.validate.run import Measured, Options, Prediction, Validation, judged

ON_BOARDS, ON_PACKAGES = "(full, accelerator boards, whole run)", "(full, CPU packages, whole run)"
LOCAL = RemoteSpec(EndpointSpec("http://127.0.0.1:8000/v1", "m"))
CUDA = Options("cuda:0", worlds=0)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_of(agents(split=False, cores=2, prefix_caching=False))


def boards_j(prepared: Prepared, log: Log, spare: int = 0) -> float:
    """Of an engine's boards and of spare ones, from the beginning of the run: step by step, and none of the books."""
    steps, end_s = log.steps.arrays(), log.tasks.arrays()["ended_s"].max()
    assert (steps["steps"] == 1).all()
    (device,) = log.accelerators
    chip = prepared.system.tiers["gpu-tier"].chip
    assert chip is not None and chip.power.idle_w.value
    return float(steps["joules"].sum() + (device.idle_w + spare * chip.power.idle_w.value) * end_s)


def packages_j(prepared: Prepared, log: Log) -> float:
    """Of the one host, as the integral of its power, by the code that checks the books."""
    (host,), end_s = log.hosts, float(log.tasks.arrays()["ended_s"].max())
    power = prepared.accounts.tiers["gpu-tier"].host
    times, watts = _host_power(log.cores.arrays(), 0, power.dynamic_w, Window(0.0, end_s, end_s))
    return float(((host.idle_w + watts) * np.diff(times)).sum())


def board(number: int, joules: float | None, why: str = "") -> MeteredJoules:
    return MeteredJoules(f"gpu {number}", "accelerator board", joules, why)


def package(joules: float | None, why: str = "") -> MeteredJoules:
    return MeteredJoules("package-0", "CPU package", joules, why)


def metered(prepared: Prepared, *meters: MeteredJoules) -> LiveRun:
    return replace(as_if_live(prepared, {}), energy=meters)


def judge(prepared: Prepared, options: Options, *runs: LiveRun) -> Validation:
    return judged(Prediction.of(prepared, options), Measured(list(runs)), options)


def rows_of(found: Validation) -> dict[str, Compared]:
    return {row.quantity: row for row in found.compared if row.unit in ("J", "1/J")}


@pytest.mark.parametrize(("times", "error"), [(1.0, 0.0), (1.1, -1 / 11)])
def test_joules_a_task_are_compared_where_a_meter_is(prepared: Prepared, times: float, error: float) -> None:
    log = as_if_live(prepared, {}).log
    joules = boards_j(prepared, log), packages_j(prepared, log)
    found = rows_of(judge(prepared, CUDA, metered(prepared, board(0, times * joules[0]), package(times * joules[1]))))
    assert list(found) == [f"TST {ON_BOARDS}", f"TPW {ON_BOARDS}", f"TST {ON_PACKAGES}", f"TPW {ON_PACKAGES}"]
    tokens = sum(task.output_tokens for task in prepared.drawn.tasks)
    for boundary, one_j in zip((ON_BOARDS, ON_PACKAGES), joules, strict=True):
        tst, tpw = found[f"TST {boundary}"], found[f"TPW {boundary}"]
        assert (tst.predicted, tpw.predicted) == (pytest.approx(one_j / 30), pytest.approx(tokens / one_j))
        assert tst.error_fraction == pytest.approx(error, abs=1e-9)
        assert tpw.error_fraction == pytest.approx(1 / (1 + error) - 1, abs=1e-9)
        assert (tst.unit, tpw.unit, tst.at_pace, tst.verdict) == ("J", "1/J", None, "unjudged")


def test_energy_has_a_spread_what_was_stated_and_a_verdict(prepared: Prepared) -> None:
    joules = packages_j(prepared, as_if_live(prepared, {}).log)
    runs = [metered(prepared, package(times * joules)) for times in (0.98, 1.02)]
    (tst, tpw) = rows_of(judge(prepared, Options(worlds=10), *runs)).values()
    assert tst.spread_fraction == pytest.approx(0.04 / 2**0.5)
    assert tst.low is not None and tst.high is not None and tpw.low is not None and tpw.high is not None
    assert tst.low < tst.predicted < 1.2 * tst.predicted < tst.high  # the packages' idle watts have wide bounds
    assert tpw.low < tpw.predicted < tpw.high
    assert (tst.verdict, tpw.verdict) == ("within", "within")


def test_tasks_that_failed_have_their_joules_in_those_of_the_others(prepared: Prepared) -> None:
    joules = boards_j(prepared, as_if_live(prepared, {}).log)
    run = with_failed(metered(prepared, board(0, joules)), 0.5)
    tst = rows_of(judge(prepared, CUDA, run))[f"TST {ON_BOARDS}"]
    assert (tst.measured, tst.predicted) == (pytest.approx(joules / 15), pytest.approx(joules / 30))
    assert tst.verdict == "unjudged"


def test_the_board_of_hsim_s_own_decoder_is_that_which_it_ran_on(prepared: Prepared) -> None:
    joules = boards_j(prepared, as_if_live(prepared, {}).log)
    run = metered(prepared, board(0, 5.0), board(1, joules))
    found = rows_of(judge(prepared, replace(CUDA, device="cuda:1"), run))
    assert found[f"TST {ON_BOARDS}"].error_fraction == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("boards", "spare"), [(2, 0), (8, 6)])
def test_several_boards_are_compared_with_the_sum_of_those(boards: int, spare: int) -> None:
    """An endpoint on two of eight boards: the meters see the two, or all eight of the server."""
    prepared = prepared_of(generate_only(tensor_parallel=2))
    joules = boards_j(prepared, as_if_live(prepared, {}).log, spare)
    run = metered(prepared, *(board(i, joules / boards) for i in range(boards)))
    found = rows_of(judge(prepared, Options("endpoint", worlds=0, endpoint=LOCAL), run))
    assert found[f"TST {ON_BOARDS}"].error_fraction == pytest.approx(0.0, abs=1e-9)


def why_not(prepared: Prepared, options: Options, *meters: MeteredJoules) -> str:
    """Why no energy of the first boundary is compared."""
    found = judge(prepared, options, metered(prepared, *meters))
    assert not [name for name in rows_of(found) if ON_BOARDS in name], "it was compared"
    return next(note for note in found.notes if note.startswith("energy of "))


def test_what_no_meter_counts_and_what_nobody_predicts_is_told_and_never_a_zero(prepared: Prepared) -> None:
    assert why_not(prepared, CUDA, board(0, None, "NVML: no driver")).endswith("is not compared: NVML: no driver")
    assert "NVML: lost" in why_not(replace(prepared), CUDA, board(0, None, "NVML: lost"), board(1, 3.0))
    assert "there is no meter" in why_not(prepared, CUDA)
    assert "counted nothing" in why_not(prepared, CUDA, board(0, 0.0))
    assert "decoders ran on cpu" in why_not(prepared, Options(worlds=0), board(0, 7.0))
    several = Options("endpoint", worlds=0, endpoint=LOCAL)
    told = why_not(prepared, several, *(board(i, 7.0) for i in range(3)))
    assert "3 are metered; in the prediction 1 serve, of 8 that are there" in told


def test_watts_that_nobody_knows_are_told_with_the_reason_of_their_profile() -> None:
    unknown = generate_only() | {"model": "llama-3.2-1b"}
    unknown["fleet"]["gpu-tier"]["server"], unknown["assume"]["a10g"] = "a10g-1", {"peak_flops_per_s": {"bf16": 6e13}}
    told = why_not(prepared_of(unknown), CUDA, board(0, 7.0))
    assert "power.joules_per_flop: is unknown (nothing published was found)" in told
    on_cores = prepare(resolve(*load("two-cores", ["workload.tasks=5"])))
    found = judge(
        on_cores, Options("endpoint", worlds=0, endpoint=LOCAL), metered(on_cores, board(0, 7.0), package(7.0))
    )
    assert not rows_of(found)
    assert "energy of accelerator boards is not compared: the prediction has no watts for them" in found.notes
    assert any("amd-epyc-2c-cpu.yaml" in note and "RAPL" in note for note in found.notes)


def test_a_meter_that_failed_in_one_run_leaves_its_boundary_out(prepared: Prepared) -> None:
    runs = [metered(prepared, board(0, joules, why)) for joules, why in ((7.0, ""), (None, "the counter was reset"))]
    found = judge(prepared, CUDA, *runs)
    assert not rows_of(found)
    assert any(note.endswith("the counter was reset") for note in found.notes)


def test_packages_of_one_machine_are_not_those_of_two_servers() -> None:
    found = judge(prepared_of(agents(prefix_caching=False)), CUDA, metered(prepared_of(agents()), package(7.0)))
    assert not rows_of(found)
    assert any("the prediction is of 2 servers" in note for note in found.notes)


def test_memory_is_in_no_prediction_of_packages(prepared: Prepared) -> None:
    found = judge(prepared, CUDA, metered(prepared, MeteredJoules("dram", "DRAM", 7.0, "")))
    assert any(note.startswith("energy of DRAM is not compared") for note in found.notes)


def seen_from_outside(prepared: Prepared) -> Prepared:
    """The same with a chip such as `hsim calibrate --endpoint` writes."""
    tier = prepared.system.tiers["gpu-tier"]
    assert tier.chip is not None
    unseen = tier.chip.memory_bytes_per_s.model_copy(update={"source": NOT_SEEN})
    chip = tier.chip.model_copy(update={"memory_bytes_per_s": unseen})
    return replace(prepared, system=replace(prepared.system, tiers={"gpu-tier": replace(tier, chip=chip)}))


def test_an_endpoint_s_own_profile_is_of_all_meters_together(prepared: Prepared) -> None:
    at = Options("endpoint", worlds=0, endpoint=LOCAL)
    chat = seen_from_outside(prepared_of(generate_only()))
    joules = boards_j(chat, as_if_live(chat, {}).log)
    run = metered(chat, board(0, joules / 2), board(1, joules / 4), package(joules / 4), board(2, None, "MIG"))
    found = rows_of(judge(chat, at, run))
    assert list(found) == [f"{what} (full, all meters of this machine, whole run)" for what in ("TST", "TPW")]
    assert all(row.error_fraction == pytest.approx(0.0, abs=1e-9) for row in found.values())
    told = why_not(seen_from_outside(prepared), at, board(0, 7.0))
    assert "tools on their cores draw more" in told


def test_what_this_machine_draws_is_not_the_energy_of_an_endpoint_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    counter: Meter = Counter("gpu 0", "accelerator board", lambda: 1.0)
    monkeypatch.setattr(live_driver, "meters_at_hand", lambda: [counter])
    assert meters_beside(None) == meters_beside(LOCAL) == [counter]
    far = meters_beside(RemoteSpec(EndpointSpec("http://far.example:8000/v1", "m")))
    assert [meter.joules() for meter in far] == [None, None]
    assert all("is at another machine" in (meter.unavailable_reason or "") for meter in far)


def test_a_live_run_s_window_is_that_of_the_prediction(on_puppets: Use, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A board that draws 50 W without end, as recorded: the meter is read from before the first task until the last."""
    prepared = prepared_of(closed_loop(max_num_seqs=2))
    on_puppets(prepared, CorePuppet())
    replayed = Replay("gpu 0", [(0.0, 0.0), (3600.0, 50.0 * 3600.0)])
    replayed.boundary = "accelerator board"
    monkeypatch.setattr(live_driver, "meters_at_hand", lambda: [replayed])
    done = run_live(prepared, "cuda:0")
    (counted,) = done.energy
    end_s = done.log.tasks.arrays()["ended_s"].max()
    assert counted.joules is not None and counted.joules >= 50.0 * end_s
    found = rows_of(judge(prepared, CUDA, done))
    assert found[f"TST {ON_BOARDS}"].measured == pytest.approx(counted.joules / 9)


class MeteredStand(DriftingStand):
    """Its packages draw more from run to run."""

    joules = count(1000, 10)

    def run(self, prepared: Prepared) -> LiveRun:
        return replace(super().run(prepared), energy=(package(float(next(self.joules))),))


def test_loads_show_energy_at_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsim.validate.loads.Stand", MeteredStand)
    monkeypatch.setattr("hsim.validate.run.measure_pace", lambda stand, prepared: [])
    single = ["workload.tasks=60", "workload.classes.support-agent.rounds=1"]
    found = validate_loads("agents-gpu-only", single, [0.3], Options(repeats=2, worlds=0))
    plain: list[dict[str, Any]] = found.as_dict()["runs"]
    for one in plain:
        tst = next(row for row in one["compared"] if row["quantity"] == f"TST {ON_PACKAGES}")
        assert tst["error_fraction"] == pytest.approx(tst["predicted"] / tst["measured"] - 1)
    text = shown(loads_tables(found))
    assert text.count(f"TST {ON_PACKAGES}") == text.count(f"TPW {ON_PACKAGES}") == 2
    assert text.count("decoders ran on cpu") == 1


def test_the_tables_and_the_page_show_joules(prepared: Prepared) -> None:
    found = judge(prepared, CUDA, metered(prepared, board(0, 3600.0), package(None, "RAPL: none")))
    text = shown(validation_tables(found))
    assert f"TST {ON_BOARDS}" in text and "120 J" in text and "/J" in text
    assert "Note         energy of CPU packages is not compared: RAPL: none" in text
    html = page([("", found)])
    assert "120 J" in html and "energy of CPU packages is not compared: RAPL: none." in html


def shown(table: Any) -> str:
    console = Console(record=True, width=240, file=StringIO())
    console.print(table)
    return console.export_text()
