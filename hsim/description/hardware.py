"""Hardware, link, engine and tool profiles: what one YAML file of hardware_profiles/ may say."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from hsim.description.model import ModelArchitecture
from hsim.description.quantities import Distribution, Figure
from hsim.description.yamlfile import Strict

# What weights are kept in. fp8_block has a scale for each block of weights; mxfp4 is for the weights of experts alone,
# and they are computed with in bf16 where the chip has no fp4; nvfp4 is for all, on chips that compute in it.
Precision = Literal["bf16", "fp16", "fp32", "fp8", "fp8_block", "mxfp4", "nvfp4"]
KvPrecision = Literal["bf16", "fp16", "fp32", "fp8"]


class Profile(Strict):
    """What every profile has: its name is the name of its file."""

    name: str
    description: str = ""


UNKNOWN = Figure(value=None, source="the profile does not say", tier="assumed")


class OperationCode(Strict):
    """A person's own function that carries out an operation: see hsim/stages.py. Live runs load it with --allow-code."""

    file: str
    sha256: str
    timeout_s: PositiveFloat


class Operation(Strict):
    """Cost of a CPU operation on one busy core.

    base + per_unit n + per_unit_squared n^2 + per_unit_beyond max(0, n - knee_units) seconds: beyond the knee its data
    no longer fit in a cache. `unit` says what n counts (tokens, calls, candidates ...). `contention_slowdown` is how many
    times longer it takes while so many cores of a socket are busy, itself included, where it was measured: else that
    of the CPU holds.
    """

    unit: str
    base_s: Figure
    per_unit_s: Figure | None = None
    per_unit_squared_s: Figure | None = None
    per_unit_beyond_s: Figure | None = None
    knee_units: NonNegativeFloat | None = None
    contention_slowdown: dict[str, Figure] = {}
    code: OperationCode | None = None

    @field_validator("contention_slowdown")
    @classmethod
    def _cores_rise(cls, by_cores: dict[str, Figure]) -> dict[str, Figure]:
        cores = [int(n) if n.isdigit() else 0 for n in by_cores]
        if cores != sorted(set(cores)) or min(cores, default=2) < 2:
            raise ValueError(f"is by {', '.join(by_cores)}; its keys are rising numbers of busy cores, from 2 on")
        return by_cores

    @model_validator(mode="after")
    def _knee_has_a_slope(self) -> Operation:
        if (self.per_unit_beyond_s is None) != (self.knee_units is None):
            raise ValueError("has only one of per_unit_beyond_s and knee_units; give both or neither")
        return self


class CoreProducts(Strict):
    """How a model's passes go on cores: matrix products at flops_per_core_per_s[precision], and weights, keys and values
    read at bandwidth_fraction of the memory's rate; layer_sync_s passes at the end of each layer, where cores wait for
    each other.
    """

    flops_per_core_per_s: dict[Precision, Figure]
    bandwidth_fraction: Figure
    layer_sync_s: Figure


class CpuProfile(Profile):
    """A CPU socket. Power above idle is (max_w - idle_w) * busy_fraction ** load_power_exponent.

    A core takes contention_slowdown times as long when all are busy as when it is alone, in proportion in between; an
    operation may have a curve of its own. Each job holds its core for hand_over_s beside its own seconds: to be handed
    to whatever process works there, and its result back. Without `products`, no engine runs on its cores.
    """

    kind: Literal["cpu"]
    cores: PositiveInt
    idle_w: Figure
    max_w: Figure
    load_power_exponent: Figure
    memory_bytes_per_s: Figure
    contention_slowdown: Figure
    hand_over_s: Figure | None = None
    operations: dict[str, Operation]
    products: CoreProducts | None = None


