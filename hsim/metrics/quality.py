"""What answers are worth: with which weights tokens were made, what is left of their model's scores, and of its PPT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hsim.costs.sparsity import sparsity_of
from hsim.description.model import Solved
from hsim.description.scenario import EnginePool
from hsim.description.system import System
from hsim.metrics.result import PoolUse, Quality


def weights_of(pool: EnginePool) -> dict[str, tuple[str, str | None]]:
    """The sets of weights of a pool, its own and the other where it has one: precision and sparsity, by what they are called."""
    sets: list[tuple[str, str | None]] = [(pool.precision, pool.sparsity)]
    if pool.switch:
        sets.append((pool.switch.precision or pool.precision, pool.switch.sparsity))
    return {" ".join(filter(None, weights)): weights for weights in sets}


def quality_of(system: System, pools: Sequence[PoolUse]) -> tuple[Quality, ...]:
    """Of the pool that generates, where its weights are pruned, or change."""
    name = system.scenario.stages.generate
    pool = system.engine_pools()[name]
    if pool.switch is None and pool.sparsity is None:
        return ()
    fractions = _fractions(name, pool, pools)
    scores = [(fraction, _kept(system, weights_of(pool)[called][1])) for called, fraction in fractions.items()]
    known = all(kept is not None for fraction, kept in scores if fraction)
    score = sum(fraction * (kept or 0.0) for fraction, kept in scores) if known else None
    return (Quality(name, fractions, score),)


def solved_by(system: System, pools: Sequence[PoolUse] = ()) -> list[Solved]:
    """What is known of the answering model's PPT with the weights that it served with: at their precisions, tokens made
    with each weighed by their number, pruned ones by what pruning leaves of scores. Without pools, of its own weights.
    """
    if system.scenario.keep:  # another model answers too, and whose tokens are whose is not told
        return []
    name = system.scenario.stages.generate
    pool, known = system.engine_pools()[name], system.model_of(name).problems_per_token
    if pool.switch is None and pool.sparsity is None:
        return [solved for solved in known if solved.precision == pool.precision]
    parts = [(f, *weights_of(pool)[called]) for called, f in _fractions(name, pool, pools).items() if f]
    found = []
    for benchmark in dict.fromkeys(solved.benchmark for solved in known):
        by_precision = {solved.precision: solved for solved in known if solved.benchmark == benchmark}
        weighed = [(f, by_precision.get(precision), _kept(system, sparsity)) for f, precision, sparsity in parts]
        if all(solved is not None and kept is not None for _, solved, kept in weighed):
            found.append(_mixed([(f * (kept or 0.0), solved) for f, solved, kept in weighed if solved]))
    return found


def _mixed(parts: Sequence[tuple[float, Solved]]) -> Solved:
    """PPT of tokens of which so many were made each way."""

    def mean(end: str) -> float:
        figures = [(part, solved.problems_per_token) for part, solved in parts]
        return sum(part * (getattr(figure, end) or figure.value or 0.0) for part, figure in figures)

    first = parts[0][1]
    figure = first.problems_per_token.model_copy(update={end: mean(end) for end in ("low", "value", "high")})
    return first.model_copy(update={"problems_per_token": figure})


def _fractions(name: str, pool: EnginePool, pools: Sequence[PoolUse]) -> Mapping[str, float]:
    """The parts of a pool's tokens by set of weights; all with its own where it does not change."""
    use = next((use for use in pools if use.pool == name), None)
    own = next(iter(weights_of(pool)))
    return use.weights if use and use.weights else {own: 1.0}


def _kept(system: System, sparsity: str | None) -> float | None:
    """What pruning in a pattern leaves of the unpruned model's scores."""
    if sparsity is None:
        return 1.0
    assert system.sparsity
    return sparsity_of(system.sparsity, sparsity, system.figures).quality_fraction
