"""Building blocks of descriptions: figures with provenance, and distributions of lengths and times."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from hsim.description.yamlfile import Strict

Tier = Literal["measured", "published", "fitted", "transferred", "assumed"]


class Figure(Strict):
    """One number of a profile, with where it comes from.

    `measured` on this very hardware; `published` by its maker or a primary source; `fitted` to measurements;
    `transferred` from a relative; `assumed` where nobody published one. A value of null is unknown: a run that
    needs it says so. `low` and `high` bound a figure that is known only roughly.
    """

    value: float | None
    source: str = Field(min_length=1)
    tier: Tier
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _bounds_hold_the_value(self) -> Figure:
        if (self.low is None) != (self.high is None):
            raise ValueError("has only one of low and high; give both or neither")
        if self.value is not None and self.low is not None and not self.low <= self.value <= (self.high or 0.0):
            raise ValueError(f"{self.value} lies outside {self.low} to {self.high}; low <= value <= high must hold")
        return self


class Constant(Strict):
    """Always the same value."""

    kind: Literal["constant"] = "constant"
    value: NonNegativeFloat


class Lognormal(Strict):
    """Lognormal by its median and 95th percentile."""

    kind: Literal["lognormal"]
    median: PositiveFloat
    p95: PositiveFloat

    @model_validator(mode="after")
    def _p95_above_median(self) -> Lognormal:
        if self.p95 < self.median:
            raise ValueError(f"p95 {self.p95} is below the median {self.median}; p95 >= median must hold")
        return self


class Geometric(Strict):
    """Whole numbers from 1 up, by their mean."""

    kind: Literal["geometric"]
    mean: float = Field(ge=1)


def _number_is_constant(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    return value


Distribution = Annotated[
    Constant | Lognormal | Geometric, Field(discriminator="kind"), BeforeValidator(_number_is_constant)
]
