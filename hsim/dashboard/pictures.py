"""Pictures that only the dashboard draws, as plotly data; the others are those of hsim.report.figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hsim.metrics.result import Comparison, Difference, Interval, StageAnatomy, Study
from hsim.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Figure
from hsim.report.names import figure_name
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
        "textfont": {"color": "#ffffff" if colour in (BLUE, GREEN, PURPLE, VERMILLION) else "#1c2733"},
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


def against_load(loads: Sequence[float], studies: Sequence[Study]) -> Figure:
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
        intervals = [interval for _, interval in rows]
        data.append({
            "type": "scatter", "mode": "lines+markers", "x": [load for load, _ in rows], "xaxis": f"x{own}", "yaxis": f"y{own}",
            "y": [(i.value or 0.0) / scale for i in intervals], "error_y": _bars(intervals, 1 / scale),
            "line": {"color": colour, "width": 2}, "marker": {"size": 7, "color": colour}, "name": title,
            "hovertemplate": f"at %{{x:.3g}}: %{{y:.4g}} {said}<extra>{title}</extra>",
        })  # fmt: skip
        left = number / len(PANELS)
        layout[f"xaxis{own}"] = {
            "domain": [left + 0.02, left + 0.28],
            "title": {"text": "load"},
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
    "usd_per_task": ("Cost a task", GREEN),
    "e2e.mean_s": ("Mean time", VERMILLION),
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


def fleets(names: Sequence[str], studies: Sequence[Study], verdicts: Sequence[str]) -> Figure:
    """Fleets by dollars and joules a task with intervals; the colour is the verdict, and so is the mark."""
    data: list[dict[str, Any]] = []
    points = []
    for name, study, verdict in zip(names, studies, verdicts, strict=False):
        figures = study.figures()
        if verdict == "UNSTABLE" or "tst_j" not in figures or "usd_per_task" not in figures:
            continue
        cost, energy, time = figures["usd_per_task"], figures["tst_j"], figures.get("e2e.mean_s", Interval(None))
        points.append((cost.value or 0.0, energy.value or 0.0, verdict))
        colour, symbol = MARKS[verdict]
        data.append({
            "type": "scatter", "mode": "markers", "x": [1000 * (cost.value or 0.0)], "y": [energy.value], "name": name,
            "error_x": {**_bars([cost], 1000.0), "color": colour}, "error_y": {**_bars([energy]), "color": colour},
            "marker": {"color": colour, "symbol": symbol, "size": 11, "line": {"width": 1, "color": GREY}},
            "hovertemplate": f"<b>{name}</b><br>{verdict}<br>$%{{x:.3g}} a thousand tasks<br>%{{y:.4s}}J a task<br>"
                             f"mean time {readable_seconds(time.value) if time.value else '–'}<extra></extra>",
        })  # fmt: skip
    front = _front([point for point in points if point[2] in ("PASS", "NONE")])
    line = {"color": GREY, "width": 1.5, "dash": "dot", "shape": "hv"}
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": [1000 * x for x, _ in front],
            "y": [y for _, y in front],
            "line": line,
            "hoverinfo": "skip",
        }
    )
    axes = {
        "xaxis": {"title": {"text": "USD a thousand tasks"}},
        "yaxis": {"title": {"text": "J a task"}, "tickformat": "~s"},
    }
    return {
        "data": data,
        "layout": {**axes, "height": 430, "showlegend": False, "margin": {"l": 60, "r": 10, "t": 10, "b": 45}},
    }


MARKS = {
    "PASS": (BLUE, "circle"), "NONE": (BLUE, "circle"), "UNDECIDED": (ORANGE, "diamond"), "FAIL": (VERMILLION, "x"),
}  # fmt: skip


def _front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float]]:
    """Points that no other beats in both coordinates, from the cheapest on."""
    found: list[tuple[float, float]] = []
    for x, y, _ in sorted(points):
        if not found or y < found[-1][1]:
            found.append((x, y))
    return found


def break_even(loads: Sequence[float], comparisons: Sequence[Comparison]) -> Figure:
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
        "xaxis": {"title": {"text": "load"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "split less GPU-only"}, "ticksuffix": " %", "zeroline": True, "zerolinewidth": 2},
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

Swing = tuple[str, Interval, Interval]  # an input, and what less and more of it do, in percent


def swings_of(names: Sequence[str], comparison: Comparison, figure: str) -> list[Swing]:
    """What each input's two ends do to a figure, the widest first; without those that have no steady state."""
    found = []
    for number, name in enumerate(names):
        ends = []
        for differences in comparison.differences[2 * number : 2 * number + 2]:
            ends += [_in_percent(d) for d in differences if d.figure == figure and d.first]
        if len(ends) == 2:
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