class GemmLaw(Strict):
    """One product of m x k activations with n x k weights.

    launch_s + per_depth_s k + per_activation_s m k (quantising them) + per_packed_weight_s n k (where m > 1: weights are laid
    out anew for several rows)
    + ((bytes/(bandwidth_fraction BW))^sharpness + (flops/(flops_fraction peak))^sharpness)^(1/sharpness).
    """

    launch_s: Figure
    bandwidth_fraction: Figure
    flops_fraction: Figure
    per_depth_s: Figure | None = None
    per_activation_s: Figure | None = None
    per_packed_weight_s: Figure | None = None
    sharpness: Figure | None = None


class ExpertsLaw(Strict):
    """All routed experts of one layer for m tokens, of which each goes to per_token of E experts.

    launch_s + per_expert_s touched + per_element_s m per_token hidden + the two-sided form of GemmLaw, where bytes are the
    weights of the touched = E (1 - (1 - per_token/E)^(imbalance m)) experts, and FLOPs are those of m per_token +
    padding_tokens touched rows.
    """

    launch_s: Figure
    bandwidth_fraction: Figure
    flops_fraction: Figure
    per_expert_s: Figure
    per_element_s: Figure
    padding_tokens: Figure
    imbalance: Figure
    sharpness: Figure


class DecodeAttentionLaw(Strict):
    """One decode-attention kernel of B sequences.

    launch + B (heads head_dim per_element_s + kv_heads per_kv_head_s + per_sequence_s) + KV/(bandwidth_fraction BW)
    + heads context per_score_s (what each score of a query head with a token of context takes beside its bytes).
    Latent attention reads one vector for all heads and is bound by FLOPs where flops_fraction peak is the slower.
    """

    launch_s: Figure
    per_element_s: Figure
    per_sequence_s: Figure
    bandwidth_fraction: Figure
    per_kv_head_s: Figure | None = None
    per_score_s: Figure | None = None
    flops_fraction: Figure | None = None


class PrefillAttentionLaw(Strict):
    """One prefill-attention kernel of chunks that attend so many (query, key) pairs.

    launch + pairs heads (4 head_dim/(flops_fraction peak) + per_pair_s) + tokens heads head_dim per_element_s
    + KV/(bandwidth_fraction BW of decode) + mean context of a chunk per_depth_s.
    """

    launch_s: Figure
    flops_fraction: Figure
    per_element_s: Figure
    per_pair_s: Figure | None = None
    per_depth_s: Figure | None = None


class StateLaw(Strict):
    """The kernels of one state layer: launch + B state bytes read and written / (bandwidth_fraction BW)."""

    launch_s: Figure
    bandwidth_fraction: Figure
    per_element_s: Figure


class ElementwiseLaw(Strict):
    """Norms, residuals, rotations and gates of one layer: m (10 hidden + 3 MLP width) activations at a part of BW.

    Their launches are the engine's host_s_per_layer: how many there are depends on what it fuses.
    """

    bandwidth_fraction: Figure


class AllReduceLaw(Strict):
    """One all-reduce over n devices: launch + per_peer_s (n-1) + 2 (n-1)/n bytes/bytes_per_s."""

    launch_s: Figure
    per_peer_s: Figure
    bytes_per_s: Figure


class AllToAllLaw(Strict):
    """One all-to-all over n devices: launch + (n-1)/n bytes/bytes_per_s, bytes being what one device sends."""

    launch_s: Figure
    bytes_per_s: Figure


class HopLaw(Strict):
    """From one stage of a pipeline to the next: launch + bytes/bytes_per_s. Stages are equal slices of the model, wherever
    the cuts fall: a compiler places them.
    """

    launch_s: Figure
    bytes_per_s: Figure


class Kernels(Strict):
    """How fast the kernels of one accelerator really are. What is left out cannot be run: no experts, no peers ..."""

    overlap_factor: Figure
    gemm: dict[Precision, GemmLaw]
    decode_attention: DecodeAttentionLaw
    prefill_attention: PrefillAttentionLaw
    experts: dict[Precision, ExpertsLaw] = {}
    elementwise: ElementwiseLaw | None = None
    state: StateLaw | None = None
    all_reduce: AllReduceLaw | None = None
    all_to_all: AllToAllLaw | None = None
    hop: HopLaw | None = None


