"""Systems for tests, built in code through the public schema, and runs of them."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from hsim.description.catalogue import load_model, load_tools
from hsim.description.hardware import Tool
from hsim.description.model import ModelArchitecture
from hsim.description.scenario import Scenario, load
from hsim.description.system import System, resolve
from hsim.description.yamlfile import Document, validated
from hsim.drivers.prepared import Prepared, prepare
from hsim.drivers.simulated import build
from hsim.engine.environment import EngineEnvironment
from hsim.engine.executor import Done, ModelledTime
from hsim.engine.life import Pipeline, run_tasks
from hsim.engine.replica import Replica
from hsim.log import Log, Stage
from hsim.metrics.result import Result
from hsim.metrics.summarise import summarise
from hsim.workload.tasks import draw_tasks

MODEL = "llama-3.1-8b"
UTILIZATION = 0.9


def system_of(data: dict[str, Any], settings: Sequence[str] = ()) -> System:
    """The system of a scenario given as data, by the way of a file: JSON is YAML."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test.yaml"
        file.write_text(json.dumps(data, indent=1))
        return resolve(*load(file, settings))


def prepared_of(data: dict[str, Any]) -> Prepared:
    return prepare(system_of(data))


@dataclass(frozen=True)
class Run:
    """A finished run, with the engine as it was left."""

    prepared: Prepared
    log: Log
    pipeline: Pipeline
    tables: dict[str, Any]

    @property
    def visits(self) -> Any:
        return self.tables["visits"]

    @property
    def steps(self) -> Any:
        return self.tables["steps"]

    def result(self) -> Result:
        return summarise(self.log, self.prepared.system, self.prepared.accounts, self.prepared.drawn)

    def visits_of(self, **equal: float) -> Any:
        """Rows of the visits whose columns have these values."""
        mine = np.all([self.visits[column] == value for column, value in equal.items()], axis=0)
        return {name: column[mine] for name, column in self.visits.items()}

    def preemptions_of(self, device: int) -> Any:
        mine = self.tables["preemptions"]["device"] == device
        return {name: column[mine] for name, column in self.tables["preemptions"].items()}

    def steps_of(self, device: int) -> Any:
        mine = self.steps["device"] == device
        return {name: column[mine] for name, column in self.steps.items()}


class Impatient(ModelledTime):
    """Modelled time that fails a run which does not end."""

    def __init__(self, env: EngineEnvironment, stepwise: bool = False) -> None:
        super().__init__(env, stepwise)
        self._left = 100_000

    def steps(self, replica: Replica, end_s: float, done: Done) -> None:
        self._left -= 1
        assert self._left, "the run does not end"
        super().steps(replica, end_s, done)


def run(prepared: Prepared, stepwise: bool = False) -> Run:
    """As hsim.drivers.simulated.run, but keeps the engine for questions."""
    env, log = EngineEnvironment(), Log()
    pipeline = build(env, log, prepared, Impatient(env, stepwise))
    run_tasks(env, log, pipeline, prepared.drawn.tasks)
    return Run(prepared, log, pipeline, log.arrays())


def memory_bytes_for(kv_tokens: float, tensor_parallel: int) -> float:
    """Bytes of one accelerator that leave a replica of MODEL so many tokens of KV cache, by the books of vllm.yaml."""
    model, ways = _model(), tensor_parallel
    weights, kv = 2.0 * model.parameters, 2.0 * model.kv_elements_per_token * max(1.0, ways / model.kv_heads)
    return (4e9 + (weights + kv * kv_tokens) / ways) / UTILIZATION


@cache
def _shipped_tools() -> dict[str, Tool]:
    return load_tools("test").tools


@cache
def _model() -> ModelArchitecture:
    return load_model(MODEL, "test", Path())


def with_kv(data: dict[str, Any], room: float) -> dict[str, Any]:
    """The scenario with KV cache for `room` times its largest visit, in whole blocks: 1 serves the largest alone."""
    scenario = validated(Document("test", data), Scenario)
    drawn = draw_tasks(scenario.workload, {**_shipped_tools(), **scenario.tools}, scenario.seed, Path())
    largest = max(r.input_tokens + t.max_output_tokens for t in drawn.tasks for r in t.rounds)
    changed = deepcopy(data)
    pool = changed["pools"][changed["stages"]["generate"]]
    pool["gpu_memory_utilization"] = UTILIZATION
    size = pool.setdefault("block_tokens", 16)
    # Half a token more, so that rounding does not decide.
    memory = memory_bytes_for(math.ceil(largest * room / size) * size + 0.5, pool.get("tensor_parallel", 1))
    changed.setdefault("assume", {}).setdefault("h100-sxm", {})["memory_bytes"] = memory
    return changed


