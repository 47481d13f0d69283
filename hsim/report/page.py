"""A study as one HTML file that needs nothing else: verdicts, figures, tables, provenance, and how to have it again."""

from __future__ import annotations

import base64
import gzip
import json
import platform
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from rich.table import Table

from hsim.description.catalogue import shipped
from hsim.description.system import System
from hsim.errors import HsimError
from hsim.metrics.result import Placement, Study
from hsim.report import figures
from hsim.report.names import FIGURE_NAMES, SHORT_NAMES
from hsim.report.tables import least_of, placement_parts, study_head, study_parts
from hsim.runs.closeup import Closeup
from hsim.runs.exports import scenario_text
from hsim.runs.store import Record
from hsim.units import readable_error, readable_range, readable_seconds

TEMPLATE = Path(__file__).with_name("page.html")
NOT_MODELLED = re.compile(r"^## What hsim does not model[^\n]*\n+(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
POINT = re.compile(r"^- (.*?)(?=^- |^\s*$|\Z)", re.DOTALL | re.MULTILINE)
PROVENANCE = ("figure", "value", "why")
VERDICT_CLASSES = {"PASS": "good", "FAIL": "bad", "UNDECIDED": "open"}
STABILITY_CLASSES = {"stable": "good", "unstable": "bad", "undecided": "open"}


def page(closeup: Closeup, system: System, command: str) -> str:
    """The page of a study; `command` makes it again. Raises HsimError where plotly, whose script it holds, is missing."""
    study = closeup.study
    drawn = _figures(closeup)
    sections = [
        _verdicts(study),
        _navigation(study),
        _tiles(study),
        _sentences(study),
        _latency_section(study),
        _anatomy_section(study),
        _joules_section(study),
        _over_time_section(closeup),
        _trust_section(closeup),
        _provenance_section(study),
        _limits_section(),
        _method_section(study, system),
        _again_section(study, system, command),
    ]
    return _filled((Path(study.scenario).stem, _question(study)), sections, study, drawn)


def placement_page(placement: Placement, command: str) -> str:
    """The page of architectures over load; `command` makes it again. Raises HsimError where plotly is missing."""
    least = [f"<p><b>{title}.</b> {escape(who)}.</p>" for title, who in least_of(placement).items()]
    caption = "Each architecture at the best of the fleets that its lists allow, as hsim plan certifies it; bars are 95 % of sampling."
    tables = [_as_html(part) for part in placement_parts(placement)]
    sections = [
        *least,
        _section("load", "Over load", _chart("architectures", caption), *tables),
        _section("again", "The same again", f"<pre>{escape(command)}</pre>"),
        _limits_section(),
    ]
    question = f'<p class="question">Architectures: {escape(", ".join(placement.architectures))}.</p>'
    head = (Path(placement.scenario).stem, question)
    return _filled(head, sections, placement, {"architectures": figures.architectures(placement)})


def _filled(head: tuple[str, str], sections: Sequence[str], result: Record, drawn: dict[str, figures.Figure]) -> str:
    """A page with its title and question, its sections, the result as data, and figures by the id of their places."""
    both = {"figures": drawn, "templates": {"light": figures.template(dark=False), "dark": figures.template(dark=True)}}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(head[0]),
        question=head[1],
        body="\n".join(filter(None, sections)),
        result=_json(result.as_dict()),
        figures=_json(both),
        plotly=_packed(plotly_script()),
    )


