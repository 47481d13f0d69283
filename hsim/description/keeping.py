"""Tasks kept at the edge: which a smaller model near the client answers, and which go to the cloud."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from hsim.description.yamlfile import Strict

Fraction = Annotated[float, Field(ge=0, le=1)]


class Keep(Strict):
    """Tasks that `pool` answers with its own model; all others go to the generate stage's pool: the cloud.

    `policy` chooses when a task first comes to a model: none, all, by-length (prompts of at most `max_input_tokens`),
    by-class (`classes`) or by-confidence: a router that sees rightly whether a task is easy with probability
    `router_accuracy` keeps those that seem so. `easy_fraction` of the tasks (of each class, where it is a mapping) are
    easy: the edge's model answers them as well as the cloud's. A hard one kept is kept wrongly.

    A task goes to the cloud after all where more than `max_waiting` visits would wait at the edge (null: it waits), and
    where its answer is judged not good enough: that is found with probability `check_accuracy` (null: nobody checks).
    The round is then asked again in the cloud, with all that follow, and what the edge did was for nothing.
    """

    pool: str
    policy: str = "by-confidence"
    easy_fraction: Fraction | dict[str, Fraction] = 1.0
    router_accuracy: Fraction = 1.0
    check_accuracy: Fraction | None = None
    max_waiting: NonNegativeInt | None = 0
    max_input_tokens: PositiveInt | None = None
    classes: tuple[str, ...] = ()
