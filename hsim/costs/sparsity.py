"""Pruned weights: what a pattern of zeros does to the bytes, rates and joules of products, and to the bytes kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hsim.costs.laws import ELEMENT_BYTES, Gemm, TwoSided
from hsim.description.hardware import AcceleratorProfile, SparsityProfile
from hsim.description.model import ModelArchitecture
from hsim.description.system import Figures
from hsim.errors import DescriptionError


@dataclass(frozen=True)
class Sparsity:
    """hardware.SparsityLaw with its numbers filled in. `quality_fraction` is None where nobody published one."""

    name: str
    kept_fraction: float
    index_bytes_per_weight: float
    flops_speedup: float
    executed_fraction: float
    per_product_s: float
    quality_fraction: float | None

    def weight_bytes(self, precision: str) -> float:
        """Bytes of one weight of the dense model, on average: those that are kept, and where they stand."""
        return self.kept_fraction * (ELEMENT_BYTES[precision] + self.index_bytes_per_weight)

    def product(self, law: Gemm, precision: str) -> Gemm:
        """A product with pruned weights: fewer bytes, other rates, and a longer launch."""
        sides = TwoSided(law.sides.bytes_per_s, law.sides.flops_per_s * self.flops_speedup, law.sides.sharpness)
        return replace(
            law, sides=sides, launch_s=law.launch_s + self.per_product_s, weight_bytes=self.weight_bytes(precision)
        )


def sparsity_of(profile: SparsityProfile, name: str, figures: Figures) -> Sparsity:
    """A pattern of the catalogue; the figures that times follow from must be known."""
    law, path = profile.patterns[name], f"patterns.{name}"
    keys = ("kept_fraction", "index_bytes_per_weight", "flops_speedup", "executed_fraction", "per_product_s")
    numbers = {key: figures.value(profile, f"{path}.{key}") for key in keys}
    known = law.quality_fraction.value is not None or f"{profile.name}.{path}.quality_fraction" in figures.assume
    quality = figures.value(profile, f"{path}.quality_fraction") if known else None
    return Sparsity(name=name, quality_fraction=quality, **numbers)


def check_sparse(
    profile: SparsityProfile, name: str, chip: AcceleratorProfile, model: ModelArchitecture, where: str
) -> None:
    """Raises DescriptionError where a chip has no products for a pattern, or a model has weights that no law prunes."""
    chips = profile.patterns[name].chips
    if chips and chip.name not in chips:
        raise DescriptionError(where, f"{chip.name} has no products for {name}", f"these have: {', '.join(chips)}")
    if model.experts:
        raise DescriptionError(where, f"{model.name} has experts, and no law prunes them", "leave sparsity out")
