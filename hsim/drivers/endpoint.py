"""Visits to the model sent to an OpenAI-compatible endpoint: a replica at request level, whose scheduler is hidden.

It shares tasks, stages, tools, deadlines, log and metrics with other live runs, and no batching: how long a request waits
in the server and how long it is served are one time, seen from the client.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from simpy.events import Event

from hsim.backends.endpoint import Answer, Endpoint, EndpointSpec, Line
from hsim.backends.prompts import Prompts, fresh_seeds
from hsim.drivers.prepared import Prepared
from hsim.engine.environment import TASK_GOES_ON
from hsim.engine.life import Pipeline
from hsim.engine.pool import Pool
from hsim.engine.visits import Prompt
from hsim.errors import DescriptionError
from hsim.log import Log, Outcome, Stage
from hsim.policies.routing import ROUTERS
from hsim.policies.views import DeviceView, VisitView

if TYPE_CHECKING:
    from hsim.drivers.live import LiveEnvironment

WARM_UP_TOKENS = 8
NOTED = 0.01  # lengths that differ by more than this from what was drawn are told


@dataclass(frozen=True)
class RemoteSpec:
    """An endpoint to send visits to, and where its tokenizer is, for prompts of exact length."""

    endpoint: EndpointSpec
    tokenizer: Path | None = None


class Remote:
    """An endpoint that is open: it takes the generate visits of live runs. Raises BackendError where it gives no answer."""

    def __init__(self, spec: RemoteSpec) -> None:
        self.spec = spec
        self.endpoint = Endpoint(spec.endpoint)
        self.seeds = fresh_seeds()
        self._lines: list[Line] = []
        self._free: list[Line] = []
        try:
            told = self.endpoint.meet()
            self.prompts = Prompts(self.endpoint, spec.tokenizer)
            self.endpoint.run(self.endpoint.ask(self.prompts.of_length(64, next(self.seeds)), WARM_UP_TOKENS))
        except BaseException:  # Ctrl-C too
            self.endpoint.close()
            raise
        self.notes = (told, self.prompts.note, "its scheduler is hidden: waiting and being served there are one time")

    def burst(self, users: int, tokens: int, output_tokens: int) -> list[Answer]:
        """So many requests at once."""
        texts = [self.prompts.of_length(tokens, next(self.seeds)) for _ in range(users)]

        async def together() -> list[Answer]:
            return list(await asyncio.gather(*(self.endpoint.ask(text, output_tokens) for text in texts)))

        return self.endpoint.run(together())

    def line(self) -> Line:
        """A line that nobody uses, also one of an earlier run; `hang_up` gives it back once its answer was taken."""
        if self._free:
            return self._free.pop()
        self._lines.append(self.endpoint.line())
        return self._lines[-1]

    def hang_up(self, line: Line) -> None:
        """Others may have the line."""
        self._free.append(line)

    def close(self) -> None:
        """End its connections, its thread and its lines."""
        self.endpoint.close()  # first: requests that it abandons still signal on their lines
        for line in self._lines:
            line.close()

    def taken_over(self, env: LiveEnvironment, log: Log, pipeline: Pipeline, sent: Sent) -> Pipeline:
        """The pipeline with its generate visits going to the endpoint."""
        pool = pipeline.pools[Stage.GENERATE]
        index = pool.devices[0].index
        device = _Served(env, index, self, sent)
        log.pools[pool.name] = replace(
            log.pools[pool.name], what=f"endpoint {self.spec.endpoint.base_url}", devices=(index,)
        )
        pools = {
            **pipeline.pools,
            Stage.GENERATE: Pool[Prompt](pool.name, [device], ROUTERS["round-robin"], pool.number),
        }
        return replace(pipeline, pools=pools, prefix_caching=False)


@dataclass
class Sent:
    """What became of the requests of a run: faults by what they were, retries, and lengths asked for and got."""

    failures: Counter[str]
    requests: int = 0
    retried: int = 0
    uncounted: int = 0
    inputs: list[tuple[int, int]] = field(default_factory=list)
    outputs: list[tuple[int, int]] = field(default_factory=list)

    def take(self, asked: tuple[int, int], answer: Answer) -> None:
        """Note one answer to a request of (input, output) tokens."""
        self.requests += 1
        self.retried += answer.attempts > 1
        if answer.fault:
            self.failures[f"request: {answer.fault}: {answer.problem}"] += 1
            return
        self.uncounted += not answer.counted
        self.outputs.append((asked[1], answer.output_tokens))
        if answer.input_tokens is not None:
            self.inputs.append((asked[0], answer.input_tokens))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result must know."""
        notes = []
        if self.retried:
            notes.append(
                f"{self.retried} of {self.requests} requests were tried again; their time counts from the first"
            )
        if self.uncounted:
            notes.append(f"{self.uncounted} answers gave no usage: their tokens are pieces of text")
        for what, lengths in (("prompts", self.inputs), ("answers", self.outputs)):
            off = statistics.mean(got / asked - 1 for asked, got in lengths) if lengths else 0.0
            if abs(off) > NOTED:
                notes.append(f"{what} were {off:+.1%} off the lengths drawn, on average")
        return tuple(notes)


