"""hsim's own continuously batched decoder: Llama-class, one forward pass per step plan, a preallocated slot cache.

A step runs every linear layer once over the new tokens of all items, as the cost model takes it to; only attention
looks at items apart. Decodes of neighbouring slots share one call that reads their keys and values in place, padded
to the longest where that is cheaper than another call; chunks of prompts go one by one. Nothing here knows CPU from
CUDA: see device.py. Kernels are launched one by one (no CUDA graphs), so small steps on a GPU are bound by the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hsim.backends.device import DTYPES, Device
from hsim.backends.steps import DecoderShape, Rope, StepItem
from hsim.description.model import ModelArchitecture
from hsim.errors import BackendError
from hsim.units import GB

Tensor = Any
_ALIGNED_TOKENS = 16  # shared contexts are padded to a multiple: masked kernels want aligned rows
_INITIAL_DEVIATION = 0.02  # of random weights, as transformers' initializer_range has it for Llama


@dataclass(frozen=True)
class Layer:
    """Weights of one layer: (outputs, inputs) each, with queries, keys and values in one, and gate and up in one."""

    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Weights:
    """All weights; the head is the embedding where the model ties them."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Tensor


@dataclass(frozen=True)
class _Decodes:
    """Decodes (`rows` of the batch) of slots first..last that share one attention call.

    `places` are their slots less first, where some slots between have no decode in this step. `mask` is 0 or -inf,
    shape (slots, 1, 1, context); None where every sequence is exactly `context` long.
    """

    rows: slice
    first: int
    last: int
    context: int
    places: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a prompt. `mask`, shape (group * tokens, start + tokens), is None where it begins the prompt."""

    rows: slice
    slot: int
    start: int
    mask: Tensor | None


@dataclass(frozen=True)
class _Batch:
    """A step plan as tensors. Its rows are new tokens: decodes by slot, then chunks; last_rows has one for each item."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    last_rows: Tensor
    decodes: list[_Decodes]
    chunks: list[_Chunk]


