"""Joules of whole runs as meters count them, predicted and measured: those of a task, and the tokens of one.

The window is that in which a live run reads its meters: from its beginning, before the first task comes, until nothing
is under way any more. A meter sees everything that its device draws, whoever caused it: the attribution is full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hsim.calibrate.served import NOT_SEEN
from hsim.description.system import System
from hsim.drivers.live import LiveRun, MeteredJoules
from hsim.drivers.prepared import Prepared
from hsim.log import Log
from hsim.metrics.accounts import Accounts
from hsim.metrics.ledger import Window, keep_books
from hsim.validate.quantities import Quantities, delivered

BOARD, PACKAGE, DRAM = "accelerator board", "CPU package", "DRAM"  # as meters name what they count
BOARDS, PACKAGES, ALL = "accelerator boards", "CPU packages", "all meters of this machine"
NAMED = "full, {}, whole run"  # attribution, boundary, window


@dataclass(frozen=True)
class Drew:
    """Joules of a whole simulated run: of the boards that serve, of those beside them that no pool uses, and of CPU
    packages. nan where a watt is unknown.
    """

    serving_j: float
    spare_j: float
    packages_j: float


def drew(log: Log, accounts: Accounts) -> Drew:
    """Keep the books of a whole run."""
    window = _whole(log)
    tiers = {name: replace(tier, spare_accelerators_w=0.0) for name, tier in accounts.tiers.items()}
    ledger = keep_books(log, log.arrays(), replace(accounts, tiers=tiers), window)
    spare_w = sum(tier.spare_accelerators_w for tier in accounts.tiers.values())
    packages_j = sum(entry.joules for entry in ledger.entries if entry.component == "cpu")
    return Drew(ledger.joules("full", "accelerator"), spare_w * window.seconds, packages_j)


def _whole(log: Log) -> Window:
    """From the beginning of a run until nothing is under way."""
    tasks, steps, cores = log.tasks.arrays(), log.steps.arrays(), log.cores.arrays()
    ends = (tasks["ended_s"], steps["end_s"], cores["time_s"])
    end_s = max(float(np.max(times, initial=0.0)) for times in ends)
    return Window(0.0, float(np.max(tasks["arrival_s"], initial=0.0)), end_s)


@dataclass(frozen=True)
class Counted:
    """What meters counted in each of some live runs, and which joules of a simulated one are the same."""

    boundary: str
    joules: tuple[float, ...]
    predicted_j: Callable[[Drew], float]


def energy_quantities(joules: Mapping[str, float], log: Log) -> Quantities:
    """Joules a task (TST) and output tokens a joule (TPW) of a run, by boundary.

    Of the tasks that it served, with all joules of the others above the line. Nothing where joules are unknown.
    """
    (tasks, tokens), found = delivered(log), Quantities()
    for boundary, whole_j in joules.items():
        if tasks and whole_j > 0:  # nan is not
            named = NAMED.format(boundary)
            found |= {f"TST ({named})": (whole_j / tasks, "J"), f"TPW ({named})": (tokens / whole_j, "1/J")}
    return found


def counted_by_meters(
    prepared: Prepared, predicted: Drew, runs: Sequence[LiveRun], device: str | None
) -> tuple[list[Counted], list[str]]:
    """What meters counted of what is predicted, and what is not compared, each with the reason.

    `device` is where hsim's own decoders ran; None: an endpoint served.
    """
    system = prepared.system
    if device is None and _seen_from_outside(system):
        found = {ALL: _everything(prepared, runs)}
    else:
        found = {BOARDS: _boards(system, runs, device), PACKAGES: _packages(system, runs)}
    counted, said = [], []
    for boundary, one in found.items() if runs else ():
        if isinstance(one, str):
            said.append(f"energy of {boundary} is not compared: {one}")
        elif not one.predicted_j(predicted) > 0:  # nan is not
            said.append(f"energy of {boundary} is not compared: {_why_unknown(system, boundary)}")
        else:
            counted.append(one)
    if ALL not in found and any(meter.joules is not None for run in runs for meter in _of(run, DRAM)):
        said.append("energy of DRAM is not compared: the prediction has it among a server's base watts")
    return counted, said


def _boards(system: System, runs: Sequence[LiveRun], device: str | None) -> Counted | str:
    """What boards drew: that of hsim's own decoder, which works on one; all that an endpoint may have used."""
    if device is not None and not device.startswith("cuda"):
        return f"decoders ran on {device}"
    metered = [_of(run, BOARD) for run in runs]
    if device is not None:
        number = int(device.partition(":")[2] or 0)
        metered = [boards[number : number + 1] or boards for boards in metered]
    joules = _sums(metered)
    if isinstance(joules, str):
        return joules
    pools = [pool for pool in system.engine_pools().values() if not pool.on_cores]
    serving = sum(pool.replicas * pool.accelerators for pool in pools)
    fleet = sum(tier.count * tier.accelerators_per_server for tier in system.tiers.values())
    if len(metered[0]) == serving:
        return Counted(BOARDS, joules, lambda drew: drew.serving_j)
    if len(metered[0]) == fleet:
        return Counted(BOARDS, joules, lambda drew: drew.serving_j + drew.spare_j)
    return f"{len(metered[0])} are metered; in the prediction {serving} serve, of {fleet} that are there"


