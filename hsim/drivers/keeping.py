"""Tasks kept at the edge: what is drawn of each, and what the policy wants of it, before the run."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from hsim.description.keeping import Keep
from hsim.description.system import System
from hsim.engine.keeping import KeepSpec
from hsim.engine.replica import ReplicaSpec
from hsim.policies.keeping import Keeper, KeepLimits, KeepView
from hsim.workload.streams import uniforms
from hsim.workload.tasks import Task, expected_rounds_left


def keep_spec(system: System, keep: Keep, policy: Keeper, replica: ReplicaSpec, tasks: Sequence[Task]) -> KeepSpec:
    """Difficulty, the router's guess and the judge's verdict are keyed by task: the same under every policy.

    What is too long for the edge is not kept, whatever the policy says.
    """
    seed, count = system.scenario.seed, len(tasks)
    u = uniforms(seed, "difficulty", count)
    fractions = [_easy_fraction(keep, task.class_name) for task in tasks]
    easy = (u < np.array(fractions)).tolist()
    sees = (uniforms(seed, "router", count) < keep.router_accuracy).tolist()
    judges = [True] * count
    if keep.check_accuracy is not None:
        judges = (uniforms(seed, "judge", count) < keep.check_accuracy).tolist()
    limits = KeepLimits(keep.max_input_tokens or inf, keep.classes)
    left = {name: expected_rounds_left(kind)[0] for name, kind in system.scenario.workload.classes.items()}
    room = min(replica.kv_blocks * replica.pool.block_tokens, system.model_of(keep.pool).max_context_tokens)
    wanted = [
        policy(KeepView(task.class_name, task.rounds[0].input_tokens, left[task.class_name], its == seen), limits)
        and all(visit.input_tokens + task.max_output_tokens <= room for visit in task.rounds)
        for task, its, seen in zip(tasks, easy, sees, strict=True)
    ]
    good = [True] * count if keep.check_accuracy is None else [a == b for a, b in zip(easy, judges, strict=True)]
    return KeepSpec(keep.pool, wanted, easy, good, keep.max_waiting)


def _easy_fraction(keep: Keep, class_name: str) -> float:
    return keep.easy_fraction if isinstance(keep.easy_fraction, float | int) else keep.easy_fraction[class_name]
