"""From replications to a study: the verdict on stability first, then every figure with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hsim.description.system import System
from hsim.errors import HsimError
from hsim.metrics import statistics
from hsim.metrics.accounts import Accounts
from hsim.metrics.ledger import ATTRIBUTIONS, BOUNDARIES, Attribution, Boundary
from hsim.metrics.measured import Cohort, Measured
from hsim.metrics.notes import accuracy_of, assumptions_of, bottleneck_of, choices_taken, evidence_of, study_warnings
from hsim.metrics.quality import quality_of
from hsim.metrics.result import (
    Calibration,
    EnergyStudy,
    Interval,
    LatencyStudy,
    MoneyStudy,
    Range,
    SloVerdict,
    Stability,
    Study,
    WarmUp,
)
from hsim.metrics.statistics import Estimate
from hsim.metrics.summarise import (
    KEPT,
    anatomy_of,
    hsim_version,
    parts_of_co2,
    pools_of,
    problems_of,
    scenario_hash,
    service_of,
    unavailable_of,
)
from hsim.units import HOUR_S

Floats = NDArray[np.float64]

FLOOR_FRACTION = 0.25  # of a cohort comes before it, whatever else asks for less
PASSAGES = 3  # as many mean times through the empty system must have gone by: then its pipes are full
MEMORIES = 2  # as many stretches over which sojourn times hang together: a queue near its limit forgets slowly
DRIFT_MARGIN = 0.01  # work in progress that grows by less than this part of what arrives is not called a drift
DRIFT_BLUR = 0.1  # where the interval of the drift reaches beyond this, the run was too short to tell
WIP_POINTS = 200
QUANTILES = {"p50_s": 0.5, "p90_s": 0.9, "p95_s": 0.95, "p99_s": 0.99}
WORLD_TAIL = 0.05


@dataclass(frozen=True)
class Replication:
    """One path of a study.

    `offered` is the load that its tasks bring to each pool; `truncated` of the drawn answers were cut. `world_bills` are
    those of the window by the books of other worlds, shape (worlds, BILLED).
    """

    number: int
    path: Measured
    offered: dict[str, float]
    truncated: int
    warnings: tuple[str, ...]
    world_bills: Floats


@dataclass(frozen=True)
class Worlds:
    """The worlds of a study: their books, and for those that were simulated anew (of which replication, its path)."""

    accounts: tuple[Accounts, ...]
    varied: tuple[str, ...]
    held: tuple[str, ...]
    simulated: tuple[tuple[int, Measured], ...] = ()


@dataclass(frozen=True)
class Material:
    """All that a study is made of, replications in order."""

    system: System
    accounts: Accounts
    kind: Literal["steady", "terminating"]
    replications: tuple[Replication, ...]
    wanted: int
    worlds: Worlds

    @property
    def paths(self) -> list[Measured]:
        return [replication.path for replication in self.replications]


# ---- before anything else: warm-up and stability


def warm_up_of(paths: Sequence[Measured]) -> WarmUp:
    """How long the warm-up of an open system must be, by its replications so far.

    MSER-5 looks at the mean over replications of sojourn times and of tasks in progress, in order of arrival. Where
    it would cut more than was cut, that counts if what lies between differs from what follows (t test at 95 %): on a
    series that is stationary its choice is chance.
    """
    cohort = paths[0].cohort
    passage_s = float(np.mean([_passage_s(path) for path in paths]))
    passage_tasks = math.ceil(PASSAGES * _arrivals_per_s(paths).value * passage_s)
    asked, longest = max(cohort.skipped, passage_tasks), 0
    for series_of in (sojourns, found_in_progress):
        series = np.array([series_of(path)[: cohort.end] for path in paths])
        cut = statistics.mser_5(series.mean(axis=0))
        longest = max(longest, cut)
        if cut > cohort.skipped:
            apart = series[:, cohort.skipped : cut].mean(axis=1) - series[:, cut:].mean(axis=1)
            difference = statistics.mean(apart)
            if abs(difference.value) > difference.half_width():
                asked = max(asked, cut)
    floor_tasks = math.ceil(FLOOR_FRACTION * cohort.tasks)
    memory = statistics.cautious_memory([sojourns(path)[cohort.skipped : cohort.end] for path in paths])
    asked = max(asked, math.ceil(MEMORIES * memory))
    return WarmUp(cohort.skipped, asked, longest, passage_tasks, floor_tasks, memory)


def sojourns(path: Measured) -> Floats:
    """How long each task was in the system. Shape (tasks,)."""
    return path.ended_s - path.arrival_s


def found_in_progress(path: Measured) -> Floats:
    """How many tasks each found in the system when it arrived. Shape (tasks,)."""
    ended = np.searchsorted(np.sort(path.ended_s), path.arrival_s, side="right")
    return np.asarray(np.arange(len(path.arrival_s)) - ended, dtype=np.float64)


def _passage_s(path: Measured) -> float:
    """Mean seconds that a task of the cohort spent in the system, waiting for devices left out."""
    _, transfer_s, _, service_s, outside_s, *_ = np.sum(list(path.stages.values()), axis=0).tolist()
    return float(transfer_s + service_s + outside_s) / path.cohort.tasks


def _arrivals_per_s(paths: Sequence[Measured]) -> Estimate:
    return statistics.ratio([path.cohort.tasks for path in paths], [path.window.seconds for path in paths])


def _offered(replications: Sequence[Replication]) -> dict[str, Estimate]:
    """The load that tasks bring to each pool, by replications."""
    return {
        pool: statistics.mean([replication.offered[pool] for replication in replications])
        for pool in replications[0].offered
    }


def overloaded_pools(replications: Sequence[Replication], confidence: float = statistics.CONFIDENCE) -> list[str]:
    """The pools to which tasks bring more work than they can do; none where tasks are lost, which makes room."""
    if any(path.timed_out or path.shed or path.gave_up for path in (each.path for each in replications)):
        return []
    loads = _offered(replications).items()
    return [pool for pool, load in loads if load.value - load.half_width(2 * confidence - 1) > 1]


def stability_of(replications: Sequence[Replication], confidence: float = statistics.CONFIDENCE) -> Stability:
    """Whether an open system keeps up: by a bound on its utilisation, and by the drift of work in progress.

    Each is a one-sided t test over replications, at 95 % unless said otherwise.
    """
    paths = [replication.path for replication in replications]
    rate = _arrivals_per_s(paths)
    drift = statistics.ratio(
        [_drift_per_s(path) * path.window.seconds for path in paths], [path.cohort.tasks for path in paths]
    )
    offered = _offered(replications)
    one_sided = 2 * confidence - 1
    verdict: Literal["stable", "unstable", "undecided"] = "stable"
    reason = "work in progress does not grow"
    if over := overloaded_pools(replications, confidence):
        verdict, reason = (
            "unstable",
            f"tasks bring pool {over[0]} {offered[over[0]].value:.0%} of the work that it can do",
        )
    elif drift.value - drift.half_width(one_sided) > DRIFT_MARGIN:
        verdict = "unstable"
        reason = f"work in progress grows by {drift.value:.1%} of the tasks that arrive"
    elif not all(path.covered for path in paths):
        verdict = "undecided"
        reason = "tasks take so much longer than the window that arrivals ended before they did; simulate more tasks"
    elif not drift.value + drift.half_width(one_sided) < DRIFT_BLUR:
        verdict, reason = "undecided", "too few tasks to see whether work in progress grows; simulate more"
    return Stability(
        verdict, reason, interval(rate), interval(drift), {pool: interval(load) for pool, load in offered.items()}
    )


def _drift_per_s(path: Measured) -> float:
    """The slope of work in progress over the window, in tasks per second."""
    times = np.linspace(path.window.start_s, path.window.end_s, WIP_POINTS)
    arrived = np.searchsorted(path.arrival_s, times, side="right")
    in_progress = arrived - np.searchsorted(np.sort(path.ended_s), times, side="right")
    return statistics.slope(times, in_progress.astype(np.float64))


# ---- figures and their estimates


def interval(estimate: Estimate | None) -> Interval:
    """An estimate as reported."""
    if estimate is None:
        return Interval(None)
    low, high = estimate.interval()
    return Interval(estimate.value) if math.isnan(low) else Interval(estimate.value, low, high)


def joules_of(paths: Sequence[Measured], attribution: Attribution = "full", boundary: Boundary = "facility") -> Floats:
    """Joules of each path's window."""
    return np.array([path.ledger.joules(attribution, boundary) for path in paths])


