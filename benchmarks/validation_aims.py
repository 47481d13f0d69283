"""How a validation at several loads stands to its aims, and the table of it that README and docs/validation.md show.

    hsim validate local.yaml --loads 30,60,85 --repeats 3 --out val
    python benchmarks/validation_aims.py val/validation.json

Aims: capacity within 5 %, means of TTFT, TPOT and end to end within 10 %, their p95s within 20 %; each of these or twice
the spread of repeats, whichever is larger. The last lines count the same of predictions at the machine's own pace.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsim.validate.compared import SPREADS
from hsim.validate.loads import CAPACITY

LATENCIES = ("ttft", "tpot", "e2e")
AIMS = {"capacity": 0.05, "means": 0.10, "p95s": 0.20}


@dataclass(frozen=True)
class Figure:
    """One judged figure of one load."""

    kind: str
    quantity: str
    error: float
    pace_error: float
    spread: float

    def met(self, error: float, with_spread: bool = True) -> bool:
        """Whether an error is within the aim of such figures, or within twice the spread where that counts."""
        return abs(error) <= max(AIMS[self.kind], SPREADS * self.spread if with_spread else 0.0)

    def cell(self) -> str:
        """The error in per cent, in bold where it is neither within its aim nor within twice the spread."""
        text = f"{self.error:+.1%}" if self.kind == "capacity" else f"{self.error:+.0%}"
        return text.replace("%", " %") if self.met(self.error) else f"**{text.replace('%', ' %')}**"


def figures_of(run: dict[str, Any]) -> list[Figure]:
    """What is judged of one load: the capacity of the closed loop, means and p95s of the others."""
    rows = {row["quantity"]: row for row in run["compared"]}
    wanted = {CAPACITY: "capacity"}
    if run["name"].split(", ")[-1] != "closed loop":
        wanted = {f"{name} {what}": f"{what}s" for what in ("mean", "p95") for name in LATENCIES}
    return [
        Figure(kind, name, row["error_fraction"], row["pace_error_fraction"], row["spread_fraction"] or 0.0)
        for name, kind in wanted.items()
        if (row := rows.get(name))
    ]


def table(runs: dict[str, list[Figure]]) -> str:
    """Markdown: errors by load, and spreads of means and capacities."""
    kinds = list(dict.fromkeys(name.rpartition(", ")[0] for name in runs))
    loads = list(dict.fromkeys(name.rpartition(", ")[2] for name in runs))
    lines = ["| | " + " | ".join(kinds) + " |", "|---|" + "--:|" * len(kinds)]
    for what, of in (("capacity", "capacity"), ("means", "mean TTFT, TPOT, end to end"), ("p95s", "p95")):
        for load in loads:
            found = [[one for one in runs[f"{kind}, {load}"] if one.kind == what] for kind in kinds]
            if any(found):
                cells = [", ".join(one.cell() for one in ones) + f" (± {_spreads(ones)})" for ones in found]
                lines.append(f"| {of if load == 'closed loop' else f'{load}: {of}'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spreads(figures: list[Figure]) -> str:
    return ", ".join(
        f"{100 * one.spread:.1f}" if one.kind == "capacity" else f"{100 * one.spread:.0f}" for one in figures
    )


def counts(figures: list[Figure], pace: bool) -> str:
    """How many met their aims, with the spread of repeats and without."""
    errors = [one.pace_error if pace else one.error for one in figures]
    met, strictly, asked = Counter[str](), Counter[str](), Counter(one.kind for one in figures)
    for one, error in zip(figures, errors, strict=True):
        met[one.kind] += one.met(error)
        strictly[one.kind] += one.met(error, with_spread=False)
    parts = [f"{kind} {met[kind]} of {asked[kind]} ({strictly[kind]} within {AIMS[kind]:.0%})" for kind in asked]
    mean = sum(map(abs, errors)) / len(errors)
    return f"{met.total()} of {len(figures)} within the aim or twice the spread: {', '.join(parts)}; mean of |errors| {mean:.1%}"


if __name__ == "__main__":
    validated = json.loads(Path(sys.argv[1]).read_text())
    by_run = {run["name"]: figures_of(run) for run in validated["runs"]}
    everything = [one for figures in by_run.values() for one in figures]
    print(table(by_run))
    print()
    print("as predicted:", counts(everything, pace=False))
    print("at the machine's pace beside the runs:", counts(everything, pace=True))