class Clocks(Strict):
    """Clocks that an accelerator can be held at: `count` from highest to lowest, evenly spaced.

    At a fraction f of the highest, FLOP rates go with f and launches with 1/f, memory keeps its rate, a FLOP takes
    f^(energy_exponent - 1) of its joules and kernels f^energy_exponent of their watts.
    """

    highest_hz: Figure
    lowest_hz: Figure
    count: PositiveInt
    energy_exponent: Figure


class AcceleratorPower(Strict):
    """Watts of one accelerator. While it serves: floor_w, kernel_w more while kernels run (not while it waits for the
    host), joules per byte, FLOP and output token, all capped at cap_w.

    `joules_per_unpacked_byte` comes on top for weights that must be unpacked before they are computed with: mxfp4 where
    the chip has no fp4.
    """

    idle_w: Figure
    loaded_idle_w: Figure
    floor_w: Figure
    cap_w: Figure
    joules_per_byte: Figure
    joules_per_flop: Figure
    joules_per_output_token: Figure
    kernel_w: Figure | None = None
    joules_per_unpacked_byte: Figure | None = None
    clocks: Clocks | None = None


Phase = Literal["prefill", "decode"]


class AcceleratorProfile(Profile):
    """An accelerator chip or board. Peaks are dense. `phases` are those that it can serve: a chip may be made for one."""

    kind: Literal["accelerator"]
    phases: tuple[Phase, ...] = Field(default=("prefill", "decode"), min_length=1)
    memory_bytes: Figure
    memory_bytes_per_s: Figure
    peak_flops_per_s: dict[Precision, Figure]
    kernels: Kernels
    power: AcceleratorPower
    embodied_kgco2: Figure = UNKNOWN


class Accelerators(Strict):
    """The accelerators of one server."""

    chip: str
    count: PositiveInt


class ServerProfile(Profile):
    """A server that people buy or rent: sockets, base load, power supply, and perhaps accelerators.

    `base_w` is everything behind the power supply that is neither CPU package nor accelerator board: DRAM, fans,
    network cards, storage, switches. Switched off, all of it together draws `off_w`; for `boot_s` after it is switched
    on, `boot_w`. Making it, its accelerators apart, emitted `embodied_kgco2`; theirs stand with them.
    """

    kind: Literal["server"]
    cpu: str
    sockets: PositiveInt
    accelerators: Accelerators | None = None
    memory_bytes: Figure
    base_w: Figure
    psu_efficiency: Figure
    rent_usd_per_h: Figure
    capex_usd: Figure
    off_w: Figure = UNKNOWN
    boot_w: Figure = UNKNOWN
    boot_s: Figure = UNKNOWN
    embodied_kgco2: Figure = UNKNOWN


class LinkProfile(Profile):
    """A network link: a message takes latency_s, then its bytes share bytes_per_s equally with those under way.

    Each message holds the link for per_message_s beside its bytes: setting up a copy, or a system call. A live run on one
    machine really moves what passes on a link that is `carried_by` something; on others it lets the modelled time pass.
    """

    kind: Literal["link"]
    latency_s: Figure
    bytes_per_s: Figure
    joules_per_byte: Figure
    per_message_s: Figure | None = None
    carried_by: Literal["pipe", "shared-memory"] | None = None


class Representation(Strict):
    """How tokens are written on a link: bytes of a message and of each token, and the seconds in which a core writes
    (encode) and reads (decode) them. With bytes_per_hidden_element a token is a vector of the model's width.
    """

    bytes_per_message: Figure | None = None
    bytes_per_token: Figure | None = None
    bytes_per_hidden_element: Figure | None = None
    encode_base_s: Figure | None = None
    encode_per_token_s: Figure | None = None
    decode_base_s: Figure | None = None
    decode_per_token_s: Figure | None = None


