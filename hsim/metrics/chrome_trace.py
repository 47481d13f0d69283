"""A run as a trace that chrome://tracing and ui.perfetto.dev show: servers, lanes, tasks, flows between them, counters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.log import Log, Outcome, Stage
from hsim.metrics.meters import rows_of
from hsim.metrics.timelines import Timeline, Timelines
from hsim.units import US_PER_S

Floats = NDArray[np.float64]
Ticks = NDArray[np.int64]
Event = dict[str, Any]

# The format counts in microseconds. Eighths of one are exact in doubles and as text, so that what touches never overlaps.
TICKS_PER_US = 8
SYSTEM, LINKS, FIRST_SERVER = 1, 2, 10  # processes
FIRST_TRACK = 100_000  # above any process: a viewer takes a track with its process's number for the main one
PHASES = (
    ("transfer", "ready_s", "queued_s"),
    ("wait", "queued_s", "started_s"),
    ("", "started_s", "served_s"),
    ("outside", "served_s", "ended_s"),
)


def chrome_trace(log: Log, timelines: Timelines, about: dict[str, Any]) -> dict[str, Any]:
    """The trace in Chrome's JSON format, slices in order of time; `about` says what was run.

    A process stands for each server, with a track for the steps of each replica and lanes for the visits that it or a
    core serves; one for the links; and one for the system, with a lane for each task under way, its visits inside.
    """
    tables = log.arrays()
    tracks = _Tracks()
    events = [
        *_servers(log, tables, tracks),
        *_tasks(tables, tracks),
        *_transfers(log, tables["transfers"], tracks),
        *_counters(log, timelines),
    ]
    events.sort(key=lambda event: event["ts"])
    return {"displayTimeUnit": "ms", "otherData": about, "traceEvents": [*_names(log, tracks), *events]}


@dataclass
class _Tracks:
    """Names of tracks by process; a track's number is its place, from FIRST_TRACK on."""

    names: dict[int, list[str]] = field(default_factory=dict)

    def new(self, process: int, names: Sequence[str]) -> int:
        """Add tracks; returns the number of the first."""
        tracks = self.names.setdefault(process, [])
        tracks.extend(names)
        return FIRST_TRACK + len(tracks) - len(names)


def _names(log: Log, tracks: _Tracks) -> Iterator[Event]:
    processes = {SYSTEM: "tasks and queues", LINKS: "links"}
    processes |= {FIRST_SERVER + i: f"server {host.name}" for i, host in enumerate(log.hosts)}
    for process, name in processes.items():
        yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}}
        for track, own in enumerate(tracks.names.get(process, ()), FIRST_TRACK):
            yield {"ph": "M", "name": "thread_name", "pid": process, "tid": track, "args": {"name": own}}
            yield {"ph": "M", "name": "thread_sort_index", "pid": process, "tid": track, "args": {"sort_index": track}}


def _ticks(times_s: Floats) -> Ticks:
    return np.round(times_s * (US_PER_S * TICKS_PER_US)).astype(np.int64)


def _slice(place: tuple[int, int], ticks: tuple[int, int], name: str, category: str, args: Event) -> Event:
    """A stretch of time on a track."""
    start, end = ticks
    times = {"ts": start / TICKS_PER_US, "dur": (end - start) / TICKS_PER_US}
    return {"ph": "X", "pid": place[0], "tid": place[1], **times, "name": name, "cat": category, "args": args}


def lanes(start: Ticks, end: Ticks) -> list[int]:
    """A lane for each stretch of time, the lowest that is free when it starts; those that touch may share one."""
    chosen, used = [0] * len(start), 0
    busy: list[tuple[int, int]] = []
    free: list[int] = []
    for i in np.lexsort((end, start)).tolist():
        while busy and busy[0][0] <= start[i]:
            heappush(free, heappop(busy)[1])
        if free:
            chosen[i] = heappop(free)
        else:
            chosen[i], used = used, used + 1
        heappush(busy, (int(end[i]), chosen[i]))
    return chosen


