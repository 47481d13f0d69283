"""From a log to a result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.description.scenario import Scenario
from hsim.description.system import System
from hsim.errors import HsimError
from hsim.log import Log, Outcome, Stage
from hsim.metrics.accounts import Accounts
from hsim.metrics.ledger import ATTRIBUTIONS, BOUNDARIES, Ledger, Window, busy_seconds, keep_books
from hsim.metrics.notes import assumptions_of, beyond_measured, bottleneck_of, evidence_of, warnings_of
from hsim.metrics.power import facility_joules
from hsim.metrics.result import Energy, Money, PoolUse, Result, SloOutcome, Spread, StageAnatomy
from hsim.units import KWH_J
from hsim.workload.tasks import Drawn

LEDGER_TOLERANCE = 1e-9
MIN_TAIL_POINTS = 10
STATISTICS = "one terminating path: first arrival to last completion; no sampling interval"


def summarise(log: Log, system: System, accounts: Accounts, drawn: Drawn) -> Result:
    """Every figure of one run. Asserts that the ledger balances with the integral of power."""
    tables = log.arrays()
    tasks, visits = tables["tasks"], tables["visits"]
    window = Window(float(tasks["arrival_s"].min()), float(tasks["arrival_s"].max()), float(tasks["ended_s"].max()))
    served = tasks["outcome"] == Outcome.SERVED
    count, failed = int(served.sum()), int((~served).sum())
    if not count:
        raise HsimError(f"{system.document.file}: none of {failed} tasks was completed; each was shed or timed out")
    samples = _samples(tasks, visits)
    kept = np.isin(visits["task"], tasks["task"][served])
    output_tokens = int(visits["output_tokens"][kept].sum())
    ledger = keep_books(log, tables, accounts, window)
    unavailable = _unavailable(system)
    energy = None if "energy" in unavailable else _energy(log, tables, accounts, ledger, count, output_tokens)
    kwh = energy.total_j / KWH_J if energy else None
    stages, pools = _stages(system, visits, count), _pools(log, tables, system, window)
    scenario = system.scenario
    return Result(
        scenario=system.document.file,
        scenario_sha256=scenario_hash(scenario),
        hsim_version=hsim_version(),
        seed=scenario.seed,
        statistics=STATISTICS,
        tasks=count,
        timed_out=int((tasks["outcome"] == Outcome.TIMED_OUT).sum()),
        shed=int((tasks["outcome"] == Outcome.SHED).sum()),
        preemptions=len(log.preemptions),
        output_tokens=output_tokens,
        window_s=window.seconds,
        arrivals_s=window.arrivals_end_s - window.start_s,
        drain_s=window.end_s - window.arrivals_end_s,
        tasks_per_s=count / window.seconds,
        output_tokens_per_s=output_tokens / window.seconds,
        goodput_tasks_per_s=_good_tasks(scenario, samples) / window.seconds,
        latency={name: spread(sample.seconds) for name, sample in samples.items()},
        slo=_slo_outcomes(scenario, samples, failed),
        energy=energy,
        money=None if "money" in unavailable else _money(accounts, window, kwh, count, output_tokens),
        gco2_per_task=None if kwh is None else kwh * accounts.site.gco2_per_kwh / count,
        stages=stages,
        pools=pools,
        bottleneck=bottleneck_of(stages, pools),
        warnings=warnings_of(drawn, stages, pools, window) + beyond_measured(log, system, tables["steps"]),
        unavailable=unavailable,
        evidence=evidence_of(system),
        assumptions=assumptions_of(system),
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


@dataclass(frozen=True)
class _Sample:
    """Seconds of one latency, and the row of the task (among those served) that each belongs to. Shapes (n,)."""

    seconds: NDArray[np.float64]
    owner: NDArray[np.int64]


def _samples(tasks: Any, visits: Any) -> dict[str, _Sample]:
    """Each latency of the tasks that were served: ttft and tpot by visit, answer_ttft and e2e by task.

    Where prefill has a pool of its own, the first token comes from there.
    """
    order = np.argsort(tasks["task"])
    order = order[tasks["outcome"][order] == Outcome.SERVED]
    ids, arrival_s, ended_s = tasks["task"][order], tasks["arrival_s"][order], tasks["ended_s"][order]
    kept = np.isin(visits["task"], ids)
    first_stage = Stage.PREFILL if (visits["stage"] == Stage.PREFILL).any() else Stage.GENERATE
    first = {name: column[kept & (visits["stage"] == first_stage)] for name, column in visits.items()}
    rows = {name: column[kept & (visits["stage"] == Stage.GENERATE)] for name, column in visits.items()}
    later_tokens = rows["output_tokens"] - (first_stage is Stage.GENERATE)
    several = later_tokens > 0
    tpot_s = (rows["served_s"] - rows["first_token_s"])[several] / later_tokens[several]
    first_owner, owner = np.searchsorted(ids, first["task"]), np.searchsorted(ids, rows["task"][several])
    answers = np.lexsort((first["round"], first["task"]))
    answers = answers[np.append(np.diff(first["task"][answers]) > 0, True)]  # each task's last round
    everybody = np.arange(len(ids))
    samples = {
        "ttft": _Sample(first["first_token_s"] - first["ready_s"], first_owner),
        "tpot": _Sample(tpot_s, owner),
        "answer_ttft": _Sample(first["first_token_s"][answers] - arrival_s, everybody),
        "e2e": _Sample(ended_s - arrival_s, everybody),
    }
    return {name: sample for name, sample in samples.items() if len(sample.seconds)}


def latency_seconds(tasks: Any, visits: Any) -> dict[str, NDArray[np.float64]]:
    """Seconds of each latency of the tasks that were served: ttft and tpot by visit, answer_ttft and e2e by task."""
    return {name: sample.seconds for name, sample in _samples(tasks, visits).items()}


def _slo_outcomes(scenario: Scenario, samples: dict[str, _Sample], failed: int) -> tuple[SloOutcome, ...]:
    """Each objective against this path. A task that was shed or given up counts as one miss."""
    outcomes = []
    for metric, sample in samples.items():
        if slo := getattr(scenario.slo, metric):
            kept = int((sample.seconds <= slo.max_s).sum())
            attained = kept / (len(sample.seconds) + failed)
            outcomes.append(SloOutcome(metric, slo.max_s, slo.p, attained, attained >= slo.p))
    return tuple(outcomes)


def _good_tasks(scenario: Scenario, samples: dict[str, _Sample]) -> int:
    """Tasks that were served and kept every objective, those of each of their visits included."""
    good = np.ones(len(samples["e2e"].seconds), dtype=bool)
    for metric, sample in samples.items():
        if slo := getattr(scenario.slo, metric):
            good[sample.owner[sample.seconds > slo.max_s]] = False
    return int(good.sum())


def _energy(
    log: Log, tables: dict[str, Any], accounts: Accounts, ledger: Ledger, count: int, output_tokens: int
) -> Energy:
    total_j, window = ledger.joules(), ledger.window
    integral_j = facility_joules(log, tables, accounts, window)
    gap = abs(total_j - integral_j) / integral_j if integral_j else abs(total_j)
    assert gap <= LEDGER_TOLERANCE, f"the ledger holds {total_j} J, the integral of power is {integral_j} J"
    joules = {a: {b: ledger.joules(a, b) for b in BOUNDARIES} for a in ATTRIBUTIONS}
    drain = Window(window.arrivals_end_s, window.end_s, window.end_s)
    return Energy(
        tst_j={a: {b: j / count for b, j in row.items()} for a, row in joules.items()},
        tpw_tokens_per_j={
            a: {b: output_tokens / j if j else None for b, j in row.items()} for a, row in joules.items()
        },
        total_j=total_j,
        drain_j=facility_joules(log, tables, accounts, drain),
        mean_w=total_j / window.seconds,
        accounts=tuple(ledger.accounts()),
        ledger_gap_fraction=gap,
    )


def _unavailable(system: System) -> dict[str, str]:
    """What cannot be said for want of a figure, and which figure."""
    why: dict[str, str] = {}
    prices = ("rent_usd_per_h", "capex_usd")
    for name, explanation in system.figures.unknown.items():
        why.setdefault("money" if name.endswith(prices) else "energy", explanation)
    if "energy" in why:
        why["co2"] = why["energy"]
        if system.scenario.site.cost.basis == "own":
            why.setdefault("money", why["energy"])
    return why


def _money(accounts: Accounts, window: Window, kwh: float | None, count: int, output_tokens: int) -> Money:
    site = accounts.site
    servers_usd = sum(tier.usd_per_s for tier in accounts.tiers.values()) * window.seconds
    electricity_usd = kwh * site.usd_per_kwh if site.cost.basis == "own" and kwh is not None else 0.0
    total_usd = servers_usd + electricity_usd
    return Money(
        basis=site.cost.basis,
        servers_usd=servers_usd,
        electricity_usd=electricity_usd,
        usd_per_task=total_usd / count,
        usd_per_1k_output_tokens=total_usd / output_tokens * 1000,
    )


def _stages(system: System, visits: Any, count: int) -> tuple[StageAnatomy, ...]:
    anatomy = []
    for stage in Stage:
        mine = visits["stage"] == stage
        if not mine.any():
            continue
        rows = {name: column[mine] for name, column in visits.items()}

        def per_task(values: NDArray[np.float64]) -> float:
            return float(values.sum()) / count

        anatomy.append(
            StageAnatomy(
                stage=stage.name.lower(),
                pool=getattr(system.scenario.stages, stage.name.lower()),
                visits_per_task=float(mine.sum()) / count,
                transfer_s=per_task(rows["queued_s"] - rows["ready_s"]),
                wait_s=per_task(rows["started_s"] - rows["queued_s"]),
                service_s=per_task(rows["served_s"] - rows["started_s"]),
                outside_s=per_task(rows["ended_s"] - rows["served_s"]),
                dynamic_j=per_task(rows["dynamic_j"] + rows["host_dynamic_j"]),
                occupied_j=per_task(rows["idle_j"] + rows["host_idle_j"]),
            )
        )
    return tuple(anatomy)


def _pools(log: Log, tables: dict[str, Any], system: System, window: Window) -> tuple[PoolUse, ...]:
    steps, visits = tables["steps"], tables["visits"]
    accelerators_s, uses = busy_seconds(log, steps), []
    stages = system.scenario.stages
    for name, pool in log.pools.items():
        if pool.engine:
            busy_s = sum(accelerators_s[i] for i in pool.devices)
            rows = np.isin(steps["device"], pool.devices)
            seconds = (steps["end_s"] - steps["start_s"])[rows]
            batch = float((steps["decodes"][rows] * seconds).sum() / seconds.sum()) if rows.any() else 0.0
            kv = _kv_token_seconds(steps, rows) / (pool.capacity * pool.kv_capacity_tokens * window.seconds)
            uses.append(PoolUse(name, pool.what, busy_s / (pool.capacity * window.seconds), batch, kv))
        else:
            rows = np.isin(visits["stage"], [s for s in Stage if getattr(stages, s.name.lower()) == name])
            busy_s = float((visits["served_s"] - visits["started_s"])[rows].sum())
            uses.append(PoolUse(name, pool.what, busy_s / (pool.capacity * window.seconds)))
    return tuple(uses)


def _kv_token_seconds(steps: Any, rows: Any) -> float:
    """Tokens in KV cache times seconds over the steps of these rows. Context grows by a token a sequence and step."""
    context = steps["context_tokens"] + (steps["steps"] - 1) / 2 * steps["decodes"] + steps["chunk_context_tokens"]
    return float((context * (steps["end_s"] - steps["start_s"]))[rows].sum())
