"""What worker processes of the dashboard do: hsim's own API, step by step, so that intervals can be watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hsim.comparison import compare
from hsim.dashboard.limits import admitted, admitted_problem
from hsim.dashboard.state import Question
from hsim.dashboard.traces import held
from hsim.description.system import System
from hsim.drivers.prepared import prepare
from hsim.metrics.measured import Cohort
from hsim.metrics.result import Comparison, Study
from hsim.metrics.study import Material, Worlds, study_of
from hsim.plan import PlanOptions, Step, plan
from hsim.runs import Options, is_one_path, path_of, study
from hsim.runs.closeup import Closeup, close_up
from hsim.runs.paths import Job, replicate
from hsim.runs.studies import is_steady

LOOKS = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30, 40)  # after so many replications the figures so far are shown
PREVIEW_TASKS = (150, 200)  # before the cohort, and in it


@dataclass(frozen=True)
class Update:
    """A result so far: `done` of `wanted` parts of the work. A study that is done can be looked at close up."""

    done: int
    wanted: int
    result: Any
    closeup: Closeup | None = None


Tell = Callable[[Update], None]


@dataclass(frozen=True)
class Preview:
    """Ask for one short path: a rough picture at once, without intervals and verdicts."""

    question: Question

    def work(self, tell: Tell) -> None:
        """A short cohort of a steady state, as a study; else a path of few tasks from an empty system to an empty one."""
        system = with_tasks(admitted(self.question), sum(PREVIEW_TASKS))
        workload = system.scenario.workload
        if not is_steady(workload) or workload.arrivals.kind == "closed":
            tell(Update(1, 1, path_of(system)))
            return
        accounts = prepare(system).accounts
        path = replicate(Job(system, 0, Cohort(*PREVIEW_TASKS)))
        tell(Update(1, 1, study_of(Material(system, accounts, "steady", (path,), 1, Worlds((), (), ())), None)))


@dataclass(frozen=True)
class Simulate:
    """Ask for a study."""

    question: Question
    replications: int

    def work(self, tell: Tell) -> None:
        """The study after each look. The last is what `hsim simulate` gives."""
        system = admitted(self.question)
        wanted = 1 if is_one_path(system) else self.replications
        with TemporaryDirectory() as kept:
            for look in _looks(wanted):
                options = Options(look, 1, out=Path(kept))
                tell(Update(look, wanted, study(system, options)))
            closeup = close_up(system, options)
        tell(Update(wanted, wanted, closeup.study, closeup))


@dataclass(frozen=True)
class Compare:
    """Ask for paired differences of scenarios with the first."""

    questions: tuple[Question, ...]
    replications: int

    def work(self, tell: Tell) -> None:
        """The comparison after each look. The last is what `hsim compare` gives."""
        systems = [admitted(question) for question in self.questions]
        with TemporaryDirectory() as kept:
            for look in _looks(self.replications):
                found: Comparison = compare(systems, Options(look, 1, out=Path(kept)))
                tell(Update(look, self.replications, found))


@dataclass(frozen=True)
class Sweep:
    """Ask for a study of each of several questions. `rising`: their loads grow, and after one that the fleet cannot keep up
    with none is simulated, since that takes longest and says nothing more.
    """

    questions: tuple[Question, ...]
    replications: int
    rising: bool = False

    def work(self, tell: Tell) -> None:
        """The studies so far, in order."""
        found: list[Study] = []
        for question in self.questions:
            found.append(study(admitted(question), Options(self.replications, 1)))
            tell(Update(len(found), len(self.questions), tuple(found)))
            if self.rising and (steady := found[-1].stability) and steady.verdict == "unstable":
                return


@dataclass(frozen=True)
class BreakEven:
    """Ask for paired differences of each of several pairs."""

    pairs: tuple[tuple[Question, Question], ...]
    replications: int

    def work(self, tell: Tell) -> None:
        """The comparisons so far, in order."""
        found: list[Comparison] = []
        for pair in self.pairs:
            found.append(compare([admitted(question) for question in pair], Options(self.replications, 1)))
            tell(Update(len(found), len(self.pairs), tuple(found)))


@dataclass(frozen=True)
class FindFleet:
    """Ask for the best fleet of those that the settings of a plan allow."""

    question: Question
    plan: tuple[str, ...]

    def work(self, tell: Tell) -> None:
        """Say where the search stands, as it goes on; in the end, the plan."""
        problem = admitted_problem(self.question, self.plan)
        have = any(setting.startswith("plan.have") for setting in self.plan)

        def progress(step: Step) -> None:
            tell(Update(step.looked_at, max(1, step.alive), step))

        found = plan(problem, PlanOptions(processes=1, neighbours=have), progress)
        tell(Update(1, 1, found))


@dataclass(frozen=True)
class ReadTrace:
    """Ask what an uploaded trace holds."""

    name: str

    def work(self, tell: Tell) -> None:
        """Read it, within the bounds of every job."""
        tell(Update(1, 1, held(self.name)))


Request = Preview | Simulate | Compare | Sweep | BreakEven | FindFleet | ReadTrace


def _looks(replications: int) -> Sequence[int]:
    return [*(look for look in LOOKS if look < replications), replications]


def with_tasks(system: System, most: int) -> System:
    """The system with no more than so many tasks."""
    workload = system.scenario.workload
    fewer = workload.model_copy(update={"tasks": min(workload.tasks or most, most)})
    return replace(system, scenario=system.scenario.model_copy(update={"workload": fewer}))
