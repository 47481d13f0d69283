"""An OpenAI-compatible server over HTTP: answers streamed, timed and counted on the client's side, faults told by kind."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from hsim.backends.worker import Done
from hsim.description.yamlfile import did_you_mean
from hsim.errors import BackendError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
KEY_VARIABLE = "HSIM_API_KEY"  # the only place that a key is read from; it is written nowhere
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that another attempt may not meet
LONGEST_WAIT_S = 10.0  # between attempts, whatever Retry-After asks for
EXCERPT = 240  # characters of what was wrong, in a message: servers say as much as they like
FORBIDDEN = ("HTTP 401", "HTTP 403")
PROBE_TOKENS = 4
DONE = "[DONE]"  # the data of the last event

REFUSED, STALLED, CLOSED = "connection refused", "stalled", "closed early"
NONSENSE, EMPTY, TOO_LONG, ABANDONED = "nonsense", "no text", "took too long", "abandoned"


@dataclass(frozen=True)
class EndpointSpec:
    """A served model, and how patient its client is.

    `silence_timeout_s` is how long no token may come, before the first and between any two, whatever else comes;
    `request_timeout_s` how long an attempt may take in all. A request that met a passing fault before its first token is tried `retries`
    times more, after `backoff_s`, twice that, and so on.
    """

    base_url: str
    model: str
    connect_timeout_s: float = 10.0
    silence_timeout_s: float = 60.0
    request_timeout_s: float = 600.0
    retries: int = 2
    backoff_s: float = 0.5

    @property
    def where(self) -> str:
        """As messages name it."""
        return f"endpoint {self.base_url}"

    @property
    def is_local(self) -> bool:
        """Whether it is a server on this machine."""
        return urlsplit(self.base_url).hostname in ("localhost", "127.0.0.1", "::1")


def checked_url(base_url: str, option: str) -> str:
    """The address as requests use it: with /v1 where it has no path. Raises BackendError for what is none."""
    secret = BackendError(option, "holds a user, a password or a query", f"keys are read from {KEY_VARIABLE} alone")
    why = ""
    try:
        parts = urlsplit(base_url)
        if parts.username or parts.password or parts.query:
            raise secret
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
    except ValueError as error:
        why = f" ({error})"
    if "@" in base_url or "?" in base_url:  # what cannot be taken apart is not repeated where it may hold a secret
        raise secret
    raise BackendError(option, f"{base_url!r} is no address{why}", "write it such as http://127.0.0.1:8000/v1")


@dataclass(frozen=True)
class Dialect:
    """What a server takes: /completions or /chat/completions; ignore_eos and min_tokens; stream_options."""

    api: Literal["completions", "chat"]
    exact: bool
    usage: bool

    def body(self, model: str, prompt: str, output_tokens: int) -> dict[str, Any]:
        """A request for an answer of so many tokens."""
        asked = {"prompt": prompt} if self.api == "completions" else {"messages": [{"role": "user", "content": prompt}]}
        body = {"model": model, **asked, "max_tokens": output_tokens, "temperature": 0.0, "stream": True}
        body |= {"ignore_eos": True, "min_tokens": output_tokens} if self.exact else {}
        return body | ({"stream_options": {"include_usage": True}} if self.usage else {})

    @property
    def told(self) -> str:
        """In words."""
        path = "/completions" if self.api == "completions" else "/chat/completions"
        return path + (" with ignore_eos" if self.exact else ", where an answer may end sooner than asked")


# What is tried, in this order, until a server takes one: text before chat, whose template adds tokens of its own.
DIALECTS = (
    Dialect("completions", exact=True, usage=True),
    Dialect("completions", exact=False, usage=True),
    Dialect("chat", exact=True, usage=True),
    Dialect("chat", exact=False, usage=True),
    Dialect("completions", exact=False, usage=False),
    Dialect("chat", exact=False, usage=False),
)


@dataclass(frozen=True)
class Answer:
    """What came of one request, in seconds of time.monotonic().

    `chunks_s` is when each piece of text came. Tokens are those of `usage` where `counted`, else pieces of text.
    `fault` is "" for an answer that came whole, else its kind; `problem` says it in words.
    """

    sent_s: float
    ended_s: float
    chunks_s: tuple[float, ...] = ()
    input_tokens: int | None = None
    output_tokens: int = 0
    counted: bool = False
    attempts: int = 1
    fault: str = ""
    problem: str = ""

    @property
    def ttft_s(self) -> float:
        return self.chunks_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.chunks_s[-1] - self.sent_s

    @property
    def tokens_per_chunk(self) -> float:
        return self.output_tokens / len(self.chunks_s)


class _FaultError(Exception):
    """An attempt that failed; `passing` says that another may not."""

    def __init__(self, kind: str, problem: str, passing: bool = False, wait_s: float = 0.0) -> None:
        self.kind, self.problem, self.passing, self.wait_s = kind, problem, passing, wait_s
        super().__init__(problem)


class _Stream:
    """What has come of an answer so far; `heard` is called at every piece of text."""

    def __init__(self, heard: Callable[[], None]) -> None:
        self.heard = heard
        self.chunks_s: list[float] = []
        self.usage: tuple[int, int] | None = None
        self.finished = False
        self._rest = b""  # of a line whose end has not come
        self._data: list[str] = []  # of an event whose end has not come

    def take(self, content: bytes, now_s: float) -> None:
        """What came at an instant: any part of the stream."""
        # Lines end at line feeds alone: str.splitlines also parts them at characters that JSON holds as they are.
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            self._line(line.removesuffix(b"\r").decode(errors="replace"), now_s)

    def _line(self, line: str, now_s: float) -> None:
        if line.startswith("data:"):
            self._data.append(line.removeprefix("data:").strip())
        elif line and not line.startswith((":", "event:", "id:", "retry:")):
            raise _FaultError(NONSENSE, f"a line of the stream is no server-sent event: {line}")
        data = "\n".join(self._data)  # an event may have several lines of it
        event = _parsed(data)
        if data and (event is not None or not line):  # what is whole needs no blank line, which some servers leave out
            self._data = []
            self._event(event, data, now_s)

    def _event(self, event: Any, data: str, now_s: float) -> None:
        if event == DONE:
            self.finished = True
            return
        if not isinstance(event, dict):
            raise _FaultError(NONSENSE, f"an event is no JSON{'' if event is None else ' object'}: {data}")
        if event.get("error"):
            raise _FaultError("error in the stream", _told(event["error"]))
        choices = _choices(event, data)
        if event.get("usage"):
            self.usage = _counts(event["usage"])
        for choice in choices:
            if _text(choice):
                self.chunks_s.append(now_s)
                self.heard()
            self.finished = self.finished or bool(choice.get("finish_reason"))

    def check_whole(self, now_s: float) -> None:
        """Once nothing more comes."""
        if self._rest.startswith(b"data:"):  # its line feed is missing
            self._line(self._rest.decode(errors="replace"), now_s)
        if not self.finished:
            raise _FaultError(CLOSED, f"the stream ended after {len(self.chunks_s)} pieces, unfinished", passing=True)
        if not self.chunks_s:
            raise _FaultError(EMPTY, "the answer has no text: its first token cannot be timed")


def _parsed(data: str) -> Any:
    """What an event says; None where that is no JSON, or not all of it."""
    if data == DONE:
        return DONE
    with suppress(ValueError):
        return json.loads(data)
    return None


def _choices(event: dict[str, Any], data: str) -> list[dict[str, Any]]:
    choices = event.get("choices")
    if choices is None and event.get("usage"):
        return []  # the last event of some servers counts tokens, and has nothing else
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise _FaultError(NONSENSE, f"an event has no list of choices: {data}")
    return choices


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return str(choice.get("text") or "")
    return str(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or "")


def _counts(usage: Any) -> tuple[int, int]:
    tokens = [usage.get(key) if isinstance(usage, dict) else None for key in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(count, int) and count >= 0 for count in tokens):
        raise _FaultError(NONSENSE, f"usage does not count prompt_tokens and completion_tokens: {usage}")
    return tokens[0], tokens[1]  # type: ignore[return-value]


def _told(error: Any) -> str:
    """What a server says is wrong, from the several ways in which servers say it."""
    if isinstance(error, dict):
        inner = error.get("error", error.get("detail", error.get("message")))
        return _told(inner) if inner else json.dumps(error)
    return str(error)


def _excerpt(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text[: EXCERPT + 1])
    return plain if len(plain) <= EXCERPT else plain[:EXCERPT] + "..."


def _key() -> str:
    """The key, without the line end that files of keys have. Raises BackendError for one that no header can carry."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BackendError(KEY_VARIABLE, "holds what no key does", "use printable ASCII characters alone")
    return key


