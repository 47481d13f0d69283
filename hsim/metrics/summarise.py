"""From a log to a result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

from hsim.description.scenario import Scenario
from hsim.description.system import System
from hsim.errors import HsimError
from hsim.log import Log, Stage
from hsim.metrics.accounts import Accounts
from hsim.metrics.ledger import ATTRIBUTIONS, BOUNDARIES
from hsim.metrics.measured import Lens, Measured, Objective, measure
from hsim.metrics.notes import (
    accuracy_of,
    assumptions_of,
    beyond_measured,
    bottleneck_of,
    choices_taken,
    evidence_of,
    warnings_of,
)
from hsim.metrics.quality import quality_of, solved_by
from hsim.metrics.result import (
    POOLS_JOINED,
    Energy,
    Interval,
    Money,
    PoolUse,
    Problems,
    Result,
    ServiceUse,
    SloOutcome,
    Spread,
    StageAnatomy,
)
from hsim.metrics.statistics import MIN_TAIL_POINTS
from hsim.workload.tasks import Drawn

KEPT = ("kept", "wrongly_kept", "asked_again", "edge_full")  # of Keeps, as fractions of tasks
STATISTICS = "one terminating path: first arrival to last completion; no sampling interval"


def summarise(log: Log, system: System, accounts: Accounts, drawn: Drawn) -> Result:
    """Every figure of one run. Asserts that the ledger balances with the integral of power."""
    scenario = system.scenario
    path = measure(log, Lens(accounts, scenario.slo))
    if not path.served:
        raise HsimError(
            f"{system.document.file}: none of {path.cohort.tasks} tasks was completed; each was shed, timed out or lost"
        )
    window, count, tokens = path.window, path.served, round(path.output_tokens)
    unavailable = unavailable_of(system)
    energy = None if "energy" in unavailable else _energy(path)
    stages, pools = anatomy_of([path], scenario), pools_of([path])
    return Result(
        scenario=system.name,
        scenario_sha256=scenario_hash(scenario),
        hsim_version=hsim_version(),
        seed=scenario.seed,
        statistics=STATISTICS,
        tasks=count,
        timed_out=path.timed_out,
        shed=path.shed,
        preemptions=path.preemptions,
        output_tokens=tokens,
        window_s=window.seconds,
        arrivals_s=window.arrivals_end_s - window.start_s,
        drain_s=window.end_s - window.arrivals_end_s,
        tasks_per_s=count / window.seconds,
        output_tokens_per_s=tokens / window.seconds,
        goodput_tasks_per_s=path.good / window.seconds,
        latency={name: spread(values) for name, values in path.latency.items()},
        slo=tuple(_outcome(scenario, objective) for objective in path.objectives),
        energy=energy,
        money=None if "money" in unavailable else _money(accounts, path),
        gco2_per_task=None if "co2" in unavailable else path.bill.grams / count,
        gco2_of={}
        if "co2" in unavailable
        else {part: getattr(path.bill, f"{part}_g") / count for part in parts_of_co2(accounts)},
        keeps={f"{key}_fraction": getattr(path.keeps, key) / path.keeps.tasks for key in KEPT} if path.keeps else {},
        stages=stages,
        pools=pools,
        service=service_of([path], system),
        bottleneck=bottleneck_of(stages, pools),
        warnings=(
            *choices_taken(system),
            *warnings_of(drawn, stages, pools, window),
            *beyond_measured(log, system),
            *system.figures.cautions,
        ),
        accuracy=accuracy_of(system),
        unavailable=unavailable,
        evidence=evidence_of(system),
        assumptions=assumptions_of(system),
        problems=problems_of(system, Interval(energy.tpw_tokens_per_j["full"]["facility"]), pools) if energy else (),
        quality=quality_of(system, pools),
    )


def scenario_hash(scenario: Scenario) -> str:
    """SHA-256 of the scenario's content: equal for equal scenarios, however they were written."""
    return hashlib.sha256(scenario.model_dump_json().encode()).hexdigest()


def hsim_version() -> str:
    """The installed version, or `unknown` where hsim runs without being installed."""
    try:
        return version("hsim")
    except PackageNotFoundError:
        return "unknown"


def spread(values: NDArray[np.float64]) -> Spread:
    """Mean and quantiles of a sample; a tail of fewer than ten points is not estimable (None)."""

    def quantile(p: float) -> float | None:
        return float(np.quantile(values, p)) if len(values) * (1 - p) >= MIN_TAIL_POINTS else None

    return Spread(
        len(values),
        float(values.mean()),
        quantile(0.5),
        quantile(0.9),
        quantile(0.95),
        quantile(0.99),
        float(values.max()),
    )


def _outcome(scenario: Scenario, objective: Objective) -> SloOutcome:
    slo = getattr(scenario.slo, objective.metric)
    attained = objective.within / objective.points
    return SloOutcome(objective.metric, slo.max_s, slo.p, attained, attained >= slo.p)


def _energy(path: Measured) -> Energy:
    ledger, count, tokens = path.ledger, path.served, round(path.output_tokens)
    joules = {a: {b: ledger.joules(a, b) for b in BOUNDARIES} for a in ATTRIBUTIONS}
    return Energy(
        tst_j={a: {b: j / count for b, j in row.items()} for a, row in joules.items()},
        tpw_tokens_per_j={a: {b: tokens / j if j else None for b, j in row.items()} for a, row in joules.items()},
        total_j=ledger.joules(),
        drain_j=path.drain_j,
        mean_w=ledger.joules() / path.window.seconds,
        accounts=tuple(ledger.accounts()),
        ledger_gap_fraction=path.ledger_gap_fraction,
    )


