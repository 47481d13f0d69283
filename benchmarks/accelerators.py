"""Writes accelerator and engine profiles: data-sheet figures with their sources, and laws fitted here or transferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernel_laws import HOPPER, Silicon, transferred

AIC = "aiconfigurator tables @095f58a"
TRANSFER = "Hopper's law; launches by clock, per-item work by SMs x clock, fractions of bandwidth and peak kept (docs/models.md)"


@dataclass(frozen=True)
class Sheet:
    """What is published of an accelerator; None where nothing was found. Watts; FLOP/s are dense."""

    name: str
    row_name: str
    description: str
    memory_bytes: float
    memory_bytes_per_s: float
    peaks: dict[str, float | None]
    sheet_source: str
    tdp_w: float | None
    idle_w: float | None
    loaded_idle_w: float | None
    power_source: str
    silicon: Silicon | None
    link_bytes_per_s: float | None = None
    loaded_tier: str = "published"


@dataclass(frozen=True)
class Laws:
    """Parameters by law and precision, with where they come from."""

    values: dict[tuple[str, str], dict[str, float]]
    sources: dict[tuple[str, str], str]
    tier: str


GEMM = ("launch_s", "bandwidth_fraction", "flops_fraction", "per_depth_s", "per_activation_s", "sharpness")
EXPERTS = (
    "launch_s",
    "bandwidth_fraction",
    "flops_fraction",
    "per_expert_s",
    "per_element_s",
    "padding_tokens",
    "imbalance",
    "sharpness",
)
DECODE = ("launch_s", "per_element_s", "per_kv_head_s", "per_sequence_s", "bandwidth_fraction")
PREFILL = ("launch_s", "flops_fraction", "per_element_s", "per_pair_s", "per_depth_s")
REDUCE = ("launch_s", "per_peer_s", "bytes_per_s")


def number(value: float | None) -> str:
    if value is None:
        return "null"
    return f"{value:.4g}".replace("e+", "e")


def figure(value: float | None, tier: str, source: str, spread: float | None = None) -> str:
    """A figure as one line of YAML; `spread` is the fraction by which low and high differ from it."""
    parts = [f"value: {number(value)}"]
    if spread is not None and value is not None:
        parts += [f"low: {number(value * (1 - spread))}", f"high: {number(value * (1 + spread))}"]
    text = source.replace('"', "'")
    return "{" + ", ".join([*parts, f"tier: {tier}", f'source: "{text}"']) + "}"


def _law(key: tuple[str, str], names: tuple[str, ...], laws: Laws, indent: int) -> list[str]:
    values, source = laws.values[key], laws.sources[key]
    return [f"{' ' * indent}{name}: {figure(values[name], laws.tier, source)}" for name in names]


def kernel_lines(laws: Laws, factor: str, extras: list[str]) -> list[str]:
    """The kernels block of a profile."""
    lines = ["kernels:", f"  overlap_factor: {factor}", "  gemm:"]
    for precision in [p for law, p in laws.values if law == "gemm"]:
        lines += [f"    {precision}:", *_law(("gemm", precision), GEMM, laws, 6)]
    experts = [p for law, p in laws.values if law == "experts"]
    if experts:
        lines.append("  experts:")
        for precision in experts:
            lines += [f"    {precision}:", *_law(("experts", precision), EXPERTS, laws, 6)]
    lines += ["  decode_attention:", *_law(("decode_attention", "bf16"), DECODE, laws, 4)]
    flash, moved = "FlashMLA README: 660 TFLOP/s of 989 on H800", laws.tier == "transferred"
    fraction = figure(0.67, "transferred" if moved else "published", flash, 0.2 if moved else None)
    lines.append(f"    flops_fraction: {fraction}")
    lines += ["  prefill_attention:", *_law(("prefill_attention", "bf16"), PREFILL, laws, 4)]
    if ("all_reduce", "bf16") in laws.values:
        lines += ["  all_reduce:", *_law(("all_reduce", "bf16"), REDUCE, laws, 4)]
    return lines + extras


def header_lines(sheet: Sheet, comment: list[str]) -> list[str]:
    published = lambda value: figure(value, "published", sheet.sheet_source)  # noqa: E731
    lines = [f"# {line}" for line in comment]
    lines += [f"name: {sheet.name}", "kind: accelerator", f"description: {sheet.description}"]
    lines += [
        f"memory_bytes: {published(sheet.memory_bytes)}",
        f"memory_bytes_per_s: {published(sheet.memory_bytes_per_s)}",
    ]
    lines.append("peak_flops_per_s:")
    return lines + [f"  {name}: {published(value)}" for name, value in sheet.peaks.items()]


POWER_UNITS = {"joules_per_byte": "memory_bytes_per_s", "joules_per_flop": "bf16"}


def power_lines(
    sheet: Sheet, power: dict[str, float] | None, tier: str, source: str, spread: float | None
) -> list[str]:
    """The power block; fitted values as they are, or the H100's scaled."""
    given = power or {}
    unknown = "nothing published was found" if power is None else source
    lines = ["power:", f"  idle_w: {figure(sheet.idle_w, 'published', sheet.power_source)}"]
    if sheet.loaded_idle_w is None and power is not None:
        lines.append(f"  loaded_idle_w: {figure(given['loaded_idle_w'], 'transferred', source, spread)}")
    else:
        lines.append(f"  loaded_idle_w: {figure(sheet.loaded_idle_w, sheet.loaded_tier, sheet.power_source)}")
    for name in (
        "floor_w",
        "cap_w",
        "joules_per_byte",
        "joules_per_flop",
        "joules_per_output_token",
        "kernel_w",
        "joules_per_unpacked_byte",
    ):
        value = given.get(name)
        lines.append(
            f"  {name}: {figure(value, tier if value is not None else 'published', source if value is not None else unknown, spread if name != 'cap_w' else None)}"
        )
    return lines


