"""Figures of results, as the plain data that plotly takes: the page and the dashboard share them.

Each function returns {"data": ..., "layout": ...}, which plotly.graph_objects.Figure, st.plotly_chart and Plotly.react
take as it is; building one needs no plotly. Colours are those of Okabe and Ito, which colour-blind readers tell apart;
`template` gives a light and a dark ground.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.metrics.ledger import Window
from hsim.metrics.result import Comparison, Interval, Placement, SloOutcome, SloVerdict, StageAnatomy, Study
from hsim.metrics.statistics import MIN_TAIL_POINTS
from hsim.metrics.timelines import Timeline, Timelines
from hsim.report.names import BOUNDARY_NAMES, LATENCY_NAMES, SHORT_NAMES, figure_name
from hsim.units import readable, readable_seconds, scale_of

Floats = NDArray[np.float64]
Figure = dict[str, Any]

# Okabe and Ito, Color Universal Design (2008). Their yellow and black are left out: each vanishes on one of the grounds.
BLUE, ORANGE, GREEN, SKY, VERMILLION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7"
GREY = "#8592A0"
COLOURS = (BLUE, ORANGE, GREEN, SKY, VERMILLION, PURPLE, GREY)
METRIC_COLOURS = {"ttft": GREEN, "tpot": PURPLE, "answer_ttft": ORANGE, "e2e": BLUE}
KIND_COLOURS = {"dynamic": BLUE, "occupied": SKY, "idle": ORANGE, "loss": PURPLE}
KIND_NAMES = {"dynamic": "work", "occupied": "idle in use", "idle": "idle", "loss": "losses"}
TIME_COLOURS = {"transfer": PURPLE, "wait": VERMILLION, "service": BLUE, "outside": GREY}
TIME_NAMES = {"transfer": "transfer", "wait": "wait", "service": "service", "outside": "outside"}

SITE_LOSS = " (PUE)"  # behind the name of each site, as the ledger calls it
SAME = "\0"  # after it stands what tells apart accounts of one name
Link = tuple[str, str, float, str]
Spans = dict[str, tuple[float, float]]

CURVE_POINTS = 400
LABEL_PX, LABEL_GAP_PX = 36, 17  # of a Sankey: no label upon another
BINS = 480
PANEL_PX, FEW_LINES = 150, 6
STRIP_MARGIN = {"l": 50, "r": 20, "t": 40, "b": 45}
VERDICT_COLOURS = {"PASS": GREEN, "FAIL": VERMILLION, "UNDECIDED": ORANGE}
LEVELS = {"50 %": 0.5, "75 %": 0.75, "90 %": 0.9, "95 %": 0.95, "99 %": 0.99, "99.9 %": 0.999, "99.99 %": 0.9999}


def template(dark: bool) -> dict[str, Any]:
    """Ink and grid of figures on a light or dark ground, for layout.template."""
    ink, faint, line = ("#e6ebf0", "#aab6c2", "#2c3945") if dark else ("#1c2733", "#5b6875", "#dfe5ea")
    axis = {"gridcolor": line, "linecolor": line, "zerolinecolor": line, "tickcolor": line, "automargin": True}
    return {
        "layout": {
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": faint},
            "title": {"font": {"size": 15, "color": ink}},
            "legend": {"font": {"color": ink}},
            "colorway": list(COLOURS),
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
        }
    }


def latency_cdf(latency: Mapping[str, Floats], slo: Sequence[SloVerdict | SloOutcome] = ()) -> Figure:
    """Cumulative distributions of latencies in seconds, by metric; an upright scale on which the tail can be seen.

    Dotted where fewer than ten points lie beyond. An objective is a diamond: it is met where the curve of its colour
    passes above it (or left of it).
    """
    data = []
    for metric, seconds in latency.items():
        for curve in _curves(np.sort(seconds)):
            data.append({**curve, "name": LATENCY_NAMES[metric], "legendgroup": metric})
            data[-1]["line"] = {"color": METRIC_COLOURS[metric], **curve["line"]}
    for objective in slo:
        wanted = f"{SHORT_NAMES[objective.metric]}: {objective.p:.2%} within {readable_seconds(objective.max_s)}"
        data.append({
            "x": [objective.max_s], "y": [_height(objective.p)], "mode": "markers", "name": wanted,
            "legendgroup": objective.metric, "hovertemplate": f"{wanted}<extra>objective</extra>",
            "marker": {"symbol": "diamond", "size": 11, "color": METRIC_COLOURS[objective.metric],
                       "line": {"width": 1.5, "color": GREY}},
        })  # fmt: skip
    most = max((len(seconds) for seconds in latency.values()), default=1)
    ticks = {name: _height(p) for name, p in LEVELS.items() if p == 0.5 or most * (1 - p) >= 1}
    upright = {
        "title": {"text": "of tasks or visits take at most"},
        "tickvals": list(ticks.values()),
        "ticktext": list(ticks),
    }
    across = {"type": "log", "title": {"text": "seconds"}, "dtick": 1}
    layout = {"xaxis": across, "yaxis": upright | {"rangemode": "tozero"}, "height": 400, "hovermode": "closest"}
    return _figure(data, layout)


def _height(p: float | Floats) -> Any:
    """Where a fraction stands on a scale of nines: 90 % at 1, 99 % at 2."""
    return -np.log10(1 - np.asarray(p)) if isinstance(p, np.ndarray) else -math.log10(1 - p)


def _curves(seconds: Floats) -> list[dict[str, Any]]:
    """The distribution of a sorted sample as lines: what is estimable, and the tail that is not."""
    count = len(seconds)
    # Points as far apart as they look: as many for the last 1 % as for the one before.
    levels = 1 - np.logspace(0, -math.log10(count + 1), CURVE_POINTS)
    ranks = np.unique(np.append(np.floor(levels * count).astype(np.int64), count - 1).clip(0, count - 1))
    x, y = seconds[ranks], (ranks + 1) / (count + 1)
    estimable = count - ranks > MIN_TAIL_POINTS
    first_beyond = int(np.argmin(estimable)) if not estimable.all() else len(ranks)
    lines: list[dict[str, Any]] = []
    for part, dash in ((slice(0, first_beyond), "solid"), (slice(max(0, first_beyond - 1), None), "dot")):
        if len(x[part]):
            lines.append({
                "x": _plain(x[part]), "y": _plain(_height(y[part])), "customdata": _plain(100 * y[part]), "mode": "lines",
                "line": {"dash": dash, "width": 2}, "showlegend": not lines,
                "hovertemplate": "%{customdata:.2f} % within %{x:.3~s}s",
            })  # fmt: skip
    return lines


def stage_anatomy(stages: Sequence[StageAnatomy], energy: bool = True) -> Figure:
    """Where a task's seconds and joules go, by stage: means over served tasks."""
    names = [f"{s.stage}<br>{s.pool}" for s in stages]
    data = []
    for part, colour in TIME_COLOURS.items():
        values = [getattr(s, f"{part}_s") for s in stages]
        data.append(_bars(values, names, TIME_NAMES[part], colour, [readable_seconds(v) for v in values]))
    layout: dict[str, Any] = {"xaxis": {"title": {"text": "seconds a task"}, "domain": [0, 0.46 if energy else 1]}}
    if energy:
        for part, kind in (("dynamic_j", "dynamic"), ("occupied_j", "occupied")):
            values = [getattr(s, part) for s in stages]
            shown = [readable(v, "J") for v in values]
            data.append(
                _bars(values, names, KIND_NAMES[kind], KIND_COLOURS[kind], shown) | {"xaxis": "x2", "yaxis": "y2"}
            )
            data[-1]["legend"] = "legend2"
        layout |= {
            "xaxis2": {"title": {"text": "joules a task, behind the power supply"}, "domain": [0.54, 1]},
            "yaxis2": {"anchor": "x2", "autorange": "reversed", "showticklabels": False},
            "legend2": {"orientation": "h", "x": 0.54, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        }
    layout["yaxis"] = {"autorange": "reversed", "ticks": "outside", "ticklen": 8, "tickcolor": "rgba(0,0,0,0)"}
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    return _figure(data, layout | {"barmode": "stack", "height": 140 + 52 * len(stages)})


def _bars(
    values: Sequence[float], names: Sequence[str], name: str, colour: str, shown: Sequence[str]
) -> dict[str, Any]:
    return {
        "type": "bar", "orientation": "h", "x": list(values), "y": list(names), "name": name, "marker": {"color": colour},
        "text": list(shown), "textposition": "none", "hovertemplate": "%{text}",
    }  # fmt: skip


def ledger_sankey(accounts: Sequence[tuple[str, str, float]]) -> Figure:
    """The joule ledger, from what the site draws to the accounts: (account, kind, joules a task) with losses as accounts.

    Accounts below a thousandth of all are drawn together with others of their kind.
    """
    total_j = sum(joules for _, _, joules in accounts)
    rows: dict[tuple[str, str], float] = {}
    for account, kind, joules in sorted(accounts, key=lambda row: -row[2]):
        shown = account if joules >= 0.001 * total_j else "others"
        rows[kind, shown] = rows.get((kind, shown), 0.0) + joules
    least_j = 1e-9 * total_j  # what is left over of rounding is nobody's
    by_kind = {k: {name: j for (kind, name), j in rows.items() if kind == k and j > least_j} for k in KIND_COLOURS}
    losses = by_kind.pop("loss")
    sites = {name: losses.pop(name) for name in list(losses) if name.endswith(SITE_LOSS)}
    wall = BOUNDARY_NAMES["wall"]
    nodes = {"facility": (0, GREY), wall: (1, GREY)}
    links: list[Link] = [("facility", wall, total_j - sum(sites.values()), GREY)]
    for kind, mine in by_kind.items():
        if mine:
            colour, name = KIND_COLOURS[kind], KIND_NAMES[kind]
            nodes |= {name: (2, colour)} | {f"{account}{SAME}{kind}": (3, colour) for account in mine}
            links.append((wall, name, sum(mine.values()), colour))
            links += [(name, f"{account}{SAME}{kind}", joules, colour) for account, joules in mine.items()]
    for source, account, joules in [(wall, *loss) for loss in losses.items()] + [
        ("facility", *at) for at in sites.items()
    ]:
        if joules > 0:
            nodes[account] = (3, KIND_COLOURS["loss"])
            links.append((source, account, joules, KIND_COLOURS["loss"]))
    return _sankey(nodes, links, total_j)


def _sankey(nodes: dict[str, tuple[int, str]], links: Sequence[Link], total_j: float) -> Figure:
    """Nodes by name, each with its column and colour, in order from the top: placed so that no band crosses another."""
    joules = {name: sum(j for _, target, j, _ in links if target == name) or total_j for name in nodes}
    columns = [[name for name, (column, _) in nodes.items() if column == wanted] for wanted in range(4)]
    most = max(len(column) for column in columns)
    high_px = max(380, LABEL_PX * most)
    px_per_j = (high_px - LABEL_GAP_PX * (most - 1)) / total_j
    middle: dict[str, float] = {}
    for column in columns:
        below_px = 0.0
        for name in column:
            middle[name] = (below_px + joules[name] * px_per_j / 2) / high_px
            below_px += joules[name] * px_per_j + LABEL_GAP_PX
    places = list(nodes)
    data = {
        "type": "sankey",
        "arrangement": "fixed",
        "node": {
            "label": [f"{name.partition(SAME)[0]}  {readable(joules[name], 'J')} ({_share(joules[name] / total_j)})" for name in nodes],
            "color": [colour for _, colour in nodes.values()],
            "x": [(0.001, 0.27, 0.55, 0.999)[column] for column, _ in nodes.values()],
            "y": [min(0.999, max(0.001, middle[name])) for name in nodes],
            "pad": LABEL_GAP_PX, "thickness": 14, "line": {"width": 0}, "hovertemplate": "%{label}<extra></extra>",
        },
        "link": {
            "source": [places.index(source) for source, *_ in links],
            "target": [places.index(target) for _, target, *_ in links],
            "value": [j for _, _, j, _ in links],
            "color": [_faded(colour) for *_, colour in links],
            "customdata": [readable(j, "J") for _, _, j, _ in links],
            "hovertemplate": "%{customdata} a task<extra></extra>",
        },
    }  # fmt: skip
    return _figure([data], {"height": high_px + 32, "margin": {"l": 8, "r": 8, "t": 16, "b": 16}})


def _share(part: float) -> str:
    return f"{part:.1%}" if part >= 0.0005 else "<0.1%"


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"


def timelines(lines: Timelines, window: Window, end_s: float) -> Figure:
    """Power, queues, batches, KV cache and tasks in progress over one path, as means over bins; the window is shaded."""
    watts_known = not any(np.isnan(line.values).any() for line in lines.facility_w)
    panels: list[tuple[str, str, Sequence[Timeline]]] = [
        ("facility power", "W", lines.facility_w if watts_known else ()),
        ("tasks in progress", "tasks", [lines.in_progress]),
        ("waiting, by pool", "visits", lines.queues),
        ("decoding sequences", "sequences", _fewer(lines.batches, mean=False)),
        ("KV cache in use", "%", _fewer(lines.kv_used, mean=True)),
    ]
    panels = [panel for panel in panels if panel[2]]
    edges = np.linspace(0.0, end_s, BINS + 1)
    middle = _plain((edges[:-1] + edges[1:]) / 2)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"xaxis": {"title": {"text": "seconds"}, "domain": [0, 1], "anchor": f"y{len(panels)}"}}
    height, gap = 1 / len(panels), 0.045
    for number, (title, unit, shown) in enumerate(panels, 1):
        own = "" if number == 1 else str(number)
        top = 1 - (number - 1) * height
        layout[f"yaxis{own}"] = {
            "domain": [top - height + gap, top - 0.01],
            "title": {"text": unit},
            "rangemode": "tozero",
            "tickformat": "~s" if unit == "W" else "",
        }
        layout.setdefault("annotations", []).append(_heading(title, 0, top))
        for i, line in enumerate(shown):
            drawn = _line(line, edges, COLOURS[i % len(COLOURS)], percent=unit == "%")
            stack = {"stackgroup": "power", "fillcolor": _faded(COLOURS[i % len(COLOURS)])} if unit == "W" else {}
            data.append({**drawn, **stack, "x": middle, "yaxis": f"y{own}", "legend": "legend" + own})
        beside = {"x": 1.01, "y": top - 0.01, "yanchor": "top", "xanchor": "left", "bgcolor": "rgba(0,0,0,0)"}
        layout["legend" + own] = beside | {"tracegroupgap": 0}
    layout["shapes"] = [_shade(window)]
    return _figure(data, layout | {"height": PANEL_PX * len(panels), "hovermode": "x unified", "showlegend": True})


