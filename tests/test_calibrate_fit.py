"""Fits recover the laws that synthetic points were made from, and say how well they predict points not seen."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import calibrated_world as world
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsim.calibrate import fit, profiles
from hsim.calibrate.agenda import UNLIKE, Served, Target, agenda, bare_idle, one_layer, step_parts
from hsim.calibrate.bench import Facts
from hsim.calibrate.points import Point, points_of
from hsim.calibrate.profiles import Findings
from hsim.calibrate.steptable import TableName, fit_steps, predicted_s, shape_of
from hsim.calibrate.work import CAPPED, Reading, Row, Unit
from hsim.description.catalogue import load_model

NOISE = 0.03
MODEL = load_model("tiny-12m", "test", Path())
SERVED = Served(MODEL, "fp32", 16, 2048, 256)
TARGET = Target(
    "cpu",
    ("fp32",),
    SERVED,
    (load_model("llama-3.1-8b", "test", Path()),),
    (("encode-minilm", (16, 48, 128, 256, 500)),),
    4,
)


def made(units: list[Unit], noise: float = NOISE) -> list[Point]:
    """Points as the made-up machine would have measured them."""
    return [
        Point(
            u.kind,
            u.device,
            u.parameters,
            world.unit_seconds(u) * random.Random(u.key).uniform(1 - noise, 1 + noise),
            0.01,
            1,
        )
        for u in units
        if u.round == 1
    ]


POINTS = made(agenda(TARGET))
GUESSES = np.random.default_rng(0).uniform(0.5, 1.5, (30, 1000))


def findings() -> Findings:
    return Findings(world.MACHINE, "imaginary")


def values(law: dict[str, Any]) -> tuple[float, ...]:
    return tuple(figure["value"] for figure in law.values())


def test_kernel_laws_recover_what_points_were_made_from() -> None:
    found = findings()
    kernels = profiles.kernels(POINTS, TARGET, found)
    assert kernels is not None
    # Measured maxima are reached where points reach them: fractions refer to those, so rates are compared.
    bandwidth, peak = kernels["memory_bytes_per_s"]["value"], kernels["peak_flops_per_s"]["fp32"]["value"]
    launch_s, bandwidth_fraction, flops_fraction = values(kernels["kernels"]["gemm"]["fp32"])
    assert launch_s == pytest.approx(world.GEMM[0], rel=0.25)
    assert bandwidth * bandwidth_fraction == pytest.approx(world.BANDWIDTH * world.GEMM[1], rel=0.05)
    assert peak * flops_fraction == pytest.approx(world.PEAK * world.GEMM[2], rel=0.05)
    prefill = values(kernels["kernels"]["prefill_attention"])
    assert peak * prefill[1] == pytest.approx(world.PEAK * world.PREFILL_ATTENTION[1], rel=0.1)
    decode = values(kernels["kernels"]["decode_attention"])
    assert decode[0] == pytest.approx(world.DECODE_ATTENTION[0], rel=0.3)
    assert bandwidth * decode[3] == pytest.approx(world.BANDWIDTH * world.DECODE_ATTENTION[3], rel=0.1)
    assert {law.name for law in found.laws} >= {"products in fp32 on cpu", "decode attention on cpu"}
    for law in found.laws:
        assert law.median_error is not None and law.p90_error is not None
        assert 0 < law.median_error <= law.p90_error < 3 * NOISE  # no better than the noise, and not much worse


def test_no_law_beats_the_measured_maxima() -> None:
    """A physics guard: fractions stay at or below one, so no predicted kernel beats what was seen."""
    kernels = profiles.kernels(POINTS, TARGET, findings())
    assert kernels is not None
    laws = (
        kernels["kernels"]["gemm"]["fp32"],
        kernels["kernels"]["decode_attention"],
        kernels["kernels"]["prefill_attention"],
    )
    fractions = [figure["value"] for law in laws for name, figure in law.items() if name.endswith("fraction")]
    assert len(fractions) == 4
    assert all(0 < fraction <= 1 for fraction in fractions)


def test_operations_recover_base_linear_and_quadratic_parts() -> None:
    found = findings()
    law = profiles.cpu(POINTS, {"encode-minilm": "token"}, found, "no meter")["operations"]["encode-minilm"]
    base_s, unit_s, squared_s = (law[n]["value"] for n in ("base_s", "per_unit_s", "per_unit_squared_s"))
    for n in (16, 100, 500):
        planted = sum(c * n**i for i, c in enumerate(world.OPERATION["encode-minilm"]))
        assert base_s + n * unit_s + n * n * squared_s == pytest.approx(planted, rel=2 * NOISE)


def test_contention_is_the_slowdown_with_all_cores_busy() -> None:
    slowdown = profiles.cpu(POINTS, {"encode-minilm": "token"}, findings(), "no meter")["contention_slowdown"]
    assert slowdown["value"] == pytest.approx(world.SLOWER_TOGETHER, rel=2 * NOISE)
    assert 1.1 < slowdown["low"] <= slowdown["value"] <= slowdown["high"]


def test_held_out_errors_are_those_of_points_the_fit_has_not_seen() -> None:
    """A fit that memorises its points has no error on them, and a large one on points left out."""
    points = [Point("x", "cpu", {"n": n}, 1.0 + n % 7, 0.0, 1) for n in range(20)]

    def memorise(some: Any) -> Any:
        return np.array([[p.number("n"), p.seconds] for p in some])

    def recall(law: Any, point: Point) -> float:
        known = law[law[:, 0] == point.number("n")]
        return float(known[0, 1]) if len(known) else 1e3

    law, test = fit.tested("memory", points, 1, memorise, recall)
    assert law is not None
    assert all(recall(law, p) == p.seconds for p in points)
    assert test.median_error is not None and test.median_error > 10
    assert test.method == "5 folds left out in turn"


def test_a_form_chosen_for_its_error_is_tested_on_points_that_had_no_say_in_that() -> None:
    """Of thirty forms that guess, the best is no better than the others on points that nobody looked at."""
    draw = random.Random(4)
    ways = [
        fit.Way(1, lambda some: np.array([1.0]), lambda law, p, w=w: GUESSES[w, int(p.number("n"))]) for w in range(30)
    ]  # type: ignore[misc]
    looked_at, honest = [], []
    for _ in range(20):
        points = [Point("x", "cpu", {"n": n}, draw.uniform(0.5, 1.5), 0.0, 1) for n in draw.sample(range(1000), 15)]
        number, law, test = fit.chosen("guess", points, ways, lambda i, test: float(np.mean(test.errors)))
        assert law is not None and len(test.errors) == 15
        looked_at.append(np.mean([abs(ways[number].predict(law, p) / p.seconds - 1) for p in points]))
        honest.append(np.mean(test.errors))
    alike = np.mean([abs(draw.uniform(0.5, 1.5) / draw.uniform(0.5, 1.5) - 1) for _ in range(20_000)])
    assert np.mean(looked_at) < 0.8 * alike
    assert np.mean(honest) == pytest.approx(alike, rel=0.12)


def test_too_few_points_make_no_law_and_exactly_enough_no_error() -> None:
    fitted, predicted = fit.fit_sum(lambda p: (1.0, p.number("n")), (0.0, 0.0))
    points = [Point("x", "cpu", {"n": n}, 1.0 + n, 0.0, 1) for n in (1, 5)]
    law, test = fit.tested("few", points[:1], 2, fitted, predicted)
    assert law is None
    assert "takes 2" in test.method
    law, test = fit.tested("few", points, 2, fitted, predicted)
    assert law is not None and law == pytest.approx([1.0, 1.0])
    assert test.median_error is None


def test_noisy_points_are_counted_and_do_not_bend_the_law() -> None:
    fitted, predicted = fit.fit_sum(lambda p: (1.0, p.number("n")), (0.0, 0.0))
    clean = [Point("x", "cpu", {"n": n}, 1.0 + n, 0.0, 1) for n in range(1, 9)]
    noisy = [Point("x", "cpu", {"n": n}, 50.0, 0.5, 1, ("others had its core",)) for n in range(9, 13)]
    law, test = fit.tested("x", clean + noisy, 2, fitted, predicted)
    assert law is not None and law == pytest.approx([1.0, 1.0])
    assert (test.points, test.noisy) == (8, 4)
    assert test.p90_error == pytest.approx(0.0, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=20))
def test_rising_never_falls_and_leaves_what_rises_alone(values: list[float]) -> None:
    risen = fit.rising(values)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(risen))
    assert sum(risen) == pytest.approx(sum(values))
    assert fit.rising(sorted(values)) == pytest.approx(sorted(values))


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_coefficients_never_go_below_their_least(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns, seconds = rng.uniform(0, 1, (8, 3)), rng.uniform(0.5, 2, 8)
    least = np.array([0.0, 0.3, 0.1])
    assert (fit.relative_nonnegative(columns, seconds, least) >= least - 1e-12).all()


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_nonnegative_least_squares_is_scipy_s(seed: int, count: int) -> None:
    nnls = pytest.importorskip("scipy.optimize").nnls
    rng = np.random.default_rng(seed)
    columns, target = rng.normal(size=(9, count)), rng.normal(size=9)
    assert fit.nonnegative(columns, target) == pytest.approx(nnls(columns, target)[0], abs=1e-9)


@settings(deadline=None)
@given(st.floats(1e-6, 2e-5), st.floats(0.2, 1.0), st.floats(0.2, 1.0))
def test_the_product_law_is_found_wherever_it_lies(launch_s: float, bandwidth: float, flops: float) -> None:
    planted = np.array([launch_s, bandwidth, flops])
    bytes_s, flops_s = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e-7, 1e-2, 8), np.geomspace(1e-7, 1e-2, 8)))
    seconds = np.array([fit.gemm_seconds(planted, b, f) for b, f in zip(bytes_s, flops_s, strict=True)])
    assert fit.fit_gemm(bytes_s, flops_s, seconds) == pytest.approx(planted, rel=0.01)


# ---- rounds


def rows(*rounds: tuple[float, tuple[str, ...]]) -> list[Row]:
    return [
        Row(f"gemm cpu m=1 #{i}", "gemm", "cpu", {"m": 1}, i, Reading(s, 0.01 * s, 9), marks)
        for i, (s, marks) in enumerate(rounds, 1)
    ]


def test_rounds_without_marks_speak_for_a_point() -> None:
    (point,) = points_of(rows((1.0, ()), (9.0, ("load",)), (1.02, ())), 0.1)
    assert point.seconds == pytest.approx(1.01)
    assert (point.rounds, point.marks) == (2, ())


def test_of_marked_rounds_the_least_disturbed_speaks() -> None:
    disturbed = [
        replace(row, reading=replace(row.reading, cpu_fraction=fraction))
        for row, fraction in zip(rows((1.6, ("a",)), (1.1, ("b",)), (1.3, ("c",))), (0.4, 0.8, 0.6), strict=True)
    ]
    (point,) = points_of(disturbed, 0.1)
    assert (point.seconds, point.marks) == (1.1, ("b",))


def test_rounds_that_differ_are_marked_even_where_each_is_steady() -> None:
    (point,) = points_of(rows((1.0, ()), (1.5, ())), 0.1)
    assert point.spread == pytest.approx(0.4)
    assert point.deviation == pytest.approx(0.5 / 2**0.5 / 1.25)
    assert "differ" in point.marks[0]


# ---- the step table


@given(st.integers(1, 200), st.integers(2, 5000))
@settings(deadline=None)
def test_contexts_of_a_measured_batch_have_the_mean_that_is_named(decodes: int, context: int) -> None:
    contexts, chunks = step_parts({"role": "decode", "decodes": decodes, "context": context})
    assert (len(contexts), sum(contexts), chunks) == (decodes, decodes * context, [])
    assert all(0 < c <= (1 + UNLIKE) * context for c in contexts)
    assert decodes == 1 or context < 8 or len(set(contexts)) > 1


def table_and_law(points: list[Point]) -> Any:
    return fit_steps(points, SERVED, TableName("steps", "engine", "chip", "made up"))


def test_step_table_predicts_steps_that_were_kept_out_of_it() -> None:
    steps = [p for p in POINTS if p.kind == "step"]
    table, law = table_and_law(steps)
    assert table is not None
    assert law.median_error is not None and law.median_error < NOISE
    assert law.p90_error is not None and law.p90_error < 3 * NOISE
    assert "24 random steps" in law.method
    assert (table.median_error_fraction, table.p90_error_fraction) == (law.median_error, law.p90_error)


def test_step_table_without_noise_is_exact_at_its_points() -> None:
    steps = made([u for u in agenda(TARGET) if u.kind == "step"], noise=0.0)
    table, law = table_and_law(steps)
    assert table is not None and law.p90_error is not None
    for point in steps:
        if point.parameters["role"] in ("decode", "chunk", "mixed"):
            assert predicted_s(table, point) == pytest.approx(point.seconds, rel=1e-6), point.name
    assert law.p90_error < 0.01  # the made-up machine is linear, so what lies between is right too


def test_an_incomplete_grid_gives_the_largest_complete_one() -> None:
    steps = [
        p
        for p in POINTS
        if p.kind == "step" and not (p.parameters["role"] == "decode" and p.parameters["decodes"] == 4)
    ]
    lone = next(
        p for p in POINTS if p.kind == "step" and p.parameters.get("decodes") == 4 and p.parameters["role"] == "decode"
    )
    table, _ = table_and_law([*steps, lone])
    assert table is not None
    assert 4 not in table.decodes
    assert len(table.decodes) * len(table.contexts) == sum(len(row) for row in table.decode_s)


def test_no_table_from_too_few_steps() -> None:
    table, law = table_and_law([p for p in POINTS if p.kind == "step" and p.parameters["role"] == "check"])
    assert table is None
    assert "too few" in law.method


# ---- watts


def test_board_power_recovers_floor_and_joules_of_work() -> None:
    model = load_model("llama-3.1-8b", "test", Path())
    target = Target("cuda:0", ("bf16",), Served(model, "bf16", 64, 4096, 2048), metered=True)
    work = profiles._work_per_call(target.served)
    points = []
    for point in made([bare_idle("cuda:0"), *(u for u in agenda(target) if u.kind in ("power", "idle"))], noise=0.0):
        if point.kind == "idle":
            watts = world.IDLE_W if point.parameters["state"] == "bare" else world.LOADED_IDLE_W
        else:
            n_bytes, flops, _ = work(point)
            watts = world.FLOOR_W + (world.BYTE_J * n_bytes + world.FLOP_J * flops) / point.seconds
        points.append(replace(point, watts=watts))
    capped = replace(points[-1], watts=5000.0, notes=(CAPPED,))  # its watts are the cap's: they say nothing of the work
    power = profiles.board_power(
        [*points, capped], target, Facts("0", ("bf16",), "x", 1, world.LIMIT_W), findings(), ""
    )
    got = {name: figure["value"] for name, figure in power.items()}
    assert got["idle_w"] == world.IDLE_W
    assert got["loaded_idle_w"] == world.LOADED_IDLE_W
    assert got["cap_w"] == world.LIMIT_W
    assert got["floor_w"] == pytest.approx(world.FLOOR_W, rel=0.02)
    assert got["joules_per_byte"] == pytest.approx(world.BYTE_J, rel=0.05)
    assert got["joules_per_flop"] == pytest.approx(world.FLOP_J, rel=0.05)


def test_without_a_meter_every_watt_is_null_with_the_reason() -> None:
    found = findings()
    power = profiles.board_power([], TARGET, Facts("0", ("fp32",)), found, "no meter here")
    assert all(figure["value"] is None and figure["source"] == "no meter here" for figure in power.values())
    assert len(found.unavailable) == len(power)
    cpu = profiles.cpu([], {}, found, "no meter here")
    assert [cpu[name]["value"] for name in ("idle_w", "max_w", "load_power_exponent")] == [None] * 3


def test_package_power_gives_idle_full_and_exponent() -> None:
    points = [
        Point("cpu-power", "cpu", {"busy": busy}, 0.0, 0.0, 1, watts=50 + 150 * (busy / 4) ** 0.6)
        for busy in (0, 1, 2, 4)
    ]
    cpu = profiles.cpu(points, {}, findings(), "")
    assert cpu["idle_w"]["value"] == pytest.approx(50)
    assert cpu["max_w"]["value"] == pytest.approx(200)
    assert cpu["load_power_exponent"]["value"] == pytest.approx(0.6)


def points_by(
    kind: str, seconds: Callable[[float], float], sizes: Sequence[float], rounds_differ: float = 0.0
) -> list[Point]:
    return [Point(kind, "cpu", {"name": "x", "units": n, "workers": 1}, seconds(n), rounds_differ, 3) for n in sizes]


def test_a_second_slope_is_fitted_where_a_cache_ends_and_only_there() -> None:
    sizes = (1_000, 3_000, 10_000, 20_000, 40_000, 100_000)

    def falls_out_of_cache(n: float) -> float:
        return 1e-5 + 6e-8 * n + 6e-8 * max(0.0, n - 20_000)

    law = profiles._operation(points_by("operation", falls_out_of_cache, sizes), "x", "vector", findings())
    assert law is not None
    assert law["knee_units"] == 20_000
    assert law["per_unit_beyond_s"]["value"] == pytest.approx(6e-8, rel=0.01)
    straight = profiles._operation(points_by("operation", lambda n: 1e-5 + 6e-8 * n, sizes), "x", "vector", findings())
    assert straight is not None
    assert "knee_units" not in straight


def test_bounds_widen_with_the_unsteadiness_of_rounds_and_hold_the_value() -> None:
    sizes = (1, 4, 16, 64)
    widths = []
    for differ in (0.0, 0.2, 0.4):
        law = profiles._operation(
            points_by("operation", lambda n: 1e-3 + 1e-4 * n, sizes, differ), "x", "u", findings()
        )
        assert law is not None
        slope = law["per_unit_s"]
        assert slope["low"] <= slope["value"] <= slope["high"]
        widths.append(slope["high"] / slope["low"] - 1)
    assert widths[0] < 0.01
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("sizes", [(1, 4, 16), (1, 4, 16, 64), (1, 2, 4, 8, 16, 32, 64, 128)], ids=len)
def test_bounds_hold_what_was_true_as_often_as_they_say(sizes: tuple[int, ...]) -> None:
    """Relative noise of 4 % on a known law, many times: bounds of 5 to 95 % must hold it in 90 % of all fits.

    A bootstrap of as few points held it in 68 to 77 %.
    """
    true, fits = np.array([2e-3, 3e-4]), 400
    fitted, predicted = fit.fit_sum(lambda p: (1.0, p.number("units")), (0.0, 0.0))
    draw, held = np.random.default_rng(len(sizes)), np.zeros(2)
    for _ in range(fits):
        noise = dict(zip(sizes, draw.normal(1.0, 0.04, len(sizes)), strict=True))
        points = points_by("operation", lambda n, noise=noise: (true[0] + true[1] * n) * noise[n], sizes)  # type: ignore[misc]
        found = fit.bounds(points, predicted, fitted(points))
        assert found is not None
        held += (found[0] <= true) & (true <= found[1])
    error = np.sqrt(0.9 * 0.1 / fits)
    np.testing.assert_allclose(held / fits, 0.9, rtol=0, atol=3.5 * error)


def test_bounds_of_a_curved_law_hold_what_was_true_as_often_as_they_say() -> None:
    """The same of a product's two-sided law, whose fractions are shown as one over what is fitted."""
    units = [u for u in agenda(TARGET) if u.kind == "gemm" and u.round == 1 and u.parameters["dtype"] == "fp32"]
    peaks, fits, held = (world.BANDWIDTH, world.PEAK), 30, np.zeros(3)
    for number in range(fits):
        draw = random.Random(number)
        points = [replace(p, seconds=p.seconds * draw.gauss(1.0, 0.04)) for p in made(units[::4], 0.0)]
        law = profiles._gemm_law(points, "fp32", peaks, "cpu", findings())
        assert law is not None
        held += [figure["low"] <= true <= figure["high"] for figure, true in zip(law.values(), world.GEMM, strict=True)]
    error = np.sqrt(0.9 * 0.1 / fits)
    assert (held / fits >= 0.9 - 3.5 * error).all()


