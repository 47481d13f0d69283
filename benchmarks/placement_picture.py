"""A picture of a placement study: money and joules a task of each architecture, by load.

    hsim compare --architectures gpu-host-cores,cpu-tier coding-agents --rates 1:16 --out DIR
    python benchmarks/placement_picture.py DIR/placement.json docs/thesis-heavy-tools.png

Needs plotly, and chromium to draw what plotly lays out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hsim.report.figures import COLOURS, Figure, template
from hsim.report.page import plotly_script

FIGURES = (("usd_per_task", "USD for 1,000 tasks", 1e3), ("tst_j", "TST, kJ a task", 1e-3))
SIZE = (1000, 420)


def interval(study: dict[str, Any], figure: str) -> dict[str, float]:
    """One figure of a study's JSON: value, low and high."""
    both = {"usd_per_task": study["money"]["usd_per_task"], "tst_j": study["energy"]["tst_j"]["full"]["facility"]}
    found: dict[str, float] = both[figure]
    return found


def figure_of(placement: dict[str, Any]) -> Figure:
    """Two panels, a line for each architecture, with 95 % intervals."""
    data: list[dict[str, Any]] = []
    for panel, (figure, _, scale) in enumerate(FIGURES, 1):
        for name, colour in zip(placement["architectures"], COLOURS, strict=False):
            found = [
                (point["rate_per_s"], interval(point["studies"][point["found"].index(name)], figure))
                for point in placement["points"]
                if name in point["found"]
            ]
            half = [scale * (at["high"] - at["low"]) / 2 for _, at in found]
            data.append({
                "type": "scatter", "mode": "lines+markers", "name": name, "showlegend": panel == 1, "line": {"color": colour},
                "x": [rate for rate, _ in found], "y": [scale * at["value"] for _, at in found],
                "error_y": {"type": "data", "array": half, "thickness": 1},
                "xaxis": f"x{panel}", "yaxis": f"y{panel}",
            })  # fmt: skip
    layout: dict[str, Any] = {
        "template": template(dark=False),
        "width": SIZE[0],
        "height": SIZE[1],
        "legend": {"orientation": "h", "y": 1.12},
    }
    layout["paper_bgcolor"] = "white"
    for panel, (_, title, _) in enumerate(FIGURES, 1):
        left = 0.55 * (panel - 1)
        layout[f"xaxis{panel}"] = {
            "domain": [left, left + 0.45],
            "anchor": f"y{panel}",
            "type": "log",
            "title": {"text": "tasks a second"},
            "dtick": 0.30103,
        }
        layout[f"yaxis{panel}"] = {"anchor": f"x{panel}", "title": {"text": title}, "rangemode": "tozero"}
    return {"data": data, "layout": layout}


def draw(figure: Figure, out: Path) -> None:
    """A PNG by chromium, of a page that plotly fills."""
    with TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(
            f'<body style="margin:0"><div id="f"></div><script src="{plotly_script().as_uri()}"></script>'
            f'<script>Plotly.newPlot("f", {json.dumps(figure["data"])}, {json.dumps(figure["layout"])}, {{displayModeBar: false}})</script>'
        )
        told = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=5000",
        ]
        told += [f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={out.resolve()}", page.as_uri()]
        subprocess.run(told, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    draw(figure_of(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), Path(sys.argv[2]))