def _json(data: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


def plotly_script() -> Path:
    """plotly.js in the installed package of plotly. Raises HsimError without it."""
    found = find_spec("plotly")
    if found is None or found.origin is None:
        raise HsimError("plotly is not installed; a report holds its script: pip install plotly")
    return Path(found.origin).parent / "package_data" / "plotly.min.js"


def _packed(script: Path) -> str:
    """A script as base64 of gzip: four megabytes become less than two. Without a time stamp: the same bytes each time."""
    return base64.b64encode(gzip.compress(script.read_bytes(), mtime=0)).decode()


def _figures(closeup: Closeup) -> dict[str, figures.Figure]:
    """The figures that a study has, by the id of their place in the page."""
    study = closeup.study
    drawn = {"anatomy": figures.stage_anatomy(study.stages, study.energy is not None)}
    if study.latency:
        drawn["latency"] = figures.latency_cdf(closeup.latency, study.slo)
    if study.energy:
        drawn["sankey"] = figures.ledger_sankey(study.energy.accounts)
    if study.latency and study.replications > 1:
        drawn["uncertainty"] = figures.uncertainty(study)
    drawn["timelines"] = figures.timelines(closeup.timelines, closeup.window, closeup.end_s)
    if len(next(iter(closeup.by_replication.values()), ())) > 1:
        drawn["replications"] = figures.replications(closeup.by_replication, study.figures())
    if study.warm_up:
        drawn["warm-up"] = figures.warm_up(closeup.sojourn_s, closeup.in_progress, study.warm_up.tasks)
    return drawn


# ---- pieces of HTML


def _chart(name: str, caption: str) -> str:
    return f'<figure><div class="chart" id="{name}"></div><figcaption>{caption}</figcaption></figure>'


def _section(anchor: str, title: str, *parts: str) -> str:
    return f'<h2 id="at-{anchor}">{title}</h2>' + "\n".join(filter(None, parts))


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]], words: bool = False) -> str:
    """A table of plain text."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{"words" if words else ""}"><tr>{top}</tr>{body}</table></div>'


def _as_html(table: Table) -> str:
    """A table that was made for a terminal, with its alignment and the colours of its verdicts."""
    columns = table.columns
    sides = ["left" if column.justify == "left" else "" for column in columns]
    top = "".join(f'<th class="{side}">{escape(str(c.header))}</th>' for side, c in zip(sides, columns, strict=True))
    body = ""
    for row in zip(*(column.cells for column in columns), strict=True):
        cells = zip(sides, map(str, row), strict=True)
        body += "<tr>" + "".join(f'<td class="{side}">{_verdict(cell)}</td>' for side, cell in cells) + "</tr>"
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _verdict(cell: str) -> str:
    return f'<span class="{VERDICT_CLASSES[cell]}"><b>{cell}</b></span>' if cell in VERDICT_CLASSES else escape(cell)


def _question(study: Study) -> str:
    """The question with which the scenario's file opens."""
    try:
        first = Path(study.scenario).read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return ""
    return f'<p class="question">{escape(first.lstrip("# "))}</p>' if first.startswith("#") else ""


def _verdicts(study: Study) -> str:
    """Everything that must be known before any figure, in a row."""
    found = []
    if not study.complete:
        found.append(("open", "INCOMPLETE", f"{study.replications} of {study.wanted} replications were finished"))
    if study.stability:
        word = study.stability.verdict.upper() if study.stability.verdict != "stable" else "stable"
        found.append((STABILITY_CLASSES[study.stability.verdict], word, study.stability.reason))
    for slo in study.slo:
        low, high, value = slo.attained.low, slo.attained.high, slo.attained.value
        span = f" ({low:.2%} to {high:.2%})" if low is not None and high is not None else ""
        told = f"{SHORT_NAMES[slo.metric]} within {readable_seconds(slo.max_s)}: {value:.2%}{span}, wanted {slo.p:.1%}"
        found.append((VERDICT_CLASSES[slo.verdict], slo.verdict, told))
    items = "".join(f'<li class="{kind}"><b>{word}</b> {escape(told)}</li>' for kind, word, told in found)
    return f'<ul class="verdicts">{items}</ul>' if items else ""


def _navigation(study: Study) -> str:
    places = {"latency": "Latency"} if study.latency else {}
    places |= {"anatomy": "Anatomy of a task"} | ({"joules": "Joules"} if study.energy else {})
    places |= {"time": "Over time", "trust": "How sure", "provenance": "What it stands on"}
    places |= {"limits": "What is not modelled", "method": "Method", "again": "Again"}
    return "<nav>" + "".join(f'<a href="#at-{anchor}">{name}</a>' for anchor, name in places.items()) + "</nav>"


