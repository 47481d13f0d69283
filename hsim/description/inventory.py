"""What profiles there are, what they say, where it comes from and how far it is off."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hsim.description.catalogue import profile_folders, read_profile
from hsim.description.hardware import Profile, StepTable
from hsim.description.quantities import Figure
from hsim.description.yamlfile import did_you_mean
from hsim.errors import DescriptionError

TIERS = ("measured", "published", "fitted", "transferred", "assumed")
_CALIBRATION = re.compile(r"calibration/([\w.-]+)")


@dataclass(frozen=True)
class Entry:
    """A profile that can be named in a scenario: itself, its file, and its figures by dotted path."""

    profile: Profile
    kind: str
    file: Path
    figures: dict[str, Figure]

    @property
    def tiers(self) -> dict[str, int]:
        """How many known figures stand on each tier."""
        known = [figure.tier for figure in self.figures.values() if figure.value is not None]
        return {tier: known.count(tier) for tier in TIERS if tier in known}

    @property
    def unknown(self) -> int:
        """How many figures are null."""
        return sum(figure.value is None for figure in self.figures.values())

    @property
    def rough(self) -> int:
        """How many have bounds that differ."""
        return sum(figure.low is not None and figure.low != figure.high for figure in self.figures.values())

    @property
    def calibration(self) -> str | None:
        """The calibration that it came of, by name."""
        sources = [figure.source for figure in self.figures.values()]
        sources += [self.profile.source] if isinstance(self.profile, StepTable) else []
        found = next((match for source in sources if (match := _CALIBRATION.search(source))), None)
        return found[1] if found else None


def inventory(beside: Path = Path()) -> list[Entry]:
    """Every profile that a scenario in this folder may name, by kind and name; the first folder's comes first."""
    files: dict[str, Path] = {}
    for folder in profile_folders(beside):
        for file in sorted(folder.glob("*.yaml")):
            files.setdefault(file.stem, file)
    entries = [_entry(file) for file in files.values()]
    return sorted(entries, key=lambda entry: (entry.kind, entry.profile.name))


def entry_of(name: str, beside: Path = Path()) -> Entry:
    """The profile of that name. Raises DescriptionError where there is none."""
    for folder in profile_folders(beside):
        if (file := folder / f"{name}.yaml").is_file():
            return _entry(file)
    known = sorted({file.stem for folder in profile_folders(beside) for file in folder.glob("*.yaml")})
    raise DescriptionError(name, "there is no such hardware profile", did_you_mean(name, known))


def errors_of(entry: Entry) -> list[dict[str, Any]]:
    """What its calibration found of its laws on held-out points, where calibration/<name>/fit.json is beside it."""
    if not entry.calibration:
        return []
    file = entry.file.parent.parent / "calibration" / entry.calibration / "fit.json"
    try:
        laws: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["laws"]
    except (OSError, ValueError, KeyError):
        return []
    return laws


def _entry(file: Path) -> Entry:
    profile, document = read_profile(file)
    return Entry(profile, str(document.data["kind"]), file, dict(_figures(profile, "")))


def _figures(value: Any, path: str) -> Iterator[tuple[str, Figure]]:
    """Every figure in a profile by its dotted path."""
    if isinstance(value, Figure):
        yield path, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _figures(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _figures(inner, f"{path}.{name}" if path else str(name))
