"""A sweep on a real cluster of processes, one of which is killed: nothing lost, nothing counted twice, the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_sweeps import RATE, bytes_of, swept, written

from hsim.metrics.study import Replication
from hsim.runs import Options
from hsim.runs.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler's address, and two workers, each a process as a user would start it."""
    dask, told = [sys.executable, "-m", "dask"], tmp_path / "scheduler.json"
    where = ["--host=127.0.0.1", "--port=0", "--no-dashboard", f"--scheduler-file={told}"]
    started = [subprocess.Popen([*dask, "scheduler", *where])]
    try:
        options = ["--nthreads=1", "--no-nanny", "--no-dashboard", f"--scheduler-file={told}"]
        started += [subprocess.Popen([*dask, "worker", *options], cwd=tmp_path) for _ in range(2)]
        while not told.is_file() or "address" not in told.read_text():
            assert started[0].poll() is None
            time.sleep(0.1)
        yield json.loads(told.read_text())["address"], started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_worker_killed_in_the_middle_loses_nothing(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, workers = cluster
    file, vary = written(tmp_path), f"{RATE}=4,6,8,10,12,14"
    kept: Counter[str] = Counter()
    put = Store.put

    def counting(store: Store, name: str, replication: Replication) -> None:
        kept[f"{store.key}/{name}"] += 1
        if len(kept) == 8:  # in the middle, with work in its hands
            workers[0].send_signal(signal.SIGKILL)
        put(store, name, replication)

    monkeypatch.setattr(Store, "put", counting)
    remote = swept(file, vary, options=Options(4, out=tmp_path / "remote", cluster=where))
    assert remote.complete
    assert len(kept) > 24
    assert set(kept.values()) == {1}
    assert workers[0].poll() == -signal.SIGKILL
    local = swept(file, vary, options=Options(4, processes=1, out=tmp_path / "local"))
    assert remote.rows == local.rows
    assert bytes_of(tmp_path / "remote") == bytes_of(tmp_path / "local")
