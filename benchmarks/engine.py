"""The engine's speed: events, CPU seconds and peak memory of whole `hsim simulate` processes, coalesced and stepwise.

    python benchmarks/engine.py --trace AzureLLMInferenceTrace_conv.csv [--quick] [--doc docs/engine.md]

Each case is a process of its own on the default configuration. CPU seconds on a shared machine are noisy: each pair
(coalesced, stepwise) runs one after the other, and the ratio is what to compare. Step rows are counts and must not
change with the machine. Just before and after each case SimPy alone lets a process time out a million times: their mean is
the machine's pace. CPU seconds times pace is how many timeouts of SimPy's a case is worth, by which figures of two days, or
of two machines, are compared. --doc puts the tables into a page, between its markers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("azure conversation, 4 replicas", "three-stage agents, mean 3 rounds")
REPEATS = 5  # of those two: the median is shown

CHILD = """
import gc, json, resource, sys
gc.set_threshold(100_000)  # as the command line does at its start
from time import process_time
from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.prepared import prepare
from hsim.drivers.simulated import run
from hsim.metrics.summarise import summarise
marks = [0.0, process_time()]
prepared = prepare(resolve(*load(sys.argv[1], sys.argv[3:])))
marks.append(process_time())
log = run(prepared, stepwise=sys.argv[2] == "stepwise")
marks.append(process_time())
result = summarise(log, prepared.system, prepared.accounts, prepared.drawn)
marks.append(process_time())
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "tasks": result.tasks, "output_tokens": result.output_tokens, "step_rows": len(log.steps),
    "steps": int(log.steps.arrays()["steps"].sum()), "preemptions": len(log.preemptions),
    "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1000,
    "e2e_mean_s": result.latency["e2e"].mean_s,
    **dict(zip(("imports_s", "draw_s", "run_s", "books_s"), (b - a for a, b in zip(marks, marks[1:])))),
}))
gc.freeze()  # as the command line does at its end
"""

PACE = """
import simpy
from time import process_time
def life(env):
    while True:
        yield env.timeout(1)
env = simpy.Environment()
env.process(life(env))
start = process_time()
env.run(until=1_000_000)
print(1 / (process_time() - start))
"""

PROFILED = """
import cProfile, json, pstats, sys
from collections import Counter
from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.prepared import prepare
from hsim.drivers.simulated import run
prepared = prepare(resolve(*load(sys.argv[1], sys.argv[3:])))
profile = cProfile.Profile(builtins=False)
profile.runcall(run, prepared)
own = Counter()
for (file, _, _), (_, _, seconds, _, _) in pstats.Stats(profile).stats.items():
    own[file.rpartition("hsim/")[2] if "hsim/" in file else "named tuples and data classes"] += seconds
print(json.dumps({file: seconds / own.total() for file, seconds in own.most_common()}))
"""


def child(code: str, scenario: str, mode: str, settings: list[str]) -> dict[str, float]:
    """What a process of its own says."""
    command = [sys.executable, "-c", code, scenario, mode, *settings]
    # Python keeps what it has compiled, as for anybody who starts hsim a second time, whatever is set where this runs.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")  # as hsim/cli.py does
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    said: dict[str, float] = json.loads(done.stdout)
    return said


def measure(scenario: str, mode: str, settings: list[str]) -> dict[str, float]:
    """Run one case in a process of its own; its CPU seconds include Python's start."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = child(CHILD, scenario, mode, settings)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return figures


def paced(scenario: str, mode: str, settings: list[str]) -> dict[str, float]:
    """The same, with the machine's pace."""
    before = pace()
    figures = measure(scenario, mode, settings)
    return figures | {"pace": (before + pace()) / 2}


def worth(row: Mapping[str, Any]) -> float:
    """A case in million timeouts of SimPy's."""
    return float(row["cpu_s"] * row["pace"])


def pace() -> float:
    """Million timeouts of one SimPy process in a CPU second, now."""
    done = subprocess.run([sys.executable, "-c", PACE], capture_output=True, text=True, check=True)
    return float(done.stdout)


