"""Pictures that only the dashboard draws, as plotly data; the others are those of hsim.report.figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hsim.metrics.result import Comparison, Difference, Interval, SloVerdict, StageAnatomy, Study
from hsim.report.figures import BLUE, GREEN, GREY, METRIC_COLOURS, ORANGE, PURPLE, SKY, VERMILLION, Figure
from hsim.report.names import SHORT_NAMES, figure_name
from hsim.units import readable, readable_error, readable_seconds, scale_of

STAGE_COLOURS = {"understand": GREEN, "tool": ORANGE, "prefill": PURPLE, "generate": BLUE}
WAIT = VERMILLION
LABELLED = 0.06  # of a bar: a smaller part has no room for words
ACCOUNT_KINDS = {"dynamic": "work", "occupied": "idle in use"}
Part = tuple[str, float, str, str]  # name, amount, colour, what to show

Accounts = Sequence[tuple[str, str, float]]


def where_it_goes(stages: Sequence[StageAnatomy], accounts: Accounts) -> Figure:
    """A task's time and joules as two bars of parts, words on the parts and no legend."""
    time, energy = _time_parts(stages), _energy_parts(accounts)
    total_s, total_j = (sum(amount for _, amount, _, _ in parts) for parts in (time, energy))
    data = _bar(f"<b>{readable_seconds(total_s)}</b><br>time a task", time, total_s)
    data += _bar(f"<b>{readable(total_j, 'J')}</b><br>energy a task", energy, total_j)
    layout = {
        "barmode": "stack",
        "height": 240 if accounts else 165,
        "bargap": 0.25,
        "xaxis": {"visible": False, "range": [0, 100], "fixedrange": True},
        "yaxis": {"autorange": "reversed", "fixedrange": True, "tickfont": {"size": 13}},
        "margin": {"l": 100, "r": 10, "t": 10, "b": 10},
        "showlegend": False,
        "uniformtext": {"minsize": 11, "mode": "hide"},
    }
    return {"data": data, "layout": layout}


def _bar(row: str, parts: Sequence[Part], total: float) -> list[dict[str, Any]]:
    return [_part(row, part, total) for part in parts if part[1] > 0]


