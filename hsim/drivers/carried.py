"""Links of live runs whose bytes are really moved, where their profiles say how; on others the modelled time passes."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from simpy.events import Event

from hsim.backends.couriers import Couriers, Manner
from hsim.backends.worker import Worker
from hsim.drivers.prepared import Prepared
from hsim.engine.environment import TASK_GOES_ON
from hsim.engine.life import Pipeline, Send
from hsim.engine.link import Message, Window
from hsim.errors import BackendError, DescriptionError
from hsim.log import Log

if TYPE_CHECKING:
    from hsim.drivers.live import LiveEnvironment


class CarriedLink:
    """One link, on which a courier moves one message after another."""

    def __init__(self, env: LiveEnvironment, log: Log, index: int, courier: Worker) -> None:
        self.env, self.log, self.index, self.courier = env, log, index, courier
        self._waiting: deque[Sequence[Message]] = deque()
        self._moving = False

    def transfer(self, task: int, n_bytes: float) -> Event:
        """Send bytes for a task; the event happens when the last has been read at the other end."""
        message = Message(task, n_bytes, self.env.now, Event(self.env))
        self.move((message,))
        return message.done

    def move(self, messages: Sequence[Message]) -> None:
        """Send messages as one."""
        self._waiting.append(messages)
        self._go()

    def _go(self) -> None:
        if self._moving or not self._waiting:
            return
        self._moving = True
        messages = self._waiting.popleft()
        asked = self.env.submit(self.courier, sum(message.n_bytes for message in messages))
        assert asked.callbacks is not None
        asked.callbacks.append(lambda event: self._came(messages, event))

    def _came(self, messages: Sequence[Message], event: Event) -> None:
        if isinstance(event.value, BackendError):
            raise event.value  # what no link carries, no task will ever get
        for task, n_bytes, start_s, done in messages:
            self.log.transfers.append((task, self.index, start_s, self.env.now, n_bytes, math.nan))  # joules: unknown
            self.env.trigger_at(done, self.env.now, TASK_GOES_ON + task)
        self._moving = False
        self._go()


class Carriers:
    """The couriers of all links that are carried. They end with `close`."""

    def __init__(self, prepared: Prepared) -> None:
        self._stack = contextlib.ExitStack()
        self.couriers: dict[str, Couriers] = {}
        try:
            for name, manner in carried(prepared).items():
                self.couriers[name] = Couriers(manner)
                self._stack.callback(self.couriers[name].close)
        except BaseException:  # Ctrl-C too
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """How, in words."""
        return tuple(f"link {name}: {note}" for name, courier in self.couriers.items() for note in courier.notes)

    def taken_over(self, env: LiveEnvironment, log: Log, pipeline: Pipeline, prepared: Prepared) -> Pipeline:
        """The pipeline with the links that couriers have going through them."""
        links = dict(pipeline.links)
        indices = {name: i for i, name in enumerate(prepared.networks)}
        window_s = prepared.system.scenario.payload.window_s
        made = {name: CarriedLink(env, log, indices[name], c.sender) for name, c in self.couriers.items()}
        for ends, (name, *_) in prepared.system.paths.items():
            if name in made:
                a, b = sorted(ends)
                for way in ((a, b), (b, a)):
                    send: Send = made[name].transfer
                    move: Callable[[Sequence[Message]], None] = made[name].move
                    links[way] = Window(env, window_s, move).transfer if window_s else send
        return replace(pipeline, links=links)

    def close(self) -> None:
        """End all."""
        self._stack.close()


def carried(prepared: Prepared) -> dict[str, Manner]:
    """How the bytes of each network that has a courier are moved."""
    return {name: link.carried_by for name, link in prepared.system.networks.items() if link.carried_by}


def check_carried(prepared: Prepared) -> None:
    """A path over several networks cannot be carried: nothing on one machine lies in between."""
    system, found = prepared.system, carried(prepared)
    for path in system.paths.values():
        if len(path) > 1 and (name := next((n for n in path if n in found), None)):
            what = f"is on a path of {len(path)} networks, and a live run carries single links only"
            raise DescriptionError(
                system.document.where(("networks", name)), what, "use a link without carried_by there"
            )
