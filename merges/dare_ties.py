"""DARE-TIES: random drop and rescale, then TIES' sign election."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from merges.parameters import Density, NonNegativeWeights, Scale
from merges.registry import method
from merges.ties import merge_agreeing

if TYPE_CHECKING:
    from merges.requests import TensorContext

_NEGLIGIBLE = 1e-7  # mergekit's bound: norms below it are not divided by


def drop_and_rescale(
    delta: torch.Tensor, keep: torch.Tensor, density: float, rescale: Literal["density", "l1"]
) -> torch.Tensor:
    """Drop masked entries of a task vector and make up for what they carried.

    Args:
        delta: A task vector's part of any shape.
        keep: Mask of the same shape, True where an entry is kept.
        density: Probability with which the mask keeps an entry.
        rescale: ``density`` divides by it; ``l1`` restores the tensor's own sum of magnitudes.

    Returns:
        A new tensor of the same shape.
    """
    kept = delta * keep
    if rescale == "density":
        return kept.div_(density)
    before = float(delta.abs().sum(dtype=torch.float64))
    after = float(kept.abs().sum(dtype=torch.float64))
    if min(before, after) < _NEGLIGIBLE:
        return kept
    return kept.mul_(before / after)


@method(title="DARE-TIES", paper="arXiv:2311.03099", needs={"base"})
def dare_ties(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Density = 0.5,
    scale: Scale = 1.0,
    weights: NonNegativeWeights = None,
    rescale: Literal["density", "l1"] = "density",
    merge: Literal["sum", "mean"] = "sum",
) -> torch.Tensor:
    """Drop at random, rescale, elect sign, merge.

    d_i = (x_i - b) * mask_i / density, mask_i ~ Bernoulli(density); then as in `ties`: with S the
    sign of sum_i w_i d_i, b + lambda * sum_i w_i d_i [sign d_i = S], divided for ``mean`` by
    sum_i w_i [sign d_i = S]. The mask depends on the seed, the expert's name, the tensor's name and
    the position only. There is no trim by magnitude between drop and election (fusion_bench has
    one, of 20 %).

    Args:
        base: Tensor b, the common ancestor.
        experts: Tensors x_i of the same shape.
        context: Names and the seed.
        density: Probability that an entry is kept. The paper tries drop rates from 0.1 to 0.9
            and has no default; 0.5 is that of mergekit's published example.
        scale: lambda.
        weights: w_i >= 0; None for 1 each.
        rescale: ``density`` is the paper's 1/(1 - p), used by fusion_bench, MergeBench and
            mergekit up to 0.0.6 (so by merges published before February 2025); ``l1`` is mergekit's
            since 0.1.0: each tensor keeps its sum of magnitudes.
        merge: ``sum`` is mergekit's `dare_ties` (normalize: false); ``mean`` is the disjoint mean
            of the TIES paper, on which the DARE paper builds.

    Returns:
        The merged tensor.

    Source:
        Yu et al., Language models are super Mario, 2023, equation 1, with TIES.
    """
    deltas = [
        drop_and_rescale(
            expert - base, context.keep_mask(name, base.shape, density), density, rescale
        )
        for name, expert in zip(context.experts, experts, strict=True)
    ]
    return merge_agreeing(deltas, weights, merge).mul_(scale).add_(base)