def cases(trace: str | None, quick: bool) -> list[tuple[str, str, list[str], bool]]:
    """(name, scenario, settings, stepwise too)."""
    found: list[tuple[str, str, list[str], bool]] = []
    if trace:
        file = f"workload.arrivals.file={Path(trace).resolve()}"
        found.append(("azure conversation, 4 replicas", "azure-conversation", [file], True))
        if not quick:
            for replicas in (1, 4, 16):
                servers = f"fleet.gpu-tier.count={-(-replicas // 2)}"
                count = f"pools.decode.replicas={replicas}"
                light = f"workload.arrivals.rate_scale={0.1 * replicas}"
                full = f"workload.arrivals.rate_scale={0.8 * replicas}"
                limit = "workload.tasks=8000"
                found.append(
                    (
                        f"azure light, {replicas} replicas",
                        "azure-conversation",
                        [file, servers, count, light, limit],
                        True,
                    )
                )
                found.append(
                    (
                        f"azure saturated, {replicas} replicas",
                        "azure-conversation",
                        [file, servers, count, full, limit],
                        True,
                    )
                )
    found.append(("three-stage agents, mean 3 rounds", "agents-split", ["workload.tasks=5000"], True))
    if not quick:
        million = [
            "workload.tasks=1000000",
            "workload.arrivals.rate_per_s=60",
            "fleet.gpu-tier.count=8",
            "fleet.cpu-tier.count=2",
        ]
        plain = "workload.classes={chat: {input_tokens: 300, output_tokens: {kind: geometric, mean: 20}, max_output_tokens: 512}}"
        found.append(("a million chat requests", "agents-split", [*million, plain], False))
    return found


def table_of(rows: list[dict[str, float | str]]) -> list[str]:
    """The cases as a table in Markdown."""
    found = [
        "| case | mode | tasks | steps | rows | CPU s | tasks per CPU s | pace | worth | peak MB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        numbers = f"{row['tasks']:,} | {row['steps']:,} | {row['step_rows']:,} | {row['cpu_s']:.2f}"
        rate, peak = float(row["tasks"]) / float(row["cpu_s"]), row["peak_mb"]
        found.append(
            f"| {row['case']} | {row['mode']} | {numbers} | {rate:,.0f} | {row['pace']:.2f} | {worth(row):.2f} | {peak:.0f} |"
        )
    return found


def profile_of(name: str, scenario: str, settings: list[str], row: dict[str, float | str]) -> list[str]:
    """Where the time of a case goes: by part, and within the run by module."""
    parts = {"imports": "imports_s", "drawing tasks": "draw_s", "run": "run_s", "books and statistics": "books_s"}
    said = ", ".join(f"{part} {float(row[key]):.2f} s" for part, key in parts.items())
    shares = child(PROFILED, scenario, "coalesced", settings)
    largest = ", ".join(f"{file} {share:.0%}" for file, share in shares.items() if share >= 0.015)
    return [f"Of {name}: {said}. Within the run, under a profiler: {largest}."]


def main() -> None:
    """Print tables, and put them into a page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", help="the Azure 2023 conversation trace")
    parser.add_argument("--quick", action="store_true", help="only the first Azure case and the agents")
    parser.add_argument("--doc", help="the page whose text between <!-- benchmark --> and <!-- end --> to replace")
    options = parser.parse_args()
    rows: list[dict[str, float | str]] = []
    profiles: list[str] = []
    load_before = os.getloadavg()[0]
    child(CHILD, "agents-split", "coalesced", ["workload.tasks=10"])  # compiles what is imported
    for name, scenario, settings, both in cases(options.trace, options.quick):
        for mode in ("coalesced", "stepwise") if both else ("coalesced",):
            times = REPEATS if name in PROFILES and mode == "coalesced" else 1
            found = sorted((paced(scenario, mode, settings) for _ in range(times)), key=worth)
            rows.append({"case": name, "mode": mode, **found[times // 2]})
            print(table_of(rows[-1:])[-1], flush=True)
        if both and rows[-1]["e2e_mean_s"] != rows[-2]["e2e_mean_s"]:
            sys.exit(f"{name}: the two modes disagree")
        if name in PROFILES:
            profiles += ["", *profile_of(name, scenario, settings, rows[-2])]
    file = Path(tempfile.gettempdir()) / "hsim-engine-benchmark.json"
    file.write_text(json.dumps(rows, indent=1))
    print(f"written to {file}")
    loads = f"load {load_before:.0f} before and {os.getloadavg()[0]:.0f} after"
    when = f"{time.strftime('%d %B %Y', time.gmtime())}, {os.cpu_count()} shared cores, {loads}."
    page = "\n".join([when, "", *table_of(rows), *profiles])
    print(page)
    if options.doc:
        text = Path(options.doc).read_text()
        Path(options.doc).write_text(
            re.sub(r"(<!-- benchmark -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{page}\n{m[2]}", text, flags=re.S)
        )


if __name__ == "__main__":
    main()
