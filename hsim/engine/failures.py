"""Breakdowns: devices that lose all they have, and the clock by which servers and replicas break down and are mended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import isnan
from typing import Any

from simpy.events import Event

from hsim.engine.cores import Cores
from hsim.engine.environment import SERVICE_CHANGES, TASK_GOES_ON, EngineEnvironment
from hsim.engine.replica import Replica
from hsim.engine.service import Unit
from hsim.engine.shares import Run
from hsim.engine.visits import Job, Visit
from hsim.log import Outcome

Draw = Callable[[int], tuple[float, float]]
"""Of the nth breakdown of something: for how long it holds out before, and how long its repair takes."""


class BreakableCores(Cores):
    """Cores of a server that may break down under their jobs."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._under_way: dict[int, tuple[list[Job], float]] = {}  # batches and their seconds, by identity

    def _start(self, batch: list[Job]) -> None:
        first, *others = batch
        seconds = first.seconds + sum(job.seconds - job.base_s for job in others)
        self._under_way[id(batch)] = batch, seconds
        super()._start(batch)

    def _end(self, batch: list[Job], seconds: float, event: Event) -> None:
        if self._under_way.pop(id(batch), None) is not None:  # else it was lost, and this is when it would have ended
            super()._end(batch, seconds, event)

    def lose_all(self) -> None:
        """All who wait or are served are lost."""
        waiting, self.waiting = self.waiting, deque()
        for job in waiting:
            job.started_s = job.served_s = self.env.now
            _lose(self.env, job)
        for batch, seconds in list(self._under_way.values()):
            for job in batch:
                job.outcome = job.outcome or Outcome.LOST
            self._end(batch, seconds, Event(self.env))


class BreakableReplica(Replica):
    """A replica that may break down under its batch."""

    def lose_all(self) -> None:
        """The step under way breaks off, for nothing; all who wait or run are lost, and all that the cache held."""
        now, lost = self.env.now, (*self.running, *self.waiting)
        self.waiting.clear()
        if self._run is not None:
            self._break_off(self._run)
        for prompt in lost:
            prompt.started_s, prompt.served_s = now if isnan(prompt.started_s) else prompt.started_s, now
            prefilled = prompt.prefill_tokens - prompt.prompt_left if prompt in self.running else 0
            self.log.losses.append((self.index, now, prompt.task, prefilled, prompt.generated_tokens))
            _lose(self.env, prompt)
        self.running.clear()
        self.prefilling.clear()
        self._leaving.clear()
        self._outstanding_tokens = 0
        self.kv.lose()
        if self._gaps:
            self._gaps.lose()

    def _break_off(self, run: Run) -> None:
        """Book the steps that have ended and the part of one that has not, charge everybody, and go idle."""
        self._version += 1
        passed = run.passed(self.env.now)
        if passed > run.taken:
            self._book(run, passed, run.end_s(passed))
        self._book_broken(run)
        for prompt, chunk in zip(self.prefilling, run.chunks, strict=False):
            if chunk:
                self._shares.charge_chunk(prompt, chunk, run.marks)
                prompt.prompt_left -= chunk * run.taken
        for prompt in self.running:
            if prompt.decoding:
                self._stop_decoding(prompt)
        self._go_idle()

    def _book_broken(self, run: Run) -> None:
        """The step that broke off: it drew power for as long as it lasted, and made no token."""
        start_s = run.end_s(run.taken) if run.taken else run.start_s
        lasted_s, now = self.env.now - start_s, self.env.now
        if lasted_s <= 0:
            return
        segment, done = run.segment, run.taken
        step_s = segment.seconds + done * segment.seconds_growth
        step_j = segment.joules + done * segment.joules_growth
        joules, host_j = step_j * lasted_s / step_s, self.host.joules_per_core()
        host_dynamic_j = self.spec.host_cores * (host_j - self._host_mark_j)
        self._host_mark_j = host_j
        self._shares.add_broken(run, lasted_s, joules, host_dynamic_j)
        self.log.steps.append((self.index, start_s, now, 1, 0, 0, 0, 0, lasted_s, 0.0, joules, 0.0))


def _lose(env: EngineEnvironment, visit: Visit) -> None:
    """A visit's device is gone: its task hears of it, unless its client was gone before."""
    visit.outcome = visit.outcome or Outcome.LOST
    env.trigger_at(visit.done, env.now, TASK_GOES_ON + visit.task)


class Breaker:
    """Breakdowns and repairs of a server or a replica, one after another, for as long as anybody lives."""

    def __init__(self, env: EngineEnvironment, unit: Unit, draw: Draw) -> None:
        self.env, self.unit, self._draw, self._nth = env, unit, draw, 0
        self._await()

    def _await(self) -> None:
        holds_s, self._repair_s = self._draw(self._nth)
        self.env.call_at(self.env.now + holds_s, SERVICE_CHANGES + self.unit.number, self._break_down)

    def _break_down(self, event: Event) -> None:
        if self.env.lives:
            self.unit.break_down()
            self.env.call_at(self.env.now + self._repair_s, SERVICE_CHANGES + self.unit.number, self._mend)

    def _mend(self, event: Event) -> None:
        if self.env.lives:
            self.unit.mend()
            self._nth += 1
            self._await()


def drain(env: EngineEnvironment, unit: Unit, at_s: float, for_s: float) -> None:
    """Take a server out of service for a while."""
    order = SERVICE_CHANGES + unit.number
    env.call_at(at_s, order, lambda _: unit.drain(True))
    env.call_at(at_s + for_s, order, lambda _: unit.drain(False))
