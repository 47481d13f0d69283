"""Evidence from independent replications that a mean lies below, or above, a limit: safe whatever their distribution.

A replication shows v, the fraction of its tasks that missed an objective, and what is judged is the mean of v. The
hypothesis that this mean is at least e is bet against: before each replication a stake s is laid, and the wealth is
multiplied by 1 + s (e - v) / (1 - e). That is never negative for v in [0, 1] and, under the hypothesis, at most 1 in the
mean; so wealth is a non-negative supermartingale, and reaches 1 / alpha with a probability of at most alpha, however often
one looks (Ville, 1939; Waudby-Smith and Ramdas, JRSS B 86 (2024) 1). Without any miss and at full stake each replication is
worth a factor of 1 / (1 - e): 59 of them for 95 % and e = 5 %, as for the binomial law, which no safe test can beat.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

# Stakes with the share of the wealth that is laid at each: nobody knows before which will win. All for the case without
# misses; half of it wins most against misses that come one replication in so many, at half of what is allowed; small ones
# are for means near the limit.
STAKES = ((1.0, 0.4), (0.75, 0.12), (0.5, 0.2), (0.25, 0.12), (0.125, 0.08), (0.0625, 0.04), (0.03125, 0.04))
RUINED = -math.inf


@dataclass
class Evidence:
    """That the mean of independent values in [0, 1] is below `limit`: the logarithm of the wealth at each stake."""

    limit: float
    logs: list[float] = field(default_factory=lambda: [math.log(share) for _, share in STAKES])
    count: int = 0
    _sums: list[float] = field(default_factory=lambda: [0.0] * len(STAKES))
    _squares: list[float] = field(default_factory=lambda: [0.0] * len(STAKES))

    def add(self, value: float) -> None:
        """Bet on one more value."""
        assert 0 <= value <= 1, f"{value} is no fraction"
        self.count += 1
        for i, (stake, _) in enumerate(STAKES):
            factor = 1 + stake * (self.limit - value) / (1 - self.limit)
            gain = math.log(factor) if factor > 0 else RUINED
            self.logs[i] += gain
            self._sums[i] += gain
            self._squares[i] += gain * gain

    @property
    def log_wealth(self) -> float:
        """The logarithm of what the stakes are worth together."""
        top = max(self.logs)
        return top + math.log(sum(math.exp(log - top) for log in self.logs)) if top > RUINED else RUINED

    def shown(self, alpha: float) -> bool:
        """Whether the mean is below the limit, but for a risk of alpha."""
        return self.log_wealth >= -math.log(alpha)

    def hopeless(self, alpha: float, most: int, errors: float = 3.0) -> bool:
        """Whether even so many standard errors more than it gained so far would not do by `most` values.

        It only ends a search early: nothing is claimed from it.
        """
        if self.count < 2 or self.count >= most:
            return self.count >= most
        reachable = RUINED
        for log, total, squares in zip(self.logs, self._sums, self._squares, strict=True):
            if log == RUINED:
                continue
            gain = total / self.count
            error = math.sqrt(max(0.0, squares / self.count - gain * gain) / self.count)
            reachable = max(reachable, log + (gain + errors * error) * (most - self.count))
        return reachable < -math.log(alpha)


def replications_without_miss(limit: float, alpha: float) -> int:
    """How many replications without a miss show at full stake that the mean is below the limit.

    >>> replications_without_miss(0.05, 0.05), replications_without_miss(0.01, 0.05)
    (59, 299)
    """
    return math.ceil(math.log(alpha) / math.log1p(-limit))


@dataclass
class Trial:
    """One objective of one fleet: evidence for it and against it."""

    limit: float
    holds: Evidence = field(init=False)
    fails: Evidence = field(init=False)
    total: float = 0.0
    squares: float = 0.0

    def __post_init__(self) -> None:
        self.holds, self.fails = Evidence(self.limit), Evidence(1 - self.limit)

    def add(self, values: Iterable[float]) -> None:
        """Take so many more replications into account."""
        for value in values:
            self.holds.add(value)
            self.fails.add(1 - value)
            self.total += value
            self.squares += value * value

    @property
    def mean(self) -> float:
        return self.total / self.fails.count if self.fails.count else math.nan

    @property
    def error(self) -> float:
        """The standard error of the mean: for choosing what to try, never for a verdict."""
        count = self.fails.count
        return math.sqrt(max(0.0, self.squares / count - self.mean**2) / max(1, count - 1)) if count else math.nan

    def begin_to_hold(self) -> None:
        """From here on evidence that it holds starts anew, on replications that had no part in choosing it."""
        self.holds = Evidence(self.limit)
