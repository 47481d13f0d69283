"""What profiles there are: every shipped one is listed and shown, with the units and errors that it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from calibrated_world import World
from typer.testing import CliRunner

from hsim.calibrate.options import CalibrationOptions
from hsim.calibrate.run import calibrate
from hsim.cli import app
from hsim.description.catalogue import shipped
from hsim.description.hardware import StepTable
from hsim.description.inventory import entry_of, errors_of, inventory
from hsim.errors import DescriptionError
from hsim.report.hardware import told


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["hardware", *arguments], env={"COLUMNS": "240"})
    assert result.exit_code == 0, result.output
    return result.output


def test_every_profile_is_listed_with_all_its_figures_on_some_tier() -> None:
    entries = inventory()
    assert {entry.profile.name for entry in entries} >= {f.stem for f in shipped("hardware_profiles").glob("*.yaml")}
    for entry in entries:
        assert sum(entry.tiers.values()) + entry.unknown == len(entry.figures)
        assert entry.figures or entry.kind in ("tools", "step-table")
    chips = output("list", "--kind", "accelerator")
    assert "h100-sxm" in chips and "epyc-9654" not in chips


def test_a_profile_is_shown_with_units_bounds_and_sources() -> None:
    shown = output("show", "h100-sxm")
    assert "3.35 TB/s" in shown and "989 TFLOP/s" in shown and "published" in shown
    assert "aiconfigurator" in shown


def test_profiles_are_compared_figure_by_figure() -> None:
    shown = output("compare", "h100-sxm", "b200")
    line = next(line for line in shown.splitlines() if line.startswith("memory_bytes_per_s"))
    assert line.split()[1:] == ["3.35", "TB/s", "7.70", "TB/s", "2.3"]
    unlike = CliRunner().invoke(app, ["hardware", "compare", "h100-sxm", "vllm"])
    assert unlike.exit_code == 2 and "unlike kinds" in unlike.output


def test_a_name_that_is_none_is_said() -> None:
    with pytest.raises(DescriptionError, match=r"h100-smx: there is no such hardware profile; did you mean"):
        entry_of("h100-smx")


def test_a_calibrated_profile_shows_the_errors_of_its_calibration(tmp_path: Path) -> None:
    calibrate(CalibrationOptions(budget_s=400.0, out=tmp_path, simulate=False), tools=World().tools())
    found = entry_of("imaginary-4c-cpu", tmp_path)
    assert found.calibration == "imaginary-4c"
    laws = errors_of(found)
    assert any(law["name"] == "operation tokenise" and law["p90_error"] is not None for law in laws)
    tables = [entry for entry in inventory(tmp_path) if isinstance(entry.profile, StepTable)]
    table = next(entry for entry in tables if "imaginary" in entry.profile.name)
    assert table.calibration == "imaginary-4c"


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("power.idle_w", 70.0, "70.0 W"),
        ("kernels.gemm.bf16.per_depth_s", 2.7e-10, "2.7e-10 s"),
        ("peak_flops_per_s.bf16", 9.89e14, "989 TFLOP/s"),
        ("rent_usd_per_h", 4.76, "4.76 USD/h"),
        ("kernels.gemm.bf16.bandwidth_fraction", 0.9, "0.9"),
        ("capex_usd", None, "unknown"),
        ("bytes_per_s", 1.17e10, "11.7 GB/s"),
        ("kernels.all_reduce.bytes_per_s", 2.03e11, "203 GB/s"),
        ("host_s_per_sequence_and_peer", 9.164e-07, "916 ns"),
        ("host_s_per_expert_layer.fused", 9.248e-06, "9.25 µs"),
        ("products.flops_per_core_per_s.bf16", 1.5e11, "150 GFLOP/s"),
        ("representations.text.bytes_per_token", 3.6, "3.6 B"),
        ("embodied_kgco2", 1500.0, "1500 kg CO2"),
        ("operations.my_s.contention_slowdown", 1.3, "1.3"),
    ],
)
def test_figures_are_told_with_the_unit_that_their_name_ends_in(path: str, value: float | None, text: str) -> None:
    assert told(path, value) == text


# What a figure may be in whose name these letters stand, the first that fits: figures by precision have it inside.
SHOWN_IN = (
    (r"flops_per_(core_per_)?s\b", "FLOP/s"), (r"bytes_per_s$", "B/s"), (r"joules_per_flop$", "J/FLOP"),
    (r"joules_per_\w*byte$", "J/B"), (r"joules_per_", "J"), (r"usd_per_h$", "USD/h"), (r"usd$", "USD"), (r"kgco2$", "kg CO2"),
    (r"\bhost_s_per_|_s$", "s"), (r"_w$", "W"), (r"_hz$", "Hz"), (r"bytes_per_|_bytes$", "B"), (r"", ""),
)  # fmt: skip


def test_no_figure_of_a_shipped_profile_is_shown_with_a_wrong_unit() -> None:
    """Nor without the one that its name says: a value, a prefix and that unit, and nothing for counts and fractions."""
    wrong = {}
    for entry in inventory():
        for path, figure in entry.figures.items():
            unit = next(unit for letters, unit in SHOWN_IN if re.search(letters, path))
            number = r"-?[\d.]+(e[-+]\d+)?"
            right = rf"{number} [TGMkmµn]?{unit}" if unit else number
            for value in (figure.value, figure.low, figure.high):
                if value is not None and not re.fullmatch(right, told(path, value)):
                    wrong[path] = told(path, value)
    assert not wrong
