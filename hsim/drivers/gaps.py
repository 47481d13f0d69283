"""What pools do with contexts between the rounds of a task, found to be possible, and how long tools take on average."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hsim.costs.cpu import OperationCost
from hsim.costs.laws import ELEMENT_BYTES, working_precision
from hsim.costs.shapes import StepShape
from hsim.description.system import FilledPool, System
from hsim.description.yamlfile import did_you_mean
from hsim.drivers.memory import link_spec, own_way
from hsim.engine.gaps import GapSpec
from hsim.engine.link import LinkSpec
from hsim.engine.replica import ReplicaSpec
from hsim.errors import DescriptionError, MistakeError
from hsim.log import host_memory
from hsim.policies.gaps import GAPS
from hsim.workload.histograms import with_histograms_read
from hsim.workload.streams import quantiles

QUANTILES = (np.arange(1000) + 0.5) / 1000


def gap_spec(system: System, name: str, spec: ReplicaSpec) -> GapSpec | None:
    """How a pool's replicas treat contexts in gaps; None where these are free blocks like any other.

    Raises DescriptionError for what cannot be.
    """
    pool = spec.pool
    if pool.tool_gaps not in GAPS:
        at = system.document.where(("pools", name, "tool_gaps"))
        raise MistakeError(at, f"there is no policy {pool.tool_gaps!r}", did_you_mean(pool.tool_gaps, list(GAPS)))
    if pool.tool_gaps == "cache":
        return None
    at = system.document.where(("pools", name, "tool_gaps"))
    if not pool.prefix_caching:
        raise DescriptionError(at, f"{pool.tool_gaps} keeps a context to be found again", "set prefix_caching to true")
    if system.scenario.stages.prefill:
        raise DescriptionError(at, "contexts are prefilled elsewhere at every round", "leave it out, or stages.prefill")
    if len(system.scenario.serving("generate")) > 1:
        raise DescriptionError(at, "several pools generate, and a context is kept by one", "leave it out")
    idle = spec.costs.segment(StepShape(0, 0, 1, 1, 1, 1)).joules + spec.idle_w
    if pool.tool_gaps == "least-joules" and math.isnan(idle):
        raise DescriptionError(at, "least-joules needs watts that are unknown", "see --explain, or use least-waste")
    link = own_way(system, name, pool) if pool.memory else _host_link(system, name, pool)
    precision = pool.kv_precision or working_precision(pool.precision)
    kv_bytes = ELEMENT_BYTES[precision] * system.model_of(name).kv_elements_per_token
    beyond = link_spec(system.memory_links[pool.memory], system) if pool.memory else None
    host_bytes = pool.host_kv_bytes or 0.0
    return GapSpec(GAPS[pool.tool_gaps], kv_bytes, host_bytes, link, host_memory(name), pool.memory, beyond)


def _host_link(system: System, name: str, pool: FilledPool) -> LinkSpec | None:
    """The way to host memory, all accelerators of a replica side by side; None where the pool may not use it."""
    at = system.document.where(("pools", name, "host_kv_bytes"))
    if pool.host_kv_bytes is None or pool.host_link is None:
        if pool.tool_gaps == "offload" or pool.host_kv_bytes or pool.host_link:
            missing = "host_link" if pool.host_kv_bytes else "host_kv_bytes"
            remedy = (
                "host_link: pcie5-pinned"
                if missing == "host_link"
                else "how much of a server's memory a replica may use, or name a shared memory"
            )
            raise DescriptionError(at, f"to offload, {missing} is missing", f"say {remedy}")
        return None
    if pool.on_cores:
        raise DescriptionError(at, f"pool {name!r} runs on cores and has its KV cache in host memory", "leave it out")
    most = max(Counter(system.placements()[name]).values())
    memory_bytes = system.figures.value(system.tier_of(name).server, "memory_bytes")
    if most * pool.host_kv_bytes > memory_bytes:
        what = f"{most} replicas on a server would use {most * pool.host_kv_bytes:.3g} bytes of its {memory_bytes:.3g}"
        raise DescriptionError(at, what, f"at most {memory_bytes / most:.3g}")
    return link_spec(system.host_links[name], system, pool.accelerators)


def expected_gaps(system: System, tools: Mapping[str, OperationCost]) -> dict[str, float]:
    """Seconds that a call of each tool takes on average, queues aside: on its core, and outside."""
    beside, gaps = Path(system.document.file).parent, {}
    for name, cost in tools.items():
        tool = with_histograms_read(system.tools[name], beside)
        outside = quantiles(tool.outside_wait_s, QUANTILES).mean() if tool.outside_wait_s else 0.0
        gaps[name] = cost.seconds(tool.units) + float(outside)
    return gaps
