"""DARE: random drop and rescale, then TIES' sign election or a weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from merges.arithmetic import patterns
from merges.arithmetic.task_vectors import NEGLIGIBLE, deltas_of, from_base, weighted_sum
from merges.engine.parameters import Densities, Flag, NonNegativeWeights, Scale, Weights
from merges.engine.registry import method
from merges.methods.ties import merge_agreeing

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext, Values


def rescale_factors(
    pieces: Pieces, *, density: Sequence[float], rescale: Literal["density", "l1", "none"]
) -> list[float]:
    """Find what each expert's kept entries are multiplied by.

    Args:
        pieces: A parameter.
        density: For each expert, the probability with which its mask keeps an entry.
        rescale: ``density``: 1/density; ``l1``: what restores the parameter's own sum of
            magnitudes; ``none``: 1.
    """
    if rescale != "l1":
        return [1.0 / share if rescale == "density" else 1.0 for share in density]
    before, after = [0.0] * len(pieces.experts), [0.0] * len(pieces.experts)
    for piece in pieces:
        for number, delta in enumerate(deltas_of(piece)):
            magnitude = abs(delta)
            before[number] += _sum(magnitude)
            magnitude *= piece.context.keep_mask(pieces.experts[number], delta, density[number])
            after[number] += _sum(magnitude)
    return [1.0 if min(b, a) < NEGLIGIBLE else b / a for b, a in zip(before, after, strict=True)]


def _sum(values: Values) -> float:
    if isinstance(values, np.ndarray):
        return float(values.sum(dtype=np.float64))
    return float(values.double().sum())


def drop_and_rescale(
    base: Values,
    experts: Sequence[Values],
    context: TensorContext,
    density: Sequence[float],
) -> list[Values]:
    """Turn experts into task vectors of which a random part is kept and rescaled.

    Args:
        base: Values of b.
        experts: Values of x_i, shaped alike; overwritten.
        context: Names, position, seed and `rescale_factors`.
        density: Probability that an entry is kept, for each expert.

    Returns:
        (x_i - b) * mask_i * factor_i of each expert.
    """
    for name, expert, share, factor in zip(
        context.experts, experts, density, context.prepared, strict=True
    ):
        expert -= base
        expert *= context.keep_mask(name, expert, share)
        expert *= factor
    return list(experts)


def of_patterns(
    base: patterns.Patterns,
    experts: Sequence[patterns.Patterns],
    context: TensorContext,
    *,
    density: Sequence[float],
    scale: float,
    weights: Sequence[float] | None,
    merge: Literal["mean", "sum"],
    **parameters: Any,
) -> patterns.Patterns | None:
    """Do what `dare_ties` does on patterns of bfloat16."""
    drawn = zip(context.experts, density, strict=True)
    masks = [context.kept(name, base.size, share) for name, share in drawn]
    return patterns.agree(
        experts, base, weights, merge, scale, masks=masks, factors=context.prepared
    )


@method(
    title="DARE-TIES",
    paper="arXiv:2311.03099",
    needs={"base"},
    unit="values",
    prepare="rescale_factors",
    arrays=True,
    patterns="of_patterns",
)
def dare_ties(
    base: Values,
    experts: Sequence[Values],
    context: TensorContext,
    *,
    density: Densities = 0.5,
    scale: Scale = 1.0,
    weights: NonNegativeWeights = None,
    rescale: Literal["density", "l1", "none"] = "density",
    merge: Literal["sum", "mean"] = "sum",
) -> Values:
    """Drop at random, rescale, elect sign, merge.

    d_i = (x_i - b) * mask_i / density, mask_i ~ Bernoulli(density); then as in `ties`: with S the
    sign of sum_i w_i d_i, b + lambda * sum_i w_i d_i [sign d_i = S], divided for ``mean`` by
    sum_i w_i [sign d_i = S]. The mask depends on the seed, the expert's name, the tensor's name and
    the position only. There is no trim by magnitude between drop and election (fusion_bench has
    one, of 20 %).

    Args:
        density: Probability that an entry is kept; mergekit takes one for each expert. The paper
            tries drop rates from 0.1 to 0.9 and has no default; 0.5 is that of mergekit's
            published example.
        scale: lambda.
        weights: w_i >= 0; None for 1 each.
        rescale: ``density`` is the paper's 1/(1 - p), used by fusion_bench, MergeBench and
            mergekit up to 0.0.6 (so by merges published before February 2025); ``l1`` is mergekit's
            since 0.1.0: each tensor keeps its sum of magnitudes; ``none`` is its `rescale: false`.
        merge: ``sum`` is mergekit's `dare_ties` (normalize: false); ``mean`` is the disjoint mean
            of the TIES paper, on which the DARE paper builds.

    Source:
        Yu et al., Language models are super Mario, 2023, equation 1, with TIES.
    """
    deltas = drop_and_rescale(base, experts, context, density)
    return from_base(merge_agreeing(deltas, weights, merge), scale, base)


@method(
    title="DARE-linear",
    paper="arXiv:2311.03099",
    needs={"base"},
    unit="values",
    prepare="rescale_factors",
    arrays=True,
)
def dare_linear(
    base: Values,
    experts: Sequence[Values],
    context: TensorContext,
    *,
    density: Densities = 0.5,
    scale: Scale = 1.0,
    weights: Weights = None,
    rescale: Literal["density", "l1", "none"] = "density",
    normalize: Flag = False,
) -> Values:
    """Drop at random, rescale, add up: task arithmetic on thinned-out task vectors.

    b + lambda * sum_i w_i (x_i - b) * mask_i / density with mask_i ~ Bernoulli(density); the masks
    are those of `dare_ties`.

    Args:
        density: As for `dare_ties`.
        scale: lambda.
        weights: w_i; None for 1 each.
        rescale: As for `dare_ties`; MergeBench's "DARE" has ``density`` too.
        normalize: Whether to divide by the sum of the weights (mergekit's parameter of that name,
            which is false by default).

    Raises:
        UserError: The weights to be normalised sum to zero.

    Source:
        Yu et al., Language models are super Mario, 2023, equation 1, with task arithmetic.
    """
    deltas = drop_and_rescale(base, experts, context, density)
    return from_base(weighted_sum(deltas, weights, normalize), scale, base)
