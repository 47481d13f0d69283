"""Every shipped profile and model loads; every server with accelerators serves a small scenario or says which figure it lacks."""

import math
import re
from pathlib import Path

import pytest
from systems import generate_only, prepared_of, run

from hsim.description.catalogue import load_model, load_profile, shipped
from hsim.description.hardware import PROFILE_KINDS, EngineProfile, ServerProfile
from hsim.description.model import ModelArchitecture
from hsim.description.yamlfile import read_document
from hsim.errors import DescriptionError

PROFILES = sorted(file.stem for file in shipped("hardware_profiles").glob("*.yaml"))
MODELS = sorted(file.stem for file in shipped("models").glob("*.yaml"))
KINDS = {name: read_document(shipped("hardware_profiles") / f"{name}.yaml").data["kind"] for name in PROFILES}
SERVERS = [name for name in PROFILES if KINDS[name] == "server"]
ENGINES = [name for name in PROFILES if KINDS[name] == "engine"]

# Weights in billions, as their makers give them: a wrong dimension in a model's entry moves them.
PUBLISHED_BILLIONS = {
    "llama-2-7b": 6.74, "llama-2-70b": 68.98, "llama-3.1-8b": 8.03, "llama-3.1-70b": 70.55, "llama-3.1-405b": 405.85,
    "llama-3.2-1b": 1.24, "llama-4-scout": 107.8, "llama-4-maverick": 400.7, "qwen3-8b": 8.19, "qwen3-32b": 32.76,
    "qwen3-30b-a3b": 30.53, "qwen3-235b-a22b": 235.1, "qwen3-coder-480b-a35b": 480.2, "gemma-3-12b": 11.8, "gemma-3-27b": 27.0,
    "mistral-7b": 7.25, "mistral-small-24b": 23.6, "mixtral-8x7b": 46.7, "gpt-oss-120b": 116.8, "gpt-oss-20b": 20.9,
    "deepseek-v3": 671.0, "nemotron-nano-9b-v2": 8.89, "qwen3.5-397b-a17b": 396.0,
    "starcoder2-15b": 15.96, "bloom-176b": 176.2, "nemotron-nano-12b-v2": 12.31, "kimi-k2": 1026.0, "glm-4.6": 353.0, "minimax-m2": 229.0,
    "qwen2.5-7b": 7.62, "qwen2.5-32b": 32.76, "qwen2.5-72b": 72.71, "qwen3-next-80b-a3b": 79.7,
}  # fmt: skip
ACTIVE_BILLIONS = {
    "gpt-oss-120b": 5.1,
    "gpt-oss-20b": 3.6,
    "deepseek-v3": 37.0,
    "qwen3-30b-a3b": 3.0,
    "qwen3-235b-a22b": 21.6,
}


def servers_that_generate() -> list[str]:
    return [name for name in SERVERS if load_profile(name, ServerProfile, "test")[0].accelerators]


@pytest.mark.parametrize("name", PROFILES)
def test_profile_loads_under_its_own_name(name: str) -> None:
    profile = load_profile(name, PROFILE_KINDS[KINDS[name]], "test")[0]
    assert profile.name == name


@pytest.mark.parametrize("name", MODELS)
def test_model_has_the_weights_that_its_maker_says(name: str) -> None:
    model = load_model(name, "test", Path())
    assert model.name == name
    if name in PUBLISHED_BILLIONS:
        assert model.parameters / 1e9 == pytest.approx(PUBLISHED_BILLIONS[name], rel=0.01)
    if name in ACTIVE_BILLIONS:
        assert model.active_parameters / 1e9 == pytest.approx(ACTIVE_BILLIONS[name], rel=0.04)


def test_hugging_face_names_stand_for_one_architecture_each() -> None:
    seen: dict[str, ModelArchitecture] = {}
    for name in MODELS:
        model = load_model(name, "test", Path())
        for hugging_face in model.hugging_face:
            assert hugging_face not in seen
            seen[hugging_face] = model
    assert len(seen) > len(MODELS)


LACKS = {
    "jetson-agx-orin": "jetson-orin.*peak_flops_per_s.bf16.*is unknown",
    "groq-rack-576": "leave 0.0 GB for weights.*keeps all of its memory for the engine",
    "a10g-1": "a10g.*peak_flops_per_s.bf16.*is unknown",
    "mac-m1-pro": "m1-pro.*peak_flops_per_s.bf16.*is unknown",
    "amd-epyc-2c-core-server": "engines keep 3 cores of each amd-epyc-2c-core-server, which has 2",
    "intel-xeon-2c-core-server": "engines keep 3 cores of each intel-xeon-2c-core-server, which has 2",
    "cerebras-cs3-4": "cerebras-wse3.*is unknown",
    "prefill-server-8": "prefill-card is made for prefill, and pool 'decode' has to decode; let it be stages.prefill",
}


@pytest.mark.parametrize("server", servers_that_generate())
def test_server_serves_a_small_model_or_says_what_it_lacks(server: str) -> None:
    data = generate_only(tensor_parallel=1) | {"model": "qwen3-0.6b"}
    data["fleet"] = {"gpu-tier": {"server": server, "count": 1}}
    if server in LACKS:
        with pytest.raises(DescriptionError) as refused:
            prepared_of(data)
        assert re.search(LACKS[server], str(refused.value))
        return
    finished = run(prepared_of(data))
    assert (finished.visits["served_s"] > 0).all()
    assert (finished.steps["seconds"] > 0).all()


def test_unknown_links_refuse_more_than_one_chip_and_an_assumption_lets_them_run() -> None:
    data = generate_only(tensor_parallel=8) | {"model": "qwen3-0.6b"}
    data["fleet"] = {"gpu-tier": {"server": "tpu-v5e-8", "count": 1}}
    with pytest.raises(DescriptionError, match="all_reduce"):
        prepared_of(data)
    reduce = {"launch_s": 1e-6, "per_peer_s": 1e-7, "bytes_per_s": 1e11}
    data["assume"] = {"tpu-v5e": {"kernels": {"all_reduce": reduce}}}
    assert prepared_of(data).replicas["decode"].kv_blocks


@pytest.mark.parametrize("server", ["tpu-v5e-8", "mac-m4-max"])
def test_unpublished_power_is_unavailable_and_not_zero(server: str) -> None:
    data = generate_only(tensor_parallel=1) | {"model": "qwen3-0.6b"}
    data["fleet"] = {"gpu-tier": {"server": server, "count": 1}}
    prepared = prepared_of(data)
    finished = run(prepared)
    assert all(math.isnan(j) for j in finished.steps["joules"])
    assert any("joules_per_byte" in name for name in prepared.system.figures.unknown)


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_has_no_negative_time_and_names_what_was_measured_of_it(engine: str) -> None:
    profile: EngineProfile = load_profile(engine, EngineProfile, "test")[0]
    for name in (name for name in EngineProfile.model_fields if name.startswith("host_s_per_")):
        figure = getattr(profile, name)
        if isinstance(figure, dict):
            assert all(each.value is not None and each.value >= 0 for each in figure.values())
            continue
        assert figure is None or (figure.value is not None and figure.value >= 0)
    assert profile.measured_paths or profile.step_tables
