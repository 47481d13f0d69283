"""The kernels of language models as calls to be timed: products, attention, copies, launches.

Weights are taken in turn from a pool larger than the last cache, as the layers of a model are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hsim.calibrate.sampling import Call
from hsim.calibrate.work import Parameters
from hsim.units import GIB

if TYPE_CHECKING:
    import torch

POOL_BYTES = {"cpu": GIB // 2, "cuda": 2 * GIB}  # several times the last cache: 64 MB on GPUs, some 100 MB on CPUs
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8_e4m3fn"}
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}


class Kernels:
    """Makes calls on one device; keeps its pools of random weights from one to the next."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._pools: dict[str, torch.Tensor] = {}

    def call(self, kind: str, parameters: Parameters) -> Call:
        """The call of that kind at that point. Raises KeyError for a kind that is none."""
        return _KINDS[kind](self, parameters)

    def random(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """Normal random numbers; zeros would draw less power and, on some CPUs, take less time."""
        import torch

        name = getattr(torch, DTYPES[dtype])
        if dtype == "fp8":
            return torch.randn(shape, device=self.device, dtype=torch.bfloat16).to(name)
        return torch.randn(shape, device=self.device, dtype=name)

    def pool(self, dtype: str) -> torch.Tensor:
        """The pool of weights in a precision: one random block, repeated."""
        import torch

        if dtype not in self._pools:
            kind = self.device.split(":")[0]
            block = self.random((1 << 20,), dtype)
            copies = POOL_BYTES[kind] // ELEMENT_BYTES[dtype] // (1 << 20)
            self._pools[dtype] = block.view(torch.uint8).repeat(copies).view(block.dtype)  # not all can be repeated
        return self._pools[dtype]

    def weights(self, shape: tuple[int, int], dtype: str) -> Callable[[int], torch.Tensor]:
        """The i-th matrix of the pool, beginning again where it ends; a matrix larger than the pool is made."""
        pool, count = self.pool(dtype), shape[0] * shape[1]
        slots = pool.numel() // count
        if not slots:
            alone = self.random(shape, dtype)
            return lambda i: alone

        def slot(i: int) -> torch.Tensor:
            start = (i % slots) * count
            return pool[start : start + count].view(shape)

        return slot


def _gemm(kernels: Kernels, at: Parameters) -> Call:
    """A linear layer's product of m rows, n outputs and k inputs."""
    import torch

    m, n, k, dtype = int(at["m"]), int(at["n"]), int(at["k"]), str(at["dtype"])
    x, weights = kernels.random((m, k), dtype), kernels.weights((n, k), dtype)
    if dtype == "fp8":
        scale = torch.ones((), device=kernels.device)
        return lambda i: torch._scaled_mm(
            x, weights(i).t(), scale, scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    return lambda i: torch.nn.functional.linear(x, weights(i))


def _decode_attention(kernels: Kernels, at: Parameters) -> Call:
    """One query per sequence over its whole context, keys and values other than those of the call before.

    As hsim's decoder asks for it: the query heads of one KV head stand where a longer query has its positions.
    """
    import torch

    batch, context, dtype = int(at["batch"]), int(at["context"]), str(at["dtype"])
    heads, kv_heads, head_dim = int(at["heads"]), int(at["kv_heads"]), int(at["head_dim"])
    query = kernels.random((batch, kv_heads, heads // kv_heads, head_dim), dtype)
    cache = kernels.weights((2, batch * kv_heads * context * head_dim), dtype)
    shape = (2, batch, kv_heads, context, head_dim)
    attend = torch.nn.functional.scaled_dot_product_attention
    # Served contexts are unlike, which the decoder masks; kernels that take no mask are then out of the question.
    mask = torch.zeros((batch, 1, 1, context), dtype=query.dtype, device=kernels.device) if batch > 1 else None

    def call(i: int) -> Any:
        keys, values = cache(i).view(shape)
        return attend(query, keys, values, attn_mask=mask)

    return call


def _prefill_attention(kernels: Kernels, at: Parameters) -> Call:
    """Causal attention of one prompt of so many tokens, KV heads repeated for their queries as hsim's decoder does."""
    import torch

    tokens, dtype = int(at["tokens"]), str(at["dtype"])
    heads, head_dim = int(at["heads"]), int(at["head_dim"])
    query, keys, values = (kernels.random((1, heads, tokens, head_dim), dtype) for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda i: attend(query, keys, values, is_causal=True)


def _experts(kernels: Kernels, at: Parameters) -> Call:
    """The routed experts of one layer, up, gate and down: tokens sorted by expert, then a product for each that has any.

    Routes are drawn evenly. One grouped product per matrix where torch has it for the device, else one after another.
    """
    import torch

    tokens, count, per_token = int(at["tokens"]), int(at["experts"]), int(at["per_token"])
    hidden, width, dtype = int(at["hidden"]), int(at["width"]), str(at["dtype"])
    up, down = kernels.random((count, 2 * width, hidden), dtype), kernels.random((count, hidden, width), dtype)
    x = kernels.random((tokens * per_token, hidden), dtype)
    draw = torch.Generator().manual_seed(0)
    routes = torch.stack([torch.randperm(count, generator=draw)[:per_token] for _ in range(tokens)]).flatten()
    sizes = torch.bincount(routes, minlength=count)
    grouped = getattr(torch, "_grouped_mm", None) if kernels.device != "cpu" and dtype == "bf16" else None
    ends = sizes.cumsum(0).to(torch.int32).to(kernels.device)
    parts = sizes.tolist()

    def gated(both: torch.Tensor) -> torch.Tensor:
        gate, value = both.chunk(2, -1)
        return torch.nn.functional.silu(gate) * value

    def one_by_one(i: int) -> Any:
        pieces = []
        for expert, mine in enumerate(x.split(parts)):
            if len(mine):
                pieces.append(gated(mine @ up[expert].t()) @ down[expert].t())
        return torch.cat(pieces)

    def all_at_once(i: int) -> Any:
        assert grouped is not None
        inner = gated(grouped(x, up.transpose(1, 2), offs=ends))
        return grouped(inner, down.transpose(1, 2), offs=ends)

    return all_at_once if grouped else one_by_one


def _memory_copy(kernels: Kernels, at: Parameters) -> Call:
    """Read so many bytes and write them elsewhere: twice as many bytes move."""
    import torch

    n_bytes = int(at["bytes"])
    source = torch.ones(n_bytes // 4, device=kernels.device)
    target = torch.empty_like(source)
    return lambda i: target.copy_(source)


def _launch(kernels: Kernels, at: Parameters) -> Call:
    """The smallest operation there is: what a call costs before it does anything."""
    import torch

    tiny = torch.zeros(1, device=kernels.device)
    return lambda i: tiny.add_(1.0)


def _transfer(kernels: Kernels, at: Parameters) -> Call:
    """Bytes from host to device (h2d) or back (d2h), from pageable or pinned host memory, waited for.

    In so many `pieces` one after another, as messages that are not batched.
    """
    import torch

    host = torch.ones(int(at["bytes"]), dtype=torch.uint8, pin_memory=at["memory"] == "pinned")
    there = torch.empty_like(host, device=kernels.device)
    both = (host, there) if at["direction"] == "h2d" else (there, host)
    pieces = [half.chunk(int(at.get("pieces", 1))) for half in both]

    def call(i: int) -> None:
        for source, target in zip(*pieces, strict=True):
            target.copy_(source, non_blocking=True)
        if kernels.device != "cpu":
            torch.cuda.synchronize(kernels.device)

    return call


_KINDS: dict[str, Callable[[Kernels, Parameters], Call]] = {
    "gemm": _gemm,
    "decode-attention": _decode_attention,
    "prefill-attention": _prefill_attention,
    "memory-copy": _memory_copy,
    "launch": _launch,
    "experts": _experts,
    "transfer": _transfer,
}

WALL_TIMED = ("launch", "transfer")  # kinds that are timed by the host's clock on a GPU too
