"""The Python API: its documented examples, and that asking for it costs nothing until it is used."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import hsim
from hsim.errors import DescriptionError


def test_examples_of_the_api_hold() -> None:
    found = doctest.testmod(hsim)
    assert found.attempted > 10
    assert found.failed == 0


def test_importing_hsim_imports_nothing_else() -> None:
    code = "import hsim, sys; print([m for m in sys.modules if m.startswith('hsim.') or m in ('numpy', 'simpy', 'pydantic')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_comparing_twice_compares_twice() -> None:
    """A module of the same name would replace the function once it is imported."""
    for _ in range(2):
        assert callable(hsim.compare)
        with pytest.raises(DescriptionError, match="there is no scenario"):
            hsim.compare(["nowhere", "nowhere"])


def test_frames_hold_the_figures_of_the_study(tmp_path: Path) -> None:
    study = hsim.simulate("agents-gpu-only", ["workload.tasks=60"], replications=3, out=tmp_path)
    frame = study.to_frame()
    assert study.energy is not None
    assert frame.loc["tst_j", "value"] == study.energy.tst_j["full"]["facility"].value
    assert frame.loc["tst_j", "rough_low"] < frame.loc["tst_j", "rough_high"]
    assert set(frame.index) == set(study.figures())
    assert (tmp_path / "result.json").is_file()
