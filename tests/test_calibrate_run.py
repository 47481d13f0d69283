"""A calibration from start to end on a made-up machine: budget, resuming, interruptions, files, and a simulation."""

import errno
import importlib.util
import json
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import calibrated_world
import pytest
import yaml
from calibrated_world import MACHINE, World

from hsim.backends.worker import Worker, WorkerSettings
from hsim.calibrate import measure
from hsim.calibrate.agenda import CHECKS, Served, Target, agenda
from hsim.calibrate.bench import BenchSpec, Facts
from hsim.calibrate.measure import Workers
from hsim.calibrate.options import CalibrationOptions, CalibrationReport
from hsim.calibrate.run import calibrate
from hsim.calibrate.steptable import SecondsAlone
from hsim.calibrate.store import write_atomically
from hsim.calibrate.work import Reading, Unit
from hsim.costs.measured import MeasuredCosts
from hsim.costs.shapes import StepShape
from hsim.description.catalogue import load_model, load_profile
from hsim.description.hardware import (
    AcceleratorProfile,
    CpuProfile,
    EngineProfile,
    LinkProfile,
    ServerProfile,
    StepTable,
)
from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.carried import carried
from hsim.drivers.prepared import prepare
from hsim.drivers.simulated import run as simulated
from hsim.errors import BackendError, CalibrationError
from hsim.metrics.summarise import summarise

NAME = "imaginary-4c"
CHIP = f"{NAME}-core"


def run(world: World, out: Path, budget_s: float = 400.0, **options: Any) -> CalibrationReport:
    return calibrate(CalibrationOptions(budget_s=budget_s, out=out, **options), tools=world.tools())


def keys(out: Path) -> list[str]:
    lines = (out / "calibration" / NAME / "rows.jsonl").read_text().splitlines()
    return [json.loads(line)["key"] for line in lines]


# ---- what is measured


@pytest.mark.parametrize("budget_s", [30.0, 120.0, 400.0])
def test_the_budget_is_kept_and_what_it_left_out_is_named(tmp_path: Path, budget_s: float) -> None:
    world = World()
    report = run(world, tmp_path, budget_s, simulate=False)
    assert world.now_s <= budget_s
    assert world.now_s > 0.5 * budget_s  # it was used
    assert report.left_out
    assert all("points, such as" in told for told in report.left_out)
    assert len(world.asked) == report.measured == len(keys(tmp_path))


def test_a_slow_machine_is_found_out_and_the_budget_kept(tmp_path: Path) -> None:
    world = World(slower=4.0)
    run(world, tmp_path, 200.0, simulate=False)
    assert world.now_s <= 200.0


def test_what_no_profile_can_do_without_comes_first(tmp_path: Path) -> None:
    world = World()
    run(world, tmp_path, 300.0, simulate=False)
    worths = [unit.worth for unit in world.asked]
    assert worths == sorted(worths)
    assert worths[0] == 0 and worths[-1] > 0


def test_with_time_to_spare_points_are_measured_again(tmp_path: Path) -> None:
    world = World()
    report = run(world, tmp_path, 5000.0, simulate=False)
    assert not report.left_out
    assert {unit.round for unit in world.asked} == {1, 2, 3, 4}
    assert len({unit.key for unit in world.asked}) == len(world.asked)


def test_noise_within_rounds_and_between_them_is_marked_not_dropped(tmp_path: Path) -> None:
    report = run(World(noise=0.3), tmp_path, 3000.0, simulate=False)
    assert report.noisy
    assert report.warnings
    content = json.loads((tmp_path / "calibration" / NAME / "fit.json").read_text())
    assert content["noisy"] == report.noisy


def test_what_cannot_be_measured_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    report = run(World(failing="name=hnsw-search"), tmp_path, simulate=False)
    assert report.failed
    assert all("hnsw-search" in key and why == "it cannot be done here" for key, why in report.failed.items())
    profile, _ = load_profile(f"{NAME}-cpu", CpuProfile, "test", tmp_path)
    assert "hnsw-search" not in profile.operations
    assert "flat-search" in profile.operations


