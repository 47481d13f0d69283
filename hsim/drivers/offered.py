"""The load that tasks bring to each pool whatever the policies: where it exceeds 1, no steady state exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hsim.costs.shapes import StepShape
from hsim.drivers.prepared import Prepared
from hsim.engine.replica import ReplicaSpec
from hsim.log import PoolRecord
from hsim.workload.tasks import Task


def offered_load(
    prepared: Prepared, tasks: Sequence[Task], seconds: float, pools: dict[str, PoolRecord]
) -> dict[str, float]:
    """Least busy seconds that tasks need of each pool's cores or replicas, over those that it has in `seconds`.

    Below 1 it promises nothing: see needed_s.
    """
    needed = needed_s(prepared, tasks)
    return {name: busy_s / (pools[name].capacity * seconds) for name, busy_s in needed.items()}


def needed_s(prepared: Prepared, tasks: Sequence[Task]) -> dict[str, float]:
    """Least busy seconds that tasks need of each pool's cores or replicas.

    Cores: the operations' own times, without contention, in full batches. Replicas: the larger of decoding alone, in
    the fewest steps that max_num_seqs and KV cache allow, and of prompts alone (what a model reads to understand among
    them), in the largest chunks; a step that does both takes at least as long as either.
    """
    stages, cores = prepared.system.scenario.stages, prepared.system.core_pools()
    names = [*prepared.system.scenario.serving("generate"), *prepared.cores]
    needed, prompts_s = dict.fromkeys(names, 0.0), dict.fromkeys(prepared.replicas, 0.0)
    for stage, busy_s in (("understand", _understanding_s), ("tool", _tools_s)):
        serving = stages.pools(stage)
        if len(serving) == 1 and serving[0] in cores:  # among several pools nobody has to go to any one of them
            needed[serving[0]] += busy_s(prepared, tasks, cores[serving[0]].max_batch)
        elif len(serving) == 1:
            prompts_s[serving[0]] += _reading_s(prepared.replicas[serving[0]], tasks)
    for pool, prefill, its in _generating(prepared, tasks):
        needed[pool] += _decoding_s(prepared.replicas[pool], its)
        prompts_s[prefill] += _prompts_s(prepared.replicas[prefill], its)
    return needed | {pool: max(needed.get(pool, 0.0), its_s) for pool, its_s in prompts_s.items() if its_s}


def _generating(prepared: Prepared, tasks: Sequence[Task]) -> Iterator[tuple[str, str, Sequence[Task]]]:
    """Pools that generate, those that prefill for them, and the tasks that have to go there: of those that an edge
    keeps, the ones that do not come to it, or that it must keep however full it is.
    """
    stages, keep = prepared.system.scenario.stages, prepared.keep
    if keep:
        tasks_kept = [task for task in tasks if keep.wanted[task.id]]
        tasks = [task for task in tasks if not keep.wanted[task.id] or not keep.good[task.id]]
        yield keep.pool, keep.pool, tasks_kept if keep.max_waiting is None else []
    yield stages.generate, stages.prefill or stages.generate, tasks


def _understanding_s(prepared: Prepared, tasks: Sequence[Task], batch: int) -> float:
    costs = prepared.understand
    return sum(
        costs[task.class_name].seconds(task.understand_tokens) - costs[task.class_name].once_s * (1 - 1 / batch)
        for task in tasks
        if task.understand_tokens
    )


def _tools_s(prepared: Prepared, tasks: Sequence[Task], batch: int) -> float:
    tools = prepared.system.tools
    each_s = {
        name: cost.seconds(tools[name].units) - cost.once_s * (1 - 1 / batch) for name, cost in prepared.tools.items()
    }
    return sum(each_s[this.call.tool] for task in tasks for this in task.rounds if this.call)


def _reading_s(spec: ReplicaSpec, tasks: Sequence[Task]) -> float:
    """Seconds in which a model reads what tasks ask, in steps as full as its token budget allows."""
    tokens = sum(task.understand_tokens for task in tasks)
    budget = spec.pool.max_num_batched_tokens
    return tokens / budget * spec.least_s(StepShape(0, 0, 1, budget, budget, budget))


def _decoding_s(spec: ReplicaSpec, tasks: Sequence[Task]) -> float:
    """Seconds of decoding with the largest batches that fit: a step costs the less per token the fuller it is.

    KV cache that tasks share may hold any number of them.
    """
    lengths = np.array([(r.input_tokens, r.output_tokens) for task in tasks for r in task.rounds], dtype=np.float64)
    lengths = lengths.reshape(-1, 2)
    later = lengths[:, 1] - 1  # the first token comes with the prompt
    tokens = float(later.sum())
    context_tokens = float((later * (lengths[:, 0] + 1) + later * (later - 1) / 2).sum())
    steps = tokens / min(spec.pool.max_num_seqs, spec.pool.max_num_batched_tokens)
    if not any(r.prefix for task in tasks for r in task.rounds):
        steps = max(steps, context_tokens / (spec.kv_blocks * spec.pool.block_tokens))
    if steps == 0:
        return 0.0
    batch = StepShape(max(1, int(tokens / steps)), int(context_tokens / steps))
    return steps * spec.least_s(batch)


def _prompts_s(spec: ReplicaSpec, tasks: Sequence[Task]) -> float:
    """Seconds of prefilling with chunks that fill the token budget: the larger a chunk, the less a token costs.

    Attention over what came before is left out. Prompts that tasks share may be prefilled once: then nothing is known.
    """
    if any(visit.prefix for task in tasks for visit in task.rounds):
        return 0.0
    kept = spec.pool.prefix_caching
    tokens = sum(v.input_tokens - (v.shared_tokens if kept else 0) for task in tasks for v in task.rounds)
    budget = spec.pool.max_num_batched_tokens
    chunk = StepShape(0, 0, chunks=1, chunk_tokens=budget, chunk_context_tokens=budget, pairs=budget)
    return tokens / budget * spec.least_s(chunk)
