"""A page of docs/ made anew: runs each command that stands there with its output, and puts the output of now in place.

python benchmarks/page_outputs.py docs/planner.md [FIRST_WORDS]   (only commands that begin so)

All of docs/planner.md take some minutes on two quiet cores, all of docs/thesis.md half an hour.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

BLOCK = re.compile(r"```console\n\$ (hsim [^\n]*(?:\\\n[^\n]*)*)\n```\n\n```text\n.*?```\n", re.DOTALL)


def asked(found: re.Match[str]) -> str:
    """A command with its output of now."""
    command = found[1]
    if not command.startswith(" ".join(sys.argv[2:]) or "hsim"):
        return found[0]
    began_s = time.monotonic()
    words = shlex.split(command.replace("\\\n", " "))
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    print(f"{time.monotonic() - began_s:6.0f} s  {' '.join(words)}")
    lines = "\n".join(line.rstrip() for line in done.stdout.replace(str(Path.cwd()), ".").splitlines())
    return f"```console\n$ {command}\n```\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(BLOCK.sub(asked, page.read_text()))
