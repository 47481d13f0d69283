"""Costs of steps before each of which weights are read that stay elsewhere: in host memory, or in one that is shared."""

from __future__ import annotations

from hsim.costs.composed import Placement
from hsim.costs.shapes import Segment, StepCosts, StepShape
from hsim.description.system import Figures


class StreamedCosts:
    """Seconds and joules of steps, and of the reading before each: StepCosts.

    Kernels wait meanwhile, and the accelerators draw what they do while they serve without one; no cap binds then. An
    engine that reads ahead while it computes takes the longer of the two instead: this is the other bound.
    """

    def __init__(self, costs: StepCosts, placement: Placement, figures: Figures) -> None:
        streamed, chip = placement.streamed, placement.chip
        assert streamed is not None
        busy_w = figures.if_known(chip, "power.floor_w") - figures.if_known(chip, "power.loaded_idle_w")
        self._costs, self._seconds = costs, streamed.seconds
        self._joules = streamed.joules + placement.devices * busy_w * streamed.seconds

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts."""
        segment = self._costs.segment(shape)
        segment.seconds += self._seconds
        segment.joules += self._joules
        return segment
