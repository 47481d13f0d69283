"""Meters: joules or a reason, never a silent zero. NVML is a fake under the names of nvidia-ml-py, RAPL a made-up sysfs."""

import sys
import threading
import types
from pathlib import Path

import pytest

from hsim.backends.meters import Counter, IntegratedPower, Replay, accelerator_meters, meters_at_hand, rapl_meters
from hsim.backends.nvml import Nvml


class FakeNvml(types.ModuleType):
    """As much of nvidia-ml-py as hsim uses, for two made-up GPUs. `broken` maps a function to the error it raises."""

    NVML_SUCCESS = 0
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_FI_DEV_POWER_INSTANT = 186
    nvmlClocksEventReasonGpuIdle = 0x1
    nvmlClocksEventReasonSwPowerCap = 0x4
    nvmlClocksThrottleReasonSwPowerCap = 0x4
    nvmlClocksThrottleReasonBoardLimit = 0x200
    nvmlClocksEventReasonAll = 0x1FF

    class NVMLError(Exception):
        def __str__(self):
            return {3: "Not Supported", 6: "Not Found", 9: "Driver Not Loaded", 12: "NVML Shared Library Not Found"}[
                self.args[0]
            ]

    def __init__(self):
        super().__init__("pynvml")
        vars(self).update({name: bits for name, bits in vars(FakeNvml).items() if name.startswith("nvmlClocks")})
        self.broken = {}
        self.energy_mj = {"GPU-a": 5_000_000, "GPU-b": 7_000_000}
        self.power_mw = 300_000
        self.mig = {"GPU-a": 0, "GPU-b": 0}
        for name in (
            "nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID",
            "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage",
            "nvmlDeviceGetMigMode", "nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlSystemGetDriverVersion",
            "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo",
            "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        ):  # fmt: skip
            setattr(self, name, self._function(name))

    def _function(self, name):
        def call(*arguments):
            if name in self.broken:
                raise self.NVMLError(self.broken[name])
            return self.answer(name, *arguments)

        return call

    def answer(self, name, device=None, *more):
        if name == "nvmlDeviceGetHandleByIndex":
            return ["GPU-a", "GPU-b"][device]
        if name == "nvmlDeviceGetHandleByUUID":
            if device not in self.energy_mj:
                raise self.NVMLError(6)
            return device
        if name == "nvmlDeviceGetFieldValues":
            assert more == ([186],)
            value = types.SimpleNamespace(uiVal=self.power_mw)
            return [types.SimpleNamespace(nvmlReturn=0, value=value)]
        return {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetTotalEnergyConsumption": lambda: self.energy_mj[device],
            "nvmlDeviceGetPowerUsage": lambda: 111_000,
            "nvmlDeviceGetMigMode": lambda: [self.mig[device], 0],
            "nvmlDeviceGetName": lambda: b"NVIDIA Made-up",
            "nvmlDeviceGetUUID": lambda: device,
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetMemoryInfo": lambda: types.SimpleNamespace(total=80 * 10**9, used=2 * 10**9, free=78 * 10**9),
            "nvmlDeviceGetClockInfo": lambda: {1: 1200, 2: 2619}[more[0]],
            "nvmlDeviceGetMaxClockInfo": lambda: 1980,
            "nvmlDeviceGetEnforcedPowerLimit": lambda: 700_000,
            "nvmlDeviceGetTemperature": lambda: 41,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda: 0x5,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda: 0x204,
        }[name]()


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_the_fake_has_the_names_of_the_real_library():
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for name in {*vars(FakeNvml()), *vars(FakeNvml)}:
        if name.lower().startswith("nvml"):
            assert hasattr(real, name), name
            if isinstance(getattr(FakeNvml, name, None), int) and not name.endswith("All"):
                assert getattr(real, name) == getattr(FakeNvml, name), name


def test_each_gpu_has_a_meter_that_counts_from_its_opening(nvml):
    first, second = accelerator_meters()
    assert (first.name, first.boundary, first.unavailable_reason) == ("gpu 0", "accelerator board", None)
    assert first.joules() == second.joules() == 0
    nvml.energy_mj["GPU-b"] += 12_500
    assert (first.joules(), second.joules()) == (0, 12.5)
    nvml.energy_mj["GPU-b"] += 500
    assert second.joules() == 13


def test_a_counter_that_was_reset_is_unavailable_from_then_on(nvml):
    meter = accelerator_meters()[0]
    nvml.energy_mj["GPU-a"] = 1000
    assert meter.joules() is None
    assert meter.unavailable_reason == "gpu 0: the counter went back by 4999.000 J, so it was reset"
    nvml.energy_mj["GPU-a"] = 9_000_000
    assert meter.joules() is None


def test_a_counter_that_fails_in_mid_run_is_unavailable(nvml):
    meter = accelerator_meters()[0]
    nvml.broken["nvmlDeviceGetTotalEnergyConsumption"] = 9
    assert meter.joules() is None
    assert "its energy counter cannot be read (Driver Not Loaded)" in meter.unavailable_reason


def test_without_a_counter_power_is_integrated(nvml):
    nvml.broken["nvmlDeviceGetTotalEnergyConsumption"] = 3
    before = threading.active_count()
    meter = accelerator_meters()[0]
    assert meter.name == "gpu 0, power sampled"
    assert threading.active_count() >= before + 1
    assert meter.joules() >= 0
    nvml.broken |= {"nvmlDeviceGetFieldValues": 9, "nvmlDeviceGetPowerUsage": 9}
    assert meter.joules() is None
    assert "neither its energy nor its power" in meter.unavailable_reason
    meter.close()


def test_power_is_integrated_by_the_trapezoid_rule():
    readings = iter([(0.0, 100.0), (1.0, 300.0), (1.5, 300.0), (3.5, 0.0)])
    clock = []

    def watts():
        time_s, power_w = next(readings)
        clock.append(time_s)
        return power_w

    integral = IntegratedPower("gpu", watts, lambda: clock[-1])
    assert [integral.read_j() for _ in range(3)] == [200.0, 350.0, 650.0]


def test_instantaneous_power_is_preferred_to_the_average(nvml):
    opened = Nvml()
    assert opened.watts("GPU-a") == 300
    nvml.broken["nvmlDeviceGetFieldValues"] = 3
    assert opened.watts("GPU-a") == 111
    nvml.broken["nvmlDeviceGetPowerUsage"] = 3
    assert opened.watts("GPU-a") is None


def test_a_gpu_that_tells_nothing_is_unavailable(nvml):
    for name in ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage"):
        nvml.broken[name] = 3
    for meter in accelerator_meters():
        assert meter.joules() is None
        assert "Not Supported" in meter.unavailable_reason
        assert "neither its energy nor its power" in meter.unavailable_reason


def test_a_gpu_cut_into_mig_instances_is_not_read(nvml):
    nvml.mig["GPU-a"] = 1
    first, second = accelerator_meters()
    assert first.joules() is None
    assert "MIG" in first.unavailable_reason
    assert second.joules() == 0


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [(None, ["GPU-a", "GPU-b"]), ("1", ["GPU-b"]), ("1,0", ["GPU-b", "GPU-a"]), ("GPU-b", ["GPU-b"]), ("", [])],
)
def test_meters_follow_the_devices_that_cuda_sees(nvml, monkeypatch, visible, uuids):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Nvml().devices() == uuids
    if not uuids:
        (meter,) = accelerator_meters()
        assert meter.joules() is None
        assert "leaves no device" in meter.unavailable_reason