def generate_only(**pool: Any) -> dict[str, Any]:
    """Prompts straight to one replica on one GPU server: the smallest system. Keywords set keys of its pool.

    Nothing passes between client and queue: a visit is ready when it arrives.
    """
    return {
        "model": MODEL,
        "workload": {
            "arrivals": {"kind": "poisson", "rate_per_s": 40},
            "tasks": 30,
            "classes": {
                "chat": {
                    "input_tokens": {"kind": "lognormal", "median": 150, "p95": 900},
                    "output_tokens": {"kind": "lognormal", "median": 12, "p95": 60},
                    "max_output_tokens": 64,
                }
            },
        },
        "fleet": {"gpu-tier": {"server": "hgx-h100-8", "count": 1}},
        "pools": {"decode": {"runs_on": "gpu-tier.gpu", "replicas": 1, **pool}},
        "stages": {"generate": "decode"},
        "assume": {"vllm": {"request_latency_s": 0}},
    }


def agents(split: bool = True, cores: int = 2, **pool: Any) -> dict[str, Any]:
    """Agents in rounds with understanding and tools, on a CPU server in front of the GPU server or on its own cores."""
    data = generate_only(**pool)
    data["workload"]["classes"] = {
        "agent": {
            "understand": {"op": "encode-minilm", "tokens": {"kind": "lognormal", "median": 200, "p95": 700}},
            "rounds": {"kind": "geometric", "mean": 2.5},
            "tools": {"vector-search-1m": 2, "python-exec": 1, "slow-api": 1},
            "input_tokens": {"kind": "lognormal", "median": 150, "p95": 600},
            "output_tokens": {"kind": "lognormal", "median": 10, "p95": 40},
            "max_output_tokens": 48,
        }
    }
    data["tools"] = {
        "slow-api": {"operation": "http-call", "outside_wait_s": {"kind": "lognormal", "median": 0.1, "p95": 0.4}}
    }
    data["pools"]["agents"] = {"runs_on": "cpu-tier.cpu" if split else "gpu-tier.cpu", "cores": cores}
    data["stages"] = {"understand": "agents", "tool": "agents", "generate": "decode"}
    if split:
        data["fleet"]["cpu-tier"] = {"server": "epyc-9654-2s", "count": 1}
        data["links"] = {"agents-decode": "ethernet-100g"}
    return data


def _lengths(draw: Any, lowest: int, highest: int) -> Any:
    median = draw(st.integers(lowest, highest))
    return draw(st.sampled_from([median, {"kind": "lognormal", "median": median, "p95": 4 * median}]))


def _task_class(draw: Any, tools: bool, understands: bool, long_answers: bool) -> dict[str, Any]:
    kind: dict[str, Any] = {
        "share": draw(st.sampled_from([0.5, 1, 3])),
        "rounds": draw(st.sampled_from([1, 2, {"kind": "geometric", "mean": 2.5}])),
        "input_tokens": _lengths(draw, 1, 60 if long_answers else 500),
        "output_tokens": _lengths(draw, 10, 60) if long_answers else _lengths(draw, 1, 25),
        "max_output_tokens": draw(st.integers(40, 80) if long_answers else st.integers(8, 60)),
        "first_round_tool": draw(st.booleans()),
        "context": draw(st.sampled_from(["declared", "grows"])),
    }
    if tools:
        named = draw(
            st.lists(st.sampled_from(["vector-search-1m", "python-exec", "slow-api"]), min_size=1, unique=True)
        )
        kind["tools"] = {name: draw(st.sampled_from([0.5, 1, 2])) for name in named}
    if understands:
        kind["understand"] = {"op": "encode-minilm", "tokens": _lengths(draw, 20, 400)}
    return kind


ROUTERS = (
    "round-robin", "least-outstanding", "join-shortest-queue", "least-outstanding-tokens", "power-of-two",
    "prefix-affinity", "least-energy",
)  # fmt: skip


