"""benchmarks/accuracy.py on made rows: what it predicts, what it refuses and counts, and that nothing makes it crash."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

pd = pytest.importorskip("pandas", reason="the benchmarks' extra is not installed")
pytest.importorskip("pyarrow", reason="the benchmarks' extra is not installed")
pytest.importorskip("scipy", reason="the benchmarks' extra is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import accuracy  # noqa: E402
import cells  # noqa: E402
import rows as measured  # noqa: E402

SERVING: dict[str, Any] = {
    "row_id": "r", "source": "made", "gpu": "H100-SXM-80GB", "model": "meta-llama/Llama-3.1-8B-Instruct", "n_gpus": 1,
    "weight_precision": "bf16", "engine": "vllm", "engine_version": "0.18.0", "tp": 1, "ep": 1, "dp": 1, "workload": "w",
    "concurrency": 4, "avg_batch_size": None, "input_tokens_mean": 100, "output_tokens_mean": 40, "output_throughput_tok_s": 500,
    "output_throughput_derived": False, "ttft_mean_ms": 40, "itl_median_ms": None, "tpot_mean_ms": 8, "energy_J_per_output_token": 0.8,
    "avg_power_W": 400, "quality_note": "",
}  # fmt: skip
GEMM: dict[str, Any] = dict.fromkeys(measured.SCHEMAS["kernels"]) | {
    "row_id": "k", "gpu": "H100-SXM-80GB", "op": "gemm", "dtype": "bf16", "gemm_m": 64, "gemm_n": 4096, "gemm_k": 4096, "time_ms": 0.02,
}  # fmt: skip
STEP: dict[str, Any] = {
    "row_id": "s", "source": "made", "gpu": "H100-SXM-80GB", "tp": 1, "model": "meta-llama/Llama-3.1-8B", "precision": "bf16",
    "engine": "vllm 0.19.0", "phase": "decode", "batch": 8, "prompt_tokens_per_seq": None, "context_tokens_per_seq": 500, "step_time_ms": 8,
}  # fmt: skip
REQUEST: dict[str, Any] = {
    "run": "one", "gpu": "H100-SXM-80GB", "model": "meta-llama/Llama-3.1-8B", "tp": 1, "dp": 1, "max_num_seqs": 16,
    "max_num_batched_tokens": 2048, "vllm_version": "0.19.0", "request_id": "a", "arrival_s": 0, "input_tokens": 100, "output_tokens": 20,
    "ttft_ms": 50, "tpot_ms": 8, "e2e_ms": 210, "source": "made",
}  # fmt: skip


def write(folder: Path, name: str, base: dict[str, Any], *changes: dict[str, Any], drop: str | None = None) -> None:
    table = pd.DataFrame([base | {"row_id": f"r{i}"} | change for i, change in enumerate(changes)])
    table.drop(columns=[drop] if drop else []).to_csv(folder / name, index=False)


def scored(folder: Path, capsys: Any, *arguments: str) -> tuple[int, str, Any]:
    """The exit code, what was printed, and the table of predictions."""
    out = folder / "out.parquet"
    code = accuracy.main(["--data", str(folder), "--out", str(out), *arguments])
    return code, capsys.readouterr().out, pd.read_parquet(out) if out.exists() else pd.DataFrame()


def refused(printed: str) -> dict[str, int]:
    """Counts of the refusals printed, by reason."""
    return {
        reason: int(count)
        for count, reason in re.findall(r"^ +(\d+) \w+ +(.+)$", printed.partition("Refused")[2], re.MULTILINE)
    }


def test_a_serving_row_is_simulated_and_every_measured_quantity_has_its_error(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, "measured_serving.csv", SERVING, {}, {"output_throughput_derived": True, "concurrency": 8})
    code, printed, table = scored(tmp_path, capsys)
    assert code == 1  # the other schemas' files are not there, and that is said
    assert "not scored: mlperf" in printed
    assert sorted(table.quantity) == ["J/token"] * 2 + ["TPOT"] * 2 + ["TTFT"] * 2 + ["throughput"] + ["watts"] * 2
    assert table.predicted.gt(0).all()
    assert (table.error - (table.predicted / table.measured - 1)).abs().max() < 1e-12
    tpot = table[table.quantity == "TPOT"].iloc[0]
    assert tpot.roofline < tpot.predicted  # nothing is faster than bytes over bandwidth
    assert tpot.three_coefficients == pytest.approx(1.65 * tpot.roofline - 1.06e-3 + 0.054e-3 * 4, rel=1e-9)
    assert not tpot.fitted_on  # vllm.yaml was fitted on the 70B and on gpt-oss
    parts = tpot[[name for name in table if name.startswith(cells.PARTS)]].sum()
    assert parts == pytest.approx(tpot.predicted, rel=0.1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "acme/Frontier-9T"}, "no model 'acme/Frontier-9T': add models/<name>.yaml whose hugging_face names it, from its config.json"),
        ({"gpu": "R100-SXM-1TB"}, "no profile of GPU R100-SXM-1TB: add it to benchmarks/accelerators.py and hardware_profiles/"),
        ({"engine": "lmdeploy"}, "no profile of engine lmdeploy: known are"),
        ({"weight_precision": "int3"}, "weights in int3 are not modelled"),
        ({"gpu": "A100-SXM-80GB", "weight_precision": "fp8"}, "llama-3.1-8b: a100-80g-sxm has no figures for fp8"),
        ({"model": "meta-llama/Llama-3.1-405B"}, "llama-3.1-405b in bf16 does not fit into 1 x h100-sxm"),
        ({"output_tokens_mean": None}, "output_tokens_mean is NaN"),
        ({"model": None}, "model is NaN"),
        ({"tpot_mean_ms": 0.008}, "tpot_mean_ms is outside 0.2 to 5000: another unit?"),
        ({"avg_power_W": 0.4}, "avg_power_W is outside 5 to 200000: another unit?"),
        ({"tp": "two"}, "tp is not a number"),
        ({"energy_J_per_output_token": 80}, "tokens/s times J a token is not the watts: another unit?"),
        ({"output_throughput_tok_s": 5e5, "avg_power_W": None}, "tokens/s times seconds a token is not the sequences in flight: another unit?"),
        ({"tpot_mean_ms": 4999, "output_throughput_tok_s": None}, "TPOT: 50 times from any prediction: another unit?"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_scored_is_refused_by_its_reason_and_the_others_are_scored(
    tmp_path: Path, capsys: Any, change: dict[str, Any], reason: str
) -> None:
    write(tmp_path, "measured_serving.csv", SERVING, {}, change)
    _, printed, table = scored(tmp_path, capsys)
    found = refused(printed)
    assert [count for text, count in found.items() if text.startswith(reason)] == [1], found
    assert (table.row_id == "r0").any()


def test_a_missing_column_refuses_its_file_counts_its_rows_and_leaves_the_other_schemas(
    tmp_path: Path, capsys: Any
) -> None:
    write(tmp_path, "measured_serving.csv", SERVING, {}, {"tp": 2}, drop="tpot_mean_ms")
    write(tmp_path, "measured_steps.csv", STEP, {}, {"batch": 16})
    code, printed, table = scored(tmp_path, capsys)
    assert code == 1
    assert "column tpot_mean_ms is missing; the serving schema needs it" in printed
    assert refused(printed)["measured_serving.csv has no column tpot_mean_ms"] == 2
    assert set(table.schema) == {"steps"}


def test_columns_all_of_nan_files_of_nothing_and_other_text_are_refused_not_raised(tmp_path: Path, capsys: Any) -> None:
    nothing = dict.fromkeys(SERVING)
    write(tmp_path, "measured_serving.csv", nothing, {}, {"gpu": "x"})
    (tmp_path / "measured_steps.csv").write_text("")
    (tmp_path / "mlperf_llm.csv").write_bytes(b"\xff\xfe\x00\x80")
    write(tmp_path, "b200_kernels.csv", GEMM, {"time_ms": None}, {"gemm_k": None}, {"op": "conv"}, {"dtype": "int2"})
    code, printed, table = scored(tmp_path, capsys)
    assert code == 1
    assert table.empty
    for text in ("is no table", "Predicted 0 values", "time_ms is NaN", "an operation that hsim has no law for"):
        assert text in printed


def test_kernels_steps_and_requests_are_scored_by_the_shipped_profiles(tmp_path: Path, capsys: Any) -> None:
    kernels = (
        {},
        {"gemm_m": 1024, "time_ms": 0.08},
        {"gpu": "NVIDIA B200", "time_ms": 0.01},
        {"gpu": "Z1"},
        {"time_ms": 20.0},
    )
    write(tmp_path, "any_kernels.csv", GEMM, *kernels)
    write(
        tmp_path,
        "measured_steps.csv",
        STEP,
        {},
        {"step_time_ms": 0.051},
        {"model": "no/such"},
        {"context_tokens_per_seq": None},
    )
    write(tmp_path, "request_level_made.csv", REQUEST, {}, {"request_id": "b", "arrival_s": 0.1})
    _, printed, table = scored(tmp_path, capsys)
    assert (table.schema == "kernels").sum() == 3
    assert (table.schema == "steps").sum() == 1
    assert table[table.schema == "request_level"].quantity.value_counts().to_dict() == {
        "TTFT": 2,
        "TPOT": 2,
        "end to end": 2,
    }
    found = refused(printed)
    assert found["no data sheet of GPU Z1"] == 1
    assert found["seconds: 50 times from any prediction: another unit?"] == 1
    assert found["the size that its phase needs is NaN"] == 1
    assert "not scored: request_level" not in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--exclude-architecture", "frontier-9t"], "no model 'frontier-9t'"),
        (["--exclude-gpu", "R100"], "there is no GPU 'R100'; rows name H100-SXM-80GB"),
    ],
)
def test_what_is_to_be_left_out_must_be_known(tmp_path: Path, capsys: Any, arguments: list[str], says: str) -> None:
    with pytest.raises(SystemExit):
        accuracy.main(["--data", str(tmp_path), *arguments])
    assert says in capsys.readouterr().err


def test_a_refit_without_rows_to_fit_on_says_so(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, "measured_serving.csv", SERVING, {})
    assert accuracy.main(["--data", str(tmp_path), "--leave-one-out"]) == 2
    assert "give the rows to fit on with --fit-data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Qwen/Qwen3-32B-FP8", "qwen3-32b"), ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "llama-3.3-70b"),
        ("nvidia/DeepSeek-R1-0528-NVFP4", "deepseek-r1"), ("unsloth/gemma-3-27b-it", "gemma-3-27b"), ("llama-3.1-8b", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
    ],
)  # fmt: skip
def test_a_model_is_known_by_other_words_for_it(name: str, model: str) -> None:
    assert measured.catalogue()[name].name == model


@pytest.mark.parametrize("name", ["Qwen/Qwen3-320B", "meta-llama/Llama-3.1-80B", "google/gemma-4-27b-it", ""])
def test_a_model_of_another_size_or_generation_is_not_taken_for_a_known_one(name: str) -> None:
    assert measured.catalogue().get(name) is None


def test_the_term_to_blame_is_the_one_that_was_made_wrong() -> None:
    """Measured seconds are the parts' sum with the exchanges halved: that is what blame finds."""
    parts = pd.DataFrame({f"{cells.PARTS}products": [8.0, 9, 10, 9, 8], f"{cells.PARTS}exchanges": [1.0, 4, 2, 8, 6]})
    total = parts.sum(axis=1)
    table = parts.assign(predicted=total, measured=total - parts[f"{cells.PARTS}exchanges"] / 2)
    table = table.assign(error=table.predicted / table.measured - 1)
    term, effect = cells.blame(table)
    assert term == "exchanges"
    assert effect.startswith("x 0.50 ")
    assert cells.blame(table.head(3))[0] == "unknown"
