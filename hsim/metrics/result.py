"""The result of a run, and of a study of several: every figure that hsim reports, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from hsim.errors import HsimError

if TYPE_CHECKING:
    from pandas import DataFrame


def _frame(rows: list[dict[str, Any]], index: str) -> DataFrame:
    """Rows as a pandas frame. Raises HsimError where pandas is not installed."""
    try:
        from pandas import DataFrame
    except ModuleNotFoundError:
        raise HsimError("pandas is not installed; data frames need it: pip install pandas") from None
    return DataFrame(rows).set_index(index) if rows else DataFrame(rows)


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


POOLS_JOINED = " + "


@dataclass(frozen=True)
class StageAnatomy:
    """What one stage costs a task, on average over all tasks. Joules behind the power supply; None where watts
    are unknown.

    `pool` names all that serve it, joined by POOLS_JOINED.
    """

    stage: str
    pool: str
    visits_per_task: float
    transfer_s: float
    wait_s: float
    service_s: float
    outside_s: float
    dynamic_j: float | None
    occupied_j: float | None


@dataclass(frozen=True)
class PoolUse:
    """How busy a pool was: busy device-seconds (or core-seconds) over those of the window.

    A replica is busy while it has one sequence; how near it is to its limits, `mean_batch` (decoding sequences per
    step, by time) and `kv_used_fraction` (by time) say. `imbalance` is the busy time of its busiest device over that of
    the mean: 1 is even. `weights` are the fractions of its decoded tokens by set of weights, where it changes between two.
    """

    pool: str
    what: str
    busy_fraction: float
    mean_batch: float | None = None
    kv_used_fraction: float | None = None
    imbalance: float | None = None
    weights: dict[str, float] | None = None


@dataclass(frozen=True)
class Quality:
    """What a pool's answers are worth: fractions of tokens by set of weights, and what that leaves of the unpruned model's
    scores (None: nobody published it).
    """

    pool: str
    fractions: Mapping[str, float]
    score_fraction: float | None


@dataclass(frozen=True)
class ServiceUse:
    """Who was in service, where servers or replicas leave it. Figures by pool are those of its replicas or servers.

    `available_fraction` is the part of their time that they were not broken, from a breakdown until they took work again;
    `serving` how many took new work, on average. Visits that were lost with their device were sent again, or their tasks
    failed; `lost_tokens` had been generated for them and `lost_j` of work been spent, which are in the joules of the window.
    """

    failed_tasks: int
    lost_visits: int
    lost_tokens: int
    lost_j: float | None
    boots: int
    available_fraction: dict[str, float]
    serving: dict[str, float]


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
    """Dollars of the window: servers rented (electricity included), or owned (capex and electricity), by site.

    `basis` is rent, own, or `rent and own`.
    """

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
class Interval:
    """A figure, and its 95 % interval over replications.

    `value` None: not estimable. `low` and `high` None: a single path, which has no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, where there is one."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def times(self, factor: float) -> Interval:
        """All of it so many times."""
        ends = (None if end is None else end * factor for end in (self.value, self.low, self.high))
        return Interval(*ends)


@dataclass(frozen=True)
class Problems:
    """Problems of one benchmark solved for each joule, everything included: PPT x TPW, if tokens go to such problems.

    PPT lies between `ppt_low` and `ppt_high` problems a token; its interval in `per_j` is that of TPW alone.
    """

    benchmark: str
    ppt_low: float
    ppt: float
    ppt_high: float
    source: str
    per_j: Interval