def test_where_nothing_is_left_to_judge_by_there_are_no_bounds() -> None:
    two = points_by("operation", lambda n: 1e-3 + 1e-4 * n, (1, 4))
    law = profiles._operation(two, "x", "u", findings())
    assert law is not None
    assert "low" not in law["base_s"] and "low" not in law["per_unit_s"]


def test_few_points_are_tested_between_their_ends() -> None:
    points = points_by("operation", lambda n: 1e-3 + 1e-4 * n, (1, 4, 16, 64))
    fitted, predicted = fit.fit_sum(lambda p: (1.0, p.number("units")), (0.0, 0.0))
    law, test = fit.tested("x", points, 2, fitted, predicted)
    assert law is not None
    assert test.median_error == pytest.approx(0.0, abs=1e-9)
    assert test.method == "each point but the ends left out in turn"


def test_a_step_table_says_how_far_it_may_be_off_as_a_whole() -> None:
    steps = [p for p in POINTS if p.kind == "step"]
    table, _ = table_and_law(
        [replace(p, seconds=1.2 * p.seconds) if p.parameters["role"] == "check" else p for p in steps]
    )
    assert table is not None and table.scale is not None
    assert table.scale.value == 1.0
    assert table.scale.high == pytest.approx(1.2, rel=0.03)


