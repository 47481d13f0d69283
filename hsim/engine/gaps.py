"""Contexts between the rounds of a task: kept in a replica's KV cache, moved to its host's memory and back, or dropped."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from simpy.events import Event

from hsim.costs.shapes import StepCosts, StepShape
from hsim.engine.environment import EngineEnvironment
from hsim.engine.kv import KvCache
from hsim.engine.link import Link, LinkSpec
from hsim.engine.visits import Prompt
from hsim.log import Log
from hsim.policies.gaps import GapPolicy, GapView

CHOICES = ("cache", "hold", "offload", "drop")
"""As numbers in Log.gaps."""


@dataclass(frozen=True)
class GapSpec:
    """How a replica treats contexts in gaps. `link`, logged as `way`, leads to host memory, of which it may use host_bytes."""

    policy: GapPolicy
    kv_bytes_per_token: float
    host_bytes: float = 0.0
    link: LinkSpec | None = None
    way: str = ""


class Owner(Protocol):
    """Whose KV cache it is."""

    def settle(self) -> None:
        """Bring the books of the cache up to now."""
        ...

    def freed(self) -> None:
        """Blocks have become free."""
        ...


class Gaps:
    """The contexts of one replica whose tasks are with a tool."""

    def __init__(self, env: EngineEnvironment, log: Log, spec: GapSpec, kv: KvCache, owner: Owner) -> None:
        self.env, self.log, self.spec, self.kv, self._owner = env, log, spec, kv, owner
        self._moving: dict[Hashable, int] = {}  # by number of move; the blocks are held until it is done
        self._moves = count()
        self._in_host: dict[Hashable, int] = {}  # tokens, moving ones included
        self._host_used_bytes = 0.0
        self._returning: dict[Prompt, None] = {}
        if spec.link:
            self._out, self._back = (Link(env, log, len(log.links), spec.link) for _ in range(2))
            log.links.append(spec.way)

    def begin(self, prompt: Prompt, costs: StepCosts, others_tokens: int, idle_w: float) -> None:
        """A round has ended and its context lies in free blocks: choose what becomes of it."""
        key = prompt.context_key
        assert key is not None
        tokens = self.kv.cached_tokens(((key, self.kv.capacity_blocks * self.kv.block_tokens),))
        if not tokens:
            return
        choice = self.spec.policy(self._view(prompt, tokens, costs, others_tokens, idle_w))
        prompt.stays = choice in ("hold", "offload")
        if choice == "drop":
            self.kv.drop(key)
        elif prompt.stays:
            self.kv.hold(key)
        if choice == "offload":
            self._move_out(prompt.task, key, tokens)
        self.log.gaps.append((prompt.device, prompt.task, prompt.round, self.env.now, CHOICES.index(choice), tokens))

    def _view(self, prompt: Prompt, tokens: int, costs: StepCosts, others_tokens: int, idle_w: float) -> GapView:
        again = costs.segment(StepShape(0, 0, 1, tokens, tokens, tokens * (tokens + 1) // 2))
        n_bytes, link, kv = tokens * self.spec.kv_bytes_per_token, self.spec.link, self.kv
        return GapView(
            context_tokens=tokens,
            expected_gap_s=prompt.expected_gap_s,
            recompute_s=again.seconds,
            recompute_j=again.joules,
            transfer_s=link.latency_s + link.per_message_s + n_bytes / link.bytes_per_s if link else 0.0,
            transfer_j=n_bytes * link.joules_per_byte if link else 0.0,
            fits_host=link is not None and self._host_used_bytes + n_bytes <= self.spec.host_bytes,
            capacity_tokens=kv.capacity_blocks * kv.block_tokens,
            used_fraction=1 - kv.free_blocks / kv.capacity_blocks,
            others_tokens=others_tokens,
            idle_w=idle_w,
        )

    def _move_out(self, task: int, key: Hashable, tokens: int) -> None:
        n_bytes = tokens * self.spec.kv_bytes_per_token
        self._in_host[key] = tokens
        self._host_used_bytes += n_bytes
        self._moving[key] = number = next(self._moves)
        moved = self._out.transfer(task, n_bytes)
        assert moved.callbacks is not None
        moved.callbacks.append(lambda _: self._moved_out(key, number))

    def _moved_out(self, key: Hashable, number: int) -> None:
        if self._moving.get(key) != number:
            return  # its task was back before, and found it where it was
        del self._moving[key]
        self._drop(key)

    def bring_back(self, prompt: Prompt) -> Event | None:
        """A task's next round has come for its context: the event of its arrival from host memory, if it is there."""
        key = prompt.context_key
        tokens = self._in_host.pop(key, 0)
        self._host_used_bytes -= tokens * self.spec.kv_bytes_per_token
        if not tokens or self._moving.pop(key, None) is not None:
            return None
        # The blocks are taken when the prompt is admitted; until then what came back counts as in the queue with it.
        prompt.brought_tokens, prompt.prefix = tokens, ()
        self._returning[prompt] = None
        back = self._back.transfer(prompt.task, tokens * self.spec.kv_bytes_per_token)
        assert back.callbacks is not None
        back.callbacks.append(lambda _: self._returning.pop(prompt, None))
        return back

    def lose(self) -> None:
        """The server or its engine has broken down: nothing is in host memory, and what comes back finds no cache."""
        self._in_host.clear()
        self._moving.clear()
        self._host_used_bytes = 0.0
        for prompt in self._returning:
            prompt.brought_tokens = 0

    def abandon(self, key: Hashable) -> None:
        """A task will not come back for its context."""
        tokens = self._in_host.pop(key, 0)
        self._host_used_bytes -= tokens * self.spec.kv_bytes_per_token
        self._moving.pop(key, None)
        if self.kv.is_held(key):
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self._owner.settle()
        self.kv.drop(key)
        self._owner.freed()

    @property
    def at_rest(self) -> bool:
        """Whether no context is kept in host memory."""
        return not self._in_host
