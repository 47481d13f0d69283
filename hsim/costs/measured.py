"""Measured costs of generation: steps read from a table that was calibrated on this chip, model and engine.

Between the table's points seconds are linear in context, in decoding sequences and in chunk tokens; beyond its last
point of sequences or chunk tokens they grow in proportion. Joules follow from bytes, FLOPs and busy seconds by the
chip's power figures, as composed costs have them; where one is unknown they are nan, never 0, and `energy_known` is
False.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from hsim.costs.composed import Placement, Timing
from hsim.costs.shapes import Segment, StepShape
from hsim.description.hardware import StepTable
from hsim.description.system import Figures


class Joules(Protocol):
    """What turns seconds into a segment with joules: ComposedCosts does."""

    def with_joules(self, shape: StepShape, timing: Timing) -> Segment:
        """The segment of a step that takes so long."""
        ...


class TimedWhole:
    """Joules of a device that was only ever timed whole (a served endpoint): of busy seconds, output tokens and the FLOPs
    of its weights. nan where a figure is unknown.
    """

    def __init__(self, placement: Placement, figures: Figures) -> None:
        chip = placement.chip
        above_idle_w = figures.if_known(chip, "power.floor_w") - figures.if_known(chip, "power.loaded_idle_w")
        self._busy_w = placement.devices * above_idle_w
        self._token_j = 2.0 * placement.model.parameters * figures.if_known(chip, "power.joules_per_flop")
        self._output_j = figures.if_known(chip, "power.joules_per_output_token")

    def with_joules(self, shape: StepShape, timing: Timing) -> Segment:
        """See Joules."""
        joules = self._busy_w * timing.seconds + self._token_j * shape.new_tokens + self._output_j * shape.decodes
        growth_j, context_j = self._busy_w * timing.growth_s, self._busy_w * timing.context_step_s
        return Segment(timing.seconds, timing.growth_s, joules, growth_j, context_j, timing.valid_steps)


class MeasuredCosts:
    """Seconds of steps of one replica from a table: StepCosts."""

    def __init__(self, table: StepTable, joules: Joules) -> None:
        self.table, self._joules = table, joules

    @property
    def energy_known(self) -> bool:
        """Whether the chip's power figures are known, so that segments carry joules."""
        shape = StepShape(1, self.table.contexts[0])
        return not math.isnan(self._joules.with_joules(shape, Timing(1.0, 0.0, 0.0, math.inf)).joules)

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts. Affine until the mean context reaches the table's next point."""
        seconds, growth_s, context_step_s, valid_steps = self.table.between(shape.sequences), 0.0, 0.0, math.inf
        if shape.decodes:
            decode_s, context_step_s, valid_steps = self._decode(shape.decodes, shape.context_tokens)
            seconds += decode_s
            growth_s = context_step_s * shape.decodes
        if shape.chunks:
            fresh_s, pair_s, later_s = self._chunk(shape.chunk_tokens)
            seconds += fresh_s + pair_s * shape.pairs + self.table.extra_chunk_s * (shape.chunks - 1)
            growth_s += pair_s * shape.pairs_growth
            if across_s := self.table.across_s * shape.chunk_tokens:
                # The part of the chunks' contexts that is not a chunk's own.
                other_chunks = (shape.chunks - 1) / shape.chunks
                seconds += across_s * (shape.context_tokens + other_chunks * shape.chunk_context_tokens)
                growth_s += across_s * (shape.decodes + other_chunks * shape.chunk_tokens)
                context_step_s += across_s
            if shape.chunk_context_tokens > shape.chunk_tokens:
                seconds += later_s
            else:
                valid_steps = 1.0  # the next chunk of the prompt has what came before it to attend
        if shape.decodes and shape.chunks:
            seconds += self._mixed(shape.decodes, shape.chunk_tokens)
        return self._joules.with_joules(shape, Timing(seconds, growth_s, context_step_s, valid_steps))

    def _decode(self, decodes: int, context_tokens: int) -> tuple[float, float, float]:
        """Seconds of a decode step, seconds for each further token of context, and steps until the next point."""
        table = self.table
        context = context_tokens / decodes
        row, weight, scale = _bracket(table.decodes, decodes)
        column = min(bisect_right(table.contexts, context), len(table.contexts) - 1)
        low, high = table.contexts[max(column - 1, 0)], table.contexts[column]
        steps = math.floor(high - context) + 1.0 if context < high else math.inf
        if column == 0:  # below the first point: as there
            return scale * self._decode_at(row, weight, 0), 0.0, steps
        at_low, at_high = (self._decode_at(row, weight, c) for c in (column - 1, column))
        slope_s = (at_high - at_low) / (high - low)
        return scale * (at_low + slope_s * (context - low)), scale * slope_s / decodes, steps

    def _decode_at(self, row: int, weight: float, column: int) -> float:
        grid = self.table.decode_s
        return (1 - weight) * grid[row][column] + weight * grid[min(row + 1, len(grid) - 1)][column]

    def _chunk(self, tokens: int) -> tuple[float, float, float]:
        """Seconds of so many prompt tokens before attention, of each pair that they attend, and of later chunks."""
        table = self.table
        row, weight, scale = _bracket(table.chunk_tokens, tokens)
        above = min(row + 1, len(table.chunk_s) - 1)

        def between(values: Sequence[float]) -> float:
            return (1 - weight) * values[row] + weight * values[above]

        return scale * between(table.chunk_s), between(table.pair_s), scale * between(table.later_s)

    def _mixed(self, decodes: int, chunk_tokens: int) -> float:
        """Seconds that a step of both takes more than the two apart; nothing is said beyond the measured corner."""
        table = self.table
        i, across, _ = _bracket(table.mixed_decodes, decodes)
        j, along, _ = _bracket(table.mixed_chunk_tokens, chunk_tokens)
        grid = table.mixed_s
        upper, right = min(i + 1, len(grid) - 1), min(j + 1, len(grid[0]) - 1)
        low = (1 - along) * grid[i][j] + along * grid[i][right]
        high = (1 - along) * grid[upper][j] + along * grid[upper][right]
        return (1 - across) * low + across * high


def scaled(table: StepTable, factor: float) -> StepTable:
    """The table with all its seconds multiplied: the same, in a world in which its `scale` is another."""
    if factor == 1.0:
        return table
    grids = {
        name: tuple(tuple(x * factor for x in row) for row in getattr(table, name)) for name in ("decode_s", "mixed_s")
    }
    lines = {name: tuple(x * factor for x in getattr(table, name)) for name in ("chunk_s", "pair_s", "later_s")}
    named = ("extra_chunk_s", "across_s", "between_s", "between_per_sequence_s")
    alone = {name: getattr(table, name) * factor for name in named}
    return table.model_copy(update={**grids, **lines, **alone})


def _bracket(axis: Sequence[int], value: float) -> tuple[int, float, float]:
    """The point below a value, the weight of the one above, and how many times beyond the last point it lies."""
    if value <= axis[0]:
        return 0, 0.0, 1.0
    if value >= axis[-1]:
        return len(axis) - 1, 0.0, value / axis[-1]
    i = bisect_right(axis, value) - 1
    return i, (value - axis[i]) / (axis[i + 1] - axis[i]), 1.0
