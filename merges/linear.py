"""Linear combination of experts: Model Soups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.errors import UserError
from merges.parameters import Flag, Weights
from merges.registry import method

if TYPE_CHECKING:
    import torch

    from merges.requests import TensorContext


@method(title="Model Soups", paper="arXiv:2203.05482")
def linear(
    base: torch.Tensor | None,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    weights: Weights = None,
    normalize: Flag = True,
) -> torch.Tensor:
    """Average the experts: sum_i w_i x_i / sum_i w_i, uniformly where no weights are given.

    Args:
        base: Not used.
        experts: Tensors x_i of one shape.
        context: Names.
        weights: w_i; None for 1 each.
        normalize: Whether to divide by the sum of the weights, as mergekit's `linear` does by
            default; without it, uniform weights give the experts' sum.

    Returns:
        The combination.

    Raises:
        UserError: The weights to be normalised sum to zero.

    Source:
        Wortsman et al., Model soups, 2022, the uniform soup (all defaults).
    """
    factors = [1.0] * len(experts) if weights is None else weights
    if normalize:
        total = sum(factors)
        if total == 0:
            raise UserError(
                "method linear, parameter weights: they sum to 0 and cannot be normalised; "
                "give others, or normalize=false"
            )
        factors = [factor / total for factor in factors]
    merged = experts[0] * factors[0]
    for expert, factor in zip(experts[1:], factors[1:], strict=True):
        merged.add_(expert, alpha=factor)
    return merged
