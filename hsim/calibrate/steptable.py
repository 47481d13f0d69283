"""From measured steps of hsim's decoder to the table that the measured tier reads, tested on steps kept out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hsim.calibrate.agenda import BETWEEN, Served, step_parts
from hsim.calibrate.fit import BOUNDS, law_of, relative_nonnegative, rising, together, unsteadiness
from hsim.calibrate.options import Law
from hsim.calibrate.points import Point
from hsim.costs.composed import Timing
from hsim.costs.measured import MeasuredCosts
from hsim.costs.shapes import Segment, StepShape
from hsim.description.hardware import StepTable
from hsim.description.yamlfile import Document, validated
from hsim.metrics.statistics import t_quantile

FEWEST_POINTS = 2  # of each axis: a line needs them


@dataclass(frozen=True)
class TableName:
    """What a table is of, beside what is served."""

    name: str
    engine: str
    chip: str
    source: str


class SecondsAlone:
    """Joules of nothing: for a table that is only asked for seconds."""

    def with_joules(self, shape: StepShape, timing: Timing) -> Segment:
        """See costs.measured.Joules."""
        return Segment(timing.seconds, timing.growth_s, math.nan, math.nan, math.nan, timing.valid_steps)


def shape_of(point: Point) -> StepShape:
    """The shape of a step point."""
    contexts, chunks = step_parts(point.parameters)
    tokens = sum(t for t, _ in chunks)
    return StepShape(
        decodes=len(contexts),
        context_tokens=sum(contexts),
        chunks=len(chunks),
        chunk_tokens=tokens,
        chunk_context_tokens=tokens + sum(before for _, before in chunks),
        pairs=sum(t * before + t * (t + 1) // 2 for t, before in chunks),
    )


def predicted_s(table: StepTable, point: Point) -> float:
    """Seconds of a step point by the table, without what passes between steps."""
    return _seconds(table, shape_of(point))


def fit_steps(
    points: Sequence[Point], served: Served, name: TableName, loops: Sequence[Point] = ()
) -> tuple[StepTable | None, Law]:
    """The table of step points, and its errors on the steps that were kept out; None where too few were measured.

    `loops` are what the live loop takes between steps. Its own steps are not used: multiplying by them made predictions worse
    (docs/validation.md).
    """
    by_role: dict[str, list[Point]] = {}
    for point in points:
        by_role.setdefault(str(point.parameters["role"]), []).append(point)
    noisy = sum(bool(point.marks) for point in points)
    decode = _decode_grid(by_role.get("decode", ()))
    chunk = _chunk_lines(by_role.get("chunk", ()))
    law_name, mixed = f"steps of {name.name}", by_role.get("mixed", [])
    if decode is None or chunk is None or not mixed:
        return None, Law(law_name, len(points), noisy, None, None, "not made: too few steps were measured")
    fields: dict[str, Any] = {
        "name": name.name, "kind": "step-table", "engine": name.engine, "chip": name.chip, "source": name.source,
        "description": f"steps of {name.engine} with {served.model.name} in {served.precision} on {name.chip}",
        "model": served.model.model_dump(), "precision": served.precision,
        "median_error_fraction": None, "p90_error_fraction": None, **decode, **chunk, "extra_chunk_s": 0.0,
        "mixed_decodes": [1], "mixed_chunk_tokens": [1], "mixed_s": [[0.0]], "scale": None,
    }  # fmt: skip
    fields["extra_chunk_s"] = _extra_chunk_s(_table(fields), by_role.get("chunks", ()))
    fields |= _mixed_grid(_table(fields), mixed)
    checks = by_role.get("check", [])
    errors = [abs(predicted_s(_table(fields), point) / point.seconds - 1) for point in checks]
    law = law_of(law_name, len(points) - len(checks), noisy, errors, f"{len(checks)} random steps kept out")
    fields["scale"] = _scale(points, [math.log(p.seconds / predicted_s(_table(fields), p)) for p in checks], name)
    fields |= {"median_error_fraction": law.median_error, "p90_error_fraction": law.p90_error}
    fields |= dict(zip(("between_s", "between_per_sequence_s"), between_steps(loops), strict=True))
    return _table(fields), law


def _seconds(table: StepTable, shape: StepShape) -> float:
    """Seconds of a step by the table, without what passes between steps."""
    return MeasuredCosts(table, SecondsAlone()).segment(shape).seconds - table.between(shape.sequences)


def between_steps(loops: Sequence[Point]) -> tuple[float, float]:
    """Seconds that pass between two steps in the live loop: at all, and for each sequence. Zeros where it was not measured."""
    between = [(n, point.seconds) for n, point in _by_users(loops, BETWEEN).items()]
    if not between:
        return 0.0, 0.0
    (few, least_s), (many, most_s) = between[0], between[-1]
    slope_s = max(0.0, (most_s - least_s) / (many - few)) if many > few else 0.0
    return max(0.0, least_s - slope_s * few), slope_s


def _by_users(loops: Sequence[Point], role: str) -> dict[int, Point]:
    found = {int(p.number("users")): p for p in loops if p.parameters["role"] == role}
    return dict(sorted(found.items()))


def _scale(points: Sequence[Point], logs: Sequence[float], name: TableName) -> dict[str, Any] | None:
    """The figure by which the whole table may be off: what steps kept out of it were on average, by Student's t, and how far
    this machine moves between rounds. None where fewer than two steps were kept out.
    """
    if len(logs) < 2:  # one has no spread
        return None
    off = t_quantile(BOUNDS[1], len(logs) - 1) * np.std(logs, ddof=1) / math.sqrt(len(logs))
    half = together(np.asarray(off), np.asarray(unsteadiness(points)))
    low, high = np.exp([np.mean(logs) - half, np.mean(logs) + half]).tolist()
    source = f"{len(logs)} random steps kept out, and how far rounds are apart; {name.source}"
    return {"value": 1.0, "tier": "fitted", "source": source, "low": min(1.0, low), "high": max(1.0, high)}


def _table(fields: dict[str, Any]) -> StepTable:
    return validated(Document(f"the step table {fields['name']}", fields), StepTable)


def _decode_grid(points: Sequence[Point]) -> dict[str, Any] | None:
    """Axes and seconds of decode steps, over the largest complete grid; context never makes a step shorter."""
    cells = {(int(p.number("decodes")), int(p.number("context"))): p.seconds for p in points}
    rows, columns = _complete(set(cells))
    if min(len(rows), len(columns)) < FEWEST_POINTS:
        return None
    seconds = [rising([cells[row, column] for column in columns]) for row in rows]
    return {"decodes": rows, "contexts": columns, "decode_s": seconds}


def _complete(cells: set[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Axes of a complete grid within the cells: the row or column that lacks most is left out until none lacks any."""
    rows, columns = sorted({r for r, _ in cells}), sorted({c for _, c in cells})
    while any((r, c) not in cells for r in rows for c in columns):
        lacking = [(sum((r, c) not in cells for c in columns) / len(columns), "row", r) for r in rows]
        lacking += [(sum((r, c) not in cells for r in rows) / len(rows), "column", c) for c in columns]
        _, kind, value = max(lacking)
        (rows if kind == "row" else columns).remove(value)
    return rows, columns


