"""Live tools do what they say: answers checked against plain recomputation, limits and faults against their errors."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from hsim.backends import tools
from hsim.backends.tools import OPERATIONS, http_call, lexrank, operation, python_process
from hsim.errors import BackendError

PROFILES = Path(__file__).resolve().parent.parent / "hardware_profiles"


def test_every_operation_of_the_shipped_profiles_can_be_done_in_the_same_unit():
    units = {}
    for file in PROFILES.glob("*.yaml"):
        profile = yaml.safe_load(file.read_text(encoding="utf-8"))
        units |= {name: described["unit"] for name, described in (profile.get("operations") or {}).items()}
    assert len(units) >= 9
    assert units.items() <= {name: live.unit for name, live in OPERATIONS.items()}.items()


def test_flat_search_finds_what_sorting_finds():
    vectors = np.random.default_rng(1).standard_normal((500, 384), dtype=np.float32)
    query = np.random.default_rng(2).standard_normal((64, 384), dtype=np.float32)[0]
    for count in (500, 200, 10, 3, 0):  # a fresh tool begins with the first query
        found = operation("flat-search").prepare(500).run(count)
        assert found == np.argsort(-(vectors[:count] @ query))[:10].tolist()


def test_hnsw_search_finds_most_of_what_exact_search_finds(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(tools, "_HNSW_VECTORS", 2000)
    tool = operation("hnsw-search").prepare(1000)
    vectors = np.random.default_rng(1).standard_normal((2000, 384), dtype=np.float32)
    queries = np.random.default_rng(2).standard_normal((64, 384), dtype=np.float32)
    nearest = [set(np.argsort(((vectors - query) ** 2).sum(1))[:10].tolist()) for query in queries]
    hits = {ef: np.mean([len(found & set(tool.run(ef))) for found in nearest]) for ef in (1, 1000)}
    assert hits[1000] > 9
    assert hits[1] < hits[1000]


def test_full_text_search_ranks_by_bm25():
    tool = operation("full-text-search").prepare(300)
    words = tools._words(300 * 40, seed=3)
    documents = [words[i : i + 40] for i in range(0, len(words), 40)]
    terms = ["w2", "w10", "w18", "w26"]  # of the first query
    containing = {term: sum(term in document for document in documents) for term in terms}

    def bm25(document):  # SQLite's: k1 1.2, b 0.75, all documents equally long; rare-word weights at least 1e-6
        score = 0.0
        for term in terms:
            weight = max(1e-6, np.log((300 - containing[term] + 0.5) / (containing[term] + 0.5)))
            score += weight * document.count(term) * 2.2 / (document.count(term) + 1.2)
        return score

    scores = [bm25(document) for document in documents]
    found = tool.run(300)
    assert len(found) == 10
    best = sorted(scores, reverse=True)[:10]
    assert [scores[row - 1] for row in found] == pytest.approx(best)
    with pytest.raises(BackendError, match="200 of 300 documents asked for; prepare it for 200"):
        tool.run(200)
    tool.close()


def test_sql_aggregate_sums_what_numpy_sums():
    tool, rng = operation("sql-aggregate").prepare(4000), np.random.default_rng(4)
    categories, amounts = rng.integers(0, 100, 4000), rng.integers(0, 1000, 4000)
    for rows in (4000, 1500):
        counts = np.bincount(categories[:rows], minlength=100)
        sums = np.bincount(categories[:rows], amounts[:rows], minlength=100)
        assert tool.run(rows) == [(i, counts[i], sums[i]) for i in range(100) if counts[i]]
    tool.close()


def test_python_process_runs_and_is_bounded(tmp_path):
    assert python_process(2).run(2) == ["8.0\n", "8.0\n"]
    cut_off = python_process(
        1, "import os, sys; print(len([n for n in os.environ if 'HOME' in n]), sys.flags.isolated)"
    )
    assert cut_off.run(1) == ["0 1\n"]
    with pytest.raises(BackendError, match=r"did not end within 0\.3 s and was killed"):
        python_process(1, "while True: pass", timeout_s=0.3).run(1)
    with pytest.raises(BackendError, match="MemoryError"):
        python_process(1, "bytearray(2**33)").run(1)
    with pytest.raises(BackendError, match="File too large"):
        python_process(1, f"with open({str(tmp_path / 'out')!r}, 'w') as file: file.write('x')").run(1)
    with pytest.raises(BackendError, match="ValueError: no such thing"):
        python_process(1, "raise ValueError('no such thing')").run(1)


def test_http_calls_are_answered_and_their_server_ends_with_them(monkeypatch):
    servers = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: servers.append(popen(*a, **k)) or servers[-1])
    tool = http_call(5, latency_s=0.01)
    assert tool.run(1) > 1000
    assert tool.run(5) == 5 * tool.run(1)
    (server,) = servers
    assert server.poll() is None
    tool.close()
    assert server.poll() == 0
    broken = http_call(1)
    servers[-1].kill()
    servers[-1].wait()
    with pytest.raises(BackendError, match="did not answer"):
        broken.run(1)
    broken.close()
    with pytest.raises(BackendError, match="use 0 to 30 s"):
        http_call(1, latency_s=31)


def test_lexrank_puts_the_most_shared_sentence_first():
    sentences = [
        ["cats", "chase", "mice", "at", "night"],
        ["cats", "chase", "birds", "and", "mice", "at", "night"],
        ["birds", "sing"],
        ["stocks", "fell", "sharply"],
    ]
    assert lexrank(sentences)[0] == 1
    assert sorted(lexrank(sentences)) == [0, 1, 2, 3]
    assert lexrank([["same", "words"], ["same", "words"]]) == [0, 1]
    (best,) = operation("summarise-lexrank").prepare(1).run(1)
    assert len(set(best)) == 10


def test_units_beyond_what_was_prepared_and_unknown_names_are_refused():
    tool = operation("flat-search").prepare(10)
    for units in (11, -1, float("nan")):
        with pytest.raises(BackendError, match="prepared for 10; prepare it for more"):
            tool.run(units)
    with pytest.raises(BackendError, match="did you mean 'flat-search'"):
        operation("flat-serch")


def test_json_is_validated_record_by_record():
    tool = operation("json-validate").prepare(50)
    assert [tool.run(count) for count in (50, 7, 0)] == [50, 7, 0]


def test_text_of_a_page_leaves_out_scripts_and_styles():
    page = "<h1>One</h1><style>p {}</style><p>two <b>three</b></p><script>if (a < b) four()</script> five"
    assert tools.text_of(page) == "One two three five"
    text = operation("html-to-text").prepare(5).run(3)
    assert len(text.split()) == 3 * (40 + 1)  # each paragraph's words and its link's


def test_bm25_in_memory_ranks_as_the_formula_does():
    words = tools._words(200 * 40, seed=3)
    documents = [words[i : i + 40] for i in range(0, len(words), 40)]
    for count in (200, 60):
        terms = ["w2", "w3", "w4", "w5"]  # of the first query of a fresh tool
        holding = {t: sum(t in document for document in documents[:count]) for t in terms}

        def score(document, holding=holding, count=count):
            rarity = {t: np.log(1 + (count - n + 0.5) / (n + 0.5)) for t, n in holding.items()}
            return sum(rarity[t] * document.count(t) * 2.2 / (document.count(t) + 1.2) for t in rarity)

        scores = np.array([score(document) for document in documents[:count]])
        found = operation("bm25-search").prepare(200).run(count)
        assert np.allclose(scores[found], np.sort(scores)[::-1][:10])


def test_intents_are_told_apart_by_words():
    tool = operation("classify-intent").prepare(64)
    found = {tool.run(count) for count in range(1, 65)}
    assert all(0 <= intent < 64 for intent in found)
    assert len(found) > 1
