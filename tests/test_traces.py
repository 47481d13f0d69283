"""Trace readers, each on a file as its owner publishes it, on broken ones, and the way from a trace to tasks."""

from __future__ import annotations

import gzip
import json
import sys
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsim.description.hardware import Tool
from hsim.description.scenario import Workload
from hsim.errors import DescriptionError, ResultError
from hsim.workload.tasks import Drawn, draw_tasks
from hsim.workload.traces import Trace, read_trace
from hsim.workload.traces.convert import write_trace
from hsim.workload.traces.summary import described, summary_of

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the measured data are not here")

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-12 00:00:00+00:00,1452,3
2024-05-12 00:00:00.041683+00:00,584,3
2024-05-12 01:00:00.157988+00:00,862,38
"""
AZURE_2025 = """TIMESTAMP,NumImages,ContextTokens,GeneratedTokens
2024-10-15 12:00:00.0000000,2,900,120
2024-10-15 12:00:01.5000000,0,800,20
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,Conversation log
120,GPT-4,300,0,300,API log
121,ChatGPT,0,20,20,API log
"""
BURSTGPT_3 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82-0a46-4bf0-aa08-89794e7a2b3f,43,GPT-4,906,446,1352,Conversation log
19440161.0,d5983bf9-4b48-497b-892b-a58995247443,2,ChatGPT,36,29,65,Conversation log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1053, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 915, "output_length": 355, "hash_ids": [0, 462]}
{"timestamp": 5999, "input_length": 512, "output_length": 1, "hash_ids": [0]}
"""
BAILIAN = """{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 33, "output_length": 132, "type": "text", "turn": 1, "hash_ids": [1089, 1090, 6326]}
{"chat_id": 160, "parent_chat_id": 159, "timestamp": 61.5, "input_length": 49, "output_length": 2, "type": "text", "turn": 2, "hash_ids": [1089, 1090, 6326, 7]}
"""
AGENTS = """session_id,arrival_time,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms
b,393,0,0,861,107,273
b,393,1,968,358,318,77
a,117,1,2518,348,131,0
a,117,0,0,2318,200,300.5
c,1000,0,0,50,9,0
"""
OWN = """arrival_s,input_tokens,output_tokens
10.5,30,3
10.0,10,1
11.25,20,2
"""


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    file = folder / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return file


def read(folder: Path, text: str, name: str = "trace.csv") -> Trace:
    return read_trace(written(folder, text, name))


def columns(trace: Trace) -> tuple[Any, ...]:
    """To the microsecond: dates as seconds since 1970 hold no more."""
    arrival_s = None if trace.arrival_s is None else np.round(trace.arrival_s, 6).tolist()
    return trace.format, arrival_s, trace.input_tokens.tolist(), trace.output_tokens.tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AZURE_2023, ("Azure", [0.0, 4.314579, 4.541877], [374, 396, 879], [44, 109, 55])),
        (AZURE_2024, ("Azure", [0.0, 0.041683, 3600.157988], [1452, 584, 862], [3, 3, 38])),
        (AZURE_2025, ("Azure", [0.0, 1.5], [900, 800], [120, 20])),
        (BURSTGPT, ("BurstGPT", [0.0, 40.0, 113.0], [472, 1087, 417], [18, 230, 276])),
        (BURSTGPT_3, ("BurstGPT", [0.0, 51.0], [906, 36], [446, 29])),
        (MOONCAKE, ("Mooncake", [0.0, 3.0, 5.999], [1053, 915, 512], [500, 355, 1])),
        (BAILIAN, ("Bailian", [0.0, 0.386], [33, 49], [132, 2])),
        (OWN, ("hsim", [0.0, 0.5, 1.25], [10, 30, 20], [1, 3, 2])),
        ("output_tokens,input_tokens\n5,6\n7,8\n", ("hsim", None, [6, 8], [5, 7])),
    ],
)
@pytest.mark.parametrize("name", ["trace", "trace.gz"])
def test_a_trace_reads_as_published(tmp_path: Path, text: str, expected: tuple[Any, ...], name: str) -> None:
    assert columns(read(tmp_path, text, name)) == expected
    assert columns(read(tmp_path, "\ufeff" + text.replace("\n", "\r\n"), name)) == expected, "as Windows writes it"
    assert columns(read(tmp_path, "\n" + text, name)) == expected


