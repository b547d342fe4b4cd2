"""Model Breadcrumbs with TIES' sign election."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from merges.engine.parameters import Densities, Fractions, NonNegativeWeights, Scale
from merges.engine.registry import method
from merges.methods.breadcrumbs import find_bands, keep_bands  # noqa: F401 (prepares)
from merges.methods.ties import merge_agreeing

if TYPE_CHECKING:
    import torch

    from merges.engine.requests import TensorContext


@method(
    title="Breadcrumbs-TIES",
    paper="arXiv:2312.06795",
    needs={"base"},
    unit="rows",
    prepare="find_bands",
)
def breadcrumbs_ties(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Densities = 0.15,
    gamma: Fractions = 0.006,
    scale: Scale = 1.0,
    weights: NonNegativeWeights = None,
    rescale: Literal["none", "l1"] = "none",
    merge: Literal["mean", "sum"] = "sum",
    scope: Literal["tensor", "model", "row"] = "tensor",
) -> torch.Tensor:
    """Drop the largest and the smallest values, elect a sign, merge what agrees with it.

    With d_i the task vectors of `breadcrumbs` and S the sign of sum_i w_i d_i, the result is
    b + lambda * sum_i w_i d_i [sign d_i = S], divided for ``mean`` by sum_i w_i [sign d_i = S].
    mergekit put the two together; no paper describes it.

    Args:
        base: Values of b, the common ancestor, [rows, columns].
        experts: Values of x_i, shaped alike.
        context: Position and bands.
        density: As for `breadcrumbs`.
        gamma: As for `breadcrumbs`.
        scale: lambda.
        weights: w_i >= 0; None for 1 each.
        rescale: As for `breadcrumbs`.
        merge: ``sum`` is mergekit's (normalize: false); ``mean`` is TIES' disjoint mean.
        scope: As for `breadcrumbs`.

    Returns:
        The merged values.

    Source:
        Davari and Belilovsky, Model Breadcrumbs, 2023, with Yadav et al.,
        TIES-Merging, 2023, algorithm 1, steps 2 and 3.
    """
    deltas = [expert.sub_(base) for expert in experts]
    kept = keep_bands(deltas, context, context.prepared, density, gamma)
    return merge_agreeing(kept, weights, merge).mul_(scale).add_(base)