LOWEST_CLOCKS = {"h100-sxm": 345e6, "h200-sxm": 345e6, "a100-80g-sxm": 210e6, "a100-40g-sxm": 210e6}


def clock_lines(sheet: Sheet) -> list[str]:
    """Clocks of chips whose highest is published; the lowest is assumed."""
    lowest = LOWEST_CLOCKS.get(sheet.name)
    if lowest is None or sheet.silicon is None:
        return []
    top = "arXiv 2605.11999 (Hopper), notes on energy optima of the A100: locked from its highest clock down; twelve steps stand for all"
    low = "nobody published it with a source that was found"
    gamma = "P = idle + dynamic (f/fmax)^gamma: 2 to 3 is a modelling choice, nobody published a fit"
    return [
        "  clocks:",
        f"    highest_hz: {figure(sheet.silicon.clock_hz, 'published', top)}",
        f"    lowest_hz: {figure(lowest, 'assumed', low, 0.5)}",
        "    count: 12",
        f"    energy_exponent: {figure(2.4, 'assumed', gamma, 0.2)}",
    ]


def transferred_laws(hopper: Laws, sheet: Sheet) -> Laws:
    """Hopper's laws on another chip's silicon, for the precisions whose peaks it has."""
    assert sheet.silicon is not None
    values, sources = {}, {}
    known = dict(hopper.values)
    if "nvfp4" in sheet.peaks:  # Hopper has none: its fractions in fp8, of the peak in fp4
        known |= {(law, "nvfp4"): known[law, "fp8"] for law in ("gemm", "experts") if (law, "fp8") in known}
    for (law, precision), numbers in known.items():
        needed = {"fp8_block": "fp8", "mxfp4": "bf16"}.get(precision, precision)
        if law in ("gemm", "experts") and needed not in sheet.peaks:
            continue
        if law == "all_reduce" and sheet.link_bytes_per_s is None:
            continue
        moved = transferred(numbers, sheet.silicon, HOPPER)
        if law == "all_reduce" and sheet.link_bytes_per_s:
            moved["bytes_per_s"] *= sheet.link_bytes_per_s / 450e9
        if precision == "mxfp4":  # unpacking is bound by the SMs: its rate goes with them, not with bandwidth
            rate = (
                numbers["bandwidth_fraction"] * 4.8e12 * sheet.silicon.units * sheet.silicon.clock_hz / (132 * 1.98e9)
            )
            moved["bandwidth_fraction"] = min(0.9, rate / sheet.memory_bytes_per_s)
        values[law, precision], sources[law, precision] = moved, TRANSFER
    return Laws(values, sources, "transferred")


