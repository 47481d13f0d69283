"""What a plan says: the fleet, how sure it is, why no other; frozen data, the same bytes for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from hsim.metrics.result import Comparison, Interval, Study

if TYPE_CHECKING:
    from pandas import DataFrame

Aim = Literal["cost", "tst", "co2"]
Verdict = Literal["PASS", "FAIL", "UNDECIDED"]


@dataclass(frozen=True)
class Fleet:
    """One fleet of a space: what was chosen where the scenario lists choices, and what that buys.

    `choices` are by path, as `--set` takes them; `servers` by name of the profile. `usd_per_h` (None: a price is
    unknown) is what its servers cost, by the site's cost basis: rent, electricity included; or capex over the lifetime,
    and then `electricity` comes on top. `rated_w` (None: a figure is unknown) is what the fleet can draw at most at the
    facility: every accelerator at its cap and every core busy.
    """

    number: int
    choices: dict[str, str | float]
    servers: dict[str, int]
    accelerators: int
    cores: int
    usd_per_h: float | None
    rated_w: float | None
    electricity: bool = False

    @property
    def name(self) -> str:
        """`2 x hgx-h100-8, 1 x epyc-9654-2s; decode tensor_parallel 4`."""
        servers = ", ".join(f"{count} x {server}" for server, count in self.servers.items())
        others = [_said(path, value) for path, value in self.choices.items() if not _is_of_servers(path)]
        return "; ".join([servers, ", ".join(others)]) if others else servers


def _is_of_servers(path: str) -> bool:
    return path.startswith("fleet.") and path.endswith((".count", ".server"))


def _said(path: str, value: str | float) -> str:
    words = path.split(".")[1:]
    return f"{words[0]} on {value}" if words[-1] == "runs_on" else f"{' '.join(words)} {value}"


@dataclass(frozen=True)
class Missed:
    """How often an objective under a load was missed: the mean of the replications' fractions, and what is allowed."""

    load: str
    metric: str
    max_s: float
    fraction: float
    allowed_fraction: float


@dataclass(frozen=True)
class Judged:
    """A fleet and what was found of it.

    `verdict` FAIL: `by` says by what it was refuted: a limit (inventory, budget, power), a bound (memory, capacity,
    alone: a task that has the fleet for itself is late), replications (slo, stability), or, where
    joules, CO2 or the electricity of owned servers are minimised, a paired difference (worse). `by` is empty for PASS and UNDECIDED.
    """

    fleet: Fleet
    verdict: Verdict
    by: Literal["", "inventory", "budget", "power", "memory", "capacity", "alone", "loss", "slo", "stability", "worse"]
    reason: str
    replications: int = 0
    missed: tuple[Missed, ...] = ()


@dataclass(frozen=True)
class Bound:
    """What no fleet of the space can cost less than: the relaxation (LP), and with whole servers (MILP).

    In servers alone: the electricity of owned ones comes on top. Necessary conditions alone: the servers do the work that tasks bring, inside the limits. None: unavailable, see `why`.
    """

    lp_usd_per_h: float | None
    milp_usd_per_h: float | None
    gap_fraction: float | None
    why: str = ""


@dataclass(frozen=True)
class Preview:
    """A fleet by a queueing approximation: instant, and no certificate. `attained` is by `load.metric`.

    `utilisation` is by pool, under the scenario's own load. `bottleneck` is the pool with the highest.
    """

    fleet: Fleet
    utilisation: dict[str, float]
    bottleneck: str
    e2e_mean_s: float
    attained: dict[str, float]
    holds: bool


@dataclass(frozen=True)
class Previews:
    """The fleets of a scenario by the queueing approximation, cheapest first, and that they are no more than that."""

    scenario: str
    fleets: tuple[Preview, ...]
    method: str = "queueing approximation, no simulation, no certificate"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data. `e2e_mean_s` None: tasks bring a pool more work than it can do, and waits have no end."""
        found = asdict(self)
        for fleet in found["fleets"]:
            fleet["e2e_mean_s"] = fleet["e2e_mean_s"] if math.isfinite(fleet["e2e_mean_s"]) else None
        return found


@dataclass(frozen=True)
class Headroom:
    """How much the rate may grow: `holds_times` the scenario's was certified, `beyond_times` was not.

    There it was `refuted`, or stayed undecided. None: everything that was looked at was certified.
    """

    holds_times: float
    beyond_times: float | None
    refuted: bool
    confidence: float


@dataclass(frozen=True)
class Plan:
    """The answer to a planning problem.

    `chosen` None: no fleet was certified; `binding` then names the constraint that stands in the way. `judged` are
    all fleets that were looked at, in the order of the search; `dearer` more cost more than the chosen one, and
    were not. `study` are the chosen fleet's own figures, and `usd_per_h` what it costs in that run where electricity
    comes on top of its servers. `neighbours` compares it with one server more or fewer of
    a kind, as `neighbour_names` say.
    """

    scenario: str
    scenario_sha256: str
    hsim_version: str
    seed: int
    minimised: Aim
    confidence: float
    claim: str
    complete: bool
    space: int
    chosen: Judged | None
    judged: tuple[Judged, ...]
    dearer: int
    bound: Bound
    binding: str
    replications: int
    brute_force_replications: int
    warnings: tuple[str, ...]
    cores_per_accelerator: str
    study: Study | None = None
    neighbours: Comparison | None = None
    neighbour_names: tuple[str, ...] = ()
    headroom: Headroom | None = None
    usd_per_h: Interval | None = None

    @property
    def undecided(self) -> tuple[Judged, ...]:
        """Fleets that are no worse than the chosen one by price, and neither refuted nor certified."""
        return tuple(judged for judged in self.judged if judged.verdict == "UNDECIDED")

    def to_frame(self) -> DataFrame:
        """A pandas frame of the fleets that were looked at, with verdict and reason: the why-not table."""
        from hsim.metrics.result import _frame

        rows = [
            {
                "fleet": judged.fleet.name,
                "usd_per_h": judged.fleet.usd_per_h,
                "verdict": judged.verdict,
                "by": judged.by,
                "replications": judged.replications,
                "reason": judged.reason,
            }
            for judged in self.judged
        ]
        return _frame(rows, "fleet")

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready data."""
        nested = {name: getattr(self, name) for name in ("study", "neighbours")}
        return asdict(self) | {name: value.as_dict() if value else None for name, value in nested.items()}


# ---- while it is made


@dataclass(frozen=True)
class Step:
    """Where a search stands: `looked_at` of `alive` fleets are behind it, `replications` were run."""

    phase: Literal["bounds", "screen", "certify", "explain"]
    fleet: str
    looked_at: int
    alive: int
    replications: int
    message: str


Progress = Callable[[Step], None]
Stop = Callable[[], bool]

__all__ = [
    "Aim", "Bound", "Fleet", "Headroom", "Interval", "Judged", "Missed", "Plan", "Preview", "Previews", "Progress", "Step",
    "Stop", "Verdict",
]  # fmt: skip