def test_whole_layers_are_checked_against_kernels_added_up() -> None:
    found = findings()
    chip = profiles.kernels(POINTS, TARGET, found)
    assert chip is not None
    chip |= {
        "name": "chip",
        "kind": "accelerator",
        "memory_bytes": profiles.known(1e9, "assumed", "x"),
        "power": profiles.core_power(),
    }
    engine = profiles.engine(POINTS, TARGET, chip, 1, found)
    units = [u for u in agenda(TARGET) if u.kind == "layer" and u.round == 1]
    costs = profiles.composed(replace(SERVED, model=one_layer(MODEL)), chip, engine)
    exact = [
        Point(
            "layer",
            "cpu",
            u.parameters,
            costs.segment(shape_of(Point("layer", "cpu", u.parameters, 1.0, 0.0, 1))).seconds,
            0.0,
            1,
        )
        for u in units
    ]
    profiles.whole_layers([replace(p, seconds=1.25 * p.seconds) for p in exact], TARGET, (chip, engine), found)
    law = found.laws[-1]
    assert (law.name, law.points) == ("whole layers on cpu", len(units))
    assert law.median_error == pytest.approx(0.2)


def test_experts_and_all_reduce_recover_what_points_were_made_from() -> None:
    shape = {"experts": 8, "per_token": 2, "hidden": 1024, "width": 2048, "dtype": "bf16"}
    bandwidth, peak = world.BANDWIDTH, world.PEAK

    def experts_s(m: int) -> float:
        touched, matrices = 8 * (1 - 0.75**m), 3 * 1024 * 2048
        bytes_s, flops_s = touched * matrices * 2 / bandwidth / 0.8, 2 * matrices * m * 2 / peak / 0.6
        return 2e-5 + (bytes_s**4 + flops_s**4) ** 0.25

    points = [
        Point("experts", "cuda:0", {**shape, "tokens": m}, experts_s(m), 0.0, 1) for m in (1, 4, 16, 64, 256, 1024)
    ]
    law = profiles._experts(points, "bf16", (bandwidth, peak), "cuda:0", findings())["experts"]["bf16"]
    assert law["bandwidth_fraction"]["value"] == pytest.approx(0.8, rel=0.05)
    assert law["flops_fraction"]["value"] == pytest.approx(0.6, rel=0.05)
    sums = [
        Point(
            "all-reduce",
            "cuda:0",
            {"bytes": b, "devices": n},
            4e-6 + 2e-7 * (n - 1) + 2 * (n - 1) / n * b / 2e11,
            0.0,
            1,
        )
        for n in (2, 4, 8)
        for b in (1 << 13, 1 << 21, 1 << 25)
    ]
    found = profiles._all_reduce(sums, "cuda:0", findings())["all_reduce"]
    assert found["bytes_per_s"]["value"] == pytest.approx(2e11, rel=0.01)
    assert profiles._experts([], "bf16", (1.0, 1.0), "cuda:0", findings()) == {}
    assert profiles._all_reduce([], "cuda:0", findings()) == {}
