"""Workers: what they answer, and that whatever goes wrong in one is a plain error in the parent and leaves no orphan."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsim.backends.hosts import DecoderSpec, Opened, StepItem, ToolSpec
from hsim.backends.worker import Worker, WorkerSettings, shared_cores
from hsim.description.model import ModelArchitecture
from hsim.errors import BackendError


def act(request):
    """What the workers of these tests do."""
    what, argument = request
    if what == "sleep":
        time.sleep(argument)
    if what == "raise":
        raise argument
    if what == "environment":
        return os.environ.get(argument)
    if what == "cores":
        return sorted(os.sched_getaffinity(0))
    if what == "exit":
        os._exit(argument)
    if what == "run":
        subprocess.run(argument, check=False)
    if what == "print":
        print(argument, flush=True)
    if what == "leave":
        subprocess.Popen(argument)
    if what == "leave and exit":
        subprocess.Popen(argument)
        os._exit(9)
    return argument


@dataclass(frozen=True)
class Puppet:
    """A host that does what the test asks; `opening` is done when it is opened."""

    opening: tuple = ("say", None)

    def open(self):
        act(self.opening)
        return Opened(act, ("a puppet",))


def alive(pid):
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pid):
    for _ in range(200):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def lasting():
    """One worker for the tests that leave it as it was: starting a process is most of what these tests take."""
    with Worker(Puppet(), WorkerSettings("puppet", threads=3, answer_timeout_s=30)) as worker:
        yield worker


@pytest.fixture
def worker():
    with Worker(Puppet(), WorkerSettings("puppet", threads=3, answer_timeout_s=30)) as worker:
        pid = worker.process.pid
        assert alive(pid)
        yield worker
    assert not alive(pid)


def test_answers_come_with_times_on_the_parents_own_clock(lasting):
    before_s = time.monotonic()
    done = lasting.call(("sleep", 0.05))
    after_s = time.monotonic()
    assert before_s < done.start_s < done.end_s < after_s
    assert done.end_s - done.start_s >= 0.05
    assert done.value == 0.05


def test_the_loop_can_wait_on_connections(lasting):
    lasting.send(("say", 7))
    assert multiprocessing.connection.wait([lasting.connection], timeout=30) == [lasting.connection]
    assert lasting.answer().value == 7


def test_threads_reach_libraries_through_the_environment_and_leave_no_trace_here(lasting):
    assert lasting.call(("environment", "OMP_NUM_THREADS")).value == "3"
    assert lasting.call(("environment", "OMP_WAIT_POLICY")).value == "passive"
    assert os.environ.get("OMP_NUM_THREADS") != "3"


def test_an_error_is_told_and_the_worker_goes_on(lasting):
    with pytest.raises(BackendError, match=r"worker puppet: failed with KeyError: 'no such key'") as caught:
        lasting.call(("raise", KeyError("no such key")))
    assert "in act" in "".join(caught.value.__notes__)
    with pytest.raises(BackendError) as caught:
        lasting.call(("raise", BackendError("slot 3", "is full", "use another")))
    assert str(caught.value) == "worker puppet: slot 3: is full; use another"
    assert lasting.call(("say", "still here")).value == "still here"


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 TB")]
)
def test_out_of_memory_is_called_so(lasting, error):
    with pytest.raises(BackendError, match=r"out of memory .*; use fewer slots"):
        lasting.call(("raise", error))


class AcceleratorError(RuntimeError):
    """As torch calls it where a CUDA context is lost."""


def test_a_worker_that_has_lost_its_device_is_ended(worker):
    with pytest.raises(BackendError, match="failed with AcceleratorError: illegal memory access"):
        worker.call(("raise", AcceleratorError("illegal memory access")))
    assert worker.dead
    assert not worker.process.is_alive()
    with pytest.raises(BackendError, match="illegal memory access"):
        worker.call(("say", "anything"))


def test_a_killed_worker_is_an_error_at_once_and_ever_after(worker):
    worker.send(("sleep", 60))
    os.kill(worker.process.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(BackendError, match="ended by SIGKILL; if nobody killed it, memory has run out"):
            worker.answer()
    with pytest.raises(BackendError, match="SIGKILL"):
        worker.send(("say", 1))


def test_a_worker_that_is_killed_while_idle_is_found_out_when_it_is_asked(worker):
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.join()
    with pytest.raises(BackendError, match="SIGKILL"):
        worker.call(("say", 1))


def test_a_worker_that_ends_itself_is_an_error(worker):
    with pytest.raises(BackendError, match="ended by itself with code 9"):
        worker.call(("exit", 9))


def test_a_worker_that_hangs_is_killed():
    with Worker(Puppet(), WorkerSettings("stuck", answer_timeout_s=0.2)) as worker:
        with pytest.raises(BackendError, match=r"no answer within 0\.2 s and was killed"):
            worker.call(("sleep", 60))
        assert not alive(worker.process.pid)


@pytest.mark.parametrize(
    ("opening", "settings", "problem"),
    [
        (("raise", BackendError("cuda:0", "is not there", "use cpu")), {}, "worker new: cuda:0: is not there; use cpu"),
        (("raise", OSError("no such file")), {}, "failed with OSError: no such file"),
        (("exit", 3), {}, "ended by itself with code 3"),
        (("sleep", 60), {"start_timeout_s": 0.2}, "no answer within 0.2 s"),
    ],
)
def test_a_worker_that_cannot_open_says_why_and_is_gone(opening, settings, problem):
    worker = Worker(Puppet(opening), WorkerSettings("new", **settings))
    worker.start()
    with pytest.raises(BackendError) as caught:
        worker.ready()
    assert problem in str(caught.value)
    assert not alive(worker.process.pid)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN])
def test_a_system_that_has_no_process_left_says_so(monkeypatch, number):
    worker = Worker(Puppet(), WorkerSettings("one too many"))

    def refuse():
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(worker.process, "start", refuse)
    with pytest.raises(BackendError, match=r"one too many: cannot be started .*; free memory, or allow more processes"):
        worker.start()
    assert worker.connection.closed
    worker.close()


def test_a_system_that_has_no_file_left_says_so():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(BackendError, match=r"cannot be started \(Too many open files\); allow more open files"):
            Worker(Puppet(), WorkerSettings("one too many"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_readiness_says_what_is_hosted_and_close_is_harmless_at_any_time():
    worker = Worker(Puppet(), WorkerSettings("twice"))
    worker.start()
    assert worker.ready() == ("a puppet",)
    worker.close()
    worker.close()
    Worker(Puppet(), WorkerSettings("never started")).close()


def test_close_does_not_wait_for_work_under_way():
    with Worker(Puppet(), WorkerSettings("busy")) as worker:
        worker.send(("sleep", 600))
    assert not alive(worker.process.pid)


def test_what_a_worker_prints_does_not_get_among_results(capfd):
    with Worker(Puppet(), WorkerSettings("talker")) as worker:
        worker.call(("print", "a page"))
        worker.call(("run", ["echo", "another page"]))
    out, err = capfd.readouterr()
    assert (out, err.split("\n")[:2]) == ("", ["a page", "another page"])


def long_sleep(file):
    """A command that writes the number of its process into a file, and sleeps."""
    return ["sh", "-c", f"echo $$ > '{file}.new'; mv '{file}.new' '{file}'; exec sleep 600"]


def pid_in(file):
    for _ in range(1200):
        if file.exists():
            return int(file.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{file} was never written")


@pytest.mark.parametrize("ended", ["silent for too long", "closed at work", "closed", "died"])
def test_what_a_worker_has_started_ends_with_it(tmp_path, ended):
    file = tmp_path / "pid"
    what = {"closed": "leave", "died": "leave and exit"}.get(ended, "run")
    with Worker(Puppet(), WorkerSettings("with a child")) as worker:
        worker.send((what, long_sleep(file)))
        pid = pid_in(file)
        if ended == "silent for too long":
            worker.end_silent(1.0)
        if ended in ("silent for too long", "died"):
            with pytest.raises(BackendError, match="was killed" if ended != "died" else "code 9"):
                worker.answer()
            assert wait_for_end(pid)
        elif ended == "closed":
            worker.answer()
    assert wait_for_end(pid)


def test_a_process_that_cannot_be_killed_is_not_waited_for_for_ever(monkeypatch):
    with Worker(Puppet(), WorkerSettings("in a driver")) as worker:
        waits = []
        monkeypatch.setattr(worker, "_group", lambda: None)
        monkeypatch.setattr(worker.process, "kill", lambda: None)
        monkeypatch.setattr(worker.process, "join", waits.append)
        worker.end_silent(1.0)
        assert len(waits) == 1 and waits[0] is not None
        assert worker.process.is_alive()
        assert worker.process not in multiprocessing.active_children()  # for which Python waits when it ends
        monkeypatch.undo()
    assert not alive(worker.process.pid)


PARENT = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_backends_worker import Puppet, long_sleep, pid_in
from hsim.backends.worker import Worker, WorkerSettings

if __name__ == "__main__":
    workers = [Worker(Puppet(), WorkerSettings(f"child {{i}}")) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.ready()
    files = [Path({folder!r}) / name for name in ("idle", "at work")]
    workers[0].call(("leave", long_sleep(files[0])))
    workers[1].send(("run", long_sleep(files[1])))
    print(*(worker.process.pid for worker in workers), *map(pid_in, files), flush=True)
    {ending}
"""