def _fewer(lines: Sequence[Timeline], mean: bool) -> Sequence[Timeline]:
    """Each line, or where there are too many to tell apart, their sum or mean."""
    if len(lines) <= FEW_LINES:
        return lines
    times_s = np.unique(np.concatenate([line.times_s for line in lines]))
    levels = [line.at(times_s) for line in lines]
    name = f"{'mean' if mean else 'all'} of {len(lines)} replicas"
    return [Timeline(name, lines[0].unit, times_s, np.mean(levels, axis=0) if mean else np.sum(levels, axis=0))]


def _line(line: Timeline, edges: Floats, colour: str, percent: bool) -> dict[str, Any]:
    values = line.means(edges) * (100 if percent else 1)
    return {
        "y": _plain(values),
        "mode": "lines",
        "name": line.name,
        "line": {"width": 1.5, "color": colour, "shape": "hvh"},
    }


def _shade(window: Window) -> dict[str, Any]:
    return {
        "type": "rect", "xref": "x", "yref": "paper", "x0": window.start_s, "x1": window.end_s, "y0": 0, "y1": 1,
        "layer": "below", "line": {"width": 0}, "fillcolor": "rgba(133,146,160,0.13)",
    }  # fmt: skip


def _heading(text: str, x: float, y: float) -> dict[str, Any]:
    return {"text": f"<b>{text}</b>", "xref": "paper", "yref": "paper", "x": x, "y": y, "xanchor": "left", "yanchor": "bottom", "showarrow": False}  # fmt: skip


