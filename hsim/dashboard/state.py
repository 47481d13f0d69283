"""What a visitor has chosen, as frozen data: it fits into a link, and a link gives it back whole."""

from __future__ import annotations

import base64
import binascii
import json
import shlex
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from hsim.description.catalogue import shipped
from hsim.description.choices import choices_of
from hsim.description.scenario import checked, scenario_document
from hsim.description.system import System, resolve
from hsim.description.yamlfile import Document, did_you_mean, parse_document, read_document
from hsim.errors import DescriptionError
from hsim.metrics.summarise import hsim_version

OWN = "scenario.yaml"  # what an uploaded scenario is called
DEFAULT = "agents-split"
REPLICATIONS = 10
MAX_REPLICATIONS = 40
LINK_BYTES = 256 * 1024  # of a link once it is unpacked; a scenario of this size is refused anyway
LINK = "link"


@dataclass(frozen=True)
class Question:
    """A scenario: a shipped one by name, or one's own as text; and what was changed in it, as --set says it."""

    base: str = DEFAULT
    text: str = ""
    settings: tuple[str, ...] = ()

    def document(self) -> Document:
        """The YAML with its changes made, its architecture in place. Raises DescriptionError."""
        return scenario_document(self.as_read(), self.settings)

    def unchanged(self) -> Document:
        """The YAML before any change, its architecture in place. Raises DescriptionError."""
        return scenario_document(self.as_read(), ())

    def as_read(self) -> Document:
        """The YAML as it stands in its file. Raises DescriptionError."""
        if self.text:
            return parse_document(self.text, OWN)
        names = shipped_scenarios()
        if self.base not in names:  # a name, never a path: links come from anybody
            raise DescriptionError(LINK, f"there is no scenario {self.base!r}", did_you_mean(self.base, list(names)))
        return read_document(shipped("scenarios") / f"{self.base}.yaml")

    def system(self) -> System:
        """All that it names, found and checked. Raises DescriptionError."""
        document = self.document()
        return resolve(checked(document), document)

    def changed(self, changes: Mapping[str, Any]) -> Question:
        """The question with values set by path."""
        return replace(self, settings=edited(self.as_read(), (), self.settings, changes))

    def choices(self) -> dict[str, list[Any]]:
        """Lists that stand for a planner's choices in its file, by path."""
        return {".".join(path): values for path, values in choices_of(self.unchanged()).items()}

    def chosen(self) -> Question:
        """The question with the first of each list of choices: what can be simulated."""
        return self.changed({path: values[0] for path, values in self.choices().items()})

    @property
    def asks(self) -> str:
        """The question that a shipped scenario answers; of one's own, its first line where that is a comment."""
        if not self.text:
            return shipped_scenarios().get(self.base, "").partition(" (hsim")[0]
        first = self.text.partition("\n")[0]
        return first.removeprefix("#").strip() if first.startswith("#") else ""

    @property
    def name(self) -> str:
        """What to call it."""
        return "own scenario" if self.text else self.base


@dataclass(frozen=True)
class State:
    """Everything that pages show depends on this alone: the question, what if it varied, runs, units.

    `plan` are the settings of a search for a fleet: choices as lists, and what is to be minimised. `view` is one of
    those that the page has; empty, its first.
    """

    question: Question = Question()
    variation: tuple[str, ...] = ()
    replications: int = REPLICATIONS
    energy: str = "J"
    per: str = "task"
    page: str = ""
    plan: tuple[str, ...] = ()
    view: str = ""

    @property
    def varied(self) -> Question:
        """The question of What if: the same with the variation's settings on top."""
        return replace(self.question, settings=self.question.settings + self.variation)

    def with_variation(self, changes: Mapping[str, Any]) -> State:
        """The state with values of its variation set by path."""
        question = self.question
        return replace(self, variation=edited(question.as_read(), question.settings, self.variation, changes))


def edited(
    document: Document, before: Sequence[str], settings: Sequence[str], changes: Mapping[str, Any]
) -> tuple[str, ...]:
    """Settings, that come after those before, once values were set by path: each replaces earlier ones there and below.

    What says again what stands in the document anyway is left out.
    """
    kept = [s for s in settings if not any(_covers(path, s.partition("=")[0]) for path in changes)]
    for path, value in changes.items():
        if value_at(scenario_document(document, [*before, *kept]).data, path) != value:
            kept.append(f"{path}={inline(value)}")
    return tuple(kept)


def _covers(path: str, other: str) -> bool:
    return other == path or other.startswith(f"{path}.")


def value_at(data: Any, path: str) -> Any:
    """What stands at a dotted path, or None."""
    for key in path.split("."):
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data


def inline(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9)
    text = text.removesuffix("\n").removesuffix("\n...")
    # PyYAML writes YAML 1.1, in which 1e3 is a word and needs no quotes.
    return text if parse_document(text, "").data == value else json.dumps(value)


def command(question: Question, replications: int) -> str:
    """The command line that gives the same figures; of one's own scenario, once its YAML is downloaded."""
    if question.text:
        return f"hsim simulate {OWN} --replications {replications}"
    settings = "".join(f" \\\n    --set {shlex.quote(setting)}" for setting in question.settings)
    return f"hsim simulate {question.base} --replications {replications}{settings}"


def shipped_scenarios() -> dict[str, str]:
    """Shipped scenarios by name, with the question that each answers."""
    found = {}
    for file in sorted(shipped("scenarios").glob("*.yaml")):
        found[file.stem] = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    return found


def about(name: str) -> str:
    """What the comment at the head of a shipped scenario says after its question, in its first line."""
    lines = (shipped("scenarios") / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return lines[1].removeprefix("# ") if len(lines) > 1 and lines[1].startswith("# ") else ""


# ---- links


def encode(state: State) -> str:
    """A state as the `s` of a link: JSON, deflated, in the letters that a URL keeps."""
    question = state.question
    content = [
        [question.base, question.text, *question.settings],
        state.variation,
        state.plan,
        [state.replications, state.energy, state.per, state.page, state.view],
        hsim_version(),
    ]
    packed = zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode(text: str) -> State:
    """The state of a link. Raises DescriptionError for anything that `encode` did not write."""
    try:
        inflate = zlib.decompressobj()
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        content = inflate.decompress(packed, LINK_BYTES)
        if inflate.unconsumed_tail or inflate.unused_data or not inflate.eof:
            raise ValueError("too long or cut off")
        (base, own, *settings), variation, plan, (replications, energy, per, page, view), _ = json.loads(content)
        question = Question(base, own, tuple(settings))
        state = State(question, tuple(variation), replications, energy, per, page, tuple(plan), view)
    except (ValueError, TypeError, zlib.error, binascii.Error, RecursionError):
        raise DescriptionError(LINK, "is not one that this dashboard made", "copy all of it") from None
    _check(state)
    return state


def _check(state: State) -> None:
    question = state.question
    words = [state.energy, state.per, state.page, state.view, question.base, question.text]
    words += [*question.settings, *state.variation, *state.plan]
    if (
        not all(isinstance(word, str) for word in words)
        or type(state.replications) is not int
        or state.replications < 1
    ):
        raise DescriptionError(LINK, "is not one that this dashboard made", "copy all of it")
    if not 1 <= state.replications <= MAX_REPLICATIONS:
        raise DescriptionError(LINK, f"asks for {state.replications:,} replications", f"at most {MAX_REPLICATIONS}")
    if state.energy not in ("J", "Wh") or state.per not in ("task", "1k tokens"):
        raise DescriptionError(LINK, f"has the units {state.energy!r} per {state.per!r}", "J or Wh, task or 1k tokens")
