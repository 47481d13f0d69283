"""Chips of another kind: SRAM by the hundred in pipelines, and cards for prompts or for decoding alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from systems import generate_only, prepared_of, run

from hsim.costs.composed import ComposedCosts, Placement
from hsim.costs.memory import kv_capacity_tokens
from hsim.costs.shapes import StepShape
from hsim.description.catalogue import load_model, load_profile
from hsim.description.hardware import AcceleratorProfile, EngineProfile, ServerProfile
from hsim.description.scenario import load
from hsim.description.system import Figures, resolve
from hsim.drivers.prepared import prepare
from hsim.errors import DescriptionError
from hsim.runs import system_of

FREE_HOPS = {"groq-lpu.kernels.hop.launch_s": 0.0, "groq-lpu.kernels.hop.bytes_per_s": 1e30}


def pipeline(stages: int, ways: int = 1, model: str = "llama-3.1-8b", groups: int = 1) -> Placement:
    chip = load_profile("groq-lpu", AcceleratorProfile, "test")[0]
    engine = load_profile("static-schedule", EngineProfile, "test")[0]
    architecture = load_model(model, "test", Path())
    return Placement(architecture, chip, engine, ways, "bf16", groups, pipeline_parallel=stages)


def held(placement: Placement) -> bool:
    try:
        return kv_capacity_tokens(placement, 1.0, Figures({}), "test") >= 1
    except DescriptionError:
        return False


@pytest.mark.parametrize(("model", "ways"), [("llama-3.1-8b", 1), ("llama-3.1-8b", 8), ("llama-3.1-70b", 4)])
def test_so_many_chips_hold_a_model_and_one_fewer_do_not(model: str, ways: int) -> None:
    """The number that the error names, beside arithmetic of weights and one token over what each chip gives."""
    with pytest.raises(DescriptionError) as refused:
        kv_capacity_tokens(pipeline(1, ways, model), 1.0, Figures({}), "test")
    named = re.search(
        r"it takes (\d+) of them; use pipeline_parallel (\d+) with tensor_parallel (\d+)", str(refused.value)
    )
    assert named
    least, stages, at_ways = map(int, named.groups())
    architecture = pipeline(1, 1, model).model
    needed_bytes = 2 * (architecture.parameters + architecture.kv_elements_per_token)
    assert (least - 1) * (230e6 - 23e6) < needed_bytes <= least * (230e6 - 23e6)
    assert held(pipeline(least, 1, model))
    assert not held(pipeline(least - 1, 1, model))
    assert at_ways == ways
    assert held(pipeline(stages, ways, model))
    assert not held(pipeline(stages - 1, ways, model))


@pytest.mark.parametrize("shape", [
    StepShape(24, 30_000), StepShape(0, 0, 12, 1200, 1800, 90_000, 120_000), StepShape(24, 9000, 12, 1200, 1200, 60_600),
])  # fmt: skip
def test_a_full_pipeline_does_what_as_many_groups_would_but_for_its_hops(shape: StepShape) -> None:
    stages = ComposedCosts(pipeline(12, 8), Figures(FREE_HOPS)).segment(shape)
    groups = ComposedCosts(pipeline(1, 8, groups=12), Figures({})).segment(shape)
    for name in ("seconds", "seconds_growth", "joules", "joules_growth", "context_joules"):
        assert getattr(stages, name) == pytest.approx(getattr(groups, name), rel=1e-12), name
    hops = ComposedCosts(pipeline(12, 8), Figures({})).segment(shape)
    n_bytes = 2 * 4096 * shape.new_tokens / 12
    assert hops.seconds - stages.seconds == pytest.approx(12 * (1e-6 + n_bytes / 42e9), rel=1e-9)


def test_alone_a_sequence_passes_one_stage_after_another_while_the_others_rest() -> None:
    """As long as on one stage's chips, were these large enough; with the watts of all, and the work of one."""
    shape = StepShape(1, 1000)
    whole, stages = (ComposedCosts(pipeline(n, 8), Figures(FREE_HOPS)) for n in (1, 12))
    assert stages.segment(shape).seconds == pytest.approx(whole.segment(shape).seconds, rel=1e-12)
    assert stages.work(shape) == pytest.approx(whole.work(shape), rel=1e-12)
    above_w = 150 - 95
    extra_j = 11 * 8 * above_w * whole.segment(shape).seconds
    assert stages.segment(shape).joules - whole.segment(shape).joules == pytest.approx(extra_j, rel=1e-9)


