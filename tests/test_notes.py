"""What a result says in words: the bottleneck, warnings, assumptions; and numbers that people can read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from systems import agents, generate_only, prepared_of, run, system_of

from hsim.metrics.result import Result
from hsim.runs import Options, as_json, path_of, study
from hsim.units import readable, readable_seconds


def result_of(data: dict[str, Any]) -> Result:
    return run(prepared_of(data)).result()


def slow(data: dict[str, Any]) -> dict[str, Any]:
    """So few arrivals that nothing waits."""
    data["workload"]["arrivals"]["rate_per_s"] = 0.01
    return data


def test_the_bottleneck_is_where_most_of_a_tasks_time_goes() -> None:
    served = result_of(slow(generate_only()))
    assert served.bottleneck.startswith("100% of a task's ")
    assert "goes in generate on pool decode (" in served.bottleneck

    data = slow(agents())
    data["tools"]["slow-api"]["outside_wait_s"] = 60
    assert "goes waiting for something outside in tool on pool agents (" in result_of(data).bottleneck

    data = agents(cores=1, replicas=8)
    data["workload"]["classes"]["agent"] |= {"tools": {"python-exec": 1}, "rounds": 1}
    data["workload"]["tasks"] = 100
    queued = result_of(data)
    assert "goes waiting for tool on pool agents (" in queued.bottleneck
    (use,) = (use for use in queued.pools if use.pool == "agents")
    assert use.busy_fraction > 0.95
    assert f"({use.busy_fraction:.0%} busy)" in queued.bottleneck
    assert any(w.startswith("pool agents is full") and "queue may grow without end" in w for w in queued.warnings)

    data = slow(agents())
    data["payload"] = {"bytes_per_token": 1e10}
    assert "goes moving to " in result_of(data).bottleneck


def test_warnings_come_when_they_are_due_and_only_then() -> None:
    calm = slow(generate_only())
    calm["workload"]["classes"]["chat"]["max_output_tokens"] = 500
    assert result_of(calm).warnings == ()
    burst = generate_only()
    burst["workload"]["arrivals"]["rate_per_s"] = 1e4
    assert any("after the last arrival, and arrivals took" in w for w in result_of(burst).warnings)
    calm["workload"]["classes"]["chat"]["max_output_tokens"] = 5
    (cut,) = result_of(calm).warnings
    drawn = prepared_of(calm).drawn
    assert drawn.truncated > 0
    assert cut == f"{drawn.truncated} of the drawn answers were longer than max_output_tokens and were cut there"


def test_every_rough_figure_and_every_default_that_mattered_is_told() -> None:
    data = generate_only(max_num_seqs=7) | {"site": {"pue": 1.1}, "assume": {"vllm": {"host_s_per_layer": 2e-5}}}
    told = {a.name: a for a in result_of(data).assumptions}
    assert told["vllm.host_s_per_layer"].value == "2e-05"
    assert told["vllm.host_s_per_layer"].why == "assumed: the scenario's `assume`"
    assert told["hgx-h100-8.base_w"].value == "1000 (500 to 1700)"
    assert told["pools.decode.max_num_batched_tokens"].value == "8192"
    assert {"site.usd_per_kwh", "site.gco2_per_kwh", "pools.decode.gpu_memory_utilization"} <= set(told)
    assert not {"site.pue", "pools.decode.max_num_seqs", "pools.decode.replicas"} & set(told)
    assert told["vllm.reserved_bytes"].why.startswith("assumed: CUDA context")
    assert "h100-sxm.memory_bytes" not in told, "published without bounds: nothing to tell"


def test_a_result_is_data() -> None:
    result = result_of(agents())
    data = result.as_dict()
    assert data["energy"]["tst_j"]["full"]["facility"] == result.energy.total_j / result.tasks
    assert data["stages"][0]["stage"] == "understand"
    assert len(data["scenario_sha256"]) == 64
    assert result_of(agents()).scenario_sha256 == result.scenario_sha256
    assert result_of(agents() | {"seed": 1}).scenario_sha256 != result.scenario_sha256


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "J", "0 J"), (math.nan, "J", "–"), (12_345, "J", "12.3 kJ"), (999.9, "W", "1.00 kW"), (0.25, "s", "250 ms"),
        (1.5, "s", "1.50 s"), (-3e6, "J", "-3.00 MJ"), (2e-8, "s", "20.0 ns"), (5e15, "J", "5000 TJ"),
    ],
)  # fmt: skip
def test_numbers_are_readable(value: float, unit: str, expected: str) -> None:
    assert readable(value, unit) == expected


def test_durations_are_readable() -> None:
    assert [readable_seconds(s) for s in (0.25, 14.2, 119, 3498, 86_400)] == [
        "250 ms",
        "14.2 s",
        "119 s",
        "58.3 min",
        "24.0 h",
    ]


@pytest.mark.parametrize("replications", [1, 2])
def test_a_result_without_watts_is_json_all_the_same(replications: int) -> None:
    """A chip whose idle draw nobody published: what follows from it is null, and says why."""
    data = generate_only()
    data["fleet"]["gpu-tier"]["server"] = "mac-m4-max"
    data["workload"]["measure"] = "terminating"
    system = system_of(data)
    result = path_of(system) if replications == 1 else study(system, Options(replications, processes=1))
    told = json.loads(as_json(result))
    assert told["energy"] is None
    assert "m4-max" in told["unavailable"]["energy"]
    assert told["stages"][0]["dynamic_j"] is None
    assert told["stages"][0]["service_s"] > 0
