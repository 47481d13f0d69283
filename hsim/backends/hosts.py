"""What a worker process may host, and the words in which it is asked. Needs no torch: the driver's loop imports this."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from hsim.backends.steps import DecoderShape, Dtype, Llama3Scaling, Rope, StepItem
from hsim.description.hardware import OperationCode
from hsim.description.huggingface import from_hugging_face
from hsim.errors import BackendError, DescriptionError

if TYPE_CHECKING:
    from hsim.backends.tools import LiveOperation

__all__ = ["DecoderSpec", "Dtype", "Host", "Llama3Scaling", "Opened", "Rope", "StepItem", "ToolSpec"]


class Opened(NamedTuple):
    """Work made ready: a function from request to answer, and plain statements of what it really is."""

    run: Callable[[Any], Any]
    notes: tuple[str, ...]


class Host(Protocol):
    """Something that a worker process can open: small and picklable, it imports and allocates only when opened."""

    def open(self) -> Opened:
        """Load and allocate. Raises BackendError where that cannot be done on this machine."""
        ...


@dataclass(frozen=True)
class DecoderSpec(DecoderShape):
    """A decoder to be hosted. Opened, it answers a list of StepItem with the list of their next tokens."""

    def open(self) -> Opened:
        """See Host."""
        if importlib.util.find_spec("torch") is None:
            raise BackendError("hsim's own decoder", "torch is not installed", "pip install 'hsim[live]'")
        from hsim.backends.decoder import Decoder
        from hsim.backends.device import open_device

        model = self.architecture
        if model.experts or model.latent or model.state or model.window or not model.gated_mlp:
            what = (
                "has experts, windows, latent attention, states or a plain MLP, which hsim's own decoder does not build"
            )
            raise BackendError(f"model {model.name}", what, "live runs take Llama-class models")
        device = open_device(self.device)
        decoder = Decoder(self, device)
        return Opened(decoder.step, (f"{self.architecture.name} in {self.dtype} with random weights on {device.name}",))


@dataclass(frozen=True)
class ToolSpec:
    """CPU operations by name, each prepared for units up to a size (see tools.OPERATIONS); `codes` are people's own.

    Opened, it answers (operation, units) with that operation's result; people's own answer nothing.
    """

    sizes: Mapping[str, int]
    codes: Mapping[str, OperationCode] = field(default_factory=dict)

    def limit_s(self, operation: str) -> float | None:
        """How long a call may take, where people have said so."""
        return self.codes[operation].timeout_s if operation in self.codes else None

    def open(self) -> Opened:
        """See Host."""
        tools = {name: live_operation(name, self.codes).prepare(size) for name, size in self.sizes.items()}

        def run(request: tuple[str, float]) -> object:
            name, units = request
            result = tools[name].run(units)
            # What people's code returns may be of a class that this worker alone has imported, or fit through no pipe.
            return None if name in self.codes else result

        return Opened(run, tuple(f"{name}: {tool.what}" for name, tool in tools.items()))


def live_operation(name: str, codes: Mapping[str, OperationCode]) -> LiveOperation:
    """The operation of that name: a person's own, or hsim's. For worker processes: people's code is imported."""
    from hsim.backends.code import own_operation
    from hsim.backends.tools import operation

    return own_operation(name, codes[name]) if name in codes else operation(name)


def hugging_face_decoder(file: Path, slots: int, max_context_tokens: int, dtype: Dtype, device: str) -> DecoderSpec:
    """The decoder that a Hugging Face config.json describes. Raises DescriptionError for what hsim does not build."""
    architecture = from_hugging_face(file)
    config = json.loads(file.read_text(encoding="utf-8"))
    rope, epsilon = rope_of(config, str(file)), float(config.get("rms_norm_eps", 1e-6))
    return DecoderSpec(architecture, slots, max_context_tokens, dtype, device, rope=rope, norm_epsilon=epsilon)


def rope_of(config: Mapping[str, Any], where: str) -> Rope:
    """Rotary embedding of a config: `rope_parameters` as transformers 5 writes it, or rope_theta and rope_scaling."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(found.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    if kind != "llama3":
        raise DescriptionError(where, f"rope_type is {kind!r}", "hsim's decoder knows default and llama3")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in names if name not in found]
    if missing:
        raise DescriptionError(
            where, f"llama3 rope scaling lacks {', '.join(missing)}", "use the model's own config.json"
        )
    return Rope(theta, Llama3Scaling(*(found[name] for name in names)))
