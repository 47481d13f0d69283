"""The terms of a prediction, one by one: what each cost as predicted, as re-measured now, and as it was in live runs.

A term is something whose cost the calibration states: decode steps, steps with prompt chunks, what passes between two
steps, the hand-over of a job, each CPU operation, transfers that are really made. `repaired` gives the prediction that it would have been with other
costs of some terms: at the machine's pace now, or with the term to blame put right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hsim.costs.cpu import OperationCost
from hsim.costs.measured import MeasuredCosts
from hsim.costs.shapes import Segment, StepCosts, StepShape
from hsim.drivers.carried import carried
from hsim.drivers.live import LiveRun, services
from hsim.drivers.prepared import Prepared
from hsim.engine.link import LinkSpec
from hsim.log import Log, Stage
from hsim.workload.tasks import Task

DECODE, CHUNK, BETWEEN, HAND_OVER = "decode steps", "steps with prompt chunks", "between steps", "hand-over of a job"
TRANSFERS = "transfers"  # over links whose bytes are really moved

Curve = tuple[tuple[float, float], ...]
Factors = Mapping[str, float | Curve]
"""By term: what its cost is multiplied by; for BETWEEN and HAND_OVER, which may be predicted as nothing, seconds.

For terms of steps it may differ by how many sequences a step has: points (sequences, factor), joined by straight lines.
"""
FEWEST_STEPS = 5  # of one number of sequences, for it to have a factor of its own


def operation_term(operation: str) -> str:
    """The term of a CPU operation."""
    return f"operation {operation}"


def between_s(costs: StepCosts, sequences: int) -> float:
    """Seconds that a replica's costs have for what passes before a step of so many sequences."""
    return costs.table.between(sequences) if isinstance(costs, MeasuredCosts) else 0.0


def _at(factor: float | Curve, sequences: int) -> float:
    """A factor, for a step of so many sequences."""
    if not isinstance(factor, tuple):
        return factor
    numbers, factors = np.array(factor).T
    return float(np.interp(sequences, numbers, factors))


def _whole(factors: Factors, term: str, default: float) -> float:
    """The factor of a term that has no sequences."""
    factor = factors.get(term, default)
    assert not isinstance(factor, tuple), f"{term} is no term of steps"
    return factor


@dataclass(frozen=True)
class RepairedSteps:
    """Step costs with some terms' factors: StepCosts."""

    costs: StepCosts
    factors: Factors

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts."""
        segment, between = self.costs.segment(shape), between_s(self.costs, shape.sequences)
        factor = _at(self.factors.get(CHUNK if shape.chunks else DECODE, 1.0), shape.sequences)
        return replace(
            segment,
            seconds=(segment.seconds - between) * factor + _at(self.factors.get(BETWEEN, between), shape.sequences),
            seconds_growth=segment.seconds_growth * factor,
        )


def repaired(prepared: Prepared, factors: Factors) -> Prepared:
    """The same system with other costs of some terms."""

    def cost(of: OperationCost) -> OperationCost:
        factor = _whole(factors, operation_term(of.operation), 1.0)
        names = ("base_s", "per_unit_s", "per_unit_squared_s", "per_unit_beyond_s")
        scaled = {name: getattr(of, name) * factor for name in names}
        return replace(of, **scaled, hand_over_s=_whole(factors, HAND_OVER, of.hand_over_s))

    return replace(
        prepared,
        replicas={n: replace(spec, costs=RepairedSteps(spec.costs, factors)) for n, spec in prepared.replicas.items()},
        understand={name: cost(of) for name, of in prepared.understand.items()},
        tools={name: cost(of) for name, of in prepared.tools.items()},
        networks={name: _slower(link, _whole(factors, TRANSFERS, 1.0)) for name, link in prepared.networks.items()},
    )


def _slower(link: LinkSpec, factor: float) -> LinkSpec:
    """A link on which everything takes so many times longer."""
    each_s = (link.latency_s * factor, link.per_message_s * factor)
    return replace(link, latency_s=each_s[0], per_message_s=each_s[1], bytes_per_s=link.bytes_per_s / factor)


@dataclass(frozen=True)
class Seen:
    """A term in live runs: how often, its mean as predicted for that very work and as its worker timed it.

    `core_fraction` is the part of the measured time for which the worker had a core: where it works and does not wait,
    others had the rest. `by_sequences` is what repairs steps of so many sequences each, where there were enough.
    """

    term: str
    count: int
    predicted_s: float
    measured_s: float
    core_fraction: float | None
    by_sequences: Curve = ()

    @property
    def factor(self) -> float:
        """What repairs the term on average: see Factors."""
        return self.measured_s if self.term in (BETWEEN, HAND_OVER) else self.measured_s / self.predicted_s

    @property
    def repair(self) -> float | Curve:
        """What repairs the term: a mean over batches of all sizes would leave each of them wrong."""
        return self.by_sequences or self.factor


def seen_terms(prepared: Prepared, predicted: Log, runs: Sequence[LiveRun]) -> list[Seen]:
    """Every term of which live runs show something, those of steps first.

    Steps are predicted for the very batches of the live runs; jobs as they were in the predicted run, where busy cores
    slowed them too.
    """
    return [
        *_steps_seen(prepared, runs),
        *_jobs_seen(prepared, predicted, runs),
        *_transfers_seen(prepared, predicted, runs),
    ]


def _transfers_seen(prepared: Prepared, predicted: Log, runs: Sequence[LiveRun]) -> list[Seen]:
    """Transfers over links that couriers have: on others a live run has the modelled time pass, which shows nothing."""
    real = [i for i, name in enumerate(prepared.networks) if name in carried(prepared)]
    was, *were = (_transfers_s(log, real) for log in (predicted, *(run.log for run in runs)))
    measured = np.concatenate(were)
    if not len(was) or not len(measured):
        return []
    return [Seen(TRANSFERS, len(measured), float(was.mean()), float(measured.mean()), None)]


def _transfers_s(log: Log, links: Sequence[int]) -> NDArray[np.float64]:
    """Seconds from each message's being asked for to its arrival, on some links. Shape (messages,)."""
    rows = log.transfers.arrays()
    return np.asarray((rows["end_s"] - rows["start_s"])[np.isin(rows["link"], links)])