def rates_of(paths: Sequence[Measured]) -> dict[str, Estimate]:
    """The headline figures that there are without a steady state, and where no task was completed: those per second."""
    seconds = [path.window.seconds for path in paths]
    found = {
        "tasks_per_s": statistics.ratio([path.completed for path in paths], seconds),
        "output_tokens_per_s": statistics.ratio([path.output_tokens for path in paths], seconds),
        "goodput_tasks_per_s": statistics.ratio([path.good for path in paths], seconds),
    }
    if all(path.keeps for path in paths):
        came = [path.keeps.tasks for path in paths if path.keeps]
        for key in KEPT:
            found[f"{key}_fraction"] = statistics.ratio([getattr(path.keeps, key) for path in paths], came)
    return found


def estimates_of(paths: Sequence[Measured], accounts: Accounts, energy: bool = True) -> dict[str, Estimate]:
    """Every headline figure, by name: what studies report, comparisons subtract and worlds spread."""
    seconds, completed = [path.window.seconds for path in paths], [path.completed for path in paths]
    tokens = [path.output_tokens for path in paths]
    found = rates_of(paths)
    joules = joules_of(paths)
    if energy:
        found["tst_j"] = statistics.ratio(joules, completed)
        found["tpw_tokens_per_j"] = statistics.ratio(tokens, joules)
        found["mean_w"] = statistics.ratio(joules, seconds)
        grams = {part: [getattr(path.bill, f"{part}_g") for path in paths] for part in parts_of_co2(accounts)}
        if not np.isnan(list(grams.values())).any():
            found["gco2_per_task"] = statistics.ratio(np.sum(list(grams.values()), axis=0), completed)
            if len(grams) > 1:
                found |= {f"{part}_gco2_per_task": statistics.ratio(its, completed) for part, its in grams.items()}
        found["marginal_tst_j"] = statistics.ratio(joules_of(paths, "marginal"), completed)
    usd = dollars_of(accounts, np.array(seconds), np.array([path.bill.electricity_usd for path in paths]))
    if not np.isnan(usd).any():
        found["usd_per_task"] = statistics.ratio(usd, completed)
        found["usd_per_1k_output_tokens"] = statistics.ratio(1000 * usd, tokens)
    for metric in paths[0].latency:
        samples = [path.latency.get(metric, np.empty(0)) for path in paths]
        counts = [len(sample) for sample in samples]
        found[f"{metric}.mean_s"] = statistics.ratio([float(sample.sum()) for sample in samples], counts)
        for name, p in QUANTILES.items():
            if (estimate := statistics.quantile(samples, p)) is not None:
                found[f"{metric}.{name}"] = estimate
    for objective in paths[0].objectives:
        found[f"slo.{objective.metric}"] = _attained(paths, objective.metric)
    return found


