"""Profiles and a scenario of this machine as files: written whole or not at all, and read back before anybody relies on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from hsim.calibrate.agenda import Served
from hsim.calibrate.page import calibration_page, told_unavailable
from hsim.calibrate.profiles import Findings, Profile, sections
from hsim.calibrate.store import write_atomically
from hsim.costs.shapes import StepCosts, StepShape
from hsim.description.hardware import PROFILE_KINDS
from hsim.description.yamlfile import parse_document, validated

LOAD = 0.4  # of the busier of the two pools in local.yaml: busy, with room for bursts
ROUNDS, INPUT_TOKENS, OUTPUT_TOKENS = 2, 120, 40
# Tools of local.yaml: small enough for one core. The operation, how many units, and its weight among the tools.
TOOLS = {
    "lookup": ("sql-aggregate", 10_000, 0.3),
    "search": ("flat-search", 10_000, 0.3),
    "read": ("full-text-search", 1_000, 0.2),
    "run": ("python-process", 1, 0.1),
    "ask": ("http-call", 1, 0.1),
}
UNDERSTAND = ("encode-minilm", "tokenise")  # the first that was measured
UNDERSTAND_TOKENS = 48


def yaml_text(profile: Profile, findings: Findings) -> str:
    """A profile as its file, checked to be one that hsim reads."""
    head = (
        f"# Made by `hsim calibrate` on {findings.machine.date} from calibration/{findings.name}, and remade by it: to change\n"
        "# a figure, copy this file under another name, or assume another value in the scenario.\n"
    )
    plain = json.loads(json.dumps(profile))
    text = head + yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=118, allow_unicode=True)
    validated(parse_document(text, f"{profile['name']}.yaml"), PROFILE_KINDS[profile["kind"]])
    return text


def write_profiles(out: Path, findings: Findings) -> list[Path]:
    """All profiles, checked before the first is written. Raises CalibrationError where the disk does not take them."""
    texts = {out / "hardware_profiles" / f"{n}.yaml": yaml_text(p, findings) for n, p in findings.profiles.items()}
    for file, text in texts.items():
        write_atomically(file, text)
    return list(texts)


def write_fit(folder: Path, findings: Findings, more: dict[str, Any]) -> Path:
    """fit.json: every law with its errors, what could not be had, and what no profile has a place for."""
    content = {
        "machine": asdict(findings.machine),
        "laws": [asdict(law) for law in findings.laws],
        "unavailable": findings.unavailable,
        **findings.extra,
        **more,
    }
    write_atomically(folder / "fit.json", json.dumps(content, indent=2) + "\n")
    return folder / "fit.json"


def write_report(folder: Path, findings: Findings) -> Path:
    """report.html: every curve against its points."""
    title = f"Calibration {findings.name}"
    parts = [*sections(findings), told_unavailable(findings.unavailable)]
    write_atomically(folder / "report.html", calibration_page(title, findings.machine, findings.laws, parts))
    return folder / "report.html"


def local_scenario(findings: Findings, served: Served, names: tuple[str, str], costs: StepCosts) -> str:
    """A scenario of small agents on this machine, at a load that it bears; `names` are those of server and engine."""
    server, engine = names
    operations: dict[str, Any] = findings.profiles[f"{findings.name}-cpu"]["operations"]
    tools = {name: tool for name, tool in TOOLS.items() if tool[0] in operations}
    understand = next((op for op in UNDERSTAND if op in operations), None)
    agents = bool(tools or understand)
    task: dict[str, Any] = {"rounds": {"kind": "geometric", "mean": ROUNDS}}
    if understand:
        tokens = {"kind": "lognormal", "median": UNDERSTAND_TOKENS, "p95": 4 * UNDERSTAND_TOKENS}
        task["understand"] = {"op": understand, "tokens": tokens}
    if tools:
        task["tools"] = {name: weight for name, (_, _, weight) in tools.items()}
    task["input_tokens"] = {"kind": "lognormal", "median": INPUT_TOKENS, "p95": 3 * INPUT_TOKENS}
    task["output_tokens"] = {"kind": "lognormal", "median": OUTPUT_TOKENS, "p95": 3 * OUTPUT_TOKENS}
    task["max_output_tokens"] = 8 * OUTPUT_TOKENS
    agents_s = _agents_seconds(operations, understand, list(tools.values()))
    rate_per_s = LOAD / max(agents_s, _decoder_seconds(costs, served))
    cores = findings.machine.cores
    # A live run keeps a core for its loop and one for the decoder where there are more than two: tools have the others.
    left = {"cores": cores - 2} if cores > 2 else {}
    pools: dict[str, Any] = {"agents": {"runs_on": "here.cpu", **left}} if agents else {}
    pools["decode"] = {"runs_on": "here.gpu", "engine": engine, "precision": served.precision}
    stages = {"understand": "agents"} if understand else {}
    stages |= {"tool": "agents"} if tools else {}
    scenario = {
        "model": served.model.name,
        "workload": {
            "arrivals": {"kind": "poisson", "rate_per_s": float(f"{rate_per_s:.2g}")},
            "tasks": 200,
            "classes": {"small-agent": task},
        },
        "fleet": {"here": {"server": server, "count": 1}},
        "pools": pools,
        "stages": stages | {"generate": "decode"},
        "tools": {name: {"operation": op, "units": units} for name, (op, units, _) in tools.items()},
    }
    question = (
        f"# How does this machine ({findings.machine.cpu}) itself serve small agents? Made by `hsim calibrate`.\n"
    )
    return question + yaml.safe_dump(scenario, sort_keys=False, default_flow_style=None, width=118)


def _agents_seconds(operations: Profile, understand: str | None, tools: Sequence[tuple[str, int, float]]) -> float:
    """Core-seconds of a task of local.yaml outside the decoder, by the fitted costs."""

    def seconds(name: str, units: float) -> float:
        law = operations[name]
        squared = law.get("per_unit_squared_s", {"value": 0.0})["value"]
        return float(law["base_s"]["value"] + units * (law["per_unit_s"]["value"] + units * squared))

    weights = sum(weight for _, _, weight in tools)
    call_s = sum(weight * seconds(op, units) for op, units, weight in tools) / weights if tools else 0.0
    return (seconds(understand, 1.5 * UNDERSTAND_TOKENS) if understand else 0.0) + ROUNDS * call_s


def _decoder_seconds(costs: StepCosts, served: Served) -> float:
    """Decoder-seconds of a task of local.yaml, if a quarter of the slots decode together."""
    together = max(1, served.slots // 4)
    tokens = min(int(1.5 * INPUT_TOKENS), served.max_num_batched_tokens)
    prompt_s = costs.segment(StepShape(0, 0, 1, tokens, tokens, tokens * (tokens + 1) // 2)).seconds
    decode_s = costs.segment(StepShape(together, together * (tokens + OUTPUT_TOKENS))).seconds / together
    return ROUNDS * (prompt_s + 1.5 * OUTPUT_TOKENS * decode_s)