def _steps_seen(prepared: Prepared, runs: Sequence[LiveRun]) -> list[Seen]:
    # One engine pool is the rule in live runs; with several, what passes between steps is taken from the first.
    costs = next(iter(prepared.replicas.values())).costs
    predicted, measured, cpu, gaps, chunks, sequences = (
        np.concatenate(column) for column in zip(*map(_steps_of, runs), strict=True)
    )
    between = np.array([between_s(costs, int(n)) for n in sequences])
    found = []
    worked = ~np.isnan(measured)
    for term, mine in ((DECODE, worked & (chunks == 0)), (CHUNK, worked & (chunks > 0))):
        if mine.any():
            seconds, expected = measured[mine], (predicted - between)[mine]
            had = float(cpu[mine].mean() / seconds.mean())
            curve = _by_sequences(sequences[mine], seconds, expected)
            found.append(Seen(term, len(seconds), float(expected.mean()), float(seconds.mean()), had, curve))
    followed = ~np.isnan(gaps)
    if followed.any():
        gap_s, curve = gaps[followed], _by_sequences(sequences[followed], gaps[followed])
        found.append(Seen(BETWEEN, len(gap_s), float(between[followed].mean()), float(gap_s.mean()), None, curve))
    return found


def _by_sequences(
    sequences: NDArray[np.float64], seconds: NDArray[np.float64], predicted: NDArray[np.float64] | None = None
) -> Curve:
    """Mean seconds (over mean predicted ones) of steps of each number of sequences that enough steps had."""
    found = []
    for n in np.unique(sequences):
        mine = sequences == n
        if mine.sum() >= FEWEST_STEPS:
            over = 1.0 if predicted is None else float(predicted[mine].mean())
            found.append((float(n), float(seconds[mine].mean()) / over))
    return tuple(found)


def _steps_of(run: LiveRun) -> tuple[NDArray[np.float64], ...]:
    """Predicted, measured and CPU seconds, gap before, chunk tokens and sequences of each step. Shapes (steps,).

    The log does not say how many chunks a step has: a step with any is taken to have one.
    """
    logged, timed = run.log.steps.arrays(), run.record.steps.arrays()
    count = min(
        len(run.log.steps), len(run.record.steps)
    )  # a run that was stopped may have timed one that it did not log
    sequences = logged["decodes"] + (logged["chunk_tokens"] > 0)
    columns = (logged["seconds"], timed["seconds"], timed["cpu_s"], timed["gap_s"], logged["chunk_tokens"], sequences)
    return tuple(column[:count] for column in columns)


def _jobs_seen(prepared: Prepared, predicted: Log, runs: Sequence[LiveRun]) -> list[Seen]:
    operations = {
        (task.id, *at): cost for task in prepared.drawn.tasks for at, cost in _operations_of(prepared, task).items()
    }
    expected = services(predicted)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    overheads: list[tuple[float, float]] = []
    for run in runs:
        took, timed = services(run.log), run.record.jobs.arrays()
        for task, number, stage, seconds, cpu_s in zip(*timed.values(), strict=True):
            key = (task, number, stage)
            if key in expected and key in took:
                cost = operations[int(task), int(number), Stage(int(stage))]
                rows.setdefault(cost.operation, []).append((expected[key] - cost.hand_over_s, seconds, cpu_s))
                overheads.append((cost.hand_over_s, took[key] - seconds))
    found = []
    for operation, mine in sorted(rows.items()):
        predicted_s, seconds, cpu_s = np.mean(mine, axis=0).tolist()
        found.append(Seen(operation_term(operation), len(mine), predicted_s, seconds, cpu_s / seconds))
    if overheads:
        predicted_s, measured_s = np.mean(overheads, axis=0).tolist()
        found.append(Seen(HAND_OVER, len(overheads), predicted_s, measured_s, None))
    return found


def _operations_of(prepared: Prepared, task: Task) -> dict[tuple[int, Stage], OperationCost]:
    """What each job of a task costs, by round and stage."""
    found: dict[tuple[int, Stage], OperationCost] = {}
    if task.understand_tokens and task.class_name in prepared.understand:
        found[0, Stage.UNDERSTAND] = prepared.understand[task.class_name]
    for i, this in enumerate(task.rounds):
        if this.call:
            found[i, Stage.TOOL] = prepared.tools[this.call.tool]
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios."""
    return math.exp(float(np.mean(np.log(values))))
