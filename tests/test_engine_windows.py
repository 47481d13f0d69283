"""Context within a window, as the engine keeps it in running sums: against a walk over the batch, under hypothesis."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import generate_only, prepared_of, run

from hsim.costs.shapes import Segment, StepShape
from hsim.drivers.prepared import Prepared
from hsim.engine.replica import Replica

MODEL = "gemma-3-1b"  # 512 tokens of window in 22 of 26 layers


def windowed(rate_per_s: float, median: int, answers: int, **pool: Any) -> Prepared:
    data = generate_only(**pool) | {"model": MODEL}
    data["workload"] |= {"tasks": 16, "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s}}
    data["workload"]["classes"]["chat"] = {
        "input_tokens": {"kind": "lognormal", "median": median, "p95": 3 * median},
        "output_tokens": {"kind": "lognormal", "median": answers, "p95": 4 * answers}, "max_output_tokens": 600,
    }  # fmt: skip
    return prepared_of(data)


class Watching:
    """Costs that compare each shape with a walk over their replica's batch before they answer."""

    def __init__(self, costs: Any, tokens: int) -> None:
        self.costs, self.tokens, self.reached = costs, tokens, Counter[str]()
        self.replica: Replica | None = None

    def segment(self, shape: StepShape) -> Segment:
        replica = self.replica
        assert replica is not None
        contexts = [p.prefill_tokens + 1 + replica._step - p.first_step for p in replica.running if p.decoding]
        growing = [c for c in contexts if c < self.tokens]
        assert shape.context_tokens == sum(contexts)
        assert shape.window_context_tokens == sum(min(c, self.tokens) for c in contexts)
        assert shape.window_growing == len(growing)
        assert shape.window_steps == min((self.tokens - c for c in growing), default=math.inf)
        self.reached["both"] += 0 < len(growing) < len(contexts)
        self.reached["pairs"] += shape.window_pairs not in (-1, shape.pairs)
        return self.costs.segment(shape)


@settings(max_examples=25)
@given(st.sampled_from([2, 30, 300]), st.integers(50, 700), st.integers(20, 200), st.sampled_from([64, 300, 2048]))
def test_window_sums_are_those_of_a_walk_over_the_batch(rate: float, median: int, answers: int, budget: int) -> None:
    prepared = windowed(rate, median, answers, max_num_batched_tokens=budget)
    spec = prepared.replicas["decode"]
    watch = Watching(spec.costs, 512)
    object.__setattr__(spec, "costs", watch)
    original = Replica.__init__

    def remember(self: Replica, *args: Any) -> None:
        original(self, *args)
        watch.replica = self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replica, "__init__", remember)
        for stepwise in (False, True):
            run(prepared, stepwise)
    reached.update(watch.reached)


reached: Counter[str] = Counter()


def test_both_sides_of_the_window_were_reached() -> None:
    assert reached["both"] > 10
    assert reached["pairs"]


@settings(max_examples=10)
@given(st.sampled_from([5, 100]), st.integers(100, 600), st.integers(20, 200))
def test_coalesced_equals_step_by_step_with_a_window(rate: float, median: int, answers: int) -> None:
    prepared = windowed(rate, median, answers)
    coalesced, stepwise = run(prepared), run(prepared, stepwise=True)
    assert coalesced.visits["served_s"] == pytest.approx(stepwise.visits["served_s"], rel=1e-9)
    assert coalesced.visits["dynamic_j"] == pytest.approx(stepwise.visits["dynamic_j"], rel=1e-9)
    assert len(coalesced.steps["steps"]) < len(stepwise.steps["steps"])


@given(st.integers(0, 2000), st.integers(1, 3000), st.integers(1, 1200))
def test_pairs_within_a_window_are_those_of_each_query(before: int, chunk: int, tokens: int) -> None:
    from hsim.engine.windows import WindowSums

    assert WindowSums(tokens).pairs(before, chunk) == sum(min(before + i, tokens) for i in range(1, chunk + 1))
