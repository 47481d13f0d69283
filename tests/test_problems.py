"""Problems per joule are PPT times TPW, where the model's PPT is known at the precision that it runs in."""

from __future__ import annotations

import pytest
from rich.console import Console

from hsim import simulate, simulate_path
from hsim.report.tables import result_tables, study_tables

QWEN = ["model=qwen3-8b", "workload.tasks=20"]
R1 = ["model=deepseek-r1", "workload.tasks=8", "pools.decode.tensor_parallel=8", "fleet.gpu-tier.server=hgx-h200-8"]
PPT = 2.87e-4  # of models/qwen3-8b.yaml, on SuperGPQA


def printed(tables: object) -> str:
    console = Console(width=200, record=True, file=None)
    with console.capture() as captured:
        console.print(tables)
    return captured.get()


def test_problems_per_joule_are_ppt_times_tpw() -> None:
    result = simulate_path("agents-gpu-only", QWEN)
    (solved,) = result.problems
    assert result.energy
    assert solved.per_j.value == pytest.approx(PPT * result.energy.tpw_tokens_per_j["full"]["facility"], rel=1e-12)
    assert "solved per joule, if tokens go to SuperGPQA" in printed(result_tables(result))
    assert "problems" not in result.unavailable


def test_a_study_gives_the_interval_of_tpw() -> None:
    study = simulate("agents-gpu-only", QWEN, replications=3)
    assert study.energy
    tpw, (solved,) = study.energy.tpw_tokens_per_j["full"]["facility"], study.problems
    assert solved.per_j.half_width == pytest.approx(PPT * (tpw.half_width or 0))
    assert "Problems per MJ, SuperGPQA" in printed(study_tables(study))


def test_ppt_at_another_precision_is_not_taken() -> None:
    """DeepSeek-R1's is known in fp8_block, on two benchmarks; in bf16 it would be another model's."""
    at_fp8 = simulate_path("agents-gpu-only", [*R1, "pools.decode.precision=fp8_block"])
    assert len(at_fp8.problems) == 2
    assert at_fp8.problems[0].ppt_low < at_fp8.problems[0].ppt < at_fp8.problems[0].ppt_high
    in_bf16 = ["model=qwen3-8b", "workload.tasks=8", "pools.decode.precision=fp8"]
    other = simulate_path("agents-gpu-only", in_bf16)
    assert other.problems == ()
    assert other.unavailable["problems"] == "problems per token of qwen3-8b are known in bf16 alone"


def test_a_model_of_unknown_ppt_says_nothing_of_it() -> None:
    result = simulate_path("agents-gpu-only", ["workload.tasks=8"])
    assert result.problems == ()
    assert "problems" not in result.unavailable
