"""The output that README and guide show is what the commands print. Remake it with `python tests/test_readme.py [FILE]`."""

import contextlib
import doctest
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hsim.cli import app

ROOT = Path(__file__).resolve().parent.parent
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "guide.md"
BLOCK = re.compile(r"<!-- hsim (?P<command>[^>]*?) -->\n```text\n(?P<output>.*?)```\n<!-- end -->", re.DOTALL)
SOME_LINES = re.compile(r" \| sed -n (\d+),(\d+)p$")


def printed(command: str) -> str:
    """What a command prints, of it the lines that a `| sed -n 3,7p` behind it lets through."""
    lines = SOME_LINES.search(command)
    outcome = CliRunner().invoke(app, shlex.split(SOME_LINES.sub("", command)))
    assert outcome.exit_code == 0, outcome.output
    shown = [line.rstrip() + "\n" for line in outcome.stdout.splitlines()]
    return "".join(shown[int(lines[1]) - 1 : int(lines[2])] if lines else shown)


@pytest.mark.parametrize("file", [README, pytest.param(GUIDE, marks=pytest.mark.slow)], ids=lambda file: file.name)
def test_documents_show_what_the_commands_print(file: Path) -> None:
    blocks = list(BLOCK.finditer(file.read_text(encoding="utf-8")))
    assert blocks
    for block in blocks:
        assert printed(block["command"]) == block["output"], f"python {Path(__file__).name} remakes it"


def test_readme_scenario_is_the_shipped_one() -> None:
    scenario = re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert scenario
    shipped = (ROOT / "scenarios" / "agents-split.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(scenario[1]) == yaml.safe_load(shipped)


def test_python_of_the_guide_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One session from the first block to the last, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    session = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, GUIDE.name, str(GUIDE), 0)
    assert len(session.examples) > 10
    told = io.StringIO()
    assert doctest.DocTestRunner().run(session, out=told.write).failed == 0, told.getvalue()


def test_commands_that_the_guide_names_exist() -> None:
    """Each command of a console block takes the options with which it is shown."""
    commands = re.findall(r"^\$ hsim (.*?)(?:\s+#.*)?$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) > 10
    for command in commands:
        words = shlex.split(command)
        names = words[: 2 if words[0] == "trace" else 1]
        told = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "200"}).stdout
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in told, command


if __name__ == "__main__":
    for document in map(Path, sys.argv[1:]) if sys.argv[1:] else (README, GUIDE):
        text = document.read_text(encoding="utf-8")
        with contextlib.redirect_stderr(io.StringIO()):
            remade = BLOCK.sub(
                lambda b: f"<!-- hsim {b['command']} -->\n```text\n{printed(b['command'])}```\n<!-- end -->", text
            )
        document.write_text(remade, encoding="utf-8")
