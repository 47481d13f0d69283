"""Costs of an encoder's passes on an accelerator: the composed laws, with every token of a text attending every other."""

from __future__ import annotations

from hsim.costs.shapes import Segment, StepCosts, StepShape


class EncoderCosts:
    """Seconds and joules of passes over whole texts: StepCosts."""

    def __init__(self, passes: StepCosts) -> None:
        self._passes = passes

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts. A step is a batch of whole texts, so that the n (n + 1) / 2 causal pairs of each become n^2."""
        texts, tokens = shape.chunks, shape.chunk_tokens
        segment = self._passes.segment(StepShape(0, 0, texts, tokens, tokens, 2 * shape.pairs - tokens))
        segment.valid_steps = 1
        return segment
