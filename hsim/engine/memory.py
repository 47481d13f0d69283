"""Memory outside of accelerators: what keeps contexts there, for one replica or for several that share it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial

from simpy.events import Event

from hsim.engine.environment import EngineEnvironment
from hsim.engine.link import Link, LinkSpec, Network
from hsim.log import Log

Move = Callable[[int, float], Event]
"""Moves bytes for a task: (task, bytes) -> the event of their arrival."""


@dataclass(frozen=True)
class Way:
    """How a replica's bytes go to a memory, and come back."""

    out: Move
    back: Move


class Store:
    """Contexts by their keys, and the bytes that they take: never more than there are."""

    def __init__(self, capacity_bytes: float) -> None:
        self.capacity_bytes, self.used_bytes = capacity_bytes, 0.0
        self._kept: dict[Hashable, tuple[int, float]] = {}

    def has_room(self, n_bytes: float) -> bool:
        """Whether so many more fit."""
        return self.used_bytes + n_bytes <= self.capacity_bytes

    def put(self, key: Hashable, tokens: int, n_bytes: float) -> None:
        """Keep a context."""
        assert key not in self._kept, f"{key} is kept already"
        assert self.has_room(n_bytes), f"{n_bytes} bytes do not fit beside {self.used_bytes} of {self.capacity_bytes}"
        self._kept[key] = tokens, n_bytes
        self._use(n_bytes)

    def take(self, key: Hashable) -> int:
        """Give a context up; the tokens that it has, 0 where it is not here."""
        tokens, n_bytes = self._kept.pop(key, (0, 0.0))
        if tokens:
            self._use(-n_bytes)
        return tokens

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._kept)

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    def _use(self, n_bytes: float) -> None:
        self.used_bytes = self.used_bytes + n_bytes if self._kept else 0.0  # empty: rounding does not stay

    def __len__(self) -> int:
        return len(self._kept)


def own_way(env: EngineEnvironment, log: Log, name: str, link: LinkSpec) -> Way:
    """A way that one replica has for itself."""
    out, back = (Link(env, log, len(log.links), link) for _ in range(2))
    log.links.append(name)
    return Way(out.transfer, back.transfer)


class LoggedStore(Store):
    """A store that several share: what it holds is written to the log at each change."""

    def __init__(self, env: EngineEnvironment, log: Log, name: str, capacity_bytes: float) -> None:
        super().__init__(capacity_bytes)
        self._env, self._log, self._number = env, log, len(log.memories)
        log.memories.append(name)

    def _use(self, n_bytes: float) -> None:
        super()._use(n_bytes)
        self._log.memory.append((self._number, self._env.now, self.used_bytes))


class SharedMemory:
    """One memory for several replicas: each reaches it over a way of its own, if it has one, and a link that all share.

    Both go both ways, and moves share them max-min fairly.
    """

    def __init__(self, env: EngineEnvironment, log: Log, name: str, spec: MemorySpec) -> None:
        self.name, self.store = name, LoggedStore(env, log, name, spec.capacity_bytes)
        self._log, self._network = log, Network(env, log, {})
        self._shared = [self._link(name, spec.link) for _ in range(2)]

    def way_of(self, name: str, own: LinkSpec | None) -> Way:
        """The way of one more replica, its own part called so."""
        paths = [[link] for link in self._shared]
        if own is not None:
            paths = [[self._link(name, own), *path] for path in paths]
        return Way(*(partial(self._network.transfer, path=path) for path in paths))

    def _link(self, name: str, spec: LinkSpec) -> int:
        self._log.links.append(name)
        self._network.specs[len(self._log.links) - 1] = spec
        return len(self._log.links) - 1


@dataclass(frozen=True)
class MemorySpec:
    """A memory that replicas share, and the link to it."""

    capacity_bytes: float
    link: LinkSpec