def _chunk_lines(points: Sequence[Point]) -> dict[str, Any] | None:
    """For each number of chunk tokens: seconds before attention, per pair, and of a chunk that continues a prompt."""
    by_tokens: dict[int, list[Point]] = {}
    for point in points:
        by_tokens.setdefault(int(point.number("tokens")), []).append(point)
    lines = {tokens: _chunk_line(group) for tokens, group in sorted(by_tokens.items()) if len(group) > 1}
    if len(lines) < FEWEST_POINTS:
        return None
    fresh, pair, later = zip(*lines.values(), strict=True)
    return {"chunk_tokens": list(lines), "chunk_s": fresh, "pair_s": pair, "later_s": later}


def _chunk_line(points: Sequence[Point]) -> tuple[float, float, float]:
    shapes = [shape_of(point) for point in points]
    columns = [[1.0, float(s.pairs), float(s.chunk_context_tokens > s.chunk_tokens)] for s in shapes]
    fresh_s, pair_s, later_s = relative_nonnegative(np.array(columns), np.array([p.seconds for p in points]))
    return float(fresh_s), float(pair_s), float(later_s)


def _extra_chunk_s(table: StepTable, points: Sequence[Point]) -> float:
    """Seconds of each chunk but one, on average over the points that have several."""
    extras = [(point.seconds - predicted_s(table, point)) / (point.number("chunks") - 1) for point in points]
    return max(0.0, sum(extras) / len(extras)) if extras else 0.0


def _mixed_s(table: StepTable, shape: StepShape, seconds: float) -> float:
    """What a step of both takes more than the two apart: never so much less that one of the two would take nothing."""
    apart = table.model_copy(update={"mixed_s": tuple((0.0,) * len(row) for row in table.mixed_s)})
    both_s, decode_s = _seconds(apart, shape), _seconds(apart, StepShape(shape.decodes, shape.context_tokens))
    return max(seconds - both_s, -min(decode_s, both_s - decode_s))


def _mixed_grid(table: StepTable, points: Sequence[Point]) -> dict[str, Any]:
    """What steps of both take more than the two apart, over the largest complete grid."""
    cells: dict[tuple[int, int], float] = {}
    for point in points:
        shape = shape_of(point)
        cells[shape.decodes, shape.chunk_tokens] = _mixed_s(table, shape, point.seconds)
    rows, columns = _complete(set(cells))
    grid = tuple(tuple(cells[row, column] for column in columns) for row in rows)
    return {"mixed_decodes": rows, "mixed_chunk_tokens": columns, "mixed_s": grid}
