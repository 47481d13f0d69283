"""Architecture of a language model: the few numbers that its cost follows from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from hsim.description.yamlfile import Document, Strict, validated
from hsim.errors import DescriptionError


class ModelArchitecture(Strict):
    """A dense decoder-only transformer with grouped-query attention and a gated MLP."""

    name: str
    kind: Literal["dense"] = "dense"
    layers: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    attention_heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    vocabulary: PositiveInt
    tied_embeddings: bool = False
    max_context_tokens: PositiveInt
    source: str

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelArchitecture:
        if self.attention_heads % self.kv_heads:
            raise ValueError(
                f"kv_heads {self.kv_heads} does not divide attention_heads {self.attention_heads}; "
                "each KV head serves a whole group of query heads"
            )
        return self

    def same_work_as(self, other: ModelArchitecture) -> bool:
        """Whether the two have the same cost: all but name and source are equal."""
        named = {"name", "source"}
        return self.model_dump(exclude=named) == other.model_dump(exclude=named)

    @property
    def gemms(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of the matrix products of one layer, whole model: QKV, attention out, gate and up, down."""
        attention, kv = self.attention_heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (attention + 2 * kv, self.hidden_size),
            (self.hidden_size, attention),
            (2 * self.intermediate_size, self.hidden_size),
            (self.hidden_size, self.intermediate_size),
        )

    @property
    def layer_parameters(self) -> int:
        """Weights of the matrix products of all layers."""
        return self.layers * sum(n * k for n, k in self.gemms)

    @property
    def parameters(self) -> int:
        """All weights: layers, norms, embedding and output head."""
        embedding = self.vocabulary * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.layer_parameters + embedding + (2 * self.layers + 1) * self.hidden_size

    @property
    def kv_elements_per_token(self) -> int:
        """Keys and values that one token of context adds, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


_DENSE_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def from_hugging_face(file: Path) -> ModelArchitecture:
    """The architecture in a Hugging Face config.json. Raises DescriptionError for what hsim cannot model yet."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DescriptionError(str(file), "there is no such file") from None
    except (OSError, ValueError) as error:
        raise DescriptionError(str(file), f"is not a readable JSON file ({error})") from None
    if not isinstance(config, Mapping):
        raise DescriptionError(str(file), "is not a Hugging Face model configuration")
    family = config.get("model_type")
    if family not in _DENSE_FAMILIES or config.get("num_experts") or _slides(config):
        what = f"model_type is {family!r}" if family not in _DENSE_FAMILIES else "has experts or a sliding window"
        remedy = f"hsim models dense full-attention decoders so far ({', '.join(_DENSE_FAMILIES)})"
        raise DescriptionError(str(file), what, remedy)
    return validated(Document(str(file), _architecture(config, file)), ModelArchitecture)


def _slides(config: Mapping[str, Any]) -> bool:
    return bool(config.get("sliding_window")) and config.get("use_sliding_window", True)


def _architecture(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    missing = [key for key in needed if not isinstance(config.get(key), int)]
    if missing:
        raise DescriptionError(
            str(file), f"has no whole number for {', '.join(missing)}", "use the model's own config.json"
        )
    heads = config["num_attention_heads"]
    return {
        "name": config.get("_name_or_path") or file.parent.name or file.stem,
        "layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "attention_heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // max(1, heads),
        "vocabulary": config["vocab_size"],
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "max_context_tokens": config.get("max_position_embeddings", 4096),
        "source": str(file),
    }