def test_a_device_that_is_not_there_is_named(nvml, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-z")
    (meter,) = accelerator_meters()
    assert "CUDA_VISIBLE_DEVICES=GPU-z: a device cannot be found (Not Found)" in meter.unavailable_reason


def test_no_library_and_no_driver_are_told_apart(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", None)
    nvml.broken["nvmlInit"] = 12
    (meter,) = accelerator_meters()
    assert meter.joules() is None
    assert "NVML Shared Library Not Found" in meter.unavailable_reason
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (meter,) = accelerator_meters()
    assert "nvidia-ml-py is not installed" in meter.unavailable_reason


def test_facts_are_in_si_units_and_none_where_the_driver_is_silent(nvml):
    facts = Nvml().facts("GPU-a")
    assert (facts.name, facts.uuid, facts.driver_version) == ("NVIDIA Made-up", "GPU-a", "580.1")
    assert (facts.memory_bytes, facts.memory_used_bytes) == (80 * 10**9, 2 * 10**9)
    assert (facts.sm_clock_hz, facts.max_sm_clock_hz, facts.memory_clock_hz) == (1.2e9, 1.98e9, 2.619e9)
    assert (facts.power_limit_w, facts.temperature_celsius) == (700, 41)
    assert facts.throttle_reasons == ("GpuIdle", "SwPowerCap")
    nvml.broken["nvmlDeviceGetCurrentClocksEventReasons"] = 3  # as an older driver
    assert Nvml().facts("GPU-a").throttle_reasons == ("SwPowerCap", "BoardLimit")
    for name in vars(nvml).keys() - {"broken", "nvmlInit"}:
        nvml.broken[name] = 3
    facts = Nvml().facts("GPU-a")
    assert facts.name == "an accelerator without a name"
    assert {value for name, value in vars(facts).items() if name != "name"} == {None}


# ---- RAPL


@pytest.fixture
def sysfs(tmp_path):
    def zone(path, name, microjoules=1_000_000, wraps=10_000_000):
        folder = tmp_path / path
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (folder / "max_energy_range_uj").write_text(f"{wraps}\n")

    zone("intel-rapl:0", "package-0")
    zone("intel-rapl:1", "psys")
    zone("intel-rapl-mmio:0", "package-0")
    for inner, name in (("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram")):
        zone(inner, name)  # sysfs lists inner zones beside the packages too
    return tmp_path


def set_energy(sysfs, zone, microjoules):
    new = sysfs / "new"  # put in place at once: the meter's own thread reads it all the time
    new.write_text(f"{microjoules}\n")
    new.replace(sysfs / zone / "energy_uj")


def test_rapl_counts_packages_and_dram_once_and_comes_round(sysfs):
    package, dram = rapl_meters(sysfs)
    assert [(m.name, m.boundary) for m in (package, dram)] == [
        ("package-0", "CPU package"),
        ("dram of package-0", "DRAM"),
    ]
    set_energy(sysfs, "intel-rapl:0", 9_000_000)
    assert package.joules() == 8
    set_energy(sysfs, "intel-rapl:0", 500_000)  # round once: 1 J up to 10 J, then 0.5 J
    assert package.joules() == pytest.approx(9.5)
    assert dram.joules() == 0
    set_energy(sysfs, "intel-rapl:0", "")
    assert package.joules() is None
    assert "no whole number of microjoules" in package.unavailable_reason
    package.close()
    dram.close()


def test_a_counter_is_read_often_enough_not_to_miss_a_wrap():
    seen = threading.Event()
    counter = Counter("package-0", "CPU package", lambda: seen.set() or 0.0, wraps_at_j=10.0, sample_s=0.01)
    seen.clear()
    assert seen.wait(30), "nobody read it"
    counter.close()


@pytest.fixture
def for_root_only(monkeypatch):
    """Counters of RAPL that this user may not read."""
    read_text = Path.read_text

    def refusing(self, *args, **kwargs):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refusing)


def test_no_permission_is_told_apart_from_no_rapl(sysfs, for_root_only, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", None)
    for meter in rapl_meters(sysfs):
        assert meter.joules() is None
        assert "may not be read by this user; only root may" in meter.unavailable_reason
    (absent,) = rapl_meters(tmp_path / "nothing")
    assert absent.joules() is None
    assert "has no CPU package" in absent.unavailable_reason


# ---- zeus, where NVML and RAPL have nothing


class ZeusBaseError(Exception):
    """Under the name of zeus's own."""


class FakeZeus:
    """As much of zeus 0.16 as hsim uses: devices whose counters are in millijoules, or a fault that they raise."""

    def __init__(self, totals):
        self.totals, self.fault = totals, None

    def __len__(self):
        return len(self.totals)

    def get_total_energy_consumption(self, index):
        if self.fault:
            raise ZeusBaseError(self.fault)
        return self.totals[index]


@pytest.fixture
def zeus(monkeypatch):
    def none(ensure_homogeneous=False):
        raise ZeusBaseError("NVML and AMDSMI unavailable")

    device, exception = types.ModuleType("zeus.device"), types.ModuleType("zeus.exception")
    device.get_gpus, device.get_cpus, exception.ZeusBaseError = none, none, ZeusBaseError
    for name, module in (("zeus", types.ModuleType("zeus")), ("zeus.device", device), ("zeus.exception", exception)):
        monkeypatch.setitem(sys.modules, name, module)
    return device


def test_boards_that_nvml_does_not_know_are_read_by_zeus(nvml, zeus):
    boards = FakeZeus([2_000_000, 9_000_000])
    zeus.get_gpus = lambda ensure_homogeneous=False: boards
    nvml.broken["nvmlInit"] = 12
    first, second = accelerator_meters()
    boards.totals = [2_750_000, 9_000_000]
    assert (first.boundary, first.joules(), second.joules()) == ("accelerator board", 750.0, 0.0)
    boards.fault = "the board is gone"
    assert first.joules() is None
    assert "zeus cannot read it (the board is gone)" in first.unavailable_reason


def test_nvml_comes_before_zeus(nvml, zeus):
    assert [meter.name for meter in accelerator_meters()] == ["gpu 0", "gpu 1"]


def test_without_boards_without_zeus_and_with_neither_are_told_apart(nvml, zeus, monkeypatch):
    nvml.broken["nvmlInit"] = 12
    (meter,) = accelerator_meters()
    assert meter.joules() is None
    assert "zeus: NVML and AMDSMI unavailable" in meter.unavailable_reason
    zeus.get_gpus = lambda ensure_homogeneous=False: FakeZeus([])
    (meter,) = accelerator_meters()
    assert "zeus finds none" in meter.unavailable_reason
    monkeypatch.setitem(sys.modules, "zeus", None)
    monkeypatch.setitem(sys.modules, "zeus.device", None)
    (meter,) = accelerator_meters()
    assert "pip install 'hsim[zeus]'" in meter.unavailable_reason
    assert "NVML Shared Library Not Found" in meter.unavailable_reason


def test_packages_that_only_a_daemon_may_read_are_read_by_zeus(sysfs, zeus, for_root_only):
    (meter,) = rapl_meters(sysfs)
    assert "may not be read by this user" in meter.unavailable_reason
    assert "zeus: NVML and AMDSMI unavailable" in meter.unavailable_reason
    packages = FakeZeus([types.SimpleNamespace(cpu_mj=5_000.0, dram_mj=None)])
    zeus.get_cpus = lambda: packages
    (package,) = rapl_meters(sysfs)
    packages.totals = [types.SimpleNamespace(cpu_mj=6_500.0, dram_mj=None)]
    assert (package.boundary, package.joules()) == ("CPU package", 1.5)


# ---- the rest


def test_a_replayed_meter_interpolates_and_ends():
    now = [100.0]
    meter = Replay("recorded", [(0.0, 0.0), (2.0, 10.0), (4.0, 40.0)], lambda: now[0])
    expected = {0.0: 0.0, 1.0: 5.0, 2.0: 10.0, 3.0: 25.0, 4.0: 40.0}
    for at_s, joules in expected.items():
        now[0] = 100.0 + at_s
        assert meter.joules() == joules
    assert meter.unavailable_reason is None
    now[0] = 104.5
    assert meter.joules() is None
    assert meter.unavailable_reason == "recorded: nothing was recorded at 4.500 s"


def test_whatever_this_machine_has_each_meter_gives_joules_or_a_reason(monkeypatch):
    at_hand = meters_at_hand()
    assert {meter.boundary for meter in at_hand} >= {"accelerator board", "CPU package"}
    for meter in at_hand:
        joules = meter.joules()
        assert (joules is None) == (meter.unavailable_reason is not None)
        assert joules is None or joules >= 0
        meter.close()
