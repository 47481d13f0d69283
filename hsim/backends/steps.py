"""The words between a driver and a decoder: what a decoder is, and what a step asks of it. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hsim.description.model import ModelArchitecture

Dtype = Literal["bf16", "fp16", "fp32"]


class StepItem(NamedTuple):
    """One sequence's part of a step: the tokens that it adds at positions start, start + 1 ... of its slot.

    A decode adds one, the token that its last step gave; a chunk of a prompt adds many. A number stands for so many
    made-up tokens (the same for the same slot and positions), for prompts of which only the length matters.
    """

    slot: int
    start: int
    tokens: Sequence[int] | int

    @property
    def new_tokens(self) -> int:
        """How many tokens it adds."""
        return self.tokens if isinstance(self.tokens, int) else len(self.tokens)


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's stretching of rotary embeddings (`rope_type: llama3`), in the words of its config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding."""

    theta: float = 500_000.0
    scaling: Llama3Scaling | None = None


@dataclass(frozen=True)
class DecoderShape:
    """A Llama-class decoder.

    `slots` sequences of up to max_context_tokens each have their KV cache preallocated. Weights are random, from the
    seed (and the kind of device): what a step costs does not depend on them. It computes what ModelArchitecture counts:
    Qwen's biases and its norms of queries and keys are left out.
    """

    architecture: ModelArchitecture
    slots: int
    max_context_tokens: int
    dtype: Dtype = "fp32"
    device: str = "cpu"
    seed: int = 0
    rope: Rope = Rope()
    norm_epsilon: float = 1e-5
