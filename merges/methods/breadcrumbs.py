"""Model Breadcrumbs: task vectors without their largest and smallest values, added or elected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from merges.arithmetic.selection import Threshold, thresholds
from merges.arithmetic.task_vectors import l1_factors, only, order_by_magnitude, weighted_sum
from merges.engine.parameters import (
    Densities,
    Flag,
    Fractions,
    NonNegativeWeights,
    Scale,
    Weights,
)
from merges.engine.registry import method
from merges.methods.ties import deltas_of, merge_agreeing

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext

Scope = Literal["tensor", "model", "row"]


@dataclass(frozen=True)
class Band:
    """What is kept of a task vector, and by how much it is multiplied.

    Attributes:
        dropped: The largest values, which are dropped; None where each row has its own.
        reached: These and the kept ones together; None alike.
        factor: The multiple.
    """

    dropped: Threshold | None
    reached: Threshold | None
    factor: float


def ranks(density: float, gamma: float, count: int) -> tuple[int, int]:
    """Find which of some values are kept, counted from the largest magnitude.

    Args:
        density: Share that is kept.
        gamma: Share of largest ones that are dropped, fewer where density would not remain.
        count: The number of values n.

    Returns:
        Number of dropped largest values, floor(gamma n), and of these and the kept ones together,
        floor(density n) more.
    """
    keep = int(density * count)
    drop = min(int(gamma * count), count - keep)
    return drop, drop + keep


def keep_bands(
    deltas: Sequence[torch.Tensor],
    context: TensorContext,
    bands: Sequence[Band],
    density: Sequence[float],
    gamma: Sequence[float],
) -> list[torch.Tensor]:
    """Zero what is outside each task vector's band.

    Args:
        deltas: d_i [rows, columns].
        context: Position.
        bands: One for each.
        density: As for `ranks`, of each, as is gamma; used where each row has a separate band.
    """
    kept = []
    for delta, band, share, top in zip(deltas, bands, density, gamma, strict=True):
        if band.reached is None or band.dropped is None:
            first, last = ranks(share, top, delta.shape[-1])
            part = only(delta, order_by_magnitude(delta)[:, first:last])
        else:
            part = band.reached.keep(delta, context.place)
            part -= band.dropped.keep(delta, context.place)
        kept.append(part.mul_(band.factor))
    return kept


def find_bands(
    pieces: Pieces,
    *,
    density: Sequence[float],
    gamma: Sequence[float],
    rescale: Literal["none", "l1"],
    scope: Scope,
) -> list[Band]:
    """Find each task vector's band.

    Args:
        pieces: A parameter, or all where the scope is the model.
        density: As for `ranks`, of each expert, as is gamma.
        rescale: ``l1``: the factor restores the sum of magnitudes of `pieces`.
        scope: As for `breadcrumbs`.
    """
    count = len(pieces.experts)
    bands = [Band(None, None, 1.0)] * count
    if scope != "row":
        found = thresholds(
            pieces,
            lambda piece: [delta for delta in deltas_of(piece) for _ in range(2)],
            [k for pair in zip(density, gamma, strict=True) for k in ranks(*pair, pieces.count)],
        )
        bands = [Band(found[2 * n], found[2 * n + 1], 1.0) for n in range(count)]
    if rescale == "none":
        return bands
    factors = l1_factors(pieces, lambda d, context: keep_bands(d, context, bands, density, gamma))
    return [Band(b.dropped, b.reached, factor) for b, factor in zip(bands, factors, strict=True)]


@method(
    title="Model Breadcrumbs",
    paper="arXiv:2312.06795",
    needs={"base"},
    unit="rows",
    prepare="find_bands",
)
def breadcrumbs(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Densities = 0.15,
    gamma: Fractions = 0.006,
    scale: Scale = 0.2,
    weights: Weights = None,
    rescale: Literal["none", "l1"] = "none",
    normalize: Flag = False,
    scope: Literal["tensor", "model", "row"] = "tensor",
) -> torch.Tensor:
    """Drop the largest and the smallest values of task vectors, add up what remains.

    b + lambda * sum_i w_i d_i, where d_i is x_i - b without its floor(gamma n) largest magnitudes
    and with the floor(density n) next ones only (of equal ones the first counts as larger). In the
    paper's terms gamma is 1 - gamma and density is gamma - beta. Where too few would remain, fewer
    large ones are dropped.

    Args:
        density: Share of the values that is kept; mergekit takes one for each expert. The defaults
            of density, gamma and lambda are where the authors' code begins its search.
        gamma: Share of largest values that is dropped; mergekit takes one for each expert, 0.01 by
            default.
        scale: lambda, the paper's alpha; the paper tunes it.
        weights: w_i; None for 1 each, as in the paper.
        rescale: ``none`` is the paper's and mergekit's default; ``l1`` is mergekit's
            `rescale: true`: what is looked at keeps its sum of magnitudes.
        normalize: Whether to divide by the sum of the weights (mergekit's parameter of that name,
            which is false by default).
        scope: What the shares are of: each ``tensor`` as in the paper (by layer) and mergekit, the
            ``model``, or each ``row`` along the last dimension as in the authors' code. Rows
            are sorted, which takes n log n.

    Raises:
        UserError: The weights to be normalised sum to zero.

    Source:
        Davari and Belilovsky, Model Breadcrumbs, 2023.
    """
    deltas = [expert.sub_(base) for expert in experts]
    kept = keep_bands(deltas, context, context.prepared, density, gamma)
    return weighted_sum(kept, weights, normalize).mul_(scale).add_(base)


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
        density: As for `breadcrumbs`.
        gamma: As for `breadcrumbs`.
        scale: lambda.
        weights: w_i >= 0; None for 1 each.
        rescale: As for `breadcrumbs`.
        merge: ``sum`` is mergekit's (normalize: false); ``mean`` is TIES' disjoint mean.
        scope: As for `breadcrumbs`.

    Source:
        Davari and Belilovsky, Model Breadcrumbs, 2023, with Yadav et al.,
        TIES-Merging, 2023, algorithm 1, steps 2 and 3.
    """
    deltas = [expert.sub_(base) for expert in experts]
    kept = keep_bands(deltas, context, context.prepared, density, gamma)
    return merge_agreeing(kept, weights, merge).mul_(scale).add_(base)
