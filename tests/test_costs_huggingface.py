"""config.json of each family: the architecture read is that of the catalogue's entry for the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hsim.description.catalogue import load_model
from hsim.description.huggingface import FAMILIES, from_hugging_face
from hsim.errors import DescriptionError


def config(family: str, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """The keys that all families share: layers, hidden, intermediate, heads, KV heads, vocabulary, context."""
    keys = (
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
        "max_position_embeddings",
    )  # fmt: skip
    return {"model_type": family} | dict(zip(keys, sizes, strict=True)) | more


# As published on Hugging Face; only the keys that hsim reads.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": config("llama", (32, 4096, 14336, 32, 8, 128256, 131072), tie_word_embeddings=False),
    "llama-3.2-1b": config("llama", (16, 2048, 8192, 32, 8, 128256, 131072), head_dim=64, tie_word_embeddings=True),
    "mistral-7b": config("mistral", (32, 4096, 14336, 32, 8, 32768, 32768), sliding_window=None),
    "qwen3-8b": config(
        "qwen3", (36, 4096, 12288, 32, 8, 151936, 40960), head_dim=128, sliding_window=None, use_sliding_window=False, max_window_layers=36
    ),
    "qwen3-30b-a3b": config(
        "qwen3_moe", (48, 2048, 6144, 32, 4, 151936, 262144), head_dim=128, num_experts=128, num_experts_per_tok=8,
        moe_intermediate_size=768, decoder_sparse_step=1, mlp_only_layers=[], use_sliding_window=False,
    ),
    "gemma-3-12b": {
        "model_type": "gemma3",
        "text_config": config(
            "gemma3_text", (48, 3840, 15360, 16, 8, 262208, 131072), head_dim=256, sliding_window=1024, sliding_window_pattern=6
        ),
    },
    "gpt-oss-120b": config(
        "gpt_oss", (36, 2880, 2880, 64, 8, 201088, 131072), head_dim=64, num_local_experts=128, num_experts_per_tok=4, sliding_window=128,
        layer_types=["sliding_attention", "full_attention"] * 18, tie_word_embeddings=False,
    ),
    "mixtral-8x7b": config(
        "mixtral", (32, 4096, 14336, 32, 8, 32000, 32768), num_local_experts=8, num_experts_per_tok=2, sliding_window=None
    ),
    "deepseek-v3": config(
        "deepseek_v3", (61, 7168, 18432, 128, 128, 129280, 163840), q_lora_rank=1536, kv_lora_rank=512, qk_rope_head_dim=64,
        qk_nope_head_dim=128, v_head_dim=128, n_routed_experts=256, num_experts_per_tok=8, moe_intermediate_size=2048, n_shared_experts=1,
        first_k_dense_replace=3,
    ),
    "llama-4-scout": {
        "model_type": "llama4",
        "text_config": config(
            "llama4_text", (48, 5120, 8192, 40, 8, 202048, 10485760), head_dim=128, num_local_experts=16, num_experts_per_tok=1,
            interleave_moe_layer_step=1, intermediate_size_mlp=16384, attention_chunk_size=8192,
        ),
    },
    "nemotron-nano-9b-v2": config(
        "nemotron_h", (56, 4480, 15680, 40, 8, 131072, 131072), head_dim=128, mamba_num_heads=128, mamba_head_dim=80, n_groups=8,
        ssm_state_size=128, hybrid_override_pattern="M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
    ),
    "nemotron-4-340b": config("nemotron", (96, 18432, 73728, 96, 8, 256000, 4096), head_dim=192),
    "starcoder2-7b": config("starcoder2", (32, 4608, 18432, 36, 4, 49152, 16384), sliding_window=4096, tie_word_embeddings=True),
}  # fmt: skip


def written(folder: Path, content: dict[str, Any]) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_read_as_the_catalogue_has_it(name: str, tmp_path: Path) -> None:
    read = from_hugging_face(written(tmp_path, CONFIGS[name]))
    known = load_model(name, "test", Path())
    assert read.same_work_as(known), (read.model_dump(), known.model_dump())


def test_unknown_family_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"model_type is 'rwkv'.*llama"):
        from_hugging_face(written(tmp_path, config("rwkv", (1, 64, 64, 1, 1, 100, 100))))


@pytest.mark.parametrize(
    "family", sorted(set(FAMILIES) - {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "starcoder2", "nemotron"})
)
def test_family_without_its_own_keys_names_the_missing_one(family: str, tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=f"has no '.*', which {family} needs"):
        from_hugging_face(written(tmp_path, config(family, (4, 64, 64, 4, 4, 100, 100))))


def test_a_file_that_is_not_a_configuration_is_refused(tmp_path: Path) -> None:
    for text, says in (("[]", "not a Hugging Face"), ("{", "not a readable JSON"), ("{}", "model_type is 'None'")):
        file = tmp_path / "config.json"
        file.write_text(text)
        with pytest.raises(DescriptionError, match=says):
            from_hugging_face(file)
    with pytest.raises(DescriptionError, match="no such file"):
        from_hugging_face(tmp_path / "absent.json")
