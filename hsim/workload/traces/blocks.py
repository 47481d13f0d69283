"""How many tokens a block of hashed prompt holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hsim.errors import DescriptionError
from hsim.workload.traces.trace import Blocks, Ints

REMEDY = "convert the trace to CSV with a column block_tokens"


def block_size(input_tokens: Ints, blocks: Sequence[Blocks], usual: int | None, file: str) -> int:
    """The block size of hashes that tile prompts: the usual one of the format if it fits, else the one that does.

    A prompt of n tokens has ceil(n / size) blocks, the last perhaps part full. Beside the usual size only powers of
    two are tried. Raises DescriptionError where none or several of them fit.
    """
    counts = np.array([len(hashes) for hashes in blocks])
    some = (counts > 0) & (input_tokens > 0)
    if not some.any():
        raise DescriptionError(file, "all its hash_ids are empty", "remove them")
    tokens, counts = input_tokens[some], counts[some]
    low = int(np.max(-(-tokens // counts)))
    several = counts > 1
    high = int(np.min((tokens[several] - 1) // (counts[several] - 1))) if several.any() else int(np.max(tokens))
    if usual is not None and low <= usual <= high:
        return usual
    fitting = [size for size in (1 << k for k in range(31)) if low <= size <= high]
    if len(fitting) == 1:
        return fitting[0]
    if usual is not None and (counts <= -(-tokens // usual)).all():
        return usual  # only the leading part of some prompts is hashed
    problem = f"blocks of {', '.join(map(str, fitting))} tokens would all fit" if fitting else "no one block size fits"
    raise DescriptionError(file, f"{problem} the numbers of hash_ids and of input tokens", REMEDY)


def first_overfull(input_tokens: Ints, blocks: Sequence[Blocks], size: int) -> int | None:
    """The first row with more hashes than its prompt has blocks."""
    counts = np.array([len(hashes) for hashes in blocks])
    over = np.flatnonzero(counts > -(-input_tokens // size))
    return int(over[0]) if len(over) else None
