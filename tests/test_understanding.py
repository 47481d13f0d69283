"""Understanding by a model: an encoder or a small language model, on an accelerator or on cores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import agents, prepared_of, run, system_of

from hsim.costs.composed import ComposedCosts, Placement
from hsim.costs.cores import CoreCosts, CorePlacement
from hsim.costs.shapes import StepShape
from hsim.drivers import simulated
from hsim.errors import DescriptionError
from hsim.log import Stage

ENCODER = {"runs_on": "gpu-tier.gpu", "model": "minilm-l6", "replicas": 1}
SLM = {"runs_on": "gpu-tier.gpu", "model": "qwen3-0.6b", "replicas": 1}
ON_CORES = {"runs_on": "cpu-tier.cpu", "engine": "vllm-cpu", "model": "qwen3-0.6b", "cores_per_replica": 16}
POOLS = {"encoder": ENCODER, "slm": SLM, "slm-on-cores": ON_CORES}


def understood_by(pool: dict[str, Any], tasks: int = 12, tokens: Any = 100, **understand: Any) -> dict[str, Any]:
    """Agents whose understanding a pool's model does."""
    data = agents(split=True)
    data["workload"]["tasks"] = tasks
    data["workload"]["classes"]["agent"]["understand"] = {"tokens": tokens, **understand}
    data["pools"]["reader"] = pool
    data["stages"]["understand"] = "reader"
    data["links"] |= {"agents-reader": "ethernet-100g"}
    if pool["runs_on"] == "cpu-tier.cpu":
        data["links"] |= {"reader-decode": "ethernet-100g"}
    return data


