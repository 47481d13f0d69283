"""A made-up machine for tests of calibration: a clock that only work moves, and laws that readings follow exactly."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hsim.calibrate.agenda import Served, step_parts
from hsim.calibrate.bench import Facts
from hsim.calibrate.machine import Machine
from hsim.calibrate.run import Tools
from hsim.calibrate.work import Reading, Unit

BANDWIDTH, PEAK = 2e10, 1e11
GEMM = (6e-6, 0.8, 0.7)
DECODE_ATTENTION = (12e-6, 30e-12, 40e-9, 0.6)
PREFILL_ATTENTION = (9e-6, 0.5, 4e-12)
OPERATION = {"encode-minilm": (3e-3, 60e-6, 0.2e-6)}
ANY_OPERATION = (2e-4, 3e-6, 0.0)
SLOWER_TOGETHER = 1.25
PAYLOAD = {"pipe": (5e-5, 2e-4, 1 / 5e8), "shared-memory": (5e-5, 2e-4, 1 / 5e9)}
BETWEEN_S, BETWEEN_SEQUENCE_S, HAND_OVER_S = 2e-4, 2e-5, 6e-4
IDLE_W, LOADED_IDLE_W, FLOOR_W, BYTE_J, FLOP_J, LIMIT_W = 70.0, 120.0, 160.0, 1.4e-10, 1.1e-12, 700.0
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}

MACHINE = Machine(
    cpu="Imaginary(R) Processor 4-Core", cores=4, memory_bytes=64_000_000_000, system="Linux", python="3", torch="0",
    driver="none", gpus={}, load=0.1, date="2026-01-01", hsim="0",
)  # fmt: skip


def gemm_seconds(n_bytes: float, flops: float) -> float:
    launch_s, bandwidth, fraction = GEMM
    return launch_s + ((n_bytes / BANDWIDTH / bandwidth) ** 4 + (flops / PEAK / fraction) ** 4) ** 0.25


def step_seconds(unit: Unit) -> float:
    """A step: its weights, then so much for each token, each token of context and each pair."""
    contexts, chunks = step_parts(unit.parameters)
    new = len(contexts) + sum(tokens for tokens, _ in chunks)
    pairs = sum(t * before + t * (t + 1) / 2 for t, before in chunks)
    later = 1e-4 if any(before for _, before in chunks) else 0.0
    return 2e-3 + 1e-4 * new + 2e-8 * sum(contexts) + 5e-9 * pairs + later + 5e-5 * max(0, len(chunks) - 1)


def unit_seconds(unit: Unit) -> float:
    """What each kind of unit takes on the made-up machine."""
    at = unit.parameters
    kind = str(at["of"]) if unit.kind == "power" else unit.kind
    size = ELEMENT_BYTES[str(at.get("dtype", "fp32"))]
    working = max(size, 2)
    if kind == "gemm":
        m, n, k = (float(at[x]) for x in "mnk")
        return gemm_seconds(n * k * size + (m * k + m * n) * working, 2 * m * n * k)
    if kind == "decode-attention":
        batch, width = float(at["batch"]), float(at["heads"]) * float(at["head_dim"])
        kv_bytes = 2 * batch * float(at["context"]) * float(at["kv_heads"]) * float(at["head_dim"]) * size
        launch_s, element_s, sequence_s, fraction = DECODE_ATTENTION
        return launch_s + batch * width * element_s + batch * sequence_s + kv_bytes / BANDWIDTH / fraction
    if kind == "prefill-attention":
        tokens, width = float(at["tokens"]), float(at["heads"]) * float(at["head_dim"])
        launch_s, fraction, element_s = PREFILL_ATTENTION
        read_s = 2 * tokens * float(at["kv_heads"]) * float(at["head_dim"]) * size / BANDWIDTH / DECODE_ATTENTION[3]
        return launch_s + read_s + 4 * width * tokens * (tokens + 1) / 2 / PEAK / fraction + tokens * width * element_s
    if kind in ("memory-copy", "transfer"):
        return (2 if kind == "memory-copy" else 1) * float(at["bytes"]) / BANDWIDTH + 1e-6
    if kind in ("operation", "contention"):
        base_s, unit_s, squared_s = OPERATION.get(str(at["name"]), ANY_OPERATION)
        n = float(at["units"])
        alone_s = base_s + n * unit_s + n * n * squared_s
        return alone_s * (1 + (SLOWER_TOGETHER - 1) * (int(at["workers"]) - 1) / (MACHINE.cores - 1))
    if kind == "payload":
        latency_s, message_s, byte_s = PAYLOAD[str(at["by"])]
        messages = int(at["messages"])
        return latency_s + messages * (message_s + int(at["bytes"]) * byte_s)
    if kind == "loop":
        return BETWEEN_S + BETWEEN_SEQUENCE_S * int(at["users"]) if at["role"] == "between" else HAND_OVER_S
    return step_seconds(unit) if kind == "step" else 4e-6


@dataclass
class World:
    """The made-up machine. `watts` gives a unit's power, or nothing where there is no meter."""

    machine: Machine = MACHINE
    noise: float = 0.0
    watts: Callable[[Unit], float] | None = None
    facts_of: dict[str, Facts] = field(default_factory=lambda: {"cpu": Facts("0", ("fp32", "bf16"))})
    now_s: float = 0.0
    slower: float = 1.1
    asked: list[Unit] = field(default_factory=list)
    interrupt_at: int | None = None
    failing: str = ""
    closed: int = 0

    def tools(self) -> Tools:
        return Tools(lambda threads, codes: self, lambda: self.now_s, lambda: self.machine)

    def unmetered(self, device: str) -> str:
        return "" if self.watts else "this machine has no meter"

    def facts(self, device: str) -> Facts:
        return self.facts_of[device]

    def serve(self, device: str, served: Served) -> None:
        self.now_s += 1.0

    def close(self) -> None:
        self.closed += 1

    def measure(self, unit: Unit) -> Reading:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(unit)
        self.now_s += self.slower * (unit.expected_s + unit.setup_s)
        if self.failing and self.failing in unit.key:
            return Reading(failure="it cannot be done here")
        seconds = unit_seconds(unit) * random.Random(unit.key).uniform(1 - self.noise, 1 + self.noise)
        watts = self.watts(unit) if self.watts and unit.kind in ("idle", "power", "cpu-power") else None
        return Reading(seconds, 0.01 * seconds, 20, 1.0, watts=watts, window_s=6.0 if watts else None)
