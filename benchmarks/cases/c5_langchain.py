"""C5: batches of agents, their knee and the CPUs' share of joules (arXiv 2511.00739); cpu_centric.py prints the whole sweep."""

from __future__ import annotations

from cpu_centric import THEIRS

from cases import Case, Row, scenario
from hsim import load, simulate_path
from hsim.metrics.result import Result


def cpu_share(result: Result) -> float:
    """Per cent of dynamic joules that CPUs took; the model's host cores are CPU."""
    assert result.energy
    booked = {account: joules for account, kind, joules in result.energy.accounts if kind == "dynamic"}
    cpu_j = booked["tool"] + booked["generate: host cores"]
    return 100 * cpu_j / (cpu_j + booked["generate"])


def case() -> Case:
    """The gain of the last doublings, and the share at both ends."""
    at = {
        b: simulate_path(load(scenario("c5-langchain"), [f"workload.arrivals.users={b}", f"workload.tasks={b}"]))
        for b in THEIRS
    }
    rates, theirs = {b: b / r.window_s for b, r in at.items()}, {b: b / t[0] for b, t in THEIRS.items()}
    rows = [
        Row(
            f"throughput of {high} agents over {low}",
            theirs[high] / theirs[low],
            rates[high] / rates[low],
            "",
            WHY_KNEE,
        )
        for low, high in ((32, 64), (64, 128))
    ]
    for batch in (1, 128):
        cpu_j, gpu_j = THEIRS[batch][3:]
        share = 100 * cpu_j / (cpu_j + gpu_j)
        rows.append(Row(f"CPUs' share of dynamic joules, {batch} agents", share, cpu_share(at[batch]), "%", WHY_SHARE))
    source = "arXiv 2511.00739 (repository @7228552; energies at second hand)"
    return Case("C5", "CPU-centric agents", "c5-langchain", source, tuple(rows))


WHY_KNEE = "Beyond 64 their 128 processes share caches and the operating system's time; hsim's cores serve in order"
WHY_SHARE = "Their board and model are not in the figures; Llama 3.1 8B on an H100 is a guess (docs/thesis.md)"
