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
from hsim.engine.link import LinkSpec
from hsim.engine.memory import SharedMemory, Store, Way, own_way
from hsim.engine.visits import Prompt
from hsim.log import Gap, Log
from hsim.policies.gaps import GapPolicy, GapView


@dataclass(frozen=True)
class GapSpec:
    """How a replica treats contexts in gaps.

    `link`, logged as `way`, leads to host memory, of which it may use host_bytes; or on to `memory`, which it shares, over
    the link `beyond`.
    """

    policy: GapPolicy
    kv_bytes_per_token: float
    host_bytes: float = 0.0
    link: LinkSpec | None = None
    way: str = ""
    memory: str | None = None
    beyond: LinkSpec | None = None


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
        self._shared = spec.memory is not None
        self._store, self._way = Store(0.0), Way(_nowhere, _nowhere)  # contexts there, moving ones included
        self._returning: dict[Prompt, None] = {}
        if spec.link and not self._shared:
            self._store, self._way = Store(spec.host_bytes), own_way(env, log, spec.way, spec.link)

    def share(self, memory: SharedMemory) -> None:
        """From now on contexts go to a memory that other replicas use too."""
        self._store, self._way = memory.store, memory.way_of(self.spec.way, self.spec.link)

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
        self.log.gaps.append((prompt.device, prompt.task, prompt.round, self.env.now, Gap[choice.upper()], tokens))

    def _view(self, prompt: Prompt, tokens: int, costs: StepCosts, others_tokens: int, idle_w: float) -> GapView:
        again = costs.segment(StepShape(0, 0, 1, tokens, tokens, tokens * (tokens + 1) // 2))
        n_bytes, kv = tokens * self.spec.kv_bytes_per_token, self.kv
        links = [link for link in (self.spec.link, self.spec.beyond) if link]
        return GapView(
            context_tokens=tokens,
            expected_gap_s=prompt.expected_gap_s,
            recompute_s=again.seconds,
            recompute_j=again.joules,
            transfer_s=sum(link.latency_s for link in links)
            + max((link.per_message_s + n_bytes / link.bytes_per_s for link in links), default=0.0),
            transfer_j=sum(n_bytes * link.joules_per_byte for link in links),
            fits_host=bool(links) and self._store.has_room(n_bytes),
            capacity_tokens=kv.capacity_blocks * kv.block_tokens,
            used_fraction=1 - kv.free_blocks / kv.capacity_blocks,
            others_tokens=others_tokens,
            idle_w=idle_w,
        )

    def _move_out(self, task: int, key: Hashable, tokens: int) -> None:
        n_bytes = tokens * self.spec.kv_bytes_per_token
        self._store.put(key, tokens, n_bytes)
        self._moving[key] = number = next(self._moves)
        moved = self._way.out(task, n_bytes)
        assert moved.callbacks is not None
        moved.callbacks.append(lambda _: self._moved_out(key, number))

    def _moved_out(self, key: Hashable, number: int) -> None:
        if self._moving.get(key) != number:
            return  # its task was back before, and found it where it was
        del self._moving[key]
        self._drop(key)

    def gone(self, prompt: Prompt) -> bool:
        """Whether a prompt's context has left for a memory from which any replica can have it."""
        key = prompt.context_key
        return self._shared and key in self._store and key not in self._moving

    def bring_back(self, prompt: Prompt) -> Event | None:
        """A task's next round has come for its context: the event of its arrival from memory, if it is there."""
        key = prompt.context_key
        tokens = self._store.take(key)
        if not tokens or self._moving.pop(key, None) is not None:
            return None
        # The blocks are taken when the prompt is admitted; until then what came back counts as in the queue with it.
        prompt.brought_tokens, prompt.prefix = tokens, ()
        self._returning[prompt] = None
        back = self._way.back(prompt.task, tokens * self.spec.kv_bytes_per_token)
        assert back.callbacks is not None
        back.callbacks.append(lambda _: self._returning.pop(prompt, None))
        return back

    def lose(self) -> None:
        """The server or its engine has broken down: its own memory is empty, what was on its way is gone, and what comes back
        finds no cache. A memory that is shared keeps what it has.
        """
        for key in tuple(self._moving if self._shared else self._store):
            self._store.take(key)
        self._moving.clear()
        for prompt in self._returning:
            prompt.brought_tokens = 0

    def abandon(self, key: Hashable) -> None:
        """A task will not come back for its context."""
        self._store.take(key)
        self._moving.pop(key, None)
        if self.kv.is_held(key):
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self._owner.settle()
        self.kv.drop(key)
        self._owner.freed()

    @property
    def at_rest(self) -> bool:
        """Whether no context is in the memory of its server, or on its way to one that others can reach."""
        return not (self._moving if self._shared else self._store)


def _nowhere(task: int, n_bytes: float) -> Event:
    raise AssertionError(f"task {task} has no memory to go to")
