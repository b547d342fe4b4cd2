"""Task arithmetic: the base plus a multiple of the sum of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merges.parameters import Scale, Weights
from merges.registry import method

if TYPE_CHECKING:
    import torch

    from merges.requests import TensorContext


@method(title="Task arithmetic", paper="arXiv:2212.04089", needs={"base"})
def task_arithmetic(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    scale: Scale = 0.4,
    weights: Weights = None,
) -> torch.Tensor:
    """Add task vectors to the base: b + lambda * sum_i w_i (x_i - b).

    Args:
        base: Tensor b, the common ancestor.
        experts: Tensors x_i of the same shape.
        context: Names.
        scale: lambda. It is meant to be tuned; 0.4 is what the TIES paper recommends for task
            arithmetic where nothing can be tuned (arXiv:2306.01708, section 5).
        weights: w_i; None for 1 each (the paper has no other).

    Returns:
        The merged tensor.

    Source:
        Ilharco et al., Editing models with task arithmetic, 2022, section 4.
    """
    factors = [1.0] * len(experts) if weights is None else weights
    total = (experts[0] - base).mul_(factors[0])
    for expert, factor in zip(experts[1:], factors[1:], strict=True):
        total.add_(expert - base, alpha=factor)
    return total.mul_(scale).add_(base)
