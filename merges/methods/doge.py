"""DOGE: adapt task matrices by projected gradient descent, then trim and add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from merges.arithmetic.selection import Threshold, kept, thresholds
from merges.arithmetic.spectral import Form, is_matrix, top
from merges.arithmetic.task_vectors import from_base
from merges.engine.parameters import Count, Density, LearningRate, Scale
from merges.engine.registry import method
from merges.methods.ties import deltas_of

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext


def _shared_space(deltas: Sequence[torch.Tensor], share: float, svd: Form) -> torch.Tensor:
    """Return orthonormal columns: the leading ones of the experts' leading left vectors."""
    size = min(deltas[0].shape)
    each = max(1, size // len(deltas))
    joined = torch.cat([top(delta, each, svd).left for delta in deltas], dim=1)
    return top(joined, max(1, int(size * share)), svd).left


def _adapted(
    deltas: Sequence[torch.Tensor],
    factors: Sequence[float],
    space: torch.Tensor,
    steps: int,
    rate: float,
) -> torch.Tensor:
    """Find the common change of the task matrices by Adam, outside the shared space."""
    change = torch.zeros_like(deltas[0]).requires_grad_()
    optimizer = torch.optim.Adam([change], lr=rate)
    fixed = sum((delta * factor for delta, factor in zip(deltas, factors, strict=True)), 0 * change)
    fixed, total = fixed.detach(), sum(factors)
    for _ in range(steps):
        merged = fixed + total * change.detach()
        gradient = torch.zeros_like(merged)
        for delta in deltas:
            gaps = (delta * (delta - merged)).sum(1, keepdim=True)
            gradient.addcmul_(gaps, delta, value=-2 * total)
        change.grad = gradient - space @ (space.T @ gradient)
        optimizer.step()
    return change.detach()


def trim(pieces: Pieces, *, density: float) -> list[Threshold]:
    """Find which entries of each task vector are kept."""
    count = kept(density, pieces.count)
    return thresholds(pieces, deltas_of, [count] * len(pieces.experts))


@method(title="DOGE (AdaptivePGD)", paper="arXiv:2501.01230", needs={"base"}, prepare="trim")
def doge(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    scale: Scale = 0.07,
    steps: Count = 400,
    learning_rate: LearningRate = 0.0001,
    shared: Density = 0.16666666666666666,
    density: Density = 0.3,
    scope: Literal["tensor", "model"] = "model",
    svd: Literal["gram", "exact"] = "gram",
) -> torch.Tensor:
    """Merge adapted task matrices: b + sum_i lambda_i m_i (d_i + D), lambda_i = eta / |d_i|.

    d_i = x_i - b. D, common to the experts, minimises the sum over experts j and rows of
    (sum over columns of d_j * (d_j - sum_i lambda_i (d_i + D)))^2, by Adam from D = 0. Of each
    gradient the part in the shared space is taken away: the span of the leading left singular
    vectors of all the experts' leading r/N ones side by side, r = min(m, n). m_i keeps the largest
    entries of |d_i|. Parameters that are no matrices, and embeddings, have D = 0. An expert
    equal to the base takes no part.

    Args:
        scale: eta. fusion_bench's 0.07 was chosen for CLIP.
        steps: Of Adam; 0 leaves D at 0.
        learning_rate: Of Adam; 1e-4.
        shared: Size of the shared space, as a share of r; a sixth.
        density: Share of |d_i| that is kept; of equal ones at the threshold the first.
        scope: What the density is a share of: the ``model``, or each ``tensor``.
        svd: As for `tsv_m`; N + 1 decompositions, and 4 N m n operations for each step and those
            of the projection.

    Source:
        Modeling multi-task model merging as adaptive projective gradient descent, 2025,
        without test-time adaptation, as in fusion_bench, whose numbers are the defaults.
    """
    deltas = [expert.sub_(base) for expert in experts]
    norms = [float(torch.linalg.vector_norm(delta)) for delta in deltas]
    factors = [scale / norm if norm else 0.0 for norm in norms]
    moved = [number for number, norm in enumerate(norms) if norm]
    change = torch.zeros_like(base)
    if moved and steps and is_matrix(context.tensor, base):
        chosen = [deltas[number] for number in moved]
        space = _shared_space(chosen, shared, svd)
        change = _adapted(chosen, [factors[n] for n in moved], space, steps, learning_rate)
    merged = torch.zeros_like(base)
    for delta, factor, threshold in zip(deltas, factors, context.prepared, strict=True):
        mask = threshold.keep(delta, context.place) != 0
        merged.add_(mask * (delta + change), alpha=factor)
    return from_base(merged, 1.0, base)
