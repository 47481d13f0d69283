"""Break-even, front and tornado: what they say follows from what was found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.console import Console, RenderableType
from test_cli import printed
from test_plan import OWNED, PRICED, servers, two_sites, written

import hsim
from hsim.description.yamlfile import read_document
from hsim.errors import DescriptionError
from hsim.metrics.result import Interval
from hsim.plan import PlanOptions, explain, plan, read_problem
from hsim.plan.breakeven import Architectures, Best, BreakEven, Point, breakeven
from hsim.plan.pareto import AXES, _placed, pareto
from hsim.plan.sensitivity import Around, inputs_of, sensitivity
from hsim.report.plans import breakeven_tables, pareto_tables, sensitivity_tables
from hsim.runs import Options, study


def point(rate_per_s: float, simple: float | None, split: float | None, winner: str | None) -> Point:
    best = {name: Best(name, value) for name, value in (("simple", simple), ("split", split))}
    return Point(rate_per_s, best, winner)


def exported(tables: RenderableType) -> str:
    console = Console(width=124, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tables)
    return console.export_text()


def test_bands_switches_and_regret_are_those_of_the_points() -> None:
    points = (
        point(1, 10, 20, "simple"),
        point(2, 10, 20, "simple"),
        point(3, 30, 20, "split"),
        point(4, 30, 40, "simple"),
        point(5, None, 40, "split"),
    )
    found = BreakEven("path", "cost", True, points)
    assert [(b.low_per_s, b.high_per_s, b.winner) for b in found.bands] == [
        (1, 2, "simple"),
        (3, 3, "split"),
        (4, 4, "simple"),
        (5, 5, "split"),
    ]
    assert found.first_per_s == (2, 3)
    assert found.most_regret_fraction == pytest.approx(0.5)
    assert points[4].regret_fraction("simple") is None


@pytest.mark.parametrize(
    ("winners", "first_per_s", "words"),
    [
        (("split", "split"), (None, 1), "was not shown to be the best at any rate looked at; 1 is the lowest"),
        ((None, "split", "simple"), (None, 2), "was not shown to be the best up to 2 tasks/s; 1 is the lowest"),
        (("simple", None, "split"), (1, 3), "ceases to be the best between 1 and 3 tasks/s"),
        (("simple", None), None, "was never shown to be beaten at these rates"),
    ],
)
def test_what_was_never_the_best_does_not_cease_to_be(
    winners: tuple[str | None, ...], first_per_s: tuple[float | None, float] | None, words: str
) -> None:
    """No rate below the lowest that was looked at is spoken of, and none at which no winner was shown."""
    found = BreakEven("path", "cost", True, tuple(point(rate, 10, 20, w) for rate, w in enumerate(winners, 1)))
    assert found.first_per_s == first_per_s
    assert found.as_dict()["first_per_s"] == first_per_s
    assert f"First       simple {words}" in exported(breakeven_tables(found))


def test_architectures_are_each_at_their_own_best_fleet(tmp_path: Path) -> None:
    """By the preview: two sequences at a time need half the servers of one, and both need more as the rate grows."""
    file = written(tmp_path, servers(range(1, 9)))
    architectures = Architectures("pools.decode.max_num_seqs", (1, 2))
    found = breakeven(file, [], architectures, [1, 20])
    assert not found.certified
    few, many = found.points
    assert few.best["1"].value == few.best["2"].value
    assert (many.best["1"].value or 0) > (many.best["2"].value or 0)
    assert found.bands[-1].winner == "2"
    with pytest.raises(DescriptionError, match="a preview knows no joules"):
        breakeven(file, ["plan.minimise=tst"], architectures, [1])


def test_the_front_keeps_what_nothing_surely_betters(tmp_path: Path) -> None:
    """More servers of the same kind cost more and draw more idle: latency alone can keep them on the front."""
    found = pareto(read_problem(written(tmp_path, servers([2, 3, 4], rate_per_s=4))), 3, Options(4, processes=1))
    assert found.candidates
    first = found.candidates[0]
    assert first.standing != "dominated"
    assert "cheapest" in first.character
    assert "greenest" in first.character
    for each in found.candidates:
        assert each.axes["cost"] == Interval(each.fleet.usd_per_h)
        assert (each.standing == "dominated") == bool(each.by)
    assert found.csv().count("\n") == 1 + len(found.candidates)


def test_the_front_counts_the_electricity_of_owned_servers(tmp_path: Path) -> None:
    """The same server at a dear and at a cheap socket: as lean and as fast, and shown to cost less."""
    data = two_sites(("l40s-4", "l40s-4"), OWNED) | PRICED
    found = pareto(read_problem(written(tmp_path, data)), 2, Options(4, processes=1))
    cheap, dear = found.candidates
    assert cheap.fleet.choices["pools.decode.runs_on"] == "y.gpu"
    assert cheap.character.startswith("cheapest")
    assert (cheap.axes["cost"].high or 0) < (dear.axes["cost"].low or 0)
    assert (cheap.fleet.usd_per_h or 0) < (cheap.axes["cost"].low or 0)


TOKENS = {"kind": "constant", "value": 50}
ALIKE = {"chat": {"input_tokens": TOKENS, "output_tokens": TOKENS, "max_output_tokens": 50}}


def test_certified_break_even_counts_electricity_and_a_preview_says_that_it_does_not(tmp_path: Path) -> None:
    file = written(tmp_path, two_sites(("l40s-4", "l40s-4"), OWNED) | PRICED)
    asked = ("--arch", "pools.decode.runs_on=x.gpu,y.gpu", "--rates", "2", "--processes", "1")
    certified = printed("breakeven", str(file), *asked, "--certify")
    assert "Band        2 tasks/s: y.gpu" in certified
    assert re.search(r"2\.\d+ ± 0\.\d+ USD/h, 1 x l40s-4 +1\.\d+ ± 0\.\d+ USD/h", certified)
    assert "who takes least (cost, in servers alone)" in printed("breakeven", str(file), *asked)
    shown = printed("plan", str(file), "--processes", "1")
    assert re.search(r"Price +1\.71 USD an hour in servers, 1\.\d+ ± 0\.\d+ with their electricity in this run;", shown)
    assert "costs less in servers than 1.71" in " ".join(shown.split())
    assert "USD an hour, in servers" in shown
    users = "workload.arrivals={kind: closed, users: 2}"  # nothing is left to chance, and no interval is shown
    once = printed(
        "plan", str(file), "--processes", "1", "--set", users, "--set", f"workload.classes={json.dumps(ALIKE)}"
    )
    assert re.search(r"Price +1\.71 USD an hour in servers, 1\.\d\d with their electricity in this run;", once)


def test_a_fleet_whose_objectives_are_undecided_is_not_said_to_hold(tmp_path: Path) -> None:
    """By the verdict that simulate gives of the same replications, whatever the point estimate."""
    file = written(tmp_path, servers([4], rate_per_s=4))
    settings, options = ["workload.tasks=20"], Options(2, processes=1)
    (verdict,) = (slo.verdict for slo in study(hsim.load(file, [*settings, "fleet.gpu-tier.count=4"]), options).slo)
    found = pareto(read_problem(file, settings), 1, options)
    (only,) = found.candidates
    assert (verdict, only.verdict, only.standing, only.character) == ("UNDECIDED", "UNDECIDED", "undecided", "")
    assert found.csv().splitlines()[1].split(",")[1:3] == ["UNDECIDED", "undecided"]
    shown = exported(pareto_tables(found))
    assert "0 fleets that hold, 1 undecided (simulate more)" in shown
    one_path = pareto(read_problem(file, settings), 1, Options(1, processes=1))
    assert [each.standing for each in one_path.candidates] == ["undecided"]


@pytest.mark.parametrize(
    ("verdict", "standings"), [("PASS", ["certain", "dominated"]), ("UNDECIDED", ["undecided", "possible"])]
)
def test_what_is_not_shown_to_hold_dominates_nothing(
    verdict: Literal["PASS", "UNDECIDED"], standings: list[str], tmp_path: Path
) -> None:
    file = written(tmp_path, servers([3, 4], rate_per_s=4))
    problem, own = read_problem(file), study(hsim.load(file, ["fleet.gpu-tier.count=4"]), Options(2, processes=1))
    cheap, dear = ({axis: Interval(value) for axis in AXES} for value in (1.0, 2.0))
    placed = _placed([(problem.fleets[0], own, cheap, verdict), (problem.fleets[1], own, dear, "PASS")])
    assert [each.standing for each in placed] == standings


def test_inputs_are_the_rate_and_every_distribution(tmp_path: Path) -> None:
    found = dict(inputs_of(read_document(written(tmp_path, servers()))))
    assert list(found) == ["arrival rate", "chat input_tokens", "chat output_tokens"]
    assert [path[-1] for path, _ in found["chat output_tokens"]] == ["median", "p95"]


def test_the_tornado_orders_inputs_by_what_they_move(tmp_path: Path) -> None:
    data = servers(rate_per_s=4)
    data["fleet"]["gpu-tier"]["count"] = 2
    found = sensitivity(written(tmp_path, data), (), Around(0.2), Options(8, processes=1))
    spans = [max(swing.span(f) for f in ("tst_j", "usd_per_task", "e2e.mean_s", "e2e.p95_s")) for swing in found.swings]
    assert spans == sorted(spans, reverse=True)
    by_name = {swing.name: swing for swing in found.swings}
    assert by_name["arrival rate"].high["tst_j"].verdict == "lower"  # idle draw is shared among more
    assert by_name["chat output_tokens"].high["e2e.mean_s"].verdict == "higher"


# ---- what the commands print


def loose(*counts: int, rate_per_s: float = 4) -> dict[str, Any]:
    """An objective that may be missed by three in ten: certified by few replications."""
    data = servers(counts, rate_per_s)
    data["slo"]["e2e"]["p"] = 0.7
    data["workload"]["tasks"] = 30
    return data


def test_headroom_is_bracketed_and_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server takes a sequence at a time, so that a few times the rate is too much: looked at coarsely, to be quick."""
    monkeypatch.setattr(explain, "HALVINGS", 1)
    shown = printed("plan", str(written(tmp_path, loose(1, rate_per_s=1))), "--headroom", "--processes", "1")
    found = re.search(
        r"Headroom +certified up to ([\d.]+) times the rate, (refuted|undecided) at ([\d.]+) times", shown
    )
    assert found
    assert 1 <= float(found[1]) < float(found[3]) <= 8