def _part(row: str, part: Part, total: float) -> dict[str, Any]:
    name, amount, colour, shown = part
    share = amount / total
    return {
        "type": "bar",
        "orientation": "h",
        "x": [100 * share],
        "y": [row],
        "name": name,
        "marker": {"color": colour, "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
        "text": [f"{name}<br>{shown}" if share > LABELLED else ""],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textfont": {"color": "#ffffff" if colour in (BLUE, VERMILLION) else "#1c2733"},
        "hovertemplate": f"{name}: {shown}, {share:.1%}<extra></extra>",
    }


def _time_parts(stages: Sequence[StageAnatomy]) -> list[Part]:
    parts: list[Part] = []
    for s in stages:
        colour = STAGE_COLOURS[s.stage]
        parts.append((f"waiting for {s.pool}", s.wait_s, WAIT, readable_seconds(s.wait_s)))
        parts.append((s.stage, s.service_s, colour, readable_seconds(s.service_s)))
        if s.outside_s:
            parts.append(("waiting outside", s.outside_s, GREY, readable_seconds(s.outside_s)))
        if s.transfer_s:
            parts.append((f"moving to {s.pool}", s.transfer_s, SKY, readable_seconds(s.transfer_s)))
    return parts


def _energy_parts(accounts: Accounts) -> list[Part]:
    """Work and idle in use by stage, then what is idle, then losses."""
    grouped: dict[tuple[str, str], float] = {}
    for account, kind, joules in accounts:
        stage = account.partition(":")[0]
        if kind == "dynamic":
            key = (stage, STAGE_COLOURS.get(stage, SKY))
        elif kind == "occupied":
            key = ("idle in use", SKY)
        else:
            key = (account, PURPLE) if kind == "loss" else ("idle", GREY)
        grouped[key] = grouped.get(key, 0.0) + joules
    return [(name, joules, colour, readable(joules, "J")) for (name, colour), joules in grouped.items()]


# ---- what if

CHANGES = {
    "e2e.mean_s": -1, "answer_ttft.mean_s": -1, "ttft.mean_s": -1, "tpot.mean_s": -1, "slo.e2e": 1, "slo.answer_ttft": 1,
    "slo.ttft": 1, "slo.tpot": 1, "tst_j": -1, "usd_per_task": -1, "gco2_per_task": -1,
}  # fmt: skip
JUDGED = {"better": (BLUE, "circle"), "worse": (VERMILLION, "x"), "no difference shown": (GREY, "circle-open")}


def what_changes(found: Sequence[Difference]) -> Figure:
    """Paired differences in percent of what is now, with intervals; colour and mark say whether they are for the better.

    Throughput, power and tokens a joule follow from these, and stand in the table.
    """
    known = {d.figure: d for d in found if d.figure in CHANGES and d.first}
    shown_ = [known[figure] for figure in CHANGES if figure in known]
    data: list[dict[str, Any]] = []
    for judged, (colour, symbol) in JUDGED.items():
        mine = [d for d in shown_ if _judged(d) == judged]
        percent = [_in_percent(d) for d in mine]
        data.append({
            "type": "scatter", "mode": "markers", "x": [i.value for i in percent],
            "y": [figure_name(d.figure)[0] for d in mine], "error_x": {**_bars(percent), "color": colour, "thickness": 3},
            "marker": {"color": colour, "symbol": symbol, "size": 10}, "name": judged,
            "hovertemplate": "%{y}: %{x:+.1f} %<extra></extra>",
        })  # fmt: skip
    names = [figure_name(d.figure)[0] for d in shown_]
    axes = {
        "xaxis": {"ticksuffix": " %", "zeroline": True, "zerolinecolor": GREY, "zerolinewidth": 2},
        "yaxis": {"categoryorder": "array", "categoryarray": names[::-1], "range": [-0.6, len(names) - 0.4]},
    }
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    margin = {"l": 10, "r": 10, "t": 30, "b": 30}
    height = 90 + 30 * len(names)
    return {"data": data, "layout": {**axes, "height": height, "legend": legend, "margin": margin, "showlegend": True}}


def _judged(difference: Difference) -> str:
    if difference.verdict == "no difference shown":
        return difference.verdict
    up = difference.verdict == "higher"
    return "better" if up == (CHANGES[difference.figure] > 0) else "worse"


# ---- trade-offs


def shown(figure: str, value: float) -> str:
    """A figure as people read it."""
    return readable_error(value, None, figure_name(figure)[1])


def _bars(intervals: Sequence[Interval], scale: float = 1.0) -> dict[str, Any]:
    """Error bars of intervals; none where there is no interval."""
    values = [i.value or 0.0 for i in intervals]
    up = [0.0 if i.high is None else (i.high - v) * scale for i, v in zip(intervals, values, strict=True)]
    down = [0.0 if i.low is None else (v - i.low) * scale for i, v in zip(intervals, values, strict=True)]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5, "width": 3}


def against_load(loads: Sequence[float], studies: Sequence[Study], load_unit: str) -> Figure:
    """Energy, cost and time of a task against the load, each with intervals; a load that is too much ends the lines."""
    steady = [(load, study.figures()) for load, study in zip(loads, studies, strict=True) if study.latency]
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "height": 380,
        "showlegend": False,
        "annotations": [],
        "margin": {"l": 50, "r": 10, "t": 40, "b": 45},
    }
    for number, (figure, (title, colour)) in enumerate(PANELS.items()):
        own = "" if number == 0 else str(number + 1)
        rows = [(load, figures[figure]) for load, figures in steady if figure in figures]
        _, unit = figure_name(figure)
        scale, said = scale_of(max((i.value or 0.0 for _, i in rows), default=1.0), unit)
        scale = 1 / 1000 if unit == "USD" else scale
        intervals = [interval for _, interval in rows]
        data.append({
            "type": "scatter", "mode": "lines+markers", "x": [load for load, _ in rows], "xaxis": f"x{own}", "yaxis": f"y{own}",
            "y": [(i.value or 0.0) / scale for i in intervals], "error_y": _bars(intervals, 1 / scale),
            "line": {"color": colour, "width": 2}, "marker": {"size": 7, "color": colour}, "name": title,
            "hovertemplate": f"at %{{x:.3g}}: %{{y:.4g}} {said}<extra>{title}</extra>",
        })  # fmt: skip
        left = number / len(PANELS)
        layout[f"xaxis{own}"] = {
            "domain": [left + 0.02, left + 0.3],
            "title": {"text": load_unit},
            "rangemode": "tozero",
            "anchor": f"y{own}",
        }
        layout[f"yaxis{own}"] = {"rangemode": "tozero", "anchor": f"x{own}"}
        layout["annotations"].append(_title(f"{title}, {said}", left + 0.02))
        for load in sorted(set(loads[: len(studies)]) - {load for load, _ in steady}):
            layout.setdefault("shapes", []).append(_forbidden(load, own))
    return {"data": data, "layout": layout}


