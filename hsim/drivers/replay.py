"""Tasks through one bare replica: requests that were served elsewhere, replayed under step costs that are being fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hsim.costs.cpu import HostPower
from hsim.costs.shapes import StepCosts
from hsim.description.system import FilledPool
from hsim.engine.cores import Host
from hsim.engine.environment import EngineEnvironment
from hsim.engine.executor import ModelledTime
from hsim.engine.life import Pipeline, run_tasks
from hsim.engine.pool import Pool
from hsim.engine.replica import Replica, ReplicaSpec
from hsim.log import Log, Stage
from hsim.policies.batching import decode_first
from hsim.policies.routing import ROUTERS
from hsim.workload.tasks import Task

Floats = NDArray[np.float64]
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Limits:
    """What a replica takes at a time, how many tokens of context it holds, and what passes before its queue."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int
    request_latency_s: float = 0.0


def replay(tasks: Sequence[Task], costs: StepCosts, limits: Limits) -> dict[str, Floats]:
    """Columns of Log.visits, a row for each visit in order of task and round."""
    env, record = EngineEnvironment(), Log()
    settings = FilledPool.model_construct(
        runs_on="x.gpu",
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        gpu_memory_utilization=1.0,
        block_tokens=BLOCK_TOKENS,
        prefix_caching=False,
        max_waiting=None,
        replicas=1,
        tensor_parallel=1,
    )
    spec = ReplicaSpec(settings, costs, decode_first, limits.kv_tokens // BLOCK_TOKENS, 0.0, 0)
    host = Host(env, record, 0, HostPower(1, 0.0, 0.0, 1.0))
    pool = Pool("decode", [Replica(env, record, 0, spec, host, ModelledTime(env))], ROUTERS["round-robin"])
    latency_s = {"decode": limits.request_latency_s} if limits.request_latency_s else {}
    pipeline = Pipeline({Stage.GENERATE: pool}, {}, {}, {}, {}, 0.0, 0.0, 0.0, False, request_latency_s=latency_s)
    run_tasks(env, record, pipeline, list(tasks))
    visits: dict[str, Floats] = record.visits.arrays()
    order = np.lexsort((visits["round"], visits["task"]))
    return {name: values[order] for name, values in visits.items()}
