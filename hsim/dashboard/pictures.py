"""Pictures that only the dashboard draws, as plotly data; the others are those of hsim.report.figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hsim.metrics.result import StageAnatomy
from hsim.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Figure
from hsim.units import readable, readable_seconds

STAGE_COLOURS = {"understand": GREEN, "tool": ORANGE, "prefill": PURPLE, "generate": BLUE}
WAIT = VERMILLION
LABELLED = 0.06  # of a bar: a smaller part has no room for words
ACCOUNT_KINDS = {"dynamic": "work", "occupied": "idle in use"}
Part = tuple[str, float, str, str]  # name, amount, colour, what to show

Accounts = Sequence[tuple[str, str, float]]


def where_it_goes(stages: Sequence[StageAnatomy], accounts: Accounts) -> Figure:
    """A task's time and joules as two bars of parts, words on the parts and no legend."""
    rows = [("time", readable_seconds, _time_parts(stages))]
    if accounts:
        rows.append(("energy", lambda joules: readable(joules, "J"), _energy_parts(accounts)))
    data: list[dict[str, Any]] = []
    for name, shown, parts in rows:
        total = sum(amount for _, amount, _, _ in parts)
        row = f"<b>{shown(total)}</b><br>{name} a task"
        data += [_part(row, part, total) for part in parts if part[1] > 0]
    layout = {
        "barmode": "stack",
        "height": 90 + 75 * len(rows),
        "bargap": 0.25,
        "xaxis": {"visible": False, "range": [0, 100], "fixedrange": True},
        "yaxis": {"autorange": "reversed", "fixedrange": True, "tickfont": {"size": 13}},
        "margin": {"l": 100, "r": 10, "t": 10, "b": 10},
        "showlegend": False,
        "uniformtext": {"minsize": 11, "mode": "hide"},
    }
    return {"data": data, "layout": layout}


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
