"""What each device had drawn by any instant, read off the log in closed form: the meters behind the ledger."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hsim.costs.cpu import HostPower
from hsim.costs.shapes import Segment
from hsim.log import Log, Power
from hsim.metrics.accounts import Accounts

Floats = NDArray[np.float64]


class Drawn(NamedTuple):
    """Busy seconds (of a device, or of cores), and the joules above idle that went with them."""

    seconds: float
    joules: float

    def minus(self, earlier: Drawn) -> Drawn:
        """What was drawn since an earlier reading."""
        return Drawn(self.seconds - earlier.seconds, self.joules - earlier.joules)


def rows_of(table: Any, mask: NDArray[np.bool_] | None = None, **equal: float) -> Any:
    """The rows of a table within a mask, or all, whose columns have these values."""
    masks = [] if mask is None else [mask]
    mine = np.flatnonzero(np.all([*masks, *(table[column] == value for column, value in equal.items())], axis=0))
    return {name: cells[mine] for name, cells in table.items()}


def steps_until(steps: Any, time_s: float = math.inf) -> Drawn:
    """What the steps of one device had drawn by an instant; a step under way counts by the part that has passed."""
    ended = steps["end_s"] <= time_s
    n = steps["steps"][ended]
    seconds = float((steps["end_s"] - steps["start_s"])[ended].sum())
    joules = float((n * (steps["joules"][ended] + 0.5 * (n - 1) * steps["joules_growth"][ended])).sum())
    for i in np.flatnonzero(~ended & (steps["start_s"] < time_s)):
        row = {name: float(cells[i]) for name, cells in steps.items()}
        run = Segment(row["seconds"], row["seconds_growth"], row["joules"], row["joules_growth"], 0.0)
        whole = min(run.steps_by(row["start_s"], time_s), int(row["steps"]) - 1)
        into_s = time_s - row["start_s"] - run.seconds_of(whole)
        step_s, step_j = run.seconds + whole * run.seconds_growth, run.joules + whole * run.joules_growth
        seconds += time_s - row["start_s"]
        joules += run.joules_of(whole) + step_j * into_s / step_s
    return Drawn(seconds, joules)


class HostMeter:
    """The cores of one host: how many core-seconds were busy, and the joules above idle that they shared equally."""

    def __init__(self, cores: Any, power: HostPower, core_idle_w: float) -> None:
        """`cores` are the host's rows of Log.cores: from each time on, so many are busy."""
        self.core_idle_w = core_idle_w
        self._times = np.concatenate(([0.0], cores["time_s"]))
        self._busy = np.concatenate(([0.0], cores["busy"]))
        levels, which = np.unique(self._busy, return_inverse=True)
        watts = np.array([power.dynamic_w(int(level)) for level in levels])
        self._watts, self._core_watts = watts[which], (watts / np.maximum(levels, 1))[which]

    def until(self, time_s: float = math.inf) -> Drawn:
        """Busy core-seconds, and joules above idle, by an instant."""
        at = self._times[-1:] if math.isinf(time_s) else np.array([time_s])
        return Drawn(float(self._integral(self._busy, at)[0]), float(self._integral(self._watts, at)[0]))

    def job_joules(self, start_s: Floats, end_s: Floats) -> Floats:
        """Shares of cores that were busy from start to end. Shape of both."""
        return self._integral(self._core_watts, end_s) - self._integral(self._core_watts, start_s)

    def _integral(self, rates: Floats, until_s: Floats) -> Floats:
        whole = np.concatenate(([0.0], np.cumsum(rates[:-1] * np.diff(self._times))))
        at = np.searchsorted(self._times, until_s, side="right") - 1
        return np.asarray(whole[at] + rates[at] * (until_s - self._times[at]))


class ServerRest(NamedTuple):
    """Seconds of a window that a server was off and booting, and that each engine on it was without its model."""

    off_s: float
    boot_s: float
    bare_s: dict[int, float]

    @property
    def down_s(self) -> float:
        return self.off_s + self.boot_s


def rest_of(states: Any, log: Log, host: int, from_s: float, to_s: float) -> ServerRest:
    """What a server and its engines rested inside a window. `states` are the arrays of Log.states."""
    mine = rows_of(states, host=host)
    engines = [i for i, device in enumerate(log.accelerators) if device.host == host]
    return ServerRest(
        seconds_in(mine, -1, Power.OFF, from_s, to_s),
        seconds_in(mine, -1, Power.BOOT, from_s, to_s),
        {i: seconds_in(mine, i, Power.IDLE, from_s, to_s) for i in engines},
    )


def seconds_in(states: Any, device: int, state: Power, from_s: float, to_s: float) -> float:
    """For how long of a window a device (of one host's rows) was in a state."""
    rows = rows_of(states, device=device)
    start_s, end_s = inside(rows["time_s"], np.append(rows["time_s"][1:], math.inf), from_s, to_s)
    return float((end_s - start_s)[rows["state"] == state].sum())


def inside(start_s: Floats, end_s: Floats, from_s: float, to_s: float) -> tuple[Floats, Floats]:
    """Stretches of time cut off at the edges of a window; of one that lies outside nothing is left."""
    return np.clip(start_s, from_s, to_s), np.clip(end_s, from_s, to_s)


def host_meters(log: Log, tables: dict[str, Any], accounts: Accounts) -> list[HostMeter]:
    """A meter for each host, in order."""
    return [
        HostMeter(rows_of(tables["cores"], host=i), accounts.tiers[host.tier].host, host.idle_w / host.capacity)
        for i, host in enumerate(log.hosts)
    ]
