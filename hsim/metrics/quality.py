"""What answers are worth: with which weights tokens were made, and problems solved by token and by joule (PPT, PPT x TPW)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hsim.costs.sparsity import sparsity_of
from hsim.description.scenario import EnginePool
from hsim.description.system import System
from hsim.metrics.result import PoolUse, Problems, Quality


def weights_of(pool: EnginePool) -> tuple[tuple[str, str | None], ...]:
    """The sets of weights of a pool, as precision and sparsity: its own, and the other where it has one."""
    own = (pool.precision, pool.sparsity)
    if pool.switch is None:
        return (own,)
    return own, (pool.switch.precision or pool.precision, pool.switch.sparsity)


def names_of(pool: EnginePool) -> tuple[str, ...]:
    """The same in words, such as `bf16` and `fp8 2:4`."""
    return tuple(" ".join(filter(None, weights)) for weights in weights_of(pool))


def quality_of(system: System, pools: Sequence[PoolUse], tokens_per_j: float | None) -> tuple[Quality, ...]:
    """Of the pool that generates, where anything is to say: its weights are pruned or change, or problems per token are known."""
    name, model = system.scenario.stages.generate, system.model_of(system.scenario.stages.generate)
    pool = system.engine_pools()[name]
    if pool.switch is None and pool.sparsity is None and not model.problems_per_token:
        return ()
    use = next(use for use in pools if use.pool == name)
    fractions = use.weights or dict.fromkeys(names_of(pool), 1.0)
    kept = dict(zip(names_of(pool), (_kept(system, sparsity) for _, sparsity in weights_of(pool)), strict=True))
    scores = [None if kept[weights] is None else f * (kept[weights] or 0.0) for weights, f in fractions.items() if f]
    known = [score for score in scores if score is not None]
    return (
        Quality(
            pool=name,
            fractions=fractions,
            score_fraction=sum(known) if len(known) == len(scores) else None,
            problems=tuple(_problems(system, fractions, kept, tokens_per_j)),
        ),
    )


def _kept(system: System, sparsity: str | None) -> float | None:
    """What pruning in a pattern leaves of the unpruned model's scores."""
    if sparsity is None:
        return 1.0
    assert system.sparsity
    return sparsity_of(system.sparsity, sparsity, system.figures).quality_fraction


def _problems(
    system: System, fractions: dict[str, float], kept: dict[str, float | None], tokens_per_j: float | None
) -> Iterator[Problems]:
    """Each benchmark of which problems per token are known at every precision that was served."""
    name = system.scenario.stages.generate
    pool = system.engine_pools()[name]
    precisions = dict(zip(names_of(pool), (precision for precision, _ in weights_of(pool)), strict=True))
    solved = system.model_of(name).problems_per_token
    for benchmark in dict.fromkeys(entry.benchmark for entry in solved):
        known = {s.precision: s.problems_per_token.value for s in solved if s.benchmark == benchmark}
        parts = []
        for weights, fraction in fractions.items():
            per_token, left = known.get(precisions[weights]), kept[weights]
            if fraction and (per_token is None or left is None):
                break
            parts.append(fraction * (per_token or 0.0) * (left or 0.0))
        else:
            per_token = sum(parts)
            yield Problems(benchmark, per_token, None if tokens_per_j is None else per_token * tokens_per_j)