def replications(values: Mapping[str, Sequence[float]], figures: Mapping[str, Interval]) -> Figure:
    """Each replication's own value of some headline figures, with the study's point and 95 % interval."""
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": [], "height": 280, "margin": STRIP_MARGIN}
    width = 1 / len(values)
    for number, (name, each) in enumerate(values.items(), 1):
        own, left = "" if number == 1 else str(number), (number - 1) * width
        title, unit = figure_name(name)
        scale, shown = scale_of(float(np.mean(each)), unit)
        axes = {"xaxis": f"x{own}", "yaxis": f"y{own}", "showlegend": False}
        data += [{**trace, **axes} for trace in _strip(np.array(each) / scale, figures[name], scale)]
        ends = [0, len(each) - 1]
        layout[f"xaxis{own}"] = {"domain": [left, left + 0.8 * width], "anchor": f"y{own}", "tickvals": ends}
        layout[f"xaxis{own}"]["title"] = {"text": "replication"}
        layout[f"yaxis{own}"] = {"anchor": f"x{own}"}
        layout["annotations"].append(_heading(f"{title}, {shown}" if shown else title, left, 1.02))
    return _figure(data, layout)


def _strip(each: Floats, interval: Interval, scale: float) -> list[dict[str, Any]]:
    """The interval as a band, its point as a line, and the replications' own values."""
    across = [-0.5, len(each) - 0.5]
    flat = {"x": across, "mode": "lines", "hoverinfo": "skip"}
    traces: list[dict[str, Any]] = []
    if interval.low is not None and interval.high is not None:
        ends = (interval.low, interval.high)
        traces = [{**flat, "y": [end / scale] * 2, "line": {"width": 0}} for end in ends]
        traces[-1] |= {"fill": "tonexty", "fillcolor": _faded(ORANGE)}
    if interval.value is not None:
        traces.append({**flat, "y": [interval.value / scale] * 2, "line": {"color": ORANGE, "width": 2}})
    told = "replication %{x}: %{y:.4g}<extra></extra>"
    points = {"x": list(range(len(each))), "y": _plain(each), "mode": "markers", "hovertemplate": told}
    return [*traces, {**points, "marker": {"color": BLUE, "size": 8}}]