def _attained(paths: Sequence[Measured], metric: str, confidence: float = statistics.CONFIDENCE) -> Estimate:
    """The fraction of a cohort's points that kept an objective."""
    kept = [next(o for o in path.objectives if o.metric == metric) for path in paths]
    memory = statistics.memory([path.latency[metric] for path in paths])
    return statistics.proportion([o.within for o in kept], [o.points for o in kept], memory, confidence)


def dollars_of(accounts: Accounts, seconds: Floats, electricity_usd: Floats) -> Floats:
    """What each window cost: its servers, and the electricity that is not in their rent."""
    return np.asarray(sum(tier.usd_per_s for tier in accounts.tiers.values()) * seconds + electricity_usd)


def study_of(material: Material, warm_up: WarmUp | None) -> Study:
    """Every figure of a scenario's replications with its interval, or the verdict that there is no steady state."""
    system, paths = material.system, material.paths
    scenario, unavailable = system.scenario, unavailable_of(system)
    stability = stability_of(material.replications) if warm_up is not None and len(paths) > 1 else None
    unstable = stability is not None and stability.verdict == "unstable"
    if not unstable and not sum(path.completed for path in paths):
        raise HsimError(
            f"{system.document.file}: no task was completed in the windows; each was shed, timed out or lost"
        )
    if unstable:
        unavailable = dict.fromkeys(("latency", "energy", "money", "co2"), "there is no steady state")
    estimates = rates_of(paths) if unstable else estimates_of(paths, material.accounts, "energy" not in unavailable)
    stages, pools, parts = anatomy_of(paths, scenario), pools_of(paths), parts_of_co2(material.accounts)
    intervals = {name: interval(estimate) for name, estimate in estimates.items()}
    energy = None if "energy" in unavailable else _energy(paths, intervals)
    return Study(
        scenario=system.name,
        scenario_sha256=scenario_hash(scenario),
        hsim_version=hsim_version(),
        seed=scenario.seed,
        kind=material.kind,
        replications=len(paths),
        wanted=material.wanted,
        stability=stability,
        warm_up=warm_up,
        tasks=paths[0].cohort.tasks,
        timed_out=sum(path.timed_out for path in paths),
        shed=sum(path.shed for path in paths),
        preemptions=sum(path.preemptions for path in paths),
        window_s=interval(statistics.mean([path.window.seconds for path in paths])),
        tasks_per_s=intervals["tasks_per_s"],
        output_tokens_per_s=intervals["output_tokens_per_s"],
        goodput_tasks_per_s=intervals["goodput_tasks_per_s"],
        latency={} if unstable else _latencies(paths, intervals),
        slo=() if unstable else slo_verdicts(material),
        energy=energy,
        money=None if "money" in unavailable else _money(material.accounts, intervals),
        gco2_per_task=intervals.get("gco2_per_task"),
        gco2_of={part: intervals.get(f"{part}_gco2_per_task", intervals["gco2_per_task"]) for part in parts}
        if "gco2_per_task" in intervals
        else {},
        calibration=None if unstable else calibration_of(material),
        keeps={name: intervals[name] for name in (f"{key}_fraction" for key in KEPT) if name in intervals},
        stages=stages,
        pools=pools,
        service=service_of(paths, system),
        bottleneck=bottleneck_of(stages, pools),
        warnings=_warnings(material, stability, warm_up),
        accuracy=accuracy_of(system),
        unavailable=unavailable,
        evidence=evidence_of(system),
        assumptions=assumptions_of(system),
        problems=problems_of(system, energy.tpw_tokens_per_j["full"]["facility"], pools) if energy else (),
        quality=quality_of(system, pools),
    )