# ---- going on


def test_resuming_measures_nothing_twice_and_ends_with_the_same_rows(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(World(), whole, 5000.0, simulate=False)
    first, second = World(), World()
    run(first, parts, 60.0, simulate=False)
    report = run(second, parts, 5000.0, resume=True, simulate=False)
    assert report.resumed == len(first.asked) > 20
    assert not {u.key for u in first.asked} & {u.key for u in second.asked}
    assert sorted(keys(parts)) == sorted(keys(whole))


def test_ctrl_c_keeps_every_row_and_closes_everything(tmp_path: Path) -> None:
    world = World(interrupt_at=40)
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path)
    assert keys(tmp_path) == [unit.key for unit in world.asked]
    assert len(world.asked) == 40
    assert world.closed == 1
    assert not (tmp_path / "hardware_profiles").exists()
    after = World()
    assert run(after, tmp_path, resume=True).resumed == 40


def test_a_row_cut_short_by_a_crash_is_taken_off(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(World(interrupt_at=10), tmp_path)
    file = tmp_path / "calibration" / NAME / "rows.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole.splitlines()[0][:50])
    assert run(World(), tmp_path, resume=True, simulate=False).resumed == 10
    assert len(set(keys(tmp_path))) == len(keys(tmp_path))


def test_what_failed_is_tried_again_when_resumed(tmp_path: Path) -> None:
    run(World(failing="name=tokenise"), tmp_path, simulate=False)
    report = run(World(), tmp_path, resume=True, simulate=False)
    assert not report.failed
    assert "tokenise" in load_profile(f"{NAME}-cpu", CpuProfile, "test", tmp_path)[0].operations


class SlowerLater(World):
    """A machine on which every model but the usual one takes three times as long for a step."""

    def measure(self, unit: Unit) -> Reading:
        reading = super().measure(unit)
        other = unit.kind == "step" and unit.parameters["model"] != "tiny-12m"
        return replace(reading, seconds=3 * reading.seconds) if other and reading.seconds else reading


def test_resumed_with_another_model_its_steps_alone_make_the_table(tmp_path: Path) -> None:
    run(SlowerLater(), tmp_path, 900.0, simulate=False)
    report = run(SlowerLater(), tmp_path, 900.0, simulate=False, resume=True, model="qwen3-0.6b")
    (law,) = [law for law in report.laws if law.name == f"steps of steps-qwen3-0.6b-{CHIP}"]
    assert law.median_error is not None and law.median_error < 0.05
    assert law.p90_error is not None and law.p90_error < 0.1


def test_a_finished_folder_is_not_begun_again_nor_another_machine_s_gone_on_with(tmp_path: Path) -> None:
    run(World(), tmp_path, 30.0, simulate=False)
    with pytest.raises(CalibrationError, match="--resume"):
        run(World(), tmp_path, 30.0)
    with pytest.raises(CalibrationError, match="torch '0', and here it is '9'"):
        run(World(machine=replace(MACHINE, torch="9")), tmp_path, 30.0, resume=True)
    file = tmp_path / "calibration" / NAME / "rows.jsonl"
    file.write_text('{"not": "a row"}\n' + file.read_text())
    with pytest.raises(CalibrationError, match=r"rows.jsonl:1: is not a row"):
        run(World(), tmp_path, 30.0, resume=True)


# ---- files


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond some bytes: writing fails as it does on a full disk, with a real error of the system."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_takes_no_more_is_said_and_what_was_measured_is_kept(tmp_path: Path, small_disk: None) -> None:
    world = World()
    with pytest.raises(CalibrationError, match=r"rows.jsonl: cannot be written \(File too large\).*--resume"):
        run(world, tmp_path)
    assert world.closed == 1
    file = tmp_path / "calibration" / NAME / "rows.jsonl"
    whole = file.read_text().rpartition("\n")[0].splitlines()
    assert len(whole) == len(world.asked) - 1 > 5


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_midway_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    file = tmp_path / "profile.yaml"
    write_atomically(file, "old\n")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail) if broken == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CalibrationError, match="No space left"):
        write_atomically(file, "new " * 10_000)
    assert file.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["profile.yaml"]


