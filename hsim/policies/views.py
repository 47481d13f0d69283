"""All that a policy may see. No true output length, no future: both are for the engine alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class DeviceView(NamedTuple):
    """A device as of its last step boundary.

    `outstanding` visits wait or run; `outstanding_tokens` are prompt tokens still to prefill plus answer tokens
    that the running and waiting visits may yet ask for (their declared limits).
    """

    outstanding: int
    outstanding_tokens: int


class PoolView(NamedTuple):
    """A pool's devices, in order, and how many visits it has routed so far."""

    devices: Sequence[DeviceView]
    routed: int


class VisitView(NamedTuple):
    """A visit to be routed."""

    task: int
    round: int
    input_tokens: int
    max_output_tokens: int


class PromptView(Protocol):
    """A prompt that waits or is being prefilled."""

    @property
    def prompt_left(self) -> int:
        """Prompt tokens not yet prefilled."""
        ...

    @property
    def reserve_tokens(self) -> int:
        """Tokens of KV cache that it needs in all: its prompt and its declared limit."""
        ...


class BatchView(NamedTuple):
    """A replica at a step boundary: its batch, its queue and its limits."""

    decodes: int
    prefilling: Sequence[PromptView]
    waiting: Sequence[PromptView]
    free_kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
