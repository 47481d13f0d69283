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

from hsim.errors import WorkersError
from hsim.metrics.study import Replication
from hsim.runs import Options
from hsim.runs.store import Store

pytestmark = pytest.mark.slow


Started = tuple[str, list[subprocess.Popen[bytes]]]
VARY = f"{RATE}=4,6,8,10,12,14"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """A scheduler's address, and the processes as a user would start them: the scheduler and two workers."""
    dask, told = [sys.executable, "-m", "dask"], tmp_path / "scheduler.json"
    where = ["--host=127.0.0.1", "--port=0", "--no-dashboard", f"--scheduler-file={told}"]
    options = ["--nthreads=1", "--no-nanny", "--no-dashboard", f"--scheduler-file={told}"]
    processes = [subprocess.Popen([*dask, "scheduler", *where])]
    processes += [subprocess.Popen([*dask, "worker", *options], cwd=tmp_path) for _ in range(2)]
    try:
        while not told.is_file() or "address" not in told.read_text():
            assert processes[0].poll() is None
            time.sleep(0.1)
        yield json.loads(told.read_text())["address"], processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each replication was kept; `kill` dies in the middle, when workers have others in their hands."""
    counter: Counter[str] = Counter()
    put = Store.put

    def counting(store: Store, name: str, replication: Replication) -> None:
        counter[f"{store.key}/{name}"] += 1
        if len(counter) == 8:
            counting.kill.send_signal(signal.SIGKILL)  # type: ignore[attr-defined]
        put(store, name, replication)

    monkeypatch.setattr(Store, "put", counting)
    counter.kill = lambda process: setattr(counting, "kill", process)  # type: ignore[attr-defined]
    return counter


def test_a_worker_killed_in_the_middle_loses_nothing(started: Started, kept: Counter[str], tmp_path: Path) -> None:
    where, (_, worker, _) = started
    file = written(tmp_path)
    kept.kill(worker)  # type: ignore[attr-defined]
    remote = swept(file, VARY, options=Options(4, out=tmp_path / "remote", cluster=where))
    assert worker.poll() == -signal.SIGKILL
    assert remote.complete
    assert list(kept.values()) == [1] * 6 * 4
    local = swept(file, VARY, options=Options(4, processes=1, out=tmp_path / "local"))
    assert remote.rows == local.rows
    assert bytes_of(tmp_path / "remote") == bytes_of(tmp_path / "local")


def test_a_scheduler_that_is_lost_is_told_and_what_was_finished_stays(
    started: Started, kept: Counter[str], tmp_path: Path
) -> None:
    """The same command without the cluster runs the rest, and only that."""
    where, (scheduler, *_) = started
    file, out = written(tmp_path), tmp_path / "out"
    kept.kill(scheduler)  # type: ignore[attr-defined]
    with pytest.raises(WorkersError, match="or the scheduler lost; with --out the same command goes on"):
        swept(file, VARY, options=Options(4, out=out, cluster=where))
    assert 8 <= len(kept) < 24
    assert swept(file, VARY, options=Options(4, processes=1, out=out)).complete
    assert list(kept.values()) == [1] * 6 * 4
