"""The tests catch seeded faults: five each time, all of them when there is time."""

from __future__ import annotations

import pytest
from mutants import MUTANTS, QUICK, ROOT, failures, mutate

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


def test_every_fault_still_has_its_place() -> None:
    """Faults are texts: when the code changes, they must be mended, not forgotten."""
    assert len(BY_NAME) == len(MUTANTS) >= 20
    for mutant in MUTANTS:
        text = (ROOT / "hsim" / mutant.file).read_text()
        assert mutate(text, mutant) != text


def test_without_a_fault_the_tests_pass() -> None:
    assert failures(None, [BY_NAME[name].test for name in QUICK]) == []


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_caught(name: str) -> None:
    mutant = BY_NAME[name]
    assert failures(mutant, [mutant.test])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - set(QUICK)))
def test_every_fault_is_caught(name: str) -> None:
    mutant = BY_NAME[name]
    assert failures(mutant, [mutant.test])
