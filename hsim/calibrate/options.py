"""What a calibration is asked for, how it tells its progress, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hsim.metrics.result import Result


@dataclass(frozen=True)
class CalibrationOptions:
    """What to calibrate, for how long, and where to write.

    `device` is cpu, cuda:N or all. `name` names the calibration and the profiles that come of it; the machine's own
    name when left out. `models` are the architectures whose decoder steps are tabled, by device kind; the smallest
    shipped one when left out. `decoder_cores` are the cores that the decoder has where it runs on the CPU. A point
    whose spread is above `noisy_spread_fraction` of its mean is marked as noisy, and so is one during which this
    process had less than `quiet_fraction` of the CPU time that it asked for. `stages` is a file of a person's own,
    which is only executed with `allow_code`.
    """

    device: str = "cpu"
    budget_s: float = 540.0
    out: Path = Path()
    name: str | None = None
    resume: bool = False
    model: str | None = None
    decoder_cores: int = 1
    simulate: bool = True
    noisy_spread_fraction: float = 0.1
    quiet_fraction: float = 0.9
    stages: Path | None = None
    allow_code: bool = False


class Progress(Protocol):
    """Told now and then how far a calibration is."""

    def __call__(self, phase: str, done_fraction: float, left_s: float, message: str) -> None:
        """`phase` is what is being done, `message` the latest piece of it; `left_s` counts down the budget."""
        ...


def silent(phase: str, done_fraction: float, left_s: float, message: str) -> None:
    """A Progress that tells nobody."""


@dataclass(frozen=True)
class Law:
    """How well one fitted law holds: absolute relative errors of points that the fit had not seen.

    `method` says how they were held out; None where there were too few points to hold any out.
    """

    name: str
    points: int
    noisy: int
    median_error: float | None
    p90_error: float | None
    method: str
    errors: tuple[float, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """How far all laws of a kind err on calibration points that their fits had not seen, beside what was aimed at.

    Errors are absolute and relative to what was measured. `spread_fraction` is the median, over the points that laws were
    fitted to, of the standard deviation between rounds of the very same point.
    """

    what: str
    target_fraction: float
    points: int
    mean_error: float
    median_error: float
    p90_error: float
    spread_fraction: float

    @property
    def allowed_fraction(self) -> float:
        """The mean error that is allowed: the target, or twice the spread, since nobody can predict closer than that."""
        return max(self.target_fraction, 2 * self.spread_fraction)

    @property
    def said(self) -> str:
        """In words."""
        verdict = "met" if self.mean_error <= self.allowed_fraction else "missed"
        return (
            f"{self.what} err {self.mean_error:.1%} on average over {self.points} points kept out of their fits (median "
            f"{self.median_error:.1%}, p90 {self.p90_error:.1%}); aimed at {self.target_fraction:.0%}, or twice the spread of "
            f"repeats (2 x {self.spread_fraction:.1%}) where that is more: {verdict}"
        )


@dataclass(frozen=True)
class LoadPoint:
    """One quantity of an endpoint under a load that no fit has seen. `measured` is the median of its rounds,
    `spread_fraction` their interquartile range over it, None of a single round.
    """

    load: str
    quantity: str
    unit: str
    predicted: float
    measured: float
    spread_fraction: float | None
    rounds: int

    @property
    def error_fraction(self) -> float:
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration did.

    `left_out` names what the budget did not allow, `failed` what could not be measured and why, `noisy` which points
    are marked and why, `unavailable` which figures could not be had at all and why. Of an endpoint `said` is its step
    model in words, and `loads` are predictions beside measurements; `held_out` is how far kernels and CPU stages err.
    """

    name: str
    seconds: float
    measured: int
    resumed: int
    laws: tuple[Law, ...]
    left_out: tuple[str, ...]
    failed: dict[str, str]
    noisy: dict[str, str]
    unavailable: dict[str, str]
    warnings: tuple[str, ...]
    files: tuple[Path, ...]
    scenario: Path | None = None
    simulated: Result | None = field(default=None, repr=False)
    said: tuple[str, ...] = ()
    loads: tuple[LoadPoint, ...] = ()
    held_out: tuple[HeldOut, ...] = ()
