"""Measured rows that cannot be scored are refused, counted, with the reason; a file without a column stops its part."""

import sys
from pathlib import Path

import pytest

pd = pytest.importorskip("pandas", reason="the benchmarks' extra is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import accelerators  # noqa: E402
import rows as measured  # noqa: E402

SERVING = {
    "row_id": "r", "source": "s", "gpu": "H100-SXM-80GB", "model": "m", "n_gpus": 1, "weight_precision": "bf16", "engine": "vllm",
    "engine_version": "0.18.0", "tp": 1, "ep": 1, "dp": 1, "workload": "w", "concurrency": 8, "avg_batch_size": 8, "input_tokens_mean": 100,
    "output_tokens_mean": 100, "output_throughput_tok_s": 500, "output_throughput_derived": False, "ttft_mean_ms": 40, "itl_median_ms": 10,
    "tpot_mean_ms": 10, "energy_J_per_output_token": 1.0, "avg_power_W": 400, "quality_note": "",
}  # fmt: skip


def file_of(folder: Path, *changes: dict[str, object]) -> Path:
    file = folder / "measured_serving.csv"
    table = pd.DataFrame([SERVING | {"row_id": f"r{i}"} | change for i, change in enumerate(changes)])
    table.to_csv(file, index=False)
    return file


def test_a_sound_row_is_read_and_nothing_refused(tmp_path: Path) -> None:
    refusals = measured.Refusals()
    assert len(measured.read(file_of(tmp_path, {}), "serving", refusals)) == 1
    assert not refusals.counts


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tpot_mean_ms": 0.01}, "tpot_mean_ms is outside 0.2 to 5000: another unit?"),
        ({"energy_J_per_output_token": 5e5}, "energy_J_per_output_token is outside 0.0001 to 1000: another unit?"),
        ({"output_tokens_mean": None}, "output_tokens_mean is NaN"),
        ({"tp": "two"}, "tp is not a number"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason_and_the_others_stay(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    refusals = measured.Refusals()
    rows = measured.read(file_of(tmp_path, {}, change, {"tp": 2}), "serving", refusals, ("output_tokens_mean",))
    assert len(rows) == 2
    assert refusals.counts == {("serving", reason): 1}


def test_the_same_row_twice_counts_once(tmp_path: Path) -> None:
    refusals = measured.Refusals()
    assert len(measured.read(file_of(tmp_path, {}, {}), "serving", refusals)) == 1
    assert refusals.counts == {("serving", "the same row twice"): 1}


def test_a_missing_column_stops_and_is_named(tmp_path: Path) -> None:
    file = file_of(tmp_path, {})
    pd.read_csv(file).drop(columns="tpot_mean_ms").to_csv(file, index=False)
    with pytest.raises(measured.Unreadable, match="column tpot_mean_ms is missing; the serving schema needs it"):
        measured.read(file, "serving", measured.Refusals())


@pytest.mark.parametrize(
    ("given", "sheet"),
    [
        ("B200-SXM-192GB", "b200"),
        ("NVIDIA H200-SXM-141GB", "h200-sxm"),
        ("L4-24GB", "l4"),
        ("L40S", "l40s"),
        ("A100-SXM4-40GB", "a100-40g-sxm"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA-H100-80GB-HBM3", "h100-sxm"),
        ("NVIDIA H100-PCIe-80GB", "h100-pcie"),
        ("GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_an_accelerator_is_known_by_how_its_name_begins(given: str, sheet: str) -> None:
    assert accelerators.BY_ROW[accelerators.row_name(given)].name == sheet


@pytest.mark.parametrize("given", ["TPU-v9", "NVIDIA H200-NVL-141GB", "B300-SXM-288GB", "MI355X"])
def test_an_unknown_accelerator_keeps_its_name(given: str) -> None:
    assert accelerators.row_name(given) == given
