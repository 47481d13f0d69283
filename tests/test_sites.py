"""Sites and the networks between them: exact times of a task alone, joules by site, chance that is keyed, laws."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import Run, agents, far_scenarios, generate_only, prepared_of, run, system_of
from test_laws import JOULES, TIMES

from hsim.engine.link import LinkSpec
from hsim.engine.sites import CrossingSpec
from hsim.errors import DescriptionError
from hsim.log import Stage
from hsim.metrics.ledger import Window, keep_books
from hsim.metrics.power import facility_joules
from hsim.metrics.timelines import timelines_of
from hsim.workload.crossings import RoundTrips, repeats

ROUND_TRIP_S, BYTES_PER_S = 0.08, 1e5


def far(data: dict[str, Any], **link: Any) -> dict[str, Any]:
    """The same servers at a cloud, clients at an edge, and a network between the two."""
    data = deepcopy(data)
    data["sites"] = {"edge": {"pue": 1.0}, "cloud": {"pue": 1.5}}
    for tier in data["fleet"].values():
        tier["site"] = "cloud"
    data["workload"]["arrives_at"] = "edge"
    plain = {"round_trip_s": ROUND_TRIP_S, "bytes_per_s": BYTES_PER_S, "joules_per_byte": 0.0}
    data["site_links"] = {"edge-cloud": plain | link}
    return data


def one_prompt() -> dict[str, Any]:
    data = generate_only()
    data["workload"]["tasks"] = 1
    data["workload"]["classes"]["chat"] |= {"input_tokens": 300, "output_tokens": 20}
    return data


# ---- exact


def test_alone_a_task_takes_a_round_trip_and_its_bytes_longer() -> None:
    near, away = (run(prepared_of(data)) for data in (one_prompt(), far(one_prompt())))
    there_s, back_s = ((512 + 4 * tokens) / BYTES_PER_S for tokens in (300, 20))
    before, after = near.result().latency, away.result().latency
    assert after["ttft"].mean_s - before["ttft"].mean_s == pytest.approx(ROUND_TRIP_S + there_s, rel=1e-12)
    assert after["e2e"].mean_s - before["e2e"].mean_s == pytest.approx(ROUND_TRIP_S + there_s + back_s, rel=1e-12)
    assert after["tpot"].mean_s == pytest.approx(before["tpot"].mean_s, rel=1e-12)


def test_a_task_that_moves_between_sites_waits_half_a_round_trip_each_way() -> None:
    data = agents(split=True)
    data["workload"]["tasks"] = 1
    data["workload"]["classes"]["agent"] |= {"rounds": 2, "tools": {"python-exec": 1}}
    away = far(data)
    away["fleet"]["cpu-tier"]["site"] = "edge"
    del away["links"]
    done = run(prepared_of(away))
    visits = done.visits
    sent = done.tables["transfers"]
    waited_s = visits["queued_s"] - visits["ready_s"]
    task = done.prepared.drawn.tasks[0]
    # Understanding and tools stand with the client. Prompts go to the cloud; what comes back goes to a tool, or is the answer.
    for number, this in enumerate(task.rounds):
        prompts = waited_s[(visits["stage"] == Stage.GENERATE) & (visits["round"] == number)]
        ways = 1.0 if number == 1 else 0.5  # the answer's first token has a way back
        assert prompts == pytest.approx(ways * ROUND_TRIP_S + (512 + 4 * this.input_tokens) / BYTES_PER_S, rel=1e-9)
    tools = waited_s[(visits["stage"] == Stage.TOOL) & (visits["round"] == 1)]
    assert tools == pytest.approx(0.5 * ROUND_TRIP_S + (512 + 4 * task.rounds[0].output_tokens) / BYTES_PER_S, rel=1e-9)
    assert len(sent["task"]) == 4  # two prompts, what came back between them, and the answer


def test_messages_each_way_do_not_share_their_bandwidth() -> None:
    """Long prompts go up while answers come down: each prompt alone has the way up to itself."""
    data = one_prompt()
    data["workload"] |= {"tasks": 2, "arrivals": {"kind": "uniform", "rate_per_s": 1}}
    data["workload"]["classes"]["chat"] |= {"input_tokens": 4000, "output_tokens": 20}
    slow = far(data, round_trip_s=0.0, bytes_per_s=(512 + 4 * 4000) / 0.9)
    alone = run(prepared_of(far(data, round_trip_s=0.0, bytes_per_s=1e12)))
    done_s = alone.result().latency["e2e"].mean_s
    assert 0.05 < done_s < 0.95  # the first answer leaves while the second prompt is on its way
    visits = run(prepared_of(slow)).visits
    assert visits["queued_s"] - visits["ready_s"] == pytest.approx([0.9, 0.9], rel=1e-9)


def test_prefill_in_the_cloud_has_its_first_token_sent_back_once() -> None:
    data = one_prompt()
    data["pools"]["first"] = {"runs_on": "gpu-tier.gpu", "replicas": 1}
    data["stages"]["prefill"] = "first"
    data["links"] = {"first-decode": "nvlink4"}
    near, away = (run(prepared_of(d)).result() for d in (data, far(data)))
    there_s, back_s = ((512 + 4 * tokens) / BYTES_PER_S for tokens in (300, 20))
    extra_s = away.latency["e2e"].mean_s - near.latency["e2e"].mean_s
    assert extra_s == pytest.approx(ROUND_TRIP_S + there_s + back_s, rel=1e-9)
    assert away.latency["ttft"].mean_s - near.latency["ttft"].mean_s == pytest.approx(ROUND_TRIP_S + there_s, rel=1e-9)


@settings(max_examples=200)
@given(st.integers(1, 5000), st.floats(1e-4, 0.9), st.floats(1e-6, 1 - 1e-6))
def test_repeats_are_the_inverse_of_their_law(packets: int, loss: float, luck: float) -> None:
    """No packet needs more than r repeats with probability (1 - loss^(r+1))^packets."""

    def within(r: int) -> float:
        return math.exp(packets * math.log1p(-(loss ** (r + 1))))

    r = repeats(packets, loss, luck)
    assert within(r) >= luck * (1 - 1e-9)
    assert r == 0 or within(r - 1) <= luck * (1 + 1e-9)


def test_losses_hold_up_a_message_by_the_window_or_by_repeats() -> None:
    spec = CrossingSpec(LinkSpec(0.0, 1e9, 0.0), 0.01, 1000.0, RoundTrips("x", None, 0, 1))  # type: ignore[arg-type]
    # Mathis: packet / round trip * sqrt(3/2) / sqrt(loss) = 1000 / 0.1 * 1.2247 / 0.1 = 122,474 bytes/s.
    assert spec.least_s(1e6, 0.1, luck=1e-9) == pytest.approx(1e6 / 122_474.487, rel=1e-6)
    # One packet: within 1 - 0.01^(r+1). Luck 0.9995 takes one repeat, a round trip; the window alone only 8 ms.
    assert spec.least_s(1000, 0.1, luck=0.9995) == 0.1
    assert spec.least_s(1000, 0.1, luck=0.5) == pytest.approx(1000 / 122_474.487, rel=1e-6)


def test_a_network_moves_and_pays_for_what_is_sent_again_half_at_each_end() -> None:
    done = run(prepared_of(far(one_prompt(), loss_fraction=0.2, joules_per_byte=0.01)))
    sent = done.tables["transfers"]
    on_the_wire = (512 + 4 * 300 + 512 + 4 * 20) / 0.8
    assert sent["bytes"].sum() == pytest.approx(on_the_wire, rel=1e-12)
    tasks, accounts = done.tables["tasks"], done.prepared.accounts
    window = Window(float(tasks["arrival_s"][0]), float(tasks["ended_s"][0]), float(tasks["ended_s"][0]))
    ledger = keep_books(done.log, done.tables, accounts, window)
    links = [entry for entry in ledger.entries if entry.component == "link"]
    assert {(entry.account, entry.site) for entry in links} == {
        ("network edge-cloud", "edge"), ("network edge-cloud", "cloud"),
    }  # fmt: skip
    assert [entry.joules for entry in links] == pytest.approx([0.005 * on_the_wire] * 2, rel=1e-12)
    assert ledger.joules_at("edge") == pytest.approx(0.005 * on_the_wire, rel=1e-12)
    assert ledger.joules() == pytest.approx(ledger.joules_at("edge") + ledger.joules_at("cloud"), rel=1e-12)
    named = {account for account, kind, _ in ledger.accounts() if kind == "loss"}
    assert named == {"power supplies", "edge (PUE)", "cloud (PUE)"}


def test_each_site_has_a_pue_of_its_own() -> None:
    data = agents(split=True)
    data["workload"]["tasks"] = 4
    away = far(data)
    away["fleet"]["cpu-tier"]["site"] = "edge"
    del away["links"]
    done = run(prepared_of(away))
    result, accounts = done.result(), done.prepared.accounts
    end_s = float(done.tables["tasks"]["ended_s"].max())
    start_s = float(done.tables["tasks"]["arrival_s"].min())
    ledger = keep_books(done.log, done.tables, accounts, Window(start_s, end_s, end_s))
    wall = {site: ledger.joules_at(site, "wall") for site in ("edge", "cloud")}
    assert min(wall.values()) > 0
    assert result.energy.total_j == pytest.approx(1.0 * wall["edge"] + 1.5 * wall["cloud"], rel=1e-12)


def test_an_unknown_network_leaves_energy_unavailable_and_says_what_would_supply_it() -> None:
    result = run(prepared_of(far(one_prompt(), joules_per_byte=None))).result()
    assert result.energy is None
    assert "site_links.edge-cloud.joules_per_byte: is unknown; give it" in result.unavailable["energy"]
    assert result.latency["e2e"].mean_s > 0


# ---- chance


def test_round_trips_are_the_same_whatever_else_there_is() -> None:
    drawn = {"kind": "lognormal", "median": 0.05, "p95": 0.2}
    one, other = (prepared_of(far(data, round_trip_s=drawn)) for data in (generate_only(), agents()))
    mine, its = (prepared.site_links["edge-cloud"].round_trips for prepared in (one, other))
    assert [mine.of(task, 2) for task in range(9)] == [its.of(task, 2) for task in range(9)]
    assert mine.of(3, 0) != mine.of(3, 1) != mine.of(4, 1)
    lengths = np.array([mine.of(task, number)[0] for task in range(30) for number in range(200)])
    assert np.median(lengths) == pytest.approx(0.05, rel=0.05)


def test_tasks_that_go_there_all_the_same_meet_the_same_round_trips_on_another_fleet() -> None:
    drawn = {"kind": "lognormal", "median": 0.5, "p95": 2.0}
    small, large = (far(generate_only(replicas=n), round_trip_s=drawn) for n in (1, 4))
    waits = []
    for data in (small, large):
        visits = run(prepared_of(data)).visits
        waits.append((visits["queued_s"] - visits["ready_s"])[np.argsort(visits["task"])])
    assert waits[0] == pytest.approx(waits[1], abs=0.05)  # but for bytes that share the way


# ---- laws


def check(law: Callable[[Run, Counter[str]], None], needed: set[str], examples: int) -> None:
    """The law holds on runs of random scenarios of two sites, and between them they reached all that it needs."""
    reached = Counter[str]()

    @settings(max_examples=examples)
    @given(st.one_of(far_scenarios(), far_scenarios(kept=True), far_scenarios(crowded=True, kept=True)))
    def on_any_scenario(data: dict[str, Any]) -> None:
        law(run(prepared_of(data)), reached)

    on_any_scenario()
    assert needed <= set(+reached), f"never reached: {needed - set(+reached)}"


def test_coalesced_equals_step_by_step_across_sites() -> None:
    def law(done: Run, reached: Counter[str]) -> None:
        slow = run(done.prepared, stepwise=True)
        for column in ("task", "round", "stage", "device", "output_tokens", *TIMES):
            np.testing.assert_array_equal(done.visits[column], slow.visits[column], err_msg=column)
        for column in JOULES:
            np.testing.assert_allclose(done.visits[column], slow.visits[column], rtol=1e-9, atol=1e-12, err_msg=column)
        for table in ("tasks", "cores", "transfers", "keeping"):
            for column, values in done.tables[table].items():
                np.testing.assert_array_equal(values, slow.tables[table][column], err_msg=f"{table}.{column}")
        reached["coalesced"] += len(done.steps["steps"]) < len(slow.steps["steps"]) / 2
        reached["kept"] += bool((done.tables["keeping"]["choice"] == 1).any())
        reached["full"] += bool((done.tables["keeping"]["choice"] == 2).any())
        reached["asked again"] += bool((done.tables["keeping"]["choice"] == 3).any())

    check(law, {"coalesced", "kept", "full", "asked again"}, examples=25)


def test_every_joule_is_booked_once_at_its_site() -> None:
    def law(done: Run, reached: Counter[str]) -> None:
        result, accounts = done.result(), done.prepared.accounts
        assert result.energy.ledger_gap_fraction <= 1e-9
        own = sum(done.visits[c].sum() for c in ("dynamic_j", "host_dynamic_j"))
        booked = sum(joules for _, kind, joules in result.energy.accounts if kind == "dynamic")
        assert booked == pytest.approx(own + done.tables["transfers"]["joules"].sum(), rel=1e-9)
        ended = done.tables["tasks"]
        assert sorted(ended["task"]) == [task.id for task in done.prepared.drawn.tasks]
        start_s, end_s = float(ended["arrival_s"].min()), float(ended["ended_s"].max())
        middle_s = start_s + 0.4 * (end_s - start_s)
        window = Window(middle_s, end_s, end_s)
        part_j = keep_books(done.log, done.tables, accounts, window).joules()
        assert part_j == pytest.approx(facility_joules(done.log, done.tables, accounts, window), rel=1e-9)
        lines = timelines_of(done.log, accounts).facility_w
        pictured = sum(float(line.means(np.array([start_s, end_s]))[0]) for line in lines) * (end_s - start_s)
        assert pictured == pytest.approx(result.energy.total_j, rel=1e-9)
        reached["crossed"] += len(done.tables["transfers"]["task"]) > 0
        reached["kept"] += len(done.tables["keeping"]["task"]) > 0
        reached["prices change"] += len(accounts.sites["edge"].by_hour("gco2_per_kwh")) > 1

    check(law, {"crossed", "kept", "prices change"}, examples=20)


def test_a_site_that_changes_nothing_costs_no_event() -> None:
    data = agents()
    named = deepcopy(data)
    named["sites"] = {"only": {}}
    for tier in named["fleet"].values():
        tier["site"] = "only"
    plain, there = (run(prepared_of(d)) for d in (data, named))
    counts = [next(done.pipeline.pools[Stage.GENERATE].devices[0].env._eid) for done in (plain, there)]
    assert counts[0] == counts[1]
    for table, columns in plain.tables.items():
        for name, values in columns.items():
            np.testing.assert_array_equal(values, there.tables[table][name])


# ---- errors


def refused(change: Callable[[dict[str, Any]], Any], split: bool = False) -> str:
    data = far(agents(split=split))
    change(data)
    with pytest.raises(DescriptionError) as error:
        system_of(data)
    return str(error.value)


def test_sites_that_cannot_reach_each_other_are_refused() -> None:
    assert "no network; add site_links: {edge-cloud:" in refused(lambda d: d.update(site_links={}))
    assert "round_trip_s: is -0.02; input should be greater than or equal to 0" in refused(
        lambda d: d["site_links"]["edge-cloud"].update(round_trip_s=-0.02)
    )
    assert "loss_fraction: is 1; input should be less than 1" in refused(
        lambda d: d["site_links"]["edge-cloud"].update(loss_fraction=1)
    )
    assert "fleet.gpu-tier.site: there is no site 'clod'; did you mean 'cloud'?" in refused(
        lambda d: d["fleet"]["gpu-tier"].update(site="clod")
    )
    assert "fleet.gpu-tier.site: is missing, and the scenario has several sites; name one of edge, cloud" in refused(
        lambda d: d["fleet"]["gpu-tier"].pop("site")
    )
    assert "workload.arrives_at: there is no site 'egde'; did you mean 'edge'?" in refused(
        lambda d: d["workload"].update(arrives_at="egde")
    )
    assert "'edge-clod' does not name two sites" in refused(
        lambda d: d.update(site_links={"edge-clod": d["site_links"]["edge-cloud"]})
    )
    assert "sites.site: 'site' is what the scenario's own site is called" in refused(
        lambda d: d["sites"].update(site={})
    )


def test_pools_at_two_sites_need_no_link_but_a_network_and_say_where_tasks_come_from() -> None:
    def apart(data: dict[str, Any]) -> None:
        data["fleet"]["cpu-tier"]["site"] = "edge"

    assert "links.agents-decode: joins pools at two sites, 'cloud' and 'edge'; remove it" in refused(apart, split=True)

    def nowhere(data: dict[str, Any]) -> None:
        apart(data)
        del data["links"]
        del data["workload"]["arrives_at"]

    assert "workload.arrives_at: is missing, and servers stand at " in refused(nowhere, split=True)
