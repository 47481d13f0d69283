"""What docs/workloads.md shows is what hsim takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hsim.description.quantities import Constant, Distribution
from hsim.description.scenario import Arrivals, Workload
from hsim.description.yamlfile import parse_document, validated
from hsim.workload.traces.csv_formats import FORMATS, OWN

DOCS = (Path(__file__).resolve().parent.parent / "docs" / "workloads.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_workloads(example: str) -> None:
    validated(parse_document(example, "docs/workloads.md"), Workload)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


def kinds(union: object) -> dict[str, set[str]]:
    """The keys of each kind of a discriminated union."""
    members = union.__args__[0].__args__  # type: ignore[attr-defined]
    return {m.model_fields["kind"].annotation.__args__[0]: set(m.model_fields) - {"kind"} for m in members}


def documented(kind: str) -> str:
    """The rows of tables that begin with this kind."""
    return " ".join(line for line in DOCS.splitlines() if line.startswith(f"| `{kind}`"))


def test_every_kind_of_arrivals_is_documented_with_its_keys() -> None:
    for kind, keys in kinds(Arrivals).items():
        assert all(f"`{key}`" in documented(kind) for key in keys), kind


def test_every_distribution_is_documented_with_its_keys() -> None:
    assert Constant in Distribution.__args__[0].__args__  # type: ignore[attr-defined]
    for kind, keys in kinds(Distribution).items():
        assert all(f"`{key}`" in documented(kind) for key in keys - {"at_least", "at_most"}), kind


def test_every_format_is_documented_with_its_columns() -> None:
    rows = [line for line in DOCS.splitlines() if line.startswith("| ")]
    for name, needed, _ in FORMATS:
        (row,) = [row for row in rows if row.startswith(f"| {name}")]
        assert all(column in row for column in needed), name
    (own,) = [row for row in rows if row.startswith("| hsim")]
    assert all(column in own for column in OWN)
