"""Task arithmetic: the base plus a multiple of the sum of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merges.arithmetic import patterns
from merges.arithmetic.combination import combine, normalized, ones_or
from merges.engine.parameters import Flag, Scale, Weights
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext, Values


def _factors(scale: float, weights: Weights, normalize: bool, count: int) -> list[float]:
    factors = ones_or(weights, count)
    if normalize:
        factors = normalized(factors, "task_arithmetic", "give others, or normalize=false")
    return [scale * factor for factor in factors]


def of_patterns(
    base: patterns.Patterns,
    experts: Sequence[patterns.Patterns],
    context: TensorContext,
    *,
    scale: float,
    weights: Weights,
    normalize: bool,
) -> patterns.Patterns | None:
    """Do what `task_arithmetic` does on patterns of bfloat16."""
    return patterns.mix(experts, _factors(scale, weights, normalize, len(experts)), base)


@method(
    title="Task arithmetic",
    paper="arXiv:2212.04089",
    needs={"base"},
    unit="values",
    arrays=True,
    patterns="of_patterns",
)
def task_arithmetic(
    base: Values,
    experts: Sequence[Values],
    context: TensorContext,
    *,
    scale: Scale = 0.4,
    weights: Weights = None,
    normalize: Flag = False,
) -> Values:
    """Add task vectors to the base: b + lambda * sum_i w_i (x_i - b).

    The task vectors are combined first (`merges.arithmetic.combination.combine`), so their
    roundings are relative to them and not to the base: where lambda is 0, or every expert equals
    the base, the result is the base exactly.

    Args:
        scale: lambda. It is meant to be tuned; 0.4 is what the TIES paper recommends for task
            arithmetic where nothing can be tuned (arXiv:2306.01708, section 5).
        weights: w_i; None for 1 each (the paper has no other).
        normalize: Whether to divide the weights by their sum, so that lambda 1 adds the average
            task vector; an option of mergekit, off there too by default.

    Raises:
        UserError: The weights to be normalised sum to zero.

    Source:
        Ilharco et al., Editing models with task arithmetic, 2022, section 4.
    """
    for expert in experts:
        expert -= base
    merged = combine(experts, _factors(scale, weights, normalize, len(experts)))
    merged += base
    return merged