def unavailable_of(system: System) -> dict[str, str]:
    """What cannot be said for want of a figure, and which figure."""
    why: dict[str, str] = {}
    prices = ("rent_usd_per_h", "capex_usd")
    for name, explanation in system.figures.unknown.items():
        what = "money" if name.endswith(prices) else "co2" if name.endswith("embodied_kgco2") else "energy"
        why.setdefault(what, explanation)
    if "energy" in why:
        why["co2"] = why["energy"]
        if any(site.cost.basis == "own" for site in system.scenario.sites_in_use().values()):
            why.setdefault("money", why["energy"])
    model = system.model_of(system.scenario.stages.generate)
    if model.problems_per_token and not solved_by(system) and not system.scenario.keep:
        precisions = ", ".join(dict.fromkeys(solved.precision for solved in model.problems_per_token))
        why["problems"] = f"problems per token of {model.name} are known in {precisions} alone"
    return why


def parts_of_co2(accounts: Accounts) -> tuple[str, ...]:
    """What is counted in a result's CO2."""
    embodied = any(site.embodied for site in accounts.sites.values())
    return ("operation", "embodied") if embodied else ("operation",)


def problems_of(system: System, tpw: Interval, pools: Sequence[PoolUse]) -> tuple[Problems, ...]:
    """Problems per joule of each benchmark for which the answering model's PPT is known with the weights that it served with."""
    found = []
    for solved in solved_by(system, pools):
        ppt = solved.problems_per_token
        if ppt.value is not None and tpw.value is not None:
            low, high = (ppt.value if end is None else end for end in (ppt.low, ppt.high))
            found.append(Problems(solved.benchmark, low, ppt.value, high, ppt.source, tpw.times(ppt.value)))
    return tuple(found)


def _money(accounts: Accounts, path: Measured) -> Money:
    servers_usd = sum(tier.usd_per_s for tier in accounts.tiers.values()) * path.window.seconds
    total_usd = servers_usd + path.bill.electricity_usd
    return Money(
        basis=accounts.basis,
        servers_usd=servers_usd,
        electricity_usd=path.bill.electricity_usd,
        usd_per_task=total_usd / path.served,
        usd_per_1k_output_tokens=total_usd / round(path.output_tokens) * 1000,
    )


def anatomy_of(paths: Sequence[Measured], scenario: Scenario) -> tuple[StageAnatomy, ...]:
    """What each stage costs a served task, on average over the cohorts of all paths."""
    served = sum(path.served for path in paths)
    anatomy = []
    for stage in (s.name.lower() for s in Stage):
        sums = [path.stages[stage] for path in paths if stage in path.stages]
        if sums:
            visits, *times_s, work_j, idle_j = (float(value) / served for value in np.sum(sums, axis=0))
            joules = (None if np.isnan(value) else value for value in (work_j, idle_j))
            anatomy.append(StageAnatomy(stage, POOLS_JOINED.join(scenario.serving(stage)), visits, *times_s, *joules))
    return tuple(anatomy)


def pools_of(paths: Sequence[Measured]) -> tuple[PoolUse, ...]:
    """How busy each pool was in the windows of all paths together."""
    window_s = sum(path.window.seconds for path in paths)
    uses = []
    for name, record in paths[0].records.items():
        sums = np.sum([astuple(path.pools[name]) for path in paths], axis=0).tolist()
        busy_s, busiest_s, decode_s, kv_token_s, tokens, other = sums
        busy = busy_s / (record.capacity * window_s)
        imbalance = busiest_s * len(record.devices) / busy_s if busy_s else None
        if record.engine:
            kv = kv_token_s / (record.capacity * record.kv_capacity_tokens * window_s)
            shares = ((tokens - other) / tokens, other / tokens) if tokens else (1.0, 0.0)
            weights = dict(zip(record.weights, shares, strict=True)) if len(record.weights) > 1 else None
            uses.append(PoolUse(name, record.what, busy, decode_s / busy_s if busy_s else 0.0, kv, imbalance, weights))
        else:
            uses.append(PoolUse(name, record.what, busy, imbalance=imbalance))
    return tuple(uses)


def service_of(paths: Sequence[Measured], system: System) -> ServiceUse | None:
    """Who was in service in the windows of all paths together; None where nothing ever leaves it."""
    leaves = any(tier.leaves for tier in system.scenario.fleet.values())
    if not leaves and not any(pool.leaves for pool in system.engine_pools().values()):
        return None
    window_s, served = sum(path.window.seconds for path in paths), [path.in_service for path in paths]
    totals = {name: np.sum([astuple(one.pools[name]) for one in served], axis=0).tolist() for name in served[0].pools}
    lost_j = sum(one.lost_j for one in served)
    return ServiceUse(
        failed_tasks=sum(path.gave_up for path in paths),
        lost_visits=sum(one.lost_visits for one in served),
        lost_tokens=sum(one.lost_tokens for one in served),
        lost_j=None if np.isnan(lost_j) else lost_j,
        boots=sum(one.boots for one in served),
        available_fraction={name: 1 - broken_s / all_s for name, (_, broken_s, all_s) in totals.items()},
        serving={name: open_s / window_s for name, (open_s, _, _) in totals.items()},
    )
