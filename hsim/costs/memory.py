"""What fits in an accelerator's memory: weights, and tokens of KV cache."""

from __future__ import annotations

from hsim.costs.composed import Placement
from hsim.costs.laws import ELEMENT_BYTES, working_precision
from hsim.description.system import Figures
from hsim.errors import DescriptionError
from hsim.units import GB


def kv_capacity_tokens(placement: Placement, gpu_memory_utilization: float, figures: Figures, where: str) -> int:
    """Tokens of context that one replica holds. Raises DescriptionError where the weights alone do not fit.

    Layers with a window count in full, as in an engine that keeps all layers' blocks alike: too few tokens rather than
    too many. States of a fixed size are left to reserved_bytes.
    """
    model, ways = placement.model, placement.devices
    memory_bytes = figures.value(placement.chip, "memory_bytes")
    reserved_bytes = figures.value(placement.engine, "reserved_bytes")
    weight_bytes = _weight_bytes(placement)
    free_bytes = ways * (memory_bytes * gpu_memory_utilization - reserved_bytes) - weight_bytes
    element_bytes = ELEMENT_BYTES[placement.kv_precision or working_precision(placement.precision)]
    split = placement.tensor_parallel  # a group keeps its own sequences; of a latent vector every device has a copy
    copies = split if model.latent else max(1.0, split / model.kv_heads)
    kv_bytes = element_bytes * model.kv_elements_per_token * copies
    tokens = int(free_bytes // kv_bytes)
    if tokens < 1:
        usable = memory_bytes * gpu_memory_utilization - reserved_bytes
        needed = -(-weight_bytes // usable) if usable > 0 else 0
        what = (
            f"{model.name} in {placement.precision} has {weight_bytes / GB:.1f} GB of weights; {ways} x "
            f"{placement.chip.name} leave {max(0.0, ways * usable) / GB:.1f} GB for weights and KV cache"
        )
        least = _next_power_of_two(needed / placement.data_parallel)
        raise DescriptionError(where, what, f"use tensor_parallel {least} or more, or a lower precision")
    return tokens


def _weight_bytes(placement: Placement) -> float:
    model = placement.model
    embeddings = model.parameters - model.layer_parameters  # quantisation leaves them alone
    weights, others = placement.precision, working_precision(placement.precision)
    dense = others if weights == "mxfp4" else weights  # mxfp4 is for experts alone
    products = model.layer_parameters - model.expert_parameters
    each_group = products * ELEMENT_BYTES[dense] + embeddings * ELEMENT_BYTES[others]
    return model.expert_parameters * ELEMENT_BYTES[weights] + placement.data_parallel * each_group


def _next_power_of_two(needed: float) -> int:
    ways = 1
    while ways < needed:
        ways *= 2
    return ways
