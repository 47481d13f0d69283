"""Traces in JSON: Mooncake and Bailian lines, vLLM's detailed benchmark results, ShareGPT conversations."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from hsim.errors import DescriptionError
from hsim.units import MS_PER_S
from hsim.workload.files import open_text
from hsim.workload.traces.blocks import block_size
from hsim.workload.traces.trace import Blocks, Columns

MOONCAKE_BLOCK_TOKENS = 512  # github.com/kvcache-ai/Mooncake, FAST25-release: hash_ids of 512-token blocks
VLLM_KEYS = {"input_lens", "request_throughput"}  # of vLLM's benchmark results, with details and without
BAILIAN_BLOCK_TOKENS = 16  # github.com/alibaba-edu/qwen-bailian-usagetraces-anon: 16 tokens per block


def read_objects(head: str, lines: Iterator[str], file: str) -> Columns:
    """Read what begins with an object: one a line (Mooncake, Bailian), or a single one (vLLM's benchmark)."""
    try:
        first = json.loads(head)
    except (ValueError, RecursionError):
        first = VLLM_KEYS  # an object over several lines, or a broken one
    if VLLM_KEYS & set(first):
        return _vllm_bench(_parsed("".join(lines), file), file)
    return _timed_lines(lines, file)


def _parsed(text: str, file: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{file}:{error.lineno}"
        if error.msg == "Extra data":
            raise DescriptionError(place, "a second JSON value follows the first", "give one result a file") from None
        raise DescriptionError(place, f"is not valid JSON ({error.msg})", "is the file complete?") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        problem = f"cannot be read ({error})"
        raise DescriptionError(file, problem, "give a trace in a format of docs/workloads.md") from None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _finite(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, float) and isfinite(value)


CHECKS: dict[str, Callable[[Any], bool]] = {
    "input_lens": _whole,
    "output_lens": _whole,
    "start_times": _finite,
    "queue_times": _finite,
}


def _timed_lines(lines: Iterable[str], file: str) -> Columns:
    """Mooncake's lines (times in milliseconds), or Bailian's (seconds), which have chat_id too."""
    numbers, inputs, outputs, times = array("q"), array("q"), array("q"), array("d")
    blocks: list[Blocks] = []
    bailian = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _line(line, f"{file}:{number}")
        bailian = bailian or "chat_id" in row
        numbers.append(number)
        times.append(row["timestamp"])
        inputs.append(row["input_length"])
        outputs.append(row["output_length"])
        blocks.append(tuple(row.get("hash_ids", ())))
    input_tokens, since_s = np.array(inputs), np.array(times) - times[0]
    size = None
    if any(blocks):
        size = block_size(input_tokens, blocks, BAILIAN_BLOCK_TOKENS if bailian else MOONCAKE_BLOCK_TOKENS, file)
    return Columns(
        "Bailian" if bailian else "Mooncake",
        np.array(numbers),
        input_tokens,
        np.array(outputs),
        since_s if bailian else since_s / MS_PER_S,
        prefix_blocks=blocks if any(blocks) else None,
        block_tokens=size,
    )


def _line(line: str, place: str) -> dict[str, Any]:
    """One request of a JSON-lines trace, its numbers checked."""
    row = _parsed_line(line, place)
    for key in ("timestamp", "input_length", "output_length"):
        if key not in row:
            raise DescriptionError(place, f"has no {key}", "a line has timestamp, input_length and output_length")
    if not _finite(row["timestamp"]):
        raise DescriptionError(place, f"timestamp is {row['timestamp']!r}", "it must be a finite number")
    for key in ("input_length", "output_length"):
        if not _whole(row[key]):
            raise DescriptionError(place, f"{key} is {row[key]!r}", "it must be a whole number, 0 or more")
    hashes = row.get("hash_ids", [])
    if not isinstance(hashes, list) or not all(isinstance(h, int) for h in hashes):
        raise DescriptionError(place, "hash_ids is not a list of whole numbers", "such as [0, 1, 2]")
    return row


def _parsed_line(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise DescriptionError(
            place, f"cannot read {line.strip()[:60]!r}", "each line is a JSON object; is it cut off?"
        )
    return row


def _vllm_bench(result: Any, file: str) -> Columns:
    """The requests of `vllm bench serve --save-result --save-detailed`. Failed ones are left out and counted.

    A request was asked for queue_times before it was sent at start_times (newer versions write both).
    """
    if not isinstance(result, dict) or "output_lens" not in result or "input_lens" not in result:
        raise DescriptionError(file, "has no input_lens and output_lens", "run vllm bench serve with --save-detailed")
    lists = {key: result[key] for key in ("input_lens", "output_lens")}
    lists |= {key: result[key] for key in ("start_times", "queue_times", "errors") if result.get(key)}
    for key, values in lists.items():
        if not isinstance(values, list) or len(values) != len(lists["input_lens"]):
            raise DescriptionError(file, f"{key} is not a list as long as input_lens", "they hold one value a request")
    for key, values in lists.items():
        right = CHECKS.get(key)
        for number, value in enumerate(values):
            if right and not right(value):
                raise DescriptionError(file, f"{key}[{number}] is {value!r}", "it must be a number, and not negative")
    count = len(lists["input_lens"])
    failed = np.array([bool(error) for error in lists.get("errors", [""] * count)])
    times = None
    if "start_times" in lists:
        times = np.array(lists["start_times"], dtype=np.float64)
        times = times - np.array(lists["queue_times"]) if "queue_times" in lists else times
    inputs, outputs = np.array(lists["input_lens"], dtype=np.int64), np.array(lists["output_lens"], dtype=np.int64)
    return Columns("vLLM benchmark", np.ones(count, dtype=np.int64), inputs, np.where(failed, 0, outputs), times)


def read_conversations(text: str, file: str, tokenizer: Path | None) -> Columns:
    """Read ShareGPT conversations: the first turn of each is a prompt, the second its answer, as vLLM takes them."""
    conversations = _parsed(text, file)
    pairs, skipped = [], 0
    for number, entry in enumerate(conversations):
        turns = entry.get("conversations", entry.get("conversation")) if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            what = f"entry {number} has no list of conversations"
            raise DescriptionError(
                file, what, 'it is [{"conversations": [{"from": "human", "value": "..."}, ...]}, ...]'
            )
        said = [turn.get("value") for turn in turns[:2] if isinstance(turn, dict)]
        if len(said) == 2 and isinstance(said[0], str) and isinstance(said[1], str):
            pairs.append((said[0], said[1]))
        else:
            skipped += 1
    if not pairs:
        raise DescriptionError(file, "no conversation has two turns", "give one with a prompt and an answer")
    inputs = _counts([prompt for prompt, _ in pairs], tokenizer, file, special=True)
    outputs = _counts([answer for _, answer in pairs], tokenizer, file, special=False)
    lines = np.ones(len(pairs), dtype=np.int64)
    return Columns("ShareGPT", lines, inputs, outputs, skipped=skipped)


def _counts(texts: list[str], tokenizer: Path | None, file: str, special: bool) -> Any:
    """Tokens of each text; `special` counts what a tokenizer puts before and after a prompt too."""
    counter = _tokenizer(tokenizer, file)
    encoded = counter.encode_batch(texts, add_special_tokens=special)
    return np.array([len(one.ids) for one in encoded], dtype=np.int64)


def _tokenizer(path: Path | None, file: str) -> Any:
    if path is None:
        remedy = "give the model's tokenizer.json (workload.….tokenizer, or --tokenizer)"
        raise DescriptionError(file, "holds text, and a tokenizer must count its tokens", remedy)
    json_file = path / "tokenizer.json" if path.is_dir() else path
    remedy = "give a model's tokenizer.json or its folder"
    with open_text(json_file, "tokenizer", remedy) as stream:
        description = _parsed(stream.read(), str(json_file))
    if not isinstance(description, dict) or "model" not in description:
        raise DescriptionError(str(json_file), "is not a tokenizer of Hugging Face", remedy)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise DescriptionError(
            file, "holds text, and the package that counts its tokens is missing", "pip install tokenizers"
        ) from None
    return Tokenizer.from_file(str(json_file))