def scaled_power(h100: dict[str, float], sheet: Sheet) -> dict[str, float]:
    """The H100's power by fractions of TDP, bandwidth and peak."""
    assert sheet.tdp_w is not None
    part = sheet.tdp_w / 700.0
    peak = sheet.peaks.get("bf16")
    scaled = {
        "floor_w": h100["floor_w"] * part, "loaded_idle_w": 121.7 * part, "cap_w": h100["cap_w"] * part, "kernel_w": h100["kernel_w"] * part,
        "joules_per_byte": h100["joules_per_byte"] * part * 3.35e12 / sheet.memory_bytes_per_s,
        "joules_per_output_token": h100["joules_per_output_token"],
        "joules_per_unpacked_byte": h100["joules_per_unpacked_byte"] * part,
    }  # fmt: skip
    return scaled | ({"joules_per_flop": h100["joules_per_flop"] * part * 989e12 / peak} if peak else {})


def render(*blocks: list[str] | Any) -> str:
    return "\n".join(line for block in blocks for line in block) + "\n"


FACTS = "[AIC] systems/*.yaml @095f58a and ml-engineering @744d01e, dense"
PARK = "arXiv 2605.23918: bare board, and with a CUDA context and a model loaded"
SHEETS = {
    sheet.name: sheet
    for sheet in (
        Sheet("h100-sxm", "H100-SXM-80GB", "NVIDIA H100 SXM5, 80 GB HBM3", 80e9, 3.35e12, {"bf16": 989e12, "fp8": 1979e12},
              "NVIDIA H100 data sheet, dense; aiconfigurator systems/h100_sxm.yaml @095f58a", 700, 71.8, 121.7, PARK, HOPPER, 450e9),
        Sheet("h200-sxm", "H200-SXM-141GB", "NVIDIA H200 SXM, 141 GB HBM3e", 141e9, 4.8e12, {"bf16": 989e12, "fp8": 1979e12}, FACTS,
              700, 74.5, 121.7, "idle: arXiv 2605.11999 and conservemode.com, 73.7 to 75 W; with a model loaded as on the H100 (arXiv 2605.23918): the same GPU die",
              Silicon(132, 1.98e9, 4.8e12), 450e9, "transferred"),
        Sheet("a100-80g-sxm", "A100-SXM-80GB", "NVIDIA A100 SXM4, 80 GB HBM2e", 80e9, 2.039e12, {"bf16": 312e12}, FACTS, 400, 53.7, 80.0, PARK,
              Silicon(108, 1.41e9, 2.039e12), 300e9),
        Sheet("a100-40g-sxm", "A100-SXM4-40GB", "NVIDIA A100 SXM4, 40 GB HBM2", 40e9, 1.555e12, {"bf16": 312e12},
              "gpu_catalog.json of huggingface.co/RajBhope/gpu-runtime-predictor (second hand), dense", 400, 53.7, 80.0, PARK + "; measured on the 80 GB board", Silicon(108, 1.41e9, 1.555e12), 300e9, "transferred"),
        Sheet("b200", "B200-180GB", "NVIDIA B200, 180 GB HBM3e", 180e9, 7.7e12, {"bf16": 2250e12, "fp8": 4500e12, "nvfp4": 9000e12},
              FACTS + "; 8.0 TB/s is quoted too; fp4: half of 18 PFLOP/s sparse, NVIDIA's table of HGX B200", 1000,
              188, None, "idle of one box (second hand); nobody published it with a model loaded", Silicon(148, 1.965e9, 7.7e12), 900e9),
        Sheet("l40s", "L40S-48GB", "NVIDIA L40S, 48 GB GDDR6", 48e9, 0.864e12, {"bf16": 362e12, "fp8": 733e12}, FACTS, 350, 35.6, 102.1, PARK,
              Silicon(142, 2.52e9, 0.864e12)),
        Sheet("l4", "L4-24GB", "NVIDIA L4, 24 GB GDDR6", 24e9, 0.30e12, {"bf16": 121e12, "fp8": 242e12}, FACTS, 72, 17, None, "arXiv 2604.09048 (Watt Counts): 17 to 73 W",
              Silicon(58, 2.04e9, 0.30e12)),
        Sheet("a10g", "A10G-24GB", "NVIDIA A10G, 24 GB GDDR6", 24e9, 0.60e12, {"bf16": None},
              "nvidia-smi gist of shashankprasanna: 24 GB, 300 W (second hand); sources for its bf16 peak say 62.5 to 70 TFLOP/s, and conflict", 300, None, None,
              "nothing published was found", Silicon(72, 1.71e9, 0.60e12)),  # SMs x clock by 31.5 TFLOP/s in fp32 (GoogleCloud gpu-mapping)
        Sheet("rtx-4090", "RTX-4090-24GB", "NVIDIA GeForce RTX 4090, 24 GB GDDR6X", 24e9, 1.008e12, {"bf16": 165.2e12, "fp8": 330.3e12},
              "hmc-tech.com: with fp32 accumulation (second hand); Tom's Hardware: bandwidth, board power", 450, None, None, "nothing published was found",
              Silicon(128, 2.52e9, 1.008e12)),
        Sheet("rtx-pro-6000", "RTX-PRO-6000-BW-96GB", "NVIDIA RTX PRO 6000 Blackwell, 96 GB GDDR7", 96e9, 1.792e12, {"bf16": 468e12, "fp8": 936e12},
              FACTS, 600, None, None, "nothing published was found", Silicon(188, 2.6e9, 1.792e12)),
        Sheet("gb200", "GB200-186GB", "NVIDIA GB200, one of its GPUs, 186 GB HBM3e", 186e9, 8.0e12, {"bf16": 2500e12, "fp8": 5000e12, "nvfp4": 10000e12},
              FACTS + "; fp4: half of 20 PFLOP/s sparse, NVIDIA's table of GB200 NVL72", 1200,
              None, None, "nothing published was found", Silicon(148, 1.965e9, 8.0e12), 900e9),
        Sheet("h100-pcie", "H100-PCIE-80GB", "NVIDIA H100 PCIe, 80 GB HBM2e", 80e9, 2.0e12, {"bf16": 756e12, "fp8": 1513e12}, FACTS, 350, 59, None,
              "arXiv 2604.09048 (Watt Counts): 59 to 416 W", Silicon(114, 1.755e9, 2.0e12)),
        Sheet("mi325x", "MI325X-256GB", "AMD Instinct MI325X, 256 GB HBM3e", 256e9, 6.0e12, {"bf16": 1307e12, "fp8": 2615e12},
              "ml-engineering @744d01e, dense", 1000, None, None, "nothing published was found", Silicon(304, 2.1e9, 6.0e12), 448e9),
        Sheet("mi300x", "MI300X-192GB", "AMD Instinct MI300X, 192 GB HBM3", 192e9, 5.3e12, {"bf16": 1307e12, "fp8": 2610e12},
              "ml-engineering @744d01e, dense", 750, None, None, "nothing published was found", Silicon(304, 2.1e9, 5.3e12), 448e9),
    )
}  # fmt: skip
BY_ROW = {sheet.row_name: sheet for sheet in SHEETS.values()}

