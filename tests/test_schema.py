"""The JSON schema of scenarios is current, and takes what hsim takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from hsim.description.scenario import Scenario
from hsim.description.schema import scenario_schema
from hsim.description.yamlfile import read_document

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "schemas" / "scenario.schema.json"
SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))


def accepts(data: Any) -> bool:
    return bool(Draft7Validator(json.loads(SCHEMA.read_text())).is_valid(data))


def scenario(**changes: Any) -> dict[str, Any]:
    return read_document(ROOT / "scenarios" / "agents-split.yaml").data | changes


def test_the_committed_schema_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == json.loads(scenario_schema()), "hsim schema > schemas/scenario.schema.json"
    Draft7Validator.check_schema(json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda file: file.stem)
def test_shipped_scenarios_fit_it_and_name_it(file: Path) -> None:
    assert accepts(read_document(file).data)
    (named,) = [line for line in file.read_text().splitlines() if line.startswith("# yaml-language-server: $schema=")]
    assert (file.parent / named.partition("=")[2]).resolve() == SCHEMA


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": {"arrivals": {"kind": "poisson"}, "tasks": 5}},
        {"workload": {"arrivals": {"kind": "sometimes", "rate_per_s": 5}, "tasks": 5}},
        {"slo": {"ttft": {"max_s": 2}}},
        {"pools": {"decode": {"runs_on": "gpu-tier.gpu", "max_num_seq": 5}}},
        {"seed": "one"},
        {"sead": 1},
    ],
)
def test_it_refuses_what_hsim_refuses(changes: dict[str, Any]) -> None:
    assert accepts(scenario())
    assert not accepts(scenario(**changes))
    with pytest.raises(ValueError):
        Scenario.model_validate(scenario(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"pools": {"agents": {"runs_on": "cpu-tier.cpu"}, "decode": {"runs_on": "gpu-tier.gpu"}}},
        {"assume": {"hgx-h100-8": {"base_w": 900, "psu": {"efficiency": 0.9}}, "a.b": 1}},
        {"workload": {"arrivals": {"kind": "uniform", "rate_per_s": 1}, "tasks": 1, "classes": {"a": {"input_tokens": 5, "output_tokens": {"kind": "exponential", "mean": 5, "at_most": 9}}}}},
    ],
)  # fmt: skip
def test_it_takes_what_is_written_short(changes: dict[str, Any]) -> None:
    """Numbers for constants, assumptions nested or dotted, pools that say only where they run."""
    assert accepts(scenario(**changes))
    Scenario.model_validate(scenario(**changes))


def test_every_choice_is_explained() -> None:
    definitions = json.loads(SCHEMA.read_text())["$defs"]
    assert "TaskClass" in definitions
    assert not [name for name, it in definitions.items() if "properties" in it and not it.get("description")]
    assert "vLLM's benchmark" in definitions["GammaArrivals"]["description"]
