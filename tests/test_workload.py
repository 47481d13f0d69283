"""Tasks: traces as their owners publish them, distributions against their definitions, models from Hugging Face."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from systems import agents, generate_only, prepared_of

from hsim.description.catalogue import load_model
from hsim.description.huggingface import from_hugging_face
from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.prepared import Prepared, prepare
from hsim.workload.tasks import Task
from hsim.workload.traces import read_trace

# ---- traces


def azure_csv(ticks: list[int], lengths: list[tuple[int, int]]) -> str:
    """The Azure 2023 format as published: seven digits of fraction, CRLF."""
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for tick, (n_in, n_out) in zip(ticks, lengths, strict=True):
        seconds, fraction = divmod(tick, 10**7)
        hours, minutes = 18 + seconds // 3600, seconds // 60 % 60
        rows.append(f"2023-11-16 {hours:02d}:{minutes:02d}:{seconds % 60:02d}.{fraction:07d},{n_in},{n_out}")
    return "\r\n".join(rows) + "\r\n"


@pytest.fixture
def requests() -> tuple[list[int], list[tuple[int, int]]]:
    """Arrivals in ticks of 0.1 microseconds over two hours, and lengths."""
    rng = np.random.default_rng(5)
    ticks = np.sort(rng.integers(0, 2 * 3600 * 10**7, 200)).tolist()
    return ticks, list(zip(rng.integers(1, 8000, 200).tolist(), rng.integers(1, 1500, 200).tolist(), strict=True))


@pytest.mark.parametrize("name", ["azure.csv", "azure.csv.gz", "plain.csv", "plain.csv.gz"])
def test_traces_are_read_to_the_last_digit(name: str, requests: Any, tmp_path: Path) -> None:
    ticks, lengths = requests
    if name.startswith("azure"):
        text = azure_csv(ticks, lengths)
    else:
        rows = [f"{Decimal(t).scaleb(-7)},{n_in},{n_out}" for t, (n_in, n_out) in zip(ticks, lengths, strict=True)]
        text = "\n".join(["arrival_s,input_tokens,output_tokens", *rows])
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    trace = read_trace(tmp_path / name)
    assert trace.arrival_s.tolist() == [(t - ticks[0]) / 10**7 for t in ticks]
    assert list(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)) == lengths


def test_a_trace_out_of_order_is_put_in_order_and_equals_stay_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n7,1,1\n5,2,2\n7,3,3\n\n5,4,4\n")
    trace = read_trace(tmp_path / "t.csv")
    assert trace.arrival_s.tolist() == [0, 0, 2, 2]
    assert trace.input_tokens.tolist() == [2, 4, 1, 3]


def replay(folder: Path, settings: list[str], **kind: Any) -> Prepared:
    """A trace of four requests, replayed."""
    (folder / "t.csv").write_text(
        "arrival_s,input_tokens,output_tokens,note\n3,100,10,x\n4,200,20,y\n5.5,300,30,\n9,400,40,\n"
    )
    data = generate_only()
    data["workload"] = {
        "arrivals": {"kind": "trace", "file": "t.csv"},
        "classes": {"all": {"max_output_tokens": 100, **kind}},
    }
    (folder / "s.yaml").write_text(json.dumps(data))
    return prepare(resolve(*load(folder / "s.yaml", settings)))


def test_a_trace_is_replayed_as_it_was(tmp_path: Path) -> None:
    tasks = replay(tmp_path, []).drawn.tasks
    assert [t.arrival_s for t in tasks] == [0, 1, 2.5, 6]
    assert [(t.rounds[0].input_tokens, t.rounds[0].output_tokens) for t in tasks] == [
        (100, 10),
        (200, 20),
        (300, 30),
        (400, 40),
    ]
    assert [len(t.rounds) for t in tasks] == [1] * 4


def test_rate_scale_2_makes_the_same_requests_arrive_twice_as_fast(tmp_path: Path) -> None:
    tasks = replay(tmp_path, ["workload.arrivals.rate_scale=2"]).drawn.tasks
    assert [t.arrival_s for t in tasks] == [0, 0.5, 1.25, 3]
    assert [t.rounds[0].input_tokens for t in tasks] == [100, 200, 300, 400]


def test_tasks_limits_a_trace_and_a_class_may_bring_its_own_lengths(tmp_path: Path) -> None:
    tasks = replay(tmp_path, ["workload.tasks=3"], output_tokens=7).drawn.tasks
    assert [(t.rounds[0].input_tokens, t.rounds[0].output_tokens) for t in tasks] == [(100, 7), (200, 7), (300, 7)]
    assert len(replay(tmp_path, ["workload.tasks=30"]).drawn.tasks) == 4


def test_answers_longer_than_their_limit_are_cut_and_counted(tmp_path: Path) -> None:
    prepared = replay(tmp_path, [], max_output_tokens=25)
    assert [t.output_tokens for t in prepared.drawn.tasks] == [10, 20, 25, 25]
    assert prepared.drawn.truncated == 2
    assert replay(tmp_path, [], max_output_tokens=40).drawn.truncated == 0


# ---- distributions, within their sampling error

COUNT = 20_000


def draw(workload: dict[str, Any], **more: Any) -> list[Task]:
    data = agents() | more
    (kind,) = data["workload"]["classes"].values()
    data["workload"] |= {"tasks": COUNT, "classes": {"agent": kind | workload}}
    return prepared_of(data).drawn.tasks


def assert_near(estimate: float, expected: float, standard_error: float) -> None:
    """Within four and a half standard errors, and these are small enough to mean something."""
    assert standard_error < 0.05 * expected
    assert abs(estimate - expected) < 4.5 * standard_error, f"{estimate} +- {standard_error}, not {expected}"


def test_lognormal_lengths_have_their_median_and_p95() -> None:
    tasks = draw({"input_tokens": {"kind": "lognormal", "median": 900, "p95": 3000}, "rounds": 1})
    lengths = [task.rounds[0].input_tokens for task in tasks]
    for p, expected in ((0.5, 900), (0.95, 3000)):
        # The share below a true quantile is binomial; lengths are rounded, so half of those equal to it count.
        below = np.mean([n < expected for n in lengths]) + 0.5 * np.mean([n == expected for n in lengths])
        assert_near(float(below), p, math.sqrt(p * (1 - p) / COUNT))
    sigma = math.log(3000 / 900) / 1.6448536269514722
    mean = 900 * math.exp(sigma**2 / 2)
    assert_near(float(np.mean(lengths)), mean, mean * math.sqrt((math.exp(sigma**2) - 1) / COUNT))


def test_geometric_rounds_have_their_mean_and_shape() -> None:
    tasks = draw({"rounds": {"kind": "geometric", "mean": 3}})
    rounds = [len(task.rounds) for task in tasks]
    assert min(rounds) == 1
    assert_near(float(np.mean(rounds)), 3, math.sqrt(6 / COUNT))  # variance (1 - p) / p^2 with p = 1/3
    assert_near(float(np.mean([n == 1 for n in rounds])), 1 / 3, math.sqrt(2 / 9 / COUNT))


def test_poisson_arrivals_have_their_rate_and_no_memory() -> None:
    arrivals = np.array([task.arrival_s for task in draw({"rounds": 1})])
    gaps = np.diff(arrivals)
    assert (gaps > 0).all()
    assert_near(float(gaps.mean()), 1 / 40, 1 / 40 / math.sqrt(COUNT))
    assert_near(float((gaps > 1 / 40).mean()), math.exp(-1), math.sqrt(math.exp(-1) * (1 - math.exp(-1)) / COUNT))
    assert abs(float(np.corrcoef(gaps[1:], gaps[:-1])[0, 1])) < 4.5 / math.sqrt(COUNT)


def test_classes_have_their_shares_and_tools_their_weights() -> None:
    data = agents()
    (kind,) = data["workload"]["classes"].values()
    data["workload"]["tasks"] = COUNT
    data["workload"]["classes"] = {"a": kind | {"share": 3, "rounds": 1}, "b": kind | {"share": 1, "rounds": 1}}
    tasks = prepared_of(data).drawn.tasks
    assert_near(float(np.mean([t.class_name == "a" for t in tasks])), 0.75, math.sqrt(0.75 * 0.25 / COUNT))
    tools = Counter(r.call.tool for t in tasks for r in t.rounds if r.call)
    assert tools.total() == COUNT
    for name, weight in {"vector-search-1m": 2, "python-exec": 1, "slow-api": 1}.items():
        p = weight / 4
        assert_near(tools[name] / COUNT, p, math.sqrt(p * (1 - p) / COUNT))
    # Class, tool and lengths are drawn apart: no class gets the long prompts, no tool the early tasks.
    lengths = np.array([t.rounds[0].input_tokens for t in tasks], float)
    of_a = np.array([t.class_name == "a" for t in tasks], float)
    calls = np.array([t.rounds[0].call is not None and t.rounds[0].call.tool == "python-exec" for t in tasks], float)
    for x, y in ((lengths, of_a), (lengths, calls), (of_a, calls), (np.arange(COUNT), calls)):
        assert abs(float(np.corrcoef(x, y)[0, 1])) < 4.5 / math.sqrt(COUNT)


def test_only_tools_that_wait_outside_do() -> None:
    tasks = draw({"rounds": 2})
    waits = [(r.call.tool, r.call.outside_wait_s) for t in tasks for r in t.rounds if r.call]
    assert all((wait_s > 0) == (tool == "slow-api") for tool, wait_s in waits)
    slow = [wait_s for tool, wait_s in waits if tool == "slow-api"]
    p = 0.95
    assert_near(float(np.mean([s < 0.4 for s in slow])), p, math.sqrt(p * (1 - p) / len(slow)))


def test_the_first_round_may_go_without_a_tool() -> None:
    with_tool = draw({"rounds": 3})
    without = draw({"rounds": 3, "first_round_tool": False})
    assert all(task.rounds[0].call for task in with_tool)
    assert not any(task.rounds[0].call for task in without)
    for a, b in zip(with_tool, without, strict=True):
        assert a.rounds[1:] == b.rounds[1:]
        assert a.arrival_s == b.arrival_s


def test_tasks_arrive_in_order_of_their_ids_and_know_only_their_own_class() -> None:
    data = agents()
    (kind,) = data["workload"]["classes"].values()
    data["workload"]["tasks"] = 500
    data["workload"]["classes"] = {
        "a": kind | {"max_output_tokens": 10},
        "b": kind | {"max_output_tokens": 20, "understand": None},
    }
    tasks = prepared_of(data).drawn.tasks
    assert [t.id for t in tasks] == list(range(500))
    assert all(a.arrival_s < b.arrival_s for a, b in pairwise(tasks))
    for task in tasks:
        assert task.max_output_tokens == {"a": 10, "b": 20}[task.class_name]
        assert all(1 <= r.output_tokens <= task.max_output_tokens for r in task.rounds)
        assert (task.understand_tokens > 0) == (task.class_name == "a")


# ---- models

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": False, "rope_theta": 5e5,
}  # fmt: skip


def test_a_hugging_face_config_is_the_model_of_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    mine = from_hugging_face(tmp_path / "config.json")
    data = generate_only(tensor_parallel=4) | {"model": str(tmp_path / "config.json")}
    shipped = prepared_of(data | {"model": "llama-3.1-70b"}).system.model
    where_from = {"name", "source", "hugging_face"}
    assert mine.model_dump(exclude=where_from) == shipped.model_dump(exclude=where_from)
    assert prepared_of(data).system.model == mine
    assert shipped.parameters == 70_553_706_496  # as published for Llama-3.1-70B
    assert shipped.kv_elements_per_token * 2 == 327_680  # bytes in bf16: 2 * 80 layers * 8 heads * 128 * 2


FAMILIES = {
    "mixtral-8x7b": {
        "model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
        "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None, "tie_word_embeddings": False,
    },
    "gemma-2-2b": {
        "model_type": "gemma2", "num_hidden_layers": 26, "hidden_size": 2304, "intermediate_size": 9216,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
        "max_position_embeddings": 8192, "sliding_window": 4096,
    },
}  # fmt: skip
PARAMETERS = {"mixtral-8x7b": 46.7e9, "gemma-2-2b": 2.61e9}  # as published


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_and_windows_are_read_as_the_catalogue_has_them(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[name]))
    mine = from_hugging_face(tmp_path / "config.json")
    shipped = load_model(name, "test", Path())
    where_from = {"name", "source", "hugging_face"}
    assert mine.model_dump(exclude=where_from) == shipped.model_dump(exclude=where_from)
    assert mine.parameters == pytest.approx(PARAMETERS[name], rel=0.01)


def test_a_config_may_leave_out_what_follows_from_the_rest(tmp_path: Path) -> None:
    config = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {
        "head_dim": 64,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = from_hugging_face(tmp_path / "config.json")
    assert (model.kv_heads, model.head_dim, model.tied_embeddings) == (64, 64, True)


@pytest.mark.parametrize(
    "window", [{"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, {"sliding_window": None}]
)
def test_a_window_that_is_not_used_is_no_window(window: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | window))
    assert from_hugging_face(tmp_path / "config.json").layers == 80
