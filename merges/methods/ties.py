"""TIES: trim task vectors, elect a sign, merge what agrees with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from merges.arithmetic import patterns
from merges.arithmetic.selection import Threshold, kept, thresholds
from merges.arithmetic.task_vectors import deltas_of, from_base, sum_of
from merges.engine.parameters import Densities, NonNegativeWeights, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext, Values


def merge_agreeing(
    deltas: Sequence[Values],
    weights: Sequence[float] | None,
    merge: Literal["mean", "sum"],
) -> Values:
    """Elect a sign per entry and merge the values that have it.

    The elected sign is that of sum_i w_i d_i, positive where the sum is zero. Zeros have no sign
    and take no part.

    Args:
        deltas: Trimmed task vectors d_i of one shape; overwritten.
        weights: w_i >= 0; None for 1 each.
        merge: ``mean`` divides by the sum of the weights that took part, ``sum`` does not.

    Returns:
        The merged task vector; zero where no value has the elected sign.
    """
    if isinstance(deltas[0], np.ndarray):
        from merges.arithmetic import kernels

        return kernels.merge_agreeing(deltas, weights, merge)
    import torch

    if weights is not None:
        for delta, weight in zip(deltas, weights, strict=True):
            delta.mul_(weight)
    total = sum_of(deltas)
    # Arithmetic in place of comparisons and selections, which cost torch many times as much. The
    # smallest normal number gives a sum of zero the positive sign and leaves any other as it is.
    tiny = torch.finfo(total.dtype).tiny
    sign = total.add_(tiny).sign_()
    merged = torch.zeros_like(total)
    share = torch.zeros_like(total) if merge == "mean" else None
    for delta, weight in zip(deltas, weights or [1.0] * len(deltas), strict=True):
        agreeing = delta.mul_(sign).clamp_min_(0)
        merged += agreeing
        if share is not None:
            share.add_(agreeing.sign_(), alpha=weight)
    if share is not None:
        merged /= share.clamp_min_(tiny)  # where no value agrees, zero is divided
    return merged.mul_(sign)


def trim_thresholds(pieces: Pieces, *, density: Sequence[float]) -> list[Threshold]:
    """Find each task vector's trim threshold; see `merges.arithmetic.selection.thresholds`."""
    return thresholds(pieces, deltas_of, [kept(share, pieces.count) for share in density])


def of_patterns(
    base: patterns.Patterns,
    experts: Sequence[patterns.Patterns],
    context: TensorContext,
    *,
    scale: float,
    weights: Sequence[float] | None,
    merge: Literal["mean", "sum"],
    **parameters: Any,
) -> patterns.Patterns | None:
    """Do what `ties` does on patterns of bfloat16."""
    limits = [threshold.limits(context.place) for threshold in context.prepared]
    return patterns.agree(experts, base, weights, merge, scale, limits=limits)


@method(
    title="TIES",
    paper="arXiv:2306.01708",
    needs={"base"},
    unit="values",
    prepare="trim_thresholds",
    arrays=True,
    patterns="of_patterns",
)
def ties(
    base: Values,
    experts: Sequence[Values],
    context: TensorContext,
    *,
    density: Densities = 0.2,
    scale: Scale = 1.0,
    weights: NonNegativeWeights = None,
    merge: Literal["mean", "sum"] = "mean",
    scope: Literal["tensor", "model"] = "tensor",
) -> Values:
    """Trim, elect sign, merge: b + lambda * disjoint mean (or sum) of the trimmed task vectors.

    With d_i the task vector x_i - b of which only the k = floor(density * n) entries of
    largest magnitude are kept (of equal ones at the threshold, the first), and S the sign of
    sum_i w_i d_i, the result is b + lambda * sum_i w_i d_i [sign d_i = S], divided for ``mean`` by
    sum_i w_i [sign d_i = S].

    Args:
        density: Share of the entries that survives the trim; mergekit takes one for each expert.
        scale: lambda.
        weights: w_i >= 0, as in mergekit; None for 1 each, as in the paper.
        merge: ``mean`` is the paper's disjoint mean and mergekit's `ties` (normalize: true);
            ``sum`` is the default of fusion_bench and MergeBench.
        scope: What the density is a share of: each ``tensor`` as in mergekit, or the
            ``model``'s task vector as in the paper, fusion_bench and MergeBench (which keep all
            of equal entries at the threshold).

    Source:
        Yadav et al., TIES-Merging, 2023, algorithm 1; 20 % and lambda = 1 are its defaults where
        nothing is tuned (section 5).
    """
    for expert in experts:
        expert -= base
    trimmed = [
        threshold.keep(expert, context.place)
        for threshold, expert in zip(context.prepared, experts, strict=True)
    ]
    return from_base(merge_agreeing(trimmed, weights, merge), scale, base)
