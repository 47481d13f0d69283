"""Reads the architecture of a model from its Hugging Face config.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hsim.description.model import ModelArchitecture
from hsim.description.yamlfile import Document, validated
from hsim.errors import DescriptionError, MistakeError

Config = Mapping[str, Any]
Parts = dict[str, Any]


def from_hugging_face(file: Path) -> ModelArchitecture:
    """The architecture in a config.json. Raises DescriptionError for a family that hsim does not model."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MistakeError(str(file), "there is no such file") from None
    except (OSError, ValueError) as error:
        raise MistakeError(str(file), f"is not a readable JSON file ({error})") from None
    if not isinstance(config, Mapping):
        raise MistakeError(str(file), "is not a Hugging Face model configuration")
    name = config.get("_name_or_path") or file.parent.name or file.stem
    if isinstance(config.get("text_config"), Mapping):  # of a model that also sees: its language part
        config = {"model_type": config.get("model_type"), **config["text_config"]}
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise DescriptionError(str(file), f"model_type is {family!r}", f"hsim models {known}")
    parts = _common(config, str(file)) | {"name": name, "source": str(file)}
    try:
        parts |= FAMILIES[family](config, parts)
    except KeyError as error:
        remedy = "use the model's own config.json"
        raise DescriptionError(str(file), f"has no {error.args[0]!r}, which {family} needs", remedy) from None
    parts["kind"] = "hybrid" if "state" in parts else "moe" if "experts" in parts else "dense"
    return validated(Document(str(file), parts), ModelArchitecture)


def _common(config: Config, file: str) -> Parts:
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    missing = [key for key in needed if not isinstance(config.get(key), int)]
    if missing:
        raise DescriptionError(file, f"has no whole number for {', '.join(missing)}", "use the model's own config.json")
    heads = config["num_attention_heads"]
    return {
        "layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "attention_heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // max(1, heads),
        "vocabulary": config["vocab_size"],
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "max_context_tokens": config.get("max_position_embeddings", 4096),
    }


def _dense(config: Config, parts: Parts) -> Parts:
    """A window over all layers, as Mistral 7B's first version had it, where there is one and it is used."""
    tokens = config.get("sliding_window")
    slides = tokens and config.get("use_sliding_window", True) and tokens < parts["max_context_tokens"]
    if not slides:
        return {}
    first = config.get("max_window_layers", 0) if "use_sliding_window" in config else 0
    layers = parts["layers"] - first
    return {"window": {"layers": layers, "tokens": tokens}} if layers > 0 else {}


def _plain_mlp(config: Config, parts: Parts) -> Parts:
    return _dense(config, parts) | {"gated_mlp": False}


def _alternating(config: Config, parts: Parts) -> Parts:
    """Gemma 2 and 3, gpt-oss: layer types listed, or every n-th layer attends to everything."""
    tied = {"tied_embeddings": bool(config.get("tie_word_embeddings", True))}
    kinds = config.get("layer_types")
    if kinds:
        windows = sum(kind == "sliding_attention" for kind in kinds)
    else:
        every = config.get("sliding_window_pattern") or 2
        windows = parts["layers"] - parts["layers"] // every
    return tied | {"window": {"layers": windows, "tokens": config["sliding_window"]}} if windows else tied


def _gemma(config: Config, parts: Parts) -> Parts:
    return {"tied_embeddings": bool(config.get("tie_word_embeddings", True))}


def _local_experts(config: Config, parts: Parts) -> Parts:
    experts = {
        "layers": parts["layers"],
        "count": config["num_local_experts"],
        "per_token": config["num_experts_per_tok"],
        "intermediate_size": config["intermediate_size"],
    }
    return {"experts": experts}


def _gpt_oss(config: Config, parts: Parts) -> Parts:
    return _alternating(config, parts) | _local_experts(config, parts) | {"tied_embeddings": False}


def _mixtral(config: Config, parts: Parts) -> Parts:
    return _local_experts(config, parts) | _dense(config, parts)


def _qwen_moe(config: Config, parts: Parts) -> Parts:
    step = config.get("decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    sparse = sum((i + 1) % step == 0 and i not in dense for i in range(parts["layers"]))
    experts = {
        "layers": sparse,
        "count": config["num_experts"],
        "per_token": config["num_experts_per_tok"],
        "intermediate_size": config["moe_intermediate_size"],
        "shared_intermediate_size": config.get("shared_expert_intermediate_size") or 0,
    }
    return _dense(config, parts) | {"experts": experts}


def _deepseek(config: Config, parts: Parts) -> Parts:
    latent = {
        "query_rank": config.get("q_lora_rank"),
        "kv_rank": config["kv_lora_rank"],
        "rope_dim": config["qk_rope_head_dim"],
        "nope_dim": config["qk_nope_head_dim"],
        "value_dim": config["v_head_dim"],
    }
    width = config["moe_intermediate_size"]
    experts = {
        "layers": parts["layers"] - config["first_k_dense_replace"],
        "count": config["n_routed_experts"],
        "per_token": config["num_experts_per_tok"],
        "intermediate_size": width,
        "shared_intermediate_size": width * (config.get("n_shared_experts") or 0),
    }
    head_dim = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    return {"latent": latent, "experts": experts, "kv_heads": parts["attention_heads"], "head_dim": head_dim}


def _llama4(config: Config, parts: Parts) -> Parts:
    every = config.get("interleave_moe_layer_step") or 1
    experts = {
        "layers": parts["layers"] // every,
        "count": config["num_local_experts"],
        "per_token": config["num_experts_per_tok"],
        "intermediate_size": config["intermediate_size"],
        "shared_intermediate_size": config["intermediate_size"],
        "routing": "llama4",
    }
    found = {"experts": experts, "intermediate_size": config.get("intermediate_size_mlp") or 0}
    chunk, no_rope = config.get("attention_chunk_size"), config.get("no_rope_layer_interval") or 4
    if chunk:  # attention in chunks of so many tokens, but in every fourth layer
        found["window"] = {"layers": parts["layers"] - parts["layers"] // no_rope, "tokens": chunk}
    return found


def _nemotron_h(config: Config, parts: Parts) -> Parts:
    pattern = config["hybrid_override_pattern"]
    heads, width = config["mamba_num_heads"], config["mamba_head_dim"]
    groups, state = config["n_groups"], config["ssm_state_size"]
    inner = heads * width
    return {
        "gated_mlp": False,
        "head_dim": config.get("head_dim") or config.get("attention_head_dim") or parts["head_dim"],
        "attention_layers": pattern.count("*"),
        "mlp_layers": pattern.count("-"),
        "state": {
            "layers": pattern.count("M"),
            "input_outputs": 2 * inner + 2 * groups * state + heads,
            "output_inputs": inner,
            "elements": inner * state,
        },
    }


FAMILIES: dict[str, Callable[[Config, Parts], Parts]] = {
    "llama": _dense,
    "mistral": _dense,
    "qwen2": _dense,
    "qwen3": _dense,
    "phi3": _dense,
    "gemma": _gemma,
    "gemma2": _alternating,
    "gemma3": _alternating,
    "gemma3_text": _alternating,
    "starcoder2": _plain_mlp,
    "nemotron": _plain_mlp,
    "nemotron_h": _nemotron_h,
    "mixtral": _mixtral,
    "qwen2_moe": _qwen_moe,
    "qwen3_moe": _qwen_moe,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "llama4": _llama4,
    "llama4_text": _llama4,
}