@pytest.mark.parametrize("name", ["azure", "azure, as in 2024", "own", "agents", "mooncake"])
@given(ticks=st.lists(st.integers(0, 10**12), min_size=2, max_size=20))
def test_times_are_read_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, name: str, ticks: list[int]
) -> None:
    """Ticks are those of the format: 0.1 microseconds, microseconds, or milliseconds."""
    ticks = sorted(ticks)
    per_s = {"azure": 10**7, "azure, as in 2024": 10**6, "own": 10**7}.get(name, 1000)
    start = datetime(2024, 5, 12, 23, 59, tzinfo=UTC)
    dates = [f"{start + timedelta(seconds=t // per_s):%Y-%m-%d %H:%M:%S}" for t in ticks]
    lines = {
        "azure": ["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"{d}.{t % per_s:07d},1,1" for d, t in zip(dates, ticks, strict=True))],
        "azure, as in 2024": ["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"{d}.{t % per_s:06d}+00:00,1,1" for d, t in zip(dates, ticks, strict=True))],
        "own": ["arrival_s,input_tokens,output_tokens", *(f"{t // per_s}.{t % per_s:07d},1,1" for t in ticks)],
        "agents": ["id,arrival_time,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms", *(f"{i},{t},0,0,1,1,0" for i, t in enumerate(ticks))],
        "mooncake": [json.dumps({"timestamp": t, "input_length": 1, "output_length": 1}) for t in ticks],
    }[name]  # fmt: skip
    trace = read(tmp_path_factory.mktemp("trace"), "\n".join(lines))
    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == [(t - ticks[0]) / per_s for t in ticks]


def test_failed_requests_are_left_out_and_counted(tmp_path: Path) -> None:
    trace = read(tmp_path, BURSTGPT)
    assert (trace.tasks, trace.skipped) == (3, 2)
    assert trace.notes == ("requests left out for want of a prompt or an answer: 2",)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    assert read(tmp_path, AZURE_2025).unused == ("NumImages",)
    assert read(tmp_path, AZURE_2023).unused == ()


def test_mooncake_blocks_are_kept_by_row(tmp_path: Path) -> None:
    trace = read(tmp_path, MOONCAKE)
    assert trace.prefix_blocks == ((0, 1, 2), (0, 462), (0,))
    assert trace.block_tokens == 512
    assert read(tmp_path, BAILIAN).block_tokens == 16
    no_hashes = read(tmp_path, '{"timestamp": 1, "input_length": 2, "output_length": 3}\n')
    assert (no_hashes.prefix_blocks, no_hashes.block_tokens) == (None, None)


def test_another_block_size_shows_in_the_number_of_hashes(tmp_path: Path) -> None:
    """65 tokens in 2 blocks, 64 in 1: of the powers of two only 64 does that; a file of 512 would have 1 for each."""
    lines = [(65, [1, 2]), (64, [1]), (640, list(range(10)))]
    text = "".join(
        json.dumps({"timestamp": 0, "input_length": n, "output_length": 1, "hash_ids": h}) + "\n" for n, h in lines
    )
    assert read(tmp_path, text).block_tokens == 64
    full = '{"timestamp": 0, "input_length": 128, "output_length": 1, "hash_ids": [1, 2]}'
    assert read(tmp_path, full).block_tokens == 64, "one block of 128 would hold it all"


def test_sessions_keep_their_rounds_and_waits(tmp_path: Path) -> None:
    trace = read(tmp_path, AGENTS)
    assert columns(trace)[1:] == ([0.0, 0.276, 0.883], [2318, 2866, 861, 1326, 50], [200, 131, 107, 318, 9])
    assert trace.sessions is not None
    assert trace.sessions.first_rows.tolist() == [0, 2, 4, 5]
    assert trace.sessions.context_tokens.tolist() == [0, 2518, 0, 968, 0]
    assert trace.sessions.wait_after_s.tolist() == [0.3005, 0.0, 0.273, 0.077, 0.0]
    assert trace.tasks == 3


def test_sessions_without_times_stay_in_order_of_appearance(tmp_path: Path) -> None:
    """TraceLab's raw rounds have no arrival_time."""
    lines = [line.split(",") for line in AGENTS.splitlines()]
    trace = read(tmp_path, "\n".join(",".join([a, *rest]) for a, _, *rest in lines))
    assert trace.arrival_s is None
    assert trace.input_tokens.tolist() == [861, 1326, 2318, 2866, 50]


def bench(**changes: Any) -> str:
    """What vLLM writes, in part: four requests, of which the third failed."""
    result = {
        "date": "20260101-000000", "backend": "openai", "request_rate": "inf", "burstiness": 1.0, "request_throughput": 3.0, "completed": 3, "failed": 1,
        "input_lens": [100, 200, 300, 400], "output_lens": [10, 20, 0, 40],
        "ttfts": [0.1, 0.1, 0.0, 0.1], "itls": [[0.01], [0.01], [], [0.01]],
        "start_times": [905.5, 905.0, 0.0, 907.25], "queue_times": [0.5, 0.0, 0.0, 1.25],
        "errors": ["", "", "Connection refused", ""],
    }  # fmt: skip
    return json.dumps({k: v for k, v in (result | changes).items() if v is not None})


def test_a_vllm_benchmark_is_a_trace(tmp_path: Path) -> None:
    """A request that waited for a place in the client was asked for before it was sent."""
    trace = read(tmp_path, bench())
    assert columns(trace) == ("vLLM benchmark", [0.0, 0.0, 1.0], [100, 200, 400], [10, 20, 40])
    assert trace.skipped == 1
    assert columns(read(tmp_path, bench(output_lens=[10, 20, 5, 40]))) == columns(trace), "cut off midway: failed too"
    assert columns(read(tmp_path, bench(queue_times=None)))[1:3] == ([0.0, 0.5, 2.25], [200, 100, 400])
    assert columns(read(tmp_path, bench(start_times=None, queue_times=None, errors=None)))[1] is None
    pretty = json.dumps(json.loads(bench()), indent=2)
    assert columns(read(tmp_path, pretty)) == columns(trace)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (bench(input_lens=None), "has no input_lens and output_lens; run vllm bench serve with --save-detailed"),
        (bench(output_lens=[1, 2]), "output_lens is not a list as long as input_lens"),
        (bench(output_lens=[1, 2, -3, 4]), r"output_lens\[2\] is -3"),
        (bench(input_lens=[1, 2, 3.5, 4]), r"input_lens\[2\] is 3.5"),
        (bench(start_times=[1, 2, float("nan"), 4]), r"start_times\[2\] is nan"),
        (bench(input_lens=5), "output_lens is not|input_lens is not"),
        (bench() + "\n" + bench(), "trace.csv:2: a second JSON value follows the first"),
        (bench()[:-9], "trace.csv:1: is not valid JSON"),
        ("{\n" + '"input_lens": [1,\n', "trace.csv:3: is not valid JSON"),
    ],
)
def test_a_broken_benchmark_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DescriptionError, match=problem):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "trace.csv: the file is empty"),
        ("\n  \n", "trace.csv: the file is empty"),
        ("arrival_s,input_tokens,output_tokens\n", "trace.csv: the trace holds no request"),
        (
            "time,prompt,answer\n1,2,3\n",
            "trace.csv:1: the header is 'time,prompt,answer'; known columns are Azure: TIMEST",
        ),
        (AZURE_2023 + "yesterday,1,2\n", "trace.csv:5: TIMESTAMP is 'yesterday'; it must be a date and time"),
        (AZURE_2023 + "2023-11-16 18:15:52,-1,2\n", "trace.csv:5: ContextTokens is '-1'; it must be a whole number, 0"),
        (AZURE_2023 + "2023-11-16 18:15:52,1.5,2\n", "trace.csv:5: ContextTokens is '1.5'"),
        (AZURE_2023 + "2023-11-16 18:15:52,nan,2\n", "trace.csv:5: ContextTokens is 'nan'"),
        (AZURE_2023 + "2023-11-16 18:15:52," + "9" * 30 + ",2\n", "trace.csv:5: ContextTokens is '999"),
        (AZURE_2023 + "2023-11-16 18:15:52,1\n", "trace.csv:5: has 2 columns, .*; the header has 3"),
        (BURSTGPT + "soon,a,1,2,3,x\n", "trace.csv:7: Timestamp is 'soon'"),
        (BURSTGPT + "inf,a,1,2,3,x\n", "trace.csv:7: Timestamp is 'inf'; it must be a finite number"),
        (BURSTGPT.partition("45,")[0].replace(",18,", ",0,"), "none of its 1 requests has both a prompt and an answer"),
        (AZURE_2023 + "2023-11-16 18:15:52.97x,1,1\n", "trace.csv:5: TIMESTAMP is '2023-11-16 18:15:52.97x'"),
        (AZURE_2023 + "2023-11-16 18:15:52.,1,1\n", "trace.csv:5: TIMESTAMP is '2023-11-16 18:15:52.'"),
        (OWN + "nan,1,1\n", "trace.csv:5: arrival_s is 'nan'"),
        (OWN + "\n1,1,1e9\n", "trace.csv:6: output_tokens is '1e9'"),
        (OWN + '1,"5,1\n2,6,2\n3,7,3\n', "trace.csv:5: has 2 columns, '1,5,1"),
        (OWN + '1,"' + "1" * 200_000 + '",1\n', r"trace.csv:5: is not CSV \(field larger"),
        (AGENTS + "c,1000,0,0,50,9,0\n", "trace.csv:7: session c has round 0 twice"),
        (AGENTS + "c,1000,1,0,50,9,-1\n", "trace.csv:7: tool_wait_after_ms is '-1'; it must be a number, 0 or more"),
        (AGENTS.replace("session_id", "name"), "trace.csv:1: has neither a column session_id nor id"),
        ("input_tokens,output_tokens,round\n1,1,0\n", "trace.csv:1: has round and no session_id"),
        ("session_id,input_tokens,output_tokens,context_tokens\na,5,1,6\n", "trace.csv:2: context_tokens is 6 of 5"),
        ("input_tokens,output_tokens,hash_ids\n5,1,a b\n", "trace.csv:2: hash_ids is 'a b'"),
        ("input_tokens,output_tokens,hash_ids\n5,1,\n", "all its hash_ids are empty"),
        ("input_tokens,output_tokens,hash_ids\n9,1,1\n", "blocks of 16 tokens|blocks of 1, 2|no one block size"),
        ("input_tokens,output_tokens,hash_ids\n9,1,1 2 3\n9,1,4\n", "no one block size fits"),
        ("input_tokens,output_tokens,hash_ids,block_tokens\n9,1,1,0\n", "trace.csv:2: block_tokens is 0"),
        ("input_tokens,output_tokens,hash_ids,block_tokens\n9,1,1,16\n9,1,1,8\n", "trace.csv:3: block_tokens is 8"),
        ("input_tokens,output_tokens,hash_ids,block_tokens\n9,1,1 2,16\n", "trace.csv:2: has 2 hash_ids for 9 tokens"),
        (MOONCAKE + '{"timestamp": 3, "input_len', "trace.csv:4: cannot read .* is it cut off?"),
        (MOONCAKE + "[1, 2]\n", "trace.csv:4: cannot read '.1, 2.'"),
        (MOONCAKE + '{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', "trace.csv:4: timestamp is nan"),
        (MOONCAKE + '{"timestamp": 1, "input_length": -1, "output_length": 1}\n', "trace.csv:4: input_length is -1"),
        (
            MOONCAKE + '{"timestamp": 1, "input_length": 1, "output_length": true}\n',
            "trace.csv:4: output_length is True",
        ),
        (MOONCAKE + '{"timestamp": 1, "output_length": 1}\n', "trace.csv:4: has no input_length"),
        (
            MOONCAKE + '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}',
            "trace.csv:4: hash_ids",
        ),
        (
            MOONCAKE + '{"timestamp": 1' + "0" * 400 + ', "input_length": 1, "output_length": 1}',
            "trace.csv:4: timestamp is 1000",
        ),
        (
            MOONCAKE + '{"timestamp": 1' + "0" * 5000 + ', "input_length": 1, "output_length": 1}',
            "trace.csv:4: cannot read",
        ),
        ('{"input_lens": 1' + "0" * 5000 + "}", r"trace.csv: cannot be read \(Exceeds"),
        (OWN + "1e400,1,1\n", "trace.csv:5: arrival_s is '1e400'; it must be a finite number"),
        ('{"a": 1}\n', "trace.csv:1: has no timestamp"),
        ('{"a": ' * 100_000, "trace.csv(:1)?: "),
        ("[" * 100_000, "trace.csv(:1)?: "),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_trace_is_explained(tmp_path: Path, text: str, problem: str, packed: bool) -> None:
    name = "trace.csv.gz" if packed else "trace.csv"
    with pytest.raises(DescriptionError, match=problem.replace("trace.csv", name)):
        read(tmp_path, text, name)