PANELS = {
    "tst_j": ("Energy a task", BLUE),
    "usd_per_task": ("Cost of 1,000 tasks", GREEN),
    "e2e.mean_s": ("Mean time of a task", VERMILLION),
}


def _title(text: str, x: float) -> dict[str, Any]:
    return {
        "text": f"<b>{text}</b>",
        "x": x,
        "y": 1.08,
        "xref": "paper",
        "yref": "paper",
        "showarrow": False,
        "xanchor": "left",
    }


def _forbidden(load: float, own: str) -> dict[str, Any]:
    """A mark at a load that the fleet cannot keep up with."""
    line = {"color": VERMILLION, "width": 2, "dash": "dot"}
    return {
        "type": "line",
        "xref": f"x{own}",
        "yref": f"y{own} domain",
        "x0": load,
        "x1": load,
        "y0": 0,
        "y1": 1,
        "line": line,
    }


def fleets(
    names: Sequence[str], studies: Sequence[Study], verdicts: Sequence[str], latency: str, slo: SloVerdict | None
) -> Figure:
    """Fleets by dollars and joules, and by dollars and a latency with the box that its objective allows.

    Each is known by its number in `names`; colour and mark are the verdict. Both axes have intervals.
    """
    points = [
        Point(number, name, verdict, found["usd_per_task"], found["tst_j"], found[latency])
        for number, (name, found, verdict) in enumerate(
            zip(names, (study.figures() for study in studies), verdicts, strict=False), 1
        )
        if verdict != "UNSTABLE" and {"usd_per_task", "tst_j", latency} <= set(found)
    ]
    most_s = max([point.latency.value or 0.0 for point in points] + ([slo.max_s] if slo else []), default=1.0)
    scale, unit = scale_of(most_s, "s")
    front = _front([point for point in points if point.verdict in ("PASS", "NONE")])
    data = [_marks(point, "y", point.energy, 1.0, {p.verdict for p in points[:i]}) for i, point in enumerate(points)]
    data += [_marks(p, "y2", p.latency, scale, set(MARKS)) for p in points if p.latency.value is not None]
    data.append({
        "type": "scatter", "mode": "lines", "xaxis": "x", "yaxis": "y", "x": [1000 * (p.cost.value or 0.0) for p in front],
        "y": [p.energy.value for p in front], "hoverinfo": "skip", "name": "no other beats both",
        "line": {"color": GREY, "width": 1.5, "dash": "dot", "shape": "hv"},
    })  # fmt: skip
    title = figure_name(latency)[0]
    layout: dict[str, Any] = {
        "xaxis": {"domain": [0, 0.45], "anchor": "y", "title": {"text": "USD for 1,000 tasks"}},
        "xaxis2": {"domain": [0.56, 1], "anchor": "y2", "title": {"text": "USD for 1,000 tasks"}, "matches": "x"},
        "yaxis": {"anchor": "x", "tickformat": "~s", "ticksuffix": "J"},
        "yaxis2": {"anchor": "x2", "range": [0, 1.15 * most_s / scale]},
        "annotations": [_title("Energy a task", 0.0), _title(f"{title}, {unit}", 0.56)],
        "legend": {"orientation": "h", "x": 0, "y": -0.22},
        "height": 430,
        "margin": {"l": 60, "r": 10, "t": 40, "b": 45},
    }
    if slo is not None:
        layout |= {"shapes": [_box(slo.max_s / scale)]}
        layout["annotations"] = [*layout["annotations"], _box_title(slo, scale)]
    return {"data": data, "layout": layout}


@dataclass(frozen=True)
class Point:
    """A fleet in a picture."""

    number: int
    name: str
    verdict: str
    cost: Interval
    energy: Interval
    latency: Interval


