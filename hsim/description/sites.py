"""Sites: where servers and clients stand, what power costs there by the hour, and the networks between them."""

from __future__ import annotations

from math import fsum
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from hsim.description.quantities import Distribution
from hsim.description.yamlfile import Strict

HERE = "site"  # the name of a scenario's own `site`, where tiers stand that name none
HOURS = 24
BY_THE_HOUR = ("usd_per_kwh", "gco2_per_kwh")


class Cost(Strict):
    """What the servers cost: rented by the hour (electricity included), or owned (capex and electricity)."""

    basis: Literal["rent", "own"] = "rent"
    lifetime_years: PositiveFloat = 4.0


class Hourly(Strict):
    """Prices and grams by the hour: 24 numbers or more, one an hour from time 0 on, repeated after the last.

    They are absolute; or, with `relative`, parts of the site's own figure, which is their mean.
    """

    usd_per_kwh: tuple[NonNegativeFloat, ...] = ()
    gco2_per_kwh: tuple[NonNegativeFloat, ...] = ()
    relative: bool = False

    @model_validator(mode="after")
    def _days_are_whole(self) -> Hourly:
        for key in BY_THE_HOUR:
            values = getattr(self, key)
            if values and len(values) < HOURS:
                raise ValueError(f"{key} has {len(values)} numbers; give one an hour, {HOURS} or more")
            if values and self.relative and not sum(values):
                raise ValueError(f"{key} are all 0; relative to them nothing can be said")
        return self


class Site(Strict):
    """A place with a meter of its own: its overhead, and what its electricity costs and emits.

    With `hourly` both may change by the hour. `embodied` counts what making its servers emitted, over their
    lifetime_years, in their CO2.
    """

    pue: float = Field(default=1.25, ge=1)
    usd_per_kwh: NonNegativeFloat = 0.12
    gco2_per_kwh: NonNegativeFloat = 350.0
    hourly: Hourly = Hourly()
    embodied: bool = False
    cost: Cost = Cost()

    @model_validator(mode="before")
    @classmethod
    def _flat_is_the_mean(cls, data: Any) -> Any:
        """Where the hours are absolute, the site's own figure need not be said: it is their mean."""
        hourly = data.get("hourly") if isinstance(data, dict) else None
        if not isinstance(hourly, dict) or hourly.get("relative"):
            return data
        means = {key: _mean(hourly.get(key)) for key in BY_THE_HOUR if key not in data}
        return data | {key: mean for key, mean in means.items() if mean is not None}

    @model_validator(mode="after")
    def _said_once(self) -> Site:
        for key in BY_THE_HOUR:
            mean, flat = _mean(getattr(self.hourly, key)), getattr(self, key)
            if mean is not None and not self.hourly.relative and abs(flat - mean) > 1e-9 * mean:
                what = f"{key} is {flat:g}, and the mean of hourly.{key} is {mean:g}"
                raise ValueError(f"{what}; leave {key} out, or set hourly.relative to scale the hours to it")
        return self

    def by_hour(self, key: str) -> tuple[float, ...]:
        """A figure in each hour of its period; of one that does not change, the figure alone."""
        values, flat = getattr(self.hourly, key), getattr(self, key)
        mean = _mean(values)
        if mean is None:
            return (flat,)
        return tuple(flat * value / mean for value in values) if self.hourly.relative else values


def _mean(values: Any) -> float | None:
    """The mean of a list of numbers; None of anything else."""
    if not isinstance(values, list | tuple) or not values or not all(isinstance(v, int | float) for v in values):
        return None
    return fsum(values) / len(values)


class SiteLink(Strict):
    """A network between two sites, with bytes_per_s each way.

    A message takes half of a round trip, which is drawn for it, then its packets share the bandwidth. Each packet is
    lost with probability `loss_fraction` and sent again until it arrives, so that 1 / (1 - loss) times the bytes are
    moved, and paid for. Nor does a message arrive before what TCP's window allows under such loss, packet / round trip *
    sqrt(3/2 / loss) (Mathis et al. 1997), nor before a round trip for each time that its unluckiest packet is repeated.
    `joules_per_byte` null: unknown. Half of its joules are drawn at each end. `source` says who measured it.
    """

    round_trip_s: Distribution
    bytes_per_s: PositiveFloat
    loss_fraction: float = Field(default=0.0, ge=0, lt=1)
    packet_bytes: PositiveFloat = 1460.0
    joules_per_byte: NonNegativeFloat | None = None
    source: str = ""
