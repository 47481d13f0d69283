"""Black-box calibration of made-up servers whose step times are known: they are found again, and loads predicted."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from calibrated_world import MACHINE
from fake_endpoint import MODEL, serving
from rich.console import Console

from hsim.backends.endpoint import Answer, EndpointSpec, opened
from hsim.backends.meters import Meter, Unavailable
from hsim.backends.prompts import Prompts
from hsim.calibrate import blackbox, endpoint
from hsim.calibrate.endpoint import Asks, EndpointOptions, Tools, calibrate_endpoint
from hsim.calibrate.options import CalibrationReport
from hsim.calibrate.points import Point
from hsim.calibrate.served import LOAD
from hsim.calibrate.sweep import (
    BURST_TOKENS,
    FEWEST_TOKENS,
    FIRST_TOKENS,
    FIRSTS,
    JOIN_AFTER,
    JOIN_TOKENS,
    PER_USER,
    Asker,
    load_lengths,
)
from hsim.calibrate.work import Reading, Row, Unit
from hsim.description.catalogue import load_profile
from hsim.description.hardware import AcceleratorProfile, EngineProfile, StepTable
from hsim.drivers.replay import Limits
from hsim.errors import CalibrationError, DescriptionError
from hsim.report.live import calibration_tables

FIXED_S, SEQUENCE_S, CONTEXT_S, TOKEN_S, PAIR_S, REQUEST_S = 4e-3, 5e-4, 2e-8, 3e-5, 4e-9, 3e-3


@dataclass
class Request:
    user: int
    sent_s: float
    prompt: int
    wanted: int
    left: int = 0
    chunks_s: list[float] = field(default_factory=list)


@dataclass
class Batcher:
    """A server with continuous batching, one step at a time by brute force: it shares nothing with hsim's engine.

    Decoding sequences first, then the prompts that wait, whole ones in order while the token budget lasts.
    """

    seats: int = 10**9
    budget: int = 10**9
    pace: float = 1.0
    noise: float = 0.0
    across_s: float = 0.0  # for each prompt token and each token of others in its step
    broken_after: int = 10**9
    interrupted_after: int = 10**9
    longest: int = 0  # answers end by themselves after up to so many tokens, if it is not 0
    now_s: float = 0.0
    units: int = 0
    busy_s: float = 0.0
    tokens: int = 0
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def ask(self, unit: Unit) -> list[Answer]:
        self.units += 1
        if self.units > self.interrupted_after:
            raise KeyboardInterrupt
        self.pace *= 1 + self.noise * self.draw.uniform(-1, 1)
        self.pace = min(max(self.pace, 0.7), 1.4)
        at = {key: int(value) for key, value in unit.parameters.items()}
        if unit.kind == "load":
            lengths, each = load_lengths(unit), PER_USER
        elif unit.kind == "first":
            lengths, each = [(at["input"], FIRST_TOKENS)] * FIRSTS, FIRSTS
        else:
            tokens = JOIN_TOKENS if unit.kind == "join" else BURST_TOKENS
            lengths, each = [(at["input"], tokens)] * at["users"], 1
        if self.longest:
            lengths = [(prompt, min(wanted, self.draw.randint(1, self.longest))) for prompt, wanted in lengths]
        plans = [lengths[i : i + each] for i in range(0, len(lengths), each)]
        answers = self.serve(plans, at.get("joiner"))
        if self.units > self.broken_after:
            return [replace(answer, fault="stalled", problem="nothing came", chunks_s=()) for answer in answers]
        return answers

    def serve(self, plans: list[list[tuple[int, int]]], joiner: int | None) -> list[Answer]:
        done: dict[tuple[int, int], Request] = {}
        waiting, running, follows = [], [], {user: iter(plan) for user, plan in enumerate(plans)}
        sent: dict[int, int] = dict.fromkeys(follows, 0)

        def send(user: int, at_s: float) -> None:
            if (lengths := next(follows[user], None)) is not None:
                waiting.append(Request(user, at_s, *lengths, left=lengths[0]))

        for user in follows:
            send(user, self.now_s)
        while waiting or running:
            if joiner and all(len(r.chunks_s) >= JOIN_AFTER for r in running) and not waiting:
                follows[len(plans)], sent[len(plans)] = iter([(joiner, FEWEST_TOKENS)]), 0
                send(len(plans), self.now_s)
                joiner = None
            decoding = [r for r in running if not r.left]
            budget, chunks = self.budget - len(decoding), []
            arrived = [r for r in waiting if r.sent_s + REQUEST_S * self.pace <= self.now_s + 1e-12]
            for r in [r for r in running if r.left] + arrived[: max(0, self.seats - len(running))]:
                if (chunk := min(r.left, budget)) > 0:
                    chunks.append((r, chunk))
                    budget -= chunk
            if not decoding and not chunks:
                self.now_s = min(r.sent_s for r in waiting) + REQUEST_S * self.pace
                continue
            self.now_s += self.pace * self.step_s(decoding, chunks)
            self.busy_s += self.pace * self.step_s(decoding, chunks)
            self.tokens += len(decoding) + sum(not r.left - chunk for r, chunk in chunks)
            for r, chunk in chunks:
                if r in waiting:
                    waiting.remove(r)
                    running.append(r)
                r.left -= chunk
            for r in [*decoding, *(r for r, _ in chunks if not r.left)]:
                r.chunks_s.append(self.now_s)
                if len(r.chunks_s) == r.wanted:
                    running.remove(r)
                    done[r.user, sent[r.user]] = r
                    sent[r.user] += 1
                    send(r.user, self.now_s)
        return [
            Answer(r.sent_s, r.chunks_s[-1], tuple(r.chunks_s), r.prompt, r.wanted, counted=True)
            for _, r in sorted(done.items())
        ]

    def step_s(self, decoding: list[Request], chunks: list[tuple[Request, int]]) -> float:
        seconds = FIXED_S + SEQUENCE_S * len(decoding)
        seconds += CONTEXT_S * sum(r.prompt + len(r.chunks_s) for r in decoding)
        for r, chunk in chunks:
            before = r.prompt - r.left
            seconds += TOKEN_S * chunk + PAIR_S * (chunk * before + chunk * (chunk + 1) / 2)
            others = sum(o.prompt + len(o.chunks_s) for o in decoding)
            others += sum(o.prompt - o.left + tokens for o, tokens in chunks if o is not r)
            seconds += self.across_s * chunk * others
        return seconds


IDLE_W, ABOVE_W, TOKEN_J = 60.0, 140.0, 0.5


@dataclass
class ServerMeter:
    """Counts what the server draws."""

    server: Batcher
    name: str = "gpu 0"
    boundary: str = "accelerator board"
    unavailable_reason: str | None = None

    def joules(self) -> float | None:
        return IDLE_W * self.server.now_s + ABOVE_W * self.server.busy_s + TOKEN_J * self.server.tokens

    def close(self) -> None:
        """Nothing to stop."""


def run(server: Batcher, out: Path, metered: bool = False, **options: Any) -> CalibrationReport:
    def sleep(seconds: float) -> None:
        server.now_s += seconds

    @contextmanager
    def asker(options: EndpointOptions) -> Iterator[tuple[Asks, tuple[str, ...]]]:
        yield server, ("a made-up server",)

    spec = EndpointSpec("http://127.0.0.1:1/v1", "tiny-12m")
    meters: list[Meter] = [ServerMeter(server)] if metered else [Unavailable("gpu 0", "board", "there is no meter")]
    tools = Tools(asker, lambda: MACHINE, lambda: server.now_s, sleep, lambda: meters)
    return calibrate_endpoint(EndpointOptions(spec, out=out, **{"budget_s": 60.0} | options), tools=tools)


def errors(report: CalibrationReport) -> dict[str, float]:
    worst: dict[str, float] = {}
    for point in report.loads:
        worst[point.quantity] = max(worst.get(point.quantity, 0.0), abs(point.error_fraction))
    return worst


def test_known_step_times_are_found_and_loads_that_no_fit_saw_predicted(tmp_path: Path) -> None:
    report = run(Batcher(), tmp_path)
    table, _ = load_profile("steps-tiny-12m-endpoint", StepTable, "test", tmp_path)
    engine, _ = load_profile("tiny-12m-endpoint-engine", EngineProfile, "test", tmp_path)
    assert table.decodes == (1, 2, 4, 8)
    for n, row in zip(table.decodes, table.decode_s, strict=True):
        for context, seconds in zip(table.contexts, row, strict=True):
            assert seconds == pytest.approx(FIXED_S + n * (SEQUENCE_S + CONTEXT_S * context), rel=0.01)
    first, last = (table.chunk_s[i] + table.pair_s[i] * n * (n + 1) / 2 for i, n in enumerate(table.chunk_tokens))
    # A prompt's fixed part cannot be told from what passes before its step: the two together are what they were.
    latency = engine.request_latency_s
    assert latency is not None and latency.value is not None
    for found_s, n in ((first, table.chunk_tokens[0]), (last, table.chunk_tokens[1])):
        assert found_s + latency.value == pytest.approx(
            REQUEST_S + FIXED_S + TOKEN_S * n + PAIR_S * n * (n + 1) / 2, rel=0.02
        )
    assert engine.max_num_seqs == 256
    assert table.across_s < 1e-10
    worst = errors(report)
    assert len(report.loads) == 3 * 4
    assert max(worst["requests"], worst["tpot mean"], worst["e2e mean"]) < 0.03
    assert worst["ttft mean"] < 0.1
    assert report.simulated is not None and report.simulated.energy is None
    assert all("black-box" in figure.source for figure in (latency,)) and table.source.startswith("black-box")


def test_a_server_that_attends_its_whole_batch_as_one_matrix_is_one_too(tmp_path: Path) -> None:
    """A long prompt that joins long contexts then takes twice what it takes alone."""
    report = run(Batcher(across_s=5e-8), tmp_path)
    table, _ = load_profile("steps-tiny-12m-endpoint", StepTable, "test", tmp_path)
    assert table.across_s == pytest.approx(5e-8, rel=0.05)
    worst = errors(report)
    assert max(worst["requests"], worst["tpot mean"], worst["e2e mean"]) < 0.05
    assert worst["ttft mean"] < 0.1


def test_a_machine_that_slows_down_and_recovers_as_a_whole_is_seen_through(tmp_path: Path) -> None:
    report = run(Batcher(noise=0.05), tmp_path, budget_s=200.0)
    worst = errors(report)
    assert max(worst["requests"], worst["tpot mean"], worst["e2e mean"]) < 0.1
    assert worst["ttft mean"] < 0.15
    assert any("pace of each unit's time was taken off" in warning for warning in report.warnings)


def test_a_limit_on_what_is_decoded_together_is_found(tmp_path: Path) -> None:
    report = run(Batcher(seats=3), tmp_path)
    engine, _ = load_profile("tiny-12m-endpoint-engine", EngineProfile, "test", tmp_path)
    assert engine.max_num_seqs == 3
    assert any("decoded 3 answers at a time" in warning for warning in report.warnings)
    assert max(errors(report)[q] for q in ("requests", "e2e mean")) < 0.1


def test_a_server_that_serves_one_after_another_is_one_too(tmp_path: Path) -> None:
    report = run(Batcher(seats=1), tmp_path)
    engine, _ = load_profile("tiny-12m-endpoint-engine", EngineProfile, "test", tmp_path)
    assert engine.max_num_seqs == 1
    assert max(errors(report)[q] for q in ("requests", "e2e mean", "ttft mean")) < 0.1


def test_answers_that_end_by_themselves_show_no_limit_and_break_nothing(tmp_path: Path) -> None:
    """Bursts of which an answer has one token, and whole loads of such, have no time between tokens to show."""
    report = run(Batcher(longest=20), tmp_path)
    engine, _ = load_profile("tiny-12m-endpoint-engine", EngineProfile, "test", tmp_path)
    assert engine.max_num_seqs == 256
    assert max(errors(report)[q] for q in ("requests", "tpot mean", "e2e mean")) < 0.15
    with pytest.raises(CalibrationError, match="give it a larger --budget"):
        run(Batcher(longest=1), tmp_path / "single")


@pytest.mark.parametrize("tokens", [1, blackbox.BURST_TOKENS])
def test_bursts_and_loads_that_come_all_at_once_are_left_out(tokens: int) -> None:
    """Answers of one token, and whole ones that a client without a core reads in one go."""
    point = {"users": 2, "input": 16, "from": 1, "to": 9, "least": 1, "most": 9}
    at = {
        "sent_s": 0.0,
        "ended_s": 1.0,
        "chunks_s": (1.0,) * tokens,
        "input_tokens": 16,
        "output_tokens": tokens,
        "counted": True,
    }
    rows = [
        Row(f"{kind} x #{number}", kind, "x", point, number, Reading(seconds=1.0), answers=(at, at))
        for kind in ("burst", "load")
        for number in (1, 2)
    ]
    sweep = blackbox.sweep_of(rows)
    table = StepTable.model_construct()
    assert sweep.limit is None
    assert blackbox.load_points(sweep, blackbox.costs_of(table), Limits(8, 512, 10**6, 0.0)) == []


def test_one_round_has_no_spread_and_a_rise_in_it_must_be_more_than_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "MOST_ROUNDS", 1)
    report = run(Batcher(), tmp_path)
    assert {(point.rounds, point.spread_fraction) for point in report.loads} == {(1, None)}
    console = Console(width=250, file=StringIO())
    console.print(calibration_tables(report))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("–") >= len(report.loads)

    def joins(rise: float, rounds: int) -> list[Point]:
        at = {"users": 4, "joiner": 64}
        return [
            Point("join", "x", {**at, "context": context}, seconds, 0.0, rounds)
            for context, seconds in ((16, 1.0), (192, 1.0 + rise))
        ]

    assert blackbox.across(joins(0.05, 1)) == 0
    assert blackbox.across(joins(0.05, 3)) > 0
    assert blackbox.across(joins(0.5, 1)) > 0


def test_the_scenario_asks_for_the_load_that_it_says(tmp_path: Path) -> None:
    report = run(Batcher(), tmp_path)
    assert report.scenario is not None
    workload = yaml.safe_load(report.scenario.read_text())["workload"]
    lengths = workload["classes"]["chat"]
    prompt, answer = ((lengths[key]["low"] + lengths[key]["high"]) / 2 for key in ("input_tokens", "output_tokens"))
    step_s = FIXED_S + 8 * (SEQUENCE_S + CONTEXT_S * (prompt + answer / 2))
    busy_s = FIXED_S + TOKEN_S * prompt + PAIR_S * prompt**2 / 2 + answer * step_s / 8
    assert workload["arrivals"]["rate_per_s"] * busy_s == pytest.approx(LOAD, rel=0.05)


def test_after_a_fault_a_unit_is_void_and_asks_for_nothing_more() -> None:
    with serving(meek=3, first=[400] * 99) as (url, how), opened(EndpointSpec(url, MODEL)) as client:
        asker = Asker(client, Prompts(client))
        assert [a.fault for a in asker.ask(Unit("first", "x", {"users": 1, "input": 16}))] == ["HTTP 400"]
        load = {"users": 2, "from": 8, "to": 16, "least": 1, "most": 4}
        assert len(asker.ask(Unit("load", "x", load))) == 2  # those that were under way
        assert len(how.asked) == 3 + 1 + 2


def test_a_server_that_dies_keeps_what_was_measured_and_can_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"gave no answer to 3 units in a row: .*nothing came.*--resume"):
        run(Batcher(broken_after=12), tmp_path)
    rows = (tmp_path / "calibration" / "tiny-12m-endpoint" / "rows.jsonl").read_text().splitlines()
    assert len(rows) == 13  # two units of the warm-up, then ten that were answered and three that were not
    assert all(json.loads(row)["answers"] for row in rows)
    report = run(Batcher(), tmp_path, resume=True)
    assert report.resumed == 13
    assert report.failed == {}  # what had failed was asked again, and came whole
    assert not {key for key in report.failed if key in report.noisy}
    assert max(errors(report).values()) < 0.1


def test_joules_beside_a_local_endpoint_are_fitted_and_without_a_meter_they_are_null(tmp_path: Path) -> None:
    run(Batcher(), tmp_path / "metered", metered=True)
    chip, _ = load_profile("tiny-12m-endpoint", AcceleratorProfile, "test", tmp_path / "metered")
    power = chip.power
    assert power.loaded_idle_w.value == pytest.approx(IDLE_W)
    assert power.floor_w.value == pytest.approx(IDLE_W + ABOVE_W, rel=0.05)
    assert power.joules_per_output_token.value == pytest.approx(TOKEN_J, rel=0.2)
    assert power.idle_w.value is None  # it was never seen without its model
    report = run(Batcher(), tmp_path / "bare")
    chip, _ = load_profile("tiny-12m-endpoint", AcceleratorProfile, "test", tmp_path / "bare")
    assert chip.power.floor_w.value is None
    assert "there is no meter" in chip.power.floor_w.source
    assert any("there is no meter" in why for why in report.unavailable.values())


def test_ctrl_c_keeps_every_row_and_a_second_calibration_of_that_name_is_told_to_resume(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Batcher(interrupted_after=9), tmp_path)
    assert len((tmp_path / "calibration" / "tiny-12m-endpoint" / "rows.jsonl").read_text().splitlines()) == 7
    with pytest.raises(CalibrationError, match="--resume"):
        run(Batcher(), tmp_path)
    assert run(Batcher(), tmp_path, resume=True).resumed == 7


def test_too_small_a_budget_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="give it a larger --budget"):
        run(Batcher(), tmp_path, budget_s=0.5)


def test_a_model_that_nobody_knows_must_be_described(tmp_path: Path) -> None:
    spec = EndpointSpec("http://127.0.0.1:1/v1", "a-secret-model")
    with pytest.raises(DescriptionError, match="--architecture"):
        calibrate_endpoint(EndpointOptions(spec, out=tmp_path))


def test_over_http_a_sweep_goes_from_asking_to_a_scenario(tmp_path: Path) -> None:
    """What matters is that everything is asked and written, whatever the machine is doing."""
    with serving(pause_s=0.001) as (url, how):  # tokens that came all at once would have no time between them
        spec = EndpointSpec(url, MODEL)
        ticks = itertools.count()  # whatever the machine is doing, the budget is so many looks at the clock
        options = EndpointOptions(
            spec, 120.0, tmp_path, architecture="tiny-12m", max_concurrency=2, max_input_tokens=64
        )
        report = calibrate_endpoint(options, tools=Tools(clock=lambda: float(next(ticks))))
    assert report.scenario is not None and report.scenario.is_file()
    assert report.simulated is not None
    assert {"burst", "join", "load"} <= {
        json.loads(row)["kind"] for row in report.files[0].with_name("rows.jsonl").read_text().splitlines()
    }
    assert {BURST_TOKENS, JOIN_TOKENS, FEWEST_TOKENS} <= {body["max_tokens"] for body in how.asked}
    assert not report.failed
