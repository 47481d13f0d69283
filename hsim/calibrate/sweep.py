"""What is asked of an endpoint to find out its step times: prompts alone, bursts, prompts that join, loads no fit sees."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hsim.backends.endpoint import Answer, Endpoint
from hsim.backends.prompts import Prompts, fresh_seeds
from hsim.calibrate.work import Unit

BURST_TOKENS = 32  # of each answer: enough steps to time, few enough to repeat
FIRSTS, FIRST_TOKENS = 3, 4  # prompts alone, one after another, and tokens of each answer
JOIN_TOKENS, JOIN_AFTER = 40, 8  # answers that are joined, and how many pieces of each come before
PER_USER = 6  # requests of each user of a load
PROMPT_PARTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the longest prompt: those asked alone
FEWEST_TOKENS = 8


@dataclass(frozen=True)
class Grid:
    """How far a sweep goes."""

    max_concurrency: int
    max_input_tokens: int

    @property
    def levels(self) -> list[int]:
        """Numbers of requests at once: powers of two, and the most."""
        return sorted({2**i for i in range(self.max_concurrency.bit_length())} | {self.max_concurrency})

    def prompt(self, part: float) -> int:
        """Tokens of a prompt that is such a part of the longest."""
        return max(FEWEST_TOKENS, round(self.max_input_tokens * part))


def units(grid: Grid, device: str, number: int) -> list[Unit]:
    """All units of a round, in an order of its own: what drifts with time then meets no unit more than another."""
    found = [Unit("first", device, {"users": 1, "input": grid.prompt(part)}) for part in PROMPT_PARTS]
    several = grid.levels[1:]
    found += [_burst(device, users, grid.prompt(part)) for users in grid.levels for part in (1 / 32, 3 / 8)]
    found += [
        _join(device, users, grid.prompt(context), grid.prompt(part))
        for users in several[-2:]
        for context, part in ((1 / 32, 1 / 8), (1 / 32, 3 / 4), (3 / 8, 3 / 4))
    ]
    found += loads(grid, device)
    random.Random(number).shuffle(found)
    return [replace(unit, round=number) for unit in {unit.point: unit for unit in found}.values()]


def loads(grid: Grid, device: str) -> list[Unit]:
    """Closed loops of users between the levels, with mixed lengths: what predictions are tested on."""
    top = grid.max_concurrency
    users = sorted({max(1, round(top * part)) for part in (3 / 8, 3 / 4, 1)})
    short, long = (grid.prompt(1 / 32), grid.prompt(1 / 4)), (grid.prompt(1 / 16), grid.prompt(3 / 4))
    plans = [(users[0], short, (12, 48)), (users[-1], short, (12, 48)), (users[len(users) // 2], long, (8, 40))]
    return [
        Unit("load", device, {"users": n, "from": low, "to": high, "least": least, "most": most})
        for n, (low, high), (least, most) in plans
    ]


def _burst(device: str, users: int, tokens: int) -> Unit:
    return Unit("burst", device, {"users": users, "input": tokens})


def _join(device: str, users: int, tokens: int, joiner: int) -> Unit:
    return Unit("join", device, {"users": users, "input": tokens, "joiner": joiner})


def load_lengths(unit: Unit) -> list[tuple[int, int]]:
    """(input, output) tokens of a load's requests, user after user: the same in every round."""
    at = {key: int(value) for key, value in unit.parameters.items()}
    draw = random.Random(str(at))
    count = at["users"] * PER_USER
    return [(draw.randint(at["from"], at["to"]), draw.randint(at["least"], at["most"])) for _ in range(count)]


class Asker:
    """Carries out units at an endpoint."""

    def __init__(self, endpoint: Endpoint, prompts: Prompts) -> None:
        self.endpoint, self.prompts = endpoint, prompts
        self._seeds = fresh_seeds()

    def ask(self, unit: Unit) -> list[Answer]:
        """The answers of a unit's requests, in the order of its description."""
        at = {key: int(value) for key, value in unit.parameters.items()}
        if unit.kind == "burst":
            return self.endpoint.run(self._together([(at["input"], BURST_TOKENS)] * at["users"]))
        if unit.kind == "join":
            return self.endpoint.run(
                self._joined(self._prompts([at["input"]] * at["users"]), *self._prompts([at["joiner"]]))
            )
        lengths = [(at["input"], FIRST_TOKENS)] * FIRSTS if unit.kind == "first" else load_lengths(unit)
        users = [lengths[i : i + PER_USER] for i in range(0, len(lengths), PER_USER)]
        plans = [list(zip(self._prompts([n for n, _ in own]), [m for _, m in own], strict=True)) for own in users]
        return self.endpoint.run(self._users(plans))

    def _prompts(self, tokens: Sequence[int]) -> list[str]:
        return [self.prompts.of_length(n, next(self._seeds)) for n in tokens]

    async def _together(self, lengths: Sequence[tuple[int, int]]) -> list[Answer]:
        texts = self._prompts([n for n, _ in lengths])
        return list(await asyncio.gather(*(self.endpoint.ask(t, m) for t, (_, m) in zip(texts, lengths, strict=True))))

    async def _joined(self, texts: Sequence[str], joiner: str) -> list[Answer]:
        """Answers under way that one more prompt joins; its own answer is the last."""
        counters = [_Counter() for _ in texts]
        asked = [
            asyncio.ensure_future(self.endpoint.ask(text, JOIN_TOKENS, counter.up))
            for text, counter in zip(texts, counters, strict=True)
        ]
        for request, counter in zip(asked, counters, strict=True):
            reached = asyncio.ensure_future(counter.reached.wait())
            await asyncio.wait({request, reached}, return_when=asyncio.FIRST_COMPLETED)
            reached.cancel()
        last = await self.endpoint.ask(joiner, FEWEST_TOKENS)
        return [*await asyncio.gather(*asked), last]

    async def _users(self, plans: Sequence[Sequence[tuple[str, int]]]) -> list[Answer]:
        """Answers user after user. A fault makes the unit void: what is under way ends, and nothing more is asked."""
        void = asyncio.Event()

        async def user(plan: Sequence[tuple[str, int]]) -> list[Answer]:
            answers: list[Answer] = []
            for text, tokens in plan:
                if void.is_set():
                    break
                answers.append(await self.endpoint.ask(text, tokens))
                if answers[-1].fault:
                    void.set()
            return answers

        return [answer for own in await asyncio.gather(*(user(plan) for plan in plans)) for answer in own]


class _Counter:
    """Counts pieces of text up to JOIN_AFTER."""

    def __init__(self) -> None:
        self.count, self.reached = 0, asyncio.Event()

    def up(self) -> None:
        self.count += 1
        if self.count >= JOIN_AFTER:
            self.reached.set()


def as_data(answer: Answer, start_s: float) -> dict[str, Any]:
    """An answer for rows.jsonl, its times from the start of its unit, to the microsecond."""
    data = asdict(answer) | {"sent_s": answer.sent_s - start_s, "ended_s": answer.ended_s - start_s}
    data["chunks_s"] = [round(at - start_s, 6) for at in answer.chunks_s]
    return data


def from_data(data: Any) -> Answer:
    """The answer that as_data gave."""
    return Answer(**{**data, "chunks_s": tuple(data["chunks_s"])})