def _tiles(study: Study) -> str:
    ranges = study.calibration.ranges if study.calibration else {}
    tiles = []
    for name, interval in study.figures().items():
        if name in FIGURE_NAMES and interval.value is not None and (study.slo or name != "goodput_tasks_per_s"):
            title, unit = FIGURE_NAMES[name]
            value = readable_error(interval.value, interval.half_width, unit)
            rough = (
                f"rough figures: {readable_range(ranges[name].low, ranges[name].high, unit)}" if name in ranges else ""
            )
            number, _, shown = value.rpartition(" ")
            tiles.append(
                f'<div class="tile"><div class="name">{escape(title)}</div><div class="value"><b>{escape(number)}</b> '
                f'<span class="unit">{escape(shown)}</span></div><div class="rough">{escape(rough)}</div></div>'
            )
    note = '<p class="faint">± is the 95 % sampling interval over replications. "Rough figures" is where nine of ten '
    note += "worlds lie when figures that are known only roughly vary within their bounds; more replications do not shrink it. "
    note += "Energy: full attribution, facility boundary.</p>"
    return f'<div class="tiles">{"".join(tiles)}</div>{note}'


def _sentences(study: Study) -> str:
    """What was done, the bottleneck, how far the cost models have erred, and warnings."""
    first, *others = (line.plain for line in study_head(study))
    lines = [f'<p class="faint">{escape(first)}.</p>']
    for head, _, rest in (line.partition("  ") for line in others):
        lines.append(f"<p><b>{escape(head)}</b> {escape(rest.strip())}</p>")
    lines.append(f"<p><b>Bottleneck</b> {escape(study.bottleneck)}.</p>")
    lines += [f"<p><b>Accuracy</b> {escape(line)}.</p>" for line in study.accuracy]
    lines += [f'<p class="warning"><b>Warning</b> {escape(warning)}.</p>' for warning in study.warnings]
    return "\n".join(lines)


def _latency_section(study: Study) -> str:
    parts = study_parts(study)
    if not study.latency:
        return ""
    caption = (
        "Cumulative distributions over all replications, on a scale of nines. Dotted: fewer than ten points lie beyond. The table "
        "asks for ten independent points, and tasks that share a queue are not: it may refuse a quantile that the curve shows. "
        "A diamond is an objective, met where the curve of its colour passes above it."
    )
    tables = [_as_html(parts[name]) for name in ("objectives", "latency") if name in parts]
    return _section("latency", "Latency", *tables, _chart("latency", caption))


def _anatomy_section(study: Study) -> str:
    parts = study_parts(study)
    caption = "Means over the tasks that were served: a task's visits to each stage together."
    return _section(
        "anatomy", "Anatomy of a task", _chart("anatomy", caption), _as_html(parts["anatomy"]), _as_html(parts["pools"])
    )


def _joules_section(study: Study) -> str:
    parts = study_parts(study)
    if not study.energy:
        return ""
    gap = f"{study.energy.ledger_gap_fraction:.1e}"
    caption = (
        "Joules a task from the site's meter to the accounts. Idle in use is the idle draw of a device while it serves tasks. The "
        f"books differ from the integral of power, recomputed by other code from the log, by at most {gap} of it."
    )
    accounts = f"<details><summary>All accounts</summary>{_as_html(parts['accounts'])}</details>"
    return _section("joules", "Where the joules went", _as_html(parts["joules"]), _chart("sankey", caption), accounts)


def _over_time_section(closeup: Closeup) -> str:
    caption = (
        f"The first replication, as means over {figures.BINS} bins. The shaded window is measured; what comes before is "
        "warm-up, and after it tasks go on arriving until the last that is followed has ended."
        if closeup.study.kind == "steady"
        else f"The first replication, as means over {figures.BINS} bins: all of it is measured."
    )
    return _section("time", "Over time", _chart("timelines", caption))


def _trust_section(closeup: Closeup) -> str:
    study, charts = closeup.study, []
    if study.latency and study.replications > 1:
        both = "Sampling error shrinks with more replications; what rough figures do shrinks only when somebody measures them."
        charts.append(_chart("uncertainty", both))
    if len(next(iter(closeup.by_replication.values()), ())) > 1:
        charts.append(
            _chart(
                "replications", "Each point is an independent replication; the band is the 95 % interval of the figure."
            )
        )
    if study.warm_up:
        cut = (
            f"Welch's picture: what comes before the dashed line, {study.warm_up.tasks:,} tasks, is left out. The series of all "
            "replications are averaged; a mean that still rises or falls after the line would mean that the warm-up was too short."
        )
        charts.append(_chart("warm-up", cut))
    return _section("trust", "How sure", *charts) if charts else ""


