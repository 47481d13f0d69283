"""Published cases: what they found is found here too, by bands that docs/thesis.md explains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from hsim import load, simulate_path
from hsim.description.yamlfile import read_document
from hsim.metrics.result import Result

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = sorted((ROOT / "scenarios" / "published").glob("*.yaml"))
sys.path.insert(0, str(ROOT / "benchmarks"))

from cpu_centric import THEIRS  # noqa: E402


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_published_scenarios_fit_the_schema_and_say_what_they_ask(file: Path) -> None:
    schema = json.loads((ROOT / "schemas" / "scenario.schema.json").read_text())
    assert Draft7Validator(schema).is_valid(read_document(file).data)
    first, *_ = file.read_text().splitlines()
    assert first.startswith("# Published case C")


def swept() -> dict[int, Result]:
    """C5's batches of agents, each a closed loop whose users all come at once."""
    file = ROOT / "scenarios" / "published" / "c5-langchain.yaml"
    settings = {b: [f"workload.arrivals.users={b}", f"workload.tasks={b}"] for b in THEIRS}
    return {batch: simulate_path(load(file, those)) for batch, those in settings.items()}


def test_c5_the_gain_of_batches_has_its_knee_near_64_and_cpu_joules_come_to_weigh() -> None:
    """Theirs: 20 % of dynamic joules at 1 task to 44 % at 128, and little more throughput beyond 64."""
    results = swept()
    rates = {batch: batch / result.window_s for batch, result in results.items()}
    gains = [rates[b] / rates[a] / (b / a) for a, b in ((1, 8), (8, 32), (32, 64), (64, 128))]
    assert all(gain < 1 for gain in gains)
    assert gains[0] > gains[2]  # each doubling buys less of itself
    assert gains[1] > gains[3]
    shares = {}
    for batch, result in results.items():
        assert result.energy
        booked = {account: joules for account, kind, joules in result.energy.accounts if kind == "dynamic"}
        cpu_j = booked["tool"] + booked["generate: host cores"]
        shares[batch] = cpu_j / (cpu_j + booked["generate"])
        all_s, *_, their_cpu_j, their_gpu_j = THEIRS[batch]
        assert shares[batch] == pytest.approx(their_cpu_j / (their_cpu_j + their_gpu_j), abs=0.07)
        assert result.window_s == pytest.approx(all_s, rel=0.3)
    assert list(shares.values()) == sorted(shares.values())
    # The pool of 64 cores is where the knee comes from: full at 64 tasks, and a queue at 128.
    waits = {batch: next(s.wait_s for s in result.stages if s.stage == "tool") for batch, result in results.items()}
    assert waits[64] < 0.01 < 0.5 < waits[128]
