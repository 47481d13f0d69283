"""Architectures of one scenario: how one is chosen, and how they are compared over a range of load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from systems import generate_only

from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.errors import DescriptionError
from hsim.plan.placement import Placed, place, rates_of
from hsim.report.figures import architectures
from hsim.report.page import placement_page
from hsim.report.tables import placement_tables
from hsim.runs import Options, as_json


def one_and_two() -> dict[str, Any]:
    """One scenario, served by one replica a server or by two: the second takes twice the load."""
    data = generate_only(max_num_seqs=4)
    data["workload"] |= {"tasks": 60, "arrivals": {"kind": "poisson", "rate_per_s": 1}}
    two = {"decode": {"runs_on": "gpu-tier.gpu", "replicas": 2, "max_num_seqs": 4}}
    data |= {
        "architecture": "one",
        "architectures": {"one": {}, "two": {"pools": two}},
        "counts": {"gpu-tier": [1]},
        "slo": {"e2e": {"max_s": 3, "p": 0.9}},
    }
    return data


def written(data: dict[str, Any], folder: Path) -> Path:
    file = folder / "placed.yaml"
    file.write_text(json.dumps(data, indent=1))
    return file


def test_an_architectures_sections_stand_in_place_of_the_scenarios_and_settings_go_on_top(tmp_path: Path) -> None:
    file = written(one_and_two(), tmp_path)
    one, two = (resolve(*load(file, [f"architecture={name}"])) for name in ("one", "two"))
    assert [s.engine_pools()["decode"].replicas for s in (one, two)] == [1, 2]
    assert (one.name, two.name) == (f"{file}, one", f"{file}, two")
    more = resolve(*load(file, ["pools.decode.replicas=3", "architecture=two"]))
    assert more.engine_pools()["decode"].replicas == 3
    with pytest.raises(
        DescriptionError, match="--set architecture=thee: architecture: there is no architecture 'thee'"
    ):
        load(file, ["architecture=thee"])


def test_a_fault_in_an_architecture_is_told_with_its_line(tmp_path: Path) -> None:
    data = one_and_two()
    data["architectures"]["two"]["pools"]["decode"]["max_num_seq"] = 4
    lines = written(data, tmp_path).read_text().splitlines()
    line = next(n for n, text in enumerate(lines, 1) if '"max_num_seq"' in text)
    with pytest.raises(DescriptionError, match=rf"placed.yaml:{line}: .*max_num_seq: unknown key"):
        load(tmp_path / "placed.yaml", ["architecture=two"])


def test_counts_are_the_fleets_that_are_tried(tmp_path: Path) -> None:
    """Of each tier that an architecture has; here none holds, so that all are looked at, cheapest first."""
    data = one_and_two() | {"counts": {"gpu-tier": [3, 1], "cpu-tier": [1, 2]}}
    data["slo"]["e2e"]["max_s"] = 0.001
    (point,) = place(Placed(written(data, tmp_path), ("one",), (1,)), Options(2, processes=1)).points
    assert point.found == ()
    assert [fleet.servers for fleet in point.comparison.fleets[0]] == [{"hgx-h100-8": 1}, {"hgx-h100-8": 3}]


@pytest.mark.parametrize(
    ("text", "rates"), [("1:16", [1, 2, 4, 8, 16]), ("3:10", [3, 6, 10]), ("4", [4]), ("1,5,2.5", [1, 5, 2.5])]
)
def test_rates_double_or_are_listed(text: str, rates: list[float]) -> None:
    assert rates_of(text) == tuple(rates)


@pytest.mark.parametrize("text", ["", "fast", "0:4", "1:inf", "-1,2"])
def test_rates_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        rates_of(text)


def test_a_range_of_rates_that_falls_is_refused_as_that_of_a_sweep_is() -> None:
    with pytest.raises(ValueError, match="'4:1' does not rise; write the smaller number first"):
        rates_of("4:1")
    assert rates_of("4:4") == (4,)


def test_each_stands_at_its_own_certified_fleet(tmp_path: Path) -> None:
    """One replica cannot serve what two can."""
    data = one_and_two()
    data["workload"]["classes"]["chat"] |= {"output_tokens": 60, "max_output_tokens": 60, "input_tokens": 100}
    asked = Placed(written(data, tmp_path), ("one", "two"), (12, 2))
    placement = place(asked, Options(3, processes=1, out=tmp_path / "out"))
    assert [point.rate_per_s for point in placement.points] == [2, 12]
    low, high = placement.points
    assert low.found == ("one", "two")
    assert high.found == ("two",)
    one, two = high.comparison.fleets
    assert {fleet.verdict for fleet in one} <= {"FAIL", "UNSTABLE"}
    assert [fleet.verdict for fleet in two] == ["PASS"]
    assert two[0].replications >= 40, "as the planner certifies p = 0.9, not by a handful of replications"
    assert low.least("tst_j") == ("one",)
    assert low.least("usd_per_task") == ("one", "two"), "the same server: they cost the same"
    assert json.loads(as_json(placement))["points"][1]["found"] == ["two"]
    assert json.loads((tmp_path / "out" / "placement.json").read_text()) == json.loads(as_json(placement))
    from rich.console import Console

    console = Console(width=124, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(placement_tables(placement))
    shown = console.export_text()
    assert "none certified of 1; 1 x hgx-h100-8 " in shown
    assert "Least energy  one at 2 tasks/s; two at 12 tasks/s" in shown
    drawn = {trace["name"]: trace for trace in architectures(placement)["data"] if trace["xaxis"] == "x2"}
    assert [drawn[name]["x"] for name in ("one", "two")] == [[2], [2, 12]]
    assert drawn["two"]["y"] == [point.of("two", "tst_j").value for point in placement.points]
    page = placement_page(placement, "hsim compare placed.yaml")
    assert "one at 2 tasks/s; two at 12 tasks/s" in page
    assert "none certified of 1; 1 x hgx-h100-8 " in page


def test_architectures_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    file = written(one_and_two(), tmp_path)
    with pytest.raises(DescriptionError, match="there is no 'three'; known: one, two"):
        place(Placed(file, ("one", "three"), (1,)))
    with pytest.raises(DescriptionError, match="has no architectures"):
        place(Placed("agents-split", ("one",), (1,)))
