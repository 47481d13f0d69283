"""Published cases run through hsim: what each found, what hsim finds, and why the two differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hsim.metrics.result import Result, Study

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios" / "published"


Value = float | tuple[float, float] | None


@dataclass(frozen=True)
class Row:
    """One published figure, or the range of several, beside hsim's.

    `hsim` None: it cannot be expressed, and `why` says for want of what. `published` None: they give no number. Figures
    in per cent are compared by points, others by their ratio.
    """

    what: str
    published: Value
    hsim: Value
    unit: str
    why: str

    @property
    def difference(self) -> str:
        """How far hsim is off; of ranges, at both ends."""
        if self.hsim is None or self.published is None:
            return "–"
        ends = zip(_ends(self.hsim), _ends(self.published), strict=True)
        return " and ".join(dict.fromkeys(self._beside(mine, other) for mine, other in ends))

    def _beside(self, mine: float, other: float) -> str:
        return f"{mine - other:+.1f} points" if self.unit == "%" else f"{mine / other - 1:+.0%}"


def _ends(value: float | tuple[float, float]) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


@dataclass(frozen=True)
class Case:
    """A published case: its scenario, where its figures were read, and the rows."""

    name: str
    title: str
    scenario: str
    source: str
    rows: tuple[Row, ...]


def scenario(name: str) -> str:
    """The path of a published scenario."""
    return str(SCENARIOS / f"{name}.yaml")


def boards_w(study: Study, pool: str, stage: str = "generate") -> float:
    """Mean watts of the accelerators of one pool: their work, and their idle draw with the model loaded.

    Boards of the same server that no pool uses are left out, as they are by who meters the boards of one engine.
    """
    assert study.energy is not None
    mine = [joules for account, _, joules in study.energy.accounts if account in (stage, f"{pool} accelerators idle")]
    assert study.tasks_per_s.value is not None
    return sum(mine) * study.tasks_per_s.value


def boards_j(result: Result, pool: str, stage: str = "generate") -> float:
    """Joules of the accelerators of one pool over a whole path."""
    assert result.energy is not None
    accounts = (stage, f"{pool} accelerators idle")
    return sum(joules for account, _, joules in result.energy.accounts if account in accounts)
