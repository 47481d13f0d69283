"""Results as tables of a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hsim.metrics.result import (
    Comparison,
    Difference,
    Interval,
    Placement,
    Quality,
    Range,
    RatePoint,
    Result,
    Spread,
    Study,
    TriedFleet,
)
from hsim.report.names import ATTRIBUTION_NAMES, BOUNDARY_NAMES, FIGURE_NAMES, LATENCY_NAMES, PAID_FOR, figure_name
from hsim.units import MJ_J, plain_error, readable, readable_error, readable_range, readable_seconds, scale_of

NAME_SHOWN = 16  # last letters of a scenario's name, at the head of a column
VERDICT_STYLES = {"PASS": "green", "FAIL": "bold red", "UNDECIDED": "yellow"}


def _named(scenario: str) -> str:
    """What people call a scenario: its architecture where it has several, else its file."""
    file, _, architecture = scenario.partition(", ")
    return architecture or Path(file).stem


def result_tables(result: Result, explain: bool = False) -> RenderableType:
    """The result at a glance; with `explain`, every assumption with its reason."""
    parts: list[RenderableType] = [_headline(result), Text()]
    if result.slo:
        parts += [_slo_table(result), Text()]
    parts += [_latency_table(result), Text(), *_energy_tables(result), _stage_table(result), Text()]
    parts += [_pool_table(result), Text(), Text(f"Bottleneck  {result.bottleneck}.")]
    parts += [Text(f"Quality     {_worth(quality)}.") for quality in result.quality]
    parts += [Text(f"Accuracy    {line}.") for line in result.accuracy]
    parts += [Text(f"Warning     {warning}.", style="yellow") for warning in result.warnings]
    parts += [Text(), *_assumptions(result, explain)]
    return Group(*parts)


def pairs_table(pairs: Iterable[tuple[str, str]]) -> RenderableType:
    """Rows of what and how much."""
    table = _table("", "")
    table.show_header = False
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    for what, much in pairs:
        table.add_row(what, much)
    return table


def _table(*columns: str, title: str = "") -> Table:
    table = Table(box=None, pad_edge=False, title=title or None, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", header_style="dim", no_wrap=True)
    return table


def _headline(result: Result) -> Group:
    lines = [
        f"{_named(result.scenario)}: {result.tasks:,} tasks, {result.output_tokens:,} output tokens",
        f"Window      {readable_seconds(result.window_s)}, first arrival to last completion; the last {readable_seconds(result.drain_s)} drain the fleet"
        + (f" ({readable(result.energy.drain_j, 'J')})" if result.energy else ""),
        "Statistics  one terminating path; it has no sampling interval",
        *_failures(result),
        f"Throughput  {result.tasks_per_s:.3g} tasks/s, {result.output_tokens_per_s:,.0f} output tokens/s"
        + (f"; goodput {result.goodput_tasks_per_s:.3g} tasks/s within all objectives" if result.slo else ""),
    ]
    if result.energy:
        tst_j, tpw = result.energy.tst_j["full"]["facility"], result.energy.tpw_tokens_per_j["full"]["facility"]
        lines.append(
            f"TST         {readable(tst_j, 'J')} a task        full attribution, facility boundary, this window"
        )
        lines.append(
            f"TPW         {tpw:.3g} output tokens/J   the same; mean power {readable(result.energy.mean_w, 'W')}"
        )
    lines += [
        f"Problems    {one.per_j.value:.3g} solved per joule, if tokens go to {one.benchmark} ({one.ppt:.3g} solved a token)"
        for one in result.problems
    ]
    if result.money:
        money = result.money
        lines.append(
            f"Cost        {money.usd_per_task:.3g} USD a task, {money.usd_per_1k_output_tokens:.3g} USD per 1,000 output tokens "
            + f"({PAID_FOR[money.basis]})"
        )
    if result.gco2_per_task is not None:
        lines.append(f"CO2         {result.gco2_per_task:.3g} g a task ({_co2_of(result.gco2_of)})")
    if result.keeps:
        said = (f"{FIGURE_NAMES[name][0].lower()} {fraction:.1%}" for name, fraction in result.keeps.items())
        lines.append(f"Edge        {'; '.join(said)}")
    texts = [Text(line, style="bold" if i == 0 else "") for i, line in enumerate(lines)]
    texts += [Text(f"{what:<12}unavailable: {why}", style="yellow") for what, why in result.unavailable.items()]
    return Group(*texts)


def _co2_of(parts: Mapping[str, float]) -> str:
    """What a CO2 figure counts: its parts, with grams where there are several."""
    return ", ".join(parts) if len(parts) == 1 else ", ".join(f"{part} {grams:.3g} g" for part, grams in parts.items())


def _failures(result: Result | Study) -> list[str]:
    said = [f"{result.timed_out:,} tasks timed out"] if result.timed_out else []
    said += [f"{result.shed:,} were shed"] if result.shed else []
    said += [f"{result.preemptions:,} preemptions for want of KV cache"] if result.preemptions else []
    if (service := result.service) and service.lost_visits:
        lost = f" and {readable(service.lost_j, 'J')}" if service.lost_j is not None else ""
        said += [
            f"{service.lost_visits:,} visits lost with their device ({service.lost_tokens:,} tokens{lost} of work)"
        ]
        said += [f"{service.failed_tasks:,} tasks lost too often"] if service.failed_tasks else []
    return [f"Failures    {', '.join(said)}"] * bool(said) + _in_service(result)


def _in_service(result: Result | Study) -> list[str]:
    """Who took work, where servers or replicas leave service."""
    if not (service := result.service):
        return []
    shares = service.available_fraction
    pools = (f"{name} {serving:.2f} ({shares[name]:.2%} available)" for name, serving in service.serving.items())
    return [f"In service  {', '.join(pools)} on average; {service.boots:,} boots of servers"]


def _slo_table(result: Result) -> Table:
    table = _table("Objective", "at most", "wanted", "attained", "on this path")
    for slo in result.slo:
        verdict = Text("met", style="green") if slo.met else Text("missed", style="bold red")
        name = LATENCY_NAMES[slo.metric]
        table.add_row(name, readable_seconds(slo.max_s), f"{slo.p:.1%}", f"{slo.attained:.2%}", verdict)
    return table


def _latency_table(result: Result) -> Table:
    table = _table("Latency", "mean", "p50", "p90", "p95", "p99", "max", "n")
    for name, spread in result.latency.items():
        table.add_row(LATENCY_NAMES[name], *_spread_cells(spread))
    return table


def _spread_cells(spread: Spread) -> list[str]:
    values = [spread.mean_s, spread.p50_s, spread.p90_s, spread.p95_s, spread.p99_s, spread.max_s]
    return [readable_seconds(v) if v is not None else "not estimable" for v in values] + [f"{spread.count:,}"]


def _energy_tables(result: Result) -> list[RenderableType]:
    if not result.energy:
        return []
    table = _table("Joules a task, by attribution", *BOUNDARY_NAMES.values())
    for attribution, row in result.energy.tst_j.items():
        cells = (readable(row[boundary], "J") for boundary in BOUNDARY_NAMES)
        table.add_row(ATTRIBUTION_NAMES[attribution], *cells)
    per_task = [(account, kind, joules / result.tasks) for account, kind, joules in result.energy.accounts]
    return [table, Text(), _accounts_table(per_task), Text()]


def _accounts_table(per_task: Iterable[tuple[str, str, float]]) -> Table:
    """Accounts in joules a task, the largest first."""
    rows = sorted(per_task, key=lambda row: -row[2])
    total_j = sum(joules for _, _, joules in rows)
    table = _table("Where the joules went", "", "share", "a task")
    for account, kind, joules in rows:
        if abs(joules) <= 1e-12 * total_j:
            continue  # rounding: the account is empty
        label = {"dynamic": "work", "occupied": "idle in use", "idle": "idle", "loss": "loss"}[kind]
        share = f"{joules / total_j:.1%}" if joules >= 0.0005 * total_j else "<0.1%"
        table.add_row(account, label, share, readable(joules, "J"))
    return table


def _stage_table(result: Result | Study) -> Table:
    table = _table(
        "Anatomy of a task", "pool", "visits", "transfer", "wait", "service", "outside", "work", "idle in use"
    )
    for s in result.stages:
        times = [readable_seconds(v) if v else "–" for v in (s.transfer_s, s.wait_s, s.service_s, s.outside_s)]
        known = (v if result.energy else None for v in (s.dynamic_j, s.occupied_j))
        joules = [readable(v, "J") if v is not None else "–" for v in known]
        table.add_row(s.stage, s.pool, f"{s.visits_per_task:.2f}", *times, *joules)
    return table


def _pool_table(result: Result | Study) -> Table:
    table = _table("Pool", "busy", "sequences a step", "KV in use", "what")
    table.columns[-1].justify = "left"
    for use in result.pools:
        batch = f"{use.mean_batch:.1f}" if use.mean_batch is not None else "–"
        kv = f"{use.kv_used_fraction:.0%}" if use.kv_used_fraction is not None else "–"
        table.add_row(use.pool, f"{use.busy_fraction:.1%}", batch, kv, use.what)
    return table


def _worth(quality: Quality) -> str:
    """With which weights a pool's tokens were made, and what that leaves of its model's scores."""
    shares = ", ".join(f"{fraction:.1%} with {weights}" for weights, fraction in quality.fractions.items())
    score = "an unknown part" if quality.score_fraction is None else f"{quality.score_fraction:.1%}"
    told = "" if quality.score_fraction == 1 else f"; it scores {score} of what the unpruned model does"
    return f"of {quality.pool}'s tokens {shares}{told}"


def _assumptions(result: Result | Study, explain: bool) -> list[RenderableType]:
    counts = ", ".join(f"{count} {tier}" for tier, count in result.evidence.items())
    head = Text(f"Stands on {sum(result.evidence.values())} figures of profiles ({counts}).")
    if explain:
        table = _table("Assumed, rough or by default", "value", "why")
        table.columns[2].justify, table.columns[2].no_wrap = "left", False
        for assumption in result.assumptions:
            table.add_row(assumption.name, assumption.value, assumption.why)
        return [head, Text(), table]
    assumed = [a for a in result.assumptions if a.why.startswith("assumed")]
    others = len(result.assumptions) - len(assumed)
    named = "; ".join(f"{a.name} = {a.value}" for a in assumed)
    said = f"Assumed, since nobody published them: {named or 'none'}. {others} more are rough or defaults; --explain lists all, and why."
    return [head, Text(said, style="dim")]


# ---- studies


def study_tables(study: Study, explain: bool = False) -> RenderableType:
    """A study at a glance: verdicts first, then every figure with its interval."""
    parts: list[RenderableType] = [*study_head(study), Text()]
    for table in study_parts(study).values():
        parts += [table, Text()]
    parts.append(Text(f"Bottleneck  {study.bottleneck}."))
    parts += [Text(f"Quality     {_worth(quality)}.") for quality in study.quality]
    parts += [Text(f"Accuracy    {line}.") for line in study.accuracy]
    parts += [Text(f"Warning     {warning}.", style="yellow") for warning in study.warnings]
    parts += [Text(), *_calibration_notes(study, explain), *_assumptions(study, explain)]
    return Group(*parts)


def study_parts(study: Study) -> dict[str, Table]:
    """The tables of a study, in order, without those of a steady state that it has not."""
    parts: dict[str, Table] = {}
    if study.stability is None or study.stability.verdict != "unstable":
        parts["figures"] = _figures_table(study)
        if study.slo:
            parts["objectives"] = _verdict_table(study)
        parts["latency"] = _latency_intervals(study)
    if study.energy:
        parts["joules"] = _table("Joules a task, by attribution", *BOUNDARY_NAMES.values())
        for attribution, row in study.energy.tst_j.items():
            cells = (_cell(row[boundary], "J") for boundary in BOUNDARY_NAMES)
            parts["joules"].add_row(ATTRIBUTION_NAMES[attribution], *cells)
        parts["accounts"] = _accounts_table(study.energy.accounts)
    return parts | {"anatomy": _stage_table(study), "pools": _pool_table(study)}


def _cell(interval: Interval, unit: str) -> str:
    if interval.value is None:
        return "not estimable"
    return readable_error(interval.value, interval.half_width, unit)


def _percent(interval: Interval) -> str:
    assert interval.value is not None
    half = f" ± {interval.half_width:.1%}" if interval.half_width is not None else ""
    return f"{interval.value:+.1%}{half}"


def study_head(study: Study) -> list[Text]:
    """What was done, and whether there is a steady state: what must be known before any figure."""
    of = f" of {study.wanted}" if not study.complete else ""
    runs = f"{study.replications}{of} replications of {study.tasks:,} tasks"
    steady = "no steady state" if study.is_unstable else "steady state"
    kind = "terminating runs" if study.kind == "terminating" else steady
    lines = [Text(f"{_named(study.scenario)}: {kind}, {runs}", style="bold")]
    if not study.complete:
        lines.append(
            Text(
                "INCOMPLETE  it was interrupted; what follows is of the replications that were finished", style="yellow"
            )
        )
    if stability := study.stability:
        word = {"stable": "stable", "unstable": "UNSTABLE", "undecided": "undecided"}[stability.verdict]
        style = {"stable": "", "unstable": "bold red", "undecided": "yellow"}[stability.verdict]
        drift = f"drift {_percent(stability.drift_fraction)} of arrivals"
        lines.append(Text(f"Stability   {word}: {stability.reason} ({drift})", style=style))
        if stability.verdict == "unstable":
            lines.append(
                Text(
                    f"            {_cell(stability.arrivals_per_s, 'tasks/s')} arrive, {_cell(study.tasks_per_s, 'tasks/s')} are completed."
                )
            )
            lines.append(Text("            No latency, energy, cost or CO2 of a steady state exists."))
    if warm_up := study.warm_up:
        asked = f"MSER-5 asks for {warm_up.mser_tasks:,}, three mean passages for {warm_up.passage_tasks:,}"
        window = _cell(study.window_s, "s")
        lines.append(Text(f"Warm-up     {warm_up.tasks:,} tasks ({asked}); then windows of {window}"))
    else:
        ends = (
            "first arrival to last completion" if study.kind == "terminating" else "while every user has a task to ask"
        )
        lines.append(Text(f"Window      {ends}, {_cell(study.window_s, 's')}"))
    lines += [Text(line) for line in _failures(study)]
    if not study.is_unstable:
        lines += [Text(f"{what:<12}unavailable: {why}", style="yellow") for what, why in study.unavailable.items()]
    return lines


def _figures_table(study: Study) -> Table:
    """The headline figures, their sampling error and what rough figures do to them side by side."""
    table = _table("Full attribution, facility boundary", "95 % sampling interval", "90 % by rough figures")
    ranges = study.calibration.ranges if study.calibration else {}
    figures = study.figures()
    for name, (title, unit) in FIGURE_NAMES.items():
        if name in figures and (study.slo or name != "goodput_tasks_per_s"):
            by_worlds = readable_range(ranges[name].low, ranges[name].high, unit) if name in ranges else "–"
            counted = f" ({', '.join(study.gco2_of)})" if name == "gco2_per_task" else ""
            table.add_row(title + counted, _cell(figures[name], unit), by_worlds)
            if name == "tpw_tokens_per_j":
                _add_problems(table, study, ranges.get(name))
    return table


def _add_problems(table: Table, study: Study, tpw: Range | None) -> None:
    """Problems per joule beneath TPW: what the roughness of both does."""
    for one in study.problems:
        rough = readable_range(MJ_J * one.ppt_low * tpw.low, MJ_J * one.ppt_high * tpw.high, "") if tpw else "–"
        table.add_row(f"Problems per MJ, {one.benchmark}", _cell(one.per_j.times(MJ_J), ""), rough)


def _verdict_table(study: Study) -> Table:
    table = _table("Objective", "at most", "wanted", "attained (95 %)", "verdict")
    for slo in study.slo:
        low, high = slo.attained.low, slo.attained.high
        span = f" ({low:.2%} to {high:.2%})" if low is not None and high is not None else ""
        attained = f"{slo.attained.value:.2%}{span}"
        verdict = Text(slo.verdict, style=VERDICT_STYLES[slo.verdict])
        table.add_row(LATENCY_NAMES[slo.metric], readable_seconds(slo.max_s), f"{slo.p:.1%}", attained, verdict)
    return table


def _latency_intervals(study: Study) -> Table:
    table = _table("Latency", "mean", "p50", "p90", "p95", "p99")
    ranges = study.calibration.ranges if study.calibration else {}
    for metric, spread in study.latency.items():
        names = {"mean_s": spread.mean_s, "p50_s": spread.p50_s, "p90_s": spread.p90_s, "p95_s": spread.p95_s}
        names["p99_s"] = spread.p99_s
        table.add_row(LATENCY_NAMES[metric], *(_cell(interval, "s") for interval in names.values()))
        worlds = [ranges.get(f"{metric}.{name}") for name in names]
        if any(worlds):
            table.add_row("  by rough figures", *(readable_range(w.low, w.high, "s") if w else "–" for w in worlds))
    return table


def _calibration_notes(study: Study, explain: bool) -> list[Text]:
    if (calibration := study.calibration) is None:
        return []
    how = (
        "that were simulated on the same random numbers" if calibration.simulated else "in which only the books change"
    )
    lines = [
        f"Rough figures: {len(calibration.varied)} drawn between their bounds in {calibration.worlds} worlds {how}; more "
        "replications do not shrink this."
    ]
    if calibration.held:
        named = f": {', '.join(calibration.held)}" if explain else ""
        lines.append(f"{len(calibration.held)} more, which change times, were held; --worlds 20 draws them too{named}.")
    return [*(Text(line, style="dim") for line in lines), Text()]


# ---- comparisons


def comparison_tables(comparison: Comparison) -> RenderableType:
    """Each scenario beside the first: figures, differences, and what rough figures do to those."""
    parts: list[RenderableType] = []
    for tried in comparison.fleets:
        parts += [_fleets_table(tried, _in_servers(comparison.studies)), Text()]
    studies = comparison.studies
    if not studies:
        return Group(*parts, Text("No fleet that was tried meets the objectives.", style="bold red"))
    for study in studies:
        parts += study_head(study)
    parts.append(Text())
    for study, differences in zip(studies[1:], comparison.differences, strict=True):
        names = (_named(studies[0].scenario), _named(study.scenario))
        parts += [_differences_table(names, differences), Text()]
    if any(comparison.differences):
        note = (
            "Differences are of the same tasks, replication by replication; all their intervals together hold at 95 % "
            "(Bonferroni), and a dash says that none is shown. Pairing: how many times the replications it would take without."
        )
        parts.append(Text(note, style="dim"))
    return Group(*parts)


def _differences_table(names: tuple[str, str], differences: Iterable[Difference]) -> Table:
    first, other = names if names[0] != names[1] else ("first", "other")
    table = _table("", first[-NAME_SHOWN:], other[-NAME_SHOWN:], "difference", "", "by rough figures", "pairing")
    for d in differences:
        title, unit = figure_name(d.figure)
        scale, shown = scale_of(max(abs(d.first), abs(d.other)), unit)
        half = d.interval.half_width
        value = (d.other - d.first) / scale
        difference = f"{value:.3g}" if half is None else plain_error(value, half / scale)
        worlds = readable_range(d.by_worlds.low / scale, d.by_worlds.high / scale, "") if d.by_worlds else "–"
        pairing = _paired(d.variance_ratio) if d.variance_ratio is not None else "–"
        title = f"{title}, {shown}" if shown else title
        verdict = Text("–", style="dim") if d.verdict == "no difference shown" else Text(d.verdict, style="bold")
        table.add_row(title, f"{d.first / scale:.4g}", f"{d.other / scale:.4g}", difference, verdict, worlds, pairing)
    return table


def _paired(ratio: float) -> str:
    return f"{ratio / 1000:,.0f}k x" if ratio >= 10_000 else f"{ratio:,.{ratio < 10:d}f} x"


def _in_servers(studies: Iterable[Study]) -> str:
    """Said of what servers cost where some are owned, and their electricity comes on top."""
    return ", in servers" if any(study.money and "own" in study.money.basis for study in studies) else ""


def _fleets_table(tried: Iterable[TriedFleet], in_servers: str) -> Table:
    table = _table("Fleet, cheapest first", f"USD an hour{in_servers}", "replications", "verdict", "why")
    table.columns[-1].justify = "left"
    for fleet in tried:
        verdict = Text(fleet.verdict, style=VERDICT_STYLES.get(fleet.verdict, "bold red"))
        table.add_row(fleet.fleet, f"{fleet.usd_per_h:,.2f}", str(fleet.replications), verdict, fleet.reason)
    return table


# ---- placements


def placement_tables(placement: Placement) -> RenderableType:
    """Each architecture at its own best fleet, rate by rate, and which one takes least."""
    table, *differences = placement_parts(placement)
    lines = [Text(f"{title:<14}{who}") for title, who in least_of(placement).items()]
    note = (
        "Each architecture stands at the best of the fleets that its lists allow, as hsim plan certifies it; ± are 95 % of "
        "sampling. Differences are on the same tasks, and called so where their intervals, all together at 95 %, show them."
    )
    spaced = [part for each in differences for part in (Text(), each)]
    return Group(table, Text(), *lines, *spaced, Text(), Text(note, style="dim"))


def placement_parts(placement: Placement) -> list[Table]:
    """The figures by rate and architecture, and the differences with the first, if there are any."""
    in_servers = _in_servers(study for point in placement.points for study in point.comparison.studies)
    table = _table("Tasks/s", "architecture", "its certified fleet", f"USD/h{in_servers}", "USD for 1,000", "TST")
    table.columns[1].justify = table.columns[2].justify = "left"
    for point in placement.points:
        for i, name in enumerate(placement.architectures):
            cells = _placed(point, name) if name in point.found else _not_placed(point.comparison.fleets[i])
            table.add_row(f"{point.rate_per_s:g}" if i == 0 else "", name, *cells)
    return [table, *_placement_differences(placement)]


def _placed(point: RatePoint, name: str) -> tuple[str, ...]:
    """The cells of one architecture at one rate."""
    number = point.found.index(name)
    passed = [fleet for tried in point.comparison.fleets for fleet in tried if fleet.verdict == "PASS"][number]
    figures = point.comparison.studies[number].figures()
    money, energy = figures.get("usd_per_task"), figures.get("tst_j")
    usd = "–"
    if money and money.value is not None:
        usd = plain_error(1000 * money.value, 1000 * (money.half_width or 0.0))
    return passed.fleet, f"{passed.usd_per_h:,.2f}", usd, _cell(energy, "J") if energy else "–"


def _not_placed(tried: Sequence[TriedFleet]) -> tuple[str, ...]:
    """The cells of an architecture of which no fleet was certified: why the most promising was not."""
    near = [fleet for fleet in tried if fleet.verdict == "UNDECIDED"] or tried
    why = f" {near[0].fleet} {near[0].verdict}: {near[0].reason}" if near else ""
    return f"none certified of {len(tried)};{why}", "–", "–", "–"


def least_of(placement: Placement) -> dict[str, str]:
    """Who takes least money and least energy, at which rates, by title."""
    titles = {"Least money": "usd_per_task", "Least energy": "tst_j"}
    return {title: "; ".join(_where_best(placement, figure)) for title, figure in titles.items()}


def _where_best(placement: Placement, figure: str) -> Iterable[str]:
    """`name at 1, 2 tasks/s` for each architecture that takes least of a figure somewhere; several where none is shown to."""
    at: dict[str, list[str]] = {}
    for point in placement.points:
        at.setdefault(" or ".join(point.least(figure)) or "none certified", []).append(f"{point.rate_per_s:g}")
    return (f"{name} at {', '.join(rates)} tasks/s" for name, rates in at.items())


def _placement_differences(placement: Placement) -> list[Table]:
    """TST and cost of each architecture beside the first, with paired intervals."""
    table = _table("Tasks/s", "beside", "architecture", "cost a task", "", "TST", "", "by rough figures")
    table.columns[1].justify = table.columns[2].justify = "left"
    for point in placement.points:
        for name, differences in zip(point.found[1:], point.comparison.differences, strict=True):
            by_figure = {d.figure: d for d in differences}
            if {"usd_per_task", "tst_j"} <= set(by_figure):
                money, energy = by_figure["usd_per_task"], by_figure["tst_j"]
                cells = [cell for d in (money, energy) for cell in _relative(d)]
                worlds = energy.by_worlds
                scale = 100 / energy.first
                rough = f"{worlds.low * scale:+.0f} to {worlds.high * scale:+.0f} %" if worlds else "–"
                table.add_row(f"{point.rate_per_s:g}", point.found[0], name, *cells, rough)
    return [table] if table.row_count else []


def _relative(d: Difference) -> tuple[str, str]:
    """A difference as a part of the first's figure, and whether it is shown."""
    half = d.interval.half_width
    scale = 100 / d.first if d.first else 0.0
    error = f" ± {half * scale:.1f}" if half is not None else ""
    return f"{(d.other - d.first) * scale:+.1f}{error} %", "–" if d.verdict == "no difference shown" else d.verdict
