"""From an endpoint's answers to its step times: laws of steps, a step table, and loads predicted that no fit has seen."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hsim.backends.endpoint import Answer
from hsim.calibrate import fit
from hsim.calibrate.options import Law, LoadPoint
from hsim.calibrate.points import Point
from hsim.calibrate.steptable import SecondsAlone
from hsim.calibrate.sweep import BURST_TOKENS, PER_USER, from_data
from hsim.calibrate.work import Row
from hsim.costs.measured import MeasuredCosts
from hsim.description.hardware import StepTable
from hsim.description.model import ModelArchitecture
from hsim.drivers.replay import Limits, replay
from hsim.units import readable
from hsim.workload.tasks import Round, Task

NEIGHBOURS = 4  # units before and after, whose pace is a unit's own
FEWEST_STEPS = 4  # of a window that times a step
NOISY_SPREAD = 0.1
BUDGETS = (
    64,
    128,
    256,
    512,
    1024,
    2048,
    8192,
)  # max_num_batched_tokens that are tried, and extra_chunk_s as parts of a step
EXTRA_PARTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
AS_GOOD = 1.02  # a larger budget is preferred where it misses by no more than this times the least
ROOM_TOKENS = 10**7  # of KV cache while fitting: what an endpoint holds does not show in a sweep


@dataclass(frozen=True)
class Steady:
    """The part of several answers in which all decode: seconds of a step, mean context, and how many steps there were."""

    step_s: float
    context_tokens: float
    steps: float


def steady(answers: Sequence[Answer]) -> Steady | None:
    """From the last first token to the first last one; None where fewer than FEWEST_STEPS steps lie between."""
    start_s, end_s = max(a.chunks_s[0] for a in answers), min(a.chunks_s[-1] for a in answers)
    return between(answers, start_s, end_s)


def between(answers: Sequence[Answer], start_s: float, end_s: float) -> Steady | None:
    """Steps of answers that all decode from one instant to another, each of which is the end of a step of one of them."""
    steps = statistics.mean(sum(start_s < at <= end_s for at in a.chunks_s) * a.tokens_per_chunk for a in answers)
    if steps < FEWEST_STEPS:
        return None
    before = [sum(at <= start_s for at in a.chunks_s) * a.tokens_per_chunk + (a.input_tokens or 0) for a in answers]
    return Steady((end_s - start_s) / steps, statistics.mean(before) + steps / 2, steps)


def together(answers: Sequence[Answer]) -> int:
    """The most answers that were between their first and last token at an instant."""
    ends = [(a.chunks_s[-1], -1) for a in answers] + [(a.chunks_s[0], 1) for a in answers]
    most = running = 0
    for _, change in sorted(ends):
        running += change
        most = max(most, running)
    return most


def joined_s(answers: Sequence[Answer]) -> tuple[float, float] | None:
    """What a joining prompt adds to the steps of those that decode, and their context then; the joiner is last."""
    *decoding, joiner = answers
    last = [max((at for at in a.chunks_s if at <= joiner.sent_s), default=math.inf) for a in decoding]
    quiet = between(decoding, max(a.chunks_s[0] for a in decoding), min(last))
    after = [min((at for at in a.chunks_s if at > joiner.chunks_s[0]), default=math.inf) for a in decoding]
    if quiet is None or max(*last, *after) == math.inf:
        return None
    steps = [
        sum(a < at <= b for at in one.chunks_s) * one.tokens_per_chunk
        for one, a, b in zip(decoding, last, after, strict=True)
    ]
    extras = [b - a - n * quiet.step_s for n, a, b in zip(steps, last, after, strict=True)]
    return statistics.mean(extras), quiet.context_tokens


# ---- rows of several rounds as points, each row at the pace of its time


@dataclass(frozen=True)
class Seen:
    """One unit in one round: its answers, all of them whole."""

    row: Row
    answers: tuple[Answer, ...]

    @property
    def point(self) -> str:
        return self.row.key.rpartition(" #")[0]

    @property
    def has_steps(self) -> bool:
        """Whether any of its answers has a token after its first: servers without ignore_eos may end all at once."""
        return any(answer.output_tokens > 1 and answer.e2e_s > answer.ttft_s for answer in self.answers)

    def number(self, key: str) -> int:
        return int(self.row.parameters[key])


def seen_of(rows: Sequence[Row]) -> list[Seen]:
    """The rows that have answers without a fault."""
    return [
        Seen(row, tuple(from_data(a) for a in row.answers)) for row in rows if row.answers and not row.reading.failure
    ]


Values = dict[str, dict[int, float]]
"""By the name of a quantity of a unit, its value in each round."""


def paces(seen: Sequence[Seen], values: Values) -> dict[str, float]:
    """How many times longer things took about each row than in their median round, by the median over its neighbours.

    A machine that is shared gets slower and faster as a whole: what units asked one after another have in common is
    taken off. Loads have a pace and lend none.
    """
    ratios: dict[str, list[float]] = {}
    for name, by_round in values.items():
        middle = statistics.median(by_round.values())
        point = name.partition("; ")[2]
        for number, value in by_round.items():
            if middle > 0:
                ratios.setdefault(f"{point} #{number}", []).append(value / middle)
    rows = [ratios.get(one.row.key, []) for one in seen]
    near = (
        [ratio for row in rows[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1] for ratio in row] for i in range(len(rows))
    )
    return {one.row.key: statistics.median(own) if own else 1.0 for one, own in zip(seen, near, strict=True)}


@dataclass(frozen=True)
class Sweep:
    """What was seen, with the pace of its time taken off: points for the laws, and the answers themselves.

    `limit` is how many answers the server decodes at a time, where it showed one.
    """

    seen: tuple[Seen, ...]
    limit: int | None
    pace: Mapping[str, float]
    decode: tuple[Point, ...]
    first: tuple[Point, ...]
    joins: tuple[Point, ...]


def most_together(seen: Sequence[Seen]) -> int | None:
    """How many answers the server decodes at a time, where bursts of short prompts show that there is a limit.

    Bursts of which an answer ended early show none: it had gone before others came. Nor do those of which an answer came
    all at once, to a client that had no core while it was written.
    """
    shortest = min((one.number("input") for one in seen if one.row.kind == "burst"), default=0)
    by_users: dict[int, list[int]] = {}
    for one in seen:
        whole = all(a.output_tokens >= BURST_TOKENS and a.chunks_s[0] < a.chunks_s[-1] for a in one.answers)
        if one.row.kind == "burst" and whole and one.number("input") == shortest:
            by_users.setdefault(one.number("users"), []).append(together(one.answers))
    counted = {users: round(statistics.median(counts)) for users, counts in by_users.items()}
    limit = max(counted.values(), default=0)
    return limit if any(users > limit for users in counted) else None


def sweep_of(rows: Sequence[Row]) -> Sweep:
    """Points of all rounds: steps of bursts, first tokens of prompts alone, and what joining prompts add."""
    seen = seen_of(rows)
    limit = most_together(seen)
    values: dict[str, Values] = {"decode": {}, "first": {}, "join": {}}
    context: dict[tuple[str, str], list[float]] = {}
    like: dict[str, Seen] = {}
    for one in seen:
        like[one.point] = one
        for kind, value, tokens in _figures(one, limit):
            values[kind].setdefault(one.point, {})[one.row.round] = value
            context.setdefault((kind, one.point), []).append(tokens)
    pace = paces(seen, {f"{kind}; {name}": values[kind][name] for kind in ("decode", "first") for name in values[kind]})

    def points(kind: str) -> tuple[Point, ...]:
        found = []
        for name, by_round in values[kind].items():
            own = [value / pace[f"{name} #{number}"] for number, value in by_round.items()]
            users = min(like[name].number("users"), limit or like[name].number("users"))
            found.append(_point(kind, like[name], users, own, statistics.median(context[kind, name])))
        return tuple(found)

    return Sweep(tuple(seen), limit, pace, points("decode"), points("first"), points("join"))


def _figures(one: Seen, limit: int | None) -> list[tuple[str, float, float]]:
    """(kind, seconds, context tokens) of the quantities that a unit shows."""
    found = []
    if one.row.kind == "burst":
        first = sorted(one.answers, key=lambda answer: answer.chunks_s[0])[:limit]  # those that are decoded together
        if (window := steady(first)) is not None:
            found.append(("decode", window.step_s, window.context_tokens))
    elif one.row.kind == "first":
        tokens = statistics.median(answer.input_tokens or one.number("input") for answer in one.answers)
        found.append(("first", statistics.median(answer.ttft_s for answer in one.answers), tokens))
    elif one.number("users") < (limit or math.inf) and one.row.kind == "join" and (extra := joined_s(one.answers)):
        found.append(("join", *extra))
    return found


def _point(kind: str, like: Seen, users: int, seconds: Sequence[float], context: float) -> Point:
    middle = statistics.median(seconds)
    low, high = (float(q) for q in np.quantile(seconds, (0.25, 0.75)))
    spread = (high - low) / middle if middle > 0 else math.inf
    marks = (f"half of its rounds differ by {spread:.0%}",) if spread > NOISY_SPREAD else ()
    prompt = like.answers[0].input_tokens or like.number("input")
    parameters: dict[str, Any] = {"users": users, "input": prompt, "context": context}
    if kind == "join":
        parameters["joiner"] = like.answers[-1].input_tokens or like.number("joiner")
    return Point(kind, like.row.device, parameters, middle, spread, len(seconds), marks)


# ---- laws


@dataclass(frozen=True)
class StepModel:
    """Fitted seconds. A decode step of n sequences takes level_s(n) and context_s for each token of context read.

    A prompt chunk takes chunk_s, token_s for each token and pair_s for each (query, key) pair; extra_chunk_s for each
    chunk of a step but the first. `joins_s` is what a step of both takes beside the two apart, by (sequences, tokens),
    and `across_s` what each prompt token takes for each token of the others' contexts.
    """

    levels: tuple[int, ...]
    level_s: tuple[float, ...]
    context_s: float
    request_s: float
    chunk_s: float
    token_s: float
    pair_s: float
    extra_chunk_s: float = 0.0
    joins_s: Mapping[tuple[int, int], float] = field(default_factory=dict)
    across_s: float = 0.0

    def first_s(self, tokens: float) -> float:
        """A chunk that is a whole prompt, without what passes before it."""
        return self.chunk_s + self.token_s * tokens + self.pair_s * tokens * (tokens + 1) / 2

    @property
    def told(self) -> tuple[str, ...]:
        """In words."""
        more = ", ".join(f"{n}: {readable(s, 's')}" for n, s in zip(self.levels, self.level_s, strict=True))
        across = (
            f"; {readable(self.across_s, 's')} a token of prompt and token of the others' contexts"
            if self.across_s
            else ""
        )
        chunk, token, pair, extra, context, request = (
            readable(s, "s")
            for s in (self.chunk_s, self.token_s, self.pair_s, self.extra_chunk_s, self.context_s, self.request_s)
        )
        return (
            f"a decode step takes, by sequences, {more}; and {context} a token of context",
            f"a prompt takes {chunk}, {token} a token and {pair} a pair; {extra} for each further one in a step{across}",
            f"host time: {request} a request before its first step",
        )


def fit_model(sweep: Sweep) -> tuple[StepModel | None, list[Law]]:
    """Non-negative laws of decode steps and of first tokens, each tested on folds left out."""
    decode = sweep.decode
    levels = sorted({int(p.number("users")) for p in decode})
    knots = list(itertools.pairwise(levels))

    def decode_terms(point: Point) -> list[float]:
        users = point.number("users")
        rises = [min(max(users - low, 0.0), high - low) for low, high in knots]  # a step never gets shorter with more
        return [1.0, users * point.number("context"), *rises]

    def first_terms(point: Point) -> list[float]:
        tokens = point.number("context")
        return [1.0, tokens, tokens * (tokens + 1) / 2]

    fitted, predicted = fit.fit_sum(decode_terms, [0.0] * (2 + len(knots)))
    steps, decode_law = _tested("decode steps", decode, 2 + len(knots), (fitted, predicted))
    fitted, predicted = fit.fit_sum(first_terms, [0.0] * 3)
    first, first_law = _tested("first tokens", sweep.first, 3, (fitted, predicted))
    if steps is None or first is None:
        return None, [decode_law, first_law]
    level_s = np.cumsum([steps[0], *(rise * (high - low) for rise, (low, high) in zip(steps[2:], knots, strict=True))])
    # A prompt of no token costs what a step of no sequence does; what the first token takes beyond that is the request's.
    chunk_s = min(float(first[0]), float(level_s[0]))
    model = StepModel(
        tuple(levels), tuple(float(s) for s in level_s), float(steps[1]), float(first[0]) - chunk_s,
        chunk_s, float(first[1]), float(first[2]),
    )  # fmt: skip
    across_s, joins = across(sweep.joins), {}
    # Of a prompt that joined several contexts, the shortest have the last word.
    for point in sorted(sweep.joins, key=_others_tokens, reverse=True):
        tokens = point.number("joiner")
        alone_s = model.first_s(tokens) + across_s * tokens * _others_tokens(point)
        joins[int(point.number("users")), int(tokens)] = max(point.seconds, 0.0) - alone_s
    return replace(model, joins_s=joins, across_s=across_s), [decode_law, first_law]


def _others_tokens(point: Point) -> float:
    """Tokens of context of those that a prompt joins."""
    return point.number("users") * point.number("context")


def across(joins: Sequence[Point]) -> float:
    """Seconds for each token of a joining prompt and each token of the others' contexts: from the same prompt that joins as
    many with short contexts and with long ones. 0 where the two differ by no more than their rounds do.
    """
    found: dict[tuple[float, float], list[Point]] = {}
    for point in joins:
        found.setdefault((point.number("users"), point.number("joiner")), []).append(point)
    slopes = []
    for (_, tokens), points in found.items():
        short, long = min(points, key=_others_tokens), max(points, key=_others_tokens)
        if (more := _others_tokens(long) - _others_tokens(short)) > 0:
            rise_s, noise_s = long.seconds - short.seconds, max(_noise_s(p) for p in (short, long))
            slopes.append(rise_s / (tokens * more) if rise_s > noise_s else 0.0)
    return statistics.median(slopes) if slopes else 0.0


def _noise_s(point: Point) -> float:
    """How far its rounds differ; of one round, as far as noisy ones do."""
    return (point.spread if point.rounds > 1 else NOISY_SPREAD) * point.seconds


def _tested(name: str, points: Sequence[Point], fewest: int, law: Any) -> tuple[fit.Array | None, Law]:
    """As fit.tested, on all points: one that is left out for its noise would take its number of sequences with it."""
    plain = [replace(point, marks=()) for point in points]
    found, test = fit.tested(name, plain, fewest, *law)
    return found, replace(test, noisy=sum(bool(point.marks) for point in points))


def busy_s(answers: Sequence[Answer], request_s: float) -> float:
    """Seconds in which at least one request was past its latency and not yet answered."""
    spans = sorted((answer.sent_s + request_s, answer.chunks_s[-1]) for answer in answers)
    busy, until_s = 0.0, -math.inf
    for start_s, end_s in spans:
        busy += max(0.0, end_s - max(start_s, until_s))
        until_s = max(until_s, end_s)
    return busy


def fit_watts(sweep: Sweep, request_s: float, idle_w: float, model: ModelArchitecture) -> tuple[fit.Array | None, Law]:
    """Watts above loaded idle while busy, joules of an output token and of a FLOP, from what meters counted beside units.

    The rounds of a unit are taken together: their windows are short for counters that tick ten times a second.
    """
    drawn: dict[str, list[float]] = {}
    for one in sweep.seen:
        reading = one.row.reading
        if reading.watts is not None and reading.window_s:
            inputs = sum(answer.input_tokens or 0 for answer in one.answers)
            outputs = sum(answer.output_tokens for answer in one.answers)
            flops = 2.0 * model.parameters * (inputs + outputs)
            work = (reading.watts * reading.window_s, reading.window_s, busy_s(one.answers, request_s), outputs, flops)
            drawn[one.point] = [a + b for a, b in zip(drawn.get(one.point, [0.0] * len(work)), work, strict=True)]
    # A law is of seconds elsewhere; here joules take their place.
    names = ("window_s", "busy_s", "output_tokens", "flops")
    points = [Point("joules", "", dict(zip(names, x[1:], strict=True)), x[0], 0.0, 1) for x in drawn.values()]
    fitted, predicted = fit.fit_sum(
        lambda p: [p.number(key) for key in names[1:]], [0.0] * 3, lambda p: idle_w * p.number("window_s")
    )
    return fit.tested("joules beside the endpoint", points, 4, fitted, predicted)


def table_fields(model: StepModel, sweep: Sweep) -> dict[str, Any]:
    """The numbers of a StepTable that says the same: axes end where measuring did."""
    contexts = sorted(p.number("context") for p in sweep.decode)
    low, high = max(1, math.floor(contexts[0])), math.ceil(contexts[-1])
    levels = model.levels if len(model.levels) > 1 else (model.levels[0], model.levels[0] + 1)
    level_s = model.level_s if len(model.levels) > 1 else (model.level_s[0],) * 2
    prompts = sorted(int(p.number("context")) for p in sweep.first)
    chunks = (max(1, prompts[0]), prompts[-1])
    users, joiners = (sorted({key[i] for key in model.joins_s}) for i in (0, 1))
    whole = bool(model.joins_s) and all((u, j) in model.joins_s for u in users for j in joiners)
    if not whole:
        users, joiners = [1], [1]
    mixed = (
        {key: max(value, -model.level_s[0]) for key, value in model.joins_s.items()}
        if whole
        else {(1, 1): -model.chunk_s}
    )
    return {
        "decodes": levels,
        "contexts": (low, max(high, low + 1)),
        "decode_s": tuple(
            tuple(s + model.context_s * n * c for c in (low, max(high, low + 1)))
            for n, s in zip(levels, level_s, strict=True)
        ),
        "chunk_tokens": chunks,
        "chunk_s": tuple(model.chunk_s + model.token_s * n for n in chunks),
        "pair_s": (model.pair_s,) * 2,
        "later_s": (0.0, 0.0),
        "extra_chunk_s": model.extra_chunk_s,
        "across_s": model.across_s,
        "mixed_decodes": tuple(users),
        "mixed_chunk_tokens": tuple(joiners),
        "mixed_s": tuple(tuple(mixed[u, j] for j in joiners) for u in users),
    }


def costs_of(table: StepTable) -> MeasuredCosts:
    """Seconds of a table."""
    return MeasuredCosts(table, SecondsAlone())


# ---- units as the engine would serve them

QUANTITIES = {"requests": "1/s", "ttft mean": "s", "tpot mean": "s", "e2e mean": "s"}


def tasks_of(one: Seen) -> list[Task]:
    """The requests of a burst or a load, with the tokens that they really had: a closed loop of its users."""
    users = one.number("users")
    each = PER_USER if one.row.kind == "load" else 1
    tasks = []
    for i, answer in enumerate(one.answers):
        user, nth = divmod(i, each)
        lengths = Round(None, answer.input_tokens or one.number("input"), answer.output_tokens)
        tasks.append(Task(nth * users + user, 0.0, "request", 0, answer.output_tokens, (lengths,), user=user))
    return sorted(tasks, key=lambda task: task.id)


def measured_of(one: Seen, pace: float) -> dict[str, float]:
    """The quantities of a unit that has steps, with the pace of its time taken off."""
    answers = one.answers
    span_s = max(a.chunks_s[-1] for a in answers) - min(a.sent_s for a in answers)
    tpot_s = [(a.e2e_s - a.ttft_s) / (a.output_tokens - 1) for a in answers if a.output_tokens > 1]
    values = {
        "ttft mean": statistics.mean(a.ttft_s for a in answers) / pace,
        "tpot mean": statistics.mean(tpot_s) / pace,
        "e2e mean": statistics.mean(a.e2e_s for a in answers) / pace,
    }
    return {"requests": len(answers) / span_s * pace} | values


def predicted_of(one: Seen, costs: MeasuredCosts, limits: Limits) -> dict[str, float]:
    """The same quantities from the engine."""
    rows = replay(tasks_of(one), costs, limits)
    several = rows["output_tokens"] > 1
    tpot_s = (rows["served_s"] - rows["first_token_s"])[several] / (rows["output_tokens"][several] - 1)
    return {
        "requests": len(one.answers) / float(rows["served_s"].max()),
        "ttft mean": float((rows["first_token_s"] - rows["ready_s"]).mean()),
        "tpot mean": float(tpot_s.mean()),
        "e2e mean": float((rows["served_s"] - rows["ready_s"]).mean()),
    }


def load_points(sweep: Sweep, costs: MeasuredCosts, limits: Limits) -> list[LoadPoint]:
    """Every load, predicted and measured: none of them was part of a fit."""
    by_point: dict[str, list[Seen]] = {}
    for one in sweep.seen:
        if one.row.kind == "load" and one.has_steps:
            by_point.setdefault(one.point, []).append(one)
    points = []
    for group in by_point.values():
        rounds = [measured_of(one, sweep.pace[one.row.key]) for one in group]
        predicted = predicted_of(group[0], costs, limits)
        first = group[0]
        name = f"{first.number('users')} users, {first.number('from')} to {first.number('to')} tokens in, {first.number('least')} to {first.number('most')} out"
        for quantity, unit in QUANTITIES.items():
            values = [values[quantity] for values in rounds]
            middle = statistics.median(values)
            spread = float(np.subtract(*np.quantile(values, (0.75, 0.25)))) / middle if len(values) > 1 else None
            points.append(LoadPoint(name, quantity, unit, predicted[quantity], middle, spread, len(values)))
    return points


def load_laws(points: Sequence[LoadPoint]) -> list[Law]:
    """How far off the loads were predicted, by quantity."""
    laws = []
    for quantity in QUANTITIES:
        mine = [point for point in points if point.quantity == quantity]
        noisy = sum((point.spread_fraction or 0.0) > NOISY_SPREAD for point in mine)
        errors = [abs(point.error_fraction) for point in mine]
        laws.append(fit.law_of(f"{quantity} of loads left out", len(mine), noisy, errors, "loads that no fit has seen"))
    return laws
