"""CPU operations done for real, under the names that hardware profiles give their costs.

    tool = operation("full-text-search").prepare(10_000)    # data made once, from fixed seeds
    tool.run(10_000)                                        # so many units of work, on the calling thread
    tool.close()

`OPERATIONS[name].unit` says what a unit is; `size` is the most units that one call will ask for. A tool's `what` says
plainly on what it really works.
"""

from __future__ import annotations

import http.client
import itertools
import json
import math
import os
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsim.backends import local_server
from hsim.description.yamlfile import Strict, did_you_mean
from hsim.errors import BackendError

# What the operations work on. The first two are what the shipped profiles' figures were measured with; the others are
# plausible sizes, chosen so that a tool is ready in seconds.
_VECTOR_FLOATS = 384
_TOP_RESULTS = 10
_HNSW_VECTORS = 20_000
_DOCUMENT_WORDS = 40
_VOCABULARY_WORDS = 20_000
_CATEGORIES = 100
_SET_SENTENCES, _SENTENCE_WORDS = 200, 20
_PYTHON_TIMEOUT_S, _PYTHON_CPU_S, _PYTHON_MEMORY_BYTES = 30.0, 20, 2**31
_QUERIES = 64
_INTENTS = 64
_ASKED = [f"w{rank}" for rank in range(2, 34)]
_PROGRAM = "import numpy; print(numpy.ones(8).sum())"


@dataclass(frozen=True)
class LiveTool:
    """An operation made ready for up to `size` units a call; `what` is what it really works on."""

    name: str
    what: str
    size: int
    work: Callable[[int], Any]
    close: Callable[[], object] = lambda: None

    def run(self, units: float) -> Any:
        """Do so many units of work, fractions rounded up, and return their result."""
        if not 0 <= units <= self.size:
            what = f"{units:g} units asked for, prepared for {self.size}"
            raise BackendError(f"operation {self.name}", what, "prepare it for more")
        return self.work(math.ceil(units))


@dataclass(frozen=True)
class LiveOperation:
    """An operation: what its units count, and how it is made ready for calls of up to so many.

    A call of a `whole` one is of exactly as many as it was prepared for.
    """

    unit: str
    prepare: Callable[[int], LiveTool]
    whole: bool = False


def operation(name: str) -> LiveOperation:
    """The operation of that name. Raises BackendError for one that hsim cannot do."""
    if name not in OPERATIONS:
        raise BackendError(f"operation {name}", "hsim has no such live operation", did_you_mean(name, list(OPERATIONS)))
    return OPERATIONS[name]


def tokenise(size: int) -> LiveTool:
    """Tokenises text of so many tokens; returns how many it found."""
    from hsim.backends.text import Text

    text = Text()
    return LiveTool("tokenise", text.what, size, lambda tokens: len(text.ids(text.of_length(tokens))))


def encode_minilm(size: int) -> LiveTool:
    """Tokenises and encodes text of so many tokens on the CPU; returns its embedding."""
    from hsim.backends.device import CpuDevice
    from hsim.backends.encoder import Encoder

    encoder = Encoder(CpuDevice())
    return LiveTool("encode-minilm", encoder.what, size, lambda n: encoder.understand(encoder.text.of_length(n)))


def flat_search(size: int) -> LiveTool:
    """Exact search over the first so many vectors; returns the places of the nearest by inner product, best first."""
    vectors, queries = _vectors(size, seed=1), itertools.cycle(_vectors(_QUERIES, seed=2))

    def search(count: int) -> list[int]:
        scores = vectors[:count] @ next(queries)
        nearest = np.argpartition(-scores, _TOP_RESULTS)[:_TOP_RESULTS] if count > _TOP_RESULTS else np.arange(count)
        return [int(i) for i in nearest[np.argsort(-scores[nearest])]]

    return LiveTool("flat-search", f"numpy, {size} x {_VECTOR_FLOATS} floats", size, search)


def hnsw_search(size: int) -> LiveTool:
    """Faiss HNSW32 search that visits so many candidates (efSearch); returns the places of the nearest."""
    try:
        import faiss
    except ImportError:
        raise BackendError("operation hnsw-search", "faiss is not installed", "pip install 'hsim[live]'") from None
    index, queries = faiss.IndexHNSWFlat(_VECTOR_FLOATS, 32), itertools.cycle(_vectors(_QUERIES, seed=2))
    index.add(_vectors(_HNSW_VECTORS, seed=1))

    def search(candidates: int) -> list[int]:
        index.hnsw.efSearch = max(1, candidates)
        _, places = index.search(next(queries)[None], _TOP_RESULTS)
        return [int(i) for i in places[0] if i >= 0]

    what = f"faiss HNSW32 over {_HNSW_VECTORS} x {_VECTOR_FLOATS} floats without structure"
    return LiveTool("hnsw-search", what, size, search)


