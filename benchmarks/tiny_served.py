"""A small random Llama with a tokenizer of plain words, for servers that hsim did not write.

    python benchmarks/tiny_served.py /tmp/tiny-llama
    OMP_NUM_THREADS=1 taskset -c 0 transformers serve /tmp/tiny-llama --continuous-batching --device cpu --port 8811 &
    hsim calibrate --endpoint http://127.0.0.1:8811 --model /tmp/tiny-llama --budget 5m --out /tmp/out
    hsim validate /tmp/out/tiny-llama-endpoint.yaml --base-url http://127.0.0.1:8811 --model /tmp/tiny-llama

Its weights are random, its end-of-text token is never the likeliest, so answers are as long as asked.
"""

from __future__ import annotations

import sys
from pathlib import Path

VOCABULARY, LAYERS, HIDDEN, MLP, HEADS, KV_HEADS, CONTEXT = 4096, 4, 256, 768, 4, 2, 4096


def main(folder: Path) -> None:
    """Write config, weights and tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from hsim.backends.prompts import WORDS

    words = list(dict.fromkeys(WORDS))
    pieces = ["<unk>", "<eos>", *words, *(f"w{i}" for i in range(VOCABULARY - 2 - len(words)))]
    plain = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=CONTEXT,
        bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[:2] = 0.0  # <unk> and <eos>: never the largest of thousands of random logits
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
