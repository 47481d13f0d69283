"""The engine's speed: events, CPU seconds and peak memory of whole `hsim simulate` processes, coalesced and stepwise.

    python benchmarks/engine.py --trace AzureLLMInferenceTrace_conv.csv [--quick]

Each case is a process of its own on the default configuration. CPU seconds on a shared machine are noisy: each pair
(coalesced, stepwise) runs one after the other, and the ratio is what to compare. Step rows are counts and must not
change with the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CHILD = """
import json, resource, sys
from hsim.description.scenario import load
from hsim.description.system import resolve
from hsim.drivers.prepared import prepare
from hsim.drivers.simulated import run
from hsim.metrics.summarise import summarise
prepared = prepare(resolve(*load(sys.argv[1], sys.argv[3:])))
log = run(prepared, stepwise=sys.argv[2] == "stepwise")
result = summarise(log, prepared.system, prepared.accounts, prepared.drawn)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "tasks": result.tasks, "output_tokens": result.output_tokens, "step_rows": len(log.steps),
    "steps": int(log.steps.arrays()["steps"].sum()), "preemptions": len(log.preemptions),
    "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1000,
    "e2e_mean_s": result.latency["e2e"].mean_s,
}))
"""


def measure(scenario: str, mode: str, settings: list[str]) -> dict[str, float]:
    """Run one case in a process of its own; its CPU seconds include Python's start."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, scenario, mode, *settings], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures: dict[str, float] = json.loads(done.stdout)
    figures["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return figures


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


def main() -> None:
    """Print a table, and write it as JSON beside where it was run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", help="the Azure 2023 conversation trace")
    parser.add_argument("--quick", action="store_true", help="only the first Azure case and the agents")
    options = parser.parse_args()
    rows = []
    print(f"{'case':<36}{'mode':<11}{'tasks':>9}{'step rows':>11}{'CPU s':>8}{'tasks/CPU s':>13}{'peak MB':>9}")
    for name, scenario, settings, both in cases(options.trace, options.quick):
        for mode in ("coalesced", "stepwise") if both else ("coalesced",):
            figures = measure(scenario, mode, settings)
            rows.append({"case": name, "mode": mode, **figures})
            print(
                f"{name:<36}{mode:<11}{figures['tasks']:>9,.0f}{figures['step_rows']:>11,.0f}{figures['cpu_s']:>8.2f}"
                f"{figures['tasks'] / figures['cpu_s']:>13,.0f}{figures['peak_mb']:>9.0f}",
                flush=True,
            )
        if both and rows[-1]["e2e_mean_s"] != rows[-2]["e2e_mean_s"]:
            sys.exit(f"{name}: the two modes disagree")
    file = Path(tempfile.gettempdir()) / "hsim-engine-benchmark.json"
    file.write_text(json.dumps(rows, indent=1))
    print(f"written to {file}")


if __name__ == "__main__":
    main()