@dataclass(frozen=True)
class Result:
    """One run: a terminating window, one path, no sampling interval. `tasks` were completed.

    `gco2_of` are the parts of its CO2 that are counted: of operation, and embodied in the servers where a site says so. `keeps` are, where there is an edge, fractions of tasks: kept there,
    wrongly so, asked again in the cloud, and sent on since it was full.
    `unavailable` says why energy, money or CO2 is None; `evidence` counts the figures that the run stood on by tier;
    `accuracy` says how far the cost models behind it have erred on measured runs.
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
    gco2_of: dict[str, float]
    keeps: dict[str, float]
    stages: tuple[StageAnatomy, ...]
    pools: tuple[PoolUse, ...]
    service: ServiceUse | None
    bottleneck: str
    warnings: tuple[str, ...]
    accuracy: tuple[str, ...]
    unavailable: dict[str, str]
    evidence: dict[str, int]
    assumptions: tuple[Assumption, ...]
    problems: tuple[Problems, ...] = ()
    quality: tuple[Quality, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        return asdict(self)


# ---- studies: several replications of one scenario


@dataclass(frozen=True)
class LatencyStudy:
    """One latency over all replications; `count` points in all. A quantile may be not estimable."""

    count: int
    mean_s: Interval
    p50_s: Interval
    p90_s: Interval
    p95_s: Interval
    p99_s: Interval


@dataclass(frozen=True)
class SloVerdict:
    """An objective: PASS or FAIL where the interval of what was attained lies on one side of p, else UNDECIDED."""

    metric: str
    max_s: float
    p: float
    attained: Interval
    verdict: Literal["PASS", "FAIL", "UNDECIDED"]


@dataclass(frozen=True)
class Stability:
    """Whether an open system keeps up with its arrivals, judged before anything else.

    `drift_fraction` is the growth of work in progress as a part of the tasks that arrive. `offered` is the load of
    each pool that no policy can avoid, over its capacity: a lower bound of its utilisation.
    """

    verdict: Literal["stable", "unstable", "undecided"]
    reason: str
    arrivals_per_s: Interval
    drift_fraction: Interval
    offered: dict[str, Interval]


@dataclass(frozen=True)
class WarmUp:
    """How many tasks of each replication came before its cohort.

    `asked_tasks` is what the finished replications ask for: no more than `tasks` where the warm-up was long enough.
    MSER-5 alone would cut `mser_tasks`; `passage_tasks` arrive in three mean passages through the system; the floor is
    a part of the cohort. Sojourn times of `memory_tasks` in a row tell no more than one: twice as many are asked
    for, and ten times as many in a cohort.
    """

    tasks: int
    asked_tasks: int
    mser_tasks: int
    passage_tasks: int
    floor_tasks: int
    memory_tasks: float


@dataclass(frozen=True)
class EnergyStudy:
    """Joules of the windows. Tables are by attribution, then by measurement boundary; accounts in joules a task."""

    tst_j: dict[str, dict[str, Interval]]
    tpw_tokens_per_j: dict[str, dict[str, Interval]]
    mean_w: Interval
    accounts: tuple[tuple[str, str, float], ...]
    ledger_gap_fraction: float


@dataclass(frozen=True)
class MoneyStudy:
    """Dollars: servers rented (electricity included), or owned (capex and electricity)."""

    basis: str
    usd_per_task: Interval
    usd_per_1k_output_tokens: Interval
    fleet_usd_per_h: float


@dataclass(frozen=True)
class Range:
    """Where a figure lies in nine of ten worlds."""

    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """What figures that are known only roughly do to the result: apart from sampling error, and not shrunk by runs.

    Each world draws all `varied` figures between their bounds. `simulated` says that worlds were simulated anew, on
    the same random numbers; else only the books changed, and `held` figures, which change times, did not vary.
    """

    worlds: int
    simulated: bool
    varied: tuple[str, ...]
    held: tuple[str, ...]
    ranges: dict[str, Range]


@dataclass(frozen=True)
class Study:
    """Replications of one scenario, with intervals from their spread: `replications` of `wanted` were finished.

    `kind` is steady (windows of cohorts of `tasks` tasks while arrivals go on) or terminating (everything of a finite
    run). Where `stability` says unstable there is no steady state, and no latency, energy or cost of one.
    """

    scenario: str
    scenario_sha256: str
    hsim_version: str
    seed: int
    kind: Literal["steady", "terminating"]
    replications: int
    wanted: int
    stability: Stability | None
    warm_up: WarmUp | None
    tasks: int
    timed_out: int
    shed: int
    preemptions: int
    window_s: Interval
    tasks_per_s: Interval
    output_tokens_per_s: Interval
    goodput_tasks_per_s: Interval
    latency: dict[str, LatencyStudy]
    slo: tuple[SloVerdict, ...]
    energy: EnergyStudy | None
    money: MoneyStudy | None
    gco2_per_task: Interval | None
    gco2_of: dict[str, Interval]
    keeps: dict[str, Interval]
    calibration: Calibration | None
    stages: tuple[StageAnatomy, ...]
    pools: tuple[PoolUse, ...]
    service: ServiceUse | None
    bottleneck: str
    warnings: tuple[str, ...]
    accuracy: tuple[str, ...]
    unavailable: dict[str, str]
    evidence: dict[str, int]
    assumptions: tuple[Assumption, ...]
    problems: tuple[Problems, ...] = ()
    quality: tuple[Quality, ...] = ()

    @property
    def is_unstable(self) -> bool:
        """Whether it was shown that there is no steady state, and so nothing of one."""
        return self.stability is not None and self.stability.verdict == "unstable"

    def figures(self) -> dict[str, Interval]:
        """Every headline figure by name, such as tst_j or e2e.p99_s: what comparisons and data frames call it."""
        found = {
            "tasks_per_s": self.tasks_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
            "goodput_tasks_per_s": self.goodput_tasks_per_s,
        }
        if self.energy:
            found["tst_j"] = self.energy.tst_j["full"]["facility"]
            found["tpw_tokens_per_j"] = self.energy.tpw_tokens_per_j["full"]["facility"]
            found["mean_w"] = self.energy.mean_w
        if self.money:
            found["usd_per_task"] = self.money.usd_per_task
            found["usd_per_1k_output_tokens"] = self.money.usd_per_1k_output_tokens
        if self.gco2_per_task:
            found["gco2_per_task"] = self.gco2_per_task
        if len(self.gco2_of) > 1:
            found |= {f"{part}_gco2_per_task": grams for part, grams in self.gco2_of.items()}
        if self.keeps and self.energy:
            found["marginal_tst_j"] = self.energy.tst_j["marginal"]["facility"]
        found |= self.keeps
        for metric, latency in self.latency.items():
            for name in ("mean_s", "p50_s", "p90_s", "p95_s", "p99_s"):
                found[f"{metric}.{name}"] = getattr(latency, name)
        return found | {f"slo.{slo.metric}": slo.attained for slo in self.slo}

    def to_frame(self) -> DataFrame:
        """A pandas frame of all figures: value, 95 % interval, and where rough figures put it in nine of ten worlds."""
        ranges = self.calibration.ranges if self.calibration else {}
        rows = []
        for name, interval in self.figures().items():
            worlds = ranges.get(name)
            rough = {"rough_low": worlds.low if worlds else None, "rough_high": worlds.high if worlds else None}
            rows.append({"figure": name, **asdict(interval), **rough})
        return _frame(rows, "figure")

    @property
    def complete(self) -> bool:
        """Whether all replications that were asked for were finished."""
        return self.replications == self.wanted

    def as_dict(self) -> dict[str, Any]:
        """The study as JSON-ready data."""
        return {"complete": self.complete, **asdict(self)}


# ---- comparisons


@dataclass(frozen=True)
class Difference:
    """One figure of a scenario less that of the first, replication by replication on common random numbers.

    `interval` holds together with all others of the comparison, at 95 % (Bonferroni). `by_worlds` is where rough
    figures put the difference, the same in both scenarios, in nine of ten worlds. Without pairing the variance would
    be `variance_ratio` times as large.
    """

    figure: str
    first: float
    other: float
    interval: Interval
    verdict: Literal["lower", "higher", "no difference shown"]
    variance_ratio: float | None
    by_worlds: Range | None


@dataclass(frozen=True)
class TriedFleet:
    """A fleet that a fair comparison tried: its name, and servers by that of their profile. `usd_per_h` is of its servers,
    without the electricity of owned ones.
    """

    fleet: str
    servers: dict[str, int]
    usd_per_h: float
    replications: int
    verdict: Literal["PASS", "FAIL", "UNDECIDED", "UNSTABLE"]
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Scenarios beside the first of them. `fleets` says, for fair ones, what was tried: one passed, or none.

    `differences[i]` belongs to studies[i + 1]; it is empty where either has no steady state.
    """

    studies: tuple[Study, ...]
    differences: tuple[tuple[Difference, ...], ...]
    confidence: float
    fleets: tuple[tuple[TriedFleet, ...], ...] = ()

    def to_frame(self) -> DataFrame:
        """A pandas frame of all differences: scenario, figure, both values, the difference with its interval."""
        rows = []
        for study, differences in zip(self.studies[1:], self.differences, strict=True):
            for d in differences:
                values = {"first": d.first, "other": d.other, "difference": d.interval.value}
                ends = {"low": d.interval.low, "high": d.interval.high, "verdict": d.verdict}
                rows.append({"scenario": study.scenario, "figure": d.figure, **values, **ends})
        return _frame(rows, "figure")

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON-ready data."""
        return {**asdict(self), "studies": [study.as_dict() for study in self.studies]}


@dataclass(frozen=True)
class RatePoint:
    """Architectures compared at one rate of arrivals: those `found` to have a feasible fleet are its studies, in order.

    `comparison.fleets` are those that were tried of each architecture, found or not.
    """

    rate_per_s: float
    comparison: Comparison
    found: tuple[str, ...]

    def of(self, architecture: str, figure: str) -> Interval | None:
        """An architecture's figure, such as usd_per_task or tst_j; None where it has no feasible fleet, or no such figure."""
        if architecture not in self.found:
            return None
        return self.comparison.studies[self.found.index(architecture)].figures().get(figure)

    def least(self, figure: str) -> tuple[str, ...]:
        """The architecture with the least of a figure, and all that are not shown to take more; none if it is unavailable.

        Differences are paired with the first; of two others, the intervals of theirs are compared.
        """
        known = {name: v.value for name in self.found if (v := self.of(name, figure)) and v.value is not None}
        if not known:
            return ()
        beside = {self.found[0]: Interval(0.0, 0.0, 0.0)}
        for name, differences in zip(self.found[1:], self.comparison.differences, strict=True):
            beside[name] = next((d.interval for d in differences if d.figure == figure), Interval(None))
        best = min(known, key=lambda name: known[name])
        return tuple(name for name in known if name == best or _may_be_less(beside[name], beside[best]))


def _may_be_less(one: Interval, other: Interval) -> bool:
    """Whether the intervals of two differences with the same first leave it open which is less."""
    return one.low is None or other.high is None or one.low <= other.high


@dataclass(frozen=True)
class Placement:
    """Architectures of one scenario over a range of load, each at its own cheapest feasible fleet and equal objectives."""

    scenario: str
    architectures: tuple[str, ...]
    points: tuple[RatePoint, ...]

    def as_dict(self) -> dict[str, Any]:
        """The placement as JSON-ready data."""
        return {
            "scenario": self.scenario,
            "architectures": self.architectures,
            "points": [{"rate_per_s": p.rate_per_s, "found": p.found, **p.comparison.as_dict()} for p in self.points],
        }