def test_no_pipeline_beats_the_peaks_of_its_chips() -> None:
    for stages in (1, 7, 72):
        costs = ComposedCosts(pipeline(stages, 8), Figures({}))
        for decodes in (1, 5, 72, 500):
            shape = StepShape(decodes, 700 * decodes)
            n_bytes, flops, _ = costs.work(shape)
            seconds = costs.segment(shape).seconds
            assert n_bytes / seconds <= 8 * stages * 80e12
            assert flops / seconds <= 8 * stages * 188e12
    with pytest.raises(
        DescriptionError, match="h100-sxm has no figures for a hop between stages; use pipeline_parallel 1"
    ):
        prepared_of(generate_only(pipeline_parallel=2))


@pytest.mark.parametrize("architecture", ["sram", "prefill-gpu-decode-sram", "prefill-cards"])
def test_the_shipped_scenario_keeps_its_books_stepwise_and_coalesced(architecture: str) -> None:
    few = ["workload.tasks=25", "workload.measure=terminating"]
    prepared = prepare(system_of("special-chips", [f"architecture={architecture}", *few]))
    done, slow = run(prepared), run(prepared, stepwise=True)
    for table in ("tasks", "transfers"):
        for column, values in done.tables[table].items():
            assert (values == slow.tables[table][column]).all(), f"{table}.{column}"
    result = done.result()
    assert result.energy is not None
    assert result.energy.ledger_gap_fraction <= 1e-9
    assert any("pipeline is taken to be full" in w for w in result.warnings) == ("sram" in architecture)
    assert (result.money is None) == ("sram" in architecture)  # nobody published a price


def special(tmp_path: Path, phases: list[str], settings: list[str] | None = None, **stages: Any) -> Any:
    """A system whose decode pool, and prefill pool where it has one, run on a chip that is made for `phases`."""
    chip = load_profile("h100-sxm", AcceleratorProfile, "test")[0]
    folder = tmp_path / "hardware_profiles"
    folder.mkdir(exist_ok=True)
    made = json.loads(chip.model_dump_json(exclude_none=True)) | {"name": "special", "phases": phases}
    (folder / "special.yaml").write_text(json.dumps(made))
    server = load_profile("hgx-h100-8", ServerProfile, "test")[0].model_dump(mode="json")
    server |= {"name": "special-8", "accelerators": {"chip": "special", "count": 8}}
    (folder / "special-8.yaml").write_text(json.dumps(server))
    data = generate_only(prefix_caching=False)
    data["fleet"]["special-tier"] = {"server": "special-8", "count": 1}
    data["pools"]["special"] = {"runs_on": "special-tier.gpu", "replicas": 1, "prefix_caching": False}
    data["stages"] = stages
    data["links"] = {"special-decode": "ethernet-100g"}
    (tmp_path / "s.yaml").write_text(json.dumps(data))
    return resolve(*load(tmp_path / "s.yaml", settings or []))


def test_a_chip_made_for_one_phase_serves_no_other(tmp_path: Path) -> None:
    assert special(tmp_path, ["prefill"], prefill="special", generate="decode")
    with pytest.raises(DescriptionError, match="special is made for prefill, and pool 'special' has to decode"):
        special(tmp_path, ["prefill"], generate="special")
    assert special(tmp_path, ["decode"], prefill="decode", generate="special")
    with pytest.raises(
        DescriptionError, match="special is made for decode, and pool 'special' has to prefill; let another"
    ):
        special(tmp_path, ["decode"], generate="special")


def test_a_chip_made_for_decoding_never_has_to_prefill_again(tmp_path: Path) -> None:
    few = ["assume.special.memory_bytes=25e9", "pools.special.max_num_seqs=200"]
    with pytest.raises(
        DescriptionError, match=r"special cannot prefill again who is preempted; use (\d+) or fewer"
    ) as refused:
        prepare(special(tmp_path, ["decode"], few, prefill="decode", generate="special"))
    most = int(re.search(r"use (\d+) or fewer", str(refused.value)).group(1))  # type: ignore[union-attr]
    few[1] = f"pools.special.max_num_seqs={most}"
    done = run(prepare(special(tmp_path, ["decode"], few, prefill="decode", generate="special")))
    assert not len(done.tables["preemptions"]["task"])