def test_a_closed_loop_has_no_headroom(tmp_path: Path) -> None:
    data = loose(1)
    data["workload"]["arrivals"] = {"kind": "closed", "users": 2}
    with pytest.raises(DescriptionError, match="is a closed loop, whose rate cannot be set"):
        plan(read_problem(written(tmp_path, data)), PlanOptions(processes=1, headroom=True))


def test_certified_break_even_is_printed_band_by_band(tmp_path: Path) -> None:
    """Servers of one sequence at a time, and of two: at little load one server of either will do."""
    data = loose(1, 2, 3)
    data["workload"]["tasks"] = 60
    file = written(tmp_path, data)
    asked = ("--arch", "pools.decode.max_num_seqs=1,2", "--rates", "12,4", "--certify", "--processes", "1")
    shown = printed("breakeven", str(file), *asked)
    assert "who takes least (cost), by load; certified" in shown
    assert re.search(r"First +1 ceases to be the best between 4 and 12 tasks/s", shown)
    assert re.search(r"Band +4 tasks/s: 1\nBand +12 tasks/s: 2\n", shown)
    assert re.search(r"12 +47.20 USD/h, 2 x hgx-h100-8 +23.60 USD/h, 1 x hgx-h100-8 +100%", shown)


def few(folder: Path, within_s: float) -> Path:
    data = loose(2)
    data["fleet"]["gpu-tier"]["count"] = 2
    data["slo"]["e2e"]["max_s"] = within_s
    return written(folder, data)