def _servers(log: Log, tables: Any, tracks: _Tracks) -> Iterator[Event]:
    """Steps of replicas, visits on replicas and cores, and flows from each visit of a task to its next."""
    steps, visits = tables["steps"], tables["visits"]
    flows: dict[int, list[tuple[int, tuple[int, int]]]] = {}
    for number, (name, pool) in enumerate(log.pools.items()):
        for index in pool.devices:
            device = log.accelerators[index] if pool.engine else log.hosts[index]
            process = FIRST_SERVER + (device.host if pool.engine else index)
            called = device.name if pool.engine else f"{name} on {device.name}"
            if pool.engine:
                track = tracks.new(process, [f"{called} steps"])
                yield from _steps(rows_of(steps, device=index), (process, track))
            mine = rows_of(visits, pool=number, device=index)
            start, end = _ticks(mine["started_s"]), _ticks(mine["served_s"])
            lane = lanes(start, end)
            first = tracks.new(process, [f"{called} lane {k}" for k in range(max(lane, default=-1) + 1)])
            for i, own in enumerate(lane):
                if end[i] > start[i]:  # one that was shed or given up while it waited was never here
                    place = (process, first + own)
                    task = int(mine["task"][i])
                    yield _slice(place, (int(start[i]), int(end[i])), f"task {task}", _stage(mine, i), _visit(mine, i))
                    flows.setdefault(task, []).append(((int(start[i]) + int(end[i])) // 2, place))
    for task, points in flows.items():
        yield from _flow(task, sorted(points))


def _steps(steps: Any, place: tuple[int, int]) -> Iterator[Event]:
    start, end = _ticks(steps["start_s"]), _ticks(steps["end_s"])
    counts = {
        key: steps[key].astype(np.int64).tolist() for key in ("steps", "decodes", "context_tokens", "chunk_tokens")
    }
    joules = steps["steps"] * (steps["joules"] + (steps["steps"] - 1) / 2 * steps["joules_growth"])
    for i in range(len(start)):
        args = {key: values[i] for key, values in counts.items()}
        parts = [f"decode {args['decodes']}"] * (args["decodes"] > 0)
        parts += [f"prefill {args['chunk_tokens']}"] * (args["chunk_tokens"] > 0)
        args["dynamic_j"] = _known(float(joules[i]))
        yield _slice(place, (int(start[i]), int(end[i])), " + ".join(parts), "steps", args)


def _stage(visits: Any, i: int) -> str:
    return Stage(int(visits["stage"][i])).name.lower()


def _visit(visits: Any, i: int) -> Event:
    row = {name: float(cells[i]) for name, cells in visits.items()}
    args: Event = {name: int(row[name]) for name in ("task", "round", "input_tokens", "output_tokens")}
    args |= {"outcome": Outcome(int(row["outcome"])).name.lower(), "wait_s": row["started_s"] - row["queued_s"]}
    if not np.isnan(row["first_token_s"]):
        args["ttft_s"] = row["first_token_s"] - row["ready_s"]
    args["dynamic_j"] = row["dynamic_j"] + row["host_dynamic_j"]
    args["idle_j"] = row["idle_j"] + row["host_idle_j"]
    return {key: _known(value) for key, value in args.items()}


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _flow(task: int, points: Sequence[tuple[int, tuple[int, int]]]) -> Iterator[Event]:
    """Arrows between the visits of a task, from the middle of each: there it lies inside its slice in every viewer."""
    for number, (tick, (process, track)) in enumerate(points):
        if len(points) > 1:
            last = number == len(points) - 1
            kind = {"ph": "f", "bp": "e"} if last else {"ph": "t" if number else "s"}
            yield {
                **kind,
                "pid": process,
                "tid": track,
                "ts": tick / TICKS_PER_US,
                "id": task,
                "name": "task",
                "cat": "flow",
            }


def _tasks(tables: Any, tracks: _Tracks) -> Iterator[Event]:
    """A slice for each task, and inside it what its visits waited for and were served with."""
    tasks, visits = tables["tasks"], tables["visits"]
    start, end = _ticks(tasks["arrival_s"]), _ticks(tasks["ended_s"])
    lane = lanes(start, end)
    first = tracks.new(SYSTEM, [f"tasks, lane {k}" for k in range(max(lane, default=-1) + 1)])
    places = {int(task): (SYSTEM, first + own) for task, own in zip(tasks["task"], lane, strict=True)}
    for i, task in enumerate(tasks["task"].astype(np.int64).tolist()):
        outcome = Outcome(int(tasks["outcome"][i])).name.lower()
        yield _slice(places[task], (int(start[i]), int(end[i])), f"task {task}", "task", {"outcome": outcome})
    for phase, since, until in PHASES:
        start, end = _ticks(visits[since]), _ticks(visits[until])
        for i in np.flatnonzero(end > start).tolist():
            stage = _stage(visits, i)
            name = f"{phase}: {stage}" if phase else stage
            place = places[int(visits["task"][i])]
            yield _slice(
                place, (int(start[i]), int(end[i])), name, phase or "service", {"round": int(visits["round"][i])}
            )


def _transfers(log: Log, transfers: Any, tracks: _Tracks) -> Iterator[Event]:
    for index, link in enumerate(log.links):
        mine = rows_of(transfers, link=index)
        start, end = _ticks(mine["start_s"]), _ticks(mine["end_s"])
        lane = lanes(start, end)
        first = tracks.new(LINKS, [f"{link} lane {k}" for k in range(max(lane, default=-1) + 1)])
        for i, own in enumerate(lane):
            args = {"bytes": float(mine["bytes"][i]), "task": int(mine["task"][i])}
            ticks = (int(start[i]), int(end[i]))
            yield _slice((LINKS, first + own), ticks, f"task {args['task']}", "transfer", args)


def _counters(log: Log, timelines: Timelines) -> Iterator[Event]:
    processes = {device.name: FIRST_SERVER + device.host for device in log.accelerators}
    processes |= {f"{host.name} cores": FIRST_SERVER + i for i, host in enumerate(log.hosts)}
    for line in timelines.board_w:
        yield from _counter(line, processes[line.name], f"power {line.name}")
    for line in timelines.kv_used:
        yield from _counter(line, processes[line.name], f"KV cache {line.name}")
    for line in timelines.batches:
        yield from _counter(line, processes[line.name], f"batch {line.name}")
    for line in timelines.queues:
        yield from _counter(line, SYSTEM, f"queue {line.name}")
    yield from _counter(timelines.in_progress, SYSTEM, "tasks in progress")


def _counter(line: Timeline, process: int, name: str) -> Iterator[Event]:
    """A counter at each of its changes; an unknown quantity (nan) has none."""
    changed = np.append(True, np.diff(line.values) != 0) & ~np.isnan(line.values)
    for tick, value in zip(_ticks(line.times_s[changed]).tolist(), line.values[changed].tolist(), strict=True):
        yield {"ph": "C", "pid": process, "tid": 0, "ts": tick / TICKS_PER_US, "name": name, "args": {line.unit: value}}
