"""Policies of your own: functions in a Python file that a scenario names as `file.py:function`.

A router takes (VisitView, PoolView) and returns the place of a device; a priority takes a VisitView and returns a rank; a
chooser takes (VisitView, places) and returns the place of a pool. They see views, never what is still to come. The file is
executed, so hsim does it only where --allow-code says so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsim.description.yamlfile import Document, leaves
from hsim.errors import DescriptionError, MistakeError


def is_own(name: str) -> bool:
    """Whether a policy's name is that of a function in a file."""
    return ".py:" in name


def refuse_code(document: Document) -> None:
    """Raises DescriptionError where a scenario names a policy of the user's own."""
    for path, name in leaves(document.data):
        if (
            path[-1] != "source" and isinstance(name, str) and is_own(name)
        ):  # a source is words, perhaps of a file's line
            raise _not_allowed(name, document.where(path))


def own_code(data: Any, beside: Path) -> dict[str, str]:
    """The text of each file from which a scenario's data takes policies of the user's own; not of what those import."""
    names = {value.rpartition(":")[0] for _, value in leaves(data) if isinstance(value, str) and is_own(value)}
    return {name: file.read_text() for name in sorted(names) if (file := _found(name, beside))}


def own_policy(name: str, beside: Path, allowed: bool, where: str) -> Callable[..., Any]:
    """The function that `file.py:function` names, the file beside the scenario or in the working directory.

    Raises DescriptionError where code is not allowed, or is not there.
    """
    file_name, _, function_name = name.rpartition(":")
    if not allowed:
        raise _not_allowed(name, where)
    file = _found(file_name, beside)
    if file is None:
        raise MistakeError(where, f"there is no file {file_name!r}", f"it is looked for in {beside} and here")
    spec = importlib.util.spec_from_file_location(f"hsim_own_{file.stem}", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise MistakeError(where, f"{file} has no function {function_name!r}", "define it there")
    return function  # type: ignore[no-any-return]  # whatever it returns is its own


def _found(file_name: str, beside: Path) -> Path | None:
    return next((file for file in (beside / file_name, Path(file_name)) if file.is_file()), None)


def _not_allowed(name: str, where: str) -> DescriptionError:
    return DescriptionError(where, f"{name!r} is code of your own", "add --allow-code if you trust it")
