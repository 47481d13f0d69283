"""C10: everything that a prompt takes beside what its active accelerator takes (Google, arXiv 2508.15734)."""

from __future__ import annotations

from cases import Case, Row, scenario
from hsim import load, simulate
from hsim.metrics.result import EnergyStudy

RATES = (5, 20, 60)  # tasks a second: little, some and much of what four servers can do
MIDDLE = 20


def measured(rate_per_s: float) -> EnergyStudy:
    """Joules at a load."""
    study = simulate(load(scenario("c10-boundary"), [f"workload.arrivals.rate_per_s={rate_per_s}"]), replications=2)
    assert study.energy is not None
    return study.energy


def ratio(energy: EnergyStudy) -> float:
    """Full attribution at the facility over the accelerator's own while it serves (its idle draw in use included)."""
    full, narrow = energy.tst_j["full"]["facility"].value, energy.tst_j["occupancy"]["accelerator"].value
    assert full is not None and narrow is not None
    return full / narrow


def shares(energy: EnergyStudy) -> dict[str, float]:
    """Per cent of everything, in their four parts: idle are spare servers and accelerators that serve nobody."""
    parts = dict.fromkeys(("accelerators", "host", "idle", "overhead"), 0.0)
    for account, kind, joules in energy.accounts:
        idle = account.startswith("spare") or account == "llm accelerators idle"
        part = "overhead" if account == "site (PUE)" else "idle" if idle else "accelerators"
        if part == "accelerators" and (account != "generate" or kind == "loss"):
            part = "host"
        parts[part] += joules
    total = sum(parts.values())
    return {part: 100 * joules / total for part, joules in parts.items()}


def case() -> Case:
    """The ratio at three loads, and the parts at the middle one."""
    found = {rate: measured(rate) for rate in RATES}
    rows = [
        Row(f"everything over the active accelerator, {rate} prompts/s", 2.4, ratio(energy), "", WHY[rate])
        for rate, energy in found.items()
    ]
    work_only = found[MIDDLE].tst_j["marginal"]["accelerator"].value
    everything = found[MIDDLE].tst_j["full"]["facility"].value
    assert work_only is not None and everything is not None
    what = f"everything over the accelerator's work above idle, {MIDDLE} prompts/s"
    rows.append(Row(what, 2.4, everything / work_only, "", WHY_WORK))
    ours = shares(found[MIDDLE])
    for part, theirs in {"accelerators": 58.0, "host": 25.0, "idle": 10.0, "overhead": 8.0}.items():
        rows.append(Row(f"share of {part}, {MIDDLE} prompts/s", theirs, ours[part], "%", WHY_PARTS[part]))
    return Case(
        "C10", "The measurement boundary", "c10-boundary", "arXiv 2508.15734 (shares by press summaries)", tuple(rows)
    )


WHY_WORK = "If their narrow figure leaves out the idle draw of chips in use, ours comes near"
WHY = dict.fromkeys(
    RATES,
    "By their own shares everything is 1.7 times the accelerators (1/0.58); the rest of their 2.4 is a narrower count",
)
WHY_PARTS = {
    "accelerators": "HGX H100 stands for TPUs",
    "host": "Of 1,000 W a server for fans, memory and network (500 to 1,700, assumed)",
    "idle": "One server of five idles without a model; how many of theirs do is not published",
    "overhead": "The same PUE, 1.09",
}