class Compression(Strict):
    """Bytes before over bytes after, and the bytes before that one core compresses, and restores, in a second."""

    ratio: Figure
    compress_bytes_per_s: Figure
    decompress_bytes_per_s: Figure


class WireProfile(Profile):
    """Representations and compressions of what passes between stages."""

    kind: Literal["wire"]
    representations: dict[str, Representation]
    compressions: dict[str, Compression]


class SparsityLaw(Strict):
    """Weights of which kept_fraction are left, each with index_bytes_per_weight that say where it stood.

    Products of them go flops_speedup times as fast as dense ones where FLOPs bound them, execute executed_fraction of the
    FLOPs, and take per_product_s more; a model keeps quality_fraction of its scores. `chips` have such products; an empty
    list: all have.
    """

    chips: tuple[str, ...] = ()
    kept_fraction: Figure
    index_bytes_per_weight: Figure
    flops_speedup: Figure
    executed_fraction: Figure
    per_product_s: Figure
    quality_fraction: Figure


class SparsityProfile(Profile):
    """Patterns in which weights may be pruned."""

    kind: Literal["sparsity"]
    patterns: dict[str, SparsityLaw]


class MeasuredError(Strict):
    """How far predictions erred on measured runs of one engine, chip and code path, as fractions of what was measured.

    No run was predicted by figures that were fitted on a run of its own architecture.
    """

    engine: str
    chip: str
    path: str
    quantity: Literal["tpot", "ttft", "throughput", "joules_per_token"]
    mean_fraction: NonNegativeFloat
    median_fraction: NonNegativeFloat
    p90_fraction: NonNegativeFloat
    runs: PositiveInt
    architectures: tuple[str, ...]


class EngineProfile(Profile):
    """A serving engine: its defaults, and the host time that it adds to every step.

    A step of B sequences adds host_s_per_step + (host_s_per_layer + host_s_per_layer_and_sequence B) layers
    + (host_s_per_sequence + host_s_per_sequence_and_peer (n - 1)) B on n devices, and host_s_per_expert_layer[path]
    for each layer of experts that takes that code path. Steps of more than graph_tokens new tokens are launched kernel by kernel: they take eager_s_per_layer a layer at least. `measured_paths` are those for which the
    figures were fitted; a model that takes another is predicted with low confidence, and says so. On the paths of
    `fused_shared_experts` shared experts are run in the kernel of the routed ones. `errors` say how far
    predictions with this profile erred on runs that it was not fitted on: results print those of their chip and path.
    `request_latency_s` passes between a client and the queue, and back, and holds no accelerator: the first token is later
    by it. `step_tables` names profiles of measured steps; one that is of a run's chip, model and precision is used for it.
    `load_s` is the time from a server that is on to an engine that serves: its processes, weights and graphs.
    """

    kind: Literal["engine"]
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    gpu_memory_utilization: float = Field(gt=0, le=1)
    block_tokens: PositiveInt
    prefix_caching: bool
    defaults_source: str
    host_s_per_layer: Figure
    host_s_per_sequence: Figure
    host_s_per_step: Figure | None = None
    host_s_per_layer_and_sequence: Figure | None = None
    host_s_per_sequence_and_peer: Figure | None = None
    host_s_per_expert_layer: dict[str, Figure] = {}
    graph_tokens: NonNegativeInt | None = None
    request_latency_s: Figure | None = None
    eager_s_per_layer: Figure | None = None
    measured_paths: tuple[str, ...] = ()
    fused_shared_experts: tuple[str, ...] = ()
    errors: tuple[MeasuredError, ...] = ()
    reserved_bytes: Figure
    host_cores_per_replica: Figure
    host_cores_per_accelerator: Figure
    step_tables: tuple[str, ...] = ()
    load_s: Figure = UNKNOWN


