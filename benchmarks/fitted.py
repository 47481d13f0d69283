"""What only measurements of other people's benchmarks need, fitted once and kept in fitted.yaml: read and written here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.optimize import least_squares

FILE = Path(__file__).resolve().parent / "fitted.yaml"
HEAD = """# Written by benchmarks/fit_models.py --write from the development rows; nothing of hsim reads it, the scripts beside it do.
# benchmark_effects: KV that stays in a kernel benchmark's cache is read so much faster; fp8_block kernels timed launch by launch.
# splitwise_engine: vLLM of 2023 on H100, Splitwise (github.com/Mutinifni/splitwise-sim @8f99e7d): factor on kernels, then
#   seconds a step, a sequence, a prompt token, a peer.
# node_caps_w: the cap of one accelerator that a power-tuned MLPerf system's first row implies.
# server_watts: coefficients of server_power.py over SPECpower results.
"""


@dataclass(frozen=True)
class Fitted:
    """The numbers of fitted.yaml."""

    benchmark_effects: dict[str, float]
    splitwise_engine: tuple[float, ...]
    node_caps_w: dict[str, float]
    server_watts: dict[str, list[float]]

    def splitwise_engine_s(self, rows: pd.DataFrame) -> Any:
        return splitwise_s(self.splitwise_engine, rows)

    def write(self) -> None:
        body = yaml.safe_dump(asdict(self) | {"splitwise_engine": list(self.splitwise_engine)}, sort_keys=False)
        FILE.write_text(HEAD + body, encoding="utf-8")


@cache
def read() -> Fitted:
    """What was fitted."""
    return Fitted(**yaml.safe_load(FILE.read_text(encoding="utf-8")))


def splitwise_s(p: Any, rows: pd.DataFrame) -> Any:
    """Seconds of steps of vLLM in 2023: slower kernels, eager launches, Python on each sequence, token and peer."""
    tokens = np.where(rows.phase == "prefill", rows.batch * rows.prompt_tokens_per_seq, 0)
    return p[0] * rows.predicted_s + p[1] + p[2] * rows.batch + p[3] * tokens + p[4] * (rows.tp - 1)


def fit_splitwise(rows: pd.DataFrame) -> tuple[float, ...]:
    """From steps with composed kernel seconds, by log error."""
    target, scale = np.log(rows.step_time_ms * 1e-3), np.array([1.0, 1e-3, 1e-6, 1e-9, 1e-3])
    found = least_squares(lambda p: np.log(splitwise_s(p * scale, rows)) - target, [1.2, 8, 200, 100, 2.0],
                          bounds=([0.9, 0, 0, 0, 0], [1.8, 60, 3000, 20000, 8]), loss="soft_l1", f_scale=0.1)  # fmt: skip
    return tuple(float(x) for x in found.x * scale)
