"""Composed costs of generation: kernel laws of an accelerator applied to a model's architecture.

The form, and where it comes from: hsim's study of ML.ENERGY v3 and InferenceMAX runs over AIConfigurator kernel
tables (docs/models.md): leaving one model out, output throughput errs 6.8 % and 7.8 % (MAPE).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hsim.costs.shapes import Segment, StepShape
from hsim.description.hardware import AcceleratorProfile, EngineProfile, Precision
from hsim.description.model import ModelArchitecture
from hsim.description.system import Figures

ELEMENT_BYTES: dict[Precision, float] = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0, "fp8": 1.0}
_ALL_REDUCE = ("launch_s", "per_peer_s", "bytes_per_s")


def working_precision(weights: Precision) -> Precision:
    """The precision of activations, keys and values: that of the weights, but bf16 beside fp8, vLLM's default."""
    return "bf16" if weights == "fp8" else weights


@dataclass(frozen=True)
class Placement:
    """A model on so many accelerators of one kind, under one engine."""

    model: ModelArchitecture
    chip: AcceleratorProfile
    engine: EngineProfile
    tensor_parallel: int
    precision: Precision


@dataclass(slots=True)
class _Tokens:
    """What depends on the step's new tokens alone: worked out once per count."""

    seconds: float
    bytes: float
    flops: float


@dataclass(slots=True)
class Timing:
    """Seconds of a step, their growth per step, those of each context token, and for how many steps that holds."""

    seconds: float
    growth_s: float
    context_step_s: float
    valid_steps: float


