"""Prompts of a wanted number of tokens for a served model: by its own tokenizer, or by words counted from its usage."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hsim.backends.endpoint import Endpoint
from hsim.errors import BackendError

SAMPLE_WORDS = (8, 40, 120)
# Common English words, one token each in most vocabularies. Every prompt takes them in an order of its own, lest a
# server find its beginning in a prefix cache.
_COMMON = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour game
line end member law car city name team minute idea kid body back parent face others level office door health person
art war history party result change morning reason girl guy moment air teacher force
"""
WORDS = tuple(_COMMON.split())


def fresh_seeds() -> Iterator[int]:
    """Seeds of prompts that no earlier run can have sent: a server may still have those in its prefix cache."""
    return itertools.count(random.SystemRandom().randrange(1 << 40))


class Prompts:
    """Makes prompts for one endpoint. `note` says how their tokens are counted."""

    def __init__(self, endpoint: Endpoint, tokenizer: Path | None = None) -> None:
        self._tokenizer: Any = _tokenizer(tokenizer) if tokenizer else None
        self._per_word, self._overhead, self.counted = 1.0, 0.0, False
        samples = [
            (words, endpoint.run(endpoint.ask(self._words(words, i), 1))) for i, words in enumerate(SAMPLE_WORDS)
        ]
        counts = [(words, answer.input_tokens) for words, answer in samples if answer.input_tokens is not None]
        if len(counts) == len(samples):
            self.counted = True
            self._fit([(words, float(tokens)) for words, tokens in counts])
        self.note = self._told()

    def _fit(self, counts: list[tuple[int, float]]) -> None:
        if self._tokenizer:
            extra = [tokens - self._length(self._words(words, i)) for i, (words, tokens) in enumerate(counts)]
            self._overhead = sum(extra) / len(extra)
            return
        (few, low), (many, high) = counts[0], counts[-1]
        self._per_word = max(0.1, (high - low) / (many - few))
        self._overhead = low - few * self._per_word

    def _told(self) -> str:
        if self._tokenizer:
            return f"prompts counted by its tokenizer, {self._overhead:.0f} tokens of a template on top"
        if self.counted:
            return f"prompts of common words, {self._per_word:.2f} tokens each and {self._overhead:.0f} on top by its usage"
        return "prompts of common words taken for a token each: it counts no usage, and no --tokenizer was given"

    def of_length(self, tokens: int, seed: int) -> str:
        """A prompt of about so many tokens (exactly, where the tokenizer allows); another for another seed."""
        wanted = max(1.0, tokens - self._overhead)
        if not self._tokenizer:
            return self._words(max(1, round(wanted / self._per_word)), seed)
        words = max(1, round(wanted))
        for _ in range(4):  # words that are several tokens long make it too long: close in on the number of words
            length = self._length(self._words(words, seed))
            if length == round(wanted):
                break
            words = max(1, words + round((wanted - length) * words / length))
        return self._words(words, seed)

    @staticmethod
    def _words(count: int, seed: int) -> str:
        return " ".join(random.Random(seed).choices(WORDS, k=count))

    def _length(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise BackendError(
            "--tokenizer", "the package tokenizers is not installed", "pip install 'hsim[live]'"
        ) from None
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise BackendError(f"--tokenizer {path}", "there is no such file", "give a tokenizer.json or its folder")
    return Tokenizer.from_file(str(file))
