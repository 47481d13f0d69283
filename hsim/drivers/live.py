"""Live runs: the same engine on the wall clock, whose work is done by backends instead of being waited for."""

from __future__ import annotations

import math
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from simpy.core import EmptySchedule
from simpy.events import NORMAL, Event, EventPriority

from hsim.drivers.clocks import Clock, WallClock
from hsim.drivers.prepared import Prepared
from hsim.drivers.simulated import build
from hsim.engine.environment import EngineEnvironment
from hsim.engine.executor import Executor, ModelledTime
from hsim.engine.life import run_tasks
from hsim.log import Log

Answer = tuple[Event, Any, BaseException | None]


class LiveEnvironment(EngineEnvironment):
    """A SimPy environment on a real clock: events happen when they are due, and work that others do ends when it ends."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or WallClock()
        self._finished: SimpleQueue[Answer] = SimpleQueue()
        self._under_way = 0
        super().__init__()

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return self.clock.now_s()

    def schedule(self, event: Event, priority: EventPriority = NORMAL, delay: float = 0) -> None:
        """See simpy.Environment; delays count from the clock."""
        self._now = self.now
        super().schedule(event, priority, delay)

    def submit(self, start: Callable[[Callable[[Any, BaseException | None], None]], None]) -> Event:
        """Begin work elsewhere: `start(answer)` returns at once, and answer(value, error) is called when it is done.

        The event happens here, in the loop, with the value; an error stops the run.
        """
        done = self.event()

        def answer(value: Any, error: BaseException | None) -> None:
            self._finished.put((done, value, error))

        self._under_way += 1
        start(answer)
        return done

    def step(self) -> None:
        """Process the next event once it is due, taking finished work as it comes."""
        self._take_finished()
        while self.peek() > self.now:
            if math.isinf(self.peek()) and not self._under_way:
                raise EmptySchedule
            answer = self.clock.wait(self.peek(), self._finished)
            if answer is not None:
                self._accept(answer)
            self._take_finished()
        super().step()

    def _take_finished(self) -> None:
        while self._under_way:
            try:
                self._accept(self._finished.get_nowait())
            except Empty:
                return

    def _accept(self, answer: Answer) -> None:
        done, value, error = answer
        self._under_way -= 1
        if error is not None:
            raise error
        done.succeed(value)


def sleep_through(prepared: Prepared, clock: Clock | None = None) -> Log:
    """Run every task live with a backend that sleeps for the modelled time, until absolute deadlines."""
    env, log = LiveEnvironment(clock), Log()
    return execute(env, log, prepared, ModelledTime(env, stepwise=True))


def execute(env: LiveEnvironment, log: Log, prepared: Prepared, executor: Executor) -> Log:
    """Run every task live with an executor, and return the log."""
    pipeline = build(env, log, prepared, executor)
    run_tasks(env, log, pipeline, prepared.drawn.tasks)
    return log