def _warnings(material: Material, stability: Stability | None, warm_up: WarmUp | None) -> tuple[str, ...]:
    truncated = sum(replication.truncated for replication in material.replications)
    first = material.replications[0].warnings
    own = choices_taken(material.system) + study_warnings(stability, warm_up, material.paths[0].cohort.tasks, truncated)
    return (*own, *first, *material.system.figures.cautions)


def _latencies(paths: Sequence[Measured], intervals: Mapping[str, Interval]) -> dict[str, LatencyStudy]:
    return {
        metric: LatencyStudy(
            sum(len(path.latency[metric]) for path in paths if metric in path.latency),
            *(intervals.get(f"{metric}.{name}", Interval(None)) for name in ("mean_s", *QUANTILES)),
        )
        for metric in paths[0].latency
    }


def slo_verdicts(material: Material, confidence: float = statistics.CONFIDENCE) -> tuple[SloVerdict, ...]:
    """Each objective against all replications."""
    verdicts, paths = [], material.paths
    for objective in paths[0].objectives:
        slo = getattr(material.system.scenario.slo, objective.metric)
        attained = interval(_attained(paths, objective.metric, confidence))
        # One path that leaves nothing to chance has no interval: what it attains is what there is.
        low, high = (attained.value if end is None else end for end in (attained.low, attained.high))
        assert low is not None and high is not None
        verdict: Literal["PASS", "FAIL", "UNDECIDED"] = (
            "PASS" if low >= slo.p else "FAIL" if high < slo.p else "UNDECIDED"
        )
        verdicts.append(SloVerdict(objective.metric, slo.max_s, slo.p, attained, verdict))
    return tuple(verdicts)


