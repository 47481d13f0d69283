"""Hardware, link, engine and tool profiles: what one YAML file of hardware_profiles/ may say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from hsim.description.quantities import Distribution, Figure
from hsim.description.yamlfile import Strict

Precision = Literal["bf16", "fp8"]


class Profile(Strict):
    """What every profile has: its name is the name of its file."""

    name: str
    description: str = ""


class Operation(Strict):
    """Cost of a CPU operation on one busy core: base + per_unit * n + per_unit_squared * n^2 seconds.

    `unit` says what n counts (tokens, calls, candidates ...).
    """

    unit: str
    base_s: Figure
    per_unit_s: Figure | None = None
    per_unit_squared_s: Figure | None = None


class CpuProfile(Profile):
    """A CPU socket. Power above idle is (max_w - idle_w) * busy_fraction ** load_power_exponent.

    A core takes contention_slowdown times as long when all are busy as when it is alone, in proportion in between.
    """

    kind: Literal["cpu"]
    cores: PositiveInt
    idle_w: Figure
    max_w: Figure
    load_power_exponent: Figure
    memory_bytes_per_s: Figure
    contention_slowdown: Figure
    operations: dict[str, Operation]


class GemmLaw(Strict):
    """One matrix product: launch_s + ((bytes/(bandwidth_fraction BW))^4 + (flops/(flops_fraction peak))^4)^(1/4)."""

    launch_s: Figure
    bandwidth_fraction: Figure
    flops_fraction: Figure


class DecodeAttentionLaw(Strict):
    """One decode-attention kernel: launch + B (heads head_dim per_element_s + per_sequence_s) + KV/(fraction BW)."""

    launch_s: Figure
    per_element_s: Figure
    per_sequence_s: Figure
    bandwidth_fraction: Figure


class PrefillAttentionLaw(Strict):
    """One prefill-attention kernel: launch + flops/(fraction peak) + tokens heads head_dim per_element_s."""

    launch_s: Figure
    flops_fraction: Figure
    per_element_s: Figure


class AllReduceLaw(Strict):
    """One all-reduce over n devices: launch + per_peer_s (n-1) + 2 (n-1)/n bytes/bytes_per_s."""

    launch_s: Figure
    per_peer_s: Figure
    bytes_per_s: Figure


class Kernels(Strict):
    """How fast the kernels of one accelerator really are."""

    overlap_factor: Figure
    gemm: dict[Precision, GemmLaw]
    decode_attention: DecodeAttentionLaw
    prefill_attention: PrefillAttentionLaw
    all_reduce: AllReduceLaw | None = None


class AcceleratorPower(Strict):
    """Watts of one accelerator. While busy: floor_w plus joules per byte, FLOP and output token, capped at cap_w."""

    idle_w: Figure
    loaded_idle_w: Figure
    floor_w: Figure
    cap_w: Figure
    joules_per_byte: Figure
    joules_per_flop: Figure
    joules_per_output_token: Figure


class AcceleratorProfile(Profile):
    """An accelerator chip or board. Peaks are dense."""

    kind: Literal["accelerator"]
    memory_bytes: Figure
    memory_bytes_per_s: Figure
    peak_flops_per_s: dict[Precision, Figure]
    kernels: Kernels
    power: AcceleratorPower


class Accelerators(Strict):
    """The accelerators of one server."""

    chip: str
    count: PositiveInt


class ServerProfile(Profile):
    """A server that people buy or rent: sockets, base load, power supply, and perhaps accelerators.

    `base_w` is everything behind the power supply that is neither CPU package nor accelerator board: DRAM, fans,
    network cards, storage, switches.
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


class LinkProfile(Profile):
    """A network link: a message takes latency_s, then its bytes share bytes_per_s equally with those under way."""

    kind: Literal["link"]
    latency_s: Figure
    bytes_per_s: Figure
    joules_per_byte: Figure


class EngineProfile(Profile):
    """A serving engine: its defaults, and the host time that it adds to every step."""

    kind: Literal["engine"]
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    gpu_memory_utilization: float = Field(gt=0, le=1)
    block_tokens: PositiveInt
    prefix_caching: bool
    defaults_source: str
    host_s_per_layer: Figure
    host_s_per_sequence: Figure
    reserved_bytes: Figure
    host_cores_per_replica: Figure
    host_cores_per_accelerator: Figure


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
}
