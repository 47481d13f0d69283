"""Stages of a person's own: declared once, measured, simulated and executed, and only where code is allowed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from calibrated_world import World
from systems import agents, prepared_of

from hsim.backends.code import declared_in
from hsim.backends.hosts import ToolSpec
from hsim.backends.worker import Worker, WorkerSettings
from hsim.calibrate.measure import Workers
from hsim.calibrate.options import CalibrationOptions
from hsim.calibrate.run import calibrate
from hsim.calibrate.work import Unit
from hsim.description.catalogue import load_profile
from hsim.description.hardware import CpuProfile, OperationCode
from hsim.drivers.live import Stand
from hsim.errors import BackendError, CalibrationError, DescriptionError
from hsim.stages import Declared
from hsim.validate.quantities import accounted

DOCS = Path(__file__).parent.parent / "docs" / "calibration.md"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The file that docs/calibration.md shows."""
    (text,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(text.splitlines()) <= 12
    file = tmp_path / "stages.py"
    file.write_text(text)
    return file


def written(folder: Path, body: str, decorator: str = '@stage(unit="page", sizes=(1, 2, 4))') -> Path:
    file = folder / "stages.py"
    file.write_text(f"from hsim.stages import stage\n\n{decorator}\ndef mine(pages):\n    {body}\n")
    return file


def code(file: Path, timeout_s: float = 60.0) -> OperationCode:
    return OperationCode(file=str(file), sha256="of another day", timeout_s=timeout_s)


def test_the_example_of_the_docs_is_declared_and_works(example: Path) -> None:
    (declared,) = declared_in(example).items()
    name, of = declared
    with Worker(ToolSpec({name: of.sizes[-1]}, {name: code(example)}), WorkerSettings("own")) as worker:
        done = worker.call((name, of.sizes[0]))
    assert done.end_s > done.start_s


@pytest.mark.parametrize(
    "body",
    [
        "from dataclasses import make_dataclass; return make_dataclass('Page', ['number'])(pages)",
        "return Page()",
        "return (page for page in range(pages))",
        "return lambda: pages",
    ],
)
def test_whatever_it_returns_stays_in_its_worker(tmp_path: Path, body: str) -> None:
    file = written(tmp_path, body)
    file.write_text(file.read_text() + "\n\nclass Page:\n    pass\n")  # of a module that this process has not
    with Worker(ToolSpec({"mine": 4}, {"mine": code(file)}), WorkerSettings("own")) as worker:
        assert worker.call(("mine", 2)).value is None


def test_calibration_measures_it_first_and_its_profile_says_whose_code_it_is(example: Path, tmp_path: Path) -> None:
    options = CalibrationOptions(budget_s=200.0, out=tmp_path, simulate=False, stages=example, allow_code=True)
    world = World()
    calibrate(options, tools=world.tools())
    (name,) = declared_in(example)
    assert any(unit.parameters.get("name") == name for unit in world.asked)
    profile, _ = load_profile("imaginary-4c-cpu", CpuProfile, "test", tmp_path)
    own = profile.operations[name].code
    assert own is not None and own.file == str(example) and len(own.sha256) == 64
    assert profile.operations["tokenise"].code is None


def test_a_stage_that_was_changed_is_measured_again(tmp_path: Path) -> None:
    """Its profile names the code that was measured: what another one took is not gone on with."""
    file = written(tmp_path, "return pages")
    options = CalibrationOptions(
        budget_s=200.0, out=tmp_path, simulate=False, stages=file, allow_code=True, name="mine", resume=True
    )

    def asked_of_mine() -> list[str]:
        world = World()
        calibrate(options, tools=world.tools())
        return [unit.key for unit in world.asked if unit.key.startswith("operation cpu name=mine") and unit.round == 1]

    first = asked_of_mine()
    assert len(first) == 3 and not asked_of_mine()
    written(tmp_path, "return 2 * pages")
    assert len(asked_of_mine()) == 3


# ---- measured in workers, with torch


def timed(name: str, units: int, workers: int = 1) -> Unit:
    return Unit("operation", "cpu", {"name": name, "units": units, "size": 8, "workers": workers}, 0, 0.1)


@pytest.mark.torch
def test_a_stage_that_waits_takes_as_long_as_it_waits(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = written(tmp_path, "import time; time.sleep(0.01 * pages)")
    workers = Workers(1, {"mine": code(file)})
    try:
        reading = workers.measure(timed("mine", 4))
    finally:
        workers.close()
    assert reading.seconds is not None and reading.seconds >= 0.04


@pytest.mark.torch
def test_a_stage_that_hangs_costs_its_limit_once_and_not_the_calibration(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = written(tmp_path, "import time; time.sleep(600)")
    workers = Workers(1, {"mine": code(file, timeout_s=0.5)})
    try:
        readings = [workers.measure(timed("mine", units)) for units in (1, 2, 4, 8, 16)]
        assert all("gave no answer within 0.5 s" in reading.failure for reading in readings)
        assert workers.measure(timed("tokenise", 8)).seconds
    finally:
        workers.close()


@pytest.mark.torch
def test_a_core_s_worker_that_is_killed_while_idle_costs_one_unit() -> None:
    pytest.importorskip("torch")
    workers = Workers(1)
    try:
        assert workers.measure(timed("tokenise", 8, workers=2)).seconds
        workers._cores[1].process.kill()
        workers._cores[1].process.join()
        assert "SIGKILL" in workers.measure(timed("tokenise", 8, workers=2)).failure
        assert workers.measure(timed("tokenise", 8, workers=2)).seconds
    finally:
        workers.close()


def test_nothing_of_it_is_executed_unless_that_is_allowed(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    file = written(tmp_path, "return pages")
    file.write_text(f"open({str(touched)!r}, 'w')\n" + file.read_text())
    with pytest.raises(CalibrationError, match=r"stages.py: is code.*--allow-code"):
        calibrate(CalibrationOptions(out=tmp_path, stages=file), tools=World().tools())
    assert not touched.exists()
    declared_in(file)
    assert touched.exists()


@pytest.mark.parametrize(
    ("body", "decorator", "problem"),
    [
        ("return pages", "", "declares no stage"),
        ("return pages", '@stage(unit="page", sizes=(1, 2))', "give 3 different ones or more"),
        ("return pages", '@stage(unit="page", sizes=("a", "b", "c"))', r"stage mine: sizes are \['a', 'b', 'c'\]"),
        ("return pages", '@stage(unit="page", sizes=(1, 2, 2))', "give 3 different ones or more"),
        ("return pages", '@stage(unit="page", sizes=(-1, 2, 4))', "none below 0"),
        ("return pages", '@stage(unit="page", sizes=(0.5, 2, 4))', "whole numbers"),
        (
            "return pages",
            '@stage(unit="page", sizes=(1, 2, 4), timeout_s=0)',
            "timeout_s is 0; give a number of seconds above 0",
        ),
        ("return pages", '@stage(unit="page", sizes=(1, 2, 4), timeout_s=float("nan"))', "timeout_s is nan"),
        ("yield pages", '@stage(unit="page", sizes=(1, 2, 4))', "does nothing when it is called"),
        ("return pages", "@stagger", "NameError: name 'stagger' is not defined"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_before_anything_is_measured(
    tmp_path: Path, body: str, decorator: str, problem: str
) -> None:
    with pytest.raises(BackendError, match=problem):
        declared_in(written(tmp_path, body, decorator))


def test_only_what_was_declared_is_a_stage_whatever_else_a_file_holds(tmp_path: Path) -> None:
    file = written(tmp_path, "return pages", '@stage(unit="page", sizes=numpy.array([4, 1, 2]), timeout_s=5)')
    with_more = "import numpy\nfrom unittest.mock import MagicMock\nanything = MagicMock()\n"
    file.write_text(with_more + file.read_text())
    assert declared_in(file) == {"mine": Declared("page", (1, 2, 4), 5)}


def own_tool(tmp_path: Path, body: str, timeout_s: float = 60.0) -> Any:
    """A closed loop one of whose tools is a person's own, with hand-made costs; its decoder is a puppet's."""
    data = agents(split=False, cores=2, prefix_caching=False, max_num_seqs=2)
    data["workload"] |= {"arrivals": {"kind": "closed", "users": 2}, "tasks": 4}
    prepared = prepared_of(data)
    own = {"code": code(written(tmp_path, body), timeout_s)}
    tool = next(iter(prepared.tools.values())).operation
    cpu = prepared.system.tier_of("agents").cpu
    cpu.operations[tool] = cpu.operations[tool].model_copy(update=own)
    return prepared, tool


def test_a_live_run_refuses_it_unless_that_is_allowed(tmp_path: Path) -> None:
    prepared, tool = own_tool(tmp_path, "return pages")
    with pytest.raises(DescriptionError, match=rf"operation '{tool}' is code of your own.*--allow-code"):
        Stand((prepared,), "cpu")
    Stand((prepared,), "cpu", allow_code=True)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise RuntimeError('no paper')", "failed with RuntimeError: no paper"),
        ("import time; time.sleep(60)", "gave no answer within 1 s and was killed"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
    ],
)
def test_what_goes_wrong_in_it_is_told_in_its_own_words(tmp_path: Path, body: str, told: str) -> None:
    spec = ToolSpec({"mine": 4}, {"mine": code(written(tmp_path, body))})
    with (
        Worker(spec, WorkerSettings("own", answer_timeout_s=1)) as worker,
        pytest.raises(BackendError, match=told),
    ):
        worker.call(("mine", 2))


def test_nobody_is_accounted_for_twice() -> None:
    from hsim.log import Log, Outcome

    log = Log()
    for number, outcome in enumerate((Outcome.SERVED, Outcome.FAILED, Outcome.SHED)):
        log.tasks.append((number, 0.0, 1.0, outcome))
    found = accounted(log, 5)
    assert (found.served, found.failed, found.shed, found.timed_out, found.unfinished) == (1, 1, 1, 0, 2)