@st.composite
def scenarios(draw: Any, crowded: bool = False, routers: Sequence[str] = ROUTERS) -> dict[str, Any]:
    """Small random scenarios with agentic rounds, tools, split and GPU-only. Crowded ones have queues everywhere."""
    split = draw(st.booleans())
    ways, gpu_servers = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (4, 1), (4, 2)]))
    data = agents(
        split,
        cores=draw(st.integers(1, 2 if crowded else 3)),
        tensor_parallel=ways,
        replicas=draw(st.integers(2 if crowded else 1, 3 if ways < 4 else 2 * gpu_servers)),
        max_num_seqs=draw(st.sampled_from([2, 3, 5, 64] if crowded else [1, 2, 6, 64])),
        max_num_batched_tokens=draw(st.sampled_from([8, 64, 300, 2048])),
        block_tokens=draw(st.sampled_from([1, 4, 16])),
        prefix_caching=draw(st.booleans()),
        router=draw(st.sampled_from(routers)),
    )
    data["seed"] = draw(st.integers(0, 10_000))
    data["fleet"]["gpu-tier"]["count"] = gpu_servers
    data["assume"]["xeon-8480c"] = {"contention_slowdown": draw(st.sampled_from([1, 1.3, 20]))}
    if split:
        data["assume"]["epyc-9654"] = {"contention_slowdown": draw(st.sampled_from([1, 1.3, 20]))}
        data["fleet"]["cpu-tier"]["count"] = draw(st.integers(1, 2))
        data["pools"]["agents"]["router"] = draw(st.sampled_from(["round-robin", "least-outstanding"]))
    if draw(st.booleans()):
        data["pools"]["front"] = {"runs_on": data["pools"]["agents"]["runs_on"], "cores": draw(st.integers(1, 2))}
        data["stages"]["understand"] = "front"
        if split:
            data["links"]["front-decode"] = "ethernet-100g"
    workload = data["workload"]
    workload["tasks"] = draw(st.integers(12, 24) if crowded else st.integers(2, 24))
    workload["arrivals"]["rate_per_s"] = draw(st.sampled_from([100, 1000] if crowded else [5, 50, 500]))
    long_answers = crowded and draw(st.booleans())  # they outgrow the KV cache
    workload["classes"] = {"a": _task_class(draw, True, not crowded, long_answers)}
    if draw(st.booleans()):
        workload["classes"]["b"] = _task_class(draw, draw(st.booleans()), draw(st.booleans()), long_answers)
    return with_kv(data, draw(st.sampled_from([1, 1.3, 2] if long_answers else [1, 1.3, 2.5, 50])))


@st.composite
def far_scenarios(draw: Any, crowded: bool = False, kept: bool = False) -> dict[str, Any]:
    """Small random scenarios at two sites, some with a model at the edge that keeps tasks, prices by the hour or not."""
    data = draw(scenarios(crowded))
    hours = [draw(st.floats(0, 1)) for _ in range(24)] if draw(st.booleans()) else None
    data["sites"] = {
        "edge": {"pue": 1.0, "hourly": {"gco2_per_kwh": hours} if hours else {}, "cost": {"basis": "own"}},
        "cloud": {"pue": 1.5, "usd_per_kwh": 0.1},
    }
    data["workload"]["arrives_at"] = "edge"
    data["site_links"] = {
        "cloud-edge": {
            "round_trip_s": draw(st.sampled_from([0.02, {"kind": "lognormal", "median": 0.02, "p95": 0.09}])),
            "bytes_per_s": draw(st.sampled_from([1e4, 1e7])),
            "loss_fraction": draw(st.sampled_from([0.0, 0.05, 0.4])),
            "joules_per_byte": 1e-3,
        }
    }
    data["fleet"]["gpu-tier"]["site"] = "cloud"
    if "cpu-tier" in data["fleet"]:
        data["fleet"]["cpu-tier"]["site"] = draw(st.sampled_from(["edge", "cloud"]))
        if data["fleet"]["cpu-tier"]["site"] == "edge":
            del data["links"]
    if kept or draw(st.booleans()):
        data["fleet"]["edge-tier"] = {"server": "l4-1", "count": 1, "site": "edge"}
        data["pools"]["small"] = {
            "runs_on": "edge-tier.gpu",
            "model": "llama-3.2-1b",
            "max_num_seqs": draw(st.integers(1, 4)),
        }
        data["keep"] = {
            "pool": "small",
            "policy": draw(st.sampled_from(["all", "by-confidence"])),
            "easy_fraction": 0.6,
            "router_accuracy": 0.8,
            "check_accuracy": draw(st.sampled_from([None, 0.7, 1.0])),
            "max_waiting": draw(st.sampled_from([None, 0, 2])),
        }
        if data["fleet"].get("cpu-tier", {}).get("site") == "edge":
            data["links"] = {f"{pool}-small": "ethernet-100g" for pool in data["pools"] if pool in ("agents", "front")}
    return data


def engine_devices(run: Run) -> list[Any]:
    """The replicas of the generate stage, in order."""
    return list(run.pipeline.pools[Stage.GENERATE].devices)
