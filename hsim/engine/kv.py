"""The KV cache of a replica: blocks of tokens, and the prefixes that free blocks still hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from hsim.engine.visits import Prompt

Prefix = Sequence[tuple[Hashable, int]]
"""Keys of consecutive pieces of a prompt, and the tokens of each: equal keys stand for equal tokens."""


class KvCache:
    """Counts blocks. With prefix caching, what a freed block holds stays until the block is needed: least recent first.

    `free_blocks` are those that no sequence uses; cached pieces lie in them and are evicted as they are taken. A
    prompt's blocks are its own, or pieces that it shares with whoever has the same prefix.
    """

    def __init__(self, capacity_blocks: int, block_tokens: int, prefix_caching: bool) -> None:
        self.capacity_blocks, self.block_tokens, self.prefix_caching = capacity_blocks, block_tokens, prefix_caching
        self.free_blocks = capacity_blocks
        self.evicted_blocks = 0
        self._shared: dict[Hashable, list[int]] = {}  # key -> [sequences that use it, blocks]
        self._cached: OrderedDict[Hashable, int] = OrderedDict()  # key -> blocks, least recently used first
        self._cached_blocks = 0
        self._kept: dict[Hashable, int] = {}  # contexts whose blocks are not free while their tasks are elsewhere

    def blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_tokens)

    def take(self, blocks: int) -> None:
        """Use so many free blocks, evicting what they hold."""
        assert blocks <= self.free_blocks, f"{blocks} blocks asked for, {self.free_blocks} free"
        self.free_blocks -= blocks
        while self._cached_blocks > self.free_blocks:
            key, held = next(iter(self._cached.items()))
            gone = min(held, self._cached_blocks - self.free_blocks)
            self._cached_blocks -= gone
            self.evicted_blocks += gone
            if gone == held:
                del self._cached[key]
            else:
                self._cached[key] = held - gone  # a piece is eaten from its end

    def cached_tokens(self, prefix: Prefix) -> int:
        """Tokens of a prefix that this cache holds."""
        found = 0
        for key, tokens in prefix:
            here = min(tokens, self._held(key) * self.block_tokens)
            found += here
            if here < tokens:
                break
        return found

    def match(self, prompt: Prompt) -> None:
        """Note what a waiting prompt would find here, and how many of those blocks are in use already.

        Whole blocks count, and the last token is always computed, since its logits are needed.
        """
        found = prompt.brought_tokens or self.cached_tokens(prompt.prefix)
        if not found:
            prompt.prompt_left, prompt.held_blocks = prompt.prefill_tokens, 0
            return
        usable = min(found, prompt.prefill_tokens - 1) // self.block_tokens
        in_use = sum(self._shared[key][1] for key, _ in prompt.prefix if key in self._shared)
        if self._kept:
            in_use += sum(self._kept.get(key, 0) for key, _ in prompt.prefix)
        prompt.prompt_left = prompt.prefill_tokens - usable * self.block_tokens
        prompt.held_blocks = min(usable, in_use)

    def admit(self, prompt: Prompt) -> None:
        """An admitted prompt uses the pieces that `match` found."""
        wanted = (prompt.prefill_tokens - prompt.prompt_left) // self.block_tokens
        held = 0
        for key, tokens in prompt.prefix:
            if held >= wanted:
                break
            if (shared := self._shared.get(key)) is not None:
                shared[0] += 1
                held += shared[1]
            else:
                if key in self._kept:
                    self.let_go(key)
                cached = self._cached.pop(key)
                blocks = min(cached, tokens // self.block_tokens)  # what lies beyond the piece is forgotten
                self._cached_blocks -= cached
                self.free_blocks -= blocks
                self._shared[key] = [1, blocks]
                held += blocks
            prompt.shared_keys.append(key)
        prompt.held_blocks, prompt.own_blocks = held, 0

    def grow(self, prompt: Prompt, tokens: int) -> None:
        """Give a prompt the blocks that it lacks to hold so many tokens."""
        lacking = -(-tokens // self.block_tokens) - prompt.held_blocks
        if lacking > 0:
            self.take(lacking)
            prompt.held_blocks += lacking
            prompt.own_blocks += lacking

    def publish(self, prompt: Prompt) -> None:
        """What a prompt has computed of its prefix can be found by others from now on."""
        for key, tokens in prompt.prefix[len(prompt.shared_keys) :]:
            blocks = tokens // self.block_tokens
            if not blocks or blocks > prompt.own_blocks or self._held(key):
                break
            self._shared[key] = [1, blocks]
            prompt.shared_keys.append(key)
            prompt.own_blocks -= blocks

    def release(self, prompt: Prompt, tokens: int) -> None:
        """A sequence of so many tokens leaves. Its pieces stay cached, and its whole context if it has a key for it.

        Blocks that it took while decoding were taken for the whole batch; here it learns which are its own.
        """
        lacking = -(-tokens // self.block_tokens) - prompt.held_blocks
        if lacking > 0:
            prompt.held_blocks += lacking
            prompt.own_blocks += lacking
        for key in reversed(prompt.shared_keys):  # the end of a prefix is evicted before its beginning
            shared = self._shared[key]
            shared[0] -= 1
            if not shared[0]:
                del self._shared[key]
                self._keep(key, shared[1])
                self.free_blocks += shared[1]
        self.free_blocks += prompt.own_blocks
        key = prompt.context_key
        if self.prefix_caching and key is not None and key not in self._shared:
            self._keep(key, min(tokens // self.block_tokens, prompt.held_blocks))
        prompt.shared_keys.clear()
        prompt.own_blocks = prompt.held_blocks = 0

    def hold(self, key: Hashable) -> None:
        """A cached piece keeps its blocks: they are free no more."""
        blocks = self._cached.pop(key)
        self._cached_blocks -= blocks
        self.free_blocks -= blocks
        self._kept[key] = blocks

    def let_go(self, key: Hashable) -> None:
        """A piece that was held is one among the cached again, the last to be evicted."""
        blocks = self._kept.pop(key)
        self.free_blocks += blocks
        self._keep(key, blocks)

    def let_go_oldest(self) -> bool:
        """Nobody can go on for want of blocks: let go of what has been held longest. Whether there was anything."""
        for key in self._kept:
            self.let_go(key)
            return True
        return False

    def drop(self, key: Hashable) -> None:
        """A piece that nobody uses is lost."""
        if key in self._kept:
            self.let_go(key)
        self._cached_blocks -= self._cached.pop(key, 0)

    def is_held(self, key: Hashable) -> bool:
        """Whether a piece keeps its blocks while nobody uses it."""
        return key in self._kept

    def forget(self) -> None:
        """What free blocks held is lost."""
        self._cached.clear()
        self._cached_blocks = 0

    def lose(self) -> None:
        """Everything is lost, whoever uses it."""
        self.forget()
        self._shared.clear()
        self._kept.clear()
        self.free_blocks = self.capacity_blocks

    def _held(self, key: Hashable) -> int:
        shared = self._shared.get(key)
        return shared[1] if shared else self._cached.get(key, 0) or self._kept.get(key, 0)

    def _keep(self, key: Hashable, blocks: int) -> None:
        self._cached_blocks += blocks - self._cached.pop(key, 0)
        if blocks:
            self._cached[key] = blocks
