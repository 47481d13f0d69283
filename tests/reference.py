"""Brute force: a replica that walks over its batch one step at a time, and a step's cost kernel by kernel.

Slow and plain on purpose. It shares with hsim only the words of a question (StepShape), and nothing of the answer.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hsim.costs.shapes import StepShape
from hsim.description.model import ModelArchitecture


@dataclass(frozen=True)
class Request:
    id: int
    arrival_s: float
    input_tokens: int
    output_tokens: int
    max_output_tokens: int


@dataclass(frozen=True)
class Limits:
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_blocks: int
    block_tokens: int


@dataclass(frozen=True)
class Watts:
    """What a replica draws while a step runs, beside the step's own joules: its idle watts, and those of its host cores."""

    idle_w: float
    host_dynamic_w: float
    host_idle_w: float


@dataclass
class Serving:
    """A request being served: how many tokens it must prefill, has in the KV cache and has generated; and its joules."""

    request: Request
    prefill_tokens: int
    computed_tokens: int = 0
    generated_tokens: int = 0
    started_s: float = math.nan
    first_token_s: float = math.nan
    served_s: float = math.nan
    preempted: int = 0
    joules: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])  # dynamic, idle, host dynamic, host idle

    @property
    def decodes(self) -> bool:
        return self.computed_tokens >= self.prefill_tokens

    @property
    def prompt_left(self) -> int:
        return self.prefill_tokens - self.computed_tokens


@dataclass
class Reference:
    """What came of it: the requests served, by id; when each step ended; and how often which state was reached."""

    served: list[Serving]
    ends_s: list[float]
    reached: Counter[str]


# Seconds, joules above idle, and how many of those go with each context token that a decode reads.
StepCost = Callable[[StepShape], tuple[float, float, float]]


def serve(requests: Sequence[Request], cost: StepCost, limits: Limits, watts: Watts) -> Reference:
    """Serve requests on one replica. Who arrives at the end of a step joins at the end of the next one."""
    todo = deque(sorted(requests, key=lambda r: (r.arrival_s, r.id)))
    waiting, batch, served = deque[Serving](), list[Serving](), list[Serving]()
    reached, ends_s, now = Counter[str](), list[float](), 0.0

    def queue(request: Request) -> None:
        waiting.append(Serving(request, request.input_tokens))

    while todo or waiting or batch:
        if not batch and not waiting:
            now = todo[0].arrival_s
            while todo and todo[0].arrival_s == now:
                queue(todo.popleft())
        work = _plan(batch, waiting, limits, now, reached)
        shape = _shape(work)
        seconds, joules, context_j = cost(shape)
        token_j = (joules - context_j * shape.context_tokens) / shape.new_tokens
        now += seconds
        ends_s.append(now)
        for sequence, tokens in work:
            for i, watt in enumerate((watts.idle_w, watts.host_dynamic_w, watts.host_idle_w)):
                sequence.joules[1 + i] += watt * seconds / shape.sequences
            sequence.joules[0] += token_j * tokens + context_j * (sequence.computed_tokens + 1) * sequence.decodes
            sequence.computed_tokens += tokens
            if sequence.decodes:  # it decoded, or its prompt has just been completed
                sequence.generated_tokens += 1
                if sequence.generated_tokens == 1:
                    sequence.first_token_s = now
        for sequence in [s for s in batch if s.generated_tokens == s.request.output_tokens]:
            sequence.served_s = now
            batch.remove(sequence)
            served.append(sequence)
        while todo and todo[0].arrival_s < now:
            queue(todo.popleft())
        reached["arrival on a boundary of a busy replica"] += bool(batch and todo and todo[0].arrival_s == now)
        reached["went idle"] += not batch and not waiting
        reached["steps"] += 1
    return Reference(sorted(served, key=lambda s: s.request.id), ends_s, reached)