class ComposedCosts:
    """Seconds and joules of steps of one replica: StepCosts for a Placement."""

    def __init__(self, placement: Placement, figures: Figures) -> None:
        self.placement = placement
        model, chip, engine, ways = placement.model, placement.chip, placement.engine, placement.tensor_parallel

        def of(path: str) -> float:
            return figures.value(chip, path)

        self._ways, self._model, self._layers = ways, model, model.layers
        working = working_precision(placement.precision)
        self._weight_bytes = ELEMENT_BYTES[placement.precision]
        self._activation_bytes = ELEMENT_BYTES[working]
        self._bandwidth = of("memory_bytes_per_s")
        self._peak = of(f"peak_flops_per_s.{placement.precision}")
        self._factor = of("kernels.overlap_factor")
        law = f"kernels.gemm.{placement.precision}"
        self._gemm_launch_s = of(f"{law}.launch_s")
        self._gemm_bytes_per_s = self._bandwidth * of(f"{law}.bandwidth_fraction")
        self._gemm_flops_per_s = self._peak * of(f"{law}.flops_fraction")
        self._gemms = [
            (math.ceil(n / ways), k) if i in (0, 2) else (n, math.ceil(k / ways))
            for i, (n, k) in enumerate(model.gemms)
        ]
        self._head = (math.ceil(model.vocabulary / ways), model.hidden_size)

        heads_width = model.attention_heads * model.head_dim / ways
        kv_heads = max(1.0, model.kv_heads / ways)  # more ways than KV heads: each device keeps a copy
        self._kv_bytes_per_token = 2 * kv_heads * model.head_dim * self._activation_bytes  # per layer and device
        decode, prefill = "kernels.decode_attention", "kernels.prefill_attention"
        self._decode_launch_s = of(f"{decode}.launch_s")
        self._decode_sequence_s = heads_width * of(f"{decode}.per_element_s") + of(f"{decode}.per_sequence_s")
        self._decode_context_s = self._kv_bytes_per_token / (self._bandwidth * of(f"{decode}.bandwidth_fraction"))
        self._prefill_launch_s = of(f"{prefill}.launch_s")
        self._prefill_token_s = heads_width * of(f"{prefill}.per_element_s")
        self._pair_flops = 4 * heads_width  # two products of query and key, value, per layer and device
        working_peak = of(f"peak_flops_per_s.{working}")
        self._pair_s = self._pair_flops / (working_peak * of(f"{prefill}.flops_fraction"))
        self._all_reduce = tuple(of(f"kernels.all_reduce.{x}") for x in _ALL_REDUCE) if ways > 1 else None

        self._host_step_s = figures.value(engine, "host_s_per_layer") * model.layers
        self._host_sequence_s = figures.value(engine, "host_s_per_sequence")
        watts = {name: ways * figures.if_known(chip, f"power.{name}") for name in ("floor_w", "cap_w", "loaded_idle_w")}
        self._floor_w, self._cap_w, self._loaded_idle_w = watts.values()
        joules = ("joules_per_byte", "joules_per_flop", "joules_per_output_token")
        self._byte_j, self._flop_j, self._output_j = (figures.if_known(chip, f"power.{name}") for name in joules)
        self._context_j = model.layers * ways * self._kv_bytes_per_token * self._byte_j
        self._pair_j = model.layers * ways * self._pair_flops * self._flop_j
        self._by_tokens: dict[int, _Tokens] = {}
        self._by_sequences: dict[int, _Tokens] = {}

    def _gemm(self, m: int, n: int, k: int) -> _Tokens:
        """One product on one device: seconds by the 4-norm of its memory and its compute time."""
        n_bytes = n * k * self._weight_bytes + (m * k + m * n) * self._activation_bytes
        flops = 2.0 * m * n * k
        memory_s, compute_s = n_bytes / self._gemm_bytes_per_s, flops / self._gemm_flops_per_s
        return _Tokens(self._gemm_launch_s + (memory_s**4 + compute_s**4) ** 0.25, n_bytes, flops)

    def _tokens(self, m: int) -> _Tokens:
        """All layers' products and all-reduces for m new tokens; bytes and FLOPs summed over the devices."""
        found = self._by_tokens.get(m)
        if found is None:
            parts = [self._gemm(m, n, k) for n, k in self._gemms]
            layer_s = sum(p.seconds for p in parts)
            if self._all_reduce:
                launch_s, peer_s, bytes_per_s = self._all_reduce
                n_bytes = m * self._model.hidden_size * self._activation_bytes
                moved = 2 * (self._ways - 1) / self._ways * n_bytes
                layer_s += 2 * (launch_s + peer_s * (self._ways - 1) + moved / bytes_per_s)
            all_devices = self._layers * self._ways
            found = _Tokens(
                self._layers * layer_s,
                all_devices * sum(p.bytes for p in parts),
                all_devices * sum(p.flops for p in parts),
            )
            self._by_tokens[m] = found
        return found

    def _sequences(self, sequences: int) -> _Tokens:
        """The output head for so many sequences; bytes and FLOPs summed over the devices."""
        found = self._by_sequences.get(sequences)
        if found is None:
            head = self._gemm(sequences, *self._head)
            found = _Tokens(head.seconds, self._ways * head.bytes, self._ways * head.flops)
            self._by_sequences[sequences] = found
        return found

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts. Affine until prefill attention turns from bytes to FLOPs or the power cap starts to bind."""
        decodes, chunk_tokens = shape.decodes, shape.chunk_tokens
        kernels_s = self._tokens(decodes + chunk_tokens).seconds + self._sequences(decodes + shape.chunks).seconds
        factor_layers = self._factor * self._layers
        growth_s, valid_steps = 0.0, math.inf
        attention_s, context_step_s = 0.0, 0.0
        if decodes:
            attention_s = self._decode_launch_s + decodes * self._decode_sequence_s
            attention_s += shape.context_tokens * self._decode_context_s
            context_step_s = factor_layers * self._decode_context_s
            growth_s = context_step_s * decodes
        if shape.chunks:
            chunks_s, chunks_growth_s, valid_steps = self._prefill(shape)
            attention_s += self._prefill_launch_s + chunk_tokens * self._prefill_token_s + chunks_s
            growth_s += factor_layers * chunks_growth_s
        host_s = self._host_step_s + self._host_sequence_s * (decodes + shape.chunks)
        seconds = self._factor * (kernels_s + self._layers * attention_s) + host_s
        return self.with_joules(shape, Timing(seconds, growth_s, context_step_s, valid_steps))

    def with_joules(self, shape: StepShape, timing: Timing) -> Segment:
        """The segment of a step that takes so long, with the joules of its bytes, FLOPs, tokens and busy seconds."""
        tokens, head = self._tokens(shape.new_tokens), self._sequences(shape.sequences)
        context_j, pair_j = self._context_j, self._pair_j
        work_j = (
            (tokens.bytes + head.bytes) * self._byte_j
            + (tokens.flops + head.flops) * self._flop_j
            + context_j * (shape.context_tokens + shape.chunk_context_tokens)
            + pair_j * (shape.pairs + shape.context_tokens)
            + self._output_j * shape.decodes
        )
        work_growth_j = context_j * shape.new_tokens + pair_j * (shape.pairs_growth + shape.decodes)
        work = Segment(timing.seconds, timing.growth_s, work_j, work_growth_j, context_j + pair_j, timing.valid_steps)
        return self._powered(work, timing.context_step_s)

    def _prefill(self, shape: StepShape) -> tuple[float, float, float]:
        """Seconds per layer that chunks take for their keys and values, growth per step, and steps until it switches.

        Bound by FLOPs where chunks are long, by reading the context where they are short: the larger of the two.
        """
        flops_s, flops_growth_s = shape.pairs * self._pair_s, shape.pairs_growth * self._pair_s
        bytes_s = shape.chunk_context_tokens * self._decode_context_s
        bytes_growth_s = shape.chunk_tokens * self._decode_context_s
        ahead, ahead_growth = flops_s - bytes_s, flops_growth_s - bytes_growth_s
        if ahead >= 0:
            return flops_s, flops_growth_s, steps_until_negative(ahead, ahead_growth)
        return bytes_s, bytes_growth_s, steps_until_negative(-ahead, -ahead_growth)

    def _powered(self, work: Segment, context_step_s: float) -> Segment:
        """Add the busy floor, apply the cap, and take idle off: from joules of work to joules above loaded idle.

        The cap is a hard minimum on the power of each step. Where it starts or stops to bind within the segment, the
        segment ends there.
        """
        floor_w, headroom_w = self._floor_w - self._loaded_idle_w, self._cap_w - self._floor_w
        over = work.joules - headroom_w * work.seconds
        over_growth = work.joules_growth - headroom_w * work.seconds_growth
        if math.isnan(over):  # watts are unknown, and so are the joules
            work.joules = work.joules_growth = work.context_joules = math.nan
            return work
        capped = over >= 0
        side = (over, over_growth) if capped else (-over, -over_growth)
        work.valid_steps = min(work.valid_steps, steps_until_negative(*side))
        if capped:
            above_w = self._cap_w - self._loaded_idle_w
            work.joules, work.joules_growth = above_w * work.seconds, above_w * work.seconds_growth
            work.context_joules = above_w * context_step_s
        else:
            work.joules += floor_w * work.seconds
            work.joules_growth += floor_w * work.seconds_growth
            work.context_joules += floor_w * context_step_s
        return work


def steps_until_negative(start: float, growth: float) -> float:
    """How many of the steps k = 0, 1, ... have start + k * growth >= 0, at least 1; start must not be negative."""
    return math.inf if growth >= 0 else math.floor(start / -growth) + 1
