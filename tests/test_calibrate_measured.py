"""Measured step costs: exact at their points, linear between them, and one and the same however a run is cut."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsim.costs.composed import Timing
from hsim.costs.measured import MeasuredCosts
from hsim.costs.shapes import Segment, StepShape
from hsim.description.hardware import StepTable
from hsim.description.model import ModelArchitecture

MODEL = ModelArchitecture(
    name="toy", layers=2, hidden_size=64, intermediate_size=128, attention_heads=4, kv_heads=2, head_dim=16,
    vocabulary=256, max_context_tokens=4096, source="made up",
)  # fmt: skip


class NoMeter:
    """Joules of a chip whose watts nobody knows."""

    def with_joules(self, shape: StepShape, timing: Timing) -> Segment:
        return Segment(timing.seconds, timing.growth_s, math.nan, math.nan, math.nan, timing.valid_steps)


def table(**changes: Any) -> StepTable:
    fields: dict[str, Any] = {
        "name": "t", "kind": "step-table", "engine": "e", "chip": "c", "model": MODEL, "precision": "fp32",
        "source": "made up", "median_error_fraction": None, "p90_error_fraction": None,
        "decodes": (1, 4, 16), "contexts": (16, 128, 1024),
        "decode_s": ((1e-3, 2e-3, 5e-3), (3e-3, 5e-3, 9e-3), (8e-3, 9e-3, 30e-3)),
        "chunk_tokens": (1, 32, 256), "chunk_s": (1e-3, 4e-3, 30e-3), "pair_s": (1e-6, 2e-7, 1e-7), "later_s": (0.0, 1e-4, 3e-4),
        "extra_chunk_s": 2e-4, "across_s": 1e-9, "between_s": 1e-4, "between_per_sequence_s": 3e-6,
        "mixed_decodes": (1, 16), "mixed_chunk_tokens": (32, 256), "mixed_s": ((-5e-4, -6e-4), (-2e-3, -3e-3)),
    }  # fmt: skip
    return StepTable(**(fields | changes))


COSTS = MeasuredCosts(table(), NoMeter())


def test_exact_at_the_points() -> None:
    for i, decodes in enumerate((1, 4, 16)):
        for j, context in enumerate((16, 128, 1024)):
            seconds = COSTS.segment(StepShape(decodes, decodes * context)).seconds
            assert seconds == pytest.approx(1e-4 + 3e-6 * decodes + COSTS.table.decode_s[i][j], rel=1e-12)
    for i, tokens in enumerate((1, 32, 256)):
        pairs = tokens * (tokens + 1) // 2
        seconds = COSTS.segment(StepShape(0, 0, 1, tokens, tokens, pairs)).seconds
        assert seconds == pytest.approx(1.03e-4 + COSTS.table.chunk_s[i] + pairs * COSTS.table.pair_s[i], rel=1e-12)


def test_linear_between_points_and_proportional_beyond() -> None:
    def seconds(decodes: int, context: int) -> float:
        return COSTS.segment(StepShape(decodes, decodes * context)).seconds - COSTS.table.between(decodes)

    assert seconds(1, 72) == pytest.approx(1.5e-3)
    assert seconds(10, 16) == pytest.approx(5.5e-3)  # half way from 4 to 16 sequences
    assert seconds(10, 72) == pytest.approx((4e-3 + 8.5e-3) / 2)
    assert seconds(32, 128) == pytest.approx(18e-3)  # twice the last point's sequences, twice its seconds
    assert seconds(1, 1920) == pytest.approx(5e-3 + 3e-3)  # the last slope goes on
    assert seconds(1, 1) == pytest.approx(1e-3)  # as at the first point


shapes = st.builds(
    lambda decodes, context, chunk, history, chunks: StepShape(
        decodes, decodes * context + decodes // 2, chunks * (chunk > 0), chunk, chunk and history + chunk,
        chunk * history + chunk * (chunk + 1) // 2, chunk * chunk,
    ),
    st.integers(1, 40), st.integers(1, 1500), st.sampled_from([0, 1, 31, 32, 100, 600]), st.integers(0, 900),
    st.sampled_from([1, 2, 5]),
)  # fmt: skip


@settings(deadline=None)
@given(shapes, st.integers(0, 3000))
def test_a_segment_says_what_each_of_its_steps_would_say(shape: StepShape, step: int) -> None:
    """The law behind coalescing: cutting a segment anywhere and asking again changes nothing."""
    segment = COSTS.segment(shape)
    step = int(min(step, segment.valid_steps - 1))
    later = StepShape(
        shape.decodes, shape.context_tokens + step * shape.decodes, shape.chunks, shape.chunk_tokens,
        shape.chunk_context_tokens + step * shape.chunk_tokens, shape.pairs + step * shape.pairs_growth, shape.pairs_growth,
    )  # fmt: skip
    assert COSTS.segment(later).seconds == pytest.approx(segment.seconds + step * segment.seconds_growth, rel=1e-9)
    assert segment.seconds > 0
    assert segment.seconds_growth >= 0


@settings(deadline=None)
@given(shapes)
def test_segments_end_where_the_slope_changes(shape: StepShape) -> None:
    segment = COSTS.segment(shape)
    context = shape.context_tokens / shape.decodes
    if shape.chunks and shape.chunk_context_tokens == shape.chunk_tokens:
        assert segment.valid_steps == 1  # the prompt's next chunk is a later one
    elif segment.valid_steps == math.inf:
        assert context >= 1024
    else:
        last = context + segment.valid_steps - 1
        assert any(last <= point < last + 1 for point in (16, 128, 1024))


def test_unknown_energy_is_nan_and_says_so() -> None:
    assert not COSTS.energy_known
    assert math.isnan(COSTS.segment(StepShape(2, 64)).joules)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decodes": (4, 1, 16)}, "must rise"),
        ({"decode_s": ((1e-3, 1e-3, 1e-3),)}, "3 rows of 3"),
        ({"chunk_s": (1e-3,)}, "3 values"),
    ],
)
def test_a_table_that_does_not_fit_its_axes_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        table(**changes)
