"""Costs on cores: what is read of an operation, and curves of contention."""

from __future__ import annotations

import pytest

from hsim.costs.cpu import operation_cost, times_as_long
from hsim.description.hardware import CpuProfile, Operation
from hsim.description.quantities import Figure
from hsim.description.system import Figures


def figure(value: float) -> Figure:
    return Figure(value=value, tier="measured", source="made up")


def cpu(**curve: float) -> CpuProfile:
    one = {"unit": "token", "base_s": figure(1e-3), "per_unit_s": figure(1e-5)}
    slowdown = {n.removeprefix("n"): figure(times) for n, times in curve.items()}
    named = dict.fromkeys(("idle_w", "max_w", "load_power_exponent", "memory_bytes_per_s"), figure(1.0))
    return CpuProfile(
        name="made-up", kind="cpu", cores=9, **named, contention_slowdown=figure(1.3), hand_over_s=figure(5e-4),
        operations={"tokenise": Operation(**one, contention_slowdown=slowdown)},
    )  # fmt: skip


def test_a_job_holds_its_core_for_its_work_and_for_being_handed_over() -> None:
    figures = Figures({})
    cost = operation_cost(cpu(), "tokenise", figures)
    assert cost.work_s(100) == pytest.approx(2e-3)
    assert cost.seconds(100) == pytest.approx(2.5e-3)
    assert cost.once_s == pytest.approx(1.5e-3)
    assert cost.contention == ()
    assert {"made-up.hand_over_s", "made-up.operations.tokenise.base_s"} <= set(figures.used)


def test_a_curve_of_contention_goes_by_the_part_of_the_others_that_are_busy() -> None:
    curve = operation_cost(cpu(n3=1.1, n5=1.4, n9=2.0), "tokenise", Figures({})).contention
    assert curve == ((0.25, 1.1), (0.5, 1.4), (1.0, 2.0))
    parts = {0.0: 1.0, 0.125: 1.05, 0.25: 1.1, 0.375: 1.25, 0.5: 1.4, 0.75: 1.7, 1.0: 2.0}
    assert {part: times_as_long(curve, part) for part in parts} == pytest.approx(parts)
    assert times_as_long(((0.5, 1.4),), 1.0) == 1.4  # the same beyond the last point


def test_in_no_world_does_company_make_work_quicker() -> None:
    assumed = {"made-up.operations.tokenise.contention_slowdown.5": 1.05}
    curve = operation_cost(cpu(n3=1.1, n5=1.4, n9=2.0), "tokenise", Figures(assumed)).contention
    assert curve == ((0.25, 1.1), (0.5, 1.1), (1.0, 2.0))


@pytest.mark.parametrize("keys", [("n1",), ("n4", "n2"), ("nx",)])
def test_a_curve_is_by_rising_numbers_of_cores(keys: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="rising numbers of busy cores"):
        cpu(**dict.fromkeys(keys, 1.1))
