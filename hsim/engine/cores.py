"""CPU cores: hosts whose joules their busy cores share, and first-come-first-served jobs on counted cores."""

from __future__ import annotations

from collections import deque
from functools import partial

from simpy.events import Event

from hsim.costs.cpu import HostPower
from hsim.engine.environment import TASK_GOES_ON, EngineEnvironment
from hsim.engine.executor import Executor
from hsim.engine.visits import Job
from hsim.log import Log
from hsim.policies.views import DeviceView


class Host:
    """The CPU packages of one server. Its power bends with load, so busy cores share it equally at each instant."""

    def __init__(self, env: EngineEnvironment, log: Log, index: int, power: HostPower) -> None:
        self.env, self.log, self.index, self.power = env, log, index, power
        self.busy = 0
        self.core_idle_w = power.idle_w / power.cores
        self._core_w = 0.0
        self._joules, self._since_s = 0.0, 0.0

    def joules_per_core(self) -> float:
        """Joules above idle that a core busy since time zero would have taken by now: differences are a job's share."""
        return self._joules + self._core_w * (self.env.now - self._since_s)

    def change(self, cores: int) -> None:
        """So many cores more (or fewer) are busy from now on."""
        self._joules, self._since_s = self.joules_per_core(), self.env.now
        self.busy += cores
        assert 0 <= self.busy <= self.power.cores, f"{self.busy} of {self.power.cores} cores busy"
        self._core_w = self.power.dynamic_w(self.busy) / self.busy if self.busy else 0.0
        self.log.cores.append((self.index, self._since_s, self.busy))


class Cores:
    """So many cores of a host that serve one pool's jobs, first come first served."""

    def __init__(self, env: EngineEnvironment, host: Host, cores: int, executor: Executor) -> None:
        self.env, self.host, self.cores, self.executor = env, host, cores, executor
        self.index = host.index
        self.waiting: deque[Job] = deque()
        self.running = 0

    def view(self) -> DeviceView:
        """What a router may see."""
        return DeviceView(len(self.waiting) + self.running, 0)

    def submit(self, job: Job) -> None:
        """Queue a job; its `done` happens when it has been served."""
        job.device = self.index
        if self.running < self.cores:
            self.running += 1
            self.host.change(+1)
            self._start(job)
        else:
            self.waiting.append(job)

    def _start(self, job: Job) -> None:
        job.started_s, job.joules_mark = self.env.now, self.host.joules_per_core()
        self.executor.job(job, partial(self._end, job))

    def _end(self, job: Job, event: Event) -> None:
        now = job.served_s = self.env.now
        job.dynamic_j = self.host.joules_per_core() - job.joules_mark
        job.idle_j = self.host.core_idle_w * (now - job.started_s)
        self.env.trigger_at(job.done, now, TASK_GOES_ON + job.task)
        if self.waiting:
            self._start(self.waiting.popleft())
        else:
            self.running -= 1
            self.host.change(-1)
