"""TIES: trim task vectors, elect a sign, merge what agrees with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from merges.parameters import Density, NonNegativeWeights, Scale
from merges.registry import method

if TYPE_CHECKING:
    from merges.requests import TensorContext


def keep_largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Zero all but the entries of largest magnitude.

    Exactly k = floor(density * n + 1/2) of the n entries are kept, at least one. Of entries with
    the magnitude of the threshold, those that come first in row-major order are kept.

    Args:
        delta: A task vector's part of any shape.
        density: Share to keep, in (0, 1].

    Returns:
        A new tensor of the same shape.
    """
    count = delta.numel()
    kept = max(1, math.floor(density * count + 0.5))
    if kept >= count:
        return delta.clone()
    magnitude = delta.abs().flatten()
    threshold = magnitude.kthvalue(count - kept + 1).values
    keep = magnitude > threshold
    missing = kept - int(keep.sum())
    keep[(magnitude == threshold).nonzero().flatten()[:missing]] = True
    return delta * keep.reshape(delta.shape)


def merge_agreeing(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None,
    merge: Literal["mean", "sum"],
) -> torch.Tensor:
    """Elect a sign per entry and merge the values that have it.

    The elected sign is that of sum_i w_i d_i, positive where the sum is zero. Zeros have no sign
    and take no part.

    Args:
        deltas: Trimmed task vectors d_i of one shape.
        weights: w_i >= 0; None for 1 each.
        merge: ``mean`` divides by the sum of the weights that took part, ``sum`` does not.

    Returns:
        The merged task vector; zero where no value has the elected sign.
    """
    factors = [1.0] * len(deltas) if weights is None else weights
    values = [delta * factor for delta, factor in zip(deltas, factors, strict=True)]
    total = values[0].clone()
    for value in values[1:]:
        total += value
    positive = total >= 0
    merged = torch.zeros_like(total)
    share = torch.zeros_like(total) if merge == "mean" else None
    for value, factor in zip(values, factors, strict=True):
        agrees = torch.where(positive, value > 0, value < 0)
        merged += value * agrees
        if share is not None:
            share.add_(agrees, alpha=factor)
    if share is not None:
        merged /= share.masked_fill_(share == 0, 1.0)
    return merged


@method(title="TIES", paper="arXiv:2306.01708", needs={"base"})
def ties(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Density = 0.2,
    scale: Scale = 1.0,
    weights: NonNegativeWeights = None,
    merge: Literal["mean", "sum"] = "mean",
) -> torch.Tensor:
    """Trim, elect sign, merge: b + lambda * disjoint mean (or sum) of the trimmed task vectors.

    With d_i the task vector x_i - b of which only the largest magnitudes are kept, and S the sign
    of sum_i w_i d_i, the result is b + lambda * sum_i w_i d_i [sign d_i = S], divided for
    ``mean`` by sum_i w_i [sign d_i = S].

    Args:
        base: Tensor b, the common ancestor.
        experts: Tensors x_i of the same shape.
        context: Names.
        density: Share of each tensor's entries that survives the trim. The trim is per tensor,
            as in mergekit; the paper, fusion_bench and MergeBench trim a model's whole task
            vector at once.
        scale: lambda.
        weights: w_i >= 0, as in mergekit; None for 1 each, as in the paper.
        merge: ``mean`` is the paper's disjoint mean and mergekit's `ties` (normalize: true);
            ``sum`` is the default of fusion_bench and MergeBench.

    Returns:
        The merged tensor.

    Source:
        Yadav et al., TIES-Merging, 2023, algorithm 1; 20 % and lambda = 1 are its defaults where
        nothing is tuned (section 5).
    """
    trimmed = [keep_largest(expert - base, density) for expert in experts]
    return merge_agreeing(trimmed, weights, merge).mul_(scale).add_(base)
