"""What visitors may ask for: scenarios from files and links are bounded, name no files, and are checked by the schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path

from hsim.dashboard.state import OWN, Question, shipped_scenarios
from hsim.dashboard.traces import beside_its_traces, is_upload
from hsim.description.quantities import Constant, Distribution, Histogram, Lognormal, Uniform
from hsim.description.scenario import ClosedArrivals, EnginePool, Scenario, checked
from hsim.description.system import System, resolve
from hsim.description.yamlfile import Document, leaves, with_settings
from hsim.errors import DescriptionError
from hsim.plan import Problem, problem_of
from hsim.workload.files import found

SCENARIO_BYTES = 64 * 1024
NESTING = 30
MAX_TASKS = 40_000
MAX_ROUNDS = 200_000  # visits to the model that one path draws, on average
MAX_SERVERS = 1_000
MAX_FLEETS = 2_000
MAX_NAMED = 50  # tiers, pools or classes
FILES = ("file", "tokenizer")
_PATHLIKE = re.compile(r"[/\\]|^~|\.\.|\.json$")
_CODE = re.compile(r"^code:|\.py(:|$)")


def uploaded(data: bytes) -> Question:
    """The question that an uploaded file asks. Raises DescriptionError for what is no scenario, or too large a one."""
    if len(data) > SCENARIO_BYTES:
        size = f"has {len(data):,} bytes"
        raise DescriptionError(OWN, size, f"a scenario is a YAML file of at most {SCENARIO_BYTES:,} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise DescriptionError(OWN, "is not text in UTF-8", "upload a scenario in YAML") from None
    _check_nesting(text)
    question = Question("", text)
    question = question.chosen() if isinstance(question.as_read().data, dict) else question
    admitted(question)
    return question


def admitted(question: Question) -> System:
    """The system that a question describes, once it is known to be safe and small enough to simulate here.

    Raises DescriptionError.
    """
    if len(question.text.encode()) > SCENARIO_BYTES:
        raise DescriptionError(OWN, "is too large", f"a scenario has at most {SCENARIO_BYTES:,} bytes")
    for text in (question.text, *question.settings):
        _check_nesting(text)
    document = question.document()
    _check_names_no_file(document, _files_of(question))
    document = beside_its_traces(document)
    scenario = checked(document)
    _check_size(scenario, document)
    return resolve(scenario, document)


def admitted_problem(question: Question, plan: Sequence[str]) -> Problem:
    """The planning problem of a question, whose space is small enough to be searched here. Raises DescriptionError."""
    admitted(question)
    for setting in plan:
        _check_nesting(setting)
    document = with_settings(question.document(), plan)
    _check_names_no_file(document, _files_of(question))
    document = beside_its_traces(document)
    space = prod(len(v) for entry in document.data["fleet"].values() for v in entry.values() if isinstance(v, list))
    if space > MAX_FLEETS:
        what = f"allows {space:,} fleets"
        raise DescriptionError(document.where(("fleet",)), what, f"the dashboard searches at most {MAX_FLEETS:,}")
    return problem_of(document)


def lacking(question: Question) -> str:
    """The file that a shipped scenario names, where it is not here; empty where nothing is missing."""
    files = _files_of(question)
    if not files:
        return ""
    document = question.document()
    named = [value for path, value in leaves(document.data) if path[-1] in FILES and str(value) in files]
    return next((file for file in named if not found(file, Path(document.file).parent).exists()), "")


def _check_nesting(text: str) -> None:
    # Deep nesting makes the parser recurse, a thing that only a hostile file does.
    opened = deepest = 0
    for letter in text:
        opened += (letter in "[{") - (letter in "]}")
        deepest = max(deepest, opened)
    indented = max((len(line) - len(line.lstrip(" -")) for line in text.splitlines()), default=0)
    if deepest > NESTING or indented > 8 * NESTING:
        raise DescriptionError(OWN, "is nested too deep", f"a scenario has at most {NESTING} levels")


def _files_of(question: Question) -> set[str]:
    """Files that a shipped scenario itself names; nobody else may name one."""
    if question.text or question.base not in shipped_scenarios():
        return set()
    return {str(value) for path, value in leaves(question.as_read().data) if path[-1] in FILES}


def _check_names_no_file(document: Document, allowed: set[str]) -> None:
    """Profiles and models are found by name; a path would read whatever file of this machine it leads to."""
    for path, value in leaves(document.data):
        if path[-1] == "source":  # where a figure comes from, in words that nobody opens
            continue
        named = path[-1] in FILES and value is not None and not is_upload(path, value)
        if str(value) not in allowed and (named or (isinstance(value, str) and _PATHLIKE.search(value))):
            remedy = "the dashboard reads shipped profiles and models by name alone, and traces that are uploaded"
            raise DescriptionError(document.where(path), "names a file", remedy)
        if isinstance(value, str) and _CODE.search(value):
            raise DescriptionError(document.where(path), "names code", "the dashboard runs none; name a shipped policy")


def _check_size(scenario: Scenario, document: Document) -> None:
    """Raises DescriptionError for what would take minutes or gigabytes to simulate."""
    workload = scenario.workload
    tasks = workload.tasks or MAX_TASKS
    arrivals = workload.arrivals
    rounds = tasks * max(_mean(kind.rounds) for kind in workload.classes.values())
    users = arrivals.users if isinstance(arrivals, ClosedArrivals) else 0
    replicas = sum(p.replicas or 0 for p in scenario.pools.values() if isinstance(p, EnginePool))
    servers = sum(tier.count for tier in scenario.fleet.values())
    sections = (scenario.fleet, scenario.pools, workload.classes, scenario.links, scenario.tools)
    named = max(len(list(section)) for section in sections)
    for path, what, asked, most in (
        ("workload.tasks", "tasks", tasks, MAX_TASKS),
        ("workload.arrivals.users", "users", users, MAX_TASKS),
        ("workload.classes", "rounds in all", rounds, MAX_ROUNDS),
        ("fleet", "servers", servers, MAX_SERVERS),
        ("pools", "replicas", replicas, MAX_SERVERS),
        ("", "names in one section", named, MAX_NAMED),
    ):
        if asked > most:
            where = document.where(tuple(path.split("."))) if path else document.file
            raise DescriptionError(where, f"asks for {asked:,.0f} {what}", f"the dashboard simulates at most {most:,}")


def _mean(distribution: Distribution) -> float:
    """The mean of a distribution, or a bound of it."""
    if isinstance(distribution, Constant):
        return distribution.value
    if isinstance(distribution, Uniform):
        return distribution.high
    if isinstance(distribution, Lognormal):
        return distribution.p95
    if isinstance(distribution, Histogram):
        return max(distribution.edges, default=1.0)
    return distribution.mean