def full_text_search(size: int) -> LiveTool:
    """BM25 over all documents for any of four common words; returns the best rows.

    It searches the whole collection that it was prepared with, and no less: BM25 looks at all of it.
    """
    database = sqlite3.connect(":memory:", check_same_thread=False)
    words = _words(size * _DOCUMENT_WORDS, seed=3)
    database.execute("CREATE VIRTUAL TABLE documents USING fts5(body)")
    documents = ((" ".join(d),) for d in zip(*[iter(words)] * _DOCUMENT_WORDS, strict=True))
    database.executemany("INSERT INTO documents VALUES (?)", documents)
    # Words of ranks 2 to 33, four at a time: common enough that the work goes with the number of documents.
    queries = itertools.cycle([" OR ".join(f"w{rank + 8 * i}" for i in range(4)) for rank in range(2, 10)])
    query = "SELECT rowid FROM documents WHERE documents MATCH ? ORDER BY bm25(documents) LIMIT ?"

    def search(count: int) -> list[int]:
        if count != size:
            what = f"{count} of {size} documents asked for"
            raise BackendError("operation full-text-search", what, f"prepare it for {count}")
        return [row for (row,) in database.execute(query, (next(queries), _TOP_RESULTS))]

    what = f"SQLite FTS5, {size} documents of {_DOCUMENT_WORDS} words of Zipf's law"
    return LiveTool("full-text-search", what, size, search, database.close)


def sql_aggregate(size: int) -> LiveTool:
    """Groups the first so many rows and sums; returns (category, rows, sum) of each."""
    database, rng = sqlite3.connect(":memory:", check_same_thread=False), np.random.default_rng(4)
    rows = zip(rng.integers(0, _CATEGORIES, size).tolist(), rng.integers(0, 1000, size).tolist(), strict=True)
    database.execute("CREATE TABLE sales (id INTEGER PRIMARY KEY, category INTEGER, amount INTEGER)")
    database.executemany("INSERT INTO sales (category, amount) VALUES (?, ?)", rows)
    query = "SELECT category, COUNT(*), SUM(amount) FROM sales WHERE id <= ? GROUP BY category"

    def aggregate(count: int) -> list[tuple[int, int, int]]:
        return database.execute(query, (count,)).fetchall()

    what = f"SQLite, {size} rows in {_CATEGORIES} categories"
    return LiveTool("sql-aggregate", what, size, aggregate, database.close)


def python_process(size: int, program: str = _PROGRAM, timeout_s: float = _PYTHON_TIMEOUT_S) -> LiveTool:
    """Runs a program in so many fresh Python processes, one after another; returns what they printed.

    Each is cut off from the environment and site-packages (-I -S; numpy alone is put back) and from writing files,
    and limited in CPU seconds, memory and wall time. That bounds honest mistakes; it is no prison for hostile code.
    A process that fails or takes too long is a BackendError.
    """
    where, limits = (
        "operation python-process",
        {"CPU": _PYTHON_CPU_S, "AS": _PYTHON_MEMORY_BYTES, "FSIZE": 0, "CORE": 0},
    )
    set_limits = "".join(f"resource.setrlimit(resource.RLIMIT_{name}, ({n}, {n}));" for name, n in limits.items())
    packages = str(Path(np.__file__).parent.parent)
    preface = f"import resource, sys; {set_limits} sys.path.append({packages!r})\n"
    command = [sys.executable, "-I", "-S", "-B", "-c", preface + program]
    # More threads than one would each reserve address space, which the limit counts.
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": os.defpath}

    def run_one() -> str:
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            what = f"the process did not end within {timeout_s:g} s and was killed"
            raise BackendError(where, what, "give it less to do") from None
        if done.returncode:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise BackendError(where, f"the process ended with code {done.returncode}: {last}")
        return done.stdout.decode(errors="replace")

    what = "CPython -I -S, one process after another"
    return LiveTool("python-process", what, size, lambda processes: [run_one() for _ in range(processes)])


