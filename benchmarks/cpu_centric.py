"""Published case C5, the CPU-centric study of agents (arXiv 2511.00739): its LangChain batch sweep, ours beside theirs.

    python benchmarks/cpu_centric.py

Theirs are read off the figures of the authors' repository @7228552; energies at second hand. Three numbers of theirs are put in: the
summary's 1.42 s alone, its 2.8 s at 64 at a time (contention_slowdown, on 64 cores), and the model's 1.28 s alone (the
length of the answer, since neither model nor GPU are ours to know). All else is predicted.
"""

from __future__ import annotations

from hsim import load, simulate_path

SCENARIO = "scenarios/published/c5-langchain.yaml"
# batch: (all s, summary s, model s, CPU J, GPU J); None where the figures do not show it
THEIRS = {
    1: (2.7, 1.42, 1.28, 22, 86), 8: (3.6, None, None, 134, 427), 32: (4.7, 1.86, 2.17, 417, 832),
    64: (6.8, 2.8, 2.63, 805, 1329), 128: (11.6, 6.15, 3.68, 1807, 2307),
}  # fmt: skip


def main() -> None:
    """Print the sweep."""
    columns = ("batch", "all s", "theirs", "summary s", "theirs", "model s", "theirs", "CPU J", "theirs", "GPU J", "theirs", "CPU %", "theirs", "gain", "theirs")  # fmt: skip
    print("  ".join(f"{name:>9}" for name in columns))
    before: tuple[float, float] | None = None
    for batch, (all_s, summary_s, model_s, cpu_j, gpu_j) in THEIRS.items():
        result = simulate_path(load(SCENARIO, [f"workload.arrivals.users={batch}", f"workload.tasks={batch}"]))
        stages = {stage.stage: stage for stage in result.stages}
        tool, model = stages["tool"], stages["generate"]
        # As theirs: above idle, of packages and of boards; the model's host cores are CPU.
        assert result.energy
        booked = {account: joules for account, kind, joules in result.energy.accounts if kind == "dynamic"}
        ours_cpu_j, ours_gpu_j = booked["tool"] + booked["generate: host cores"], booked["generate"]
        rates = (batch / result.window_s, batch / all_s)
        ours = (
            (result.window_s, all_s), (tool.wait_s + tool.service_s, summary_s), (model.wait_s + model.service_s, model_s),
            (ours_cpu_j, cpu_j), (ours_gpu_j, gpu_j),
            (100 * ours_cpu_j / (ours_cpu_j + ours_gpu_j), 100 * cpu_j / (cpu_j + gpu_j)),
        )  # fmt: skip
        cells = [f"{batch:>9}"]
        for mine, other in ours:
            cells += [f"{mine:>9.3g}", f"{other:>9.3g}" if other is not None else f"{'–':>9}"]
        # How many times the throughput of the row above.
        cells += (
            [f"{rate / was:>9.2f}" for rate, was in zip(rates, before, strict=True)] if before else [f"{'–':>9}"] * 2
        )
        print("  ".join(cells))
        before = rates


if __name__ == "__main__":
    main()
