"""CPU cores: hosts whose joules and speed their busy cores share, and first-come-first-served jobs on counted cores."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from heapq import heappop, heappush
from itertools import count

from simpy.events import Event

from hsim.costs.cpu import Contention, HostPower, times_as_long
from hsim.engine.environment import TASK_GOES_ON, WORK_ENDS, EngineEnvironment
from hsim.engine.executor import Done, Executor
from hsim.engine.power import Sleeper
from hsim.engine.visits import Job, enqueue
from hsim.log import Log, Outcome, Stage
from hsim.policies.views import DeviceView, VisitView


class _Clock:
    """Work that slows down by one curve as cores become busy: it passes at one speed, so that its order of ending stays.

    `worked_s` is what a job present from the beginning would have done by the last change of load.
    """

    __slots__ = ("ends", "speed", "speeds", "worked_s")

    def __init__(self, curve: Contention, cores: int, busy: int) -> None:
        self.speeds = [1 / times_as_long(curve, max(0, n - 1) / max(1, cores - 1)) for n in range(cores + 1)]
        self.speed, self.worked_s = self.speeds[busy], 0.0
        self.ends: list[tuple[float, int, Done]] = []  # heap: work done when a job is done, order, what then


class Host:
    """The CPU packages of one server.

    Its power bends with load, so busy cores share it equally at each instant. Its cores slow each other down: at n
    busy cores work passes at speed 1 / (1 + (slowdown - 1) (n - 1) / (cores - 1)), or at that of its own curve, for jobs
    already running too. The operating system is taken to spread jobs evenly over the sockets, so one clock serves all
    work of one curve.
    """

    def __init__(self, env: EngineEnvironment, log: Log, index: int, power: HostPower, slowdown: float = 1.0) -> None:
        self.env, self.log, self.index, self.power, self.slowdown = env, log, index, power, slowdown
        self.sleeper: Sleeper | None = None  # of a server that is switched off when it has nothing to do
        self.busy = 0
        self.core_idle_w = power.idle_w / power.cores
        self._core_w, self._joules, self._since_s = 0.0, 0.0, 0.0
        self._shares_w = [power.dynamic_w(n) / max(1, n) for n in range(power.cores + 1)]  # of each of n busy cores
        self._clocks: dict[Contention, _Clock] = {}
        self._own: Contention = ((1.0, slowdown),)
        self._order, self._version = count(), 0
        self._armed_s, self._slowed, self._ending = math.inf, False, False

    def joules_per_core(self) -> float:
        """Joules above idle that a core busy since time zero would have taken by now: differences are a job's share."""
        return self._joules + self._core_w * (self.env.now - self._since_s)

    def change(self, cores: int) -> None:
        """So many cores more (or fewer) are busy from now on."""
        now = self.env.now
        self._joules = self.joules_per_core()
        for clock in self._clocks.values():
            clock.worked_s += clock.speed * (now - self._since_s)
        self._since_s = now
        self.busy += cores
        assert 0 <= self.busy <= self.power.cores, f"{self.busy} of {self.power.cores} cores busy"
        self._core_w = self._shares_w[self.busy]
        self.log.cores.append((self.index, now, self.busy))
        if self._clocks:
            for clock in self._clocks.values():
                clock.speed = clock.speeds[self.busy]
            self._slowed = self._slowed or cores > 0
            if cores < 0:
                self._rearm()  # what is under way ends sooner; with more cores busy it is looked at again when it is due

    def work(self, seconds: float, done: Done, contention: Contention = ()) -> None:
        """Do so many seconds of work, as one core alone would take, on a core already counted as busy.

        It slows down by its own contention, if it has any.
        """
        curve = contention or self._own
        if curve not in self._clocks:
            self._clocks[curve] = _Clock(curve, self.power.cores, self.busy)
        clock = self._clocks[curve]
        worked_s = clock.worked_s + clock.speed * (self.env.now - self._since_s)
        heappush(clock.ends, (worked_s + seconds, next(self._order), done))
        if self._since_s + (clock.ends[0][0] - clock.worked_s) / clock.speed < self._armed_s:
            self._rearm()

    def _first(self) -> tuple[float, int, _Clock] | None:
        """When the first job under way is done, if speeds stay as they are: the instant, its order, and its clock."""
        first = None
        for clock in self._clocks.values():
            if clock.ends:
                worked_s, order, _ = clock.ends[0]
                found = (self._since_s + (worked_s - clock.worked_s) / clock.speed, order, clock)
                if first is None or found < first:
                    first = found
        return first

    def _rearm(self) -> None:
        if self._ending:
            return  # once is enough, when all that follows from an end has happened
        self._version += 1
        self._armed_s, self._slowed = math.inf, False
        if first := self._first():
            self._armed_s = max(self.env.now, first[0])
            self.env.call_at(self._armed_s, WORK_ENDS, self._end, self._version)

    def _end(self, version: int) -> None:
        if version != self._version:
            return  # a shorter job has come, or cores have become free
        first = self._first()
        assert first, "a job has ended that nobody had begun"
        end_s, _, clock = first
        if self._slowed and end_s > self.env.now:
            self._rearm()  # more cores are busy than when this was foreseen
            return
        done = heappop(clock.ends)[2]
        self._ending = True
        done(None)
        self._ending = False
        self._rearm()