class StepTable(Profile):
    """Measured seconds of one engine's steps with one model on one chip, read linearly between its points.

    `decode_s[i][j]` is a step in which `decodes[i]` sequences each read `contexts[j]` tokens. A step with one prompt
    chunk of `chunk_tokens[i]` tokens takes `chunk_s[i]`, and `pair_s[i]` for each (query, key) pair that it attends;
    where chunks do not begin their prompts, `later_s[i]` more; for each chunk but one, `extra_chunk_s` more. A step of
    both takes the sum and `mixed_s[i][j]` more (a negative number: it reads the weights once), where
    `mixed_decodes[i]` sequences go with `mixed_chunk_tokens[j]`. Each prompt token takes `across_s` more for each
    token of the other sequences' contexts: servers that attend all of a batch as one masked matrix compute those too.
    Between the end of one step and the start of the next pass `between_s`, and `between_per_sequence_s` for each of its sequences. All of them are to be
    multiplied by `scale`: 1, with bounds on how far the table may be off.
    """

    kind: Literal["step-table"]
    engine: str
    chip: str
    model: ModelArchitecture
    precision: Precision
    tensor_parallel: PositiveInt = 1
    tier: Literal["measured"] = "measured"
    source: str
    median_error_fraction: float | None
    p90_error_fraction: float | None
    decodes: tuple[PositiveInt, ...] = Field(min_length=2)
    contexts: tuple[PositiveInt, ...] = Field(min_length=2)
    decode_s: tuple[tuple[PositiveFloat, ...], ...]
    chunk_tokens: tuple[PositiveInt, ...] = Field(min_length=2)
    chunk_s: tuple[NonNegativeFloat, ...]
    pair_s: tuple[NonNegativeFloat, ...]
    later_s: tuple[NonNegativeFloat, ...]
    extra_chunk_s: NonNegativeFloat
    across_s: NonNegativeFloat = 0.0
    between_s: NonNegativeFloat = 0.0
    between_per_sequence_s: NonNegativeFloat = 0.0
    scale: Figure | None = None
    mixed_decodes: tuple[PositiveInt, ...] = Field(min_length=1)
    mixed_chunk_tokens: tuple[PositiveInt, ...] = Field(min_length=1)
    mixed_s: tuple[tuple[float, ...], ...]

    def between(self, sequences: int) -> float:
        """Seconds that pass before a step of so many sequences."""
        return self.between_s + self.between_per_sequence_s * sequences

    @model_validator(mode="after")
    def _grids_fit_their_axes(self) -> StepTable:
        for name in ("decodes", "contexts", "chunk_tokens", "mixed_decodes", "mixed_chunk_tokens"):
            axis = getattr(self, name)
            if list(axis) != sorted(set(axis)):
                raise ValueError(f"{name} is {list(axis)}; it must rise from one to the next")
        for name, rows, columns in (
            ("decode_s", self.decodes, self.contexts),
            ("mixed_s", self.mixed_decodes, self.mixed_chunk_tokens),
        ):
            grid = getattr(self, name)
            if len(grid) != len(rows) or any(len(row) != len(columns) for row in grid):
                raise ValueError(
                    f"{name} does not have {len(rows)} rows of {len(columns)}; it needs one for each point"
                )
        if not len(self.chunk_s) == len(self.pair_s) == len(self.chunk_tokens):
            raise ValueError(
                f"chunk_s and pair_s do not have {len(self.chunk_tokens)} values; each needs one per point"
            )
        return self


class Tool(Strict):
    """A tool: a CPU operation with its size, then perhaps a wait for something outside that holds no core."""

    operation: str
    units: float = Field(default=1, ge=0)
    outside_wait_s: Distribution | None = None
    source: str = ""


class ToolCatalogue(Profile):
    """Named tools that scenarios may use."""

    kind: Literal["tools"]
    tools: dict[str, Tool]


PROFILE_KINDS: dict[str, type[Profile]] = {
    "cpu": CpuProfile,
    "accelerator": AcceleratorProfile,
    "server": ServerProfile,
    "link": LinkProfile,
    "engine": EngineProfile,
    "tools": ToolCatalogue,
    "wire": WireProfile,
    "sparsity": SparsityProfile,
    "step-table": StepTable,
}
