"""Composed costs of generation: kernel laws of an accelerator applied to a model's architecture.

The form, how it was fitted and how far it errs on models and accelerators that it was not fitted on: docs/models.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hsim.costs import laws
from hsim.costs.laws import ELEMENT_BYTES, working_precision
from hsim.costs.shapes import Segment, StepShape, steps_until_negative
from hsim.costs.sparsity import Sparsity
from hsim.description.hardware import AcceleratorProfile, EngineProfile, Precision
from hsim.description.model import ModelArchitecture, Product
from hsim.description.system import Figures
from hsim.errors import DescriptionError

__all__ = [
    "ELEMENT_BYTES",
    "ComposedCosts",
    "Placement",
    "Timing",
    "check_runs",
    "steps_until_negative",
    "working_precision",
]


UNQUANTISED = ("router", "head", "gate", "absorbed")  # roles whose products engines keep in the working precision


@dataclass(frozen=True)
class Streamed:
    """Weights of a replica that stay elsewhere: so many bytes are read in every step, which takes seconds and joules."""

    n_bytes: float
    seconds: float
    joules: float


@dataclass(frozen=True)
class Placement:
    """A model on so many accelerators of one kind, under one engine.

    Attention and MLPs are split over `tensor_parallel` devices, layers over `pipeline_parallel` stages of so many, and
    batches over `data_parallel` such groups. With
    `expert_parallel` the devices hold whole experts between them, else each a slice of all. `kv_precision` is that of
    keys and values where it is not the working precision. `clock_fraction` is the clock it is held at beside the highest;
    `power_cap_w` is one accelerator's cap where it is not its profile's (math.inf: none). `sparsity` is how its weights are
    pruned. `streamed` are weights that are no part of its memory; what reading them costs is for StreamedCosts.
    """

    model: ModelArchitecture
    chip: AcceleratorProfile
    engine: EngineProfile
    tensor_parallel: int
    precision: Precision
    data_parallel: int = 1
    expert_parallel: bool = False
    kv_precision: Precision | None = None
    clock_fraction: float = 1.0
    power_cap_w: float | None = None
    pipeline_parallel: int = 1
    sparsity: Sparsity | None = None
    streamed: Streamed | None = None

    @property
    def devices(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


@dataclass(slots=True)
class _Tokens:
    """What depends on the step's new tokens alone: worked out once per count.

    Bytes, FLOPs (in bf16's worth) and bytes of weights that must be unpacked, of all devices.
    """

    seconds: float
    bytes: float
    flops: float
    unpacked_bytes: float = 0.0


@dataclass(slots=True)
class Timing:
    """Seconds of a step, their growth per step, those of each context token, and for how many steps that holds.

    `host_s` of the seconds pass on the host alone: no kernel runs.
    """

    seconds: float
    growth_s: float
    context_step_s: float
    valid_steps: float
    host_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """A product as one device has it. `flop_weight` is what one of its FLOPs counts in joules, a bf16 one being 1."""

    outputs: float
    inputs: float
    layers: int
    law: laws.Gemm
    flop_weight: float


class _Reader:
    """Figures of a placement's chip and engine."""

    def __init__(self, placement: Placement, figures: Figures) -> None:
        self.chip, self.engine, self.figures = placement.chip, placement.engine, figures
        self.clock = placement.clock_fraction

    def of(self, path: str) -> float:
        return self.figures.value(self.chip, path)

    def or_zero(self, law: object, path: str) -> float:
        """The figure, or 0 where the profile leaves it out (which is not null)."""
        name = path.rpartition(".")[2]
        return self.of(path) if getattr(law, name) is not None else 0.0

    def watts(self, name: str) -> float:
        return self.figures.if_known(self.chip, f"power.{name}")

    def host(self, name: str) -> float:
        return self.figures.value(self.engine, name) if getattr(self.engine, name) is not None else 0.0

    def flop_weight(self, precision: str) -> float:
        """Joules of a FLOP at this precision beside one in bf16: as its peak is higher, it takes less."""
        computed = laws.compute_precision(precision, self.chip.peak_flops_per_s)
        if computed in ("bf16", "fp16") or "bf16" not in self.chip.peak_flops_per_s:
            return 1.0
        return self.of("peak_flops_per_s.bf16") / self.of(f"peak_flops_per_s.{computed}")

    def gemm(self, precision: Precision) -> laws.Gemm:
        law, path = self.chip.kernels.gemm[precision], f"kernels.gemm.{precision}"
        peak = self.of(f"peak_flops_per_s.{laws.compute_precision(precision, self.chip.peak_flops_per_s)}")
        sides = laws.TwoSided(
            self.of("memory_bytes_per_s") * self.of(f"{path}.bandwidth_fraction"),
            self.clock * peak * self.of(f"{path}.flops_fraction"),
            self.of(f"{path}.sharpness") if law.sharpness else laws.SHARPNESS,
        )
        return laws.Gemm(
            sides,
            self.of(f"{path}.launch_s") / self.clock,
            ELEMENT_BYTES[precision],
            ELEMENT_BYTES[working_precision(precision)],
            self.or_zero(law, f"{path}.per_depth_s"),
            self.or_zero(law, f"{path}.per_activation_s"),
            self.or_zero(law, f"{path}.per_packed_weight_s"),
        )

    def experts(self, precision: Precision) -> laws.ExpertsKernel:
        path = f"kernels.experts.{precision}"
        peak = self.of(f"peak_flops_per_s.{laws.compute_precision(precision, self.chip.peak_flops_per_s)}")
        sides = laws.TwoSided(
            self.of("memory_bytes_per_s") * self.of(f"{path}.bandwidth_fraction"),
            self.clock * peak * self.of(f"{path}.flops_fraction"),
            self.of(f"{path}.sharpness"),
        )
        activation_bytes = ELEMENT_BYTES[working_precision(precision)]
        rest = ("per_expert_s", "per_element_s", "padding_tokens", "imbalance")
        numbers = (self.of(f"{path}.{name}") for name in rest)
        return laws.ExpertsKernel(
            sides, self.of(f"{path}.launch_s") / self.clock, ELEMENT_BYTES[precision], activation_bytes, *numbers
        )

    def decode_attention(self) -> laws.DecodeAttention:
        law, path = self.chip.kernels.decode_attention, "kernels.decode_attention"
        return laws.DecodeAttention(
            self.of(f"{path}.launch_s") / self.clock,
            self.of(f"{path}.per_element_s"),
            self.or_zero(law, f"{path}.per_kv_head_s"),
            self.of(f"{path}.per_sequence_s"),
            self.of("memory_bytes_per_s") * self.of(f"{path}.bandwidth_fraction"),
        )


def check_runs(placement: Placement, where: str) -> None:
    """Raises DescriptionError where a placement needs a kernel for which its chip has no figures."""
    chip, model, precision = placement.chip, placement.model, placement.precision
    kernels = chip.kernels
    dense: Precision = "bf16" if precision == "mxfp4" else precision  # mxfp4 is for experts alone
    if precision == "mxfp4" and not model.experts:
        raise DescriptionError(
            where, f"{model.name} has no experts, and mxfp4 is for those alone", "use another precision"
        )
    if dense not in kernels.gemm:
        raise DescriptionError(where, f"{chip.name} has no figures for {dense}", f"it has {', '.join(kernels.gemm)}")
    if model.experts and precision not in kernels.experts:
        known = ", ".join(kernels.experts) or "none"
        raise DescriptionError(where, f"{chip.name} has no figures for experts in {precision}", f"it has {known}")
    if model.state and kernels.state is None:
        raise DescriptionError(where, f"{chip.name} has no figures for state layers", "use another model or chip")
    if placement.tensor_parallel > 1 and kernels.all_reduce is None:
        raise DescriptionError(where, f"{chip.name} has no all-reduce figures", "use tensor_parallel 1")
    if placement.data_parallel > 1 and model.experts and kernels.all_to_all is None:
        raise DescriptionError(where, f"{chip.name} has no all-to-all figures", "use data_parallel 1")
    if placement.pipeline_parallel > 1 and kernels.hop is None:
        raise DescriptionError(where, f"{chip.name} has no figures for a hop between stages", "use pipeline_parallel 1")
    if placement.pipeline_parallel > 1 and (model.experts or model.state or model.window):
        what = f"{model.name} has experts, states or windows, and pipelines are described for none of them"
        raise DescriptionError(where, what, "use pipeline_parallel 1")


def _as_run(placement: Placement) -> ModelArchitecture:
    """The model as its engine runs it: shared experts are experts that every token goes to where it fuses them so."""
    model, experts = placement.model, placement.model.experts
    if experts is None or model.path not in placement.engine.fused_shared_experts:
        return model
    shared, rest = divmod(experts.shared_intermediate_size, experts.intermediate_size)
    if not shared or rest:
        return model
    more = {"count": experts.count + shared, "per_token": experts.per_token + shared, "shared_intermediate_size": 0}
    return model.model_copy(update={"experts": experts.model_copy(update=more)})


class ComposedCosts:
    """Seconds and joules of steps of one replica: StepCosts for a Placement."""

    def __init__(self, placement: Placement, figures: Figures) -> None:
        check_runs(placement, placement.model.name)
        self.placement, read = placement, _Reader(placement, figures)
        model, self._ways, self._groups = _as_run(placement), placement.tensor_parallel, placement.data_parallel
        self._model, self._devices, self._stages = model, placement.devices, placement.pipeline_parallel
        self._factor = read.of("kernels.overlap_factor")
        self._read_products(read)
        self._read_experts(read)
        self._read_attention(read)
        self._read_elementwise(read)
        self._read_state(read)
        reduces, peers = ("launch_s", "per_peer_s", "bytes_per_s"), ("launch_s", "bytes_per_s")
        self._all_reduce = (
            laws.AllReduce(*(read.of(f"kernels.all_reduce.{x}") for x in reduces)) if self._ways > 1 else None
        )
        exchange = self._groups > 1 and model.experts
        self._all_to_all = tuple(read.of(f"kernels.all_to_all.{x}") for x in peers) if exchange else None
        self._hop = tuple(read.of(f"kernels.hop.{x}") for x in peers) if self._stages > 1 else None
        self._read_host(read)
        if self._stages > 1:
            self.notes += ("its pipeline is taken to be full: a prompt that comes alone may take up to twice as long",)
        self._read_power(read)
        self._by_tokens: dict[int, _Tokens] = {}
        self._by_sequences: dict[int, _Tokens] = {}
        self._lines: dict[int, tuple[Segment, float]] = {}

    # ---- what is read once

    def _read_products(self, read: _Reader) -> None:
        precision = self.placement.precision
        dense: Precision = "bf16" if precision == "mxfp4" else precision
        working: Precision = working_precision(precision)  # type: ignore[assignment]
        by_precision = {p: read.gemm(p) for p in {dense, working} if p in read.chip.kernels.gemm}
        plain = by_precision.get(working, by_precision[dense])

        pruned = by_precision[dense]
        if sparsity := self.placement.sparsity:
            pruned = sparsity.product(pruned, dense)

        def on_device(product: Product) -> _OnDevice:
            n = math.ceil(product.outputs / self._ways) if product.split == "outputs" else product.outputs
            k = math.ceil(product.inputs / self._ways) if product.split == "inputs" else product.inputs
            quantised = product.role not in UNQUANTISED
            flop_weight = read.flop_weight(dense if quantised else working)
            if quantised and sparsity:
                flop_weight *= sparsity.executed_fraction
            return _OnDevice(n, k, product.layers, pruned if quantised else plain, flop_weight)

        self._products = [on_device(p) for p in self._model.products]
        self._head = on_device(self._model.head)
        self._activation_bytes = ELEMENT_BYTES[working]

    def _read_experts(self, read: _Reader) -> None:
        experts = self._model.experts
        self._experts, self._unpacks = None, False
        if experts is None:
            return
        self._experts = read.experts(self.placement.precision)
        self._experts_flop_weight = read.flop_weight(self.placement.precision)
        self._unpacks = self.placement.precision == "mxfp4"
        share = self._devices if self.placement.expert_parallel else 1
        ways = 1 if self.placement.expert_parallel else self._devices
        self._experts_shape = laws.ExpertsShape(
            experts.count,
            experts.count / share,
            experts.per_token,
            self._model.hidden_size,
            experts.intermediate_size / ways,
            3 if self._model.gated_mlp else 2,
        )

    def _read_attention(self, read: _Reader) -> None:
        model, ways, placement = self._model, self._ways, self.placement
        kv_bytes = ELEMENT_BYTES[placement.kv_precision or working_precision(placement.precision)]
        working = working_precision(placement.precision)
        peak = read.of(f"peak_flops_per_s.{laws.compute_precision(working, read.chip.peak_flops_per_s)}") * read.clock
        decode, latent = read.decode_attention(), model.latent
        heads = model.attention_heads / ways
        prefill = "kernels.prefill_attention"
        if latent is None:
            width, kv_heads = heads * model.head_dim, max(1.0, model.kv_heads / ways)  # more ways than heads: copies
            self._kv_bytes = 2 * kv_heads * model.head_dim * kv_bytes  # of a token, in one layer, on one device
            self._context_flops, self._pair_flops = 4 * width, 4 * width
            per_score_s = read.or_zero(read.chip.kernels.decode_attention, "kernels.decode_attention.per_score_s")
            self._context_s = self._kv_bytes / decode.bytes_per_s + heads * per_score_s
        else:
            width, kv_heads = heads * (latent.kv_rank + latent.rope_dim), 1.0
            self._kv_bytes = model.kv_elements * kv_bytes  # every device reads the one vector of all heads
            self._context_flops = 2 * heads * (2 * latent.kv_rank + latent.rope_dim)
            self._pair_flops = 2 * heads * (latent.nope_dim + latent.rope_dim + latent.value_dim)
            path = "kernels.decode_attention.flops_fraction"
            fraction = read.or_zero(read.chip.kernels.decode_attention, path) or read.of(f"{prefill}.flops_fraction")
            self._context_s = max(self._kv_bytes / decode.bytes_per_s, self._context_flops / (fraction * peak))
        self._decode_launch_s, self._decode_sequence_s = decode.launch_s, decode.sequence_s(width, kv_heads)
        self._prefill_launch_s = read.of(f"{prefill}.launch_s") / read.clock
        self._prefill_token_s = width * read.of(f"{prefill}.per_element_s")
        law = read.chip.kernels.prefill_attention
        self._pair_s = self._pair_flops / (peak * read.of(f"{prefill}.flops_fraction"))
        self._pair_s += heads * read.or_zero(law, f"{prefill}.per_pair_s")
        self._depth_s = read.or_zero(law, f"{prefill}.per_depth_s")
        self._window_layers = model.window_layers
        self._full_layers = model.attended_layers - self._window_layers
        self._window_tokens = model.window.tokens if model.window else 0
        self._attended = self._full_layers + self._window_layers

    def _read_elementwise(self, read: _Reader) -> None:
        model, self._elementwise_s = self._model, 0.0
        if read.chip.kernels.elementwise:
            # Two norms with residuals a layer read and write five times each; a gate reads two widths and writes one.
            elements = (
                model.layers * 10 * model.hidden_size + model.dense_layers * 3 * model.intermediate_size / self._ways
            )
            bandwidth = read.of("memory_bytes_per_s") * read.of("kernels.elementwise.bandwidth_fraction")
            self._elementwise_s = elements * self._activation_bytes / bandwidth

    def _read_state(self, read: _Reader) -> None:
        state, self._state_launch_s, self._state_sequence_s, self._state_bytes = self._model.state, 0.0, 0.0, 0.0
        self._state_token_s = 0.0
        if state:
            per_layer = 2.0 * state.elements * state.element_bytes / self._ways  # read, and written back
            bandwidth = read.of("memory_bytes_per_s") * read.of("kernels.state.bandwidth_fraction")
            self._state_launch_s = state.layers * read.of("kernels.state.launch_s")
            self._state_sequence_s = state.layers * per_layer / bandwidth
            width = state.output_inputs / self._ways
            self._state_token_s = state.layers * width * read.of("kernels.state.per_element_s")
            self._state_bytes = state.layers * per_layer * self._ways

    def _read_host(self, read: _Reader) -> None:
        model, engine = self._model, self.placement.engine
        self._host_step_s = read.host("host_s_per_layer") * model.layers + read.host("host_s_per_step")
        peers_s = (self._devices - 1) * read.host("host_s_per_sequence_and_peer")
        layers_s = read.host("host_s_per_layer_and_sequence") * model.layers
        self._host_sequence_s = read.host("host_s_per_sequence") + peers_s + layers_s
        self._graph_tokens = math.inf if engine.graph_tokens is None else engine.graph_tokens
        self._eager_s = read.host("eager_s_per_layer") * model.layers
        path = model.path
        if model.experts and model.experts.routing in engine.host_s_per_expert_layer:
            key = f"host_s_per_expert_layer.{model.experts.routing}"
            self._host_step_s += read.figures.value(engine, key) * model.experts.layers
        self.notes: tuple[str, ...] = ()
        if engine.measured_paths and path not in engine.measured_paths:
            known = ", ".join(engine.measured_paths)
            self.notes = (
                f"low confidence: {engine.name} was not measured on the path {path} of {model.name} (it was on {known}); "
                "such paths have erred by 30 to 45 %",
            )

    def _read_power(self, read: _Reader) -> None:
        devices = self._devices
        watts = {name: devices * read.watts(name) for name in ("floor_w", "cap_w", "loaded_idle_w")}
        self._floor_w, self._cap_w, self._loaded_idle_w = watts.values()
        if self.placement.power_cap_w is not None:
            self._cap_w = devices * self.placement.power_cap_w
        self._above_idle_w, self._headroom_w = self._floor_w - self._loaded_idle_w, self._cap_w - self._floor_w
        self._byte_j, self._flop_j = read.watts("joules_per_byte"), read.watts("joules_per_flop")
        self._output_j = read.watts("joules_per_output_token")
        self._kernel_w = devices * read.watts("kernel_w") if read.chip.power.kernel_w is not None else 0.0
        if read.clock != 1.0:
            exponent = read.of("power.clocks.energy_exponent")
            self._flop_j *= read.clock ** (exponent - 1.0)
            self._kernel_w *= read.clock**exponent
        unpacked = read.chip.power.joules_per_unpacked_byte is not None and self._unpacks
        self._unpacked_j = read.watts("joules_per_unpacked_byte") if unpacked else 0.0
        self._context_j = self._ways * (self._kv_bytes * self._byte_j + self._context_flops * self._flop_j)
        self._chunk_context_j = self._ways * self._kv_bytes * self._byte_j
        self._pair_j = self._ways * self._pair_flops * self._flop_j
        # What a token of context within the window adds to a step, all window layers together.
        self._window_step_s = self._factor * self._window_layers * self._context_s / self._groups
        self._window_step_j = self._window_layers * self._context_j + self._kernel_w * self._window_step_s

    # ---- what depends on counts alone

    def _at_once(self, m: int) -> int:
        """In how many parts a batch of m is worked on at once: one in each group, at each stage of its pipeline.

        A pipeline is taken to be full, its next parts following as soon as a stage is free; a part holds one token at
        least, so that with fewer tokens than stages some stages rest. Then P stages do what P groups would, but share
        one copy of the weights and pay for hops.
        """
        if self._stages == 1:
            return self._groups
        return self._groups * min(self._stages, max(1, math.ceil(m / self._groups)))

    def _part(self, m: int) -> float:
        """The tokens (or sequences) of one such part."""
        mine = math.ceil(m / self._groups)
        return mine if self._stages == 1 else max(1.0, mine / self._stages)

    def _filled(self, m: int) -> float:
        """The fraction of the devices that have a part to work on."""
        return 1.0 if self._stages == 1 else self._at_once(m) / (self._groups * self._stages)

    def _tokens(self, m: int) -> _Tokens:
        """All layers' products, experts and exchanges for m new tokens."""
        found = self._by_tokens.get(m)
        if found is None:
            mine, working = self._part(m), self._ways * self._at_once(m)
            found = _Tokens(0.0, 0.0, 0.0)
            for p in self._products:
                found.seconds += p.layers * p.law.seconds(mine, p.outputs, p.inputs)
                found.bytes += working * p.layers * p.law.n_bytes(mine, p.outputs, p.inputs)
                found.flops += working * p.layers * 2.0 * mine * p.outputs * p.inputs * p.flop_weight
            self._add_experts(found, m)
            found.seconds += mine * self._elementwise_s + self._exchange_s(mine)
            self._by_tokens[m] = found
        return found

    def _add_experts(self, to: _Tokens, m: int) -> None:
        if self._experts is None:
            return
        kernel, shape, layers = self._experts, self._experts_shape, self._model.expert_layers
        touched = kernel.touched(m, shape)
        n_bytes = self._devices * layers * kernel.n_bytes(m, touched, shape)
        most, rows = kernel.busiest(m, shape) if self.placement.expert_parallel else (touched, None)
        to.seconds += layers * kernel.seconds(m, most, shape, rows)
        to.bytes += n_bytes
        to.flops += self._devices * layers * kernel.flops(m, shape) * self._experts_flop_weight
        to.unpacked_bytes = n_bytes if self._unpacks else 0.0

    def _exchange_s(self, m: float) -> float:
        """All-reduces, all-to-alls and hops of all layers, for m tokens of one group, or of one part in a pipeline."""
        model, n_bytes, seconds = self._model, m * self._model.hidden_size * self._activation_bytes, 0.0
        mixers = model.attended_layers + (model.state.layers if model.state else 0)
        if self._all_reduce:
            reduces = mixers + model.dense_layers + (0 if self._all_to_all else model.expert_layers)
            seconds += reduces * self._all_reduce.seconds(self._ways, n_bytes)
        if self._all_to_all and model.experts:
            launch_s, bytes_per_s = self._all_to_all
            away = (self._groups - 1) / self._groups * min(model.experts.per_token, self._groups)
            seconds += 2 * model.expert_layers * (launch_s + away * n_bytes / bytes_per_s)
        if self._hop:
            launch_s, bytes_per_s = self._hop  # the last stage's goes back to the first: the next token begins there
            seconds += self._stages * (launch_s + n_bytes / bytes_per_s)
        return seconds

    def _sequences(self, sequences: int) -> _Tokens:
        """The output head, and states, for so many sequences."""
        found = self._by_sequences.get(sequences)
        if found is None:
            mine, head, working = self._part(sequences), self._head, self._ways * self._at_once(sequences)
            found = _Tokens(
                head.law.seconds(mine, head.outputs, head.inputs)
                + self._state_launch_s
                + mine * self._state_sequence_s,
                working * head.law.n_bytes(mine, head.outputs, head.inputs) + sequences * self._state_bytes,
                working * 2.0 * mine * head.outputs * head.inputs * head.flop_weight,
            )
            self._by_sequences[sequences] = found
        return found

    # ---- a step

    def segment(self, shape: StepShape) -> Segment:
        """See StepCosts.

        Affine until a window fills, launching stops to be what takes longest, or the power cap starts to bind.
        """
        if shape.chunks or shape.decodes > self._graph_tokens:
            return self.with_joules(shape, self.timing(shape))
        # Decodes alone, by far the most steps: straight lines in context, worked out once per number of sequences.
        start, context_step_s = self._lines.get(shape.decodes) or self._line(shape.decodes)
        context, context_j, valid_steps = shape.context_tokens, start.context_joules, math.inf
        seconds, joules = start.seconds + context_step_s * context, start.joules + context_j * context
        growth_s, growth_j = start.seconds_growth, start.joules_growth
        if self._window_layers:
            clipped, growing, valid_steps = self._window(shape)
            seconds += self._window_step_s * clipped
            growth_s += self._window_step_s * growing
            joules += self._window_step_j * clipped
            growth_j += self._window_step_j * growing
        return self._powered(seconds, growth_s, joules, growth_j, (context_j, context_step_s), valid_steps)

    def _line(self, decodes: int) -> tuple[Segment, float]:
        """Work of a step of so many decodes at no context, and what each token of context adds in seconds."""
        none = StepShape(decodes, 0, window_context_tokens=0)
        timing = self.timing(none)
        line = self._lines[decodes] = self._working(none, timing), timing.context_step_s
        return line

    def timing(self, shape: StepShape) -> Timing:
        """Seconds of a step, without its joules."""
        decodes, chunk_tokens, factor, attended = shape.decodes, shape.chunk_tokens, self._factor, self._attended
        seconds = self._tokens(decodes + chunk_tokens).seconds + self._sequences(decodes + shape.chunks).seconds
        growth_s, valid_steps, context_step_s = 0.0, math.inf, 0.0
        if decodes:
            at_once = self._at_once(decodes)
            context_s = self._context_s / at_once
            context_step_s = factor * self._full_layers * context_s
            seconds += attended * (self._decode_launch_s + decodes * self._decode_sequence_s / at_once)
            seconds += self._full_layers * shape.context_tokens * context_s
            growth_s = self._full_layers * decodes * context_s
            if self._window_layers:
                clipped, growing, valid_steps = self._window(shape)
                seconds += self._window_layers * clipped * context_s
                growth_s += self._window_layers * growing * context_s
        if shape.chunks:
            chunks_s, chunks_growth_s, steps = self._prefill(shape)
            valid_steps = min(valid_steps, steps)
            each_s = attended * self._prefill_token_s + self._state_token_s
            at_once = self._at_once(chunk_tokens)
            seconds += attended * self._prefill_launch_s + (chunk_tokens * each_s + chunks_s) / at_once
            growth_s += chunks_growth_s / at_once
        seconds, growth_s = factor * seconds, factor * growth_s
        if decodes + chunk_tokens > self._graph_tokens and seconds < self._eager_s:
            # Launching kernel by kernel takes longer than the kernels do.
            left = self._eager_s - seconds
            valid_steps = min(valid_steps, steps_until_negative(left, -growth_s))
            seconds, growth_s, context_step_s = self._eager_s, 0.0, 0.0
        host_s = self._host_step_s + self._host_sequence_s * (decodes + shape.chunks)
        return Timing(seconds + host_s, growth_s, context_step_s, valid_steps, host_s)

    def parts(self, shape: StepShape) -> dict[str, float]:
        """The seconds of a step by what takes them; they add up to those of `timing` where launching is no floor."""
        mine, experts = self._part(shape.new_tokens), _Tokens(0.0, 0.0, 0.0)
        self._add_experts(experts, shape.new_tokens)
        exchanges_s, elementwise_s = self._exchange_s(mine), mine * self._elementwise_s
        states_s = self._state_launch_s + math.ceil(shape.sequences / self._groups) * self._state_sequence_s
        chunk_states_s = shape.chunk_tokens * self._state_token_s / self._groups
        decoding = replace(shape, chunks=0, chunk_tokens=0, chunk_context_tokens=0, pairs=0, pairs_growth=0)
        decode_s = self._attention_s(decoding) if shape.decodes else 0.0
        kernels = {
            "products": self._tokens(shape.new_tokens).seconds - experts.seconds - exchanges_s - elementwise_s,
            "experts": experts.seconds,
            "exchanges": exchanges_s,
            "norms and gates": elementwise_s,
            "output head": self._sequences(shape.sequences).seconds - states_s,
            "states": states_s + chunk_states_s,
            "decode attention": decode_s,
            "prefill attention": self._attention_s(shape) - decode_s - chunk_states_s if shape.chunks else 0.0,
        }
        parts = {name: self._factor * seconds for name, seconds in kernels.items()}
        return parts | {"host": self.timing(shape).host_s}

    def _attention_s(self, shape: StepShape) -> float:
        """Kernel seconds of a step beside those that follow from its counts alone, before the factor on all kernels."""
        timing = self.timing(shape)
        counted_s = self._tokens(shape.new_tokens).seconds + self._sequences(shape.sequences).seconds
        return (timing.seconds - timing.host_s) / self._factor - counted_s

    def _window(self, shape: StepShape) -> tuple[float, float, float]:
        """Context within the window, its growth per step, and steps for which that holds."""
        if shape.window_context_tokens >= 0:
            return shape.window_context_tokens, shape.window_growing, shape.window_steps
        room = shape.decodes * self._window_tokens - shape.context_tokens
        if room <= 0:
            return shape.decodes * self._window_tokens, 0.0, math.inf
        return shape.context_tokens, shape.decodes, math.ceil(room / shape.decodes)

    def _prefill(self, shape: StepShape) -> tuple[float, float, float]:
        """Seconds that chunks take for their keys and values, growth per step, and steps for which that holds."""
        read_s = self._context_s + self._at_once(shape.chunk_tokens) * self._depth_s / shape.chunks
        seconds = self._full_layers * (shape.pairs * self._pair_s + shape.chunk_context_tokens * read_s)
        growth_s = self._full_layers * (shape.pairs_growth * self._pair_s + shape.chunk_tokens * read_s)
        if not self._window_layers:
            return seconds, growth_s, math.inf
        clipped = min(shape.chunk_context_tokens, shape.chunk_tokens + shape.chunks * self._window_tokens)
        seconds += self._window_layers * (self._window_pairs(shape) * self._pair_s + clipped * read_s)
        return seconds, growth_s, 1.0  # pairs within a window do not grow evenly: ask again

    def _window_pairs(self, shape: StepShape) -> float:
        """Pairs within the window: as given, else from the mean pairs of a query."""
        if shape.window_pairs >= 0:
            return shape.window_pairs
        tokens, window = shape.chunk_tokens, self._window_tokens
        before = max(0.0, shape.chunk_context_tokens - tokens) / shape.chunks
        size = tokens / shape.chunks
        first = min(max(0.0, window - before), size)  # of a chunk's queries, so many see all that came before
        return shape.chunks * (first * before + first * (first + 1) / 2 + (size - first) * window)

    def work(self, shape: StepShape) -> tuple[float, float, float]:
        """Bytes moved, FLOPs asked for (in bf16's worth) and bytes unpacked in a step, all devices together."""
        tokens = self._tokens(shape.decodes + shape.chunk_tokens)
        head = self._sequences(shape.decodes + shape.chunks)
        layers, context, pairs = self._full_layers, shape.context_tokens, shape.pairs
        chunk_context, clipped, clipped_pairs = shape.chunk_context_tokens, 0.0, 0.0
        if self._window_layers:
            clipped = self._window_layers * self._window(shape)[0] if shape.decodes else 0.0
            clipped_pairs = self._window_layers * self._window_pairs(shape) if shape.chunks else 0.0
        n_bytes = self._ways * self._kv_bytes * (layers * (context + chunk_context) + clipped)
        flops = self._ways * self._context_flops * (layers * context + clipped)
        flops += self._ways * self._pair_flops * (layers * pairs + clipped_pairs)
        return tokens.bytes + head.bytes + n_bytes, tokens.flops + head.flops + flops, tokens.unpacked_bytes

    def with_joules(self, shape: StepShape, timing: Timing) -> Segment:
        """The segment of a step that takes so long, with the joules of its bytes, FLOPs, tokens and busy seconds."""
        work, seconds, growth_s = self._working(shape, timing), timing.seconds, timing.growth_s
        context = (work.context_joules, timing.context_step_s)
        return self._powered(seconds, growth_s, work.joules, work.joules_growth, context, timing.valid_steps)

    def _working(self, shape: StepShape, timing: Timing) -> Segment:
        """Joules of a step's work: without the floor that it stands on, the cap and idle."""
        full, context_j, pair_j = self._full_layers, self._context_j, self._pair_j
        n_bytes, flops, unpacked_bytes = self.work(shape)
        work_j = n_bytes * self._byte_j + flops * self._flop_j + unpacked_bytes * self._unpacked_j
        kernel_w = self._kernel_w * self._filled(shape.new_tokens)
        work_j += self._output_j * shape.decodes + kernel_w * (timing.seconds - timing.host_s)
        work_growth_j = full * context_j * shape.decodes + kernel_w * timing.growth_s
        if shape.chunks:
            work_growth_j += full * (self._chunk_context_j * shape.chunk_tokens + pair_j * shape.pairs_growth)
        if self._window_layers and shape.decodes:
            work_growth_j += self._window_layers * context_j * self._window(shape)[1]
        each_j = full * context_j + kernel_w * timing.context_step_s
        return Segment(timing.seconds, timing.growth_s, work_j, work_growth_j, each_j, timing.valid_steps)

    def _powered(
        self,
        seconds: float,
        growth_s: float,
        joules: float,
        growth_j: float,
        context: tuple[float, float],
        valid: float,
    ) -> Segment:
        """Add the busy floor, apply the cap, and take idle off: from joules of work to joules above loaded idle.

        `context` are joules and seconds of each token of context, `valid` the steps for which this holds. The cap is a
        hard minimum on the power of each step (infinite: none). Where it starts or stops to bind within the segment, the
        segment ends there.
        """
        context_j, context_s = context
        over = joules - self._headroom_w * seconds
        over_growth = growth_j - self._headroom_w * growth_s
        if over < 0:
            if over_growth > 0:
                valid = min(valid, steps_until_negative(-over, -over_growth))
            floor_w = self._above_idle_w
            joules, growth_j, context_j = (
                joules + floor_w * seconds,
                growth_j + floor_w * growth_s,
                context_j + floor_w * context_s,
            )
        elif over >= 0:
            valid = min(valid, steps_until_negative(over, over_growth))
            above_w = self._cap_w - self._loaded_idle_w
            joules, growth_j, context_j = above_w * seconds, above_w * growth_s, above_w * context_s
        else:  # watts are unknown, and so are the joules
            joules = growth_j = context_j = math.nan
        return Segment(seconds, growth_s, joules, growth_j, context_j, valid)
