"""Architecture of a language model: the few numbers that its cost follows from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from hsim.description.quantities import Figure
from hsim.description.yamlfile import Strict

Role = Literal["attention", "mlp", "router", "state", "head", "absorbed", "gate"]
Split = Literal["outputs", "inputs", "none"]


class Experts(Strict):
    """A mixture of experts in place of the MLP of `layers` layers: each token goes to `per_token` of `count`.

    `shared_intermediate_size` is the width of experts that every token goes to, together. `routing` names the code path
    that engines take for it: `fused`, or one that an engine profile times apart.
    """

    layers: PositiveInt
    count: PositiveInt
    per_token: PositiveInt
    intermediate_size: PositiveInt
    shared_intermediate_size: NonNegativeInt = 0
    routing: str = "fused"

    @model_validator(mode="after")
    def _enough_experts(self) -> Experts:
        if self.per_token > self.count:
            raise ValueError(
                f"per_token {self.per_token} is more than count {self.count}; per_token <= count must hold"
            )
        return self


class Window(Strict):
    """So many of the attention layers see only the last `tokens` tokens."""

    layers: PositiveInt
    tokens: PositiveInt


class Latent(Strict):
    """Multi-head latent attention: keys and values are kept as one vector of kv_rank + rope_dim for all heads."""

    query_rank: PositiveInt | None = None
    kv_rank: PositiveInt
    rope_dim: PositiveInt
    nope_dim: PositiveInt
    value_dim: PositiveInt


class State(Strict):
    """Layers that keep a state of fixed size per sequence: state-space layers, linear attention.

    `input_outputs` and `output_inputs` are the widths of their two projections; `elements` are those of one layer's state.
    `gate_outputs` come from an input projection of its own, as those of a gated delta rule do.
    """

    layers: PositiveInt
    input_outputs: PositiveInt
    output_inputs: PositiveInt
    elements: PositiveInt
    element_bytes: PositiveInt = 4
    gate_outputs: NonNegativeInt = 0


class Solved(Strict):
    """Problems solved per output token of one benchmark at one precision: PPT."""

    benchmark: str
    precision: str
    problems_per_token: Figure


@dataclass(frozen=True)
class Product:
    """A matrix product that `layers` layers have, whole model: `outputs` x `inputs` weights, and how devices share it."""

    outputs: int
    inputs: int
    layers: int
    role: Role
    split: Split

    @property
    def parameters(self) -> int:
        return self.layers * self.outputs * self.inputs


class ModelArchitecture(Strict):
    """A transformer: dense or with experts; grouped-query or latent attention; windows; state layers.

    Each of `layers` has attention, unless attention_layers or state says otherwise, and an MLP or experts, unless
    mlp_layers does. `gated_mlp` has three matrices, else two. `hugging_face` names the models that are built so.
    All are decoders but those of kind `encoder`: there every token attends every other, and one pass is all, whose
    output goes through a pooler instead of an output head.
    """

    name: str
    kind: Literal["dense", "moe", "hybrid", "encoder"] = "dense"
    layers: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: NonNegativeInt
    attention_heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    vocabulary: PositiveInt
    tied_embeddings: bool = False
    max_context_tokens: PositiveInt
    gated_mlp: bool = True
    attention_layers: PositiveInt | None = None
    mlp_layers: NonNegativeInt | None = None
    window: Window | None = None
    latent: Latent | None = None
    experts: Experts | None = None
    state: State | None = None
    problems_per_token: tuple[Solved, ...] = ()
    hugging_face: tuple[str, ...] = ()
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _parts_fit(self) -> ModelArchitecture:
        if self.attention_heads % self.kv_heads:
            raise ValueError(
                f"kv_heads {self.kv_heads} does not divide attention_heads {self.attention_heads}; "
                "each KV head serves a whole group of query heads"
            )
        if self.window and self.window.layers > self.attended_layers:
            raise ValueError(
                f"window.layers {self.window.layers} is more than the {self.attended_layers} that attend; fewer must"
            )
        if self.experts and self.experts.layers > self.layers:
            raise ValueError(f"experts.layers {self.experts.layers} is more than layers {self.layers}; at most all can")
        if self.dense_layers and not self.intermediate_size:
            raise ValueError(f"intermediate_size is 0 and {self.dense_layers} layers have a dense MLP; give its width")
        expected = "hybrid" if self.state else "moe" if self.experts else self.kind if self.is_encoder else "dense"
        if self.kind != expected:
            raise ValueError(f"kind is {self.kind!r} but its parts make it {expected!r}; write kind: {expected}")
        return self

    def same_work_as(self, other: ModelArchitecture) -> bool:
        """Whether the two have the same cost: all but name, source and quality are equal."""
        named = {"name", "source", "problems_per_token", "hugging_face"}
        return self.model_dump(exclude=named) == other.model_dump(exclude=named)

    @property
    def attended_layers(self) -> int:
        """Layers with attention over tokens."""
        return self.attention_layers or self.layers - (self.state.layers if self.state else 0)

    @property
    def window_layers(self) -> int:
        """Of those, layers that see a window only."""
        return self.window.layers if self.window else 0

    @property
    def expert_layers(self) -> int:
        return self.experts.layers if self.experts else 0

    @property
    def dense_layers(self) -> int:
        """Layers with a dense MLP."""
        return (self.layers if self.mlp_layers is None else self.mlp_layers) - self.expert_layers

    @property
    def kv_elements(self) -> int:
        """Elements of KV cache that one token adds in one attention layer, whole model."""
        if self.latent:
            return self.latent.kv_rank + self.latent.rope_dim
        return 2 * self.kv_heads * self.head_dim

    @property
    def path(self) -> str:
        """The code path that engines take for it: what their host times and errors were measured on, or were not."""
        parts = [f"experts-{self.experts.routing}" if self.experts else "encoder" if self.is_encoder else "dense"]
        return "/".join(parts + ["latent"] * bool(self.latent) + ["state"] * bool(self.state))

    @property
    def products(self) -> tuple[Product, ...]:
        """Every matrix product of a forward pass but the experts' and the output head's."""
        return (*self._attention_products(), *self._mlp_products(), *self._state_products())

    @property
    def is_encoder(self) -> bool:
        return self.kind == "encoder"

    @property
    def head(self) -> Product:
        """The output head; an encoder's pooler."""
        outputs = self.hidden_size if self.is_encoder else self.vocabulary
        return Product(outputs, self.hidden_size, 1, "head", "outputs")

    def _attention_products(self) -> tuple[Product, ...]:
        layers, heads, hidden = self.attended_layers, self.attention_heads, self.hidden_size
        latent = self.latent
        if latent is None:
            width, kv = heads * self.head_dim, self.kv_heads * self.head_dim
            qkv = Product(width + 2 * kv, hidden, layers, "attention", "outputs")
            return qkv, Product(hidden, width, layers, "attention", "inputs")
        query = heads * (latent.nope_dim + latent.rope_dim)
        down = latent.kv_rank + latent.rope_dim
        parts = [Product(hidden, heads * latent.value_dim, layers, "attention", "inputs")]
        if latent.query_rank:
            down += latent.query_rank
            parts.append(Product(query, latent.query_rank, layers, "attention", "outputs"))
        else:
            parts.append(Product(query, hidden, layers, "attention", "outputs"))
        parts.append(Product(down, hidden, layers, "attention", "none"))
        # The up-projection of the latent vector: absorbed into query and output in decode, as two products of each head.
        parts += [
            Product(heads * width, latent.kv_rank, layers, "absorbed", "outputs")
            for width in (latent.nope_dim, latent.value_dim)
        ]
        return tuple(parts)

    def _mlp_products(self) -> tuple[Product, ...]:
        gates, hidden, parts = (2 if self.gated_mlp else 1), self.hidden_size, []
        if self.dense_layers:
            parts += self._mlp(self.intermediate_size, self.dense_layers, gates)
        if self.experts:
            parts.append(Product(self.experts.count, hidden, self.experts.layers, "router", "none"))
            if self.experts.shared_intermediate_size:
                parts += self._mlp(self.experts.shared_intermediate_size, self.experts.layers, gates)
        return tuple(parts)

    def _mlp(self, width: int, layers: int, gates: int) -> list[Product]:
        up = Product(gates * width, self.hidden_size, layers, "mlp", "outputs")
        return [up, Product(self.hidden_size, width, layers, "mlp", "inputs")]

    def _state_products(self) -> tuple[Product, ...]:
        if self.state is None:
            return ()
        into = Product(self.state.input_outputs, self.hidden_size, self.state.layers, "state", "outputs")
        out = Product(self.hidden_size, self.state.output_inputs, self.state.layers, "state", "inputs")
        if not self.state.gate_outputs:
            return into, out
        return into, Product(self.state.gate_outputs, self.hidden_size, self.state.layers, "gate", "outputs"), out

    @property
    def expert_parameters(self) -> int:
        """Weights of all routed experts."""
        if self.experts is None:
            return 0
        matrices = 3 if self.gated_mlp else 2
        return self.experts.layers * self.experts.count * matrices * self.hidden_size * self.experts.intermediate_size

    @property
    def layer_parameters(self) -> int:
        """Weights of the matrix products of all layers."""
        return sum(p.parameters for p in self.products) + self.expert_parameters

    @property
    def parameters(self) -> int:
        """All weights: layers, norms, embedding and output head."""
        embedding = self.vocabulary * self.hidden_size
        head = 0 if self.tied_embeddings else self.head.parameters
        return self.layer_parameters + embedding + head + (2 * self.layers + 1) * self.hidden_size

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes: all, but only `per_token` of the experts, and no embedding table."""
        idle = 0.0
        if self.experts:
            idle = self.expert_parameters * (1 - self.experts.per_token / self.experts.count)
        return math.ceil(self.parameters - idle) - (0 if self.tied_embeddings else self.vocabulary * self.hidden_size)

    @property
    def kv_elements_per_token(self) -> int:
        """Keys and values that one token of context adds, all layers, those with a window included."""
        return self.attended_layers * self.kv_elements

    @property
    def state_bytes_per_sequence(self) -> int:
        """Bytes of state that a sequence keeps whatever its length."""
        return self.state.layers * self.state.elements * self.state.element_bytes if self.state else 0
