"""The server's process: loads what pages need before the first visitor comes, then lets Streamlit run the script."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = Path(__file__).with_name("__main__.py")


def serve(flags: Sequence[str]) -> None:
    """Run Streamlit with its command-line flags until it is stopped."""
    from streamlit.web.cli import main

    import hsim.dashboard.main  # noqa: F401
    from hsim.dashboard.session import runners
    from hsim.dashboard.sidebar import shipped_servers

    runners()  # the first process that simulates starts too
    shipped_servers()
    main(["run", str(SCRIPT), *flags])


if __name__ == "__main__":  # worker processes import this file too, and need none of it
    serve(sys.argv[1:])
