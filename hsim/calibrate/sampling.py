"""Timing a call honestly: warm-up, samples long enough for the clock, rests as servers have them, mean and spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hsim.backends.worker import cpu_seconds
from hsim.calibrate.work import Reading

Call = Callable[[int], Any]
"""Does the work once; the argument counts the calls, so that each can take other data than the one before."""

WARM_UP_FRACTION = 0.2  # of the time for a unit
SHORTEST_SAMPLE_S = 100e-6  # a sample is this long at least: reading the clock twice takes 0.1 us
FEWEST_SAMPLES = 5
MOST_SAMPLES = 200
UNDISTURBED = 0.97  # of a core: below it, others had it too
ENDS_LEFT_OUT = 0.05  # of the samples at either end, from the mean
GRAPH_S = 2e-3  # calls in one CUDA graph take about so long: launching it (some 8 us) hides in that
MOST_GRAPH_CALLS = 256  # the least of them then use more data than a cache holds


@dataclass(frozen=True)
class Rest:
    """How a core is used while it is measured: `before_s` without work, then work for `burst_s` (at least one sample).

    A core that has rested is slower at first, up to twice on virtual machines (5 ms for a step that takes 3 when called
    without end), and servers below saturation rest. What never rests is measured at its best, which no task sees.
    """

    before_s: float
    burst_s: float


STEPS_REST = Rest(0.3, 0.2)  # as a decoder at 40 % load that serves one task after another
JOBS_REST = Rest(0.25, 0.0)  # as a core that now and then gets a job


def sample(call: Call, seconds: float, own_core: bool = True, rest: Rest | None = None) -> Reading:
    """Time calls on the CPU for about so many seconds, rests included; never fewer than five samples.

    `own_core` says that the call keeps one core busy and does not wait. Where others had that core for part of the
    time, its CPU time is given in place of the wall's: what it takes on a core of its own.
    """
    calls, each_s = _warm_up(call, seconds * WARM_UP_FRACTION, lambda: None)
    inner = max(1, math.ceil(SHORTEST_SAMPLE_S / each_s)) if rest is None or rest.burst_s else 1
    burst_ends_s = -math.inf
    wall: list[float] = []
    cpu: list[float] = []
    until_s = time.perf_counter() + seconds * (1 - WARM_UP_FRACTION)
    while len(wall) < FEWEST_SAMPLES or (time.perf_counter() < until_s and len(wall) < MOST_SAMPLES):
        if rest and time.perf_counter() >= burst_ends_s:
            time.sleep(rest.before_s)
            burst_ends_s = time.perf_counter() + rest.burst_s
        start_s, start_cpu_s = time.perf_counter(), cpu_seconds()
        for _ in range(inner):
            call(calls)
            calls += 1
        cpu.append((cpu_seconds() - start_cpu_s) / inner)
        wall.append((time.perf_counter() - start_s) / inner)
    if not own_core:
        return reading_of(wall)
    fraction = sum(cpu) / sum(wall)
    if fraction >= UNDISTURBED:
        return reading_of(wall, fraction)
    return reading_of(cpu, fraction, (f"others had its core for {1 - fraction:.0%} of the time: CPU time is given",))


def _warm_up(call: Call, seconds: float, synchronise: Callable[[], object]) -> tuple[int, float]:
    """Call at least twice and for so many seconds; how often, and seconds of the quickest call."""
    calls, best_s = 0, math.inf
    until_s = time.perf_counter() + seconds
    while calls < 2 or time.perf_counter() < until_s:
        start_s = time.perf_counter()
        call(calls)
        synchronise()
        best_s = min(best_s, time.perf_counter() - start_s)
        calls += 1
    return calls, max(best_s, 1e-9)


def reading_of(times: list[float], cpu_fraction: float | None = None, notes: tuple[str, ...] = ()) -> Reading:
    """Mean of samples in seconds, a few at either end left out, and their interquartile range.

    The mean, because a run's load and waiting follow from it: on a machine with two paces the median is one of them.
    """
    ordered = np.sort(times)
    ends = math.floor(ENDS_LEFT_OUT * len(ordered))
    low, high = np.quantile(ordered, (0.25, 0.75))
    mean = float(ordered[ends : len(ordered) - ends].mean())
    return Reading(mean, float(high - low), len(times), cpu_fraction, notes=notes)


def sample_cuda(call: Call, seconds: float, device: str, look: Callable[[], object] = lambda: None) -> Reading:
    """Time calls on a GPU by its own events, as a graph so that launching does not count; events alone where not.

    `look` is called once while the GPU is at work, and not while it is timed.
    """
    import torch

    with torch.cuda.device(device):
        _, each_s = _warm_up(call, seconds * WARM_UP_FRACTION, torch.cuda.synchronize)
        together = max(1, min(MOST_GRAPH_CALLS, math.ceil(GRAPH_S / each_s)))
        notes: tuple[str, ...] = ()
        try:
            replay = _graph(call, together)
        except RuntimeError:  # some operations cannot be captured
            replay, notes = _plainly(call, together), ("timed without a CUDA graph",)
        replay()
        look()
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times: list[float] = []
        until_s = time.perf_counter() + seconds * (1 - WARM_UP_FRACTION)
        while len(times) < FEWEST_SAMPLES or (time.perf_counter() < until_s and len(times) < MOST_SAMPLES):
            start.record()
            replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000 / together)
    return reading_of(times, notes=notes)


def _graph(call: Call, together: int) -> Callable[[], None]:
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(together):
            call(i)
    replay: Callable[[], None] = graph.replay
    return replay


def _plainly(call: Call, together: int) -> Callable[[], None]:
    def run() -> None:
        for i in range(together):
            call(i)

    return run
