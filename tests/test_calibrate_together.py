"""Kernels of several devices and of experts, through the code that GPUs take, on the CPU."""

from __future__ import annotations

import multiprocessing

import pytest

from hsim.calibrate.bench import cross_checked
from hsim.calibrate.peers import CALLS, Group
from hsim.calibrate.work import DISAGREE
from hsim.errors import BackendError


@pytest.mark.torch
def test_two_processes_sum_over_both_and_end_together() -> None:
    pytest.importorskip("torch")
    group = Group(["cpu", "cpu"])
    try:
        small, large = group.all_reduce(1 << 10, "fp32"), group.all_reduce(1 << 22, "fp32")
    finally:
        group.close()
    assert small.samples == large.samples == CALLS
    assert small.seconds and large.seconds and large.seconds > small.seconds > 0
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("peer")]


@pytest.mark.torch
def test_a_member_that_cannot_begin_ends_all() -> None:
    pytest.importorskip("torch")
    with pytest.raises(BackendError):
        Group(["cuda:7"])
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("peer")]


@pytest.mark.torch
def test_routed_experts_do_every_token_s_work_once() -> None:
    torch = pytest.importorskip("torch")
    from hsim.calibrate.kernels import Kernels

    at = {"tokens": 6, "experts": 4, "per_token": 2, "hidden": 16, "width": 8, "dtype": "fp32"}
    found = Kernels("cpu").call("experts", at)(0)
    assert found.shape == (12, 16)
    assert torch.isfinite(found).all()


@pytest.mark.torch
def test_transfers_in_pieces_move_all_of_it() -> None:
    pytest.importorskip("torch")
    from hsim.calibrate.kernels import Kernels

    for pieces in (1, 7):
        Kernels("cpu").call("transfer", {"bytes": 100, "memory": "pageable", "direction": "h2d", "pieces": pieces})(0)


def test_power_readings_that_contradict_the_counter_are_noted() -> None:
    assert cross_checked(300.0, 310.0) == ()
    (note,) = cross_checked(300.0, 350.0)
    assert note.startswith(DISAGREE) and "300.0 W" in note and "350.0 W" in note
