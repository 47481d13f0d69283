"""Results in words: the verdict, the four figures, where the time goes, and what to change next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hsim.dashboard.state import State
from hsim.dashboard.variants import gpu_only
from hsim.description.system import System
from hsim.metrics.result import Comparison, Difference, Interval, PoolUse, Result, SloVerdict, Study
from hsim.report.names import SHORT_NAMES, figure_name
from hsim.units import WH_J, readable_error, readable_range, readable_seconds

QUANTILES = {"p99_s": 0.99, "p95_s": 0.95, "p90_s": 0.9, "p50_s": 0.5}
FEW_BUSY = 0.05  # a tier whose cores are less busy than this is worth doing without
FILLED = 0.7  # of a pool that is enlarged, so much is to be in use
SLACK = 0.6  # a fleet that offers less than this of its work to its fullest pool may be larger than it need be

Verdict = Literal["PASS", "FAIL", "UNDECIDED", "UNSTABLE", "NONE"]
KEPT = {
    "ttft": "of first tokens come",
    "tpot": "of answers keep a mean time per token",
    "answer_ttft": "of final answers begin",
    "e2e": "of tasks end",
}


@dataclass(frozen=True)
class Tile:
    """One of the four figures: the value, its interval, and what else there is to say."""

    title: str
    value: str
    interval: str
    note: str = ""


@dataclass(frozen=True)
class Advice:
    """What to change next, and the settings that change it; none where there is nothing to click."""

    text: str
    settings: Mapping[str, Any] | None = None


def verdict_of(study: Study, wanted: int) -> Verdict:
    """The worst verdict of a study so far: stability first, then objectives. One of several paths bears none."""
    if study.is_unstable:
        return "UNSTABLE"
    verdicts = [slo.verdict for slo in study.slo]
    if not verdicts:
        return "NONE"
    if study.replications == 1 < wanted:
        return "UNDECIDED"
    return next(v for v in ("FAIL", "UNDECIDED", "PASS") if v in verdicts)


def sentence(study: Study, verdict: Verdict, wanted: int) -> str:
    """The answer in one sentence; of a study that is not complete, so far."""
    if verdict == "UNSTABLE":
        assert study.stability is not None
        return (
            f"This fleet cannot keep up: {study.stability.reason}. No latency, energy or cost of a steady state exists."
        )
    if verdict == "NONE":
        return "No objective is set, so there is no verdict; set one under Objectives."
    named = [slo for slo in study.slo if slo.verdict == verdict] or list(study.slo)
    said = " and ".join(_attained(slo) for slo in named)
    if study.replications < wanted:
        said = f"{said}; so far, after {study.replications} of {wanted} replications"
    if verdict == "PASS":
        return f"This fleet meets its objectives: {said}."
    if verdict == "FAIL":
        return f"This fleet misses {'an objective' if len(named) == 1 else 'its objectives'}: {said}."
    return f"Not decided: {said}."


def _attained(slo: SloVerdict) -> str:
    value = slo.attained.value
    assert value is not None
    return f"{value:.1%} {KEPT[slo.metric]} within {readable_seconds(slo.max_s)} ({slo.p:.0%} wanted)"


def fleet_words(system: System) -> str:
    """`1 × epyc-9654-2s + 2 × hgx-h100-8`."""
    return " + ".join(f"{tier.count} × {tier.server.name}" for tier in system.tiers.values())


# ---- the four figures


def tiles(found: Study | Result, state: State, beside: Study | None = None) -> list[Tile]:
    """Latency, energy, money and CO2, in the units that were chosen; the latency at a quantile that `beside` has too."""
    figures = found.figures() if isinstance(found, Study) else _one_path(found)
    if beside is not None:
        there = {name for name, interval in beside.figures().items() if interval.value is not None}
        figures = {name: interval for name, interval in figures.items() if name in there or "." not in name}
    each, thousand = ("a task", "1,000 tasks") if state.per == "task" else ("of 1k tokens", "1M tokens")
    why = found.unavailable
    return [
        _latency_tile(found, figures),
        _tile(f"Energy {each}", _energy(figures, state), state.energy, why.get("energy", "")),
        _tile(f"Cost of {thousand}", scaled(_money(figures, state), 1000.0), "USD", why.get("money", "")),
        _tile(f"CO2 {each}", _carbon(figures, state), "g", why.get("co2", "")),
    ]


def _one_path(result: Result) -> dict[str, Interval]:
    """The figures of one path under a study's names."""
    found: dict[str, float | None] = {}
    if result.energy:
        found["tst_j"] = result.energy.tst_j["full"]["facility"]
        found["tpw_tokens_per_j"] = result.energy.tpw_tokens_per_j["full"]["facility"]
    if result.money:
        found["usd_per_task"] = result.money.usd_per_task
        found["usd_per_1k_output_tokens"] = result.money.usd_per_1k_output_tokens
    found["gco2_per_task"] = result.gco2_per_task
    for metric, spread in result.latency.items():
        for name in ("mean_s", *QUANTILES):
            found[f"{metric}.{name}"] = getattr(spread, name)
    return {name: Interval(value) for name, value in found.items()}


