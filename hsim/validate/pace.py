"""The machine's pace: costs that the calibration states, measured again beside a live run on its own idle workers,
with the rests that calibrate takes.

A virtual machine's cores slow down and recover with its neighbours, unseen by load averages. Without a second look at
the same work, that cannot be told from a wrong model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hsim.backends.hosts import DecoderSpec, StepItem, ToolSpec
from hsim.backends.worker import Worker
from hsim.calibrate.blackbox import steady
from hsim.calibrate.sampling import JOBS_REST, STEPS_REST
from hsim.costs.shapes import StepCosts, StepShape
from hsim.drivers.endpoint import Remote
from hsim.drivers.live import Stand
from hsim.drivers.prepared import Prepared
from hsim.engine.replica import ReplicaSpec
from hsim.validate.terms import CHUNK, DECODE, between_s, geometric_mean, operation_term

PROMPT_TOKENS = 64
BURSTS, BURST = 3, 4  # of an endpoint: so many, of so many requests at once
STEPS = 24  # decode steps of each batch that is measured
CALLS, CALLS_S = 15, 0.4  # of each operation: so many, or for so long, but three


@dataclass(frozen=True)
class Paced:
    """Some work of a term, alone on the idle machine: seconds as predicted, and the mean as measured now."""

    term: str
    work: str
    predicted_s: float
    measured_s: float


def measure_pace(stand: Stand, prepared: Prepared) -> list[Paced]:
    """Measure a little of every term that the scenario's tasks need, one worker at a time."""
    found: list[Paced] = []
    specs = [spec for spec in prepared.replicas.values() for _ in range(spec.pool.replicas)]
    if stand.remote:
        found += _served_steps(stand.remote, prepared)
    for index, worker in stand.crew.decoders.items():
        found += _steps(worker, specs[index])
    workers = next(iter(stand.crew.cores.values()), [])
    return [*found, *_operations(workers[0], prepared)] if workers else found


def _served_steps(remote: Remote, prepared: Prepared) -> Iterator[Paced]:
    """The same of an endpoint: bursts of prompts, as its client sees them. What failed says nothing."""
    name = prepared.system.scenario.stages.generate
    spec, latency_s = prepared.replicas[name], prepared.request_latency_s[name]
    for users in sorted({1, min(spec.pool.max_num_seqs, BURST)}):
        bursts = [remote.burst(users, PROMPT_TOKENS, STEPS) for _ in range(BURSTS)]
        whole = [answers for answers in bursts if not any(answer.fault for answer in answers)]
        windows = [window for answers in whole if (window := steady(answers))]
        if windows:
            predicted = [_decode_s(spec.costs, users, round(window.context_tokens)) for window in windows]
            what = f"{users} sequences at the endpoint"
            measured_s = statistics.median(window.step_s for window in windows)
            yield Paced(DECODE, what, statistics.median(predicted), measured_s)
        if users == 1 and whole:
            tokens = whole[0][0].input_tokens or PROMPT_TOKENS
            chunk_s = spec.costs.segment(StepShape(0, 0, 1, tokens, tokens, tokens * (tokens + 1) // 2)).seconds
            first_s = statistics.median(answers[0].ttft_s for answers in whole)
            yield Paced(CHUNK, f"the first token of {tokens}", latency_s + chunk_s, first_s)


def pace_of(paced: Sequence[Paced]) -> dict[str, float]:
    """By term: how many times longer it takes now than the calibration says."""
    ratios: dict[str, list[float]] = {}
    for one in paced:
        ratios.setdefault(one.term, []).append(one.measured_s / one.predicted_s)
    return {term: geometric_mean(values) for term, values in ratios.items()}


def _steps(worker: Worker, spec: ReplicaSpec) -> Iterator[Paced]:
    """Prompts of one chunk each, then decode steps of a few batch sizes."""
    costs = spec.costs
    assert isinstance(worker.host, DecoderSpec)
    prompt = min(PROMPT_TOKENS, spec.pool.max_num_batched_tokens, worker.host.max_context_tokens // 2)
    steps = min(STEPS, worker.host.max_context_tokens - prompt)
    most = min(spec.pool.max_num_seqs, 8)
    chunk = StepShape(0, 0, 1, prompt, prompt, prompt * (prompt + 1) // 2)
    time.sleep(STEPS_REST.before_s)
    times = [_seconds(worker, [StepItem(slot, 0, prompt)]) for slot in range(most)]
    predicted_s = costs.segment(chunk).seconds - between_s(costs, 1)
    yield Paced(CHUNK, f"a prompt of {prompt} tokens", predicted_s, statistics.fmean(times))
    for decodes in sorted({1, max(1, most // 2), most}):
        time.sleep(STEPS_REST.before_s)
        times = [_seconds(worker, [StepItem(s, prompt + k, 1) for s in range(decodes)]) for k in range(steps)]
        between = between_s(costs, decodes)
        predicted = [_decode_s(costs, decodes, prompt + k + 1) - between for k in range(steps)]
        what = f"{decodes} sequences of {prompt + steps // 2} tokens"
        yield Paced(DECODE, what, statistics.fmean(predicted), statistics.fmean(times))


def _decode_s(costs: StepCosts, decodes: int, context: int) -> float:
    return costs.segment(StepShape(decodes, decodes * context)).seconds


def _operations(worker: Worker, prepared: Prepared) -> Iterator[Paced]:
    """Each operation with the median of the units that its tasks ask for."""
    units: dict[str, list[float]] = {}
    costs = {}
    for task in prepared.drawn.tasks:
        if task.understand_tokens:
            cost = prepared.understand[task.class_name]
            units.setdefault(cost.operation, []).append(task.understand_tokens)
            costs[cost.operation] = cost
        for this in task.rounds:
            if this.call:
                cost = prepared.tools[this.call.tool]
                units.setdefault(cost.operation, []).append(prepared.system.tools[this.call.tool].units)
                costs[cost.operation] = cost
    for operation, asked in sorted(units.items()):
        middle = statistics.median_low(asked)
        times: list[float] = []
        limit_s = worker.host.limit_s(operation) if isinstance(worker.host, ToolSpec) else None
        while len(times) < 3 or (len(times) < CALLS and sum(times) < CALLS_S):
            time.sleep(JOBS_REST.before_s)
            times.append(_seconds(worker, (operation, middle), limit_s))
        what = f"{middle:g} units"
        yield Paced(operation_term(operation), what, costs[operation].work_s(middle), statistics.fmean(times))


def _seconds(worker: Worker, request: object, limit_s: float | None = None) -> float:
    done = worker.call(request, limit_s)
    return done.end_s - done.start_s
