"""Linear combination of experts: Model Soups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merges.arithmetic import patterns
from merges.arithmetic.combination import combine, normalized, ones_or
from merges.engine.parameters import Flag, Weights
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext, Values


def _factors(weights: Weights, normalize: bool, count: int) -> list[float]:
    factors = ones_or(weights, count)
    if normalize:
        factors = normalized(factors, "linear", "give others, or normalize=false")
    return factors


def of_patterns(
    base: None,
    experts: Sequence[patterns.Patterns],
    context: TensorContext,
    *,
    weights: Weights,
    normalize: bool,
) -> patterns.Patterns | None:
    """Do what `linear` does on patterns of bfloat16; see `merges.arithmetic.patterns.mix`."""
    return patterns.mix(experts, _factors(weights, normalize, len(experts)))


@method(
    title="Model Soups",
    paper="arXiv:2203.05482",
    unit="values",
    arrays=True,
    patterns="of_patterns",
)
def linear(
    base: Values | None,
    experts: Sequence[Values],
    context: TensorContext,
    *,
    weights: Weights = None,
    normalize: Flag = True,
) -> Values:
    """Average the experts: sum_i w_i x_i / sum_i w_i, uniformly where no weights are given.

    The rounding is that of `merges.arithmetic.combination.combine`.

    Args:
        weights: w_i; None for 1 each.
        normalize: Whether to divide by the sum of the weights, as mergekit's `linear` does by
            default; without it, uniform weights give the experts' sum.

    Raises:
        UserError: The weights to be normalised sum to zero.

    Source:
        Wortsman et al., Model soups, 2022, the uniform soup (all defaults).
    """
    return combine(experts, _factors(weights, normalize, len(experts)))