class Cores:
    """So many cores of a host that serve one pool's jobs, first come first served.

    Jobs of one operation may be served in batches: a batch begins at a free core when it is full, or when its first
    job has waited `batch_window_s`; the operation's base cost is paid once in it.
    """

    def __init__(
        self, env: EngineEnvironment, host: Host, cores: int, executor: Executor, batching: tuple[int, float] = (1, 0.0)
    ) -> None:
        self.env, self.host, self.cores, self.executor = env, host, cores, executor
        self.max_batch, self.batch_window_s = batching
        self.index = host.index
        self.waiting: deque[Job] = deque()
        self.running = 0
        self._looks_s = math.nan
        self.sleeper = host.sleeper
        if self.sleeper:
            self.sleeper.devices.append(self)

    def view(self, visit: VisitView) -> DeviceView:
        """What a router may see."""
        waiting, wake_s = len(self.waiting), self.sleeper.wake_s() if self.sleeper else 0.0
        return DeviceView(waiting + self.running, 0, waiting, self.running, self.cores, 0, wake_s)

    def at_rest(self) -> bool:
        """See Sleepy."""
        return not self.waiting and not self.running

    def power_changed(self, up: bool) -> None:
        """See Sleepy."""
        if up:
            self._dispatch()

    def submit(self, job: Job) -> None:
        """Queue a job; its `done` happens when it has been served."""
        job.device = self.index
        enqueue(self.waiting, job)
        self._dispatch()

    def give_up(self, job: Job) -> None:
        """The client is gone: a waiting job leaves; one that runs is worked to its end."""
        job.outcome = Outcome.TIMED_OUT
        if job in self.waiting:
            self.waiting.remove(job)
            job.started_s = job.served_s = self.env.now
            self.env.trigger_at(job.done, self.env.now, TASK_GOES_ON + job.task)
            self._rest()

    def withdraw(self, stage: Stage) -> Job | None:
        """See Server."""
        job = next((job for job in self.waiting if job.stage is stage), None)
        if job is not None:
            self.waiting.remove(job)
            self._rest()
        return job

    def waited_s(self) -> float:
        """See Server."""
        return self.env.now - self.waiting[0].queued_s if self.waiting else 0.0

    def _rest(self) -> None:
        if self.sleeper and self.at_rest():
            self.sleeper.rest()

    def _dispatch(self, event: Event | None = None) -> None:
        if self.sleeper and not self.sleeper.up:
            if self.waiting:
                self.sleeper.wake()
            return
        while self.waiting and self.running < self.cores:
            batch = self._next_batch()
            if not batch:
                self._look_again()
                return
            self.running += 1
            self.host.change(+1)
            self._start(batch)

    def _look_again(self) -> None:
        """Dispatch when the first job has waited its window."""
        due_s = self.waiting[0].queued_s + self.batch_window_s
        if due_s != self._looks_s:
            self._looks_s = due_s
            self.env.call_at(due_s, WORK_ENDS, self._dispatch)

    def _next_batch(self) -> list[Job]:
        """Take the jobs that start together now: those like the first, if they are enough or it has waited its window."""
        if self.max_batch == 1:
            return [self.waiting.popleft()]
        first = self.waiting[0]
        alike = [job for job in self.waiting if job.operation == first.operation][: self.max_batch]
        if len(alike) < self.max_batch and self.env.now < first.queued_s + self.batch_window_s:
            return []
        self.waiting = deque(job for job in self.waiting if job not in alike)
        return alike

    def _start(self, batch: list[Job]) -> None:
        now, joules = self.env.now, self.host.joules_per_core()
        for job in batch:
            job.started_s, job.joules_mark = now, joules
        first, seconds = batch[0], batch[0].seconds
        if len(batch) > 1:
            seconds += sum(job.seconds - job.base_s for job in batch[1:])
        self.executor.job(first, seconds, self.host, partial(self._end, batch, seconds))

    def _end(self, batch: list[Job], seconds: float, event: Event) -> None:
        now, host_j = self.env.now, self.host.joules_per_core()
        base_s = batch[0].base_s / len(batch)
        for job in batch:
            # Each pays for its own part of the work, and an equal part of what was paid once.
            part = (job.seconds - job.base_s + base_s) / seconds if len(batch) > 1 else 1.0
            job.served_s = now
            job.dynamic_j = part * (host_j - job.joules_mark)
            job.idle_j = part * self.host.core_idle_w * (now - job.started_s)
            self.env.trigger_at(job.done, now, TASK_GOES_ON + job.task)
        following = self._next_batch() if self.waiting else []
        if following:
            self._start(following)  # the core stays busy
        else:
            self.running -= 1
            self.host.change(-1)
            self._dispatch()  # those that wait for their window must be looked at when it is over
            self._rest()
