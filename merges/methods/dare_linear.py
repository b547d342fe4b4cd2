"""DARE-linear: random drop and rescale, then a weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from merges.arithmetic.task_vectors import from_base, weighted_sum
from merges.engine.parameters import Densities, Flag, Scale, Weights
from merges.engine.registry import method
from merges.methods.dare_ties import drop_and_rescale, rescale_factors  # noqa: F401 (prepares)

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext, Values


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
        base: Values of b, the common ancestor.
        experts: Values of x_i, shaped alike.
        context: Names, position and the seed.
        density: Probability that an entry is kept. The paper tries drop rates from 0.1 to 0.9
            and has no default; 0.5 is that of mergekit's published example for DARE-TIES.
        scale: lambda.
        weights: w_i; None for 1 each.
        rescale: ``density`` is the paper's 1/(1 - p), used by fusion_bench, MergeBench ("DARE") and
            mergekit up to 0.0.6; ``l1`` is mergekit's since 0.1.0: each tensor keeps its sum of
            magnitudes; ``none`` is its `rescale: false`.
        normalize: Whether to divide by the sum of the weights (mergekit's parameter of that name,
            which is false by default).

    Returns:
        The merged values.

    Raises:
        UserError: The weights to be normalised sum to zero.

    Source:
        Yu et al., Language models are super Mario, 2023, equation 1, with task arithmetic.
    """
    deltas = drop_and_rescale(base, experts, context, density)
    return from_base(weighted_sum(deltas, weights, normalize), scale, base)