@pytest.mark.parametrize(
    "ending", ["time.sleep(600)", "raise SystemExit('an error of the parent')", "import os; os._exit(1)"]
)
def test_workers_end_with_their_parent_idle_or_at_work(tmp_path, ending):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), ending=ending))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    try:
        assert len(pids) == 4
        if "sleep" in ending:
            assert all(alive(pid) for pid in pids)
            parent.kill()
        parent.wait()
        assert all(wait_for_end(pid) for pid in pids)
    finally:
        parent.kill()
        parent.stdout.close()
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_one_core_is_kept_for_the_loop_where_there_are_more_than_two(monkeypatch):
    def dealt(cores, workers):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
        return shared_cores(workers)

    assert dealt([0, 1], 1) == [(0, 1)]
    assert dealt([0, 1], 2) == [(0,), (1,)]
    assert dealt([0, 1], 3) == [(0,), (1,), (0,)]
    assert dealt([4, 5, 6], 1) == [(5, 6)]
    assert dealt(range(8), 3) == [(1, 2), (3, 4), (5, 6)]
    assert dealt([3], 2) == [(3,), (3,)]


def test_cores_hold_the_worker():
    core = min(os.sched_getaffinity(0))
    with Worker(Puppet(), WorkerSettings("pinned", cores=(core,))) as worker:
        assert worker.call(("cores", None)).value == [core]


