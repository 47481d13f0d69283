"""The README's output is what the command prints. Remake it with `python tests/test_readme.py`."""

import contextlib
import io
import re
from pathlib import Path

import yaml
from typer.testing import CliRunner

from hsim.cli import app

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- hsim (?P<command>[^>]*?) -->\n```text\n(?P<output>.*?)```\n<!-- end -->", re.DOTALL)


def printed(command: str) -> str:
    outcome = CliRunner().invoke(app, command.split())
    assert outcome.exit_code == 0, outcome.output
    return "".join(line.rstrip() + "\n" for line in outcome.stdout.splitlines())


def test_readme_shows_what_the_commands_print() -> None:
    blocks = list(BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8")))
    assert blocks
    for block in blocks:
        assert printed(block["command"]) == block["output"], f"python {Path(__file__).name} remakes it"


def test_readme_scenario_is_the_shipped_one() -> None:
    scenario = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert scenario
    shipped = (ROOT / "scenarios" / "agents-split.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(scenario[1]) == yaml.safe_load(shipped)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    with contextlib.redirect_stderr(io.StringIO()):
        remade = BLOCK.sub(
            lambda b: f"<!-- hsim {b['command']} -->\n```text\n{printed(b['command'])}```\n<!-- end -->", text
        )
    readme.write_text(remade, encoding="utf-8")
