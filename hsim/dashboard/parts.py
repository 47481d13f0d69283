"""Parts that several pages show: tiles, plots, the drawer with link, command, YAML and downloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import streamlit as st

from hsim.dashboard.session import key
from hsim.dashboard.state import OWN, Question, State, as_yaml, command, encode
from hsim.dashboard.words import Tile
from hsim.metrics.result import Study
from hsim.report.figures import Figure
from hsim.runs import as_json

TILES = 4


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
    """A figure in the page's own light or dark theme."""
    layout = {k: v for k, v in figure["layout"].items() if k != "template"}
    shown = {"data": figure["data"], "layout": layout}
    st.plotly_chart(shown, width="stretch", key=key(name), config={"displaylogo": False}, **options)


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A small table."""
    st.dataframe(list(rows), width="stretch", hide_index=True)


def share(state: State, question: Question, study: Study | None) -> None:
    """How to get here again, how to get it without the dashboard, and what to take along."""
    st.caption("A link to this page, which reproduces these numbers bit for bit:")
    st.code(f"{st.context.url or ''}?s={encode(state)}", language=None, wrap_lines=True)
    st.caption("The same on the command line:")
    st.code(command(question, state.replications), language="bash")
    st.caption("The scenario:")
    text = as_yaml(question)
    st.code(text, language="yaml")
    columns = st.columns(5)
    _download(columns[0], "YAML", text, OWN, "application/yaml")
    if study is None:
        columns[1].caption("More downloads when the simulation is done.")
        return
    frame = study.to_frame()
    parquet = BytesIO()
    frame.to_parquet(parquet)
    _download(columns[1], "CSV", frame.to_csv(), "result.csv", "text/csv")
    _download(columns[2], "Parquet", parquet.getvalue(), "result.parquet", "application/octet-stream")
    _download(columns[3], "JSON", as_json(study), "result.json", "application/json")


def _download(column: Any, label: str, data: str | bytes, name: str, mime: str) -> None:
    column.download_button(label, data, name, mime, on_click="ignore", width="stretch", key=key(f"download-{label}"))
