"""A small OpenAI-compatible server for tests, that behaves as badly as its test asks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny"


@dataclass
class Manners:
    """How a server behaves. `first` are statuses of the first requests after `meek` good ones; then it serves well, or
    does in every stream what `then` says: stall, pings, close, nonsense, no-json, error, no-usage, bad-usage, plain,
    silent. `raw` is all that it says in a stream, `refusal` its status for what it `refuses`, `listing` of /models. It rests
    for `pause_s` before each token.
    """

    first: list[int] = field(default_factory=list)
    then: str = ""
    meek: int = 0
    raw: bytes = b""
    pause_s: float = 0.0
    refuses: tuple[str, ...] = ()
    refusal: int = 422
    listing: int = 200
    key: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """Serves /v1/models and /v1/completions."""

    manners: Manners
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if not self.keyless():
            self.json(self.manners.listing, {"data": [{"id": MODEL}]})

    def keyless(self) -> bool:
        """Whether the key was wrong, and is told to be."""
        wrong = bool(self.manners.key) and self.headers.get("authorization") != f"Bearer {self.manners.key}"
        if wrong:
            self.json(401, {"error": {"message": f"wrong key: {self.headers.get('authorization')}"}})
        return wrong

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.manners.lock:
            number = len(self.manners.asked) - self.manners.meek
            self.manners.asked.append(body)
        if self.keyless():
            return
        if body["model"] != MODEL:
            self.json(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        elif unknown := [key for key in self.manners.refuses if key in body or key in self.path]:
            self.json(self.manners.refusal, {"detail": f"Unexpected fields in the request: {unknown}"})
        elif 0 <= number < len(self.manners.first):
            self.json(self.manners.first[number], {"error": "busy"}, {"Retry-After": "0"})
        else:
            self.stream(body, self.manners.then if number >= 0 else "")

    def stream(self, body: dict[str, Any], manner: str) -> None:
        if manner == "plain":
            self.json(200, {"choices": [{"text": "all at once"}]})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.manners.raw:
            self.wfile.write(self.manners.raw)
            return
        words = len(body.get("prompt", "").split()) or len(body["messages"][0]["content"].split()) + 5
        for i in range(body["max_tokens"]):
            if manner == "silent" or (i == 2 and manner == "stall"):
                self.manners.let_go.wait(20)
                return
            for _ in range(100 * (i == 2 and manner == "pings")):
                self.say(": ping")
                self.manners.let_go.wait(0.02)
            if i == 2 and manner:
                odd = {"nonsense": "<html>", "no-json": "data: {oh", "error": 'data: {"error": "out of memory"}'}
                if manner in odd:
                    self.say(odd[manner])
                    return
                if manner == "close":
                    return
            time.sleep(self.manners.pause_s)
            self.event({"choices": [{"index": 0, "text": f" w{i}"}]})
        usage = {"prompt_tokens": words, "completion_tokens": body["max_tokens"]}
        if manner == "bad-usage":
            usage = {"prompt_tokens": "many"}
        end = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
        self.event(end if manner == "no-usage" else end | {"usage": usage})
        self.say("data: [DONE]")

    def event(self, data: dict[str, Any]) -> None:
        self.say(f"data: {json.dumps(data)}")

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\n\n".encode())
        self.wfile.flush()

    def json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Quiet(ThreadingHTTPServer):
    """Clients that leave early are no news."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(**manners: Any) -> Iterator[tuple[str, Manners]]:
    """A server and its address."""
    how = Manners(**manners)
    server = Quiet(("127.0.0.1", 0), type("Mannered", (Handler,), {"manners": how}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", how
    finally:
        how.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()
