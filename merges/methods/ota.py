"""OTA: task vectors averaged with curvature, after what matters least was taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from merges.engine.parameters import Density, NonNegative, Positive, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    import torch

    from merges.arithmetic.selection import Threshold
    from merges.engine.pieces import Piece, Pieces
    from merges.engine.requests import TensorContext


def curvatures(
    experts: Sequence[torch.Tensor], context: TensorContext
) -> list[torch.Tensor] | None:
    """Read v_i of the values that a piece has; None where a model has none."""
    found = context.statistics_of(context.experts, "values")
    if found is None:
        return None
    return [context.values_of(own, like) for own, like in zip(found, experts, strict=True)]


def grafting_thresholds(pieces: Pieces, *, density: float) -> list[Threshold]:
    """Find the k largest v_i d_i^2 of each expert, k being the density's share."""
    import torch

    from merges.arithmetic.selection import kept, thresholds

    def scores(piece: Piece) -> list[torch.Tensor]:
        own = curvatures(piece.experts, piece.context)
        if own is None:
            return [torch.zeros_like(expert) for expert in piece.experts]
        return [
            v.sqrt_().mul_(expert - piece.base)  # its square orders as its magnitude does
            for v, expert in zip(own, piece.experts, strict=True)
        ]

    counted = [
        part.count
        for part in pieces.parts
        if part.context.statistics_of(part.context.experts, "values") is not None
    ]
    count = kept(density, sum(counted)) if counted else 0
    return thresholds(pieces, scores, [count] * len(pieces.experts))


@method(
    title="OTA merging",
    paper="arXiv:2509.11167",
    needs={"base"},
    statistics={"experts": "empirical_fisher"},
    unit="values",
    prepare="grafting_thresholds",
)
def ota(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Density = 0.4,
    power: Positive = 0.5,
    epsilon: NonNegative = 1e-26,
    scale: Scale = 1.0,
    scope: Literal["tensor", "model"] = "model",
) -> torch.Tensor:
    """Average with curvature: b + lambda * sum_i w_i m_i d_i / sum_i w_i m_i, w_i = v_i^p + eps.

    m_i keeps the share `density` of d_i = x_i - b with the largest v_i d_i^2 (fast Fisher
    grafting); what no mask keeps is the base's. v_i is here the empirical Fisher information: the
    mean square of the gradient, in place of the second moment that Adam kept in training. What has
    none, as embeddings and the output head, gets the average of the task vectors.

    Args:
        density: Share that each mask keeps. The authors give absolute thresholds, chosen so that
            about 0.4 stays.
        power: p; 0.5 in their configuration.
        epsilon: eps; theirs are 1e-26 to 1e-28. Larger ones drown v_i.
        scale: lambda; theirs is 1.
        scope: What the density is a share of.

    Source:
        Harnessing Optimization Dynamics for Curvature-Informed Model Merging, 2025; the authors'
        code (ota-merge).
    """
    import torch

    own = curvatures(experts, context)
    deltas = [expert - base for expert in experts]
    if own is None:
        return base + scale * sum(delta / len(deltas) for delta in deltas)
    total, sums = torch.zeros_like(base), torch.zeros_like(base)
    for threshold, v, delta in zip(context.prepared, own, deltas, strict=True):
        root = v.sqrt()
        mask = threshold.keep(root * delta, context.place) != 0
        weight = v.pow_(power).add_(epsilon) * mask
        total += weight
        sums += weight * delta
    return base + scale * torch.where(total > 0, sums / total, 0.0)