def _marks(point: Point, axis: str, upright: Interval, scale: float, told: Collection[str]) -> dict[str, Any]:
    """A fleet as a mark with its number and both intervals; the first of a verdict that is not yet told names it."""
    colour, symbol = MARKS[point.verdict]
    time = "–" if point.latency.value is None else readable_seconds(point.latency.value)
    return {
        "type": "scatter", "mode": "markers+text", "xaxis": axis.replace("y", "x"), "yaxis": axis,
        "x": [1000 * (point.cost.value or 0.0)], "y": [(upright.value or 0.0) / scale],
        "error_x": {**_bars([point.cost], 1000.0), "color": colour},
        "error_y": {**_bars([upright], 1 / scale), "color": colour},
        "marker": {"color": colour, "symbol": symbol, "size": 11, "line": {"width": 1, "color": GREY}},
        "text": [str(point.number)], "textposition": "top right",
        "name": SAID[point.verdict], "legendgroup": point.verdict, "showlegend": point.verdict not in told,
        "hovertemplate": f"<b>{point.number}: {point.name}</b><br>{point.verdict}<br>$%{{x:.3g}} for 1,000 tasks<br>"
                         f"{readable(point.energy.value or 0.0, 'J')} a task<br>{time}<extra></extra>",
    }  # fmt: skip


MARKS = {
    "PASS": (BLUE, "circle"), "NONE": (BLUE, "circle"), "UNDECIDED": (ORANGE, "diamond"), "FAIL": (VERMILLION, "x"),
}  # fmt: skip
SAID = {"PASS": "keeps all objectives", "NONE": "no objective", "UNDECIDED": "undecided", "FAIL": "misses one"}


def _box(limit: float) -> dict[str, Any]:
    """What an objective allows, as a band from zero up."""
    return {
        "type": "rect", "xref": "x2 domain", "yref": "y2", "x0": 0, "x1": 1, "y0": 0, "y1": limit, "layer": "below",
        "fillcolor": "rgba(0,158,115,0.12)", "line": {"color": GREEN, "width": 1.5, "dash": "dash"},
    }  # fmt: skip


def _box_title(slo: SloVerdict, scale: float) -> dict[str, Any]:
    text = f"objective: {100 * slo.p:.4g} % within {readable_seconds(slo.max_s)}"
    return {
        "text": text, "xref": "x2 domain", "x": 0.99, "xanchor": "right", "yref": "y2", "y": slo.max_s / scale,
        "yanchor": "bottom", "showarrow": False, "font": {"color": GREEN},
    }  # fmt: skip


