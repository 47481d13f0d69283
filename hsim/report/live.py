"""Live runs, validations and calibrations as tables of a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hsim.report.tables import _latency_table, _named, _table
from hsim.units import readable, readable_quantity, readable_range, readable_seconds

if TYPE_CHECKING:
    from hsim.calibrate.options import CalibrationReport, LoadPoint
    from hsim.drivers.live import MeteredJoules
    from hsim.validate import LiveResult, LoadsValidation, Validation
    from hsim.validate.compared import Compared
    from hsim.validate.quantities import Accounted

LOAD_QUANTITIES = (
    "tasks, middle of the run",
    *(f"{latency} {what}" for latency in ("ttft", "tpot", "e2e") for what in ("mean", "p95")),
)
LEFT_OUT_SHOWN = 4  # of what a calibration's budget did not allow; fit.json has all

JUDGED_STYLES = {"within": "green", "noise": "yellow", "beyond": "bold red", "unjudged": "dim"}
PREFIXED = ("s", "J")  # units that take a prefix
SMALL_PART = 0.002  # of the mean end-to-end time: parts below it are not shown


def validation_tables(validation: Validation) -> RenderableType:
    """Predicted beside measured, judged, and what is to blame."""
    lines = [
        f"{_named(validation.scenario)}: simulated, then run live on {validation.device}, {_times(validation)}",
        f"Calibration  sha256 {validation.calibration_sha256[:16]}, frozen before the live run",
        *_became_of_tasks(validation.tasks, validation.failures, validation.stopped),
        *(f"Note         {note}" for note in validation.notes),
        *_energies(validation.energy),
    ]
    texts = [Text(line, style="bold yellow" if line.startswith("STOPPED") else "") for line in lines]
    if not validation.compared:
        return Group(*texts)
    rule = "within: in what the calibration states; noise: no further off than twice the spread of repeats; else beyond"
    if any(one.verdict == "unjudged" for one in validation.compared):
        few = any(one.too_few_served for one in validation.compared)
        why = "too few tasks were served" if few else "nothing was stated, and one run has no spread (--repeats 3)"
        rule = f"unjudged: {why}; {rule}"
    parts: list[RenderableType] = [*texts, Text(), _compared_table(validation), Text(rule, style="dim"), Text()]
    return Group(*parts, _parts_table(validation), Text(), _charges_table(validation), Text(), *_verdict(validation))


def _times(validation: Validation) -> str:
    done = sum(not one.unfinished for one in validation.tasks)
    asked = validation.tasks[0].asked if validation.tasks else 0
    return f"{asked:,} tasks, {done} of {validation.repeats} times"


def _became_of_tasks(runs: Iterable[Accounted], failures: dict[str, int], stopped: str) -> list[str]:
    """Every task of every run accounted for, where not all were served."""
    lines = [f"STOPPED      by {stopped}" if stopped == "Ctrl-C" else f"STOPPED      {stopped}"] if stopped else []
    for number, one in enumerate(runs, 1):
        if one.served < one.asked:
            kinds = (
                ("timed out", one.timed_out),
                ("shed", one.shed),
                ("failed", one.failed),
                ("not finished", one.unfinished),
            )
            told = "".join(f", {count} {kind}" for kind, count in kinds if count)
            lines.append(f"Tasks        run {number}: of {one.asked} {one.served} served{told}")
    return lines + [f"Failed       {count} x {why}" for why, count in failures.items()]


def _energies(runs: Iterable[Iterable[MeteredJoules]]) -> list[str]:
    told = list(dict.fromkeys(f"Energy       {_metered(meter)}" for run in runs for meter in run))
    return told or ["Energy       unavailable: no meter at hand"]


def _compared_table(validation: Validation) -> Table:
    table = _table("", "predicted", "stated", "measured", "repeats ±", "error", "at its pace", "error", "verdict")
    for row in validation.compared:
        show = partial(readable_quantity, unit=row.unit)
        stated = (
            "–"
            if row.low is None or row.high is None
            else readable_range(row.low, row.high, row.unit if row.unit in PREFIXED else "")
        )
        spread = "–" if row.spread_fraction is None else f"{row.spread_fraction:.1%}"
        at_pace = "–" if row.at_pace is None else show(row.at_pace)
        errors = ["–" if e is None else f"{e:+.1%}" for e in (row.error_fraction, row.pace_error_fraction)]
        verdict = Text(row.verdict, style=JUDGED_STYLES[row.verdict])
        cells = (show(row.predicted), stated, show(row.measured), spread, errors[0], at_pace, errors[1])
        table.add_row(row.quantity, *cells, verdict)
    return table


def _parts_table(validation: Validation) -> Table:
    """Where a task's time went, and which part carries the error."""
    blame = validation.blame
    table = _table("Mean of a task", "predicted", "measured", "of the error")
    error_s = blame.e2e_measured_s - blame.e2e_predicted_s
    for part in sorted(blame.parts, key=lambda p: -abs(p.measured_s - p.predicted_s)):
        if max(part.predicted_s, part.measured_s) < SMALL_PART * blame.e2e_measured_s:
            continue
        share = f"{(part.measured_s - part.predicted_s) / error_s:.0%}" if error_s else "–"
        table.add_row(part.part, readable_seconds(part.predicted_s), readable_seconds(part.measured_s), share)
    table.add_row("end to end", readable_seconds(blame.e2e_predicted_s), readable_seconds(blame.e2e_measured_s), "")
    return table