class Endpoint:
    """A client of one served model, its event loop in a thread of its own. Raises BackendError where it cannot begin.

    Requests are asked for by `ask` within the loop (see `run`), or by `line` from outside.
    """

    def __init__(self, spec: EndpointSpec) -> None:
        try:
            import httpx
        except ImportError:
            raise BackendError(spec.where, "the package httpx is not installed", "pip install 'hsim[live]'") from None
        try:
            _ = httpx.URL(spec.base_url).host  # read for what it raises
        except (httpx.InvalidURL, ValueError) as error:
            raise BackendError(spec.where, f"this is no address ({error})", "is it spelt right?") from None
        self.spec = spec
        self._httpx: Any = httpx
        self._key = _key()
        self.dialect = DIALECTS[0]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()
        self._client = self.run(self._open())

    async def _open(self) -> httpx.AsyncClient:
        spec, api = self.spec, self._httpx
        client: httpx.AsyncClient = api.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=api.Timeout(spec.silence_timeout_s, connect=spec.connect_timeout_s, pool=None),
            limits=api.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not spec.is_local,  # a proxy must not stand between this machine and itself
        )
        return client

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop and wait for it; Ctrl-C abandons it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Do something in the loop without waiting."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Abandon what is under way, close all connections, end the thread."""
        if self._loop.is_closed():
            return
        with suppress(CancelledError, asyncio.CancelledError):
            self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    # ---- asking

    async def ask(self, prompt: str, output_tokens: int, heard: Callable[[], None] = lambda: None) -> Answer:
        """One request, tried again where that may help. Its time counts from the first attempt.

        Faults are in the answer; nothing is raised for them.
        """
        sent_s, attempt = time.monotonic(), 0
        while True:
            attempt += 1
            stream, fault = _Stream(heard), None
            try:
                async with asyncio.timeout(self.spec.request_timeout_s):
                    await self._stream(self.dialect.body(self.spec.model, prompt, output_tokens), stream)
            except TimeoutError:
                fault = _FaultError(TOO_LONG, f"it was not over after {self.spec.request_timeout_s:g} s")
            except _FaultError as error:
                fault = error
            if fault is None or stream.chunks_s or not fault.passing or attempt > self.spec.retries:
                return self._answer(sent_s, attempt, stream, fault)
            await asyncio.sleep(min(LONGEST_WAIT_S, max(fault.wait_s, self.spec.backoff_s * 2 ** (attempt - 1))))

    def _answer(self, sent_s: float, attempt: int, stream: _Stream, fault: _FaultError | None) -> Answer:
        counted = stream.usage is not None
        input_tokens, output_tokens = stream.usage or (None, len(stream.chunks_s))
        kind, problem = (fault.kind, self._shown(fault.problem)) if fault else ("", "")
        return Answer(
            sent_s, time.monotonic(), tuple(stream.chunks_s), input_tokens, output_tokens, counted, attempt, kind, problem
        )  # fmt: skip

    async def _stream(self, body: dict[str, Any], stream: _Stream) -> None:
        """One attempt. Raises _FaultError."""
        path = "/completions" if self.dialect.api == "completions" else "/chat/completions"
        with self._faults(stream.chunks_s):
            async with self._client.stream("POST", self.spec.base_url + path, json=body) as response:
                if response.status_code != self._httpx.codes.OK:
                    raise self._status(response.status_code, await response.aread(), response.headers)
                kind = response.headers.get("content-type", "")
                if "json" in kind:
                    raise _FaultError(NONSENSE, f"it did not stream, but sent {kind}")
                await self._hear(response, stream)
            stream.check_whole(time.monotonic())

    async def _hear(self, response: httpx.Response, stream: _Stream) -> None:
        """All of an answer. Raises TimeoutError where no token comes: comments that keep a connection alive are none."""
        patience_s, pieces = self.spec.silence_timeout_s, 0
        async with asyncio.timeout(patience_s) as patience:
            async for content in response.aiter_bytes():
                stream.take(content, time.monotonic())
                if len(stream.chunks_s) > pieces:
                    pieces = len(stream.chunks_s)
                    patience.reschedule(self._loop.time() + patience_s)

    @contextmanager
    def _faults(self, chunks_s: Sequence[float]) -> Iterator[None]:
        """What goes wrong on the way, as a _FaultError; `chunks_s` is what had come by then."""
        httpx = self._httpx
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _FaultError(REFUSED, f"no connection ({str(error) or type(error).__name__})", passing=True) from None
        except (httpx.TimeoutException, TimeoutError):
            silent = f"no token came for {self.spec.silence_timeout_s:g} s, after {len(chunks_s)} pieces of text"
            raise _FaultError(STALLED, silent) from None
        except httpx.TransportError as error:
            what = f"the connection broke after {len(chunks_s)} pieces of text ({error or type(error).__name__})"
            raise _FaultError(CLOSED, what, passing=True) from None
        except httpx.HTTPError as error:
            raise _FaultError(NONSENSE, f"the answer cannot be read ({error})") from None

    def _status(self, status: int, content: bytes, headers: Any) -> _FaultError:
        text = content.decode(errors="replace")
        with suppress(ValueError):
            text = _told(json.loads(text))
        wait = headers.get("retry-after", "")
        wait_s = float(wait) if wait.isdigit() else 0.0
        return _FaultError(f"HTTP {status}", f"HTTP {status}: {text}", status in PASSING, wait_s)

    def _shown(self, text: str) -> str:
        """What a message may say of it: the key is taken out first, lest a cut leave its beginning."""
        for key in {self._key, json.dumps(self._key)[1:-1]} if self._key else ():
            text = text.replace(key, "***")
        return _excerpt(text)

    # ---- getting to know it

    def meet(self) -> str:
        """Find out how the server wants to be asked; returns it in words. Raises BackendError for one that cannot be."""
        last = None
        for dialect in DIALECTS:
            self.dialect = dialect
            last = self.run(self.ask("Once upon a time there was", PROBE_TOKENS))
            if not last.fault:
                return f"{self.spec.model} at {self.spec.base_url}, asked by {dialect.told}"
            other = last.fault == "HTTP 501" or last.fault.startswith("HTTP 4")  # may be taken if it is asked otherwise
            if not other or last.fault in (*FORBIDDEN, "HTTP 429"):
                break
        assert last is not None
        problem = f"model {self.spec.model!r} gave no answer: {last.problem}"
        raise BackendError(self.spec.where, problem, self._remedy(last.fault))

    def _remedy(self, fault: str) -> str:
        if fault == REFUSED:
            return "is the server running, and is its address right?"
        if fault in FORBIDDEN:
            return f"put its key into the environment variable {KEY_VARIABLE}"
        if fault.startswith("HTTP 4"):
            listed = self.models()
            guess = did_you_mean(self.spec.model, listed) if listed and self.spec.model not in listed else ""
            return guess or "look into the server's own log"
        return "hsim needs an OpenAI-compatible server that streams /v1/completions or /v1/chat/completions"

    def models(self) -> list[str]:
        """What the server says that it serves; nothing where it does not say."""
        try:
            return self.run(self._listed())
        except _FaultError:
            return []

    def only_model(self) -> str:
        """The one model that the server lists. Raises BackendError where it lists none or several, or does not answer."""
        try:
            listed = self.run(self._listed())
        except _FaultError as fault:
            known = fault.kind in (REFUSED, *FORBIDDEN)
            what = ("" if known else "does not say what it serves: ") + fault.problem
            remedy = self._remedy(fault.kind) if known else "name one with --model"
            raise BackendError(self.spec.where, self._shown(what), remedy) from None
        if len(listed) != 1:
            what = f"lists {', '.join(listed[:8])}" if listed else "lists no model"
            raise BackendError(self.spec.where, self._shown(what), "name one with --model")
        return listed[0]

    async def _listed(self) -> list[str]:
        """The models that the server lists. Raises _FaultError where it says something else, or nothing."""
        with self._faults(()):
            response = await self._client.get(f"{self.spec.base_url}/models")
        if response.status_code != self._httpx.codes.OK:
            raise self._status(response.status_code, response.content, response.headers)
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            raise _FaultError(NONSENSE, f"/models gave no list of them: {response.text}") from None

    def line(self) -> Line:
        """A line for one request at a time, awaited as a worker is."""
        return Line(self)


