"""Sweeps: a study of each point of a grid, or of a Latin hypercube, over paths of a scenario; one row a point."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hsim.description.scenario import read_scenario
from hsim.description.system import System
from hsim.description.yamlfile import Document, parse_document
from hsim.drivers.prepared import prepare
from hsim.errors import DescriptionError, HsimError, ResultError, WorkersError
from hsim.metrics.exported import Frame
from hsim.metrics.result import Interval, Study
from hsim.metrics.study import study_of
from hsim.metrics.summarise import hsim_version, scenario_hash
from hsim.runs.exports import parquet, pyarrow_module
from hsim.runs.paths import system_of
from hsim.runs.store import check_writable, write_atomically
from hsim.runs.studies import Options, Workers, gather, workers

if TYPE_CHECKING:
    from pandas import DataFrame

Value = Any  # whatever may stand in a scenario
Point = dict[str, Value]
Row = dict[str, Any]
WORST = ("UNSTABLE", "FAIL", "UNDECIDED", "PASS")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(?::(\d+))?((?::(?:log|whole))*)\Z")


# ---- what is varied


@dataclass(frozen=True)
class Range:
    """From low to high: so many values for a grid (None: only for sampling), evenly or by ratio, whole if asked for."""

    low: float
    high: float
    count: int | None
    log: bool
    whole: bool

    def at(self, part: float) -> float:
        """The value so far along the way, from 0 to 1."""
        value = self.low * (self.high / self.low) ** part if self.log else self.low + (self.high - self.low) * part
        return round(value) if self.whole else value


@dataclass(frozen=True)
class Axis:
    """A path of the scenario and what stands there in turn: values, or a range of numbers."""

    path: str
    values: tuple[Value, ...] | Range

    def grid(self) -> Sequence[Value]:
        """Its values for a grid. Raises DescriptionError for a range without a count."""
        if not isinstance(self.values, Range):
            return self.values
        if self.values.count is None:
            low, high = self.values.low, self.values.high
            remedy = f"write {self.path}={low:g}:{high:g}:7, or sample it with --samples"
            raise DescriptionError(f"--vary {self.path}", "is a range without a number of values", remedy)
        parts = np.linspace(0, 1, self.values.count).tolist()
        return list(dict.fromkeys(self.values.at(part) for part in parts))

    def sampled(self, part: float) -> Value:
        """The value so far along the way, from 0 to 1."""
        if isinstance(self.values, Range):
            return self.values.at(part)
        return self.values[min(int(part * len(self.values)), len(self.values) - 1)]


def axis_of(text: str) -> Axis:
    """The axis of `path=16,64,256` or `path=2:20:7`, behind which may stand :log and :whole. Raises DescriptionError.

    >>> axis_of("pools.decode.max_num_seqs=16:256:5:log:whole").grid()
    [16, 32, 64, 128, 256]
    """
    at = f"--vary {text}"
    path, equals, values = text.partition("=")
    if not path or not equals or not values:
        raise DescriptionError(
            at, "has no values", "write --vary path.to.key=value,value or path.to.key=low:high:count"
        )
    if found := _RANGE.match(values):
        return Axis(path, _range(at, *found.groups()))
    listed = parse_document(f"[{values}]", at).data  # so that values may be lists and mappings too
    if not listed:
        raise DescriptionError(at, "has no values", "list some")
    return Axis(path, _distinct(at, listed))


def _range(at: str, low: str, high: str, count: str | None, how: str) -> Range:
    found = Range(float(low), float(high), int(count) if count else None, ":log" in how, ":whole" in how)
    if not found.low < found.high:
        raise DescriptionError(at, "does not rise", "write the smaller number first, as in 2:20:7")
    if found.count is not None and found.count < 2:
        raise DescriptionError(at, f"is a range of {found.count} values", "ask for two at least, its ends")
    if found.log and found.low <= 0:
        raise DescriptionError(at, f"is logarithmic from {found.low:g}", "begin above 0")
    return found


def _distinct(at: str, values: Sequence[Value]) -> tuple[Value, ...]:
    if len({json.dumps(value) for value in values}) < len(values):
        raise DescriptionError(at, "names a value twice", "remove one")
    return tuple(values)


def axes_of(vary: Sequence[str] | Mapping[str, Any]) -> tuple[Axis, ...]:
    """Axes of texts as the command line takes them, or of a mapping from paths to lists of values or such texts."""
    if isinstance(vary, Mapping):
        found = [
            axis_of(f"{path}={values}") if isinstance(values, str) else Axis(path, _distinct(f"vary {path}", values))
            for path, values in vary.items()
        ]
    else:
        found = [axis_of(text) for text in vary]
    paths = [axis.path for axis in found]
    if not paths or len(set(paths)) < len(paths):
        problem = "varies a path twice" if paths else "nothing is varied"
        raise DescriptionError("--vary", problem, "give each path once: --vary path=values")
    return tuple(found)


def points_of(axes: Sequence[Axis], samples: int | None, seed: int) -> list[Point]:
    """Every combination of the axes' values, or so many points of a Latin hypercube, the same for the same seed."""
    if samples is None:
        return [dict(zip([a.path for a in axes], one, strict=True)) for one in product(*(a.grid() for a in axes))]
    from scipy.stats import qmc

    sampler = qmc.LatinHypercube(len(axes), rng=np.random.default_rng(seed))
    points = [
        {axis.path: axis.sampled(part) for axis, part in zip(axes, one, strict=True)}
        for one in sampler.random(samples).tolist()
    ]
    return list({json.dumps(point): point for point in points}.values())  # whole numbers may fall together