def _front(points: Sequence[Point]) -> list[Point]:
    """Fleets that no other beats in both dollars and joules, from the cheapest on."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost.value or 0.0, p.energy.value or 0.0)):
        if not found or (point.energy.value or 0.0) < (found[-1].energy.value or 0.0):
            found.append(point)
    return found


def break_even(loads: Sequence[float], comparisons: Sequence[Comparison], load_unit: str) -> Figure:
    """Paired differences of joules and dollars a task, in percent of the first, by load; a band where one is shown better."""
    data: list[dict[str, Any]] = []
    for figure, title, colour, symbol in (
        ("tst_j", "energy a task", BLUE, "circle"),
        ("usd_per_task", "cost a task", ORANGE, "square"),
    ):
        rows = []
        for load, comparison in zip(loads, comparisons, strict=True):
            found = [d for each in comparison.differences for d in each if d.figure == figure and d.first]
            rows += [(load, d) for d in found]
        percent = [_in_percent(d) for _, d in rows]
        fills = [colour if d.verdict != "no difference shown" else "rgba(133,146,160,0.5)" for _, d in rows]
        data.append({
            "type": "scatter", "mode": "lines+markers", "x": [load for load, _ in rows], "y": [i.value for i in percent],
            "error_y": {**_bars(percent), "color": colour}, "name": title, "line": {"color": colour, "width": 1.5},
            "marker": {"color": fills, "size": 10, "symbol": symbol, "line": {"color": colour, "width": 2}},
            "hovertemplate": f"at %{{x:.3g}}: %{{y:+.2f}} %<extra>{title}</extra>",
        })  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": load_unit}, "rangemode": "tozero"},
        "yaxis": {
            "title": {"text": "split less GPU-only"},
            "ticksuffix": " %",
            "rangemode": "tozero",
            "zeroline": True,
            "zerolinewidth": 2,
        },
    }
    legend = {"orientation": "h", "x": 0, "y": 1.1}
    return {
        "data": data,
        "layout": {**axes, "height": 400, "legend": legend, "margin": {"l": 60, "r": 10, "t": 30, "b": 45}},
    }


def _in_percent(difference: Difference) -> Interval:
    ends = (difference.interval.value, difference.interval.low, difference.interval.high)
    return Interval(*(None if end is None else 100 * end / difference.first for end in ends))


# ---- risk


def headroom(loads: Sequence[float], studies: Sequence[Study], verdicts: Sequence[str], load_unit: str) -> Figure:
    """What part of tasks each objective reaches as the load grows, beside the part that is wanted.

    A mark is that load's verdict; where the fleet cannot keep up stands an upright line.
    """
    data: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    for slo in next((study.slo for study in studies if study.slo), ()):
        found = [
            (load, s) for load, study in zip(loads, studies, strict=False) for s in study.slo if s.metric == slo.metric
        ]
        colour = METRIC_COLOURS[slo.metric]
        data.append({
            "type": "scatter", "mode": "lines+markers", "x": [load for load, _ in found],
            "y": [100 * (s.attained.value or 0.0) for _, s in found],
            "error_y": _bars([s.attained for _, s in found], 100.0), "line": {"color": colour, "width": 2},
            "marker": {"size": 10, "color": colour, "symbol": [MARKS[s.verdict][1] for _, s in found]},
            "name": f"{SHORT_NAMES[slo.metric]} within {readable_seconds(slo.max_s)}",
            "hovertemplate": "at %{x:.3g}: %{y:.2f} %<extra>" + SHORT_NAMES[slo.metric] + "</extra>",
        })  # fmt: skip
        shapes.append({
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 100 * slo.p, "y1": 100 * slo.p,
            "line": {"color": colour, "width": 1.5, "dash": "dash"},
        })  # fmt: skip
    shapes += [_forbidden(load, "") for load, verdict in zip(loads, verdicts, strict=False) if verdict == "UNSTABLE"]
    axes = {
        "xaxis": {"title": {"text": load_unit}},
        "yaxis": {"title": {"text": "in the objective; wanted: dashed"}, "ticksuffix": " %", "rangemode": "normal"},
    }
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    margin = {"l": 60, "r": 10, "t": 30, "b": 45}
    return {
        "data": data,
        "layout": {**axes, "shapes": shapes, "height": 360, "legend": legend, "margin": margin, "showlegend": True},
    }


Swing = tuple[str, Interval, Interval]  # an input, and what less and more of it do, in percent


def swings_of(names: Sequence[str], comparison: Comparison, figure: str) -> list[Swing]:
    """What each input's two ends do to a figure, the widest first; without those that do nothing, or have no steady state."""
    found = []
    for number, name in enumerate(names):
        ends = []
        for differences in comparison.differences[2 * number : 2 * number + 2]:
            ends += [_in_percent(d) for d in differences if d.figure == figure and d.first]
        if len(ends) == 2 and any(end.value for end in ends):
            found.append((name, ends[0], ends[1]))
    return sorted(found, key=lambda swing: -max(abs(end.value or 0.0) for end in swing[1:]))


def tornado(swings: Sequence[Swing]) -> Figure:
    """Bars to both sides of zero, in percent."""
    names = [name for name, _, _ in swings]
    data: list[dict[str, Any]] = []
    for title, ends, colour in (
        ("less", [less for _, less, _ in swings], ORANGE),
        ("more", [more for _, _, more in swings], BLUE),
    ):
        data.append({
            "type": "bar", "orientation": "h", "x": [end.value for end in ends], "y": names, "name": title,
            "marker": {"color": colour}, "error_x": {**_bars(ends), "color": GREY},
            "hovertemplate": f"{title} %{{y}}: %{{x:+.2f}} %<extra></extra>",
        })  # fmt: skip
    axes = {"xaxis": {"ticksuffix": " %", "zeroline": True}, "yaxis": {"autorange": "reversed", "automargin": True}}
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    margin = {"l": 10, "r": 10, "t": 30, "b": 30}
    return {
        "data": data,
        "layout": {**axes, "barmode": "overlay", "height": 90 + 34 * len(swings), "legend": legend, "margin": margin},
    }
