"""Laws of the source itself, by ast: layers, what policies may see, who prints, what is imported when."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hsim

HSIM = Path(hsim.__file__).parent
LAYERS = [
    "errors processes units", "drawing description stages", "workload", "log", "costs", "policies", "metrics", "backends", "engine", "drivers",
    "calibrate", "runs", "comparison sweeps validate", "plan", "report", "dashboard", "cli", "__main__",
]  # fmt: skip
LEVEL = {name: number for number, names in enumerate(LAYERS, 1) for name in names.split()}


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """(line, hsim module) of everything of hsim that a module imports, `from . import x` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "hsim")
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            if source == "hsim":
                yield from ((node.lineno, f"hsim.{alias.name}") for alias in node.names)
            elif source.startswith("hsim."):
                yield node.lineno, source


def violations(root: Path) -> Iterator[str]:
    """Every import in a package hsim at `root` that does not go to a lower layer or stay within its own."""
    for file in sorted(root.rglob("*.py")):
        here = file.relative_to(root).with_suffix("").parts[0]
        if here == "__init__":
            continue
        module = ".".join(("hsim", *file.relative_to(root).with_suffix("").parts))
        for line, name in imports(ast.parse(file.read_text()), module):
            there = name.split(".")[1]
            if there != here and not LEVEL.get(there, 99) < LEVEL.get(here, 0):
                yield f"{file}:{line}: {here} ({LEVEL.get(here)}) imports {name} ({LEVEL.get(there)})"


def test_a_module_imports_only_from_lower_layers() -> None:
    assert not list(violations(HSIM))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("costs/roof.py", "from hsim.engine.replica import Replica"),
        ("costs/roof.py", "import hsim.engine.replica"),
        ("costs/roof.py", "from hsim import cli"),
        ("costs/roof.py", "from ..engine import replica"),
        ("costs/roof.py", "def late():\n    import hsim.drivers"),
        ("sweeps.py", "from hsim.comparison import x"),
        ("units.py", "from hsim.errors import HsimError"),
        ("surprise/new.py", "from hsim.units import GB"),
    ],
)
def test_the_layer_law_catches(tmp_path: Path, file: str, line: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(f"import math\n{line}\n")
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "fine.py").write_text(
        "import hsim.units\nfrom hsim.engine.other import x\nfrom . import y\n"
    )
    (found,) = violations(tmp_path)
    assert found.startswith(f"{tmp_path / file}:{3 if line.startswith('def') else 2}: ")


def _run_when_imported(tree: ast.Module) -> ast.Module:
    """The module without functions, and without what only a type checker reads."""

    def typing_only(node: ast.stmt) -> bool:
        return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")

    skipped = (ast.FunctionDef, ast.AsyncFunctionDef)
    return ast.Module([n for n in tree.body if not isinstance(n, skipped) and not typing_only(n)], [])


def test_modules_import_each_other_without_circles() -> None:
    graph = {}
    for file in HSIM.rglob("*.py"):
        module = ".".join(("hsim", *file.relative_to(HSIM).with_suffix("").parts))
        graph[module] = {name for _, name in imports(_run_when_imported(ast.parse(file.read_text())), module)}
    assert len(graph) > 30
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def _mentions(folder: str, name: str) -> Iterator[str]:
    """Where sources name something: as a variable, an attribute, a parameter or a string."""
    for file in sorted((HSIM / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            words = (getattr(node, key, None) for key in ("id", "attr", "arg", "value"))
            named = isinstance(node, ast.Name | ast.Attribute | ast.arg | ast.keyword | ast.Constant)
            if named and any(isinstance(word, str) and word == name for word in words):
                yield f"{file}:{node.lineno}"


def test_policies_never_read_a_true_output_length() -> None:
    assert list(_mentions("policies", "max_output_tokens")), "the search finds nothing at all"
    assert not list(_mentions("policies", "output_tokens"))


def test_only_the_command_line_prints() -> None:
    assert not [at for at in _mentions(".", "print") if not at.startswith(str(HSIM / "cli.py"))]


def test_only_units_holds_conversions() -> None:
    """1e9, 2**30 and 3600 have names, and stand in one file."""
    found = []
    for file in sorted(HSIM.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            power = isinstance(node, ast.BinOp) and ast.unparse(node) == "2 ** 30"
            if power or (
                isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value in (1e9, 3600, 3.6e6)
            ):
                found.append(file.name)
    assert set(found) == {"units.py"}


def test_every_module_says_what_it_is_for() -> None:
    for file in HSIM.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text())), f"{file} has no docstring"


HEAVY = {"torch", "transformers", "scipy", "pandas", "pyarrow", "streamlit", "plotly", "dask", "distributed", "faiss"}


def test_importing_hsim_loads_nothing_heavy() -> None:
    """Whatever `hsim simulate` may import starts fast, and needs none of the optional libraries.

    Three modules are torch's own rooms; a worker process imports them when it opens what it hosts.
    """
    torch_rooms = {"hsim.backends.decoder", "hsim.backends.device", "hsim.backends.encoder"}
    modules = [
        ".".join(("hsim", *file.relative_to(HSIM).with_suffix("").parts)).removesuffix(".__init__")
        for file in sorted(HSIM.rglob("*.py"))
        if file.relative_to(HSIM).parts[0] != "dashboard" and file.name != "__main__.py"
    ]
    assert "hsim.drivers.simulated" in modules
    assert torch_rooms <= set(modules)
    modules = [module for module in modules if module not in torch_rooms]
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nprint(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=HSIM.parent)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
