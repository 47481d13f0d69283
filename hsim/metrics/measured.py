"""What one path shows in one window: the sums and samples from which results and intervals are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.description.scenario import Slos
from hsim.errors import HsimError
from hsim.log import Kept, Log, Outcome, PoolRecord, Stage
from hsim.metrics.accounts import Accounts
from hsim.metrics.economics import Bill, bill_of
from hsim.metrics.ledger import Ledger, Window, keep_books, shares_gap_j
from hsim.metrics.meters import inside, rows_of
from hsim.metrics.power import facility_joules
from hsim.metrics.service import InService, in_service

Floats = NDArray[np.float64]

LEDGER_TOLERANCE = 1e-9
STAGE_SUMS = ("visits", "transfer_s", "wait_s", "service_s", "outside_s", "dynamic_j", "occupied_j")


@dataclass(frozen=True)
class Cohort:
    """Tasks followed from arrival to end: so many, after the first `skipped` to arrive."""

    skipped: int
    tasks: int

    @property
    def end(self) -> int:
        """How many tasks arrive before and in it."""
        return self.skipped + self.tasks


@dataclass(frozen=True)
class Sample:
    """Seconds of one latency, and the row of the task (among those served) that each belongs to. Shapes (n,)."""

    seconds: Floats
    owner: NDArray[np.int64]


@dataclass(frozen=True)
class PoolLoad:
    """Busy seconds of a pool's devices or cores in a window; of engines also seconds times decodes, and KV tokens.

    `busiest_s` are those of its busiest device, a replica or a server's cores. Of a pool that changes between two sets of
    weights also the tokens that it decoded, and those of them with the other set.
    """

    busy_s: float
    busiest_s: float = 0.0
    decode_s: float = 0.0
    kv_token_s: float = 0.0
    tokens: float = 0.0
    other_tokens: float = 0.0


@dataclass(frozen=True)
class Keeps:
    """Of a cohort's tasks that came to a model, how many an edge kept, how many of those though they were hard, how many
    it asked again in the cloud, and how many it had no room for.
    """

    tasks: int
    kept: int
    wrongly_kept: int
    asked_again: int
    edge_full: int


@dataclass(frozen=True)
class Objective:
    """How many of a cohort's points kept an objective. A task that was shed or given up counts as one that did not."""

    metric: str
    within: int
    points: int


@dataclass(frozen=True)
class Measured:
    """One path in one window. Of the cohort's tasks some may have failed: timed out, shed, or `gave_up` being sent again.

    Joules, output tokens, completions and preemptions are those that fell into the window; all else is of the cohort,
    the tasks that arrived in it, followed to their end. `stages` sums STAGE_SUMS over the cohort. `covered` says that
    tasks went on arriving until the cohort's last had ended.
    """

    window: Window
    cohort: Cohort
    covered: bool
    served: int
    timed_out: int
    shed: int
    gave_up: int
    completed: int
    good: int
    preemptions: int
    output_tokens: float
    latency: dict[str, Floats]
    objectives: tuple[Objective, ...]
    stages: dict[str, Floats]
    pools: dict[str, PoolLoad]
    in_service: InService
    records: dict[str, PoolRecord]
    ledger: Ledger
    ledger_gap_fraction: float
    bill: Bill
    keeps: Keeps | None
    drain_j: float
    arrival_s: Floats
    ended_s: Floats


@dataclass(frozen=True)
class Lens:
    """What to look at, by which books and objectives.

    A cohort of an open system; or, of a closed loop of so many `users`, what happened while all of them were served;
    or, without either, all of a terminating run.
    """

    accounts: Accounts
    slo: Slos
    cohort: Cohort | None = None
    users: int | None = None