def warm_up(sojourn_s: Floats, in_progress: Floats, cut: int) -> Figure:
    """Welch's picture: means over replications by order of arrival, and their moving averages. Shapes (replications, tasks).

    What comes before `cut` is left out of the measurement.
    """
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": [], "shapes": []}
    tasks = sojourn_s.shape[1]
    window = max(1, tasks // 40)
    titles = ("time in the system, s", "found in progress, tasks")
    for number, (title, series) in enumerate(zip(titles, (sojourn_s, in_progress), strict=True), 1):
        own, left = "" if number == 1 else "2", (number - 1) * 0.53
        mean = series.mean(axis=0)
        thin = slice(None, None, max(1, tasks // 1000))
        order = np.arange(tasks)[thin].tolist()
        axes = {"xaxis": f"x{own}", "yaxis": f"y{own}", "x": order, "mode": "lines", "showlegend": number == 1}
        data.append({"y": _plain(mean[thin]), "name": f"mean of {len(series)} replications", "line": {"color": SKY, "width": 1}, **axes})  # fmt: skip
        data.append({"y": _plain(_moving(mean, window)[thin]), "name": f"moving average over {2 * window + 1} tasks", "line": {"color": BLUE, "width": 2.5}, **axes})  # fmt: skip
        layout[f"xaxis{own}"] = {
            "domain": [left, left + 0.47],
            "anchor": f"y{own}",
            "title": {"text": "task, in order of arrival"},
        }
        layout[f"yaxis{own}"] = {"anchor": f"x{own}", "rangemode": "tozero"}
        layout["annotations"].append(_heading(title, left, 1.02))
        line = {"color": VERMILLION, "width": 2, "dash": "dash"}
        layout["shapes"].append({"type": "line", "xref": f"x{own}", "yref": f"y{own} domain", "x0": cut, "x1": cut, "y0": 0, "y1": 1, "line": line})  # fmt: skip
    below = {"orientation": "h", "y": -0.3, "x": 0, "yanchor": "top"}
    return _figure(data, layout | {"height": 340, "legend": below, "margin": STRIP_MARGIN | {"b": 80}})


def _moving(series: Floats, window: int) -> Floats:
    """Welch's centred moving average: over fewer points near the beginning, so that it is never pulled from beyond."""
    sums = np.concatenate(([0.0], np.cumsum(series)))
    at = np.arange(len(series))
    reach = np.minimum(np.minimum(at, len(series) - 1 - at), window)
    return np.asarray((sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1))


def uncertainty(study: Study) -> Figure:
    """Headline figures relative to their value: the sampling interval, and what roughly known figures do, side by side."""
    ranges = study.calibration.ranges if study.calibration else {}
    sampled, rough = {}, {}
    for figure, interval in study.figures().items():
        if interval.value and interval.low is not None and interval.high is not None and not figure.startswith("slo."):
            name = figure_name(figure)[0]
            sampled[name] = (interval.low / interval.value - 1, interval.high / interval.value - 1)
            if figure in ranges:
                rough[name] = (ranges[figure].low / interval.value - 1, ranges[figure].high / interval.value - 1)
    groups = [("95 % sampling interval", BLUE, sampled), ("90 % by rough figures", ORANGE, rough)]
    return _spans(list(sampled), [group for group in groups if group[2]], "relative to the figure")


def differences(comparison: Comparison) -> Figure:
    """Each scenario less the first, in percent of the first, with intervals that hold together at 95 %."""
    first = Path(comparison.studies[0].scenario).stem
    groups: list[tuple[str, str, Spans]] = []
    for study, found, colour in zip(comparison.studies[1:], comparison.differences, COLOURS, strict=False):
        spans = {}
        for d in found:
            if d.first and d.interval.low is not None and d.interval.high is not None:
                spans[figure_name(d.figure)[0]] = (d.interval.low / d.first, d.interval.high / d.first)
        groups.append((f"{Path(study.scenario).stem} less {first}", colour, spans))
    names = list(dict.fromkeys(name for *_, spans in groups for name in spans))
    return _spans(names, groups, "difference, in percent of the first")


def architectures(placement: Placement) -> Figure:
    """Money and joules of a task against load, each architecture at its own best fleet, with 95 % intervals of sampling."""
    data = []
    panels = (("usd_per_task", 1000.0, "USD for 1,000 tasks", ""), ("tst_j", 1.0, "TST, J a task", "2"))
    for i, name in enumerate(placement.architectures):
        for figure, times, _, axis in panels:
            held = [(p.rate_per_s, p.of(name, figure)) for p in placement.points]
            rows = [(rate, found) for rate, found in held if found is not None and found.value is not None]
            value = [times * (found.value or 0.0) for _, found in rows]
            ends = [(times * (found.low or 0.0), times * (found.high or 0.0)) for _, found in rows]
            data.append({
                "x": [rate for rate, _ in rows], "y": value, "xaxis": f"x{axis}", "yaxis": f"y{axis}", "name": name,
                "mode": "lines+markers", "legendgroup": name, "showlegend": not axis,
                "line": {"color": COLOURS[i % len(COLOURS)], "width": 2, "dash": ("solid", "dash", "dot", "dashdot")[i % 4]},
                "marker": {"size": 9, "symbol": ("circle", "square", "diamond", "cross")[i % 4]},
                "error_y": {"type": "data", "symmetric": False, "array": [high - v for v, (_, high) in zip(value, ends, strict=True)],
                            "arrayminus": [v - low for v, (low, _) in zip(value, ends, strict=True)]},
            })  # fmt: skip
    rates = [point.rate_per_s for point in placement.points]
    layout: dict[str, Any] = {"height": 420}
    for (_, _, title, axis), domain in zip(panels, ([0, 0.44], [0.56, 1]), strict=True):
        ticks = {"type": "log", "tickvals": rates, "ticktext": [f"{rate:g}" for rate in rates]}
        layout[f"xaxis{axis}"] = {"title": {"text": "tasks/s"}, "domain": domain, "anchor": f"y{axis}", **ticks}
        layout[f"yaxis{axis}"] = {"title": {"text": title}, "rangemode": "tozero", "anchor": f"x{axis}"}
    return _figure(data, layout)


def _spans(names: Sequence[str], groups: Sequence[tuple[str, str, Spans]], title: str) -> Figure:
    """Intervals as bars, a row for each name, those of the groups under each other."""
    data = []
    for number, (called, colour, spans) in enumerate(groups):
        x: list[float | None] = []
        y: list[float | None] = []
        told: list[str] = []
        for row, name in enumerate(names):
            if name in spans:
                low, high = (float(f"{100 * end:.4g}") for end in spans[name])
                x += [low, high, None]
                y += [row + 0.3 * (number - (len(groups) - 1) / 2)] * 2 + [None]
                told += [f"{name}: {low:+.2f} to {high:+.2f} %"] * 3
        line = {"color": colour, "width": 6}
        data.append(
            {"x": x, "y": y, "text": told, "mode": "lines", "line": line, "name": called, "hovertemplate": "%{text}"}
        )
    rows = list(range(len(names)))
    upright = {
        "tickvals": rows,
        "ticktext": list(names),
        "range": [len(names) - 0.4, -0.6],
        "showgrid": False,
        "zeroline": False,
    }
    across = {"title": {"text": title}, "ticksuffix": " %", "zeroline": True, "zerolinecolor": GREY, "zerolinewidth": 2}
    return _figure(data, {"height": 100 + 26 * len(names), "xaxis": across, "yaxis": upright, "showlegend": True})


def _figure(data: Sequence[dict[str, Any]], layout: dict[str, Any]) -> Figure:
    """A figure with hsim's template; a caller may put another in its place."""
    margin = {"l": 60, "r": 20, "t": 34, "b": 45}
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    traces = [{"type": "scatter", **trace} for trace in data]
    return {"data": traces, "layout": {"margin": margin, "legend": legend, "template": template(dark=False)} | layout}


def _plain(values: Floats) -> list[float | None]:
    """To six digits, as a picture needs them: a page of full doubles is three times as large. None for what is unknown."""
    return [None if math.isnan(value) else float(f"{value:.6g}") for value in values.tolist()]