def test_ctrl_c_while_writing_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "profile.yaml"
    write_atomically(file, "old\n")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, "new\n")
    assert file.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["profile.yaml"]


def test_profiles_load_through_the_catalogue_and_name_their_source(tmp_path: Path) -> None:
    report = run(World(noise=0.02), tmp_path)
    cpu, _ = load_profile(f"{NAME}-cpu", CpuProfile, "test", tmp_path)
    chip, _ = load_profile(CHIP, AcceleratorProfile, "test", tmp_path)
    server, _ = load_profile(f"{CHIP}-server", ServerProfile, "test", tmp_path)
    engine, _ = load_profile(f"hsim-decoder-{CHIP}", EngineProfile, "test", tmp_path)
    table, _ = load_profile(engine.step_tables[0], StepTable, "test", tmp_path)
    assert (cpu.cores, server.cpu, server.accelerators and server.accelerators.chip) == (4, cpu.name, chip.name)
    assert table.chip == chip.name and table.engine == engine.name
    assert cpu.idle_w.value is None and "no meter" in cpu.idle_w.source
    assert server.rent_usd_per_h.value is None and server.base_w.value is None
    law = chip.kernels.gemm["fp32"].launch_s
    assert law.tier == "fitted"
    assert MACHINE.date in law.source and f"calibration/{NAME}" in law.source and "errs" in law.source
    assert chip.memory_bytes_per_s.tier == "measured"
    assert {file.exists() for file in report.files} == {True}
    assert set(report.unavailable) >= {"cpu idle_w", f"{CHIP}-server base_w"}


# ---- simulating


def test_the_last_step_simulates_this_machine_and_says_that_energy_is_unavailable(tmp_path: Path) -> None:
    report = run(World(), tmp_path)
    assert report.scenario == tmp_path / "local.yaml"
    result = report.simulated
    assert result is not None and result.tasks == 200
    assert result.energy is None and "no meter" in result.unavailable["energy"]
    assert result.money is None and "what this machine costs" in result.unavailable["money"]
    assert 0.1 < max(pool.busy_fraction for pool in result.pools) < 0.8  # a load that it bears
    assert not [warning for warning in result.warnings if "extrapolated" in warning]


def result_of(scenario: Path, *settings: str) -> Any:
    prepared = prepare(resolve(*load(scenario, settings)))
    return summarise(simulated(prepared), prepared.system, prepared.accounts, prepared.drawn)


def test_the_simulated_decoder_takes_what_the_measured_one_took(tmp_path: Path) -> None:
    """One task alone: its time to first token and per token are the planted step times."""
    run(World(), tmp_path)
    classes = "workload.classes.small-agent"
    result = result_of(
        tmp_path / "local.yaml", "workload.arrivals.rate_per_s=0.01", "workload.tasks=20", f"{classes}.rounds=1",
        f"{classes}.input_tokens=100", f"{classes}.output_tokens=2",
    )  # fmt: skip
    between_s = calibrated_world.BETWEEN_S + calibrated_world.BETWEEN_SEQUENCE_S
    prefill_s = 2e-3 + 100 * 1e-4 + 5e-9 * 100 * 101 / 2 + between_s
    decode_s = 2e-3 + 1e-4 + 2e-8 * 101 + between_s
    assert result.latency["ttft"].mean_s == pytest.approx(prefill_s, rel=0.02)
    assert result.latency["tpot"].mean_s == pytest.approx(decode_s, rel=0.02)


