"""What passes between stages on a link: its bytes, and the core-seconds of writing and reading it."""

from __future__ import annotations

from dataclasses import dataclass

from hsim.description.hardware import WireProfile
from hsim.description.system import Figures, System


@dataclass(frozen=True, slots=True)
class Line:
    """at_zero + per_token * tokens."""

    at_zero: float = 0.0
    per_token: float = 0.0

    def of(self, tokens: float) -> float:
        """The value for so many tokens."""
        return self.at_zero + self.per_token * tokens


@dataclass(frozen=True, slots=True)
class Wire:
    """A message of so many tokens: its bytes, and the seconds in which one core writes and reads it."""

    n_bytes: Line
    encode_s: Line = Line()
    decode_s: Line = Line()

    @property
    def is_free(self) -> bool:
        """Whether writing and reading take no time."""
        return self.encode_s == self.decode_s == Line()


def wire_of(system: System) -> Wire:
    """The wire of a system's payload: what it was told, or a representation of the catalogue, perhaps compressed."""
    payload, wires, figures = system.scenario.payload, system.wires, system.figures
    wire = Wire(Line(payload.bytes_per_message, payload.bytes_per_token))
    if payload.representation:
        wire = _represented(system, wires, payload.representation, payload.bytes_per_message)
    if payload.compression:
        wire = _compressed(wire, wires, payload.compression, figures)
    return wire


def _represented(system: System, wires: WireProfile, name: str, header_bytes: float) -> Wire:
    described, figures = wires.representations[name], system.figures

    def of(field: str) -> float:
        given = getattr(described, field) is not None
        return figures.value(wires, f"representations.{name}.{field}") if given else 0.0

    width = system.model_of(system.scenario.stages.generate).hidden_size
    return Wire(
        Line(header_bytes + of("bytes_per_message"), of("bytes_per_token") + width * of("bytes_per_hidden_element")),
        Line(of("encode_base_s"), of("encode_per_token_s")),
        Line(of("decode_base_s"), of("decode_per_token_s")),
    )


def _compressed(wire: Wire, wires: WireProfile, name: str, figures: Figures) -> Wire:
    """Fewer bytes, for core-seconds that go with those there were."""
    ratio, compress, decompress = (
        figures.value(wires, f"compressions.{name}.{field}")
        for field in ("ratio", "compress_bytes_per_s", "decompress_bytes_per_s")
    )
    n_bytes = wire.n_bytes
    return Wire(
        Line(n_bytes.at_zero / ratio, n_bytes.per_token / ratio),
        Line(
            wire.encode_s.at_zero + n_bytes.at_zero / compress, wire.encode_s.per_token + n_bytes.per_token / compress
        ),
        Line(
            wire.decode_s.at_zero + n_bytes.at_zero / decompress,
            wire.decode_s.per_token + n_bytes.per_token / decompress,
        ),
    )