def _energy(paths: Sequence[Measured], intervals: Mapping[str, Interval]) -> EnergyStudy:
    completed, tokens = [path.completed for path in paths], [path.output_tokens for path in paths]
    accounts: dict[tuple[str, str], float] = {}
    for path in paths:
        for account, kind, joules in path.ledger.accounts():
            accounts[account, kind] = accounts.get((account, kind), 0.0) + joules

    def table(figure: Callable[[Floats], Estimate | None]) -> dict[str, dict[str, Interval]]:
        return {a: {b: interval(figure(joules_of(paths, a, b))) for b in BOUNDARIES} for a in ATTRIBUTIONS}

    return EnergyStudy(
        tst_j=table(lambda joules: statistics.ratio(joules, completed)),
        tpw_tokens_per_j=table(lambda joules: statistics.ratio(tokens, joules) if joules.all() else None),
        mean_w=intervals["mean_w"],
        accounts=tuple((account, kind, joules / sum(completed)) for (account, kind), joules in accounts.items()),
        ledger_gap_fraction=max(path.ledger_gap_fraction for path in paths),
    )


def _money(accounts: Accounts, intervals: Mapping[str, Interval]) -> MoneyStudy:
    per_h = sum(tier.usd_per_s for tier in accounts.tiers.values()) * HOUR_S
    task, tokens = intervals["usd_per_task"], intervals["usd_per_1k_output_tokens"]
    return MoneyStudy(accounts.basis, task, tokens, per_h)


# ---- the other uncertainty


def calibration_of(material: Material) -> Calibration | None:
    """How far the figures that are known only roughly move the result; None where there are none."""
    worlds = material.worlds
    if not worlds.varied and not worlds.held:
        return None
    ranges = {name: range_of(values) for name, values in moved_by_worlds(material).items()}
    count = len(worlds.simulated) or len(worlds.accounts)
    return Calibration(count, bool(worlds.simulated), worlds.varied, worlds.held, ranges)


def range_of(values: Floats) -> Range:
    """Where nine of ten worlds lie."""
    low, high = np.quantile(values, [WORLD_TAIL, 1 - WORLD_TAIL]).tolist()
    return Range(low, high)


def moved_by_worlds(material: Material) -> dict[str, Floats]:
    """Figures in each world, by name as in estimates_of. Shapes (worlds,)."""
    energy = "energy" not in unavailable_of(material.system)
    estimates = estimates_of(material.paths, material.accounts, energy)
    if material.worlds.simulated:
        return _simulated(material, estimates, energy)
    return _by_the_books(material, estimates)


def _by_the_books(material: Material, estimates: Mapping[str, Estimate]) -> dict[str, Floats]:
    """Values in each world where only the books change. Shapes (worlds,)."""
    paths, accounts = material.paths, material.worlds.accounts
    if not accounts or "tst_j" not in estimates:
        return {}
    bills = np.sum([replication.world_bills for replication in material.replications], axis=0)
    joules, electricity_usd, operation_g, embodied_g = bills.T
    seconds, completed = sum(path.window.seconds for path in paths), sum(path.completed for path in paths)
    usd = np.array([float(dollars_of(a, np.array(seconds), e)) for a, e in zip(accounts, electricity_usd, strict=True)])
    tokens = sum(path.output_tokens for path in paths)
    values = {
        "tst_j": joules / completed,
        "tpw_tokens_per_j": tokens / joules,
        "mean_w": joules / seconds,
        "gco2_per_task": (operation_g + embodied_g) / completed,
        "operation_gco2_per_task": operation_g / completed,
        "embodied_gco2_per_task": embodied_g / completed,
        "usd_per_task": usd / completed,
        "usd_per_1k_output_tokens": 1000 * usd / tokens,
    }
    return {name: value for name, value in values.items() if name in estimates}


def _simulated(material: Material, nominal: Mapping[str, Estimate], energy: bool) -> dict[str, Floats]:
    """Values in each world that was simulated: the study's own, moved by the difference on the same random numbers."""
    paths = {replication.number: replication.path for replication in material.replications}
    moved: dict[str, list[float]] = {}
    for accounts, (number, path) in zip(material.worlds.accounts, material.worlds.simulated, strict=True):
        there = estimates_of([path], accounts, energy)
        here = estimates_of([paths[number]], material.accounts, energy)
        for name in nominal.keys() & there.keys() & here.keys():
            moved.setdefault(name, []).append(nominal[name].value + there[name].value - here[name].value)
    return {name: np.array(moved[name]) for name in nominal if name in moved}


def cohort_after(warm_up: int, tasks: int) -> Cohort:
    """A cohort of so many tasks after a warm-up, which is rounded up to whole batches of MSER-5."""
    batch = statistics.MSER_BATCH
    return Cohort(-(-warm_up // batch) * batch, tasks)
