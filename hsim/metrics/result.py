"""The result of a run: every figure that hsim reports, as frozen data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A sample in seconds. A quantile with fewer than ten points beyond it is None: not estimable."""

    count: int
    mean_s: float
    p50_s: float | None
    p90_s: float | None
    p95_s: float | None
    p99_s: float | None
    max_s: float


@dataclass(frozen=True)
class SloOutcome:
    """One objective against one path: `attained` is the fraction within max_s. One path bears no verdict."""

    metric: str
    max_s: float
    p: float
    attained: float
    met: bool


@dataclass(frozen=True)
class StageAnatomy:
    """What one stage costs a task, on average over all tasks. Joules behind the power supply."""

    stage: str
    pool: str
    visits_per_task: float
    transfer_s: float
    wait_s: float
    service_s: float
    outside_s: float
    dynamic_j: float
    occupied_j: float


@dataclass(frozen=True)
class PoolUse:
    """How busy a pool was: busy device-seconds (or core-seconds) over those of the window.

    A replica is busy while it has one sequence; how near it is to its limits, `mean_batch` (decoding sequences per
    step, by time) and `kv_used_fraction` (by time) say.
    """

    pool: str
    what: str
    busy_fraction: float
    mean_batch: float | None = None
    kv_used_fraction: float | None = None


@dataclass(frozen=True)
class Energy:
    """Joules of the window. Tables are by attribution, then by measurement boundary."""

    tst_j: dict[str, dict[str, float]]
    tpw_tokens_per_j: dict[str, dict[str, float | None]]
    total_j: float
    drain_j: float
    mean_w: float
    accounts: tuple[tuple[str, str, float], ...]
    ledger_gap_fraction: float


@dataclass(frozen=True)
class Money:
    """Dollars of the window: servers rented (electricity included), or owned (capex and electricity)."""

    basis: str
    servers_usd: float
    electricity_usd: float
    usd_per_task: float
    usd_per_1k_output_tokens: float


@dataclass(frozen=True)
class Assumption:
    """Something that the result stands on and that nobody measured here."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Result:
    """One run: a terminating window, one path, no sampling interval. `tasks` were completed.

    `unavailable` says why energy, money or CO2 is None; `evidence` counts the figures that the run stood on by tier.
    """

    scenario: str
    scenario_sha256: str
    hsim_version: str
    seed: int
    statistics: str
    tasks: int
    timed_out: int
    shed: int
    preemptions: int
    output_tokens: int
    window_s: float
    arrivals_s: float
    drain_s: float
    tasks_per_s: float
    output_tokens_per_s: float
    goodput_tasks_per_s: float
    latency: dict[str, Spread]
    slo: tuple[SloOutcome, ...]
    energy: Energy | None
    money: Money | None
    gco2_per_task: float | None
    stages: tuple[StageAnatomy, ...]
    pools: tuple[PoolUse, ...]
    bottleneck: str
    warnings: tuple[str, ...]
    unavailable: dict[str, str]
    evidence: dict[str, int]
    assumptions: tuple[Assumption, ...]

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        return asdict(self)
