"""The unit of work of a calibration, and the row that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Parameters = Mapping[str, int | float | str]

CAPPED = "at the power cap"  # a note: its watts are the cap's
SPREAD = "its samples spread"  # a mark: the machine itself is unsteady, and so will be what runs on it
DISAGREE = "meters disagree"  # a note that makes a row noisy
THROTTLED = "clocks held back"  # a note that makes a row noisy


@dataclass(frozen=True)
class Unit:
    """One thing to measure: a kernel, an operation, a decoder step or a power level at one point of its grid.

    `worth` orders units: 0 is what no profile can do without. `expected_s` is how long it should take, warm-up
    included, after its data were made in about `setup_s`. Rounds after the first measure the same point again at another time: what differs between rounds is the
    machine's own unsteadiness, which repeats within a round do not show.
    """

    kind: str
    device: str
    parameters: Parameters
    worth: int = 0
    expected_s: float = 0.3
    round: int = 1
    setup_s: float = 0.0

    @property
    def point(self) -> str:
        """The same for every round of one point."""
        named = ",".join(f"{key}={value}" for key, value in self.parameters.items())
        return f"{self.kind} {self.device} {named}"

    @property
    def key(self) -> str:
        """Names this unit in rows, so that a resumed calibration does not measure it again."""
        return f"{self.point} #{self.round}"


@dataclass(frozen=True)
class Reading:
    """What measuring a unit gave. Seconds are those of one call: mean and interquartile range over samples.

    `cpu_fraction` is CPU time over wall time and threads: below 1, others had the core. `watts` is the mean over
    `window_s`. `failure` says why there is no figure; `notes` are what one should know of it.
    """

    seconds: float | None = None
    iqr_s: float | None = None
    samples: int = 0
    cpu_fraction: float | None = None
    watts: float | None = None
    window_s: float | None = None
    failure: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of rows.jsonl: a unit, its reading, when it was taken and how loaded the machine was.

    `marks` say why the row may be noisy; empty for a clean one. `answers` are those of an endpoint to the unit's requests.
    """

    key: str
    kind: str
    device: str
    parameters: Parameters
    round: int
    reading: Reading
    marks: tuple[str, ...] = field(default=())
    load: float | None = None
    at: str = ""
    answers: tuple[Mapping[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON-ready data."""
        data = asdict(self)
        return data if self.answers else {key: value for key, value in data.items() if key != "answers"}


def row_from(data: Mapping[str, Any]) -> Row:
    """The row that as_dict gave. Raises KeyError or TypeError for data that is none."""
    reading = dict(data["reading"])
    reading["notes"] = tuple(reading["notes"])
    more = {"marks": tuple(data["marks"]), "answers": tuple(data.get("answers", ()))}
    return Row(**{**data, **more, "reading": Reading(**reading)})
