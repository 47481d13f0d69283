"""Kernel laws with their numbers filled in: seconds of one kernel on one device. Plain arithmetic, on floats or arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

ELEMENT_BYTES: dict[str, float] = {
    "bf16": 2.0, "fp16": 2.0, "fp32": 4.0, "fp8": 1.0, "fp8_block": 1.0, "mxfp4": 0.53125,  # 4 bits, a scale byte for 32
    "nvfp4": 0.5625,  # 4 bits, a scale byte for 16
}  # fmt: skip
SHARPNESS = 4.0  # of the turn from bytes to FLOPs, where a profile does not say

Of = Callable[[str], float]


@dataclass(frozen=True, slots=True)
class TwoSided:
    """Seconds of so many bytes and FLOPs: a smooth maximum of the two."""

    bytes_per_s: float
    flops_per_s: float
    sharpness: float = SHARPNESS

    def seconds(self, n_bytes: Any, flops: Any) -> Any:
        memory_s, compute_s, q = n_bytes / self.bytes_per_s, flops / self.flops_per_s, self.sharpness
        return (memory_s**q + compute_s**q) ** (1.0 / q)


@dataclass(frozen=True, slots=True)
class Gemm:
    """hardware.GemmLaw of one precision: weights of weight_bytes, products read and written in activation_bytes."""

    sides: TwoSided
    launch_s: float
    weight_bytes: float
    activation_bytes: float
    per_depth_s: float = 0.0
    per_activation_s: float = 0.0
    per_packed_weight_s: float = 0.0

    def n_bytes(self, m: Any, n: Any, k: Any) -> Any:
        """Bytes moved: weights, activations in and out."""
        return n * k * self.weight_bytes + (m * k + m * n) * self.activation_bytes

    def seconds(self, m: Any, n: Any, k: Any) -> Any:
        fixed_s = self.launch_s + self.per_depth_s * k + self.per_activation_s * m * k
        packing_s = self.per_packed_weight_s * n * k * (m > 1)
        return fixed_s + packing_s + self.sides.seconds(self.n_bytes(m, n, k), 2.0 * m * n * k)


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """The routed experts of one layer on one device: `count` of `total`, `width` wide, `matrices` each."""

    total: float
    count: float
    per_token: float
    hidden: float
    width: float
    matrices: int = 3


@dataclass(frozen=True, slots=True)
class ExpertsKernel:
    """hardware.ExpertsLaw of one precision."""

    sides: TwoSided
    launch_s: float
    weight_bytes: float
    activation_bytes: float
    per_expert_s: float
    per_element_s: float
    padding_tokens: float
    imbalance: float

    def touched(self, m: Any, shape: ExpertsShape) -> Any:
        """Experts of this device that m tokens are expected to reach: routing is uneven, so fewer than by chance."""
        return shape.count * (1.0 - (1.0 - shape.per_token / shape.total) ** (self.imbalance * m))

    def busiest(self, m: Any, shape: ExpertsShape) -> tuple[Any, Any]:
        """Experts touched and rows of the device that has most to do, where devices hold whole experts between them.

        All wait for it. Each expert is reached or not, and each row lands here or elsewhere, by chance: the greatest of n
        such sums lies about as far above their mean as the greatest of n normal deviates (Blom's approximation).
        """
        devices, share = shape.total / shape.count, shape.count / shape.total
        above = NormalDist().inv_cdf((devices - 0.375) / (devices + 0.25)) if devices > 1 else 0.0
        mean, all_rows = self.touched(m, shape), m * shape.per_token
        touched = mean + above * (mean * (1.0 - mean / shape.count)) ** 0.5
        rows = all_rows * share + above * (all_rows * share * (1.0 - share)) ** 0.5
        return min(touched, shape.count), min(rows, all_rows)

    def n_bytes(self, m: Any, touched: Any, shape: ExpertsShape) -> Any:
        """Bytes moved: touched experts' weights, activations in, between and out."""
        return self._bytes(m * shape.per_token * shape.count / shape.total, touched, shape)

    def _bytes(self, rows: Any, touched: Any, shape: ExpertsShape) -> Any:
        weights = touched * shape.matrices * shape.hidden * shape.width * self.weight_bytes
        return weights + rows * (2.0 * shape.hidden + shape.matrices * shape.width) * self.activation_bytes

    def flops(self, m: Any, shape: ExpertsShape) -> Any:
        """FLOPs asked for, without those of padding."""
        return 2.0 * m * shape.per_token * shape.count / shape.total * shape.matrices * shape.hidden * shape.width

    def seconds(self, m: Any, touched: Any, shape: ExpertsShape, rows: Any = None) -> Any:
        """With so many rows (of tokens times experts) where they are not this device's part of all."""
        per_row = 2.0 * shape.matrices * shape.hidden * shape.width
        rows = m * shape.per_token * shape.count / shape.total if rows is None else rows
        sides_s = self.sides.seconds(
            self._bytes(rows, touched, shape), (rows + self.padding_tokens * touched) * per_row
        )
        return self.launch_s + self.per_expert_s * touched + self.per_element_s * rows * shape.hidden + sides_s


@dataclass(frozen=True, slots=True)
class DecodeAttention:
    """hardware.DecodeAttentionLaw: `sequence_s` of each sequence, and `context_s` of each token of context."""

    launch_s: float
    per_element_s: float
    per_kv_head_s: float
    per_sequence_s: float
    bytes_per_s: float

    def sequence_s(self, width: Any, kv_heads: Any) -> Any:
        return width * self.per_element_s + kv_heads * self.per_kv_head_s + self.per_sequence_s

    def seconds(self, batch: Any, width: Any, kv_heads: Any, kv_bytes: Any) -> Any:
        return self.launch_s + batch * self.sequence_s(width, kv_heads) + kv_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class AllReduce:
    """hardware.AllReduceLaw."""

    launch_s: float
    per_peer_s: float
    bytes_per_s: float

    def seconds(self, ways: Any, n_bytes: Any) -> Any:
        return self.launch_s + self.per_peer_s * (ways - 1) + 2.0 * (ways - 1) / ways * n_bytes / self.bytes_per_s


def compute_precision(weights: str, known: Any) -> str:
    """The precision that products of such weights are computed in, on a chip with peaks for those `known`."""
    wanted = {"fp8_block": "fp8", "mxfp4": "bf16"}.get(weights, weights)
    return wanted if wanted in known else "bf16"


def working_precision(weights: str) -> str:
    """The precision of activations, keys and values: that of the weights, but bf16 beside quantised ones, vLLM's default."""
    return "bf16" if weights in ("fp8", "fp8_block", "mxfp4", "nvfp4") else weights
