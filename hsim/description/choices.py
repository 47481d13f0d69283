"""Lists that stand for choices: what `hsim plan` chooses from, and of which every other command takes the first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hsim.description.yamlfile import SETTING, Document, KeyPath
from hsim.errors import DescriptionError

SECTIONS = ("fleet", "pools")  # where one value stands, a list stands for choices
Choice = str | float
Choices = dict[tuple[str, ...], list[Choice]]


def choices_of(document: Document) -> Choices:
    """Every list of choices by its path, in the order of the scenario. Raises DescriptionError for one that is none."""
    return dict(_lists(document))


def _lists(document: Document) -> Iterator[tuple[tuple[str, ...], list[Choice]]]:
    for section in SECTIONS:
        entries = document.data.get(section) if isinstance(document.data, dict) else None
        for name, entry in (entries if isinstance(entries, dict) else {}).items():
            inside = entry.items() if isinstance(entry, dict) else [("", entry)]
            for key, value in inside:
                path = tuple(filter(None, (section, str(name), str(key))))
                if isinstance(value, list):
                    _check(value, document.where(path))
                    yield path, value


def _check(values: list[Any], where: str) -> None:
    if not values:
        raise DescriptionError(where, "is an empty list", "list choices to try")
    for value in values:
        if isinstance(value, list | dict) or value is None:
            raise DescriptionError(where, f"{value!r} is no choice", "list plain values")
    if len({json.dumps(value) for value in values}) < len(values):
        raise DescriptionError(where, f"{values!r} names a choice twice", "remove one")


def first_of(choices: Choices) -> dict[tuple[str, ...], Choice]:
    """The first of each list."""
    return {path: values[0] for path, values in choices.items()}


def with_chosen(document: Document, chosen: Mapping[tuple[str, ...], Any]) -> Document:
    """The document with plain values in place of its lists."""
    if not chosen:
        return document
    data = json.loads(json.dumps(document.data))
    for path, value in chosen.items():
        at = data
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    places: dict[KeyPath, str] = {p: at for p, at in document.places.items() if p[:-1] not in chosen}
    said = {".".join(path): str(value) for path, value in chosen.items()}
    for path in chosen:
        if places.get(path, "").startswith(SETTING):  # a setting that listed choices: name the one
            places[path] = f"{SETTING}{'.'.join(path)}={said['.'.join(path)]}"
    return Document(document.file, data, places, first_of_many=said)