def test_tools_are_hosted_by_name():
    with Worker(ToolSpec({"flat-search": 50, "sql-aggregate": 20}), WorkerSettings("tools")) as worker:
        assert len(worker.call(("flat-search", 50)).value) == 10
        with pytest.raises(BackendError, match="30 units asked for, prepared for 20"):
            worker.call(("sql-aggregate", 30))
    worker = Worker(ToolSpec({"flat-serch": 5}), WorkerSettings("tools"))
    worker.start()
    with pytest.raises(BackendError, match="did you mean 'flat-search'"):
        worker.ready()


MODEL = ModelArchitecture(
    name="tiny", layers=2, hidden_size=32, intermediate_size=48, attention_heads=4, kv_heads=2, head_dim=8,
    vocabulary=97, max_context_tokens=256, source="test",
)  # fmt: skip


@pytest.mark.torch
def test_a_decoder_in_a_worker_answers_as_one_at_hand():
    pytest.importorskip("torch")
    from hsim.backends.decoder import Decoder
    from hsim.backends.device import CpuDevice

    spec = DecoderSpec(MODEL, slots=3, max_context_tokens=128)
    at_hand = Decoder(spec, CpuDevice())
    worker = Worker(spec, WorkerSettings("decode/0", threads=1))
    worker.start()
    assert worker.ready() == ("tiny in fp32 with random weights on cpu",)
    for plan in (
        [StepItem(0, 0, 50), StepItem(2, 0, 7)],
        [StepItem(0, 50, [4]), StepItem(1, 0, 64), StepItem(2, 7, [9])],
    ):
        done = worker.call(plan)
        assert done.value == at_hand.step(plan)
        assert done.end_s > done.start_s
    with pytest.raises(BackendError, match="slot 1: start is 99, and it holds 64 tokens"):
        worker.call([StepItem(1, 99, 1)])
    assert len(worker.call([StepItem(1, 64, 1)]).value) == 1
    worker.close()
