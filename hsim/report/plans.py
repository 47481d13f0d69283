"""Plans as tables for people: the answer first, then why not another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hsim.metrics.result import Comparison, Difference, Interval
from hsim.plan.breakeven import Band, Best, BreakEven
from hsim.plan.pareto import Front
from hsim.plan.result import Bound, Fleet, Judged, Plan, Preview
from hsim.plan.sensitivity import Flip, Sensitivity
from hsim.plan.survive import Survival
from hsim.report.names import SHORT_NAMES, figure_name
from hsim.report.tables import VERDICT_STYLES, _cell, _table
from hsim.units import plain_error, readable, readable_error, readable_seconds, scale_of

SHOWN = 12  # rows of a table of fleets; --all shows every one
NEIGHBOUR_FIGURES = ("tst_j", "e2e.mean_s", "e2e.p95_s", "e2e.p99_s", "ttft.p99_s")
BY_NAMES = {
    "inventory": "not there to be had",
    "budget": "over the budget",
    "power": "over the power limit",
    "memory": "do not fit in memory, or cannot run",
    "capacity": "cannot do the work",
    "alone": "too slow for one task alone",
    "loss": "have nothing left after a loss",
    "slo": "miss an objective",
    "stability": "have no steady state",
    "worse": "take more",
}

TOO_MUCH = ("inventory", "budget", "power", "memory")  # a fleet that asks for more than there is; others are too little


def plan_tables(plan: Plan, everything: bool = False) -> RenderableType:
    """A plan at a glance."""
    parts: list[RenderableType] = [*(Text(line, style=style) for line, style in _head(plan)), Text()]
    if plan.chosen:
        parts += [_objectives_table(plan.chosen), Text()]
    if plan.neighbours:
        parts += [_neighbours_table(plan.neighbour_names, plan.neighbours), Text()]
    parts += [_why_not(plan.judged, everything), Text()]
    parts += [Text(f"Warning     {warning}.", style="yellow") for warning in plan.warnings]
    return Group(*parts, *_footnotes(plan))


def _head(plan: Plan) -> list[tuple[str, str]]:
    chosen = plan.chosen
    name = Path(plan.scenario).stem
    if chosen is None:
        lines = [(f"{name}: no fleet of {plan.space:,} was certified", "bold red")]
        lines += [(f"In the way  {plan.binding}", "")] if plan.binding else []
    else:
        lines = [(f"{name}: {chosen.fleet.name}", "bold green"), (f"Certificate {plan.claim}", "")]
        if chosen.fleet.usd_per_h is not None:
            lines.append((f"Price       {_price(plan, chosen.fleet)}; {_bound(plan.bound, chosen.fleet)}", ""))
        if chosen.fleet.rated_w is not None:
            lines.append((f"Power       can draw {readable(chosen.fleet.rated_w, 'W')} at most", ""))
    if plan.study and plan.study.energy:
        energy = plan.study.energy
        tst = _cell(energy.tst_j["full"]["facility"], "J")
        lines.append((f"Energy      {tst} a task (TST); mean power {_cell(energy.mean_w, 'W')}", ""))
    if plan.study and plan.study.gco2_per_task and plan.minimised == "co2":
        parts = " and ".join(plan.study.gco2_of)
        lines.append((f"CO2         {_cell(plan.study.gco2_per_task, 'g')} a task ({parts})", ""))
    if plan.cores_per_accelerator:
        lines.append((f"Cores       {plan.cores_per_accelerator}", ""))
    if plan.headroom:
        lines.append((f"Headroom    {_headroom(plan)}", ""))
    if not plan.complete:
        lines.append((f"INCOMPLETE  {plan.claim}", "yellow"))
    spent = f"{plan.replications:,} replications of {_space(plan)}"
    saved = f"; brute force would take {plan.brute_force_replications:,}" if plan.brute_force_replications else ""
    return [*lines, (f"Search      {spent}{saved}", "")]


def _space(plan: Plan) -> str:
    counted = Counter(judged.by for judged in plan.judged if judged.verdict == "FAIL")
    undecided = len(plan.undecided)
    said = [f"{count:,} {BY_NAMES[by]}" for by, count in counted.items()]
    said += [f"{undecided:,} undecided"] if undecided else []
    said += [f"{plan.dearer:,} could not have been better"] if plan.dearer and plan.chosen else []
    fleets = f"{plan.space:,} fleet{'s' if plan.space != 1 else ''}"
    return f"{fleets} ({', '.join(said)})" if said else fleets


def _price(plan: Plan, fleet: Fleet) -> str:
    """What servers cost, and with their electricity where that is not in it."""
    servers = f"{fleet.usd_per_h or 0:,.2f} USD an hour"
    if not fleet.electricity:
        return servers
    total = plan.usd_per_h
    return f"{servers} in servers{f', {_dollars(total)} with their electricity in this run' if total else ''}"


def _dollars(usd: Interval) -> str:
    """Exact ones to the cent."""
    value = usd.value or 0.0
    return f"{value:,.2f}" if usd.half_width is None else plain_error(value, usd.half_width)


def _bound(bound: Bound, fleet: Fleet) -> str:
    if bound.milp_usd_per_h is None or bound.lp_usd_per_h is None:
        return f"no lower bound: {bound.why}"
    costs = "costs less in servers" if fleet.electricity else "costs less"
    return f"none that can do the work {costs} than {bound.milp_usd_per_h:,.2f} (MILP; LP {bound.lp_usd_per_h:,.2f})"


def _titles(fleets: Iterable[Fleet]) -> tuple[str, str]:
    """How a table of fleets calls them, and what they cost."""
    if any(fleet.electricity for fleet in fleets):
        return "Fleet, cheapest servers first", "USD an hour, in servers"
    return "Fleet, cheapest first", "USD an hour"


def _headroom(plan: Plan) -> str:
    headroom = plan.headroom
    assert headroom is not None
    holds = f"certified up to {headroom.holds_times:.3g} times the rate"
    if headroom.beyond_times is None:
        return f"{holds}, and not looked at beyond"
    return f"{holds}, {'refuted' if headroom.refuted else 'undecided'} at {headroom.beyond_times:.3g} times"


def _objectives_table(chosen: Judged) -> Table:
    table = _table("Objective", "load", "at most", "may be missed", "was missed", "replications", "verdict")
    for missed in chosen.missed:
        table.add_row(
            SHORT_NAMES[missed.metric],
            "own" if missed.load == "own" else missed.load,
            readable_seconds(missed.max_s),
            f"{missed.allowed_fraction:.1%}",
            f"{missed.fraction:.2%}",
            f"{chosen.replications:,}",
            Text(chosen.verdict, style=VERDICT_STYLES[chosen.verdict]),
        )
    return table


def _why_not(judged: Sequence[Judged], everything: bool) -> Table:
    """The fleets that were simulated, and of the others some of each reason: nearest to the answer first."""
    table = _table(*_titles(each.fleet for each in judged), "runs", "verdict", "why")
    table.columns[0].no_wrap = False
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    simulated = [each for each in judged if each.replications]
    bounded = [each for each in judged if not each.replications]
    shown = [*bounded, *simulated] if everything else [*_one_each(bounded), *simulated[-SHOWN:]]
    for each in sorted(shown, key=lambda j: (j.fleet.usd_per_h or 0.0, j.fleet.number)):
        verdict = Text(each.verdict, style=VERDICT_STYLES[each.verdict])
        usd = f"{each.fleet.usd_per_h:,.2f}" if each.fleet.usd_per_h is not None else "–"
        table.add_row(each.fleet.name, usd, str(each.replications), verdict, each.reason)
    left = len(judged) - len(shown)
    if left > 0:
        table.add_row(f"and {left:,} more, see --all", "", "", "", "", style="dim")
    return table


def _one_each(bounded: Sequence[Judged]) -> list[Judged]:
    """Of each way to be ruled out without a run, the fleet that came nearest: the cheapest beyond a limit, the dearest
    that is too little.
    """
    by_price = sorted(bounded, key=lambda each: (each.fleet.usd_per_h or 0.0, each.fleet.number))
    cheapest = {each.by: each for each in reversed(by_price) if each.by in TOO_MUCH}
    dearest = {each.by: each for each in by_price if each.by not in TOO_MUCH}
    return [*cheapest.values(), *dearest.values()]


def _neighbours_table(names: Sequence[str], comparison: Comparison) -> Table:
    table = _table("Instead, on the same tasks", *(" ".join(figure_name(f)[0].split()) for f in NEIGHBOUR_FIGURES))
    for name, study, differences in zip(names, comparison.studies[1:], comparison.differences, strict=True):
        found = {difference.figure: difference for difference in differences}
        cells = [_difference(found.get(figure)) for figure in NEIGHBOUR_FIGURES]
        table.add_row(name, *(["UNSTABLE"] + ["–"] * (len(cells) - 1) if study.is_unstable else cells))
    return table


def _difference(difference: Difference | None) -> str:
    if difference is None or difference.interval.half_width is None:
        return "–"
    if difference.verdict == "no difference shown":
        return "none shown"
    _, unit = figure_name(difference.figure)
    scale, shown = scale_of(abs(difference.other - difference.first), unit)
    change = plain_error((difference.other - difference.first) / scale, difference.interval.half_width / scale)
    return f"{'+' if difference.verdict == 'higher' else ''}{change} {shown}"


def _footnotes(plan: Plan) -> list[Text]:
    if plan.study is None:
        return []
    note = (
        "The certificate is about this model of the fleet, and counts sampling error alone: what it stands on, and how far "
        "that errs, `hsim simulate --explain` says."
    )
    return [Text(note, style="dim")]


def survival_tables(found: Survival) -> RenderableType:
    """The fleet, each loss, and what surviving them all would take."""
    chosen = found.plan.chosen
    if chosen is None:
        return plan_tables(found.plan)
    verdict = "survives the loss of any one" if found.survives else "does not survive the loss of any one"
    head = Text(f"{chosen.fleet.name}: {verdict}", style="bold green" if found.survives else "bold red")
    table = _table("After", "verdict", "runs", "was missed", "why")
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for name, judged in found.losses.items():
        missed = ", ".join(
            f"{SHORT_NAMES[m.metric]} {m.fraction:.1%} of {m.allowed_fraction:.0%}" for m in judged.missed
        )
        shown = Text(judged.verdict, style=VERDICT_STYLES[judged.verdict])
        table.add_row(name, shown, str(judged.replications), missed or "–", judged.reason)
    parts: list[RenderableType] = [head, Text(), table, Text()]
    if found.hardened and found.hardened.chosen:
        one = found.hardened.chosen.fleet
        more = (one.usd_per_h or 0) - (chosen.fleet.usd_per_h or 0)
        servers = " in servers" if one.electricity or chosen.fleet.electricity else ""
        usd = f"{one.usd_per_h or 0:,.2f} USD an hour{servers}, {more:+,.2f}"
        line = f"To survive  {one.name}: {usd}. {found.hardened.claim}"
        parts.append(Text(line, style="bold"))
    elif found.hardened:
        parts.append(Text(f"To survive  no fleet of the space was certified. In the way: {found.hardened.binding}"))
    note = "Each loss is steady: the fleet goes on without it for as long as it takes. Verdicts at 95 % each."
    return Group(*parts, Text(note, style="dim"))


def breakeven_tables(found: BreakEven) -> RenderableType:
    """Bands first, then every rate."""
    simple = found.architectures[0]
    how = "certified" if found.certified else "PREVIEW by a queueing approximation, no certificate"
    alone = ", in servers alone" if any(best.electricity for p in found.points for best in p.best.values()) else ""
    lines = [Text(f"{found.choice}: who takes least ({found.minimised}{alone}), by load; {how}", style="bold")]
    lines.append(Text(f"First       {_first(found)}"))
    lines += [Text(f"Band        {_rates(band)} tasks/s: {band.winner or 'no winner shown'}") for band in found.bands]
    if found.most_regret_fraction is not None:
        lines.append(
            Text(f"Regret      staying with {simple} never takes more than {found.most_regret_fraction:.0%} more")
        )
    table = _table("Tasks/s", *(f"{name}: best" for name in found.architectures), f"regret of {simple}")
    for point in found.points:
        cells = [_best(best, found.minimised) for best in point.best.values()]
        regret = point.regret_fraction(simple)
        table.add_row(f"{point.rate_per_s:g}", *cells, "–" if regret is None else f"{regret:.0%}")
    for column in table.columns:
        column.no_wrap = False
    return Group(*lines, Text(), table)


def _first(found: BreakEven) -> str:
    """Where the simple architecture is first beaten, of the rates that were looked at."""
    simple = found.architectures[0]
    if found.first_per_s is None:
        return f"{simple} was never shown to be beaten at these rates"
    low, high = found.first_per_s
    if low is not None:
        return f"{simple} ceases to be the best between {low:g} and {high:g} tasks/s"
    lowest = found.points[0].rate_per_s
    at = f"up to {high:g} tasks/s" if any(point.winner == simple for point in found.points) else "at any rate looked at"
    return f"{simple} was not shown to be the best {at}; {lowest:g} is the lowest that was looked at"


def _rates(band: Band) -> str:
    low, high = f"{band.low_per_s:g}", f"{band.high_per_s:g}"
    return low if low == high else f"{low} to {high}"


def _best(best: Best, minimised: str) -> str:
    if best.value is None:
        return "none holds"
    unit = {"cost": "USD/h", "tst": "J", "co2": "g"}[minimised]
    half = None if best.high is None else best.high - best.value
    but = f" ({best.undecided} undecided)" if best.undecided else ""
    if minimised == "cost":
        value = f"{best.value:,.2f} {unit}" if half is None else f"{plain_error(best.value, half)} {unit}"
    else:
        value = readable_error(best.value, half, unit)
    return f"{value}, {best.fleet}{but}"


def pareto_tables(found: Front) -> RenderableType:
    """The front, cheapest first."""
    table = _table("Fleet, cheapest first", "USD an hour", "TST", "end to end, p95", "", "is")
    table.columns[0].no_wrap = False
    styles = {"certain": "green", "possible": "yellow", "dominated": "dim", "undecided": "yellow"}
    for each in found.candidates:
        usd = _dollars(each.axes["cost"])
        cells = [_cell(each.axes["tst"], "J"), _cell(each.axes["latency"], "s")]
        table.add_row(each.fleet.name, usd, *cells, each.character, Text(each.standing, style=styles[each.standing]))
    note = (
        "certain: no other could be as good on every axis. possible: within the intervals one might. dominated: one is. "
        "undecided: neither, and not shown to keep its objectives."
    )
    lines: list[RenderableType] = [Text(_who_hold(found), style="bold"), Text(), table, Text(), Text(note, style="dim")]
    if found.missing or found.not_looked_at:
        said = f"{found.missing} more missed an objective; {found.not_looked_at} that seem to hold were not looked at (--most)."
        lines.append(Text(said, style="dim"))
    return Group(*lines)


def _who_hold(found: Front) -> str:
    """How many fleets are shown to hold, how many are not yet, and what the intervals claim."""
    hold = len(found.candidates) - found.undecided
    said = "1 fleet that holds" if hold == 1 else f"{hold} fleets that hold"
    more = f", {found.undecided} undecided (simulate more)" if found.undecided else ""
    return f"{said}{more}; verdicts at {found.confidence:.0%} for each objective, intervals together at {found.confidence:.0%}"


def sensitivity_tables(found: Sensitivity) -> RenderableType:
    """The tornado, the largest swing first, and the distances to a flip."""
    per_cent = f"{found.around_fraction:.0%}"
    head = Text(
        f"{Path(found.scenario).stem}: each input {per_cent} smaller and larger, on the same tasks", style="bold"
    )
    figures = ("tst_j", "e2e.mean_s", "e2e.p95_s")
    short = ("TST", "e2e mean", "e2e p95")
    titles = [f"{name} {sign}{per_cent}" for name in short for sign in ("-", "+")]
    table = _table("Input", *titles)
    for swing in found.swings:
        table.add_row(swing.name, *(_relative(side.get(f)) for f in figures for side in (swing.low, swing.high)))
    parts: list[RenderableType] = [head, Text(), table, Text()]
    parts += [Text(f"Flip        {flip.name}: {_flipped(flip)}") for flip in found.flips]
    note = f"Intervals of all differences together at 95 % ({found.confidence:.3%} each); a dash: none shown. Flips by point estimates."
    return Group(*parts, Text(note, style="dim"))


def _flipped(flip: Flip) -> str:
    if flip.fails_times is None:
        return f"the objectives still hold at {flip.holds_times:.3g} times"
    if flip.holds_times is None:
        return f"the objectives are missed even at {flip.fails_times:.3g} times"
    return f"the objectives hold at {flip.holds_times:.3g} times, and not at {flip.fails_times:.3g}"


def _relative(difference: Difference | None) -> str:
    if difference is None or difference.verdict == "no difference shown" or not difference.first:
        return "–"
    half = difference.interval.half_width
    error = f" ± {half / abs(difference.first):.1%}" if half is not None else ""
    return f"{(difference.other - difference.first) / difference.first:+.1%}{error}"


def preview_tables(found: Sequence[Preview], everything: bool = False) -> RenderableType:
    """Fleets by the queueing approximation: labelled as what it is."""
    head = Text("PREVIEW by a queueing approximation: instant, no simulation, no certificate", style="bold yellow")
    table = _table(*_titles(each.fleet for each in found), "busiest pool", "end to end, mean", "attained", "seems")
    table.columns[0].no_wrap = False
    for each in found if everything else found[:SHOWN]:
        attained = ", ".join(f"{name.removeprefix('own.')} {value:.1%}" for name, value in each.attained.items())
        usd = f"{each.fleet.usd_per_h:,.2f}" if each.fleet.usd_per_h is not None else "–"
        busiest = f"{each.bottleneck} {each.utilisation[each.bottleneck]:.0%}"
        seems = Text("to hold", style="green") if each.holds else Text("not to hold", style="red")
        table.add_row(each.fleet.name, usd, busiest, readable_seconds(each.e2e_mean_s), attained, seems)
    if not found:
        return Group(head, Text("No fleet is left, or tasks are not open arrivals: hsim plan says more."))
    return Group(head, Text(), table)
