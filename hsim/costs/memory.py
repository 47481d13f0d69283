"""What fits in an accelerator's memory: weights, and tokens of KV cache."""

from __future__ import annotations

from math import ceil

from hsim.costs.composed import Placement
from hsim.costs.laws import ELEMENT_BYTES, working_precision
from hsim.description.system import Figures
from hsim.errors import DescriptionError
from hsim.units import GB


def kv_capacity_tokens(
    placement: Placement,
    gpu_memory_utilization: float,
    figures: Figures,
    where: str,
    also_bytes: float = 0.0,
    most: int | None = None,
) -> int:
    """Tokens of context that one replica holds beside its weights and `also_bytes`.

    Raises DescriptionError where the weights alone do not fit, which advises no more than the `most` accelerators that a
    server has.

    Layers with a window count in full, as in an engine that keeps all layers' blocks alike: too few tokens rather than
    too many. States of a fixed size are left to reserved_bytes.
    """
    model, ways = placement.model, placement.devices
    memory_bytes = figures.value(placement.chip, "memory_bytes")
    reserved_bytes = figures.value(placement.engine, "reserved_bytes")
    elsewhere = placement.streamed.n_bytes if placement.streamed else 0.0
    kept_bytes = weight_bytes(placement) - elsewhere + also_bytes
    free_bytes = ways * (memory_bytes * gpu_memory_utilization - reserved_bytes) - kept_bytes
    element_bytes = ELEMENT_BYTES[placement.kv_precision or working_precision(placement.precision)]
    split = placement.tensor_parallel  # a group keeps its own sequences; of a latent vector every device has a copy
    copies = split if model.latent else max(1.0, split / model.kv_heads)
    kv_bytes = element_bytes * model.kv_elements_per_token * copies
    tokens = int(free_bytes // kv_bytes)
    if tokens < 1:
        usable = memory_bytes * gpu_memory_utilization - reserved_bytes
        what = (
            f"{model.name} in {placement.precision} has {kept_bytes / GB:.1f} GB of weights; {ways} x "
            f"{placement.chip.name} leave {max(0.0, ways * usable) / GB:.1f} GB for weights and KV cache"
        )
        raise DescriptionError(where, what, _what_holds(placement, kept_bytes + kv_bytes, usable, most))
    return tokens


def _what_holds(placement: Placement, needed_bytes: float, usable_bytes: float, most: int | None) -> str:
    """How many accelerators hold a model and a token of context, each giving so many bytes, or what helps beside them."""
    if usable_bytes <= 0:
        return f"{placement.chip.name} keeps all of its memory for the engine: use another engine or chip"
    least = max(1, ceil(needed_bytes / placement.data_parallel / usable_bytes))
    stages = ceil(least / placement.tensor_parallel)
    # Where nothing is known of a hop between stages, over tensor_parallel alone.
    split = placement.chip.kernels.hop is None
    group = _next_power_of_two(least) if split else stages * placement.tensor_parallel
    if most is not None and group * placement.data_parallel > most:
        return f"a server has {most} of them: use a lower precision, or a server with more or larger accelerators"
    if split:
        return f"use tensor_parallel {group} or more, or a lower precision"
    held = f"it takes {least} of them; use pipeline_parallel {stages} with tensor_parallel {placement.tensor_parallel}"
    return f"{held}, or a lower precision"


def weight_bytes(placement: Placement) -> float:
    """Bytes of a replica's weights, wherever they are kept."""
    model = placement.model
    embeddings = model.parameters - model.layer_parameters  # quantisation leaves them alone
    weights, others = placement.precision, working_precision(placement.precision)
    dense = others if weights == "mxfp4" else weights  # mxfp4 is for experts alone
    products = model.layer_parameters - model.expert_parameters
    each = placement.sparsity.weight_bytes(dense) if placement.sparsity else ELEMENT_BYTES[dense]
    each_group = products * each + embeddings * ELEMENT_BYTES[others]
    return model.expert_parameters * ELEMENT_BYTES[weights] + placement.data_parallel * each_group


def _next_power_of_two(needed: float) -> int:
    ways = 1
    while ways < needed:
        ways *= 2
    return ways
