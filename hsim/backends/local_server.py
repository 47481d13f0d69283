"""A tiny HTTP server on 127.0.0.1 that answers after a wait: the outside world of the http-call operation.

Run by its path in a process of its own, with nothing but the standard library: prints its port, then serves
`GET /?wait_s=0.25` until its standard input closes, which is when its parent has gone.
"""

from __future__ import annotations

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

LONGEST_WAIT_S = 30.0
_BODY = b'{"results": [' + b'"a line such as a search service returns", ' * 24 + b'""]}'


class Handler(BaseHTTPRequestHandler):
    """Answers every GET alike."""

    protocol_version = "HTTP/1.1"  # connections stay open from call to call
    disable_nagle_algorithm = True

    def do_GET(self) -> None:  # the name that http.server looks for
        """Wait as the query asks, up to LONGEST_WAIT_S, and answer."""
        asked = parse_qs(urlparse(self.path).query).get("wait_s", ["0"])[0]
        time.sleep(min(max(0.0, float(asked)), LONGEST_WAIT_S))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(_BODY)))
        self.end_headers()
        self.wfile.write(_BODY)

    def log_message(self, format: str, *args: object) -> None:  # the name that http.server calls with
        """Say nothing."""


def main() -> None:
    """Serve until standard input closes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