class Line:
    """One request at a time from code outside the loop: `connection` can be read once the answer has come."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.connection, self._signal = Pipe(duplex=False)
        self._future: Future[Answer] | None = None
        self._sent_s = 0.0

    def send(self, request: tuple[str, int]) -> None:
        """Ask for an answer of so many tokens to a prompt."""
        self._sent_s = time.monotonic()
        self._future = self._endpoint.begin(self._endpoint.ask(*request))
        self._future.add_done_callback(lambda _: self._signal.send_bytes(b"."))

    def abandon(self) -> None:
        """Nobody waits for the answer any more: the request is closed, which servers take as a cancellation."""
        if self._future is not None:
            self._future.cancel()

    def end_silent(self, timeout_s: float) -> None:
        """See Worker; the endpoint's own timeouts end what is silent."""
        self.abandon()

    def answer(self) -> Done:
        """What came of the request."""
        assert self._future is not None
        self.connection.recv_bytes()
        future, self._future = self._future, None
        try:
            answer = future.result()
        except CancelledError:
            answer = Answer(self._sent_s, time.monotonic(), fault=ABANDONED, problem="its client gave it up")
        return Done(answer.sent_s, answer.ended_s, answer)

    def close(self) -> None:
        """Let go of the pipe."""
        self.connection.close()
        self._signal.close()


@contextmanager
def opened(spec: EndpointSpec) -> Iterator[Endpoint]:
    """An endpoint that is closed at the end, however that comes."""
    endpoint = Endpoint(spec)
    try:
        yield endpoint
    finally:
        endpoint.close()


def spec_of(base_url: str, model: str | None, option: str) -> EndpointSpec:
    """The endpoint at an address: of the model that was named, or of the only one that the server lists.

    Raises BackendError for what is no address, and where it takes --model to know what to ask for.
    """
    spec = EndpointSpec(checked_url(base_url, option), model or "")
    if model:
        return spec
    with opened(spec) as endpoint:
        return replace(spec, model=endpoint.only_model())