def _plan(
    batch: list[Serving], waiting: deque[Serving], limits: Limits, now: float, reached: Counter[str]
) -> list[tuple[Serving, int]]:
    """The sequences of the next step, and the new tokens of each.

    Decodes first, then prompts under way, then those that wait, first come first served, while all limits allow. While
    those in the batch lack blocks, the newest of them gives its own back and goes to the head of the queue.
    """
    while True:
        left = limits.max_num_batched_tokens - sum(s.decodes for s in batch)
        work = []
        for sequence in batch:
            tokens = 1 if sequence.decodes else min(sequence.prompt_left, left)
            left -= 0 if sequence.decodes else tokens
            work.append((sequence, tokens))
        used_blocks = sum(_blocks(s.computed_tokens + tokens, limits) for s, tokens in work)
        if used_blocks <= limits.kv_blocks:
            break
        newest = batch.pop()
        reached["preempted while decoding" if newest.decodes else "preempted in its prompt"] += 1
        reached["preempted again"] += newest.preempted > 0
        newest.preempted += 1
        newest.prefill_tokens, newest.computed_tokens = newest.request.input_tokens + newest.generated_tokens, 0
        waiting.appendleft(newest)
    while waiting and left and len(batch) < limits.max_num_seqs:
        tokens = min(waiting[0].prompt_left, left)
        used_blocks += _blocks(tokens, limits)
        if used_blocks > limits.kv_blocks:
            reached["KV full"] += 1
            break
        sequence = waiting.popleft()
        if math.isnan(sequence.started_s):
            sequence.started_s = now
        batch.append(sequence)
        work.append((sequence, tokens))
        left -= tokens
    work = [(s, tokens) for s, tokens in work if tokens]
    chunks = [(s, tokens) for s, tokens in work if not s.decodes]
    reached["prompt in several chunks"] += any(tokens < s.prompt_left for s, tokens in chunks)
    reached["token budget exhausted"] += not left and bool(waiting)
    reached["max_num_seqs reached"] += len(batch) == limits.max_num_seqs and bool(waiting)
    reached["decodes beside chunks"] += 0 < len(chunks) < len(work)
    return work


def _blocks(tokens: int, limits: Limits) -> int:
    return math.ceil(tokens / limits.block_tokens)


def _shape(work: list[tuple[Serving, int]]) -> StepShape:
    contexts = [s.computed_tokens + 1 for s, _ in work if s.decodes]
    chunks = [(s.computed_tokens, tokens) for s, tokens in work if not s.decodes]
    pairs = sum(before + i + 1 for before, tokens in chunks for i in range(tokens))  # each query sees all up to itself
    new, seen = sum(tokens for _, tokens in chunks), sum(before + tokens for before, tokens in chunks)
    return StepShape(len(contexts), sum(contexts), len(chunks), new, seen, pairs)


