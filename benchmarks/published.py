"""Published cases beside hsim: remakes docs/published.md, or prints the rows of some.

    python benchmarks/published.py --data DIR        # all, and writes docs/published.md
    python benchmarks/published.py --only C9,C10     # prints these

`--data` holds traces/ with the Azure trace of 2023 and lengths of requests, which are not shipped; without it the rows that
need them say so. Nothing of hsim is tuned to any case.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cases import (
    Case,
    Value,
    c1_threshold,
    c2_splitwise,
    c3_dynamollm,
    c4_melange,
    c5_langchain,
    c6_mlenergy,
    c8_edge_cloud,
    c9_context,
    c10_boundary,
)

from hsim.runs.store import write_atomically

PAGE = Path(__file__).resolve().parent.parent / "docs" / "published.md"
CASES: dict[str, Callable[[Path | None], Case]] = {
    "C1": lambda _: c1_threshold.case(),
    "C2": c2_splitwise.case,
    "C3": c3_dynamollm.case,
    "C4": c4_melange.case,
    "C5": lambda _: c5_langchain.case(),
    "C6": lambda _: c6_mlenergy.curves(),
    "C6b": lambda _: c6_mlenergy.crossover(),
    "C8": lambda _: c8_edge_cloud.case(),
    "C9": lambda _: c9_context.case(),
    "C10": lambda _: c10_boundary.case(),
}
NOT_EXPRESSED = {
    "C7": ("CPU offload (NEO, arXiv 2411.01142; KTransformers, SOSP'25)", "no attention or experts on host cores beside a GPU in one step"),
}  # fmt: skip
START, END = "<!-- published -->", "<!-- end -->"


def shown(value: Value, unit: str) -> str:
    """A figure, or a range, with its unit."""
    if value is None:
        return "–"
    if isinstance(value, tuple):
        return f"{shown(value[0], '')} to {shown(value[1], unit)}"
    return f"{value:.3g} {unit}".rstrip()


def table(found: list[Case]) -> str:
    """The one table, in Markdown."""
    lines = ["| case | | published | hsim | difference | why |", "|---|---|---|---|---|---|"]
    before = ""
    for one in found:
        for row in one.rows:
            why = "as above" if row.why == before else row.why
            ours = (shown(row.published, row.unit), shown(row.hsim, row.unit), row.difference)
            lines.append("| " + " | ".join((one.name, row.what, *ours, why)) + " |")
            before = row.why
    lines += [f"| {name} | {what} | – | – | – | not expressed: {why} |" for name, (what, why) in NOT_EXPRESSED.items()]
    return "\n".join(lines)


def header(case: Case) -> str:
    """What a scenario's own comment says: question, source, configuration, assumptions."""
    text = Path(c1_threshold.scenario(case.scenario)).read_text(encoding="utf-8")
    comments = [line[2:] for line in text.splitlines() if line.startswith("# ") and "yaml-language-server" not in line]
    return (
        f"### {case.name}: {case.title}\n\n`scenarios/published/{case.scenario}.yaml`; {case.source}.\n\n"
        + " ".join(comments)
    )


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with traces/")
    parser.add_argument("--only", help="names of cases, separated by commas: printed, and the page is left alone")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"there is no case {unknown[0]}; they are {', '.join(CASES)}")
    found = []
    for name in names:
        started = time.process_time()
        found.append(CASES[name](options.data))
        print(f"{name}: {time.process_time() - started:.0f} s of CPU", file=sys.stderr)
    if options.only:
        print(table(found))
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    body = "\n\n".join([table(found), "## Configurations", *(header(one) for one in found)])
    write_atomically(PAGE, f"{before}{START}\n{body}\n{END}{after}")


if __name__ == "__main__":
    main()