def test_what_the_live_loop_takes_is_in_every_prediction(tmp_path: Path) -> None:
    scenario = run(World(), tmp_path, 2000.0, simulate=False).scenario
    assert scenario is not None
    prepared = prepare(resolve(*load(scenario)))
    table, cpu = (
        load_profile(name, kind, "test", tmp_path)[0]
        for name, kind in ((f"steps-tiny-12m-{CHIP}", StepTable), (f"{NAME}-cpu", CpuProfile))
    )
    assert table.between(10) == pytest.approx(calibrated_world.BETWEEN_S + 10 * calibrated_world.BETWEEN_SEQUENCE_S)
    with_prompt = MeasuredCosts(table, SecondsAlone()).segment(StepShape(15, 15 * 256, 1, 60, 60, 60 * 61 // 2))
    alone_s = 2e-3 + 75e-4 + 2e-8 * 15 * 256 + 5e-9 * 60 * 61 / 2
    assert with_prompt.seconds == pytest.approx(alone_s + table.between(16), rel=0.01)
    engine, _ = load_profile(f"hsim-decoder-{CHIP}", EngineProfile, "test", tmp_path)
    assert engine.host_s_per_step is not None  # for models that have no table
    assert engine.host_s_per_step.value == pytest.approx(calibrated_world.BETWEEN_S)
    assert cpu.hand_over_s is not None and cpu.hand_over_s.value == pytest.approx(calibrated_world.HAND_OVER_S)
    assert "live loop" in cpu.hand_over_s.source
    cost = prepared.understand["small-agent"]
    assert cost.seconds(48) - cost.work_s(48) == pytest.approx(calibrated_world.HAND_OVER_S)
    visits = simulated(prepared).visits.arrays()
    alone = cost.seconds(float(visits["input_tokens"][0]))  # the first task's: one core and no decoder busy
    assert visits["served_s"][0] - visits["started_s"][0] == pytest.approx(alone, rel=1e-6)


def test_operations_slow_down_by_curves_of_their_own(tmp_path: Path) -> None:
    run(World(), tmp_path, 2000.0, simulate=False)
    cpu, _ = load_profile(f"{NAME}-cpu", CpuProfile, "test", tmp_path)
    for operation in cpu.operations.values():
        times = {n: figure.value for n, figure in operation.contention_slowdown.items()}
        expected = {n: 1 + (calibrated_world.SLOWER_TOGETHER - 1) * (int(n) - 1) / 3 for n in ("2", "4")}
        assert times == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("manner", ["pipe", "shared-memory"])
def test_links_of_this_machine_are_profiles_that_a_live_run_carries(tmp_path: Path, manner: str) -> None:
    scenario = run(World(), tmp_path, 2000.0, simulate=False).scenario
    link, _ = load_profile(f"{NAME}-{manner}", LinkProfile, "test", tmp_path)
    latency_s, message_s, byte_s = calibrated_world.PAYLOAD[manner]
    assert link.carried_by == manner
    assert link.per_message_s is not None
    assert (link.latency_s.value, link.per_message_s.value) == pytest.approx((latency_s, message_s), rel=1e-3)
    assert link.bytes_per_s.value == pytest.approx(1 / byte_s, rel=1e-3)
    assert link.joules_per_byte.value is None
    assert scenario is not None
    settings = [f"links={{agents-decode: {NAME}-{manner}}}", "payload.bytes_per_token=1536", "payload.window_s=0.005"]
    prepared = prepare(resolve(*load(scenario, settings)))
    moved = simulated(prepared).transfers.arrays()
    assert len(moved["task"]) >= len(prepared.drawn.tasks)
    took_s = moved["end_s"] - moved["start_s"]
    assert took_s.min() >= latency_s + message_s + moved["bytes"].min() * byte_s
    assert carried(prepared) == {"agents-decode": manner}


def test_two_figures_say_how_far_kernels_and_cpu_stages_err_where_no_fit_has_looked(tmp_path: Path) -> None:
    report = run(World(noise=0.03), tmp_path, 2000.0, simulate=False)
    kernels, stages = report.held_out
    assert (kernels.what, kernels.target_fraction) == ("compute kernels", 0.08)
    assert (stages.what, stages.target_fraction) == ("CPU stages", 0.15)
    for one, beginnings in ((kernels, ("products", "decode att", "prefill att")), (stages, ("operation ",))):
        laws = [law for law in report.laws if law.name.startswith(beginnings)]
        errors = [error for law in laws for error in law.errors]
        assert one.points == len(errors) > 0
        assert one.mean_error == pytest.approx(sum(errors) / len(errors))
        assert 0.003 < one.mean_error < 0.06
        assert "met" in one.said
    stored = json.loads((tmp_path / "calibration" / NAME / "fit.json").read_text())["held_out"]
    assert [one["mean_error"] for one in stored] == [kernels.mean_error, stages.mean_error]


def test_a_name_that_is_given_is_that_of_all_profiles(tmp_path: Path) -> None:
    report = run(World(), tmp_path, name="mine", simulate=False)
    profiles = [file.stem for file in report.files if file.parent.name == "hardware_profiles"]
    assert sorted(profiles) == [
        "hsim-decoder-mine-core", "mine-core", "mine-core-server", "mine-cpu", "mine-pipe", "mine-shared-memory",
        "steps-tiny-12m-mine-core",
    ]  # fmt: skip


def test_runs_beyond_the_measured_steps_say_so(tmp_path: Path) -> None:
    run(World(), tmp_path)
    result = result_of(tmp_path / "local.yaml", "pools.decode.max_num_seqs=64", "workload.arrivals.rate_per_s=500")
    assert any("16 sequences" in warning and "extrapolated" in warning for warning in result.warnings)


def test_with_a_meter_and_the_wall_assumed_joules_are_known(tmp_path: Path) -> None:
    cpu = World(watts=lambda unit: 40.0 + 100.0 * (int(unit.parameters["busy"]) / 4) ** 0.7)
    report = run(cpu, tmp_path)
    assert not [name for name in report.unavailable if name.startswith("cpu ")]
    server = f"{CHIP}-server"
    result = result_of(tmp_path / "local.yaml", f"assume.{server}.base_w=20", f"assume.{server}.psu_efficiency=0.9")
    assert result.energy is not None
    assert result.energy.mean_w > 1.25 * (40 + 20) / 0.9


# ---- a GPU


def gpu_world() -> World:
    gpu = Facts("0", ("bf16", "fp8"), "Imaginary GPU", 140_000_000_000, calibrated_world.LIMIT_W)

    def watts(unit: Unit) -> float:
        if unit.kind == "idle":
            return calibrated_world.IDLE_W if unit.parameters["state"] == "bare" else calibrated_world.LOADED_IDLE_W
        if unit.kind == "cpu-power":
            return 40.0 + 25.0 * int(unit.parameters["busy"])
        return calibrated_world.FLOOR_W + 100.0

    machine = replace(MACHINE, gpus={"cuda:0": "Imaginary GPU"})
    return World(machine=machine, watts=watts, facts_of={"cuda:0": gpu, "cpu": Facts("0", ("fp32",))})


def test_a_gpu_is_metered_bare_before_anything_of_ours_is_on_it(tmp_path: Path) -> None:
    world = gpu_world()
    report = run(world, tmp_path, 540.0, device="cuda:0")
    assert (world.asked[0].kind, world.asked[0].parameters) == ("idle", {"state": "bare"})
    chip, _ = load_profile(f"imaginary-gpu-{NAME}", AcceleratorProfile, "test", tmp_path)
    assert chip.power.idle_w.value == calibrated_world.IDLE_W
    assert chip.power.loaded_idle_w.value == calibrated_world.LOADED_IDLE_W
    assert chip.power.cap_w.value == calibrated_world.LIMIT_W
    assert chip.power.floor_w.value is not None and chip.power.floor_w.value > calibrated_world.LOADED_IDLE_W
    assert "fp8" in chip.kernels.gemm
    assert report.simulated is not None and report.simulated.tasks == 200
    transfers = json.loads((tmp_path / "calibration" / NAME / "fit.json").read_text())["transfers"]
    assert transfers["pinned h2d of cuda:0"]["bytes_per_s"] == pytest.approx(calibrated_world.BANDWIDTH, rel=0.1)


@pytest.mark.parametrize("budget_s", [100.0, 200.0, 300.0, 400.0])
def test_a_gpu_s_budget_may_end_anywhere(tmp_path: Path, budget_s: float) -> None:
    """A precision or the experts with a point or two have no law; all else is written."""
    world = gpu_world()
    world.facts_of["cuda:0"] = replace(world.facts_of["cuda:0"], precisions=("bf16", "fp16", "fp32", "fp8"))
    run(world, tmp_path, budget_s, device="cuda:0", simulate=False)
    assert (tmp_path / "calibration" / NAME / "fit.json").exists()


@pytest.mark.parametrize("failing", ["state=bare", "state=loaded"])
def test_a_meter_that_fails_once_costs_one_figure(tmp_path: Path, failing: str) -> None:
    world = gpu_world()
    world.failing = failing
    report = run(world, tmp_path, 540.0, device="cuda:0")
    (name,) = [name for name in report.unavailable if name.startswith("cuda:0 ")]
    assert name == ("cuda:0 idle_w" if failing == "state=bare" else "cuda:0 loaded_idle_w")
    assert report.unavailable[name]


def test_a_gpu_whose_limit_nobody_tells_is_calibrated(tmp_path: Path) -> None:
    world = gpu_world()
    world.facts_of["cuda:0"] = replace(world.facts_of["cuda:0"], power_limit_w=None)
    report = run(world, tmp_path, 540.0, device="cuda:0")
    assert report.unavailable["cuda:0 cap_w"] == "NVML does not tell it"


def test_tools_of_the_scenario_leave_cores_to_the_live_loop_and_the_decoder(tmp_path: Path) -> None:
    run(World(), tmp_path, simulate=False)
    pools = yaml.safe_load((tmp_path / "local.yaml").read_text())["pools"]
    assert pools["agents"]["cores"] == MACHINE.cores - 2


def test_all_devices_give_a_scenario_each(tmp_path: Path) -> None:
    report = run(gpu_world(), tmp_path, 900.0, device="all")
    assert [file.name for file in report.files if file.name.startswith("local")] == ["local.yaml", "local-cuda0.yaml"]
    assert result_of(tmp_path / "local-cuda0.yaml").tasks == 200


def test_a_model_too_large_and_a_device_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="does not fit in a third"):
        run(World(), tmp_path, model="llama-3.1-70b")
    with pytest.raises(CalibrationError, match="use cpu, cuda:N or all"):
        run(World(), tmp_path, device="tpu")


# ---- workers


def test_without_torch_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    with pytest.raises(CalibrationError, match=r"torch is not installed.*hsim\[calibrate\]"):
        measure.require_torch()


class DyingWorker:
    """A worker that dies of every request."""

    class Process:
        alive = True

        def is_alive(self) -> bool:
            return self.alive

    def __init__(self) -> None:
        self.process = self.Process()

    def call(self, request: object) -> Any:
        self.process.alive = False
        raise BackendError("worker calibrate/cpu", "its process was ended by SIGKILL")

    def close(self) -> None:
        self.process.alive = False


def test_a_worker_that_dies_fails_its_unit_and_many_deaths_end_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[DyingWorker] = []

    def start(*_: object) -> Any:
        started.append(DyingWorker())
        return started[-1]

    monkeypatch.setattr(measure, "_started", start)
    monkeypatch.setattr(measure, "require_torch", lambda: None)
    workers = measure.Workers(1)
    unit = Unit("launch", "cpu", {})
    for deaths in range(measure.MOST_DEATHS):
        assert "SIGKILL" in workers.measure(unit).failure
        assert len(started) == deaths + 1  # another takes its place
    with pytest.raises(CalibrationError, match=r"workers died.*SIGKILL.*--resume"):
        workers.measure(unit)
    workers.close()


def test_where_one_worker_cannot_be_started_those_before_it_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[DyingWorker] = []

    def start(*_: object) -> Any:
        if started:
            raise BackendError("worker", "cannot be started")
        started.append(DyingWorker())
        return started[-1]

    monkeypatch.setattr(measure, "_begun", start)
    monkeypatch.setattr(measure, "require_torch", lambda: None)
    unit = Unit("operation", "cpu", {"workers": 2})
    assert "cannot be started" in measure.Workers(1).measure(unit).failure
    assert [worker.process.is_alive() for worker in started] == [False]


# ---- with torch


@pytest.mark.torch
def test_a_minute_on_this_machine_gives_profiles_that_simulate(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    told: list[str] = []

    def tell(phase: str, done_fraction: float, left_s: float, message: str) -> None:
        assert 0 <= done_fraction <= 1
        told.append(phase)

    report = calibrate(CalibrationOptions(budget_s=60.0, out=tmp_path), tell)
    assert list(dict.fromkeys(told)) == ["devices", "measuring", "fitting", "writing", "simulating"]
    assert report.measured > 10
    assert report.simulated is not None and report.simulated.tasks == 200
    assert report.left_out
    folder = tmp_path / "calibration" / report.name
    assert len((folder / "rows.jsonl").read_text().splitlines()) == report.measured
    assert not [key for key in report.failed if key.startswith(("step", "gemm", "memory-copy"))]


@pytest.mark.torch
def test_steps_of_the_decoder_are_measured_at_any_place() -> None:
    pytest.importorskip("torch")
    served = Served(load_model("tiny-12m", "test", Path()), "fp32", 4, 256, 64)
    units = [unit for unit in agenda(Target("cpu", ("fp32",), served)) if unit.kind == "step" and unit.round == 1]
    assert len([u for u in units if u.parameters["role"] == "check"]) == CHECKS
    with Worker(BenchSpec("cpu", 1), WorkerSettings("test")) as worker:
        worker.call(("serve", served))
        for unit in units[:CHECKS:4] + units[CHECKS::5]:
            reading = worker.call(("measure", replace(unit, expected_s=0.01))).value
            assert reading.seconds > 0 and not reading.failure


@pytest.mark.torch
def test_what_the_live_loop_takes_is_measured_on_calibrate_s_own_workers() -> None:
    pytest.importorskip("torch")
    served = Served(load_model("tiny-12m", "test", Path()), "fp32", 4, 256, 64)
    units = [u for u in agenda(Target("cpu", ("fp32",), served)) if u.kind in ("loop", "payload") and u.round == 1]
    assert {str(u.parameters.get("role")) for u in units} >= {"between", "hand-over"}
    measurer = Workers(1)
    try:
        measurer.serve("cpu", served)
        for unit in units:
            reading = measurer.measure(replace(unit, expected_s=0.1))
            assert not reading.failure
            assert reading.seconds and 0 < reading.seconds < 5
    finally:
        measurer.close()


def test_the_report_shows_every_law_against_its_points(tmp_path: Path) -> None:
    report = run(World(noise=0.02), tmp_path, 2000.0, simulate=False)
    page = (tmp_path / "calibration" / NAME / "report.html").read_text()
    for law in report.laws:
        assert law.name in page
    assert page.count("<svg") > len(report.laws)
    assert "this machine has no meter" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-call", "")  # self-contained