class _Served:
    """The endpoint as the device of a pool: every visit is a request of its own."""

    def __init__(self, env: LiveEnvironment, index: int, remote: Remote, sent: Sent) -> None:
        self.env, self.index, self.remote, self.sent = env, index, remote, sent
        self._lines: dict[Prompt, Line] = {}
        self._clock_s = time.monotonic() - env.now  # the endpoint's instants are those of time.monotonic()

    def withdraw(self, stage: Stage) -> Prompt | None:
        """See Server: what an endpoint was sent cannot be taken back."""
        return None

    def waited_s(self) -> float:
        """See Server: how long its queue is, an endpoint does not tell."""
        return 0.0

    def view(self, visit: VisitView) -> DeviceView:
        """What a router may see."""
        return DeviceView(len(self._lines), 0, 0, len(self._lines), max(1, len(self._lines)))

    def submit(self, prompt: Prompt) -> None:
        """Send a request; the visit is done when its answer has come, whatever it is."""
        line = self._lines[prompt] = self.remote.line()
        prompt.device, prompt.started_s = self.index, prompt.queued_s
        text = self.remote.prompts.of_length(prompt.input_tokens, next(self.remote.seeds))
        done = self.env.ask(line, (text, prompt.output_tokens))
        assert done.callbacks is not None
        done.callbacks.append(partial(self._end, prompt))

    def give_up(self, prompt: Prompt) -> None:
        """The client is gone: its request is closed."""
        prompt.outcome = Outcome.TIMED_OUT
        self._lines[prompt].abandon()

    def _end(self, prompt: Prompt, event: Event) -> None:
        self.remote.hang_up(self._lines.pop(prompt))
        answer: Answer = event.value.value  # type: ignore[union-attr]
        prompt.served_s = self.env.now
        if prompt.outcome is Outcome.SERVED:
            self.sent.take((prompt.input_tokens, prompt.output_tokens), answer)
            if answer.fault:
                prompt.outcome = Outcome.FAILED
        if answer.chunks_s:
            prompt.first_token_s = answer.chunks_s[0] - self._clock_s
            prompt.served_s = answer.chunks_s[-1] - self._clock_s
            prompt.generated_tokens = answer.output_tokens
        if answer.input_tokens is not None:
            prompt.input_tokens = answer.input_tokens
        self.env.trigger_at(prompt.done, self.env.now, TASK_GOES_ON + prompt.task)


def check_remote(prepared: Prepared) -> None:
    """What an endpoint cannot be asked to show is refused before anything starts."""
    where, stages = prepared.system.document.where, prepared.system.scenario.stages
    if stages.prefill:
        raise DescriptionError(
            where(("stages", "prefill")), "an endpoint shows one pool, whatever stands behind it", "leave it out"
        )
    if len(stages.pools("generate")) > 1:
        raise DescriptionError(where(("stages", "generate")), "an endpoint is one pool", "name one")