def test_a_text_alone_takes_one_pass_in_which_every_token_attends_every_other() -> None:
    """The composed pass of n tokens and n^2 pairs, to the last bit; a decoder's would attend about half as many."""
    data = understood_by(ENCODER, tasks=1, tokens=300)
    finished = run(prepared_of(data))
    system = finished.prepared.system
    chip = system.tier_of("reader").chip
    assert chip
    composed = ComposedCosts(
        Placement(system.models["reader"], chip, system.engines["reader"], 1, "bf16"), system.figures
    )
    passed = composed.segment(StepShape(0, 0, 1, 300, 300, 300 * 300))
    visit = finished.visits_of(stage=Stage.UNDERSTAND)
    assert (visit["served_s"] - visit["started_s"]).tolist() == [passed.seconds]
    (index,) = finished.log.pools["reader"].devices
    assert finished.steps_of(index)["joules"].tolist() == [passed.joules]
    assert passed.seconds > composed.segment(StepShape(0, 0, 1, 300, 300, 300 * 301 // 2)).seconds
    flops = 2 * 300 * system.models["reader"].layer_parameters
    assert passed.seconds > flops / chip.peak_flops_per_s["bf16"].value  # type: ignore[operator]


def test_texts_that_wait_for_an_encoder_go_together_and_whole() -> None:
    data = understood_by(ENCODER, tasks=40, tokens={"kind": "uniform", "low": 50, "high": 400})
    data["workload"]["arrivals"]["rate_per_s"] = 20_000
    data["pools"]["reader"] = {**ENCODER, "max_num_batched_tokens": 1000, "max_num_seqs": 8}
    finished = run(prepared_of(data))
    (index,) = finished.log.pools["reader"].devices
    steps, visits = finished.steps_of(index), finished.visits_of(stage=Stage.UNDERSTAND)
    assert len(steps["steps"]) < 20  # they were batched
    assert steps["chunk_tokens"].max() <= 1000
    for start, end, tokens in zip(steps["start_s"], steps["end_s"], steps["chunk_tokens"], strict=True):
        together = (visits["started_s"] == start) & (visits["served_s"] == end)  # nobody's text is cut in two
        assert visits["input_tokens"][together].sum() == tokens


def test_a_small_model_on_cores_takes_its_prefill_and_its_steps_and_its_cores_joules() -> None:
    """Alone: every step is CoreCosts' own, and the joules are those of its busy cores, of nobody else's."""
    data = understood_by(ON_CORES, tasks=1, tokens=200, instruction_tokens=50, output_tokens=9)
    finished = run(prepared_of(data))
    spec = finished.prepared.replicas["reader"]
    seconds = spec.costs.segment(StepShape(0, 0, 1, 250, 250, 250 * 251 // 2)).seconds
    for k in range(8):
        seconds += spec.costs.segment(StepShape(1, 251 + k)).seconds
    visit = finished.visits_of(stage=Stage.UNDERSTAND)
    service_s = float((visit["served_s"] - visit["started_s"])[0])
    assert service_s == pytest.approx(seconds, rel=1e-12)
    host = finished.prepared.hosts["cpu-tier"]
    busy = spec.host_cores
    assert busy == 17  # its own, and the one that vLLM reserves
    assert visit["host_dynamic_j"][0] == pytest.approx(host.dynamic_w(busy) * service_s, rel=1e-9)
    assert visit["dynamic_j"][0] == 0
    assert visit["host_idle_j"][0] == pytest.approx(busy * host.idle_w / host.cores * service_s, rel=1e-9)


def test_an_instruction_that_all_share_is_prefilled_once() -> None:
    """The first task computes it, later ones find it in the cache: whole blocks of it."""
    data = understood_by(SLM, tasks=4, tokens=40, instruction_tokens=160, output_tokens=2)
    data["workload"]["arrivals"] = {"kind": "uniform", "rate_per_s": 1}
    finished = run(prepared_of(data))
    (index,) = finished.log.pools["reader"].devices
    prefills = finished.steps_of(index)
    computed = prefills["chunk_tokens"][prefills["chunk_tokens"] > 0]
    assert computed.tolist() == [200, 40, 40, 40]


def test_what_understanding_writes_is_not_delivered_to_users() -> None:
    data = understood_by(SLM, output_tokens=20)
    finished = run(prepared_of(data))
    answers = sum(task.output_tokens for task in finished.prepared.drawn.tasks)
    assert finished.result().output_tokens == answers
    assert finished.visits_of(stage=Stage.UNDERSTAND)["output_tokens"].sum() == 0


@pytest.mark.parametrize("name", POOLS)
def test_coalesced_equals_stepwise_whoever_understands(name: str) -> None:
    data = understood_by(POOLS[name], tasks=15, tokens={"kind": "uniform", "low": 20, "high": 400}, output_tokens=12)
    data["workload"]["arrivals"]["rate_per_s"] = 100
    prepared = prepared_of(data)
    coalesced, stepwise = (simulated.run(prepared, stepwise).arrays() for stepwise in (False, True))
    for table in ("tasks", "visits"):
        for column, values in coalesced[table].items():
            exact = not column.endswith("_j")
            assert np.allclose(values, stepwise[table][column], rtol=0 if exact else 1e-9, atol=0, equal_nan=True), (
                column
            )
    assert len(stepwise["steps"]["steps"]) > len(coalesced["steps"]["steps"])


@pytest.mark.parametrize("name", POOLS)
def test_books_balance_and_every_joule_of_a_pool_is_understandings(name: str) -> None:
    """The ledger law is asserted within; what the reader's device drew at work is booked to understanding."""
    result = run(prepared_of(understood_by(POOLS[name], output_tokens=5))).result()
    assert result.energy
    booked = {(account, kind): joules for account, kind, joules in result.energy.accounts}
    assert booked["understand: host cores", "dynamic"] > 0
    assert (booked["understand", "dynamic"] > 0) == (name != "slm-on-cores")  # there the cores draw everything
    stage = next(s for s in result.stages if s.stage == "understand")
    assert (stage.pool, stage.visits_per_task) == ("reader", 1.0)


@settings(max_examples=40, deadline=None)
@given(
    decodes=st.integers(0, 64),
    context=st.integers(1, 4000),
    chunks=st.integers(0, 4),
    chunk=st.integers(1, 600),
    cores=st.sampled_from([1, 16, 96, 192]),
)
def test_steps_on_cores_beat_no_roof_and_their_segments_are_their_steps(
    decodes: int, context: int, chunks: int, chunk: int, cores: int
) -> None:
    if not decodes and not chunks:
        decodes = 1
    system = system_of(understood_by(ON_CORES))
    tier, model = system.tiers["cpu-tier"], system.models["reader"]
    costs = CoreCosts(CorePlacement(model, tier, system.engines["reader"], cores, "bf16"), system.figures)
    tokens = chunks * chunk
    shape = StepShape(
        decodes, decodes * context, chunks, tokens, tokens, chunks * chunk * (chunk + 1) // 2, chunks * chunk**2
    )
    segment = costs.segment(shape)
    flops = 2 * (decodes + tokens) * model.layer_parameters
    fastest = 300e9 * cores  # the highest of the profile
    assert segment.seconds > flops / fastest
    assert segment.seconds > 2 * model.layer_parameters / (2 * 460.8e9)
    for k in range(1, int(min(segment.valid_steps, 30))):
        later = StepShape(
            decodes,
            decodes * (context + k),
            chunks,
            tokens,
            tokens * (1 + k),
            shape.pairs + k * shape.pairs_growth,
            shape.pairs_growth,
        )
        assert costs.segment(later).seconds == pytest.approx(segment.seconds + k * segment.seconds_growth, rel=1e-12)


def test_a_segment_on_cores_ends_where_the_other_side_of_the_roofline_takes_over() -> None:
    """Decoding many short contexts is bound by products; as they grow, reading them takes longer."""
    system = system_of(understood_by(ON_CORES))
    placement = CorePlacement(system.models["reader"], system.tiers["cpu-tier"], system.engines["reader"], 16, "bf16")
    costs = CoreCosts(placement, system.figures)
    first = costs.segment(StepShape(128, 128))
    assert 1 < first.valid_steps < math.inf
    last, beyond = (int(first.valid_steps) + k for k in (-1, 1))
    at_last = costs.segment(StepShape(128, 128 * (1 + last))).seconds
    assert at_last == pytest.approx(first.seconds + last * first.seconds_growth, rel=1e-9)
    assert costs.segment(StepShape(128, 128 * (1 + beyond))).seconds > first.seconds + beyond * first.seconds_growth


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pools": {"decode": {"runs_on": "gpu-tier.gpu", "model": "minilm-l6"}}}, "is an encoder, and cannot generate"),
        ({"stages": {"understand": "agents"}}, "is missing, and pool 'agents' understands on cores"),
        ({"pools": {"reader": {"runs_on": "cpu-tier.cpu", "engine": "vllm-cpu"}}}, "cores_per_replica is missing"),
        ({"pools": {"reader": {**SLM, "cores_per_replica": 4}}}, "cores_per_replica is for engines on a tier's .cpu"),
        ({"pools": {"reader": {**ON_CORES, "model": "gpt-oss-20b"}}}, "is no dense model"),
        ({"pools": {"reader": {**ON_CORES, "precision": "fp8"}}}, "epyc-9654 has no figures for fp8; it has bf16"),
        ({"pools": {"reader": {**ON_CORES, "cores_per_replica": 192}}}, "engines keep 193 cores of each epyc-9654-2s"),
        ({"pools": {"reader": {**ON_CORES, "model": "llama-3.1-8b", "cores_per_replica": 1}}}, "1 cores have 2.0 GB of memory"),
        ({"pools": {"reader": ENCODER}, "tokens": 600}, "takes 600 tokens of context, more than 512; clip"),
        ({"stages": {"tool": "reader"}}, "tool needs a pool that runs on a tier's .cpu, without an engine"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    pools = changes.get("pools", {})
    data = understood_by(pools.get("reader", SLM), tokens=changes.get("tokens", 100))
    data["pools"] |= pools
    data["stages"] |= changes.get("stages", {})
    with pytest.raises(DescriptionError) as refused:
        prepared_of(data)
    assert says in str(refused.value)