def measure(log: Log, lens: Lens) -> Measured:
    """Look at a path.

    Asserts that the ledger balances with the integral of power, and the shares of visits with what devices drew.
    """
    tables = log.arrays()
    order = np.lexsort((tables["tasks"]["task"], tables["tasks"]["arrival_s"]))
    tasks = {name: cells[order] for name, cells in tables["tasks"].items()}
    window, cohort = _window(tasks, lens)
    followed = {name: cells[cohort.skipped : cohort.end] for name, cells in tasks.items()}
    visits = rows_of(tables["visits"], np.isin(tables["visits"]["task"], followed["task"]))
    samples = samples_of(followed, visits)
    outcomes = np.bincount(followed["outcome"].astype(np.int64), minlength=len(Outcome))
    failed = cohort.tasks - int(outcomes[Outcome.SERVED])
    completed, good = _completed(tasks, tables["visits"], lens.slo, window)
    ledger, gap = _books(log, tables, lens.accounts, window)
    preempted_s = tables["preemptions"]["time_s"]
    return Measured(
        window=window,
        cohort=cohort,
        covered=lens.cohort is None or float(tasks["ended_s"][: cohort.end].max()) <= float(tasks["arrival_s"][-1]),
        served=int(outcomes[Outcome.SERVED]),
        timed_out=int(outcomes[Outcome.TIMED_OUT]),
        shed=int(outcomes[Outcome.SHED]),
        gave_up=int(outcomes[Outcome.FAILED]),
        completed=completed,
        good=good,
        preemptions=int(((preempted_s > window.start_s) & (preempted_s <= window.end_s)).sum()),
        output_tokens=_delivered_tokens(tasks, tables["visits"], window),
        latency={name: sample.seconds for name, sample in samples.items()},
        objectives=_objectives(lens.slo, samples, int(outcomes[Outcome.SERVED]), failed),
        stages=_stage_sums(visits),
        pools=_pool_loads(log, tables, window),
        in_service=in_service(log, tables, window),
        records=dict(log.pools),
        ledger=ledger,
        ledger_gap_fraction=gap,
        bill=bill_of(log, tables, lens.accounts, ledger),
        keeps=_keeps(tables["keeping"], followed),
        drain_j=facility_joules(log, tables, lens.accounts, Window(window.arrivals_end_s, window.end_s, window.end_s)),
        arrival_s=tasks["arrival_s"],
        ended_s=tasks["ended_s"],
    )


def _window(tasks: Any, lens: Lens) -> tuple[Window, Cohort]:
    """The window that a lens shows of tasks in order of arrival, and the tasks that arrived in it.

    A cohort's goes from its first arrival to the first after it; a closed loop's from when its last user has come to
    when its first user's last task has ended.
    """
    arrival_s, ended_s = tasks["arrival_s"], tasks["ended_s"]
    if lens.users:
        rounds = tasks["task"] // lens.users  # user i's tasks are i, i + users, ...
        start_s = float(arrival_s[rounds == 0].max())
        last = tasks["task"] >= len(arrival_s) - lens.users
        end_s = float(ended_s[last].min())
        first, beyond = np.searchsorted(arrival_s, [start_s, end_s]).tolist()
        if len(arrival_s) < 2 * lens.users or end_s <= start_s:
            remedy = f"set workload.tasks to several times the {lens.users} users"
            raise HsimError(f"the first user has no task left before the last has come; {remedy}")
        return Window(start_s, end_s, end_s), Cohort(first, beyond - first)
    if lens.cohort is None:
        return Window(float(arrival_s.min()), float(arrival_s.max()), float(ended_s.max())), Cohort(0, len(arrival_s))
    end_s = float(arrival_s[min(lens.cohort.end, len(arrival_s) - 1)])
    return Window(float(arrival_s[lens.cohort.skipped]), end_s, end_s), lens.cohort


def _books(log: Log, tables: dict[str, Any], accounts: Accounts, window: Window) -> tuple[Ledger, float]:
    """The ledger and by what fraction it is out of balance, asserted to be within tolerance where power is known."""
    ledger = keep_books(log, tables, accounts, window)
    total_j = ledger.joules()
    if np.isnan(total_j):
        return ledger, 0.0
    integral_j = facility_joules(log, tables, accounts, window)
    gap = abs(total_j - integral_j) / integral_j if integral_j else abs(total_j)
    assert gap <= LEDGER_TOLERANCE, f"the ledger holds {total_j} J, the integral of power is {integral_j} J"
    # Shares are summed over the whole log, which after a window of an overloaded system goes on for many times as long.
    end_s = float(tables["tasks"]["ended_s"].max())
    whole_j = facility_joules(log, tables, accounts, Window(0.0, end_s, end_s))
    shares_gap = shares_gap_j(log, tables, accounts) / whole_j if whole_j else 0.0
    assert shares_gap <= LEDGER_TOLERANCE, f"visits' shares and devices' meters differ by {shares_gap} of {whole_j} J"
    return ledger, max(gap, shares_gap)


