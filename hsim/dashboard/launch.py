"""Starts the dashboard's server: on this machine alone, unless asked otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

from hsim.errors import HsimError

LOCALHOST = "127.0.0.1"
OPTIONS: dict[str, str | int | bool] = {
    "server.address": LOCALHOST,
    "server.headless": True,
    "server.maxUploadSize": 8,
    "server.maxMessageSize": 50,
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "none",
    "theme.light.primaryColor": "#0072B2",  # by ground: one colour for both would hold the page to the light one
    "theme.dark.primaryColor": "#56B4E9",
}


def arguments(port: int, address: str) -> list[str]:
    """What to run: `streamlit run` with what pages need loaded before the first visitor comes."""
    return [sys.executable, "-m", "hsim.dashboard.serve", *flags(port, address)]


def flags(port: int, address: str) -> list[str]:
    """Streamlit's options for a server that listens there."""
    options = OPTIONS | {"server.port": port, "server.address": address}
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in options.items()]


def check_installed() -> None:
    """Raises HsimError where Streamlit or plotly is not installed."""
    if find_spec("streamlit") is None or find_spec("plotly") is None:
        raise HsimError("the dashboard needs Streamlit and plotly; install hsim with its extra `dashboard`")


def launch(port: int, address: str = LOCALHOST) -> int:
    """Run the server until it is stopped; its exit code."""
    command = arguments(port, address)
    if sys.platform != "win32":
        os.execv(command[0], command)  # the server takes this process's place, and its signals
    return subprocess.call(command)