# Names under which rows may know an accelerator, by how they begin; the longest that fits decides.
_BEGINNINGS = {
    "H100": "h100-sxm", "H100-PCIE": "h100-pcie", "H200": "h200-sxm", "A100-SXM4-40": "a100-40g-sxm", "A100-SXM-40": "a100-40g-sxm",
    "A100": "a100-80g-sxm", "A10G": "a10g", "B200": "b200", "GB200": "gb200", "L40S": "l40s", "L4-": "l4", "RTX-4090": "rtx-4090", "RTX-PRO-6000": "rtx-pro-6000",
    "MI300X": "mi300x", "MI325X": "mi325x",
}  # fmt: skip


_MAKERS = ("NVIDIA", "AMD", "INSTINCT", "GEFORCE", "TESLA", "VIRTUALIZED")
_OTHERS = (
    "H200-NVL",
    "H100-NVL",
    "H200-PCIE",
    "A100-PCIE",
)  # other boards than those above: no data sheet with a source was found


def row_name(gpu: str) -> str:
    """The name that hsim's tables use for a row's accelerator; as it is where hsim has no data sheet of it."""
    if gpu in BY_ROW:
        return gpu
    words = [word for word in gpu.upper().replace("_", "-").replace(" ", "-").split("-") if word not in _MAKERS]
    plain = "-".join(words)
    if plain.startswith(_OTHERS):
        return gpu
    fitting = [begin for begin in _BEGINNINGS if plain.startswith(begin) or plain == begin.rstrip("-")]
    return SHEETS[_BEGINNINGS[max(fitting, key=len)]].row_name if fitting else gpu