class Decoder:
    """Slots of KV cache and a model that extends them. Not thread-safe; one worker process owns it."""

    def __init__(self, spec: DecoderShape, device: Device) -> None:
        self.spec, self.device, model = spec, device, spec.architecture
        if not 0 < spec.max_context_tokens <= model.max_context_tokens:
            what = f"max_context_tokens is {spec.max_context_tokens}"
            raise BackendError(f"decoder {model.name}", what, f"use 1 to {model.max_context_tokens}, the model's own")
        self._dtype = DTYPES[spec.dtype]
        self._group = model.attention_heads // model.kv_heads
        context = math.ceil(spec.max_context_tokens / _ALIGNED_TOKENS) * _ALIGNED_TOKENS
        self._check_memory(context)
        with torch.inference_mode():
            self.weights = _random_weights(model, spec.seed, self._dtype, device)
            # Zeros, because masked places are multiplied by zero, and what is left in fresh memory may be NaN.
            shape = (model.layers, 2, spec.slots, model.kv_heads, context, model.head_dim)
            self._cache = torch.zeros(shape, dtype=self._dtype, device=device.torch_device)
            angles = torch.outer(
                torch.arange(context, dtype=torch.float32), inverse_frequencies(spec.rope, model.head_dim)
            )
            self._cosines, self._sines = (
                part.to(device.torch_device, self._dtype).unsqueeze(1) for part in (angles.cos(), angles.sin())
            )
        self._filled = [0] * spec.slots

    def _check_memory(self, context: int) -> None:
        model, element_bytes = self.spec.architecture, self._dtype.itemsize
        cache_bytes = self.spec.slots * context * model.kv_elements_per_token * element_bytes
        needed, free = model.parameters * element_bytes + cache_bytes, self.device.memory().free_bytes
        if needed > free:
            what = f"weights and cache need {needed / GB:.1f} GB, and {free / GB:.1f} GB are free"
            raise BackendError(
                f"decoder {model.name} on {self.device.name}", what, "use fewer slots, less context or a smaller model"
            )

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a Hugging Face Llama state_dict in place of the random ones."""

        def joined(*names: str) -> Tensor:
            return torch.cat([state[name] for name in names]).to(self.device.torch_device, self._dtype)

        with torch.inference_mode():
            layers = []
            for i in range(self.spec.architecture.layers):
                at = f"model.layers.{i}"
                layers.append(
                    Layer(
                        attention_norm=joined(f"{at}.input_layernorm.weight"),
                        qkv=joined(*(f"{at}.self_attn.{x}_proj.weight" for x in "qkv")),
                        out=joined(f"{at}.self_attn.o_proj.weight"),
                        mlp_norm=joined(f"{at}.post_attention_layernorm.weight"),
                        gate_up=joined(f"{at}.mlp.gate_proj.weight", f"{at}.mlp.up_proj.weight"),
                        down=joined(f"{at}.mlp.down_proj.weight"),
                    )
                )
            embedding = joined("model.embed_tokens.weight")
            head = embedding if self.spec.architecture.tied_embeddings else joined("lm_head.weight")
            self.weights = Weights(embedding, tuple(layers), joined("model.norm.weight"), head)

    def assume_filled(self) -> None:
        """Take every slot as full, whatever stands in it: for timing steps at any place, which its content does not change."""
        self._filled = [self.spec.max_context_tokens] * self.spec.slots

    def step(self, items: Sequence[StepItem]) -> list[int]:
        """One forward pass of the batch: the greedy next token of each item. Returns when the device is done."""
        tokens: list[int] = self.logits(items).argmax(-1).tolist()
        return tokens

    def logits(self, items: Sequence[StepItem]) -> Tensor:
        """One forward pass of the batch: logits after each item's last token. Shape (items, vocabulary).

        Raises BackendError for a plan that the slots cannot take: nothing is done then.
        """
        self._check(items)
        with torch.inference_mode():
            batch = self._batch(items)
            hidden = F.embedding(batch.tokens, self.weights.embedding)
            for layer, cache in zip(self.weights.layers, self._cache, strict=True):
                hidden = self._layer(layer, cache, hidden, batch)
            last = self._normed(hidden[batch.last_rows], self.weights.norm)
            logits = F.linear(last, self.weights.head)
        for item in items:
            self._filled[item.slot] = item.start + item.new_tokens
        return logits

    # ---- plans

    def _check(self, items: Sequence[StepItem]) -> None:
        seen: set[int] = set()
        for item in items:
            where, end = f"decoder {self.spec.architecture.name}: slot {item.slot}", item.start + item.new_tokens
            if not 0 <= item.slot < self.spec.slots:
                raise BackendError(where, "there is no such slot", f"slots are 0 to {self.spec.slots - 1}")
            if item.slot in seen:
                raise BackendError(where, "is in the step twice", "give all its tokens in one item")
            if not 0 <= item.start <= self._filled[item.slot]:
                what = f"start is {item.start}, and it holds {self._filled[item.slot]} tokens"
                raise BackendError(where, what, "begin where its context ends, or before")
            if item.new_tokens < 1 or end > self.spec.max_context_tokens:
                what = f"{item.new_tokens} tokens from {item.start}"
                raise BackendError(where, what, f"add at least 1, up to {self.spec.max_context_tokens} in all")
            if not isinstance(item.tokens, int) and not 0 <= min(item.tokens) <= max(item.tokens) < self._vocabulary:
                raise BackendError(where, "a token is outside the vocabulary", f"use 0 to {self._vocabulary - 1}")
            seen.add(item.slot)
        if not items:
            raise BackendError(f"decoder {self.spec.architecture.name}", "the step is empty", "give at least one item")

    @property
    def _vocabulary(self) -> int:
        return self.spec.architecture.vocabulary

    def _batch(self, items: Sequence[StepItem]) -> _Batch:
        order = sorted(range(len(items)), key=lambda i: (items[i].new_tokens > 1, items[i].slot))
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        ends: list[int] = [0] * len(items)
        for i in order:
            slot, start, given = items[i]
            count = items[i].new_tokens
            tokens.extend(self._made_up(slot, start, count) if isinstance(given, int) else given)
            positions.extend(range(start, start + count))
            slots.extend([slot] * count)
            ends[i] = len(tokens)
        decodes = [(items[i].slot, items[i].start + 1) for i in order if items[i].new_tokens == 1]
        rows = self._tensor([tokens, positions, slots])  # one transfer for the three
        return _Batch(
            tokens=rows[0],
            positions=rows[1],
            slots=rows[2],
            last_rows=self._tensor(ends) - 1,
            decodes=list(self._decodes(decodes)),
            chunks=[self._chunk(items[i], ends[i]) for i in order if items[i].new_tokens > 1],
        )

    def _made_up(self, slot: int, start: int, count: int) -> Iterator[int]:
        return ((31 * slot + position) % self._vocabulary for position in range(start, start + count))

    def _tensor(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, device=self.device.torch_device)

    def _decodes(self, decodes: Sequence[tuple[int, int]]) -> Iterator[_Decodes]:
        row = 0
        for share in shared_calls(decodes, self.device.context_tokens_per_call):
            slots, contexts = zip(*share, strict=True)
            first, last, context = slots[0], slots[-1], max(contexts)
            places = mask = None
            if last - first + 1 > len(share):
                places = self._tensor(slots) - first
            if places is not None or min(contexts) < context:
                context = math.ceil(context / _ALIGNED_TOKENS) * _ALIGNED_TOKENS
                lengths = [context] * (last - first + 1)
                for slot, length in share:
                    lengths[slot - first] = length
                reached = torch.arange(context, device=self.device.torch_device) < self._tensor(lengths).unsqueeze(1)
                mask = self._additive(reached)[:, None, None, :]
            yield _Decodes(slice(row, row + len(share)), first, last, context, places, mask)
            row += len(share)

    def _chunk(self, item: StepItem, end_row: int) -> _Chunk:
        mask = None
        if item.start:
            columns = torch.arange(item.start + item.new_tokens, device=self.device.torch_device)
            mask = self._additive(columns <= columns[item.start :, None]).repeat(self._group, 1)
        return _Chunk(slice(end_row - item.new_tokens, end_row), item.slot, item.start, mask)

    def _additive(self, allowed: Tensor) -> Tensor:
        return torch.zeros_like(allowed, dtype=self._dtype).masked_fill_(~allowed, -math.inf)

    # ---- the model

    def _layer(self, layer: Layer, cache: Tensor, hidden: Tensor, batch: _Batch) -> Tensor:
        model = self.spec.architecture
        heads, kv_heads = model.attention_heads, model.kv_heads
        normed = self._normed(hidden, layer.attention_norm)
        qkv = F.linear(normed, layer.qkv).view(-1, heads + 2 * kv_heads, model.head_dim)
        turned = self._turned(qkv[:, : heads + kv_heads], batch.positions)
        keys, values = cache
        keys[batch.slots, :, batch.positions] = turned[:, heads:]
        values[batch.slots, :, batch.positions] = qkv[:, heads + kv_heads :]
        attended = self._attend(keys, values, turned[:, :heads], batch)
        hidden = hidden + F.linear(attended, layer.out)
        gate, up = F.linear(self._normed(hidden, layer.mlp_norm), layer.gate_up).chunk(2, -1)
        return hidden + F.linear(F.silu(gate) * up, layer.down)

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, self.spec.norm_epsilon)

    def _turned(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Rotary embedding of queries and keys, the two halves of a head as the pair. Shape (tokens, heads, head_dim)."""
        cosines, sines = self._cosines[positions], self._sines[positions]
        a, b = heads.chunk(2, -1)
        return torch.cat((a * cosines - b * sines, b * cosines + a * sines), -1)

    def _attend(self, keys: Tensor, values: Tensor, queries: Tensor, batch: _Batch) -> Tensor:
        """Attention of every row over its own slot. Returns shape (tokens, heads * head_dim)."""
        attended = torch.empty_like(queries)
        for decodes in batch.decodes:
            attended[decodes.rows] = self._attend_decodes(keys, values, queries[decodes.rows], decodes)
        for chunk in batch.chunks:
            attended[chunk.rows] = self._attend_chunk(keys[chunk.slot], values[chunk.slot], queries[chunk.rows], chunk)
        return attended.flatten(1)

    def _attend_decodes(self, keys: Tensor, values: Tensor, queries: Tensor, decodes: _Decodes) -> Tensor:
        # The query heads that share a KV head stand where a longer query would have its positions: one read serves all.
        grouped = queries.unflatten(1, (-1, self._group))
        if decodes.places is not None:
            spread = grouped.new_zeros((decodes.last - decodes.first + 1, *grouped.shape[1:]))
            spread[decodes.places] = grouped
            grouped = spread
        of_slots = slice(decodes.first, decodes.last + 1)
        read, value = keys[of_slots, :, : decodes.context], values[of_slots, :, : decodes.context]
        attended = F.scaled_dot_product_attention(grouped, read, value, attn_mask=decodes.mask).flatten(1, 2)
        return attended if decodes.places is None else attended[decodes.places]

    def _attend_chunk(self, keys: Tensor, values: Tensor, queries: Tensor, chunk: _Chunk) -> Tensor:
        tokens, heads, head_dim = queries.shape
        context = chunk.start + tokens
        keys, values = keys[None, :, :context], values[None, :, :context]
        if chunk.mask is None:
            # Kernels that skip what causality hides want as many KV heads as query heads; the copy is of new tokens only.
            keys, values = (part.repeat_interleave(self._group, 1) for part in (keys, values))
            attended = F.scaled_dot_product_attention(queries.transpose(0, 1)[None], keys, values, is_causal=True)
            return attended[0].transpose(0, 1)
        grouped = queries.view(tokens, -1, self._group, head_dim).permute(1, 2, 0, 3).flatten(1, 2)
        attended = F.scaled_dot_product_attention(grouped[None], keys, values, attn_mask=chunk.mask)
        return attended[0].unflatten(1, (self._group, tokens)).permute(2, 0, 1, 3).reshape(tokens, heads, head_dim)