def _latency_tile(found: Study | Result, figures: Mapping[str, Interval]) -> Tile:
    """The latency that has an objective, at the nearest quantile that is estimable."""
    metric, wanted, slo = "e2e", 0.95, None
    for candidate in ("e2e", "answer_ttft", "ttft", "tpot"):
        if slo := next((s for s in found.slo if s.metric == candidate), None):
            metric, wanted = candidate, slo.p
            break
    name = nearest_quantile(figures, metric, wanted)
    if name not in figures or figures[name].value is None:
        return Tile(SHORT_NAMES[metric], "–", "", "not estimable" if found.latency else "there is no steady state")
    limit = f"objective {readable_seconds(slo.max_s)}" if slo else "no objective"
    return Tile(figure_name(name)[0], *_split(figures[name], "s"), limit)


def nearest_quantile(figures: Mapping[str, Interval], metric: str, wanted: float) -> str:
    """The name of the estimable quantile of a metric that is nearest to the wanted one; of its mean where none is."""
    known = [name for name in QUANTILES if (found := figures.get(f"{metric}.{name}")) and found.value is not None]
    near = min(known, key=lambda name: (abs(QUANTILES[name] - wanted), -QUANTILES[name]), default="mean_s")
    return f"{metric}.{near}"


def scaled(interval: Interval | None, factor: float) -> Interval | None:
    """An interval times a factor."""
    if interval is None or interval.value is None:
        return None
    if interval.low is None or interval.high is None:
        return Interval(interval.value * factor)
    return Interval(interval.value * factor, interval.low * factor, interval.high * factor)


def inverse(interval: Interval | None) -> Interval | None:
    """The interval of 1/x, exactly: its ends change places."""
    if interval is None or not interval.value:
        return None
    if not interval.low or not interval.high:
        return Interval(1 / interval.value)
    return Interval(1 / interval.value, 1 / interval.high, 1 / interval.low)


def _energy(figures: Mapping[str, Interval], state: State) -> Interval | None:
    each_j = figures.get("tst_j") if state.per == "task" else scaled(inverse(figures.get("tpw_tokens_per_j")), 1000.0)
    return scaled(each_j, 1 / WH_J if state.energy == "Wh" else 1.0)


def _money(figures: Mapping[str, Interval], state: State) -> Interval | None:
    return figures.get("usd_per_task" if state.per == "task" else "usd_per_1k_output_tokens")


def _carbon(figures: Mapping[str, Interval], state: State) -> Interval | None:
    task_g, task_j = figures.get("gco2_per_task"), figures.get("tst_j")
    if state.per == "task" or task_g is None or task_j is None or not task_g.value or not task_j.value:
        return task_g
    return scaled(scaled(inverse(figures["tpw_tokens_per_j"]), 1000.0), task_g.value / task_j.value)


def _tile(title: str, interval: Interval | None, unit: str, unavailable: str) -> Tile:
    if interval is None or interval.value is None or math.isnan(interval.value):
        return Tile(title, "–", "", unavailable or "not available")
    notes = {"USD": "servers by the hour", "g": "operation alone"}
    return Tile(title, *_split(interval, unit), notes.get(unit, "facility, full attribution"))


def _split(interval: Interval, unit: str) -> tuple[str, str]:
    """Value with its unit, and its half-width: `2.158 kJ` and `± 0.037`."""
    assert interval.value is not None
    text = readable_error(interval.value, interval.half_width, "" if unit == "USD" else unit)
    value, plus, rest = text.partition(" ± ")
    half, _, shown = rest.partition(" ")
    value = f"{value} {shown}".strip() if plus else text
    return f"${value}" if unit == "USD" else value, f"± {half}" if plus else ""


# ---- comparisons


def says_difference(comparison: Comparison) -> str:
    """What a change does, in one sentence: the figures whose differences are shown, and the verdicts."""
    here, there = comparison.studies
    if not comparison.differences or not comparison.differences[0]:
        which = [name for name, study in (("now", here), ("with the change", there)) if study.is_unstable]
        return f"No steady state {' nor '.join(which)}: the fleet cannot keep up, and nothing can be compared."
    found = {d.figure: d for d in comparison.differences[0]}
    said = {name: _says(name, found[figure]) for figure, name in SAID.items() if figure in found}
    shown = [words for words in said.values() if words]
    not_shown = ["latency" if name == "tasks" else name for name, words in said.items() if not words]
    parts = [f"The change makes {', '.join(shown)}"] if shown else []
    if not_shown:  # which is not to say that there is none
        parts.append(f"no difference is shown in {', '.join(not_shown)} by {there.replications} replications")
    turned = [
        f"the objective for {SHORT_NAMES[slo.metric]} turns from {before.verdict} to {slo.verdict}"
        for before, slo in _slos(here, there)
    ]
    text = "; ".join([*parts, *turned]) + "."
    return text[0].upper() + text[1:]