def _charges_table(validation: Validation) -> Table:
    """Each term as predicted, in the live runs and alone now, and the prediction had it been right."""
    table = _table("Term", "count", "predicted", "live", "live ratio", "alone now", "on a core", "end to end if right")
    for charge in validation.blame.charges:
        seen = charge.seen
        cells = ["", "", "", "", "", ""] if seen is None else [
            f"{seen.count:,}", readable_seconds(seen.predicted_s), readable_seconds(seen.measured_s),
            f"{seen.measured_s / seen.predicted_s:.2f}" if seen.predicted_s else "–",
            f"{charge.pace:.2f}" if charge.pace else "–",
            f"{seen.core_fraction:.0%}" if seen.core_fraction is not None else "–",
        ]  # fmt: skip
        table.add_row(charge.term, *cells, readable_seconds(charge.e2e_if_right_s))
    return table


def _verdict(validation: Validation) -> list[Text]:
    ratios = [one.measured_s / one.predicted_s for one in validation.pace]
    if not ratios:
        return [Text(f"Blame        {validation.blame.verdict}.")]
    middle = sorted(ratios)[len(ratios) // 2]
    pace = f"alone on it, work now takes {middle:.2f} times what the calibration says ({min(ratios):.2f} to {max(ratios):.2f})"
    return [Text(f"Pace         of this machine: {pace}."), Text(f"Blame        {validation.blame.verdict}.")]


def loads_tables(validation: LoadsValidation) -> RenderableType:
    """Several loads side by side: the quantities that matter, and what is to blame at each."""
    table = _table("", "predicted", "measured", "repeats ±", "error", "at its pace", "verdict")
    for one in validation.runs:
        table.add_row(Text(one.name, style="bold"))
        for row in one.validation.compared:
            if not _shown_of_loads(row, one.load_fraction):
                continue
            show = partial(readable_quantity, unit=row.unit)
            spread = "–" if row.spread_fraction is None else f"{row.spread_fraction:.1%}"
            errors = ["–" if e is None else f"{e:+.1%}" for e in (row.error_fraction, row.pace_error_fraction)]
            verdict = Text(row.verdict, style=JUDGED_STYLES[row.verdict])
            name = "capacity" if row.unit == "1/s" else row.quantity
            table.add_row(f"  {name}", show(row.predicted), show(row.measured), spread, *errors, verdict)
    first = validation.runs[0].validation
    capacities = ", ".join(f"{kind} {rate:.3g} tasks/s" for kind, rate in validation.capacities_per_s.items())
    lines = [
        f"{_named(validation.scenario)}: predicted capacity {capacities}; {first.tasks[0].asked if first.tasks else 0} tasks at each load, run live on {first.device}",
        f"Calibration  sha256 {first.calibration_sha256[:16]}, frozen before the live runs",
    ]
    for one in validation.runs:
        told = _became_of_tasks(one.validation.tasks, one.validation.failures, one.validation.stopped)
        lines += [f"{line} ({one.name})" for line in told]
    lines += _notes_of_loads(validation)
    blames = [
        Text(f"Blame        {one.name}: {one.validation.blame.verdict}.")
        for one in validation.runs
        if one.validation.blame.verdict
    ]
    return Group(*(Text(line) for line in lines), Text(), table, Text(), *blames)


def _shown_of_loads(row: Compared, load_fraction: float | None) -> bool:
    """Of a closed loop the capacity, of loads the latencies; joules of both."""
    if row.unit in ("J", "1/J"):
        return True
    return row.quantity in LOAD_QUANTITIES and (load_fraction is None) == (row.unit == "1/s")


def _notes_of_loads(validation: LoadsValidation) -> list[str]:
    """Each note once, with the loads that it is of where those are not all."""
    loads: dict[str, list[str]] = {}
    for one in validation.runs:
        for note in one.validation.notes:
            loads.setdefault(note, []).append(one.name)
    everywhere = len(validation.runs)
    return [
        f"Note         {note}" + ("" if len(names) == everywhere else f" ({'; '.join(names)})")
        for note, names in loads.items()
    ]


def live_tables(result: LiveResult) -> RenderableType:
    """What a live run measured."""
    table = _table("", "measured")
    for name, (value, unit) in result.measured.items():
        table.add_row(name, readable_quantity(value, unit))
    lines = [f"{_named(result.scenario)}: {result.tasks.asked:,} tasks run live on {result.device}"]
    lines += _became_of_tasks([result.tasks], result.failures, result.stopped)
    lines += [f"Backend      {note}" for note in result.notes]
    lines += _energies([result.energy])
    return Group(*(Text(line) for line in lines), Text(), table)


def calibration_tables(report: CalibrationReport) -> RenderableType:
    """What a calibration measured, how well its laws hold, and what it left out."""
    table = _table("Law", "points", "noisy", "median error", "p90 error", "held out by")
    table.columns[-1].justify = "left"
    for law in report.laws:
        errors = [f"{e:.1%}" if e is not None else "–" for e in (law.median_error, law.p90_error)]
        table.add_row(law.name, str(law.points), str(law.noisy), *errors, law.method)
    resumed = f", {report.resumed} taken from before" if report.resumed else ""
    parts: list[RenderableType] = [
        Text(f"Calibration {report.name}: {report.measured} points in {readable_seconds(report.seconds)}{resumed}")
    ]
    parts += [Text(f"Endpoint    {line}") for line in report.said]
    parts += [Text(), table, Text()]
    if report.loads:
        parts += [_loads_table(report.loads), Text()]
    said = [f"Unavailable {what}: {why}" for what, why in report.unavailable.items()]
    said += [f"Failed      {what}: {why}" for what, why in report.failed.items()]
    said += [f"Warning     {warning}" for warning in report.warnings]
    if report.left_out:
        first = "; ".join(report.left_out[:LEFT_OUT_SHOWN])
        more = len(report.left_out) - LEFT_OUT_SHOWN
        said.append(
            f"Left out    for want of time: {first}" + (f"; and {more} more kinds of points" if more > 0 else "")
        )
    said += [f"Wrote       {file}" for file in report.files]
    parts += [Text(line) for line in said]
    if report.simulated:
        parts += [
            Text(),
            Text(f"{report.scenario}, simulated from these profiles:"),
            Text(),
            _latency_table(report.simulated),
        ]
    parts += [Text(), *(Text(f"Held out    {one.said}") for one in report.held_out)] if report.held_out else []
    return Group(*parts)


def _loads_table(loads: Iterable[LoadPoint]) -> Table:
    """What an endpoint did under loads that no fit has seen, beside what was predicted."""
    table = _table("Load left out", "", "predicted", "measured", "error", "spread", "rounds")
    for point in loads:
        show = readable_seconds if point.unit == "s" else lambda value: f"{value:.3g}/s"
        spread = "–" if point.spread_fraction is None else f"{point.spread_fraction:.0%}"
        error = f"{point.error_fraction:+.1%}"
        table.add_row(
            point.load, point.quantity, show(point.predicted), show(point.measured), error, spread, str(point.rounds)
        )
    return table


def _metered(meter: MeteredJoules) -> str:
    counted = readable(meter.joules, "J") if meter.joules is not None else f"unavailable: {meter.unavailable}"
    return f"{meter.meter} ({meter.boundary}): {counted}"
