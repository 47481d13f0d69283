"""Semantic understanding for real: a tokenizer and a MiniLM-class encoder, packaged weights or (said plainly) random."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hsim.backends.device import DTYPES, Device
from hsim.backends.hosts import Dtype
from hsim.backends.text import PACKAGE, VOCABULARY, Text, packaged_model
from hsim.errors import BackendError

_WINDOW_TOKENS = 512  # positions that the model was made with; two of them are [CLS] and [SEP]
# The shape of all-MiniLM-L6-v2, as its config.json has it.
_SHAPE = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": VOCABULARY,
}


class Encoder:
    """Turns text into a sentence embedding."""

    def __init__(self, device: Device, dtype: Dtype = "fp32") -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported: nothing is to be fetched
        try:
            from transformers import AutoModel, BertConfig
            from transformers.utils import logging
        except ImportError:
            raise BackendError(
                "encoder", "the package transformers is not installed", "pip install 'hsim[live]'"
            ) from None
        logging.disable_progress_bar()
        self.device, self.text, folder = device, Text(), packaged_model()
        if folder:
            self.what = "all-MiniLM-L6-v2"
            self.model: Any = AutoModel.from_pretrained(folder, local_files_only=True)
        else:
            self.what = (
                f"random weights in MiniLM's shape, since {PACKAGE} is not installed: its embeddings mean nothing"
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.model = AutoModel.from_config(BertConfig(**_SHAPE))
        self.what += f", {dtype} on {device.name}"
        self.model = self.model.to(device.torch_device, DTYPES[dtype]).eval()
        self._ends = [self.text.tokenizer.token_to_id(mark) for mark in ("[CLS]", "[SEP]")]

    def understand(self, text: str) -> NDArray[np.float32]:
        """The text's embedding: the mean over its tokens, of length 1. Shape (384,).

        Text beyond the model's 512 positions is read in windows, as one batch.
        """
        ids, room = self.text.ids(text), _WINDOW_TOKENS - 2
        windows = [ids[i : i + room] for i in range(0, max(1, len(ids)), room)]
        tokens, mask = self._padded([[self._ends[0], *window, self._ends[1]] for window in windows])
        with torch.inference_mode():
            hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weights).sum((0, 1)) / weights.sum()
            embedding: NDArray[np.float32] = torch.nn.functional.normalize(mean.float(), dim=0).cpu().numpy()
        return embedding

    def _padded(self, windows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        longest = max(map(len, windows))
        tokens = [[*window, *[0] * (longest - len(window))] for window in windows]
        mask = [[1] * len(window) + [0] * (longest - len(window)) for window in windows]
        return tuple(torch.tensor(rows, device=self.device.torch_device) for rows in (tokens, mask))
