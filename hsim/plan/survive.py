"""What a fleet becomes when a server or a device is lost, and the cheapest fleet that loses any of them and still holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hsim.plan.planner import PlanOptions, planned_whole
from hsim.plan.problem import OWN, Loss, Problem, only, with_losses
from hsim.plan.result import Judged, Plan, Progress

Kind = Literal["server", "device"]


@dataclass(frozen=True)
class Survival:
    """The best fleet as it stands, what becomes of it after each loss, and the best that survives any one.

    A loss is steady: the fleet goes on without what was lost, for as long as it takes. Each verdict stands at the
    problem's confidence by itself. `hardened` is None where the fleet survives everything, or where there is no choice.
    """

    plan: Plan
    losses: dict[str, Judged]
    hardened: Plan | None

    @property
    def survives(self) -> bool:
        return bool(self.losses) and all(judged.verdict == "PASS" for judged in self.losses.values())

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        hardened = self.hardened.as_dict() if self.hardened else None
        losses = {name: asdict(judged) for name, judged in self.losses.items()}
        return {"survives": self.survives, "plan": self.plan.as_dict(), "losses": losses, "hardened": hardened}


def survive(
    problem: Problem, kind: Kind = "server", options: PlanOptions | None = None, progress: Progress | None = None
) -> Survival:
    """Plan, take away one server of each tier (or one replica of each pool of accelerators), and plan against that."""
    options = options or PlanOptions()
    found = planned_whole(problem, options, progress)
    if found.chosen is None:
        return Survival(found, {}, None)
    alone = only(problem, found.chosen.fleet.number)
    losses = losses_of(alone, kind)
    judged = {loss.name: _judged(_after(alone, loss), options, progress) for loss in losses}
    survives = all(each.verdict == "PASS" for each in judged.values())
    hardened = None
    if len(problem.fleets) > 1 and not survives:
        hardened = planned_whole(with_losses(problem, losses_of(problem, kind)), options, progress)
    return Survival(found, judged, hardened)


def losses_of(problem: Problem, kind: Kind) -> list[Loss]:
    """Every loss of that kind that some fleet of the problem may suffer."""
    designs = [problem.designs[place.design] for place in problem.places]
    systems = [design.systems[OWN] for design in designs if not design.impossible]
    names: Callable[[Any], Any] = (lambda s: s.tiers) if kind == "server" else (lambda s: s.engine_pools())
    found = dict.fromkeys(name for system in systems for name in names(system))
    return [Loss(tier=name) if kind == "server" else Loss(pool=name) for name in found]


def _after(alone: Problem, loss: Loss) -> Problem:
    """The problem of what is left, and nothing else."""
    hardened = with_losses(alone, [loss])
    return replace(hardened, objectives=tuple(o for o in hardened.objectives if o.load == loss.name))


def _judged(problem: Problem, options: PlanOptions, progress: Progress | None) -> Judged:
    (judged,) = planned_whole(problem, replace(options, neighbours=False, headroom=False), progress).judged
    return judged