def test_a_flip_upwards_is_printed_where_objectives_hold(tmp_path: Path) -> None:
    shown = printed("sensitivity", str(few(tmp_path, 0.25)), "--flip", "--replications", "2", "--processes", "1")
    found = re.search(r"Flip +chat output_tokens: the objectives hold at ([\d.]+) times, and not at ([\d.]+)", shown)
    assert found
    assert 1 <= float(found[1]) < float(found[2]) <= 2
    assert re.search(r"Flip +chat input_tokens: the objectives still hold at 2 times", shown)


def test_a_flip_is_looked_for_downwards_where_objectives_are_missed(tmp_path: Path) -> None:
    """Shorter answers would do; fewer of them would not, since a task is late even alone."""
    found = sensitivity(few(tmp_path, 0.12), (), Around(0.2, flip=True), Options(2, processes=1))
    flips = {flip.name: flip for flip in found.flips}
    shorter = flips["chat output_tokens"]
    assert shorter.holds_times is not None
    assert shorter.fails_times is not None
    assert 0.5 <= shorter.holds_times < shorter.fails_times <= 1
    assert (flips["arrival rate"].holds_times, flips["arrival rate"].fails_times) == (None, 0.5)
    assert "arrival rate: the objectives are missed even at 0.5 times" in exported(sensitivity_tables(found))
