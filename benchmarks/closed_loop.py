"""Means of a closed loop in steady state by arithmetic: what the fits need thousands of times. Scores simulate instead."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hsim.costs.composed import ComposedCosts
from hsim.costs.shapes import StepShape


@dataclass(frozen=True)
class Load:
    """A closed loop: so many sequences at once, of mean prompt and answer lengths; cv is that of the answers."""

    sequences: float
    prompt_tokens: float
    output_tokens: float
    output_cv: float
    budget_tokens: int = 8192


@dataclass(frozen=True)
class Mix:
    """Kinds of step with their weights, which add up to 1."""

    shapes: tuple[StepShape, ...]
    weights: tuple[float, ...]


def mix_of(load: Load) -> Mix:
    """Steps of a steady closed loop: a step carries a geometric number of new prompts, of mean sequences / output."""
    b, prompt = load.sequences, max(1.0, load.prompt_tokens)
    mean_context = prompt + load.output_tokens * (1 + load.output_cv**2) / 2
    per_step = b / load.output_tokens  # prompts that join in a step, on average
    room = max(1.0, load.budget_tokens - b)
    pieces = max(1.0, prompt / room)  # a prompt longer than the budget takes several steps
    rate = per_step * pieces
    ratio = rate / (1 + rate)
    most = max(1, math.ceil(room / min(prompt, room)))
    counts = np.unique(
        np.round(np.concatenate([np.arange(0, 8), np.geomspace(8, max(9, 6 * rate + 8), 8)])).astype(int)
    )
    weights = _geometric(counts, ratio)
    shapes, kept = [], []
    size = prompt / pieces
    for count, weight in zip(counts, weights, strict=True):
        if weight < 1e-6:
            continue
        n = min(int(count), most)
        decodes = max(0, round(b - n)) if b >= 1 else 1
        shapes.append(_shape(decodes, mean_context, n, size, prompt))
        kept.append(weight)
    total = sum(kept)
    return Mix(tuple(shapes), tuple(w / total for w in kept))


def _geometric(counts: np.ndarray, ratio: float) -> np.ndarray:
    """Probability that a geometric count falls nearest to each of these."""
    edges = np.concatenate([counts, [counts[-1] * 4 + 4]])
    return ratio ** edges[:-1] - ratio ** edges[1:]


def _shape(decodes: int, context: float, chunks: int, size: float, prompt: float) -> StepShape:
    before = (prompt - size) / 2
    tokens = round(chunks * size)
    pairs = round(chunks * (size * before + size * (size + 1) / 2))
    return StepShape(decodes, round(decodes * context), chunks, tokens, round(chunks * (before + size)), pairs)


@dataclass(frozen=True)
class Means:
    """What a closed loop does on average. `median_step_s` is the step that a token sees at the median."""

    step_s: float
    median_step_s: float
    tokens_per_s: float
    watts_above_idle: float
    prompt_step_s: float


def means(costs: ComposedCosts, load: Load) -> Means:
    """The closed form of a steady closed loop."""
    mix = mix_of(load)
    segments = [costs.segment(shape) for shape in mix.shapes]
    seconds = np.array([s.seconds for s in segments])
    weights = np.array(mix.weights)
    step_s = float(weights @ seconds)
    order = np.argsort(seconds)
    middle = order[np.searchsorted(np.cumsum(weights[order]), 0.5)]
    joules = float(weights @ np.array([s.joules for s in segments]))
    carrying = [s.seconds for s, shape in zip(segments, mix.shapes, strict=True) if shape.chunks]
    return Means(
        step_s, float(seconds[middle]), load.sequences / step_s, joules / step_s, carrying[0] if carrying else step_s
    )
