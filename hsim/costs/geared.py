"""Costs of steps of which there are several, one for each power cap: what a governor shifts between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hsim.costs.shapes import Segment, StepCosts, StepShape


@dataclass
class Geared:
    """StepCosts that are those of one of `gears`, the last unless somebody shifts."""

    gears: Sequence[StepCosts]
    level: int = -1

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts."""
        return self.gears[self.level].segment(shape)
