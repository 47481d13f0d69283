"""Hardware profiles as tables: what there is, one in full, several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from hsim.description.hardware import StepTable
from hsim.description.inventory import TIERS, Entry, errors_of
from hsim.description.quantities import Figure
from hsim.report.tables import _table
from hsim.units import readable

# The unit of a figure stands in its name: by whole words of it, the first that fits.
UNITS = {
    "flops_per_s": "FLOP/s", "flops_per_core_per_s": "FLOP/s", "bytes_per_s": "B/s", "joules_per_flop": "J/FLOP",
    "joules_per_byte": "J/B", "joules_per_unpacked_byte": "J/B", "joules_per_output_token": "J", "usd_per_h": "USD/h",
    "usd": "USD", "kgco2": "kg CO2", "bytes": "B", "hz": "Hz", "w": "W", "s": "s",
}  # fmt: skip
PER = ("s_per_", "bytes_per_")  # seconds and bytes of each layer, sequence, token ...: how the rest of a name may begin
PLAIN = ("USD", "kg")  # no prefix goes before these
BY_KIND = ("peak_flops_per_s", "flops_per_core_per_s", "host_s_per_expert_layer")  # figures by precision, by kernel
WHAT_SHOWN = 30  # letters of a description
SMALLEST = 1e-9  # prefixes end there


def inventory_table(entries: Sequence[Entry]) -> RenderableType:
    """One line a profile: what it is, and how many of its figures stand on which tier, are unknown, or rough."""
    table = _table("Profile", "kind", *(tier[:4] for tier in TIERS), "null", "rough", "what it is")
    table.columns[1].justify = table.columns[-1].justify = "left"
    for entry in entries:
        counts = [str(entry.tiers.get(tier) or "–") for tier in TIERS] + [
            str(n or "–") for n in (entry.unknown, entry.rough)
        ]
        if isinstance(entry.profile, StepTable):
            counts[0] = f"{len(entry.profile.decodes) * len(entry.profile.contexts)} steps"
        own = "calibrated: " if entry.calibration else ""
        table.add_row(entry.profile.name, entry.kind, *counts, f"{own}{entry.profile.description}"[:WHAT_SHOWN])
    return table


def profile_tables(entry: Entry) -> RenderableType:
    """One profile in full: every figure with bounds, tier and source, and how far its laws err."""
    profile = entry.profile
    head = [f"{profile.name}: {profile.description or entry.kind}", f"Kind        {entry.kind}, from {entry.file}"]
    if isinstance(profile, StepTable):
        head += [
            f"Source      {profile.source}",
            f"Held out    {_errors(profile.median_error_fraction, profile.p90_error_fraction)}",
        ]
    figures = _table("Figure", "value", "bounds", "tier", "source")
    figures.columns[3].justify = "left"
    # Sources are sentences, and many figures share one: they stand below, each once, over the whole width.
    sources = list(dict.fromkeys(figure.source for figure in entry.figures.values()))
    for path, figure in entry.figures.items():
        number = f"[{sources.index(figure.source) + 1}]"
        figures.add_row(path, told(path, figure.value), _bounds(path, figure), figure.tier, Text(number))
    parts: list[RenderableType] = [Text(head[0], style="bold"), *(Text(line) for line in head[1:]), Text()]
    if entry.figures:
        parts += [figures, Text(), *(Text(f"[{number}] {source}") for number, source in enumerate(sources, 1))]
    if laws := errors_of(entry):
        errors = _table("Law of its calibration", "points", "noisy", "median error", "p90", "held out by")
        errors.columns[-1].justify = "left"
        errors.columns[0].no_wrap = errors.columns[-1].no_wrap = False  # words give way, and numbers do not
        for law in laws:
            shown = ["–" if law[key] is None else f"{law[key]:.1%}" for key in ("median_error", "p90_error")]
            errors.add_row(law["name"], str(law["points"]), str(law["noisy"]), *shown, law["method"])
        parts += [Text(), errors]
    return Group(*parts)


def comparison_of_profiles(entries: Sequence[Entry]) -> RenderableType:
    """The figures that two or more have, side by side, each with how many times the first's it is."""
    first, *others = entries
    table = _table("Figure", first.profile.name, *(cell for entry in others for cell in (entry.profile.name, "times")))
    paths = dict.fromkeys(path for entry in entries for path in entry.figures)
    for path in paths:
        having = [entry for entry in entries if path in entry.figures]
        if len(having) < 2:
            continue
        own = first.figures.get(path)
        cells = [_marked(path, own)]
        for entry in others:
            figure = entry.figures.get(path)
            cells += [_marked(path, figure), _times(figure, own)]
        table.add_row(path, *cells)
    only = [
        f"{entry.profile.name} alone has {', '.join(mine)}" for entry in entries if (mine := _alone(entry, entries))
    ]
    marks = Text("measured or published as it stands; ~ fitted, transferred or assumed", style="dim")
    return Group(table, Text(), marks, *(Text(line, style="dim") for line in only))


def _alone(entry: Entry, entries: Sequence[Entry]) -> list[str]:
    """Groups of figures that nobody else has."""
    others = {path for other in entries if other is not entry for path in other.figures}
    return list(dict.fromkeys(".".join(path.split(".")[:2]) for path in entry.figures if path not in others))


def _marked(path: str, figure: Figure | None) -> str:
    if figure is None:
        return ""
    rough = figure.value is not None and figure.tier not in ("measured", "published")
    return ("~" if rough else "") + told(path, figure.value)


def _times(figure: Figure | None, own: Figure | None) -> str:
    if figure is None or own is None or figure.value is None or not own.value:
        return "–"
    return f"{figure.value / own.value:.3g}"


def told(path: str, value: float | None) -> str:
    """A figure's value with the unit that its name says."""
    if value is None:
        return "unknown"
    unit = unit_of(path)
    if unit is None:
        return f"{value:.4g}"
    if unit == "B" and 0 < abs(value) < 1e4:  # of each token, weight ...: few, and parts of a byte have no prefix
        return f"{value:.4g} B"
    if 0 < abs(value) < SMALLEST:
        return f"{value:.3g} {unit}"
    return f"{value:.4g} {unit}" if unit.startswith(PLAIN) else readable(value, unit)


def unit_of(path: str) -> str | None:
    """The unit of a figure by its name, which is the last part of its path but where figures stand by kind."""
    parts = path.split(".")
    name = next((part for part in parts if part in BY_KIND), parts[-1])
    words = f"_{name}"
    ends = next((unit for ending, unit in UNITS.items() if words.endswith(f"_{ending}")), None)
    return ends or next((UNITS[per.partition("_")[0]] for per in PER if f"_{per}" in words), None)


def _bounds(path: str, figure: Figure) -> str:
    if figure.low is None or figure.low == figure.high:
        return "–"
    return f"{told(path, figure.low)} to {told(path, figure.high)}"


def _errors(median: float | None, p90: float | None) -> str:
    return (
        "no step was held out"
        if median is None or p90 is None
        else f"errs {median:.1%} (p90 {p90:.1%}) on steps kept out"
    )
