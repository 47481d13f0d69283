"""Prices and grams by the hour, integrated exactly; embodied carbon; what a result's CO2 counts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from systems import agents, generate_only, prepared_of, run, system_of

from hsim.costs.cpu import HostPower
from hsim.description.sites import Site
from hsim.errors import DescriptionError
from hsim.log import Log
from hsim.metrics.accounts import Accounts, TierAccounts
from hsim.metrics.economics import bill_of, bills_in, stretches
from hsim.metrics.ledger import Window, keep_books
from hsim.metrics.power import facility_joules
from hsim.runs.studies import Options, study
from hsim.units import HOUR_S, KWH_J, YEAR_S

OWN = {"cost": {"basis": "own"}, "pue": 1.2}
CAPEX = {"hgx-h100-8": {"capex_usd": 300_000}}


def over_hours(site: dict[str, Any], hours: float = 2.5) -> dict[str, Any]:
    """A few prompts over some hours, on one server that is owned."""
    data = generate_only()
    data["workload"] |= {
        "tasks": 6,
        "arrivals": {"kind": "uniform", "rate_per_s": 5 / (hours * HOUR_S)},
        "measure": "terminating",
    }
    return data | {"site": OWN | site, "assume": data["assume"] | CAPEX}


def flat_server(site: Site, watts: float) -> Accounts:
    """A tier that draws the same watts whatever happens."""
    tier = TierAccounts(watts, 0.0, 1.0, 0.0, HostPower(1, 0.0, 0.0, 1.0))
    return Accounts({"t": tier}, {"site": site})


def test_24_equal_hours_are_the_flat_price_and_the_flat_grams() -> None:
    flat = run(prepared_of(over_hours({"usd_per_kwh": 0.2, "gco2_per_kwh": 300}))).result()
    for hourly in (
        {"usd_per_kwh": [0.2] * 24, "gco2_per_kwh": [300] * 24},
        {"usd_per_kwh": [7] * 24, "gco2_per_kwh": [1] * 24, "relative": True},
    ):
        said = {"hourly": hourly} | ({"usd_per_kwh": 0.2, "gco2_per_kwh": 300} if hourly.get("relative") else {})
        result = run(prepared_of(over_hours(said))).result()
        assert result.money.usd_per_task == pytest.approx(flat.money.usd_per_task, rel=1e-12)
        assert result.money.electricity_usd == pytest.approx(flat.money.electricity_usd, rel=1e-12)
        assert result.gco2_per_task == pytest.approx(flat.gco2_per_task, rel=1e-12)


def test_two_hours_by_hand() -> None:
    """1 kW from 0:30 to 2:30 at a PUE of 1.2 takes 0.6, 1.2 and 0.6 kWh of the first three hours."""
    prices = [0.1, 0.2, 0.3, *[9.0] * 21]
    site = Site(**OWN, hourly={"usd_per_kwh": prices, "gco2_per_kwh": [100.0, 400.0, *[0.0] * 22]})
    accounts, log = flat_server(site, 1000.0), Log()
    window = Window(0.5 * HOUR_S, 2.5 * HOUR_S, 2.5 * HOUR_S)
    bill = bill_of(log, log.arrays(), accounts, keep_books(log, log.arrays(), accounts, window))
    assert bill.joules == pytest.approx(2.4 * KWH_J, rel=1e-12)
    assert bill.electricity_usd == pytest.approx(0.6 * 0.1 + 1.2 * 0.2 + 0.6 * 0.3, rel=1e-12)
    assert bill.operation_g == pytest.approx(0.6 * 100 + 1.2 * 400, rel=1e-12)
    assert bill.embodied_g == 0
    # The same by books of other worlds: one as it is, one with twice the watts.
    worlds = [accounts, flat_server(site, 2000.0)]
    ledger = keep_books(log, log.arrays(), accounts, window)
    once, twice = bills_in(worlds, accounts, ledger, log)
    assert once == pytest.approx([bill.joules, bill.electricity_usd, bill.operation_g, 0.0], rel=1e-12)
    assert twice == pytest.approx(2 * once, rel=1e-12)


def test_two_hours_by_hand_later_in_the_day() -> None:
    site = Site(**OWN, hourly={"gco2_per_kwh": [float(h) for h in range(24)]})
    accounts, log = flat_server(site, 1000.0), Log()
    window = Window(22.75 * HOUR_S, 24.5 * HOUR_S, 24.5 * HOUR_S)  # a quarter of hour 22, all of 23, half of 0
    bill = bill_of(log, log.arrays(), accounts, keep_books(log, log.arrays(), accounts, window))
    assert bill.operation_g == pytest.approx(1.2 * (0.25 * 22 + 23 + 0.5 * 0), rel=1e-12)


def test_hours_repeat_after_the_last_and_equal_neighbours_are_one_stretch() -> None:
    site = Site(hourly={"gco2_per_kwh": [1.0, 1.0, 2.0, *[3.0] * 21]})
    parts = stretches({"site": site}, Window(0.0, 27 * HOUR_S, 27 * HOUR_S))
    assert [(part.from_s / HOUR_S, part.to_s / HOUR_S) for part in parts] == [
        (0, 2),
        (2, 3),
        (3, 24),
        (24, 26),
        (26, 27),
    ]
    assert [part.rates["site"][1] for part in parts] == [1, 2, 3, 1, 2]
    assert len(stretches({"site": Site()}, Window(0.0, 1e6, 1e6))) == 1


def test_a_real_run_is_billed_by_the_integral_of_its_power_in_each_hour() -> None:
    hours = [0.1 + 0.01 * h for h in range(24)]
    data = over_hours({"hourly": {"usd_per_kwh": hours, "gco2_per_kwh": [100 * (1 + h % 3) for h in range(24)]}})
    done = run(prepared_of(data))
    result, accounts, tasks = done.result(), done.prepared.accounts, done.tables["tasks"]
    edges = [float(tasks["arrival_s"].min()), *(h * HOUR_S for h in (1, 2, 3)), float(tasks["ended_s"].max())]
    assert edges == sorted(edges)
    kwh = [facility_joules(done.log, done.tables, accounts, Window(a, b, b)) / KWH_J for a, b in pairwise(edges)]
    assert result.money.electricity_usd == pytest.approx(sum(k * hours[h] for h, k in enumerate(kwh)), rel=1e-9)
    assert result.gco2_per_task * 6 == pytest.approx(sum(k * 100 * (1 + h % 3) for h, k in enumerate(kwh)), rel=1e-9)
    assert result.gco2_of == {"operation": result.gco2_per_task}


def test_rent_holds_electricity_and_each_site_is_paid_in_its_own_way() -> None:
    data = agents(split=True)
    data["workload"]["tasks"] = 4
    data["sites"] = {"here": OWN | {"usd_per_kwh": 0.5}, "there": {"usd_per_kwh": 0.1}}
    data["fleet"]["gpu-tier"]["site"], data["fleet"]["cpu-tier"]["site"] = "here", "there"
    data["workload"]["arrives_at"] = "here"
    data["site_links"] = {"here-there": {"round_trip_s": 0.01, "bytes_per_s": 1e6, "joules_per_byte": 0}}
    del data["links"]
    data["assume"] = data["assume"] | CAPEX
    done = run(prepared_of(data))
    result, accounts, tasks = done.result(), done.prepared.accounts, done.tables["tasks"]
    window = Window(float(tasks["arrival_s"].min()), float(tasks["ended_s"].max()), float(tasks["ended_s"].max()))
    here_j = keep_books(done.log, done.tables, accounts, window).joules_at("here")
    assert result.money.basis == "rent and own"
    assert result.money.electricity_usd == pytest.approx(here_j / KWH_J * 0.5, rel=1e-12)


# ---- embodied


def embodied(known: bool = True) -> dict[str, Any]:
    data = over_hours({"embodied": True, "cost": {"basis": "own", "lifetime_years": 5}})
    if known:
        data["assume"]["hgx-h100-8"] = CAPEX["hgx-h100-8"] | {"embodied_kgco2": 1000}
        data["assume"]["h100-sxm"] = {"embodied_kgco2": 100}
    return data


def test_embodied_carbon_is_shared_out_over_the_lifetime_and_named() -> None:
    plain, counted = (run(prepared_of(data)).result() for data in (over_hours({}), embodied()))
    grams = 1800 * 1000 * counted.window_s / (5 * YEAR_S)
    assert counted.gco2_of["embodied"] == pytest.approx(grams / 6, rel=1e-12)
    assert counted.gco2_of["operation"] == pytest.approx(plain.gco2_per_task, rel=1e-12)
    assert counted.gco2_per_task == pytest.approx(sum(counted.gco2_of.values()), rel=1e-12)
    assert list(plain.gco2_of) == ["operation"]


def test_unknown_embodied_carbon_leaves_co2_unavailable_and_nothing_else() -> None:
    result = run(prepared_of(embodied(known=False))).result()
    assert result.gco2_per_task is None
    assert result.gco2_of == {}
    assert result.energy is not None
    assert result.money is not None
    assert "hgx-h100-8.embodied_kgco2=<value>" in result.unavailable["co2"]


def test_a_study_bills_by_the_hour_and_names_what_its_co2_counts() -> None:
    data = embodied()
    data["workload"]["arrivals"] = {"kind": "poisson", "rate_per_s": 1 / 900}
    data["site"]["hourly"] = {"gco2_per_kwh": [float(100 + 50 * h) for h in range(24)]}
    found = study(system_of(data), Options(replications=3, processes=1))
    figures = found.figures()
    parts = figures["operation_gco2_per_task"].value + figures["embodied_gco2_per_task"].value
    assert figures["gco2_per_task"].value == pytest.approx(parts, rel=1e-9)
    assert set(found.gco2_of) == {"operation", "embodied"}
    assert found.calibration is not None
    ranges = found.calibration.ranges["gco2_per_task"]
    assert ranges.low < figures["gco2_per_task"].value < ranges.high


# ---- errors


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ({"hourly": {"usd_per_kwh": [0.1, 0.2]}}, "usd_per_kwh has 2 numbers; give one an hour, 24 or more"),
        (
            {"usd_per_kwh": 0.3, "hourly": {"usd_per_kwh": [0.1] * 24}},
            "usd_per_kwh is 0.3, and the mean of hourly.usd_per_kwh is 0.1; leave usd_per_kwh out, or set hourly.relative",
        ),
        ({"hourly": {"gco2_per_kwh": [0] * 24, "relative": True}}, "gco2_per_kwh are all 0"),
        ({"hourly": {"gco2_per_kwh": [-1.0] * 24}}, "is -1.0; input should be greater than or equal to 0"),
    ],
)
def test_hours_that_say_nothing_or_too_much_are_refused(site: dict[str, Any], said: str) -> None:
    with pytest.raises(DescriptionError, match=said.replace("(", r"\(")):
        system_of(over_hours(site))


def test_absolute_hours_are_the_sites_mean() -> None:
    site = Site(hourly={"usd_per_kwh": [float(h) for h in range(24)]})
    assert site.usd_per_kwh == pytest.approx(11.5)
    again = Site(**site.model_dump())
    assert again == site
    assert np.mean(
        Site(usd_per_kwh=3.0, hourly={"usd_per_kwh": list(range(24)), "relative": True}).by_hour("usd_per_kwh")
    ) == pytest.approx(3.0)
