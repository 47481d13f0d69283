"""How work gets done: the one thing in which simulated and live runs differ, beside the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from simpy.events import Event

from hsim.engine.environment import WORK_ENDS, EngineEnvironment
from hsim.engine.visits import Job

if TYPE_CHECKING:
    from hsim.engine.cores import Host
    from hsim.engine.replica import Replica

Done = Callable[[Event | None], Any]


class Executor(Protocol):
    """Carries out jobs and steps, and calls back when they are done."""

    stepwise: bool
    """Whether steps are taken one at a time."""

    real: bool
    """Whether work takes the time it takes: then each step is planned anew from when the last one ended."""

    def job(self, job: Job, seconds: float, host: Host, done: Done) -> None:
        """Carry out a job (the first of its batch) on a core of a host; modelled to take so many seconds alone."""
        ...

    def steps(self, replica: Replica, end_s: float, done: Done) -> None:
        """Carry out the replica's current steps, one if stepwise; modelled to end at end_s."""
        ...


class ModelledTime:
    """Lets the modelled time pass: simulated runs on a simulated clock, and sleeping ones on the wall clock."""

    def __init__(self, env: EngineEnvironment, stepwise: bool = False) -> None:
        self.env, self.stepwise, self.real = env, stepwise, False

    def job(self, job: Job, seconds: float, host: Host, done: Done) -> None:
        """See Executor."""
        if job.contention or host.slowdown > 1:
            host.work(seconds, done, job.contention)
        else:
            self.env.call_at(job.started_s + seconds, WORK_ENDS, done)

    def steps(self, replica: Replica, end_s: float, done: Done) -> None:
        """See Executor."""
        self.env.call_at(end_s, WORK_ENDS, done)