def samples_of(tasks: Any, visits: Any) -> dict[str, Sample]:
    """Each latency of the tasks that were served: ttft and tpot by visit, answer_ttft and e2e by task in order of id.

    Where prefill has a pool of its own, the first token comes from there. A visit that was lost and sent again counts as
    one, from when it was first asked for.
    """
    order = np.argsort(tasks["task"])
    tasks = rows_of({name: cells[order] for name, cells in tasks.items()}, outcome=Outcome.SERVED)
    ids = tasks["task"]
    told = (visits["output_tokens"] > 0) | (visits["outcome"] == Outcome.LOST)  # not what was discarded
    visits = _served(rows_of(visits, np.isin(visits["task"], ids) & told))
    first_stage = Stage.PREFILL if (visits["stage"] == Stage.PREFILL).any() else Stage.GENERATE
    first, rows = rows_of(visits, stage=first_stage), rows_of(visits, stage=Stage.GENERATE)
    later_tokens = rows["output_tokens"] - (first_stage is Stage.GENERATE)
    several = later_tokens > 0
    tpot_s = (rows["served_s"] - rows["first_token_s"])[several] / later_tokens[several]
    first_owner, owner = np.searchsorted(ids, first["task"]), np.searchsorted(ids, rows["task"][several])
    answers = np.lexsort((first["round"], first["task"]))
    answers = answers[np.append(np.diff(first["task"][answers]) > 0, True)] if len(answers) else answers
    everybody = np.arange(len(ids))
    samples = {
        "ttft": Sample(first["first_token_s"] - first["ready_s"], first_owner),
        "tpot": Sample(tpot_s, owner),
        "answer_ttft": Sample(first["first_token_s"][answers] - tasks["arrival_s"], everybody),
        "e2e": Sample(tasks["ended_s"] - tasks["arrival_s"], everybody),
    }
    return {name: sample for name, sample in samples.items() if len(sample.seconds)}


def _served(visits: Any) -> Any:
    """The attempts that were not lost, each asked for when the first of its visit was."""
    lost = visits["outcome"] == Outcome.LOST
    if not lost.any():
        return visits
    key = np.stack([visits[column] for column in ("task", "round", "stage", "pool")])
    _, which = np.unique(key, axis=1, return_inverse=True)
    asked_s = np.full(int(which.max()) + 1, np.inf)
    np.minimum.at(asked_s, which.ravel(), visits["ready_s"])
    return rows_of({**visits, "ready_s": asked_s[which.ravel()]}, ~lost)


def _keeps(keeping: Any, tasks: Any) -> Keeps | None:
    """What an edge kept; None where there is none."""
    if not len(keeping["task"]):
        return None
    mine = rows_of(keeping, np.isin(keeping["task"], tasks["task"]))
    of = {kept: mine["choice"] == kept for kept in Kept}
    wrongly = of[Kept.KEPT] & (mine["easy"] == 0)
    counted = (of[Kept.KEPT], wrongly, of[Kept.ASKED_AGAIN], of[Kept.FULL])
    return Keeps(len(mine["task"]), *(int(those.sum()) for those in counted))


def _objectives(slo: Slos, samples: dict[str, Sample], served: int, failed: int) -> tuple[Objective, ...]:
    """Each task that failed counts as late, and where visits are counted, as often as a served one has visits."""
    found = []
    for metric, sample in samples.items():
        if objective := getattr(slo, metric):
            within, seen = int((sample.seconds <= objective.max_s).sum()), len(sample.seconds)
            found.append(Objective(metric, within, seen + math.ceil(failed * seen / served)))
    return tuple(found)


def _completed(tasks: Any, visits: Any, slo: Slos, window: Window) -> tuple[int, int]:
    """Tasks served that ended in the window, and those of them that kept every objective, their visits' included."""
    mine = (
        (tasks["outcome"] == Outcome.SERVED) & (tasks["ended_s"] > window.start_s) & (tasks["ended_s"] <= window.end_s)
    )
    tasks = rows_of(tasks, mine)
    good = np.ones(len(tasks["task"]), dtype=bool)
    for metric, sample in samples_of(tasks, visits).items():
        if objective := getattr(slo, metric):
            good[sample.owner[sample.seconds > objective.max_s]] = False
    return len(good), int(good.sum())


