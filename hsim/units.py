"""Conversions between SI and what people read: the only file that knows 1e9, 2**30 and 3600."""

from __future__ import annotations

import math
import re

GB = 1e9
MIB = 2**20
GIB = 2**30
MS_PER_S = 1000.0
US_PER_S = 1e6
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
YEAR_S = 365.25 * 24 * 3600.0
KWH_J = 3.6e6
MJ_J = 1e6
WH_J = 3.6e3
KG_G = 1000.0

_DURATIONS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": HOUR_S}

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def parse_seconds(text: str) -> float:
    """Seconds of a duration such as `90s`, `9m` or `1.5h`; a bare number is seconds. Raises ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", text)
    scale = _DURATIONS.get(found[2] or "s") if found else None
    if found is None or scale is None:
        raise ValueError(f"{text!r} is no duration; write it such as 90s, 9m or 1h")
    return float(found[1]) * scale


def readable(value: float, unit: str, digits: int = 3) -> str:
    """`value` with an SI prefix, such as `12.3 kJ`; zero and unknown (nan) have no prefix."""
    if math.isnan(value):
        return "–"
    if value == 0:
        return f"0 {unit}"
    size = abs(value)
    scale, prefix = next(((s, p) for s, p in _PREFIXES if size >= s * 0.9995), _PREFIXES[-1])
    scaled = value / scale
    decimals = max(0, digits - len(str(int(abs(scaled)))))
    return f"{scaled:.{decimals}f} {prefix}{unit}"


def readable_error(value: float, half_width: float | None, unit: str) -> str:
    """`value` with the half-width of its interval, such as `21.82 ± 0.46 s`: to two digits of the half-width."""
    scale, shown = scale_of(value, unit)
    after = f" {shown}" if shown else ""
    if half_width is None or math.isnan(value + half_width):
        return readable_seconds(value) if unit == "s" else f"{value / scale:.3g}{after}"
    return f"{plain_error(value / scale, half_width / scale)}{after}"


def plain_error(value: float, half_width: float) -> str:
    """`21.82 ± 0.46`."""
    decimals = min(8, max(0, 1 - math.floor(math.log10(half_width)))) if half_width else 3
    return f"{value:,.{decimals}f} ± {half_width:.{decimals}f}"


def readable_range(low: float, high: float, unit: str) -> str:
    """`low to high`, such as `1.94 to 2.35 kJ`: to three digits of the larger."""
    largest = max(abs(low), abs(high))
    scale, shown = scale_of(largest, unit)
    decimals = min(8, max(0, 2 - math.floor(math.log10(largest / scale)))) if largest else 0
    return f"{low / scale:,.{decimals}f} to {high / scale:,.{decimals}f}" + (f" {shown}" if shown else "")


def scale_of(value: float, unit: str) -> tuple[float, str]:
    """What to divide by, and the unit then. Prefixes are for seconds, joules, watt-hours, watts and grams, not money or counts."""
    if unit == "s" and abs(value) >= 120:
        return 60.0, "min"
    if unit not in ("s", "J", "Wh", "W", "g"):
        return 1.0, unit
    scale, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s * 0.9995), (1.0, ""))
    return scale, f"{prefix}{unit}"


def readable_quantity(value: float, unit: str) -> str:
    """Seconds and joules with a prefix, and what is counted a second or a joule: `21.8/s`."""
    if unit.startswith("1/"):
        return f"{value:.4g}{unit.removeprefix('1')}"
    return readable_seconds(value) if unit == "s" else readable(value, unit)


def readable_seconds(value: float) -> str:
    """A duration as `250 ms`, `14.2 s` or `58.3 min`."""
    if math.isnan(value) or abs(value) < 120:
        return readable(value, "s")
    if abs(value) < 2 * HOUR_S:
        return f"{value / 60:.1f} min"
    return f"{value / HOUR_S:.1f} h"