# ---- what is found


@dataclass(frozen=True)
class Sweep:
    """The rows that were finished, in the order of the points: what was varied, verdict, and every figure of a study.

    A figure's own column holds its point estimate; beside it stand half_width, low and high of its 95 % interval, each by
    itself, and rough_low and rough_high, where rough figures put it. `verdict` is the worst of a row's: UNSTABLE, FAIL,
    UNDECIDED, PASS; ERROR where a point could not be run to its end (`reason`); None without objectives.
    """

    scenario: str
    paths: tuple[str, ...]
    points: int
    rows: tuple[Row, ...]

    @property
    def complete(self) -> bool:
        return len(self.rows) == self.points

    def frame(self) -> Frame:
        """The rows as columns by name."""
        # A row without a steady state lacks columns: the fullest row says in which order they stand.
        fullest = sorted(self.rows, key=lambda row: -len(row))
        names = dict.fromkeys(name for row in fullest for name in row)
        return {name: _column([row.get(name) for row in self.rows]) for name in names}

    def to_frame(self) -> DataFrame:
        """The rows as a pandas frame. Raises HsimError where pandas is not installed."""
        try:
            from pandas import DataFrame
        except ModuleNotFoundError:
            raise HsimError("pandas is not installed; data frames need it: pip install pandas") from None
        return DataFrame(self.frame())

    def csv(self) -> str:
        """The rows as comma-separated values; what is not there is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        frame = self.frame()
        writer.writerow(frame)
        cells = [column if isinstance(column, list) else column.tolist() for column in frame.values()]
        for line in zip(*cells, strict=True):
            writer.writerow(
                "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else cell for cell in line
            )
        return text.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {"complete": self.complete, **asdict(self)}


def _column(cells: list[Any]) -> Any:
    known = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, int) and not isinstance(cell, bool) for cell in known) and len(known) == len(cells):
        return np.array(cells, dtype=np.int64)
    if known and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in known):
        return np.array([math.nan if cell is None else cell for cell in cells], dtype=np.float64)
    return [cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells]


def row_of(study: Study) -> Row:
    """A study as one row of plain values."""
    verdicts = ["UNSTABLE"] if study.is_unstable else [slo.verdict for slo in study.slo]
    row: Row = {
        "verdict": min(verdicts, key=WORST.index, default=None),
        "reason": study.stability.reason if study.stability and study.is_unstable else None,
        "stability": study.stability.verdict if study.stability else None,
    }
    row |= {f"slo.{slo.metric}.verdict": slo.verdict for slo in study.slo}
    ranges = study.calibration.ranges if study.calibration else {}
    for name, interval in study.figures().items():
        row |= _cells(name, interval)
        if name in ranges:
            row |= {f"{name}.rough_low": ranges[name].low, f"{name}.rough_high": ranges[name].high}
    row |= {"fleet_usd_per_h": study.money.fleet_usd_per_h} if study.money else {}
    row |= {f"{use.pool}.busy_fraction": use.busy_fraction for use in study.pools}
    counted = ("kind", "replications", "tasks", "timed_out", "shed", "preemptions")
    named = ("seed", "scenario_sha256", "hsim_version")
    return row | {name: getattr(study, name) for name in (*counted, *named)}


def _cells(name: str, interval: Interval) -> Row:
    ends = {"half_width": interval.half_width, "low": interval.low, "high": interval.high}
    return {name: interval.value, **{f"{name}.{end}": value for end, value in ends.items()}}


# ---- the sweep


@dataclass(frozen=True)
class Standing:
    """How far a sweep is: points done, and replications that were run, those that were kept from before not counted."""

    done: int
    points: int
    replications: int


Progress = Callable[[Standing], None]


@dataclass(frozen=True)
class Asked:
    """A scenario, settings for all points, what is varied, and how many points of a Latin hypercube; None: the grid."""

    scenario: str | Path
    axes: tuple[Axis, ...]
    settings: Sequence[str] = ()
    samples: int | None = None
    allow_code: bool = False


def sweep(asked: Asked, options: Options | None = None, progress: Progress | None = None) -> Sweep:
    """Study every point; with `options.out`, write sweep.parquet and sweep.csv there and keep replications to go on with.

    Ctrl-C ends it early: then the rows are those of the points that were finished. Raises DescriptionError, before
    anything runs, for a point that cannot.
    """
    options = options or Options()
    document = read_scenario(asked.scenario, asked.settings)
    seed = document.data.get("seed", 0) if isinstance(document.data, dict) else 0
    points = points_of(asked.axes, asked.samples, seed if isinstance(seed, int) else 0)
    if options.out:
        pyarrow_module("leave --out away")  # what is missing shall show before anything runs
        check_writable(options.out)
    systems = _checked(asked, points)
    rows = _rows(systems, options, progress or (lambda _: None))
    found = Sweep(
        scenario=document.file,
        paths=tuple(axis.path for axis in asked.axes),
        points=len(points),
        rows=tuple({"point": n, **points[n], **rows[n]} for n in sorted(rows)),
    )
    if options.out:
        _write(found, document, options.out)
    return found


def _checked(asked: Asked, points: Sequence[Point]) -> list[System]:
    """The system of each point. Raises DescriptionError for the first that cannot run, and says how many more cannot."""
    systems: list[System] = []
    wrong: list[tuple[Point, DescriptionError]] = []
    for point in points:
        settings = [f"{path}={json.dumps(value)}" for path, value in point.items()]
        try:
            system = system_of(asked.scenario, [*asked.settings, *settings], asked.allow_code)
            prepare(system)
            systems.append(system)
        except DescriptionError as error:
            wrong.append((point, error))
    if wrong:
        point, first = wrong[0]
        more = f" (and {len(wrong) - 1} more of {len(points)} points cannot run)" if len(wrong) > 1 else ""
        said = ", ".join(f"{path}={json.dumps(value)}" for path, value in point.items())
        raise DescriptionError(f"point {said}{more}: {first.where}", first.problem, first.remedy)
    return systems


def _rows(systems: Sequence[System], options: Options, progress: Progress) -> dict[int, Row]:
    """The row of each point by number; after Ctrl-C, of those that were finished."""
    rows: dict[int, Row] = {}
    try:
        with workers(options) as those:
            counted = _Counted(those)
            progress(Standing(0, len(systems), 0))
            with closing(_studied(systems, options, counted)) as studied:
                for number, row in studied:
                    rows[number] = row
                    progress(Standing(len(rows), len(systems), counted.replications))
    except KeyboardInterrupt:
        if not rows:
            raise
    return rows


class _Counted:
    """Workers that count what they run."""

    def __init__(self, those: Workers) -> None:
        self._those, self.at_a_time, self.replications = those, those.at_a_time, 0
        self.stop = those.stop

    def __call__(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for done in self._those(jobs):
            self.replications += 1
            yield done


def _studied(systems: Sequence[System], options: Options, those: Workers) -> Generator[tuple[int, Row], None, None]:
    """Rows as they are finished: several studies at once, so that nobody waits for the last replication of another."""
    if those.at_a_time == 1:
        yield from ((number, _row(system, options, those)) for number, system in enumerate(systems))
        return
    at_once = 1 + math.ceil(2 * those.at_a_time / options.replications)
    with ThreadPoolExecutor(at_once) as threads:  # they wait; the work is done elsewhere
        numbers = {threads.submit(_row, system, options, those): number for number, system in enumerate(systems)}
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            those.stop()
            raise


def _row(system: System, options: Options, those: Workers) -> Row:
    try:
        return row_of(study_of(*gather(system, options, those)))
    except (ResultError, WorkersError):  # no fault of the point
        raise
    except HsimError as error:  # such as a window in which no task was completed
        return {"verdict": "ERROR", "reason": str(error), "scenario_sha256": scenario_hash(system.scenario)}


def _write(found: Sweep, document: Document, out: Path) -> None:
    about = {
        "scenario_file": document.file,
        "scenario": yaml.safe_dump(document.data, sort_keys=False, allow_unicode=True),
        "varied": json.dumps(found.paths),
        "complete": json.dumps(found.complete),
        "hsim_version": hsim_version(),
    }
    write_atomically(out / "sweep.parquet", parquet(found.frame(), about))
    write_atomically(out / "sweep.csv", found.csv())
