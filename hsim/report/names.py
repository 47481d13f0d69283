"""What people call metrics, boundaries, attributions and figures: in tables, pages and the dashboard alike."""

from __future__ import annotations

LATENCY_NAMES = {
    "ttft": "TTFT, each generate visit",
    "tpot": "TPOT, each generate visit",
    "answer_ttft": "TTFT of the final answer",
    "e2e": "end to end, each task",
}
SHORT_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "answer_ttft": "Answer TTFT", "e2e": "End to end"}
BOUNDARY_NAMES = {"accelerator": "accelerator boards", "wall": "server wall", "facility": "facility (PUE)"}
ATTRIBUTION_NAMES = {
    "marginal": "marginal (work above idle)",
    "occupancy": "occupancy (and idle in use)",
    "full": "full (everything)",
}
FIGURE_NAMES = {
    "tasks_per_s": ("Throughput", "tasks/s"),
    "output_tokens_per_s": ("Output tokens", "tokens/s"),
    "goodput_tasks_per_s": ("Goodput in objectives", "tasks/s"),
    "tst_j": ("TST, energy a task", "J"),
    "tpw_tokens_per_j": ("TPW, output", "tokens/J"),
    "mean_w": ("Mean power", "W"),
    "usd_per_task": ("Cost a task", "USD"),
    "usd_per_1k_output_tokens": ("Cost of 1,000 tokens", "USD"),
    "gco2_per_task": ("CO2 a task", "g"),
    "operation_gco2_per_task": ("CO2 of operation a task", "g"),
    "embodied_gco2_per_task": ("CO2 embodied in servers a task", "g"),
    "marginal_tst_j": ("TST, marginal (work above idle)", "J"),
    "kept_fraction": ("Kept at the edge, of tasks", ""),
    "wrongly_kept_fraction": ("Kept wrongly: hard ones", ""),
    "asked_again_fraction": ("Asked again in the cloud", ""),
    "edge_full_fraction": ("Sent on: the edge was full", ""),
}
PAID_FOR = {
    "rent": "rented servers",
    "own": "owned servers and electricity",
    "rent and own": "servers rented at some sites, owned at others, with electricity",
}


def figure_name(figure: str) -> tuple[str, str]:
    """What people call a figure, and its unit."""
    metric, _, part = figure.rpartition(".")
    if metric == "slo":
        return f"{SHORT_NAMES[part]} in objective", ""
    if metric:
        return f"{SHORT_NAMES[metric]} {part.removesuffix('_s')}", "s"
    return FIGURE_NAMES[figure]
