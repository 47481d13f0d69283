"""Validation at several loads of what a system can bear, as it is and with single-shot tasks, and its capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsim.description.scenario import load
from hsim.description.system import System, resolve
from hsim.drivers.live import Stand
from hsim.drivers.prepared import Prepared, prepare
from hsim.drivers.simulated import run
from hsim.errors import DescriptionError
from hsim.validate.pace import Paced
from hsim.validate.quantities import quantities
from hsim.validate.run import Measured, Options, Prediction, Validation, judged

CROWD = 1.5  # users of the closed loop for each sequence that the decoders hold: none is ever short of work
CAPACITY = "tasks, middle of the run"


@dataclass(frozen=True)
class AtLoad:
    """One validation of several: what tasks, at which load of the predicted capacity (None: the closed loop itself)."""

    tasks: str
    load_fraction: float | None
    validation: Validation

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{self.tasks}, " + ("closed loop" if self.load_fraction is None else f"{self.load_fraction:.0%}")


@dataclass(frozen=True)
class LoadsValidation:
    """Validations of a scenario at several loads, on one stand. `stopped` says what ended them early."""

    scenario: str
    capacities_per_s: dict[str, float]
    runs: tuple[AtLoad, ...]
    stopped: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        plain = asdict(self)
        plain["runs"] = [{"name": one.name, **one.validation.as_dict()} for one in self.runs]
        return plain


def validate_loads(
    scenario: str | Path, settings: Sequence[str], loads: Sequence[float], options: Options
) -> LoadsValidation:
    """Find the capacity of a closed loop by simulation, then validate there and at fractions of it.

    Twice: with the scenario's tasks, and with tasks of a single round where they have more. All predictions are made
    before anything is measured. Repeats go round all loads in turn: were those of a load to follow each other, a machine
    that is slow for a quarter of an hour would look like a wrong prediction for that load, its repeats all alike. Raises
    what validate does.
    """
    plans: list[tuple[str, float | None, Prediction]] = []
    capacities = {}
    for kind, more in _kinds(scenario, settings).items():
        closed = _closed(scenario, [*settings, *more])
        capacity = quantities(run(closed)).get(CAPACITY)
        if capacity is None:
            where = closed.system.document.where(("workload", "tasks"))
            raise DescriptionError(where, "are too few to show a capacity", "--set workload.tasks=60 or more")
        capacities[kind] = capacity[0]
        plans.append((kind, None, Prediction.of(closed, options)))
        for fraction in loads:
            arrivals = f"workload.arrivals={{kind: poisson, rate_per_s: {fraction * capacity[0]:.6g}}}"
            prepared = _prepared(scenario, [*settings, *more, arrivals])
            plans.append((kind, fraction, Prediction.of(prepared, options)))
    measured = [Measured() for _ in plans]
    prepared_all = [prediction.prepared for *_, prediction in plans]
    looked: list[
        Paced
    ] = []  # after a load is before the next one: the same workers, and operations of the same sizes, about
    with Stand(prepared_all, options.device, options.allow_code, options.endpoint) as stand:
        for number in [*range(len(plans))] * options.repeats:
            measured[number].once_more(prepared_all[number], stand, looked)
            looked = measured[number].looked
            if measured[number].stopped:
                break
    done = [
        AtLoad(kind, load_fraction, judged(prediction, live, options))
        for (kind, load_fraction, prediction), live in zip(plans, measured, strict=True)
        if live.runs or live.stopped
    ]
    stopped = next((live.stopped for live in measured if live.stopped), "")
    return LoadsValidation(str(scenario), capacities, tuple(done), stopped)


def _kinds(scenario: str | Path, settings: Sequence[str]) -> dict[str, list[str]]:
    """The scenario's tasks as they are, and as single shots where they are not; each with the settings that make them."""
    described, _ = load(scenario, settings)
    single = [f"workload.classes.{name}.rounds=1" for name in described.workload.classes]
    agentic = any(rounds != single_round for rounds, single_round in _rounds(scenario, settings, single))
    return {"agentic": [], "single-shot": single} if agentic else {"single-shot": []}


def _rounds(scenario: str | Path, settings: Sequence[str], single: Sequence[str]) -> list[tuple[Any, Any]]:
    """Rounds of each class, as described and with the settings for single shots."""
    own, shots = (load(scenario, [*settings, *more])[0].workload.classes.values() for more in ((), single))
    return [(a.rounds, b.rounds) for a, b in zip(own, shots, strict=True)]


def _closed(scenario: str | Path, settings: Sequence[str]) -> Prepared:
    """The scenario with more users than its decoders have places, who never pause."""
    system = _system(scenario, settings)
    seats = sum(pool.max_num_seqs * pool.replicas for pool in system.engine_pools().values())
    users = min(int(CROWD * seats), (system.scenario.workload.tasks or seats) // 2)
    return _prepared(scenario, [*settings, f"workload.arrivals={{kind: closed, users: {max(1, users)}}}"])


def _system(scenario: str | Path, settings: Sequence[str]) -> System:
    return resolve(*load(scenario, settings))


def _prepared(scenario: str | Path, settings: Sequence[str]) -> Prepared:
    return prepare(_system(scenario, settings))
