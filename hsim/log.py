"""The append-only record of a run, live and simulated alike. The engine writes it; every metric is a function of it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Stage(IntEnum):
    """The kinds of visit that a task makes."""

    UNDERSTAND = 0
    TOOL = 1
    PREFILL = 2
    GENERATE = 3


class Outcome(IntEnum):
    """How a visit or a task ended."""

    SERVED = 0
    TIMED_OUT = 1
    SHED = 2
    FAILED = 3  # its work was lost too often; live: it raised, hung or died
    LOST = 4  # of a visit only: its device broke down; it may have been sent again


class Gap(IntEnum):
    """What becomes of a context while its task waits for a tool."""

    CACHE = 0
    HOLD = 1
    OFFLOAD = 2
    DROP = 3


class Kept(IntEnum):
    """What became of a task that might have been kept at the edge."""

    SENT = 0  # to the cloud, as the policy wanted
    KEPT = 1
    FULL = 2  # to the cloud, since the edge was full
    ASKED_AGAIN = 3  # kept, its answer not good enough, and asked again in the cloud


class Power(IntEnum):
    """Power states that something stays in. It is active, beyond these, while Log.steps or Log.cores say so.

    A server is off, boots, or is on and idle. An engine's accelerators are off with their server, idle while they hold
    no model, or loaded.
    """

    OFF = 0
    BOOT = 1
    IDLE = 2
    LOADED = 3


class Service(IntEnum):
    """Whether a device takes new work: it is closed while it goes, is down or comes up, broken from a breakdown until it
    is open again.
    """

    OPEN = 0
    CLOSED = 1
    BROKEN = 2


class Table:
    """Rows of numbers in one flat array of doubles: 8 bytes a cell, quick to append and to hand to numpy."""

    def __init__(self, *columns: str) -> None:
        self.columns = columns
        self._cells = array("d")
        self._pack = Struct(f"{len(columns)}d").pack

    def append(self, row: Sequence[float]) -> None:
        """Add a row, a value for each column. Packed first: an array takes numbers one by one, and bytes at once."""
        self._cells.frombytes(self._pack(*row))

    def __len__(self) -> int:
        return len(self._cells) // len(self.columns)

    def column(self, name: str, first_row: int = 0) -> list[float]:
        """One column, from a row on."""
        width = len(self.columns)
        return self._cells[first_row * width + self.columns.index(name) :: width].tolist()

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Each column by name, as read-only views: while somebody holds one, the table takes no more rows. Shape (rows,)."""
        cells = np.frombuffer(self._cells, dtype=np.float64) if self._cells else np.empty(0)
        cells.flags.writeable = False
        grid = cells.reshape(-1, len(self.columns))
        return {name: grid[:, i] for i, name in enumerate(self.columns)}


@dataclass(frozen=True)
class Device:
    """Something that draws power: an accelerator group, or the CPU packages of a server.

    `idle_w` is what it draws while it does nothing, its model loaded; `capacity` is how many it can serve at once.
    A group of `accelerators` stands in Log.hosts[host], of which its engine keeps `host_cores` cores busy while it is
    in a step.
    """

    name: str
    tier: str
    idle_w: float
    capacity: int = 1
    host: int = -1
    host_cores: int = 0
    accelerators: int = 0


@dataclass(frozen=True)
class PoolRecord:
    """A pool of the run: what it is made of, and how many visits it can serve at once (cores, or replicas).

    `weights` names the sets of weights that an engine serves with: its own, and the other where there is one.
    """

    what: str
    engine: bool
    devices: tuple[int, ...]
    capacity: int
    kv_capacity_tokens: int = 0
    weights: tuple[str, ...] = ()


def visits_table() -> Table:
    """An empty table of visits."""
    # pool: its place in Log.pools; device: in Log.accelerators where the pool has engines, else in Log.hosts.
    # ready: asked for; queued: its input is at the pool; served: the device is done; ended: a wait outside too.
    # Joules: above idle, idle while serving it, and the same two of the host cores that run an engine.
    return Table(
        "task", "round", "stage", "pool", "device", "outcome", "ready_s", "queued_s", "started_s", "first_token_s",
        "served_s", "ended_s", "input_tokens", "output_tokens",
        "dynamic_j", "idle_j", "host_dynamic_j", "host_idle_j",
    )  # fmt: skip


def _steps() -> Table:
    # One row for each run of equal steps: step k takes seconds + k * growth, and joules + k * growth above idle.
    return Table(
        "device", "start_s", "end_s", "steps", "decodes", "context_tokens", "chunk_tokens", "chunk_context_tokens",
        "seconds", "seconds_growth", "joules", "joules_growth",
    )  # fmt: skip


def host_memory(pool: str) -> str:
    """What the link between a pool's replicas and their servers' memory is called."""
    return f"{pool} host memory"


_OF_OPTIONS = ("states", "gaps", "keeping", "service", "losses", "caps", "switches", "memory")


@dataclass
class Log:
    """What happened. Times in seconds from the start of the run, energies in joules."""

    accelerators: list[Device] = field(default_factory=list)
    hosts: list[Device] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    memories: list[str] = field(default_factory=list)
    pools: dict[str, PoolRecord] = field(default_factory=dict)
    tasks: Table = field(default_factory=lambda: Table("task", "arrival_s", "ended_s", "outcome"))
    visits: Table = field(default_factory=visits_table)
    steps: Table = field(default_factory=_steps)
    cores: Table = field(default_factory=lambda: Table("host", "time_s", "busy"))
    preemptions: Table = field(default_factory=lambda: Table("device", "time_s", "task", "computed_tokens"))
    transfers: Table = field(default_factory=lambda: Table("task", "link", "start_s", "end_s", "bytes", "joules"))
    # What became of contexts when their tasks went to a tool: choice is a Gap.
    gaps: Table = field(default_factory=lambda: Table("device", "task", "round", "time_s", "choice", "tokens"))
    # A replica with two sets of weights serves with the other from time_s on, or with its own again.
    switches: Table = field(default_factory=lambda: Table("device", "time_s", "other"))
    # Bytes that a memory which replicas share holds from time_s on.
    memory: Table = field(default_factory=lambda: Table("memory", "time_s", "bytes"))
    # Of tasks that might be kept at the edge: choice is a Kept; easy, whether the edge's model answers as well.
    keeping: Table = field(default_factory=lambda: Table("task", "time_s", "choice", "easy"))
    # From time_s on; device -1 is the server itself. Before its first row each is on, its model loaded.
    states: Table = field(default_factory=lambda: Table("host", "device", "time_s", "state"))

    # From time_s on. Pools and devices as in visits; before its first row each is open.
    service: Table = field(default_factory=lambda: Table("pool", "device", "time_s", "state"))
    # From time_s on, what a governor caps each accelerator of a pool at, from its next step on.
    caps: Table = field(default_factory=lambda: Table("pool", "time_s", "cap_w"))
    # Prompts that were lost with their device, and what had been computed of them.
    losses: Table = field(
        default_factory=lambda: Table("device", "time_s", "task", "prefilled_tokens", "output_tokens")
    )

    def on_engines(self, visits: Any) -> NDArray[np.bool_]:
        """Which of these rows of visits were served by model replicas. Shape (rows,)."""
        engines = [number for number, pool in enumerate(self.pools.values()) if pool.engine]
        return np.isin(visits["pool"], engines)

    def arrays(self) -> dict[str, Any]:
        """All tables as columns, by table name."""
        return {
            name: getattr(self, name).arrays()
            for name in (*("tasks", "visits", "steps", "cores", "preemptions", "transfers"), *_OF_OPTIONS)
        }