def _delivered_tokens(tasks: Any, visits: Any, window: Window) -> float:
    """Output tokens of served tasks that were delivered inside the window.

    A visit that an edge of the window cuts is taken to deliver evenly from its first token to its last; that is an
    approximation for those few, and adds up exactly over windows that join.
    """
    served = tasks["task"][tasks["outcome"] == Outcome.SERVED]
    rows = rows_of(visits, np.isin(visits["task"], served) & (visits["output_tokens"] > 0))
    first_s = np.fmax(rows["first_token_s"], rows["started_s"])  # after a prefill elsewhere, when decoding began
    start_s, end_s = inside(first_s, rows["served_s"], window.start_s, window.end_s)
    length_s = rows["served_s"] - first_s
    at_once = ((first_s > window.start_s) & (first_s <= window.end_s)).astype(np.float64)
    part = np.divide(end_s - start_s, length_s, out=at_once, where=length_s > 0)
    return float((rows["output_tokens"] * part).sum())


def _stage_sums(visits: Any) -> dict[str, Floats]:
    sums = {}
    for stage in Stage:
        rows = rows_of(visits, stage=stage)
        if len(rows["task"]):
            sums[stage.name.lower()] = np.array([
                len(rows["task"]),
                (rows["queued_s"] - rows["ready_s"]).sum(),
                (rows["started_s"] - rows["queued_s"]).sum(),
                (rows["served_s"] - rows["started_s"]).sum(),
                (rows["ended_s"] - rows["served_s"]).sum(),
                (rows["dynamic_j"] + rows["host_dynamic_j"]).sum(),
                (rows["idle_j"] + rows["host_idle_j"]).sum(),
            ])  # fmt: skip
    return sums


def _pool_loads(log: Log, tables: dict[str, Any], window: Window) -> dict[str, PoolLoad]:
    steps, visits = tables["steps"], tables["visits"]
    # Context grows by a token a sequence and step.
    kv_tokens = steps["context_tokens"] + (steps["steps"] - 1) / 2 * steps["decodes"] + steps["chunk_context_tokens"]
    steps_s = np.subtract(*reversed(inside(steps["start_s"], steps["end_s"], window.start_s, window.end_s)))
    visits_s = np.subtract(*reversed(inside(visits["started_s"], visits["served_s"], window.start_s, window.end_s)))
    loads = {}
    for number, (name, pool) in enumerate(log.pools.items()):
        if pool.engine:
            mine = np.isin(steps["device"], pool.devices)
            mine_s = steps_s[mine]
            decode_s, kv_s = (steps["decodes"][mine] * mine_s).sum(), (kv_tokens[mine] * mine_s).sum()
            busy_s = _by_device(mine_s, steps["device"][mine], pool)
            tokens = _tokens_by_weights(tables, mine, mine_s) if len(pool.weights) > 1 else (0.0, 0.0)
            loads[name] = PoolLoad(float(mine_s.sum()), float(busy_s.max()), float(decode_s), float(kv_s), *tokens)
        else:
            mine = visits["pool"] == number
            busy_s = _by_device(visits_s[mine], visits["device"][mine], pool)
            loads[name] = PoolLoad(float(visits_s[mine].sum()), float(busy_s.max()))
    return loads


def _tokens_by_weights(tables: dict[str, Any], mine: NDArray[np.bool_], inside_s: Floats) -> tuple[float, float]:
    """Tokens decoded in these rows of steps (a row that an edge cuts by its time), and those with the other weights."""
    steps, switches = rows_of(tables["steps"], mine), tables["switches"]
    length_s = steps["end_s"] - steps["start_s"]
    part = np.divide(inside_s, length_s, out=np.zeros_like(inside_s), where=length_s > 0)
    tokens = steps["steps"] * steps["decodes"] * part
    other = np.zeros(len(tokens), dtype=bool)
    for device in np.unique(steps["device"]):
        own = steps["device"] == device
        changes = rows_of(switches, device=device)
        last = np.searchsorted(changes["time_s"], steps["start_s"][own], side="right")
        other[own] = np.append(0.0, changes["other"])[last] > 0
    return float(tokens.sum()), float(tokens[other].sum())


def _by_device(seconds: Floats, device: Floats, pool: PoolRecord) -> Floats:
    """Busy seconds of each device of a pool. Shape (devices,)."""
    return np.array([seconds[device == index].sum() for index in pool.devices])