def _packages(system: System, runs: Sequence[LiveRun]) -> Counted | str:
    """What the packages of this machine drew: those of the one server that it is."""
    joules, servers = _sums([_of(run, PACKAGE) for run in runs]), sum(tier.count for tier in system.tiers.values())
    if isinstance(joules, str):
        return joules
    if servers != 1:
        return f"this is one machine, and the prediction is of {servers} servers"
    return Counted(PACKAGES, joules, lambda drew: drew.packages_j)


def _seen_from_outside(system: System) -> bool:
    """Whether an endpoint's profile has the watts of all meters together: `hsim calibrate --endpoint` adds them up."""
    return any(tier.chip and tier.chip.memory_bytes_per_s.source == NOT_SEEN for tier in system.tiers.values())


def _everything(prepared: Prepared, runs: Sequence[LiveRun]) -> Counted | str:
    if prepared.cores:
        return "the endpoint's profile has what all meters counted beside it, and tools on their cores draw more"
    at_hand = [meter.meter for run in runs[:1] for meter in run.energy if meter.joules is not None]
    joules = _sums([[meter for meter in run.energy if not at_hand or meter.meter in at_hand] for run in runs])
    return joules if isinstance(joules, str) else Counted(ALL, joules, lambda drew: drew.serving_j)


def _of(run: LiveRun, boundary: str) -> list[MeteredJoules]:
    return [meter for meter in run.energy if meter.boundary == boundary]


def _sums(metered: Sequence[Sequence[MeteredJoules]]) -> tuple[float, ...] | str:
    """What some meters counted together in each run; or why that is unknown: one that is missing is never a zero."""
    missing = [meter.unavailable for meters in metered for meter in meters if meter.joules is None]
    if missing:
        return "; ".join(dict.fromkeys(missing))
    sums = tuple(sum(meter.joules or 0.0 for meter in meters) for meters in metered)
    if not all(map(len, metered)):
        return "there is no meter"
    return sums if all(joules > 0 for joules in sums) else "a meter counted nothing over a whole run"


def _why_unknown(system: System, boundary: str) -> str:
    """Why a prediction has no joules there."""
    tiers = system.tiers.values()
    if boundary == PACKAGES:
        names = [f"{tier.cpu.name}.{key}" for tier in tiers for key in ("idle_w", "max_w", "load_power_exponent")]
    else:
        names = [f"{tier.chip.name}.power" for tier in tiers if tier.chip]
    said = [why for name, why in system.figures.unknown.items() if name.startswith(tuple(names))]
    return said[0] if said else "the prediction has no watts for them"
