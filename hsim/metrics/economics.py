"""What a window's joules cost and emitted, at prices and grams that may change by the hour, and what making servers did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hsim.description.sites import BY_THE_HOUR, Site
from hsim.log import Log
from hsim.metrics.accounts import Accounts
from hsim.metrics.ledger import Ledger, Window, keep_books
from hsim.metrics.rough import Floats, site_joules_in
from hsim.units import HOUR_S, KWH_J

BILLED = ("joules", "electricity_usd", "operation_g", "embodied_g")
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Bill:
    """Facility joules of a window; dollars for those that are not in the rent; grams that they emitted, and grams of making
    the servers, of which the window is a part of the lifetime. `embodied_g` is 0 where no site counts them.
    """

    joules: float
    electricity_usd: float
    operation_g: float
    embodied_g: float

    @property
    def grams(self) -> float:
        """All that the window emitted."""
        return self.operation_g + self.embodied_g


@dataclass(frozen=True)
class Stretch:
    """A part of a window in which nothing changes price: (dollars, grams) a kWh by site."""

    from_s: float
    to_s: float
    rates: dict[str, tuple[float, float]]


def stretches(sites: Mapping[str, Site], window: Window) -> list[Stretch]:
    """A window cut where any site's price or grams change; whole where none does."""
    first = math.floor(window.start_s / HOUR_S)
    last = max(first + 1, math.ceil(window.end_s / HOUR_S))
    found: list[Stretch] = []
    for hour in range(first, last) if _by_the_hour(sites) else (first,):
        rates = {name: _rates(site, hour) for name, site in sites.items()}
        if not found or found[-1].rates != rates:
            at_s = max(window.start_s, hour * HOUR_S)
            found = [*found[:-1], *(replace(stretch, to_s=at_s) for stretch in found[-1:])]
            found.append(Stretch(at_s, window.end_s, rates))
    return found


def _by_the_hour(sites: Mapping[str, Site]) -> bool:
    return any(len(site.by_hour(key)) > 1 for site in sites.values() for key in BY_THE_HOUR)


def _rates(site: Site, hour: int) -> tuple[float, float]:
    """Dollars a kWh that are not in the rent, and grams a kWh, in an hour."""
    usd, grams = (values[hour % len(values)] for values in (site.by_hour(key) for key in BY_THE_HOUR))
    return (usd if site.cost.basis == "own" else 0.0), grams


def bill_of(log: Log, tables: dict[str, Any], accounts: Accounts, ledger: Ledger) -> Bill:
    """The bill of a ledger's window: books are kept for each stretch, cut at the very instants at which prices change."""
    parts = stretches(accounts.sites, ledger.window)
    books = [ledger] if len(parts) == 1 else [keep_books(log, tables, accounts, _window(part)) for part in parts]
    drawn = [{site: book.joules_at(site) for site in accounts.sites} for book in books]
    bill = _billed(accounts, ledger.window, parts, drawn)
    total_j = ledger.joules()
    assert math.isnan(total_j) or abs(bill.joules - total_j) <= TOLERANCE * total_j, (
        f"the hours hold {bill.joules} J, the window {total_j} J"
    )
    return replace(bill, joules=total_j)


def bills_in(worlds: Sequence[Accounts], nominal: Accounts, ledger: Ledger, log: Log) -> Floats:
    """Bills of a ledger's window by the books of other worlds. Shape (worlds, BILLED)."""
    if not worlds:
        return np.empty((0, len(BILLED)))
    parts = stretches(nominal.sites, ledger.window)
    tables = log.arrays() if len(parts) > 1 else {}
    books = [ledger] if len(parts) == 1 else [keep_books(log, tables, nominal, _window(part)) for part in parts]
    drawn = [site_joules_in(worlds, nominal, book, log) for book in books]
    bills = [
        _billed(
            world, ledger.window, parts, [{site: float(joules[k]) for site, joules in part.items()} for part in drawn]
        )
        for k, world in enumerate(worlds)
    ]
    return np.array([[getattr(bill, key) for key in BILLED] for bill in bills])


def _window(part: Stretch) -> Window:
    return Window(part.from_s, part.to_s, part.to_s)


def _billed(accounts: Accounts, window: Window, parts: Sequence[Stretch], drawn: Sequence[Mapping[str, float]]) -> Bill:
    joules = usd = grams = 0.0
    for part, by_site in zip(parts, drawn, strict=True):
        for site, site_j in by_site.items():
            usd_per_kwh, g_per_kwh = part.rates[site]
            joules += site_j
            usd += site_j / KWH_J * usd_per_kwh if usd_per_kwh else 0.0
            grams += site_j / KWH_J * g_per_kwh
    embodied_g = sum(tier.embodied_g_per_s for tier in accounts.tiers.values()) * window.seconds
    return Bill(joules, usd, grams, embodied_g)
