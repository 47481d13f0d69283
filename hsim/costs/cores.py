"""Costs of a model's passes on CPU cores: a roofline of the cores' products and their share of the memory's rate.

Its joules are those of busy cores, which the host's power counts; a step itself has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hsim.costs.laws import ELEMENT_BYTES, working_precision
from hsim.costs.shapes import Segment, StepShape, steps_until_negative
from hsim.description.hardware import EngineProfile, Precision
from hsim.description.model import ModelArchitecture
from hsim.description.system import Figures, Tier
from hsim.errors import DescriptionError
from hsim.units import GB


@dataclass(frozen=True)
class CorePlacement:
    """A model on so many cores of a tier's servers, under one engine."""

    model: ModelArchitecture
    tier: Tier
    engine: EngineProfile
    cores: int
    precision: Precision

    @property
    def share(self) -> float:
        """The part of a server's cores, and so of its memory's rate and room, that a replica has."""
        return self.cores / self.tier.cores_per_server


def check_runs_on_cores(placement: CorePlacement, where: str) -> None:
    """Raises DescriptionError where a CPU has no figures for a model's passes, or no law describes the model."""
    cpu, model = placement.tier.cpu, placement.model
    if cpu.products is None:
        raise DescriptionError(
            where, f"{cpu.name} has no figures for a model's passes (products)", "use another server"
        )
    if placement.precision not in cpu.products.flops_per_core_per_s:
        known = ", ".join(cpu.products.flops_per_core_per_s)
        raise DescriptionError(where, f"{cpu.name} has no figures for {placement.precision}", f"it has {known}")
    if model.experts or model.state or model.latent:
        raise DescriptionError(
            where, f"{model.name} is no dense model, and on cores only those run", "use a dense model"
        )


class CoreCosts:
    """Seconds of steps of one replica on cores: StepCosts.

    Cores are taken to be as fast as when all of the server's are busy, and to have their part of its memory's rate:
    what else goes on there then changes nothing, and a replica that is alone is faster than this says.
    """

    def __init__(self, placement: CorePlacement, figures: Figures) -> None:
        cpu, engine, model, precision = placement.tier.cpu, placement.engine, placement.model, placement.precision

        def of(path: str) -> float:
            return figures.value(cpu, f"products.{path}")

        slowdown = figures.value(cpu, "contention_slowdown")
        self._flops_per_s = placement.cores * of(f"flops_per_core_per_s.{precision}") / slowdown
        memory = placement.tier.server.sockets * figures.value(cpu, "memory_bytes_per_s")
        self._bytes_per_s = placement.share * memory * of("bandwidth_fraction")
        per_step = figures.value(engine, "host_s_per_step") if engine.host_s_per_step else 0.0
        per_layer = figures.value(engine, "host_s_per_layer") + of("layer_sync_s")
        self._step_s = per_step + model.layers * per_layer
        self._sequence_s = figures.value(engine, "host_s_per_sequence")
        self._layer_weights, self._head_weights = model.layer_parameters, model.head.parameters
        self._weight_bytes = ELEMENT_BYTES[precision] * model.layer_parameters
        self._head_bytes = ELEMENT_BYTES[working_precision(precision)] * model.head.parameters
        self._kv_bytes = ELEMENT_BYTES[working_precision(precision)] * model.kv_elements_per_token
        self._pair_flops = 4.0 * model.attended_layers * model.attention_heads * model.head_dim
        self._both_ways = model.is_encoder

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts. Affine until the other side of the roofline takes longer. Windows count as full attention."""
        pairs = 2 * shape.pairs - shape.chunk_tokens if self._both_ways else shape.pairs
        flops = 2.0 * (shape.new_tokens * self._layer_weights + shape.sequences * self._head_weights)
        flops += self._pair_flops * (shape.context_tokens + pairs)
        n_bytes = self._weight_bytes + self._head_bytes
        n_bytes += self._kv_bytes * (shape.context_tokens + shape.chunk_context_tokens)
        compute_s, memory_s = flops / self._flops_per_s, n_bytes / self._bytes_per_s
        compute_growth_s = self._pair_flops * (shape.decodes + shape.pairs_growth) / self._flops_per_s
        memory_growth_s = self._kv_bytes * (shape.decodes + shape.chunk_tokens) / self._bytes_per_s
        ahead_s, ahead_growth_s = compute_s - memory_s, compute_growth_s - memory_growth_s
        computes = ahead_s >= 0
        seconds, growth_s = (compute_s, compute_growth_s) if computes else (memory_s, memory_growth_s)
        lead = (ahead_s, ahead_growth_s) if computes else (-ahead_s, -ahead_growth_s)
        fixed_s = self._step_s + self._sequence_s * shape.sequences
        return Segment(seconds + fixed_s, growth_s, 0.0, 0.0, 0.0, steps_until_negative(*lead))


def kv_capacity_on_cores(placement: CorePlacement, memory_utilization: float, figures: Figures, where: str) -> int:
    """Tokens of context that a replica on cores holds in its part of the server's memory.

    Raises DescriptionError where the weights alone do not fit.
    """
    model = placement.model
    room = placement.share * memory_utilization * figures.value(placement.tier.server, "memory_bytes")
    weights = ELEMENT_BYTES[placement.precision] * model.parameters
    free_bytes = room - figures.value(placement.engine, "reserved_bytes") - weights
    tokens = math.floor(
        free_bytes / (ELEMENT_BYTES[working_precision(placement.precision)] * model.kv_elements_per_token)
    )
    if tokens < 1:
        what = f"{model.name} has {weights / GB:.1f} GB of weights; {placement.cores} cores have {room / GB:.1f} GB of memory"
        raise DescriptionError(where, what, "give a replica more cores, or use a smaller model")
    return tokens
