"""A log as tables that other programs read: names for numbers, SI units in the names of columns, joules by task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.log import Gap, Kept, Log, Outcome, Power, Service, Stage
from hsim.workload.tasks import Task

Column = NDArray[Any] | list[str]
Frame = dict[str, Column]

UNITS = {"_s": "s", "_j": "J", "_w": "W", "_tokens": "tokens", "_bytes": "B", "_cores": "cores"}
ENDS = (".half_width", ".low", ".high", ".rough_low", ".rough_high")
WHAT = {
    "tasks": "one row a task; joules are those of its visits and transfers, behind the power supply",
    "visits": "one row a visit of a task to a stage: asked for, input there, started, device done, wait outside over",
    "steps": "one row a run of equal steps: step k, from 0, takes first_step + k * growth, in seconds and joules above idle",
    "transfers": "one row a transfer over a link",
    "cores": "from each time on, so many cores of a server are busy",
    "preemptions": "sequences put back into the queue for want of KV cache, and the tokens to be computed again",
    "states": "from each time on, a server (device empty) or an engine on it is in a power state; before, on and loaded",
    "service": "from each time on, a device of a pool takes new work (open), does not (closed), or has broken down; before, open",
    "losses": "prompts that were lost with their device, and what had been computed of them",
    "caps": "from each time on, the power cap of each accelerator of a pool, from its next step on",
    "gaps": "what became of a context when its task went to a tool",
    "memory": "from each time on, a memory that replicas share holds so many bytes",
    "keeping": "what became of each task that might have been kept at the edge; easy: the edge's model answers as well",
    "switches": "from each time on, a replica serves with its other weights (1), or with its own again (0)",
    "devices": "accelerator groups and the CPU packages of servers, with what they draw when idle",
}
NAMED = {"seconds": "first_step_s", "seconds_growth": "growth_s", "joules": "first_step_j", "joules_growth": "growth_j"}
COUNTS = ("task", "round", "input_tokens", "output_tokens", "steps", "decodes", "context_tokens", "chunk_tokens",
          "chunk_context_tokens", "busy_cores", "computed_tokens", "prefilled_tokens", "easy", "other")  # fmt: skip


def unit_of(column: str) -> str:
    """The SI unit of a column by its name; 1 for counts, numbers and names.

    An interval's end has the unit of its figure: `e2e.p95_s.low`. What is said per something has both.
    """
    of_ends = column.rpartition(".")[0] if column.endswith(ENDS) else column
    if found := re.search(r"([a-z0-9]+)_per_(\w+)$", of_ends):
        over, under = found.groups()
        return f"{'1' if over == 'rate' else over}/{UNITS.get(f'_{under}', under)}"
    return next((unit for ending, unit in UNITS.items() if of_ends.endswith(ending)), "1")


def frames_of(log: Log, tasks: Sequence[Task]) -> dict[str, Frame]:
    """Every table of a log by name, as WHAT describes them, its columns by name."""
    tables = log.arrays()
    chips = np.array([device.name for device in log.accelerators] or [""])
    hosts = np.array([host.name for host in log.hosts])
    frames = {
        "tasks": _tasks(tables, tasks),
        "visits": _visits(log, tables["visits"], chips, hosts),
        "steps": {"device": _named(chips, tables["steps"]["device"])} | _without(tables["steps"], "device"),
        "transfers": _transfers(log, tables["transfers"]),
        "cores": {"server": _named(hosts, tables["cores"]["host"]), "time_s": tables["cores"]["time_s"],
                  "busy_cores": tables["cores"]["busy"]},
        "preemptions": {"device": _named(chips, tables["preemptions"]["device"])} | _without(tables["preemptions"], "device"),
        "states": _states(tables["states"], chips, hosts),
        "service": _service(log, tables["service"], chips, hosts),
        "losses": {"device": _named(chips, tables["losses"]["device"])} | _without(tables["losses"], "device"),
        "caps": {"pool": _named(np.array([*log.pools]), tables["caps"]["pool"])} | _without(tables["caps"], "pool"),
        "gaps": _gaps(tables["gaps"], chips),
        "memory": {"memory": _named(np.array(log.memories or [""]), tables["memory"]["memory"]),
                   "time_s": tables["memory"]["time_s"], "held_bytes": tables["memory"]["bytes"]},
        "keeping": tables["keeping"] | {"choice": _members(Kept, tables["keeping"]["choice"])},
        "switches": {"device": _named(chips, tables["switches"]["device"])} | _without(tables["switches"], "device"),
        "devices": _devices(log),
    }  # fmt: skip
    return {
        name: {NAMED.get(key, key): _typed(key, cells) for key, cells in frame.items()}
        for name, frame in frames.items()
    }


def _typed(name: str, cells: Column) -> Column:
    return cells.astype(np.int64) if name in COUNTS and not isinstance(cells, list) else cells


def _without(table: Any, *columns: str) -> Frame:
    return {name: cells for name, cells in table.items() if name not in columns}


def _named(names: NDArray[Any], numbers: NDArray[np.float64]) -> list[str]:
    return list(names[numbers.astype(np.int64)].tolist())


def _members(kind: type[IntEnum], numbers: NDArray[np.float64]) -> list[str]:
    return _named(np.array([member.name.lower() for member in kind]), numbers)


def _tasks(tables: Any, tasks: Sequence[Task]) -> Frame:
    rows, visits, transfers = tables["tasks"], tables["visits"], tables["transfers"]
    order = np.argsort(rows["task"])
    ids = rows["task"][order].astype(np.int64)
    drawn = {task.id: task for task in tasks}
    mine = [drawn[number] for number in ids.tolist()]

    def summed(table: Any, cells: NDArray[Any]) -> NDArray[Any]:
        return np.bincount(np.searchsorted(ids, table["task"]), weights=cells, minlength=len(ids))

    work_j = summed(visits, visits["dynamic_j"] + visits["host_dynamic_j"])
    return {
        "task": ids,
        "class": [task.class_name for task in mine],
        "outcome": _members(Outcome, rows["outcome"][order]),
        "arrival_s": rows["arrival_s"][order],
        "ended_s": rows["ended_s"][order],
        "rounds": np.array([len(task.rounds) for task in mine]),
        "understand_tokens": np.array([task.understand_tokens for task in mine]),
        "input_tokens": summed(visits, np.where(visits["stage"] == Stage.GENERATE, visits["input_tokens"], 0.0)),
        "output_tokens": summed(visits, visits["output_tokens"]),
        "dynamic_j": work_j + summed(transfers, transfers["joules"]),
        "idle_j": summed(visits, visits["idle_j"] + visits["host_idle_j"]),
    }


def _visits(log: Log, visits: Any, chips: NDArray[Any], hosts: NDArray[Any]) -> Frame:
    on_chips = log.on_engines(visits)
    at = visits["device"].astype(np.int64)
    devices = np.where(on_chips, chips[np.where(on_chips, at, 0)], hosts[np.where(on_chips, 0, at)])
    pools = np.array([*log.pools, ""])  # a visit given up on its way has no pool yet
    return {
        "task": visits["task"],
        "round": visits["round"],
        "stage": _members(Stage, visits["stage"]),
        "pool": _named(pools, visits["pool"]),
        "device": list(devices.tolist()),
        "outcome": _members(Outcome, visits["outcome"]),
        **_without(visits, "task", "round", "stage", "pool", "device", "outcome"),
    }


def _transfers(log: Log, transfers: Any) -> Frame:
    return {
        "task": transfers["task"],
        "link": _named(np.array(log.links or [""]), transfers["link"]),
        "start_s": transfers["start_s"],
        "end_s": transfers["end_s"],
        "payload_bytes": transfers["bytes"],
        "dynamic_j": transfers["joules"],
    }


def _states(states: Any, chips: NDArray[Any], hosts: NDArray[Any]) -> Frame:
    return {
        "server": _named(hosts, states["host"]),
        "device": _named(np.append(chips, ""), states["device"]),  # -1, the last, is the server itself
        "time_s": states["time_s"],
        "state": _members(Power, states["state"]),
    }


def _service(log: Log, service: Any, chips: NDArray[Any], hosts: NDArray[Any]) -> Frame:
    on_chips, at = log.on_engines(service), service["device"].astype(np.int64)
    devices = np.where(on_chips, chips[np.where(on_chips, at, 0)], hosts[np.where(on_chips, 0, at)])
    return {
        "pool": _named(np.array([*log.pools]), service["pool"]),
        "device": list(devices.tolist()),
        "time_s": service["time_s"],
        "state": _members(Service, service["state"]),
    }


def _gaps(gaps: Any, chips: NDArray[Any]) -> Frame:
    return {
        "device": _named(chips, gaps["device"]),
        "task": gaps["task"],
        "round": gaps["round"],
        "time_s": gaps["time_s"],
        "choice": _members(Gap, gaps["choice"]),
        "context_tokens": gaps["tokens"],
    }


def _devices(log: Log) -> Frame:
    pools = {i: pool for pool in log.pools.values() if pool.engine for i in pool.devices}
    names = {i: name for name, pool in log.pools.items() if pool.engine for i in pool.devices}
    chips = list(enumerate(log.accelerators))
    return {
        "device": [device.name for _, device in chips] + [host.name for host in log.hosts],
        "kind": ["accelerators"] * len(chips) + ["cores"] * len(log.hosts),
        "tier": [device.tier for _, device in chips] + [host.tier for host in log.hosts],
        "server": [log.hosts[device.host].name for _, device in chips] + [host.name for host in log.hosts],
        "pool": [names[i] for i, _ in chips] + [""] * len(log.hosts),
        "idle_w": np.array([device.idle_w for _, device in chips] + [host.idle_w for host in log.hosts]),
        "total_cores": np.array([0] * len(chips) + [host.capacity for host in log.hosts]),
        "engine_cores": np.array([device.host_cores for _, device in chips] + [0] * len(log.hosts)),
        "kv_capacity_tokens": np.array([pools[i].kv_capacity_tokens for i, _ in chips] + [0] * len(log.hosts)),
    }
