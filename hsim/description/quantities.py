"""Building blocks of descriptions: figures with provenance, and distributions of lengths and times."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

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


class Clipped(Strict):
    """What distributions that vary have in common: a draw beyond a bound becomes the bound."""

    at_least: NonNegativeFloat | None = None
    at_most: PositiveFloat | None = None

    @model_validator(mode="after")
    def _bounds_leave_something(self) -> Clipped:
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}; at_least <= at_most must hold")
        return self


class Lognormal(Clipped):
    """Lognormal by its median and 95th percentile."""

    kind: Literal["lognormal"]
    median: PositiveFloat
    p95: PositiveFloat

    @model_validator(mode="after")
    def _p95_above_median(self) -> Lognormal:
        if self.p95 < self.median:
            raise ValueError(f"p95 {self.p95} is below the median {self.median}; p95 >= median must hold")
        return self


class Geometric(Clipped):
    """Whole numbers from 1 up, by their mean."""

    kind: Literal["geometric"]
    mean: float = Field(ge=1)


class Uniform(Clipped):
    """Evenly between low and high; a length is rounded."""

    kind: Literal["uniform"]
    low: NonNegativeFloat
    high: PositiveFloat

    @model_validator(mode="after")
    def _high_above_low(self) -> Uniform:
        if self.high < self.low:
            raise ValueError(f"high {self.high} is below low {self.low}; high >= low must hold")
        return self


class Exponential(Clipped):
    """Exponential by its mean."""

    kind: Literal["exponential"]
    mean: PositiveFloat


class Histogram(Clipped):
    """Empirical: so many draws fall into a bin as its count says, evenly within it.

    Either `edges` (one more than counts) and `counts`, or a CSV `file` with the columns bin_lo_tokens, bin_hi_tokens
    and count (.gz too). `where` picks its rows, such as {task: gpqa, model: Qwen/Qwen3-14B}. The path is relative to
    the scenario, else to the working directory.
    """

    kind: Literal["histogram"]
    edges: tuple[NonNegativeFloat, ...] = ()
    counts: tuple[NonNegativeFloat, ...] = ()
    file: str | None = None
    where: dict[str, str] = {}

    @model_validator(mode="after")
    def _bins_are_whole(self) -> Histogram:
        if (self.file is None) == (not self.edges and not self.counts):
            raise ValueError("needs its bins once; give edges and counts, or a file")
        if self.file is not None:
            return self
        if self.where:
            raise ValueError("where picks rows of a file and there is none; remove it")
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(
                f"has {len(self.edges)} edges and {len(self.counts)} counts; edges are one more than counts"
            )
        if any(b < a for a, b in pairwise(self.edges)) or not sum(self.counts):
            raise ValueError("has edges that fall, or no count above 0; edges rise and some counts are above 0")
        return self


def _number_is_constant(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    return value


class _NumberToo:
    """Says in the JSON schema what _number_is_constant accepts."""

    @staticmethod
    def __get_pydantic_json_schema__(core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "number", "minimum": 0}, handler(core_schema)]}


Distribution = Annotated[
    Constant | Lognormal | Geometric | Uniform | Exponential | Histogram,
    Field(discriminator="kind"),
    BeforeValidator(_number_is_constant),
    _NumberToo,
]

# How long something takes, where no one else's measurements are drawn from.
Duration = Annotated[
    Constant | Lognormal | Uniform | Exponential,
    Field(discriminator="kind"),
    BeforeValidator(_number_is_constant),
    _NumberToo,
]