def http_call(size: int, latency_s: float = 0.0) -> LiveTool:
    """Makes so many calls, one after another, to a local server that answers after latency_s; returns bytes read.

    The latency is zero by default: the wait outside of a simulated tool holds no core, so the driver waits it out.
    """
    where = "operation http-call"
    if not 0 <= latency_s <= local_server.LONGEST_WAIT_S:
        raise BackendError(where, f"latency_s is {latency_s}", f"use 0 to {local_server.LONGEST_WAIT_S:g} s")
    command = [sys.executable, "-I", "-S", "-B", local_server.__file__]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    if not port:
        raise BackendError(where, f"the local server ended with code {server.wait()}")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=local_server.LONGEST_WAIT_S + 10)

    def call() -> int:
        try:
            connection.request("GET", f"/?wait_s={latency_s}")
            return len(connection.getresponse().read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise BackendError(where, f"the local server did not answer ({error!r})") from None

    def close() -> None:
        connection.close()
        server.communicate()  # closes its standard input, at which it ends

    what = "http.client to a server of hsim's own on 127.0.0.1"
    return LiveTool("http-call", what, size, lambda calls: sum(call() for _ in range(calls)), close)


def summarise_lexrank(size: int) -> LiveTool:
    """LexRank over so many document sets; returns the places of the most central sentences of each."""
    words = _words(_SET_SENTENCES * _SENTENCE_WORDS, seed=5)
    sentences = [words[i : i + _SENTENCE_WORDS] for i in range(0, len(words), _SENTENCE_WORDS)]

    def summarise(sets: int) -> list[list[int]]:
        return [lexrank(sentences)[:_TOP_RESULTS] for _ in range(sets)]

    what = f"LexRank in numpy over sets of {_SET_SENTENCES} sentences"
    return LiveTool("summarise-lexrank", what, size, summarise)


def lexrank(sentences: list[list[str]], damping: float = 0.85, tolerance: float = 1e-6) -> list[int]:
    """Places of sentences by centrality, best first: continuous LexRank (Erkan and Radev 2004, eq. 2) by power iteration."""
    column = {word: i for i, word in enumerate(dict.fromkeys(word for sentence in sentences for word in sentence))}
    counts = np.zeros((len(sentences), len(column)))
    for row, sentence in enumerate(sentences):
        for word in sentence:
            counts[row, column[word]] += 1
    weighted = counts * np.log(len(sentences) / np.count_nonzero(counts, axis=0))
    lengths = np.linalg.norm(weighted, axis=1, keepdims=True)
    unit = np.divide(weighted, lengths, out=np.zeros_like(weighted), where=lengths > 0)
    likeness = unit @ unit.T + np.eye(len(sentences)) * (lengths == 0)  # a sentence of no weight is like itself alone
    likeness /= likeness.sum(axis=1, keepdims=True)
    rank = np.full(len(sentences), 1 / len(sentences))
    change = math.inf
    while change > tolerance:
        following = (1 - damping) / len(sentences) + damping * rank @ likeness
        change, rank = float(np.abs(following - rank).sum()), following
    return [int(i) for i in np.argsort(-rank, kind="stable")]


def json_validate(size: int) -> LiveTool:
    """Parses and validates JSON of so many records against a schema; returns how many it found."""
    from pydantic import TypeAdapter

    records = [
        {"id": i, "name": f"item {i}", "price": 0.5 * i, "tags": ["new", "used"], "at": {"city": "Turin", "stock": i}}
        for i in range(size)
    ]
    adapter = TypeAdapter(list[_Item])
    texts: dict[int, str] = {}

    def validate(count: int) -> int:
        if count not in texts:  # written once: the text comes from elsewhere
            texts[count] = json.dumps(records[:count])
        return len(adapter.validate_json(texts[count]))

    return LiveTool("json-validate", "pydantic, records of five fields, one nested", size, validate)


class _Place(Strict):
    city: str
    stock: int


class _Item(Strict):
    id: int
    name: str
    price: float
    tags: list[str]
    at: _Place


def html_to_text(size: int) -> LiveTool:
    """Takes the text out of a page of so many paragraphs; returns it."""
    words = _words(size * _DOCUMENT_WORDS, seed=6)
    paragraphs = [
        f'<div class="c{i}"><p>{" ".join(w)} <a href="/{i}">more</a></p><script>x({i})</script></div>'
        for i, w in enumerate(zip(*[iter(words)] * _DOCUMENT_WORDS, strict=True))
    ]
    what = f"html.parser, paragraphs of {_DOCUMENT_WORDS} words with links and scripts"
    return LiveTool("html-to-text", what, size, lambda count: text_of("".join(paragraphs[:count])))


def text_of(html: str) -> str:
    """What a page says to a reader: its text without scripts and styles."""
    reader = _TextReader()
    reader.feed(html)
    reader.close()
    return " ".join(" ".join(reader.found).split())


class _TextReader(HTMLParser):
    """Collects text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """See HTMLParser."""
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser."""
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        if not self._hidden:
            self.found.append(data)


def bm25_search(size: int) -> LiveTool:
    """Okapi BM25 in memory over the first so many documents for four common words; returns the places of the best."""
    words = _words(size * _DOCUMENT_WORDS, seed=3)
    documents = [words[i : i + _DOCUMENT_WORDS] for i in range(0, len(words), _DOCUMENT_WORDS)]
    places: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        for word in document:
            places.setdefault(word, []).append(place)
    postings = {word: np.unique(found, return_counts=True) for word, found in places.items() if word in _ASKED}
    queries = itertools.cycle([_ASKED[i : i + 4] for i in range(0, len(_ASKED), 4)])

    def search(count: int) -> list[int]:
        return bm25([postings[word] for word in next(queries) if word in postings], count)[:_TOP_RESULTS]

    return LiveTool("bm25-search", f"numpy, documents of {_DOCUMENT_WORDS} words of Zipf's law", size, search)


def bm25(postings: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], documents: int, k1: float = 1.2) -> list[int]:
    """Places of the first so many documents by Okapi BM25, best first; they are equally long (so b is of no effect).

    Each posting is the places that hold a word of the query, rising, and how often each does.
    """
    scores = np.zeros(documents)
    for places, counts in postings:
        within = np.searchsorted(places, documents)
        rarity = math.log(1 + (documents - within + 0.5) / (within + 0.5))
        scores[places[:within]] += rarity * counts[:within] * (k1 + 1) / (counts[:within] + k1)
    best = np.argsort(-scores, kind="stable")
    return [int(place) for place in best if scores[place] > 0]


