"""The JSON schema of scenarios, for editors that check and complete YAML."""

from __future__ import annotations

import json
from typing import Any

from hsim.description.scenario import Scenario

CHOOSABLE = ("FleetTier", "CorePool", "EnginePool")  # where a list stands for choices


def scenario_schema() -> str:
    """The schema as JSON text, draft 7, which is what editors know."""
    schema = Scenario.model_json_schema()
    for name in CHOOSABLE:
        properties = schema["$defs"][name]["properties"]
        properties.update({key: _or_choices(inner) for key, inner in properties.items()})
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "hsim scenario"}
    return json.dumps(head | {k: _plain(v) for k, v in schema.items() if k != "title"}, indent=1) + "\n"


def _or_choices(node: dict[str, Any]) -> dict[str, Any]:
    """One value, or a list of values to choose from, as `hsim plan` reads it."""
    return {"anyOf": [node, {"type": "array", "items": node, "minItems": 1}]}


def _plain(node: Any) -> Any:
    """The schema without the titles that pydantic makes of names, and docstrings as one line of text each paragraph.

    A choice that no key decides is `anyOf`: a pool with nothing but runs_on fits pools of cores and of engines alike,
    which `oneOf` would refuse.
    """
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {}
    for key, value in node.items():
        if key == "oneOf" and "discriminator" not in node:
            plain["anyOf"] = _plain(value)
        elif key == "description" and isinstance(value, str):
            plain[key] = "\n\n".join(" ".join(part.split()) for part in value.split("\n\n"))
        elif key in ("properties", "$defs"):
            plain[key] = {name: _plain(inner) for name, inner in value.items()}
        elif key != "title" or not isinstance(value, str):
            plain[key] = _plain(value)
    return plain
