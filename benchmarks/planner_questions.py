"""The questions of docs/planner.md asked again: runs each command that stands there, and puts its output in place.

python benchmarks/planner_questions.py [FIRST_WORDS]   (only commands that begin so; all take some minutes on two quiet cores)
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "planner.md"
BLOCK = re.compile(r"```console\n\$ (hsim [^\n]*(?:\\\n[^\n]*)*)\n```\n\n```text\n.*?```\n", re.DOTALL)


def asked(found: re.Match[str]) -> str:
    """A command with its output of now."""
    command = found[1]
    if not command.startswith(" ".join(sys.argv[1:]) or "hsim"):
        return found[0]
    began_s = time.monotonic()
    words = shlex.split(command.replace("\\\n", " "))
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    print(f"{time.monotonic() - began_s:6.0f} s  {' '.join(words)}")
    lines = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    return f"```console\n$ {command}\n```\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(asked, PAGE.read_text()))