def step_by_kernels(
    model: ModelArchitecture,
    of: Callable[[str], float],
    ways: int,
    precision: str,
    contexts: Sequence[int],
    chunks: Sequence[tuple[int, int]],
) -> tuple[float, float]:
    """Seconds and joules above loaded idle of one step, from the kernel laws as hardware.py states them.

    `of` gives figures by name: the chip's, and the engine's host_s_per_layer and host_s_per_sequence. `contexts` are
    what each decode reads; `chunks` are (tokens before, tokens of the chunk).
    """
    decodes, chunk_tokens = len(contexts), sum(chunk for _, chunk in chunks)
    new_tokens, sequences = decodes + chunk_tokens, decodes + len(chunks)
    bandwidth = of("memory_bytes_per_s")
    total_bytes = total_flops = kernels_s = 0.0

    def gemm(m: int, n: float, k: float, precision: str = precision) -> float:
        nonlocal total_bytes, total_flops
        weights, peak = {"bf16": 2, "fp8": 1}[precision], of(f"peak_flops_per_s.{precision}")
        moved, flops, law = n * k * weights + 2 * m * (n + k), 2 * m * n * k, f"kernels.gemm.{precision}"
        worth = of("peak_flops_per_s.bf16") / peak  # joules of a FLOP go with the time it takes at the peak
        total_bytes, total_flops = total_bytes + ways * moved, total_flops + ways * flops * worth
        sides = moved / (of(f"{law}.bandwidth_fraction") * bandwidth), flops / (of(f"{law}.flops_fraction") * peak)
        q = or_else(f"{law}.sharpness", 4.0)
        fixed_s = of(f"{law}.launch_s") + k * or_else(f"{law}.per_depth_s") + m * k * or_else(f"{law}.per_activation_s")
        fixed_s += n * k * or_else(f"{law}.per_packed_weight_s") if m > 1 else 0.0
        return fixed_s + (sides[0] ** q + sides[1] ** q) ** (1 / q)

    def or_else(name: str, default: float = 0.0) -> float:
        try:
            return of(name)
        except AssertionError:  # the profile leaves it out
            return default

    heads_width = model.attention_heads * model.head_dim // ways
    kv_width = max(1, model.kv_heads // ways) * model.head_dim
    kv_bytes = 2 * 2 * kv_width  # a key and a value of two bytes each, for one token on one device and layer
    read_s = kv_bytes / (of("kernels.decode_attention.bandwidth_fraction") * bandwidth)
    pairs = sum(before + i + 1 for before, chunk in chunks for i in range(chunk))
    chunk_context = sum(before + chunk for before, chunk in chunks)
    for _ in range(model.layers):
        kernels_s += gemm(new_tokens, heads_width + 2 * model.kv_heads * model.head_dim / ways, model.hidden_size)
        kernels_s += gemm(new_tokens, model.hidden_size, heads_width)
        kernels_s += gemm(new_tokens, 2 * model.intermediate_size / ways, model.hidden_size)
        kernels_s += gemm(new_tokens, model.hidden_size, model.intermediate_size / ways)
        if contexts:
            law = "kernels.decode_attention"
            each_s = heads_width * of(f"{law}.per_element_s") + of(f"{law}.per_sequence_s")
            each_s += max(1, model.kv_heads // ways) * or_else(f"{law}.per_kv_head_s")
            score_s = model.attention_heads / ways * or_else(f"{law}.per_score_s")
            kernels_s += of(f"{law}.launch_s") + sum(each_s + context * (read_s + score_s) for context in contexts)
        if chunks:
            law = "kernels.prefill_attention"
            pair_s = 4 * heads_width / (of(f"{law}.flops_fraction") * of("peak_flops_per_s.bf16"))
            pair_s += model.attention_heads / ways * or_else(f"{law}.per_pair_s")
            kernels_s += of(f"{law}.launch_s") + chunk_tokens * heads_width * of(f"{law}.per_element_s")
            kernels_s += pairs * pair_s + chunk_context * (read_s + or_else(f"{law}.per_depth_s") / len(chunks))
        if ways > 1:
            law, message = "kernels.all_reduce", new_tokens * model.hidden_size * 2
            wire_s = 2 * (ways - 1) / ways * message / of(f"{law}.bytes_per_s")
            kernels_s += 2 * (of(f"{law}.launch_s") + of(f"{law}.per_peer_s") * (ways - 1) + wire_s)
        total_bytes += ways * kv_bytes * (sum(contexts) + chunk_context)
        total_flops += ways * 4 * heads_width * (sum(contexts) + pairs)
        elements = new_tokens * (10 * model.hidden_size + 3 * model.intermediate_size / ways)
        kernels_s += 2 * elements / (of("kernels.elementwise.bandwidth_fraction") * bandwidth)
    kernels_s += gemm(sequences, model.vocabulary / ways, model.hidden_size, "bf16")  # the head is not quantised
    busy_s = of("kernels.overlap_factor") * kernels_s
    each_s = of("host_s_per_sequence") + (ways - 1) * or_else("host_s_per_sequence_and_peer")
    each_s += or_else("host_s_per_layer_and_sequence") * model.layers
    seconds = busy_s + of("host_s_per_layer") * model.layers + or_else("host_s_per_step") + each_s * sequences
    work_j = total_bytes * of("power.joules_per_byte") + total_flops * of("power.joules_per_flop")
    work_j += decodes * of("power.joules_per_output_token") + ways * busy_s * or_else("power.kernel_w")
    power_w = min(ways * of("power.cap_w"), ways * of("power.floor_w") + work_j / seconds)
    return seconds, (power_w - ways * of("power.loaded_idle_w")) * seconds