def shared_calls(decodes: Sequence[tuple[int, int]], call_tokens: int) -> list[list[tuple[int, int]]]:
    """Split (slot, context) pairs, by rising slot, into runs that share an attention call.

    A call reads the longest context for every slot from its first to its last. The next decode joins the run where
    that reads no more than `call_tokens` beyond what a call of its own would.
    """
    runs: list[list[tuple[int, int]]] = []
    longest = 0
    for slot, context in decodes:
        if runs:
            first, last = runs[-1][0][0], runs[-1][-1][0]
            together = (slot - first + 1) * max(longest, context)
            if together <= (last - first + 1) * longest + context + call_tokens:
                runs[-1].append((slot, context))
                longest = max(longest, context)
                continue
        runs.append([(slot, context)])
        longest = context
    return runs


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians per position of each pair of a head. Shape (head_dim / 2,).

    With llama3 scaling, wavelengths beyond original/low_freq_factor turn `factor` times slower, those under
    original/high_freq_factor as before, and between the two a blend (Llama 3.1's reference code, apply_scaling).
    """
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.scaling is None:
        return plain
    scaling = rope.scaling
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)  # within the original context
    kept = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)


def _random_weights(model: ModelArchitecture, seed: int, dtype: Any, device: Device) -> Weights:
    generator = torch.Generator(device.torch_device).manual_seed(seed)

    def drawn(outputs: int, inputs: int) -> Tensor:
        empty = torch.empty(outputs, inputs, dtype=dtype, device=device.torch_device)
        return empty.normal_(0.0, _INITIAL_DEVIATION, generator=generator)

    def ones() -> Tensor:
        return torch.ones(model.hidden_size, dtype=dtype, device=device.torch_device)

    embedding = drawn(model.vocabulary, model.hidden_size)
    head = embedding if model.tied_embeddings else drawn(model.vocabulary, model.hidden_size)
    qkv, out, gate_up, down = [(product.outputs, product.inputs) for product in model.products]
    layers = [
        Layer(ones(), drawn(*qkv), drawn(*out), ones(), drawn(*gate_up), drawn(*down)) for _ in range(model.layers)
    ]
    return Weights(embedding, tuple(layers), ones(), head)
