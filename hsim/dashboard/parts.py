"""Parts that several pages show: tiles, plots, the drawer with link, command, YAML and downloads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from hsim.dashboard.jobs import Job
from hsim.dashboard.session import changed, key, progress, watch
from hsim.dashboard.state import OWN, Question, State, command, encode
from hsim.dashboard.words import Tile
from hsim.dashboard.work import Simulate, Update
from hsim.description.system import System
from hsim.metrics.result import Study
from hsim.report.figures import Figure
from hsim.report.page import page
from hsim.runs import as_json
from hsim.runs.closeup import Closeup
from hsim.runs.exports import scenario_text

TILES = 4
LATER = "Drawn when the simulation is done."
INK, DARK_INK = "#1c2733", "#e6ebf0"  # of words that stand on colours; Streamlit's grey is too pale for them
View = Callable[[State, System], None]


def views(state: State, system: System, known: Mapping[str, View]) -> None:
    """A choice of views of a page, and the one that the state says; the link holds which."""
    chosen = state.view if state.view in known else next(iter(known))
    widget = key(f"view-{state.page}")
    st.segmented_control(
        "View",
        list(known),
        default=chosen,
        key=widget,
        required=True,
        label_visibility="collapsed",
        on_change=changed(widget, lambda s, value: replace(s, view=value or s.view)),
    )
    known[chosen](state, system)


def of_the_answer(draw: Callable[[Update], None]) -> View:
    """A view of the simulated question, drawn anew as figures come."""

    def body(job: Job) -> None:
        progress("answer", job)
        if job.update is not None:
            draw(job.update)

    return lambda state, system: watch("answer", Simulate(state.question, state.replications), body)


def tile_row(tiles: Sequence[Tile], preview: bool = False) -> None:
    """The four figures side by side; empty ones while there is nothing to show."""
    shown = list(tiles) or [Tile("…", "…", "")] * TILES
    for column, tile in zip(st.columns(len(shown)), shown, strict=True):
        under = "preview" if preview and tile.value != "–" else tile.interval or tile.note or "…"
        column.metric(
            tile.title,
            f"≈ {tile.value}" if preview and tile.value != "–" else tile.value,
            under,
            delta_color="off",
            delta_arrow="off",
            border=True,
            help=tile.note or None,
        )


def plot(name: str, figure: Figure, **options: Any) -> None:
    """A figure in the page's own light or dark theme; margins grow with long names."""
    layout = {k: v for k, v in figure["layout"].items() if k != "template"}
    layout |= {k: {"automargin": True} | v for k, v in layout.items() if k.startswith(("xaxis", "yaxis"))}
    ink = {"color": DARK_INK if st.context.theme.type == "dark" else INK}
    data = [trace | {"textfont": ink} if trace["type"] == "sankey" else trace for trace in figure["data"]]
    shown = {"data": data, "layout": layout}
    st.plotly_chart(shown, width="stretch", key=key(f"plot-{name}"), config={"displaylogo": False}, **options)


def folded(label: str, name: str, draw: Callable[[], None], expanded: bool = False) -> None:
    """A section that can be opened; what stands in it is made and sent only then. `name` is unique on a page."""
    section = st.expander(label, expanded, key=f"open-{name}", on_change="rerun")
    if section.open:
        with section:
            draw()


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A small table."""
    st.dataframe(list(rows), width="stretch", hide_index=True)


def share(state: State, question: Question, found: Study | None, closeup: Closeup | None = None) -> None:
    """How to get here again, how to get it without the dashboard, and what to take along."""
    system = question.system()
    text, line = scenario_text(system), command(question, state.replications)
    st.caption("A link to this page, which gives these numbers again, bit for bit:")
    st.code(f"{st.context.url or ''}?s={encode(state)}", language=None, wrap_lines=True)
    st.caption("The same on the command line:")
    st.code(line, language="bash")
    st.caption("The scenario, with all changes:")
    st.code(text, language="yaml", height=260)
    columns = st.columns(5)
    _download(columns[0], "YAML", lambda: text, OWN)
    if found is None:
        columns[1].caption("More when the simulation is done.")
        return
    _download(columns[1], "CSV", lambda: found.to_frame().to_csv(), "result.csv")
    _download(columns[2], "Parquet", lambda: found.to_frame().to_parquet(), "result.parquet")
    _download(columns[3], "JSON", lambda: as_json(found), "result.json")
    if closeup is not None:
        _download(columns[4], "HTML", lambda: page(closeup, system, line), "report.html")


def _download(column: Any, label: str, data: Callable[[], str | bytes], name: str) -> None:
    """A button whose file is made when it is clicked."""
    column.download_button(label, data, name, on_click="ignore", width="stretch", key=key(f"download-{name}"))
