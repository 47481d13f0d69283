"""People's own stages in worker processes: which a file declares, and each as an operation. Nothing else imports it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsim.backends.hosts import Opened
from hsim.backends.tools import OPERATIONS, LiveOperation, LiveTool
from hsim.backends.worker import Worker, WorkerSettings
from hsim.description.hardware import OperationCode
from hsim.errors import BackendError
from hsim.stages import MARK, Declared

IMPORT_S = 120.0


def digest(file: Path) -> str:
    """SHA-256 of a file of code. Raises BackendError where it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise BackendError(str(file), f"cannot be read ({error.strerror})", "name a file of Python") from None


@dataclass(frozen=True)
class Declarations:
    """A Host (see hosts) that imports a file of stages. Opened, it answers any request with what each is declared as."""

    file: str

    def open(self) -> Opened:
        """See Host."""
        found = {name: getattr(function, MARK) for name, function in _functions(Path(self.file)).items()}
        return Opened(lambda request: found, ())


def declared_in(file: Path) -> dict[str, Declared]:
    """The stages that a file declares, by name, found out in a process of its own.

    Raises BackendError for a file that cannot be imported, declares none, or one that cannot be measured.
    """
    digest(file)
    where = str(file)
    with Worker(Declarations(str(file.resolve())), WorkerSettings(where, start_timeout_s=IMPORT_S)) as worker:
        found: dict[str, Declared] = worker.call("declarations").value
    if not found:
        raise BackendError(where, "declares no stage", "put @hsim.stages.stage(unit=..., sizes=...) above a function")
    for name in found:
        if name in OPERATIONS:
            raise BackendError(f"{where}: {name}", "is the name of an operation of hsim's own", "give it another name")
    return found


def own_operation(name: str, code: OperationCode) -> LiveOperation:
    """A stage of a person's own as an operation. Raises BackendError where the file does not declare it."""
    file = Path(code.file)
    functions = _functions(file)
    if name not in functions:
        raise BackendError(f"{file}: {name}", "is not declared as a stage", f"declared are {', '.join(functions)}")
    what = f"your own, of {file}" + ("" if digest(file) == code.sha256 else ", CHANGED since it was calibrated")
    return LiveOperation(getattr(functions[name], MARK).unit, lambda size: LiveTool(name, what, size, functions[name]))


def _functions(file: Path) -> dict[str, Any]:
    """The functions that a file declares as stages, by name: importing it runs it."""
    spec = importlib.util.spec_from_file_location(f"stages_of_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise BackendError(str(file), "is no file of Python", "give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.parent))  # what it imports may stand beside it
    spec.loader.exec_module(module)  # what it raises, the worker tells
    return {name: value for name, value in vars(module).items() if isinstance(getattr(value, MARK, None), Declared)}
