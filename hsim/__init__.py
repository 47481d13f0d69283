"""hsim: a discrete-event simulator and capacity planner for language-model inference divided between CPUs and GPUs.

The command line's `simulate` and `compare`, for programs and notebooks:

>>> import hsim
>>> system = hsim.load("agents-gpu-only", ["workload.tasks=100"])
>>> study = hsim.simulate(system, replications=3)
>>> study.kind, study.replications, study.stability.verdict != "unstable"
('steady', 3, True)
>>> tst = study.energy.tst_j["full"]["facility"]
>>> tst.low < tst.value < tst.high
True
>>> list(study.to_frame().columns)
['value', 'low', 'high', 'rough_low', 'rough_high']
>>> print(study.latency["e2e"].p99_s.value)  # not estimable: of 300 tasks three lie beyond it
None

The same tasks through two fleets, paired by replication:

>>> comparison = hsim.compare([system, "agents-split"], ["workload.tasks=100"], replications=3)
>>> difference = comparison.to_frame().loc["mean_w"]
>>> str(difference["verdict"]), bool(difference["difference"] > 0)
('higher', True)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

    from hsim.description.system import System
    from hsim.metrics.result import Comparison, Result, Study
    from hsim.runs import Options

__all__ = ["compare", "load", "simulate", "simulate_path", "sweep"]


def load(scenario: str | Path, settings: Sequence[str] = ()) -> System:
    """A scenario (a path, or the name of a shipped one) with `path=value` settings applied, and all that it names.

    Raises hsim.errors.DescriptionError, which says where and what would be right.

    >>> load("agents-split", ["workload.arrivals.rate_per_s=2"]).scenario.workload.arrivals.rate_per_s
    2.0
    """
    from hsim.runs import system_of

    return system_of(scenario, settings)


def simulate(
    scenario: str | Path | System,
    settings: Sequence[str] = (),
    *,
    replications: int = 10,
    processes: int | None = 1,
    worlds: int = 0,
    out: str | Path | None = None,
) -> Study:
    """Simulate replications of a scenario: every figure with its interval.

    `processes` None takes every core; a script that asks for more than one needs `if __name__ == "__main__"`, since
    they are spawned. `worlds` simulates so many worlds in which roughly known figures take other values. `out` keeps
    runs in a folder to go on with; Ctrl-C leaves what was finished.
    """
    from hsim.runs import Options, study

    return study(_system(scenario, settings), Options(replications, processes, worlds, Path(out) if out else None))


def simulate_path(scenario: str | Path | System, settings: Sequence[str] = ()) -> Result:
    """Simulate one path of a scenario's tasks, from an empty system to an empty one, as it is: no interval, no verdict.

    >>> result = simulate_path("agents-split", ["workload.tasks=20"])
    >>> result.tasks, result.energy.ledger_gap_fraction < 1e-9
    (20, True)
    """
    from hsim.runs import path_of

    return path_of(_system(scenario, settings))


def compare(
    scenarios: Sequence[str | Path | System],
    settings: Sequence[str] = (),
    *,
    replications: int = 10,
    processes: int | None = 1,
    worlds: int = 0,
    out: str | Path | None = None,
) -> Comparison:
    """Compare scenarios with the first of them on the same tasks; parameters as those of simulate.

    Each scenario's own fleet: hsim.plan.fair.compare_fairly gives each its best that meets the objectives.
    """
    from hsim.comparison import compare as compare_systems
    from hsim.runs import Options

    options = Options(replications, processes, worlds, Path(out) if out else None)
    return compare_systems([_system(scenario, settings) for scenario in scenarios], options)


def sweep(
    scenario: str | Path,
    vary: Mapping[str, Sequence[Any] | str],
    settings: Sequence[str] = (),
    *,
    samples: int | None = None,
    options: Options | None = None,
) -> DataFrame:
    """Simulate every combination of values of paths, or so many points of a Latin hypercube over ranges: a row for each.

    Values are a list, or a text such as `"2:20:7"` (so many values of a range; `:log` and `:whole` may follow). Columns are those
    of hsim.sweeps.Sweep. `options` says how many replications, in how many processes or on which cluster, and where they
    are kept (hsim.runs.Options); one process when left out. After Ctrl-C there are fewer rows.

    >>> from hsim.runs import Options
    >>> vary = {"workload.arrivals.rate_per_s": [2, 4]}
    >>> frame = sweep("agents-gpu-only", vary, ["workload.tasks=60"], options=Options(3, processes=1))
    >>> frame[["workload.arrivals.rate_per_s", "replications"]].values.tolist()
    [[2, 3], [4, 3]]
    >>> bool(frame["tst_j"][0] > frame["tst_j"][1])  # idle draw is shared among fewer tasks
    True
    """
    from hsim.runs import Options
    from hsim.sweeps import Asked, axes_of
    from hsim.sweeps import sweep as run

    return run(Asked(scenario, axes_of(vary), settings, samples), options or Options(processes=1)).to_frame()


def _system(scenario: str | Path | System, settings: Sequence[str]) -> System:
    return load(scenario, settings) if isinstance(scenario, str | Path) else scenario
