"""Clocks under a power cap: the highest whose power fits, exactly as long as it fits."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsim.costs.clocks import ClockedCosts
from hsim.costs.composed import ComposedCosts, Placement
from hsim.costs.shapes import StepShape
from hsim.description.catalogue import load_model, load_profile
from hsim.description.hardware import AcceleratorProfile, EngineProfile
from hsim.description.system import Figures
from hsim.errors import DescriptionError

H100 = load_profile("h100-sxm", AcceleratorProfile, "test")[0]
PLACEMENT = Placement(
    load_model("llama-3.1-8b", "test", Path()), H100, load_profile("vllm", EngineProfile, "test")[0], 1, "bf16"
)
IDLE_W = H100.power.loaded_idle_w.value or 0.0
PREFILL = StepShape(0, 0, 1, 4000, 4000, 4000 * 4001 // 2)
DECODE = StepShape(16, 16 * 1000)


def clocked(cap_w: float) -> ClockedCosts:
    return ClockedCosts(replace(PLACEMENT, power_cap_w=cap_w), Figures({}), "pools.decode.power_cap_w")


def watts(costs: ClockedCosts | ComposedCosts, shape: StepShape) -> float:
    segment = costs.segment(shape)
    return segment.joules / segment.seconds + IDLE_W


@settings(max_examples=80)
@given(st.floats(400, 1200), st.integers(1, 200), st.integers(1, 8000))
def test_power_fits_and_the_next_clock_up_would_not(cap_w: float, decodes: int, context: int) -> None:
    costs, shape = clocked(cap_w), StepShape(decodes, decodes * context)
    assert watts(costs, shape) <= cap_w * (1 + 1e-12)
    taken = costs.segment(shape).seconds
    gear = next(i for i, g in enumerate(costs.gears) if g.segment(shape).seconds == taken)
    assert gear == 0 or watts(costs.gears[gear - 1], shape) > cap_w


def test_a_clock_holds_for_exactly_as_long_as_it_says() -> None:
    reached = Counter[str]()

    @settings(max_examples=120)
    @given(st.floats(450, 680), st.integers(60, 250), st.integers(10, 3000), st.data())
    def law(cap_w: float, decodes: int, context: int, data: st.DataObject) -> None:
        costs = clocked(cap_w)
        segment = costs.segment(StepShape(decodes, decodes * context))
        k = data.draw(st.integers(0, int(min(segment.valid_steps - 1, 20_000))))
        anew = costs.segment(StepShape(decodes, decodes * (context + k)))
        assert anew.seconds == pytest.approx(segment.seconds + k * segment.seconds_growth, rel=1e-9)
        if segment.valid_steps < 20_000:
            after = costs.segment(StepShape(decodes, decodes * (context + int(segment.valid_steps))))
            formed = segment.seconds + segment.valid_steps * segment.seconds_growth
            assert after.seconds != pytest.approx(formed, rel=1e-9)
            reached["changes clock"] += 1

    law()
    assert reached["changes clock"]


def test_a_cap_slows_prefill_and_hardly_slows_decode() -> None:
    free, capped = clocked(2000), clocked(500)
    slower = [capped.segment(shape).seconds / free.segment(shape).seconds for shape in (PREFILL, DECODE)]
    assert slower[0] > 1.2
    assert 1 <= slower[1] < 1.1


def test_a_lower_clock_takes_fewer_joules_for_the_same_prefill() -> None:
    free, capped = (clocked(cap).segment(PREFILL) for cap in (2000, 500))
    assert capped.joules < free.joules


def test_a_cap_below_the_lowest_clock_is_an_error_that_says_by_how_much() -> None:
    with pytest.raises(DescriptionError, match=r"pools.decode.power_cap_w: a step of 1 sequences draws \d+ W more"):
        clocked(130).segment(PREFILL)


def test_a_chip_without_clocks_cannot_be_capped() -> None:
    chip = H100.model_copy(update={"power": H100.power.model_copy(update={"clocks": None})})
    with pytest.raises(DescriptionError, match="has no clocks"):
        ClockedCosts(replace(PLACEMENT, chip=chip, power_cap_w=300.0), Figures({}), "here")


def test_the_highest_clock_without_a_cap_is_the_plain_model() -> None:
    plain = ComposedCosts(replace(PLACEMENT, power_cap_w=math.inf), Figures({}))
    for shape in (PREFILL, DECODE):
        one, other = clocked(5000).segment(shape), plain.segment(shape)
        assert (one.seconds, one.joules) == (other.seconds, other.joules)
