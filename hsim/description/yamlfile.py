"""Strict YAML: plain data that remembers its lines, checked against a pydantic model with errors a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hsim.errors import MistakeError

KeyPath = tuple[str | int, ...]
SETTING = "--set "  # with which the place of what a setting gave begins


class Strict(BaseModel):
    """Base of everything described in YAML: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


M = TypeVar("M", bound=Strict)

# YAML 1.2 core schema. PyYAML's own resolver is YAML 1.1, where `on` is true, `1e3` a string and `12:30` is 750.
_INT = re.compile(r"[-+]?[0-9]+\Z")
MOST_DIGITS = 300  # of a whole number: what a double can hold; Python refuses to read thousands
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)


# The C parser where PyYAML has it: a scenario and its profiles are read in milliseconds.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: its data, and where each key stands. `first_of_many` says what was taken from lists of choices."""

    file: str
    data: Any
    places: dict[KeyPath, str] = field(default_factory=dict)
    first_of_many: dict[str, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """`file:line: path.to.key` of the deepest known key of `path`."""
        known = path
        while known and known not in self.places:
            known = known[:-1]
        place = self.places.get(known, self.file)
        dotted = ".".join(map(str, path))
        return f"{place}: {dotted}" if dotted else place


def leaves(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every plain value of a document with its path."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def parse_scalar(text: str) -> Any:
    """The value of a plain YAML 1.2 scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    return text


def read_document(file: str | Path) -> Document:
    """Parse a YAML file strictly: YAML 1.2 scalars, no duplicate keys.

    Raises DescriptionError for a file that is missing, unreadable or not YAML.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MistakeError(str(file), "there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MistakeError(str(file), f"cannot be read ({error})") from None
    return parse_document(text, str(file))


def parse_document(text: str, file: str) -> Document:
    """Parse YAML text; `file` is what errors call it."""
    try:
        _refuse_aliases(text, file)
        node = yaml.compose(text, _LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}" if mark else file
        raise MistakeError(place, f"is not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise MistakeError(file, f"is not valid YAML: {error}") from None
    document = Document(file, None)
    data = None if node is None else _build(node, (), document)
    return Document(file, data, document.places)


def _refuse_aliases(text: str, file: str) -> None:
    # A description does not need them, and a few lines of nested aliases can fill any memory.
    for event in yaml.parse(text, _LOADER) if "*" in text else ():
        if isinstance(event, yaml.AliasEvent) and event.start_mark is not None:
            place = f"{file}:{event.start_mark.line + 1}"
            raise MistakeError(place, "has an alias (*name), which hsim does not read", "write the value out")


def _build(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    document.places.setdefault(path, f"{document.file}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.ScalarNode):
        plain = node.style not in ("'", '"', "|", ">")
        if plain and len(node.value) > MOST_DIGITS and _INT.match(node.value):
            place = f"{document.file}:{node.start_mark.line + 1}"
            raise MistakeError(place, f"is a number of {len(node.value):,} digits", f"use at most {MOST_DIGITS}")
        return parse_scalar(node.value) if plain else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), document) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    built: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = _build(key_node, (*path, "?"), document)
        place = f"{document.file}:{key_node.start_mark.line + 1}"
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise MistakeError(place, f"a key must be a word, not {key!r}", "quote it")
        key = str(key)
        if key in built:
            first = document.places[(*path, key)]
            raise MistakeError(place, f"the key {key!r} is given twice (first at {first})", "remove one")
        document.places[(*path, key)] = place
        built[key] = _build(value_node, (*path, key), document)
    return built


def with_settings(document: Document, settings: Sequence[str]) -> Document:
    """The document with `path.to.key=value` edits applied, as `--set` gives them; values are YAML."""
    if not settings:
        return document
    data, places = _copy(document.data), dict(document.places)
    for setting in settings:
        place = f"{SETTING}{setting}"
        dotted, equals, text = setting.partition("=")
        if not equals or not dotted:
            raise MistakeError(place, "has no value", "write --set path.to.key=value")
        path = _set(data, dotted.split("."), parse_document(text, place).data, place)
        places = {p: at for p, at in places.items() if p[: len(path)] != path}
        for length in range(1, len(path)):
            places.setdefault(path[:length], place)  # a section that the setting made
        places[path] = place
    return Document(document.file, data, places)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def _set(data: Any, keys: list[str], value: Any, place: str) -> KeyPath:
    """Set what stands at the keys, and return their path: a number is an index in a list, a word in a mapping."""
    at, path = data, list[str | int]()
    for i, key in enumerate(keys):
        path.append(int(key) if isinstance(at, list) and key.isdigit() else key)
        here, last = path[-1], i == len(keys) - 1
        settable = isinstance(at, dict) or (isinstance(at, list) and isinstance(here, int) and here < len(at))
        if not settable:
            what = f"{'.'.join(keys[:i])} is {at!r}" if i else "the scenario is no mapping"
            raise MistakeError(place, what, f"no key {key!r} can be set in it")
        if last:
            at[here] = value
        else:
            at = at.setdefault(here, {}) if isinstance(at, dict) else at[here]
    return tuple(path)


def validated(document: Document, model: type[M]) -> M:
    """The document as `model`. Raises DescriptionError that names file, line, key and remedy of the first fault."""
    if not isinstance(document.data, dict):
        raise MistakeError(document.file, "is empty or not a mapping", f"write the keys of a {model.__name__}")
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        first = min(error.errors(), key=_severity)
        raise _explained(first, document, model) from None


# Sections whose keys a scenario chooses: what each is.
NAMED: dict[KeyPath, str] = {("pools",): "pool", ("fleet",): "tier", ("workload", "classes"): "class"}


def _misnamed(document: Document, path: KeyPath) -> MistakeError | None:
    """What is wrong where a key is missing from a pool, tier or class that only a setting of one of its other keys made."""
    section = next((section for section in NAMED if path[: len(section)] == section), path)
    made = path[: len(section) + 1]
    place = document.places.get(made, "")
    keys = place.removeprefix(SETTING).partition("=")[0].split(".")
    if made == section or not place.startswith(SETTING) or len(keys) <= len(made):
        return None
    known = document.data
    for key in section:
        known = known[key]
    remedy = did_you_mean(str(made[-1]), [str(other) for other in known if other != made[-1]])
    return MistakeError(place, f"there is no {NAMED[section]} {made[-1]!r}", remedy)


def _severity(error: Any) -> tuple[int, int]:
    # A misspelt key also makes its right spelling missing: the misspelling is the one to tell.
    return (0 if error["type"] == "extra_forbidden" else 1, len(error["loc"]))


def _explained(error: Any, document: Document, model: type[BaseModel]) -> MistakeError:
    path = _path_in_data(error["loc"], document.data, missing=error["type"] == "missing")
    where, value = document.where(path), error.get("input")
    if error["type"] == "extra_forbidden":
        known = sorted(_siblings(error["loc"], model))
        return MistakeError(document.where(path), f"unknown key {path[-1]!r}", did_you_mean(str(path[-1]), known))
    if error["type"] == "missing":
        return _misnamed(document, path) or MistakeError(where, f"{path[-1]!r} is missing", "add it")
    if error["type"] == "union_tag_not_found":
        kinds = sorted(kind for m in _models_at((*error["loc"], ""), model) for kind in _kinds_of(m))
        return MistakeError(where, "has no kind", f"say which: {', '.join(kinds)}")
    if error["type"] == "union_tag_invalid":
        kinds = re.findall(r"'([^']+)'", str(error["ctx"]["expected_tags"]))
        kind = value.get("kind")
        return MistakeError(where, f"kind is {kind!r}", did_you_mean(str(kind), kinds))
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if error["type"] in ("value_error", "assertion_error"):
        problem, _, remedy = message.partition("; ")
        lacking = problem.removesuffix(" is missing")
        misnamed = _misnamed(document, (*path, *lacking.split("."))) if lacking != problem else None
        return misnamed or MistakeError(where, problem, remedy)
    return MistakeError(where, f"is {value!r}", message[0].lower() + message[1:])


def _path_in_data(loc: Sequence[str | int], data: Any, missing: bool) -> KeyPath:
    """A pydantic location without the names of union branches that it mixes into the path."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        inside = (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int))
        if inside:
            data = data[part]
            path.append(part)
        elif isinstance(data, dict) and str(part).partition(".")[0] in data:  # flattened, as `assume` is
            path.extend(str(part).split("."))
        elif missing and i == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _siblings(loc: Sequence[str | int], model: type[BaseModel]) -> set[str]:
    """The keys that would have been right where an unknown one was found."""
    return {name for m in _models_at(loc, model) for name in m.model_fields}


def _models_at(loc: Sequence[str | int], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models of which the last part of a location may be a key."""
    models: list[Any] = [model]
    for part in loc[:-1]:
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [m for f in fields for m in _models_in(f)] or models
        tagged = [m for m in models if part in (m.__name__, *_kinds_of(m))]
        models = tagged or models
    return models


def _kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    kind = model.model_fields.get("kind")
    return getattr(kind.annotation, "__args__", ()) if kind else ()


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A remedy for a name that is not known: the nearest one, or all of them."""
    near = difflib.get_close_matches(word, known, 1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if known else "nothing may stand here"
