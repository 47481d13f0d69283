"""A study with all that pictures of it are drawn from: its samples, its replications, and one path over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hsim.description.system import System
from hsim.metrics.ledger import Window
from hsim.metrics.result import Study
from hsim.metrics.study import Material, estimates_of, found_in_progress, rates_of, sojourns, study_of
from hsim.metrics.timelines import Timelines, timelines_of
from hsim.runs.paths import Job, path_log, seeded
from hsim.runs.studies import Options, gather, workers

Floats = NDArray[np.float64]

FOLLOWED = ("tst_j", "tasks_per_s", "ttft.mean_s", "e2e.mean_s")


@dataclass(frozen=True)
class Closeup:
    """A study close up.

    `latency` holds all replications' samples, by metric. `by_replication` holds each replication's own value of some
    figures. `sojourn_s` and `in_progress` are by task in order of arrival, up to the last that is followed; shapes (replications, tasks). The
    timelines are those of the first replication, measured in `window`, whose last task ended at end_s.
    """

    study: Study
    latency: dict[str, Floats]
    by_replication: dict[str, list[float]]
    sojourn_s: Floats
    in_progress: Floats
    timelines: Timelines
    window: Window
    end_s: float


def close_up(system: System, options: Options) -> Closeup:
    """Do a study, or find it where it was kept, and look at it close up: its first replication is run once more."""
    with workers(options) as those:
        material, warm_up = gather(system, options, those, partial=True)
    study, first = study_of(material, warm_up), material.replications[0]
    cohort = None if warm_up is None else first.path.cohort
    followed = min(path.cohort.end for path in material.paths)
    prepared, log = path_log(Job(seeded(system, first.number), first.number, cohort, (), options.stepwise))
    return Closeup(
        study=study,
        latency={metric: np.concatenate([path.latency[metric] for path in material.paths]) for metric in study.latency},
        by_replication=_by_replication(material, study),
        sojourn_s=np.array([sojourns(path)[:followed] for path in material.paths]),
        in_progress=np.array([found_in_progress(path)[:followed] for path in material.paths]),
        timelines=timelines_of(log, prepared.accounts),
        window=first.path.window,
        end_s=float(max(log.tasks.column("ended_s"))),
    )


def _by_replication(material: Material, study: Study) -> dict[str, list[float]]:
    each = [
        rates_of([path]) if study.is_unstable else estimates_of([path], material.accounts, study.energy is not None)
        for path in material.paths
    ]
    shown = [name for name in FOLLOWED if name in study.figures() and all(name in found for found in each)]
    return {name: [found[name].value for found in each] for name in shown}
