"""A closed loop of users served by hsim's own engine: what a serving run would have measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from closed_loop import Load
from simpy.events import Event

from hsim.costs.composed import ComposedCosts
from hsim.costs.cpu import HostPower
from hsim.description.system import FilledPool
from hsim.engine.cores import Host
from hsim.engine.environment import TASK_ARRIVES, EngineEnvironment
from hsim.engine.executor import ModelledTime
from hsim.engine.replica import Replica, ReplicaSpec
from hsim.engine.visits import Prompt
from hsim.log import Log, Stage
from hsim.policies.batching import decode_first

NO_LIMIT = 10**12  # of the KV cache: rows say how many sequences ran, so memory was enough for them


@dataclass(frozen=True)
class Protocol:
    """How a run was measured: from a cold start over all requests, or in a steady window; requests per user."""

    steady: bool
    rounds: int


COLD = Protocol(False, 10)  # InferenceMAX: ten prompts for each of the concurrency, all counted
STEADY = Protocol(True, 3)


@dataclass(frozen=True)
class Observed:
    """What the run measured. Watts and joules are of all its accelerators, idle included; nan where unknown."""

    tokens_per_s: float
    ttft_s: float
    tpot_s: float
    itl_median_s: float
    watts: float
    joules_per_token: float


def _lengths(rng: np.random.Generator, mean: float, cv: float, size: int) -> Any:
    """Lengths of that mean: evenly spread for small cv (80 to 100 % of a nominal length), else lognormal."""
    if cv <= 0.1:
        half = mean * cv * np.sqrt(3)
        drawn = rng.uniform(mean - half, mean + half, size)
    else:
        sigma = np.sqrt(np.log1p(cv**2))
        drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, size)
    return np.maximum(2, np.round(drawn)).astype(int)


class _Loop:
    """Users who each send a prompt as soon as their last is answered."""

    def __init__(self, costs: ComposedCosts, load: Load, protocol: Protocol, idle_w: float) -> None:
        self.env, self.log = EngineEnvironment(), Log()
        pool = FilledPool.model_construct(
            runs_on="x.gpu", engine=costs.placement.engine.name, tensor_parallel=costs.placement.tensor_parallel, replicas=1,
            max_num_seqs=10**6, max_num_batched_tokens=load.budget_tokens, gpu_memory_utilization=0.9, block_tokens=16, prefix_caching=False,
        )  # fmt: skip
        host = Host(self.env, self.log, 0, HostPower(1, 0.0, 0.0, 1.0))
        spec = ReplicaSpec(pool, costs, decode_first, NO_LIMIT, idle_w, 0)
        self.replica = Replica(self.env, self.log, 0, spec, host, ModelledTime(self.env))
        users = max(1, round(load.sequences))
        total = users * protocol.rounds
        rng = np.random.default_rng([users, int(load.prompt_tokens), int(load.output_tokens)])
        spread = 0.3 if protocol.steady else 0.065
        self.prompts = _lengths(rng, load.prompt_tokens, min(spread, load.output_cv), total)
        self.outputs = _lengths(rng, load.output_tokens, load.output_cv, total)
        if protocol.steady:  # the first ones are met half way
            self.outputs[:users] = np.maximum(2, self.outputs[:users] * rng.random(users)).astype(int)
        self.next, self.total, self.done = 0, total, list[Prompt]()
        for user in range(users):
            self.env.call_at(0.0, TASK_ARRIVES + user, lambda _: self._send())
        self.env.run()

    def _send(self) -> None:
        if self.next == self.total:
            return
        prompt = Prompt(self.next, 0, Stage.GENERATE, int(self.prompts[self.next]), Event(self.env))
        prompt.output_tokens = prompt.max_output_tokens = int(self.outputs[self.next])
        prompt.queued_s = self.env.now
        prompt.done.callbacks.append(lambda _: self._answered(prompt))
        self.next += 1
        self.replica.submit(prompt)

    def _answered(self, prompt: Prompt) -> None:
        self.done.append(prompt)
        self._send()


def observe(costs: ComposedCosts, load: Load, protocol: Protocol, idle_w: float) -> Observed:
    """Run a closed loop and measure it as its protocol says."""
    loop = _Loop(costs, load, protocol, idle_w)
    users = max(1, round(load.sequences))
    if protocol.steady:  # from when every user has been answered once to when the first finds no more work
        start, end = loop.done[users - 1].served_s, loop.done[-users].served_s
        asked = [p for p in loop.done if p.queued_s >= start and p.served_s <= end] or loop.done
    else:
        start, end, asked = 0.0, loop.done[-1].served_s, loop.done
    rows = loop.log.steps.arrays()
    steps, decodes = rows["steps"], rows["decodes"]
    each_s = rows["seconds"] + rows["seconds_growth"] * (steps - 1) / 2
    inside = (rows["start_s"] >= start) & (rows["end_s"] <= end) if protocol.steady else np.ones(len(steps), dtype=bool)
    inside = inside if inside.any() else np.ones(len(steps), dtype=bool)
    seconds = float((steps * each_s)[inside].sum())
    finished = sum(1 for p in loop.done if start < p.first_token_s <= end or not protocol.steady)
    tokens = float((steps * decodes)[inside].sum()) + finished
    above_j = float((steps * (rows["joules"] + rows["joules_growth"] * (steps - 1) / 2))[inside].sum())
    watts = above_j / seconds + idle_w
    order = np.argsort(each_s[inside])
    weight = np.cumsum((steps * decodes)[inside][order])
    middle = order[np.searchsorted(weight, weight[-1] / 2)] if weight[-1] else order[-1]
    return Observed(
        tokens / seconds,
        float(np.mean([p.first_token_s - p.queued_s for p in asked])),
        float(np.mean([(p.served_s - p.first_token_s) / (p.output_tokens - 1) for p in asked])),
        float(each_s[inside][middle]),
        watts,
        watts * seconds / tokens,
    )