PUBLISHED = [AZURE_2023, AZURE_2024, BURSTGPT, MOONCAKE, BAILIAN, AGENTS, OWN]
BITS = [
    "",
    "-1",
    "nan",
    "inf",
    "1e400",
    "9" * 20,
    '"',
    "\n",
    ",",
    "{",
    "]",
    "null",
    "true",
    "\0",
    "é",
    "1_000",
    " ",
    "1.0",
]
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.sampled_from(BITS)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(text=st.sampled_from(PUBLISHED), edits=edits, flip=st.none() | st.integers(0, 10**6))
def test_no_file_makes_a_reader_stumble(
    tmp_path_factory: pytest.TempPathFactory, text: str, edits: list[tuple[float, int, str]], flip: int | None
) -> None:
    """Whatever was done to a file, it is a trace that can be summed up, or refused by name."""
    for place, length, bit in edits:
        at = int(place * len(text))
        text = text[:at] + bit + text[at + length :]
    data = text.encode()
    if flip is not None:
        packed = bytearray(gzip.compress(data))
        packed[flip // 8 % len(packed)] ^= 1 << flip % 8
        data = bytes(packed)
    file = tmp_path_factory.mktemp("trace") / "trace"
    file.write_bytes(data)
    refused = ""
    try:
        trace = read_trace(file)
    except DescriptionError as error:
        refused = str(error)
    if refused:
        assert refused.startswith(str(file))
        return
    assert described(summary_of(trace))
    write_trace(trace, file)
    assert read_trace(file).input_tokens.tolist() == trace.input_tokens.tolist()


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"none.csv: there is no such trace file; check its name and the folder"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(DescriptionError, match="cannot be read"):
        read_trace(tmp_path)
    rows = "".join(f"{i},{i % 97 + 1},{i % 13 + 1}\n" for i in range(5000))
    whole = gzip.compress(("arrival_s,input_tokens,output_tokens\n" + rows).encode())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for name, data in {"cut": whole[:-100], "flipped": bytes(flipped), "latin": OWN.encode() + b"\xff"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DescriptionError, match=rf"{name}(:\d+)?: (cannot be read \(.*\); is it complete|.*)"):
            read_trace(tmp_path / name)


# hsim's own CSV

lengths = st.integers(1, 10**6)
rounds = st.tuples(lengths, lengths, st.floats(0, 1e4))


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.lists(rounds, min_size=1, max_size=4)), min_size=1, max_size=8), st.data()
)
def test_a_converted_trace_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory, drawn: Any, data: Any) -> None:
    folder = tmp_path_factory.mktemp("trace")
    timed, hashed, agentic = (data.draw(st.booleans()) for _ in range(3))
    table: list[dict[str, Any]] = []
    for number, (arrival_s, its_rounds) in enumerate(drawn):
        for index, (n_in, n_out, wait_s) in enumerate(its_rounds if agentic else its_rounds[:1]):
            row: dict[str, Any] = {"arrival_s": arrival_s} if timed else {}
            row |= {"input_tokens": n_in, "output_tokens": n_out}
            if agentic:
                row |= {"session_id": number, "round": index, "context_tokens": n_in // 2, "wait_after_s": wait_s}
            if hashed:
                row |= {"block_tokens": 512, "hash_ids": " ".join(map(str, range(-(-n_in // 512))))}
            table.append(row)
    text = "\n".join([",".join(table[0]), *(",".join(map(str, row.values())) for row in table)])
    trace = read(folder, text)
    for name in ("own.csv", "own.csv.gz"):
        write_trace(trace, folder / name)
        again = read_trace(folder / name)
        assert (again.arrival_s is None) == (trace.arrival_s is None)
        if again.arrival_s is not None and trace.arrival_s is not None:
            assert np.array_equal(again.arrival_s, trace.arrival_s)
        assert np.array_equal(again.input_tokens, trace.input_tokens)
        assert np.array_equal(again.output_tokens, trace.output_tokens)
        assert (again.prefix_blocks, again.block_tokens) == (trace.prefix_blocks, trace.block_tokens)
        assert np.array_equal(again.first_rows, trace.first_rows)
        assert (again.sessions is None) == (trace.sessions is None)
        if again.sessions and trace.sessions:
            assert np.array_equal(again.sessions.context_tokens, trace.sessions.context_tokens)
            assert np.array_equal(again.sessions.wait_after_s, trace.sessions.wait_after_s)


def test_the_same_trace_gives_the_same_bytes(tmp_path: Path) -> None:
    trace = read(tmp_path, AGENTS)
    for name in ("a.csv.gz", "b.csv.gz"):
        write_trace(trace, tmp_path / name)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv.gz", "b.csv.gz", "trace.csv"], "no drafts are left"


def test_a_trace_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match=r"out.csv: cannot be written \(.*\); choose another file"):
        write_trace(read(tmp_path, OWN), tmp_path / "file" / "out.csv")


# ShareGPT

SHAREGPT = [
    {"id": "a", "conversations": [{"from": "human", "value": "one two three"}, {"from": "gpt", "value": "four five"}]},
    {"id": "b", "conversations": [{"from": "human", "value": "nobody answers"}]},
    {"id": "c", "conversations": []},
    {"id": "d", "conversations": [{"from": "human", "value": "six"}, {"from": "gpt", "value": "7 8 9"}, {"from": "human", "value": "more"}]},
]  # fmt: skip


@pytest.fixture
def word_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the package: a token for each word, and one before each prompt."""

    class Tokenizer:
        @staticmethod
        def from_file(file: str) -> Tokenizer:
            assert Path(file) == tmp_path / "tokenizer.json"
            return Tokenizer()

        def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
            return [types.SimpleNamespace(ids=[0] * add_special_tokens + text.split()) for text in texts]

    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Tokenizer))
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    return tmp_path


def test_sharegpt_takes_first_turns_and_needs_a_rate(tmp_path: Path, word_tokenizer: Path) -> None:
    file = written(tmp_path, json.dumps(SHAREGPT, indent=1), "sharegpt.json")
    for tokenizer in (word_tokenizer, word_tokenizer / "tokenizer.json"):
        trace = read_trace(file, tokenizer)
        assert columns(trace) == ("ShareGPT", None, [4, 2], [2, 3])
        assert trace.skipped == 2
    replay = {"arrivals": {"kind": "trace", "file": "sharegpt.json", "tokenizer": "tokenizer.json"}}
    with pytest.raises(DescriptionError, match=r"has no arrival times \(ShareGPT format\); let arrivals have a rate"):
        draw(tmp_path, replay)


def test_sharegpt_with_the_real_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {
        word: i for i, word in enumerate(["[UNK]", *["one", "two", "three", "four", "five", "six", "7", "8", "9"]])
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    trace = read_trace(written(tmp_path, json.dumps(SHAREGPT), "sharegpt.json"), tmp_path)
    assert columns(trace) == ("ShareGPT", None, [3, 1], [2, 3])


def test_text_without_a_tokenizer_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, json.dumps(SHAREGPT), "sharegpt.json")
    with pytest.raises(DescriptionError, match="a tokenizer must count its tokens; give the model's"):
        read_trace(file)
    with pytest.raises(DescriptionError, match=r"no.json: there is no such tokenizer"):
        read_trace(file, tmp_path / "no.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DescriptionError, match=r"tokenizer.json:1: is not valid JSON"):
        read_trace(file, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DescriptionError, match=r"tokenizer.json: is not a tokenizer of Hugging Face"):
        read_trace(file, tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DescriptionError, match="pip install tokenizers"):
        read_trace(file, tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "entry 0 has no list of conversations"),
        ('[{"conversations": "a"}]', "entry 0 has no list"),
        (json.dumps(SHAREGPT[1:2]), "no conversation has two turns"),
        (json.dumps(SHAREGPT)[:-5], "trace.csv:1: is not valid JSON"),
    ],
)
def test_broken_conversations_are_explained(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DescriptionError, match=problem):
        read(tmp_path, text)


# From traces to tasks


def draw(folder: Path, workload: dict[str, Any], tools: tuple[str, ...] = (), seed: int = 1) -> Drawn:
    catalogue = {
        name: Tool(operation="python-process", outside_wait_s={"kind": "constant", "value": 9}) for name in tools
    }
    return draw_tasks(Workload.model_validate(workload), catalogue, seed, folder)


POISSON = {"kind": "poisson", "rate_per_s": 2}


def test_a_replay_keeps_times_rows_and_notes(tmp_path: Path) -> None:
    written(tmp_path, BURSTGPT)
    drawn = draw(tmp_path, {"arrivals": {"kind": "trace", "file": "trace.csv", "rate_scale": 2}})
    assert [task.arrival_s for task in drawn.tasks] == [0.0, 20.0, 56.5]
    assert [(t.rounds[0].input_tokens, t.rounds[0].output_tokens) for t in drawn.tasks] == [
        (472, 18),
        (1087, 230),
        (417, 276),
    ]
    assert drawn.notes == ("trace.csv: requests left out for want of a prompt or an answer: 2",)


def test_a_part_of_a_trace_is_replayed(tmp_path: Path) -> None:
    written(tmp_path, AGENTS)
    arrivals = {"kind": "trace", "file": "trace.csv", "start_s": 0.2, "duration_s": 0.5}
    drawn = draw(tmp_path, {"arrivals": arrivals, "classes": {"agent": {"tools": {"t": 1}}}}, ("t",))
    assert [(task.arrival_s, len(task.rounds)) for task in drawn.tasks] == [(0.0, 2)]
    assert [visit.input_tokens for visit in drawn.tasks[0].rounds] == [861, 1326]
    later = draw(
        tmp_path, {"arrivals": arrivals | {"duration_s": None}, "classes": {"agent": {"tools": {"t": 1}}}}, ("t",)
    )
    assert [len(task.rounds) for task in later.tasks] == [2, 1]
    with pytest.raises(DescriptionError, match="no task arrives between 50 and 60 s; the trace spans 883 ms"):
        draw(tmp_path, {"arrivals": arrivals | {"start_s": 50, "duration_s": 10}})


def test_tasks_with_long_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    """A session with one prompt too long goes as a whole: its later rounds would lack what came before."""
    written(tmp_path, AGENTS)
    kinds = {"agent": {"tools": {"t": 1}}}
    arrivals = {"kind": "trace", "file": "trace.csv", "max_input_tokens": 2500}
    drawn = draw(tmp_path, {"arrivals": arrivals, "classes": kinds}, ("t",))
    assert [[r.input_tokens for r in task.rounds] for task in drawn.tasks] == [[861, 1326], [50]]
    assert [task.arrival_s for task in drawn.tasks] == pytest.approx([0.0, 0.607])
    assert drawn.notes == ("trace.csv: tasks left out for prompts beyond max_input_tokens 2,500: 1",)
    written(tmp_path, MOONCAKE, "mooncake.jsonl")
    trace = read_trace(tmp_path / "mooncake.jsonl").with_prompts_up_to(1000, "")
    assert (trace.prefix_blocks, trace.skipped) == (((0, 462), (0,)), 1)
    with pytest.raises(DescriptionError, match="every task has a prompt beyond max_input_tokens 49"):
        draw(tmp_path, {"arrivals": arrivals | {"max_input_tokens": 49}, "classes": kinds}, ("t",))


def test_sessions_become_rounds_with_their_waits(tmp_path: Path) -> None:
    written(tmp_path, AGENTS)
    replay = {"arrivals": {"kind": "trace", "file": "trace.csv"}}
    drawn = draw(tmp_path, replay | {"classes": {"agent": {"tools": {"t": 1}}}}, ("t",))
    first, second, third = drawn.tasks
    assert [(r.input_tokens, r.output_tokens, r.shared_tokens) for r in first.rounds] == [
        (2318, 200, 0),
        (2866, 131, 2518),
    ]
    assert first.rounds[0].call is None
    assert (first.rounds[1].call.tool, first.rounds[1].call.outside_wait_s) == ("t", 0.3005)  # type: ignore[union-attr]
    assert second.rounds[1].call.outside_wait_s == 0.273  # type: ignore[union-attr]
    assert len(third.rounds) == 1


def test_replayed_prompts_carry_their_blocks_and_sampled_ones_do_not(tmp_path: Path) -> None:
    written(tmp_path, MOONCAKE)
    replay: dict[str, Any] = {"arrivals": {"kind": "trace", "file": "trace.csv"}}
    prefixes = [task.rounds[0].prefix for task in draw(tmp_path, replay).tasks]
    assert prefixes == [((0, 512), (1, 512), (2, 29)), ((0, 512), (462, 403)), ((0, 512),)]
    shorter = draw(tmp_path, replay | {"classes": {"a": {"input_tokens": 100}}}).tasks
    assert [task.rounds[0].prefix for task in shorter] == [(), (), ()], "a declared prompt is not the trace's"
    kind = {"sampled_from": {"file": "trace.csv"}}
    sampled = draw(tmp_path, {"arrivals": POISSON, "tasks": 5, "classes": {"a": kind}}).tasks
    assert {task.rounds[0].prefix for task in sampled} == {()}


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ({}, r"trace.csv: holds sessions that wait for tools .* classes.agent.tools"),
        ({"tools": {"t": 1}, "rounds": 2}, "which bring their own rounds; remove classes.agent.rounds"),
        ({"tools": {"t": 1}, "context": "grows"}, "which bring their own context"),
        ({"tools": {"t": 1}, "output_tokens": 2}, "which bring their own output_tokens"),
    ],
)
def test_a_class_that_fights_its_sessions_is_refused(tmp_path: Path, kind: dict[str, Any], problem: str) -> None:
    written(tmp_path, AGENTS)
    replay = {"arrivals": {"kind": "trace", "file": "trace.csv"}, "classes": {"agent": kind}}
    with pytest.raises(DescriptionError, match=problem):
        draw(tmp_path, replay, ("t",))


def test_sampled_rows_stay_whole_and_all_come(tmp_path: Path) -> None:
    """Pairs that never occur in the trace would break the correlation of prompt and answer."""
    written(tmp_path, OWN)
    kind = {"sampled_from": {"file": "trace.csv"}}
    drawn = draw(tmp_path, {"arrivals": POISSON, "tasks": 3000, "classes": {"chat": kind}})
    pairs = [(t.rounds[0].input_tokens, t.rounds[0].output_tokens) for t in drawn.tasks]
    counts = [pairs.count(pair) for pair in ((10, 1), (20, 2), (30, 3))]
    assert sum(counts) == 3000
    assert max(abs(count - 1000) for count in counts) < 4 * np.sqrt(3000 * 2 / 9), "each row as likely as another"
    more = draw(tmp_path, {"arrivals": POISSON, "tasks": 4000, "classes": {"chat": kind}})
    assert more.tasks[:3000] == drawn.tasks


def test_sampled_sessions_stay_whole(tmp_path: Path) -> None:
    written(tmp_path, AGENTS)
    kind = {"sampled_from": {"file": "trace.csv"}, "tools": {"t": 1}}
    drawn = draw(tmp_path, {"arrivals": POISSON, "tasks": 300, "classes": {"agent": kind}}, ("t",))
    sessions = {tuple((r.input_tokens, r.call and r.call.outside_wait_s) for r in t.rounds) for t in drawn.tasks}
    assert sessions == {((2318, None), (2866, 0.3005)), ((861, None), (1326, 0.273)), ((50, None),)}


def test_a_class_may_take_only_one_length_from_a_trace(tmp_path: Path) -> None:
    written(tmp_path, OWN)
    kind = {"sampled_from": {"file": "trace.csv"}, "output_tokens": 7}
    drawn = draw(tmp_path, {"arrivals": POISSON, "tasks": 50, "classes": {"chat": kind}})
    assert {t.rounds[0].input_tokens for t in drawn.tasks} == {10, 20, 30}
    assert {t.rounds[0].output_tokens for t in drawn.tasks} == {7}


@pytest.mark.parametrize(
    ("workload", "problem"),
    [
        ({"arrivals": POISSON, "tasks": 3, "classes": {"a": {"input_tokens": 3}}}, "output_tokens is missing"),
        (
            {"arrivals": POISSON, "tasks": 3, "classes": {"a": {"input_tokens": 3, "output_tokens": 3, "sampled_from": {"file": "x"}}}},
            "sampled_from has nothing to give",
        ),
    ],
)  # fmt: skip
def test_lengths_from_nowhere_are_refused(tmp_path: Path, workload: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        draw(tmp_path, workload)


# The shared files


@shared
def test_the_shared_traces_are_read() -> None:
    azure = read_trace(SHARED / "azure2023_conv.csv.gz")
    assert (azure.tasks, int(azure.input_tokens.min()), int(azure.output_tokens.max())) == (19366, 2, 1000)
    mooncake = read_trace(SHARED / "mooncake_synthetic.csv.gz")
    assert (mooncake.tasks, mooncake.block_tokens) == (3993, 512)
    lengths = read_trace(SHARED / "arxiv_summarization_lengths.csv.gz")
    assert (lengths.tasks, lengths.arrival_s) == (28257, None)
    assert read_trace(SHARED / "sharegpt300_llmservingsim.csv.gz").tasks == 300


@shared
def test_the_shared_sessions_grow_as_agents_do() -> None:
    """In this log each round's kept prefix is the whole prompt and answer of the round before."""
    trace = read_trace(SHARED / "tracelab_agent_sessions_example.csv")
    assert trace.sessions is not None
    assert (trace.tasks, len(trace.input_tokens)) == (48, 303)
    for first, last in zip(trace.first_rows[:-1], trace.first_rows[1:], strict=True):
        said = trace.input_tokens[first : last - 1] + trace.output_tokens[first : last - 1]
        assert np.array_equal(trace.sessions.context_tokens[first + 1 : last], said)