SAID = {"e2e.mean_s": "tasks", "tst_j": "energy a task", "usd_per_task": "cost a task", "gco2_per_task": "CO2 a task"}


def _says(name: str, difference: Difference) -> str:
    """A difference in words; empty where none is shown."""
    if difference.verdict == "no difference shown" or not difference.first:
        return ""
    percent = abs(difference.other / difference.first - 1)
    words = ("slower", "faster") if name == "tasks" else ("higher", "lower")
    return f"{name} {percent:.1%} {words[difference.verdict == 'lower']}"


def _slos(here: Study, there: Study) -> list[tuple[SloVerdict, SloVerdict]]:
    """Objectives whose verdict changes."""
    before = {slo.metric: slo for slo in here.slo}
    both = [(before[slo.metric], slo) for slo in there.slo if slo.metric in before]
    return [(was, slo) for was, slo in both if was.verdict != slo.verdict]


def differences_table(comparison: Comparison) -> list[dict[str, str]]:
    """All differences, as people read them."""
    rows = []
    for d in comparison.differences[0]:
        title, unit = figure_name(d.figure)
        rows.append({
            "figure": title,
            "now": _one(d.first, unit),
            "with the change": _one(d.other, unit),
            "difference": readable_error(d.other - d.first, d.interval.half_width, unit),
            "shown": d.verdict,
            "by rough figures": readable_range(d.by_worlds.low, d.by_worlds.high, unit) if d.by_worlds else "–",
            "pairing saves": f"{d.variance_ratio:,.0f} ×" if d.variance_ratio else "–",
        })  # fmt: skip
    return rows


def _one(value: float, unit: str) -> str:
    return readable_error(value, None, unit)


# ---- what to change next


def advice(study: Study, verdict: Verdict, system: System) -> Advice:
    """The next thing to try: what is missing where it fails, what is idle where it passes."""
    if verdict == "UNSTABLE":
        return _more_of(_fullest(study), system, _load(study))
    if verdict == "FAIL":
        return _more_of(_slowest(study), system, 1.0)
    idle = _idle_tier(study, system)
    if idle:
        return idle
    load, pool = _load(study), _fullest(study)
    tier = system.tier_of(pool)
    if verdict == "PASS" and load < SLACK and tier.count > 1:
        fewer = max(1, math.ceil(tier.count * load / FILLED))
        text = (
            f"Pool {pool} is offered {load:.0%} of its work: try {fewer} × {tier.server.name} instead of {tier.count}."
        )
        return Advice(text, {f"fleet.{tier.name}.count": min(fewer, tier.count - 1)})
    return Advice("Nothing stands out. Raise the load to see how far this fleet carries, or try another one.")


def _load(study: Study) -> float:
    """The load of the fullest pool, over what it can do."""
    if study.stability is not None and study.stability.offered:
        return max(load.value or 0.0 for load in study.stability.offered.values())
    return max((_use(pool) for pool in study.pools), default=0.0)


def _fullest(study: Study) -> str:
    if study.stability is not None and study.stability.offered:
        offered = study.stability.offered
        return max(offered, key=lambda pool: offered[pool].value or 0.0)
    return max(study.pools, key=_use).pool


def _use(pool: PoolUse) -> float:
    return pool.busy_fraction if pool.kv_used_fraction is None else pool.kv_used_fraction


def _slowest(study: Study) -> str:
    """The pool where tasks spend most of the time that a larger one would shorten."""
    return max(study.stages, key=lambda s: s.wait_s + s.service_s).pool


def _more_of(pool: str, system: System, load: float) -> Advice:
    tier = system.tier_of(pool)
    count = max(tier.count + 1, math.ceil(tier.count * load / FILLED))
    text = f"Pool {pool} is what holds tasks up: try {count} × {tier.server.name} instead of {tier.count}."
    return Advice(text, {f"fleet.{tier.name}.count": count})


def _idle_tier(study: Study, system: System) -> Advice | None:
    """A tier of CPU servers that hardly work, while others have cores of their own."""
    uses = {use.pool: use for use in study.pools}
    for name, tier in system.tiers.items():
        pools = [pool for pool in system.core_pools() if system.tier_of(pool) is tier]
        alone = pools and not tier.accelerators_per_server
        if alone and all(uses[pool].busy_fraction < FEW_BUSY for pool in pools):
            busy = max(uses[pool].busy_fraction for pool in pools)
            text = f"The cores of {name} are {busy:.1%} busy: see whether the GPU servers' own cores will do."
            return Advice(text, gpu_only(system))
    return None
