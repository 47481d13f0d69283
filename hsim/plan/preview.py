"""An instant preview of fleets by queueing approximations: for sliders and first looks, never for a verdict.

Pools of cores are M/G/c queues (Erlang C, scaled by Allen and Cunneen). An engine is a processor that its visits share: the
batch at which tokens come in as fast as steps put them out (Little's law), with prompts taking their part of the time.
Waits enter by their means, so that what a preview says of far tails is rough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hsim.costs.shapes import StepShape
from hsim.description.system import System
from hsim.drivers.prepared import Prepared
from hsim.engine.replica import ReplicaSpec
from hsim.metrics.statistics import Floats
from hsim.plan.bounds import Conditions, Needs, capacity, conditions_of
from hsim.plan.problem import OWN, Problem
from hsim.plan.result import Preview

TASKS = 400  # drawn tasks that a preview sends through its formulas
PROMPTS = 12  # prompt lengths at which prefill is asked for; between them it is interpolated
HALVINGS = 40


def preview(problem: Problem, fleets: Iterable[int] | None = None) -> tuple[Preview, ...]:
    """Every fleet of a problem that no necessary condition rules out, in order of price, by a queueing approximation."""
    conditions = conditions_of(problem, 1e-6, alone=False)
    return previews(problem, conditions, fleets)


def previews(problem: Problem, conditions: Conditions, fleets: Iterable[int] | None = None) -> tuple[Preview, ...]:
    """The same with what is known of the designs already."""
    numbers = range(len(problem.fleets)) if fleets is None else fleets
    alive = [n for n in numbers if conditions.refutes(problem.fleets[n]) is None]
    samples = {key: _Sample(needs) for key, needs in conditions.needs.items() if needs.rate_per_s is not None}
    found = [one for number in alive if (one := _previewed(problem, samples, number)) is not None]
    return tuple(sorted(found, key=lambda p: (p.fleet.usd_per_h or math.inf, p.fleet.number)))


class _Sample:
    """The drawn tasks of a design under a load, as arrays over tasks and over visits."""

    def __init__(self, needs: Needs) -> None:
        assert needs.rate_per_s is not None
        self.prepared, self.rate_per_s = needs.prepared, needs.rate_per_s
        prepared, tasks = needs.prepared, needs.prepared.drawn.tasks[:TASKS]
        visits = [(i, visit) for i, task in enumerate(tasks) for visit in task.rounds]
        self.count = len(tasks)
        self.understand_s = np.array([_understand_s(prepared, t.class_name, t.understand_tokens) for t in tasks])
        self.owner = np.array([i for i, _ in visits])
        self.prompt = np.array([v.input_tokens for _, v in visits], dtype=np.float64)
        self.fresh = np.array([_fresh(prepared, v.input_tokens, v.shared_tokens) for _, v in visits])
        self.output = np.array([v.output_tokens for _, v in visits], dtype=np.float64)
        units = {name: prepared.tools[name].seconds(prepared.system.tools[name].units) for name in prepared.tools}
        self.tool_s = np.array([units[v.call.tool] if v.call else 0.0 for _, v in visits])
        self.outside_s = np.array([v.call.outside_wait_s if v.call else 0.0 for _, v in visits])
        self.visits_per_s = self.rate_per_s * len(visits) / len(tasks)
        # Tokens of context of a sequence that decodes, on average over time.
        self.context = float(np.average(self.prompt + self.output / 2, weights=self.output))
        self._prompts_s: dict[str, Floats] = {}
        self._steps_s: dict[tuple[str, int], float] = {}

    # Fleets of a design differ in how many servers they have: what a prompt or a step takes is asked for once.

    def prompts_s(self, pool: str) -> Floats:
        """Seconds that each prompt takes by itself."""
        if pool not in self._prompts_s:
            self._prompts_s[pool] = _prefill_s(self.prepared.replicas[pool], self.fresh)
        return self._prompts_s[pool]

    def step_s(self, pool: str, batch: float) -> float:
        """Seconds of a decode step of a batch, between whole ones interpolated."""
        below = max(1, math.floor(batch))
        first, second = (self._whole_step_s(pool, n) for n in (below, below + 1))
        return first + max(0.0, batch - below) * (second - first)

    def _whole_step_s(self, pool: str, batch: int) -> float:
        if (pool, batch) not in self._steps_s:
            costs = self.prepared.replicas[pool].costs
            self._steps_s[pool, batch] = costs.segment(StepShape(batch, int(batch * self.context))).seconds
        return self._steps_s[pool, batch]


def _understand_s(prepared: Prepared, kind: str, tokens: int) -> float:
    operation = prepared.understand.get(kind)  # none where a model on an engine understands
    return operation.seconds(tokens) if tokens and operation else 0.0


def _fresh(prepared: Prepared, prompt: int, shared: int) -> float:
    """Tokens of a prompt that must be prefilled."""
    caching = any(spec.pool.prefix_caching for spec in prepared.replicas.values())
    return float(prompt - shared if caching else prompt)


def _previewed(problem: Problem, samples: dict[tuple[int, str], _Sample], number: int) -> Preview | None:
    place = problem.places[number]
    attained: dict[str, float] = {}
    own: _Approximation | None = None
    for load in problem.loads:
        if (place.design, load) not in samples:
            return None
        approximation = _Approximation(samples[place.design, load], problem.system(number, load))
        for objective in problem.objectives:
            if objective.load == load:
                attained[f"{load}.{objective.metric}"] = approximation.attained(objective.metric, objective.slo.max_s)
        own = approximation if load == OWN else own
    assert own is not None
    holds = all(attained[f"{o.load}.{o.metric}"] >= o.slo.p for o in problem.objectives)
    busiest = max(own.utilisation, key=lambda pool: own.utilisation[pool])
    mean_s = float(own.e2e_s.mean())
    return Preview(problem.fleets[number], own.utilisation, busiest, mean_s, attained, holds)


@dataclass(frozen=True)
class _Decode:
    """How a replica decodes: sequences a step, seconds of a step, what part of its time prompts take, and of its seats."""

    step_s: float
    prefill_fraction: float
    seats_fraction: float


class _Approximation:
    """One fleet under one load."""

    def __init__(self, sample: _Sample, system: System) -> None:
        self.sample, self.system, stages = sample, system, system.scenario.stages
        self.utilisation: dict[str, float] = {}
        understand_wait_s = self._cores_wait_s(stages.pools("understand"))
        tool_wait_s = self._cores_wait_s(stages.pools("tool"))
        prefill_pool = stages.prefill or stages.generate
        prompts_s = sample.prompts_s(prefill_pool)
        prompt_wait_s, share = self._prompts(prefill_pool, prompts_s)
        decode = self._decode(stages.generate, 0.0 if stages.prefill else share)
        later = np.maximum(sample.output - 1, 0.0)
        self.ttft_s = prompts_s + prompt_wait_s + 0.5 * decode.step_s
        self.tpot_s = np.full(len(later), decode.step_s / max(1 - decode.prefill_fraction, 1e-9))
        visits_s = np.where(sample.tool_s > 0, sample.tool_s + sample.outside_s + tool_wait_s, 0.0)
        visits_s = visits_s + self.ttft_s + later * self.tpot_s
        self.e2e_s = np.bincount(sample.owner, visits_s, sample.count) + sample.understand_s
        self.e2e_s += np.where(sample.understand_s > 0, understand_wait_s, 0.0)
        last = np.append(np.diff(sample.owner) > 0, True)
        self.answer_s = self.e2e_s - (later * self.tpot_s)[last]

    def attained(self, metric: str, max_s: float) -> float:
        """The fraction that keeps an objective."""
        if any(used >= 1 for used in self.utilisation.values()):
            return 0.0
        values = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s, "answer_ttft": self.answer_s}[metric]
        return float((values <= max_s).mean())

    def _cores_wait_s(self, named: tuple[str, ...]) -> float:
        """The mean wait for a core of a stage's pools, taken as one: Allen and Cunneen's approximation of M/G/c.

        A model that understands on an engine is left out: its wait and its work are not approximated.
        """
        pools = [pool for pool in named if pool in self.system.core_pools()]
        if not pools:
            return 0.0
        sample, stages = self.sample, self.system.scenario.stages
        jobs = []
        if named == stages.pools("understand"):
            jobs.append(sample.understand_s[sample.understand_s > 0])
        if named == stages.pools("tool"):
            jobs.append(sample.tool_s[sample.tool_s > 0])
        service_s = np.concatenate(jobs)
        if not len(service_s):
            return 0.0
        servers = sum(int(capacity(self.system, pool)) for pool in pools)
        load = self.sample.rate_per_s * float(service_s.sum()) / sample.count
        self.utilisation |= dict.fromkeys(pools, load / servers)
        per_s = load / float(service_s.mean())
        return _wait_s(servers, per_s, service_s)

    def _prompts(self, pool: str, prompts_s: Floats) -> tuple[float, float]:
        """The mean wait of a prompt for others on its replica, and the part of the time that prompts take."""
        replicas = int(capacity(self.system, pool))
        share = self.sample.visits_per_s / replicas * float(prompts_s.mean())
        if pool != self.system.scenario.stages.generate:
            self.utilisation[pool] = share
        return _wait_s(1, self.sample.visits_per_s / replicas, prompts_s), share

    def _decode(self, pool: str, prefill_fraction: float) -> _Decode:
        """The batch at which steps put out tokens as fast as visits ask for them, by bisection."""
        spec, sample = self.sample.prepared.replicas[pool], self.sample
        kv_tokens = spec.kv_blocks * spec.pool.block_tokens
        most = max(1.0, min(float(spec.pool.max_num_seqs), kv_tokens / (sample.context + float(sample.output.mean()))))
        wanted_per_s = sample.visits_per_s * float(sample.output.mean()) / capacity(self.system, pool)
        left = max(1 - prefill_fraction, 1e-9)

        def too_few(batch: float) -> bool:
            return batch * left / sample.step_s(pool, batch) < wanted_per_s

        low, high = 0.0, most
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if too_few(middle) else (low, middle)
        full = prefill_fraction >= 1 or too_few(most)
        self.utilisation[pool] = max(1.0, prefill_fraction) if full else max(high / most, prefill_fraction)
        return _Decode(sample.step_s(pool, high), min(prefill_fraction, 1.0), high / most)


def _prefill_s(spec: ReplicaSpec, tokens: Floats) -> Floats:
    """Seconds that prompts take by themselves."""
    lengths = np.unique(np.geomspace(1, max(2.0, float(tokens.max())), PROMPTS).astype(np.int64))
    seconds = [
        spec.costs.segment(
            StepShape(0, 0, chunks=1, chunk_tokens=n, chunk_context_tokens=n, pairs=n * (n + 1) // 2)
        ).seconds
        for n in lengths.tolist()
    ]
    return np.asarray(np.interp(tokens, lengths, seconds), dtype=np.float64)


def _wait_s(servers: int, per_s: float, service_s: Floats) -> float:
    """The mean wait in M/G/c: Erlang's, scaled by half of one and the squared coefficient of variation."""
    mean_s = float(service_s.mean())
    load = per_s * mean_s
    if load >= servers:
        return math.inf
    blocked = 1.0  # Erlang B, by its recursion
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    waits = blocked / (1 - load / servers * (1 - blocked))
    return waits * mean_s / (servers - load) * (1 + float(service_s.var()) / mean_s**2) / 2


def holding(found: Sequence[Preview]) -> Preview | None:
    """The cheapest fleet that the approximation says holds."""
    return next((one for one in found if one.holds), None)