def _provenance_section(study: Study) -> str:
    counts = ", ".join(f"{count} {tier}" for tier, count in study.evidence.items())
    said = f"<p>The result stands on {sum(study.evidence.values())} figures of profiles: {escape(counts)}.</p>"
    rows = [(a.name, a.value, a.why) for a in study.assumptions]
    assumed = [row for row in rows if row[2].startswith("assumed")]
    others = [row for row in rows if row not in assumed]
    if assumed:
        said += "<p>Assumed, since nobody published them:</p>" + _rows(PROVENANCE, assumed, words=True)
    missing = [
        f'<p class="warning"><b>{escape(what)}</b> unavailable: {escape(why)}</p>'
        for what, why in study.unavailable.items()
    ]
    more = f"{len(others)} more that are rough or defaults"
    details = f"<details><summary>{more}</summary>{_rows(PROVENANCE, others, words=True)}</details>"
    return _section("provenance", "What it stands on", said, *missing, details)


def limits() -> list[str]:
    """What hsim does not model: the points of that section of the README, which is shipped with it."""
    found = NOT_MODELLED.search(shipped("README.md").read_text(encoding="utf-8"))
    if found is None:
        raise HsimError("README.md: has no section 'What hsim does not model'; install hsim anew")
    return [" ".join(point.split()) for point in POINT.findall(found[1])]


def _limits_section() -> str:
    points = (re.sub("`([^`]*)`", r"<code>\1</code>", escape(point)) for point in limits())
    return _section(
        "limits", "What is not modelled", "<ul>" + "".join(f"<li>{point}</li>" for point in points) + "</ul>"
    )


def _method_section(study: Study, system: System) -> str:
    """The points of STRESS-DES (Monks et al., Journal of Simulation 13 (2019) 55) that differ from run to run."""
    scenario = system.scenario
    pools = "; ".join(f"{name} on {pool.runs_on}, router {pool.router}" for name, pool in scenario.pools.items())
    stages = ", ".join(
        f"{stage} on {' or '.join(serving)}"
        for stage in type(scenario.stages).model_fields
        if (serving := scenario.stages.pools(stage))
    )
    warm_up = (
        f"{study.warm_up.tasks:,} tasks, from an empty system" if study.warm_up else "none: all of a finite run counts"
    )
    rows = [
        ("Outputs", "energy, tokens, cost and CO2 a task over the window; latencies of a cohort followed to its end"),
        ("Logic", f"a task passes {stages}; {pools}; continuous batching with paged KV cache, preempted by recompute"),
        ("Input", f"arrivals {scenario.workload.arrivals.kind}; scenario and seed below; figures above, with their sources"),
        ("Initialisation", warm_up),
        ("Run length", f"{study.tasks:,} tasks a replication"),
        ("Estimation", f"{study.replications} independent replications; ratio estimators, t intervals by the delta method, "
                       "quantiles by Woodruff, fractions by Korn and Graubard; tails of fewer than ten points not estimable"),
        ("Random numbers", f"Philox, keyed by seed {study.seed}, replication, purpose and task: fleets see the same tasks"),
        ("Execution", "event by event; equal instants have one order; equal seeds give equal bytes on any number of processes"),
        ("Software", f"hsim {study.hsim_version} (Apache-2.0), Python {platform.python_version()}"),
    ]  # fmt: skip
    return _section("method", "Method, in the points of STRESS-DES", _rows(("", ""), rows, words=True))


def _again_section(study: Study, system: System, command: str) -> str:
    said = f"<p>Scenario sha256 <code>{study.scenario_sha256}</code>, seed {study.seed}, hsim {study.hsim_version}.</p>"
    text = f"<details><summary>The scenario, with all settings</summary><pre>{escape(scenario_text(system))}</pre></details>"
    note = (
        '<p class="faint">Every figure of this page is in it as JSON too: the script element with the id "result".</p>'
    )
    return _section("again", "To have it again", f"<pre>{escape(command)}</pre>", said, text, note)
