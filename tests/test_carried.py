"""Links whose bytes are really moved: all of them come, in a live run too, and validation sees how long they took."""

from __future__ import annotations

import errno
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from systems import prepared_of
from test_live import Use, alive, closed_loop, on_puppets  # noqa: F401  # a fixture

from hsim.backends.couriers import MOST_BYTES, Couriers, Manner
from hsim.calibrate.loop import carry
from hsim.drivers.carried import check_carried
from hsim.drivers.live import LiveRun, run_live
from hsim.drivers.prepared import Prepared
from hsim.drivers.simulated import run
from hsim.errors import BackendError, DescriptionError
from hsim.validate.terms import TRANSFERS, repaired, seen_terms


def carried_by(prepared: Prepared, manner: str) -> Prepared:
    """The same system with its links carried."""
    system = prepared.system
    networks = {name: link.model_copy(update={"carried_by": manner}) for name, link in system.networks.items()}
    return replace(prepared, system=replace(system, networks=networks))


def linked(**payload: Any) -> Prepared:
    data = closed_loop(max_num_seqs=2)
    data["links"] = {"agents-decode": "ethernet-100g"}
    return prepared_of(data | ({"payload": payload} if payload else {}))


@pytest.mark.parametrize("manner", get_args(Manner))
def test_every_byte_of_a_message_comes(manner: Manner) -> None:
    couriers = Couriers(manner)
    try:
        for n_bytes in (0, 1, 8, 1000, MOST_BYTES, 2 * MOST_BYTES + 24):
            done = couriers.sender.call(n_bytes)  # the sender asks for the sum of what came, and compares
            assert done.end_s > done.start_s
        took = carry(couriers.sender, 512.0, 3, 4)
        assert len(took) == 4 and all(seconds > 0 for seconds in took)
        pid = couriers.sender.process.pid
    finally:
        couriers.close()
    assert pid is not None and not alive(pid)


def test_couriers_whose_memory_is_full_say_so_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hsim.backends.couriers.MEMORY", tmp_path)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(BackendError, match=rf"courier by pipe: .*No space left on device.*make room in {tmp_path}"):
        Couriers("pipe")
    assert not list(tmp_path.iterdir())


def test_a_courier_whose_other_end_has_gone_is_an_error_and_not_a_wait() -> None:
    couriers = Couriers("pipe")
    try:
        receiver = next(child for child in multiprocessing.active_children() if "receiving" in child.name)
        receiver.kill()
        receiver.join()
        with pytest.raises(BackendError):
            couriers.sender.call(64)
    finally:
        couriers.close()


@pytest.mark.parametrize("window_s", [0.0, 0.02])
def test_a_live_run_moves_what_the_simulation_says_and_validation_sees_it(on_puppets: Use, window_s: float) -> None:  # noqa: F811
    prepared = carried_by(linked(window_s=window_s), "pipe")
    workers = on_puppets(prepared)
    done = run_live(prepared, "cpu")
    predicted = run(prepared)
    moved, expected = done.log.transfers.arrays(), predicted.transfers.arrays()
    assert len(moved["task"]) == len(expected["task"]) > 0
    assert sorted(zip(moved["task"], moved["bytes"], strict=True)) == sorted(
        zip(expected["task"], expected["bytes"], strict=True)
    )
    assert (moved["end_s"] - moved["start_s"]).max() >= window_s  # of the first of each window
    assert np.isnan(moved["joules"]).all()
    assert any("carried by pipe" in note for note in done.notes)
    assert not any(alive(worker.process.pid or os.getpid()) for worker in workers)
    (seen,) = [one for one in seen_terms(prepared, predicted, [done]) if one.term == TRANSFERS]
    assert seen.count == len(moved["task"])
    assert seen.measured_s == pytest.approx(float(np.mean(moved["end_s"] - moved["start_s"])))


def test_where_nothing_is_carried_transfers_show_nothing() -> None:
    prepared = linked()
    log = run(prepared)
    assert all(one.term != TRANSFERS for one in seen_terms(prepared, log, [LiveRun(log, (), ())]))


def test_a_link_repaired_takes_so_many_times_as_long() -> None:
    prepared = linked()
    was, now = (run(one).transfers.arrays() for one in (prepared, repaired(prepared, {TRANSFERS: 3.0})))
    alone = [float((rows["end_s"] - rows["start_s"]).min()) for rows in (was, now)]
    assert alone[1] == pytest.approx(3 * alone[0])


def test_a_path_of_several_networks_is_refused() -> None:
    prepared = carried_by(linked(), "pipe")
    system = prepared.system
    (ends,) = system.paths
    twice = replace(prepared, system=replace(system, paths={ends: (*system.paths[ends], *system.paths[ends])}))
    with pytest.raises(DescriptionError, match="carries single links only"):
        check_carried(twice)
    check_carried(prepared)