def classify_intent(size: int) -> LiveTool:
    """Sorts a request of so many words into one of 64 intents by a linear layer over hashed words; returns which."""
    words = _words(size, seed=7)
    layer = _vectors(_INTENTS, seed=8)

    def classify(count: int) -> int:
        features = np.zeros(_VECTOR_FLOATS, dtype=np.float32)
        for word in words[:count]:
            features[zlib.crc32(word.encode()) % _VECTOR_FLOATS] += 1.0
        return int(np.argmax(layer @ features))

    return LiveTool("classify-intent", f"numpy, {_INTENTS} intents over {_VECTOR_FLOATS} hashed words", size, classify)


def _vectors(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, _VECTOR_FLOATS), dtype=np.float32)


def _words(count: int, seed: int) -> list[str]:
    """Words w0, w1 ... by Zipf's law over a fixed vocabulary, w0 the commonest."""
    ranks = np.arange(1, _VOCABULARY_WORDS + 1)
    cumulative = np.cumsum(1 / ranks)
    drawn = np.searchsorted(cumulative, np.random.default_rng(seed).random(count) * cumulative[-1])
    return [f"w{rank}" for rank in drawn.tolist()]


OPERATIONS: dict[str, LiveOperation] = {
    "tokenise": LiveOperation("token", tokenise),
    "encode-minilm": LiveOperation("token", encode_minilm),
    "hnsw-search": LiveOperation("candidate (efSearch)", hnsw_search),
    "flat-search": LiveOperation("vector of 384 floats", flat_search),
    "full-text-search": LiveOperation("document", full_text_search, whole=True),
    "sql-aggregate": LiveOperation("row", sql_aggregate),
    "python-process": LiveOperation("process that imports numpy", python_process),
    "http-call": LiveOperation("call", http_call),
    "summarise-lexrank": LiveOperation("document set", summarise_lexrank),
    "json-validate": LiveOperation("record", json_validate),
    "html-to-text": LiveOperation("paragraph", html_to_text),
    "bm25-search": LiveOperation("document", bm25_search),
    "classify-intent": LiveOperation("word", classify_intent),
}
