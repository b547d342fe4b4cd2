"""TSV-Merge: add the leading singular components of the task matrices, decorrelated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from merges.arithmetic.spectral import is_matrix, polar, top
from merges.arithmetic.task_vectors import sum_of
from merges.engine.parameters import Density, Scale, Weights
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext


@method(title="TSV-Merge", paper="arXiv:2412.00081", needs={"base"})
def tsv_m(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    scale: Scale = 1.0,
    weights: Weights = None,
    rank_share: Density | None = None,
    svd: Literal["gram", "exact"] = "gram",
) -> torch.Tensor:
    """Add task singular vectors: b + alpha * U' diag(s) V'^T.

    Of each of the T task matrices w_i (x_i - b) the k = floor(r / T) leading singular components
    are kept, r = min(m, n). Their vectors side by side, U = [U_1 ... U_T] and V likewise, are
    replaced by the nearest matrices with orthonormal columns (P Q^T of U = P D Q^T), which removes
    the interference between tasks; s are the singular values side by side. Parameters that are no
    matrices, and embeddings, get alpha times the average of the task vectors. Null directions take
    no part (`merges.arithmetic.spectral`), so an expert of low rank adds no arbitrary vectors, and
    one expert alone is itself.

    Args:
        scale: alpha; 1 in the authors' code and fusion_bench: the method does without tuning.
        weights: w_i, as in fusion_bench; None for 1 each, as in the paper.
        rank_share: k / r; None for 1/T as in the paper (at least one component). 1 is the
            ``lossless`` variant of the authors' code.
        svd: ``gram`` by eigenvectors of Gram matrices in float64; ``exact`` by LAPACK's singular
            value decomposition in the working type, as the authors do. In float32 ``gram`` is the
            more accurate (relative errors of the three methods that use it are 1e-7 to 2e-6,
            against 1e-6 to 2e-5) and the faster. With m >= n it takes about T * (2mn^2 + 9n^3)
            + 8mn^2 + 26n^3 operations and as much memory again as the task matrices: 6.5 s for
            three experts of 4096 x 1536 on one core, 7.4 s ``exact``.

    Source:
        Gargiulo et al., Task singular vectors: reducing task interference in model merging, 2024,
        TSV-Merge; the authors' `compute_and_sum_svd_mem_reduction` (all two-dimensional
        parameters but CLIP's text projection; the rest averaged).
    """
    deltas = [expert.sub_(base) for expert in experts]
    for delta, weight in zip(deltas, weights or [], strict=weights is not None):
        delta.mul_(weight)
    if not is_matrix(context.tensor, base):
        return sum_of(deltas).mul_(scale / len(deltas)).add_(base)
    size = min(base.shape)
    kept = size // len(deltas) if rank_share is None else int(size * rank_share)
    parts = [top(delta, max(1, kept), svd) for delta in deltas]
    # Of all tasks at once: this removes the interference between them.
    left, _ = polar(torch.cat([part.left for part in parts], dim=1), svd)
    right, _ = polar(torch.cat([part.right for part in parts], dim=1), svd)
    values = torch.cat([part.values for part in parts])
    return torch.addmm(base, left * values, right.T, alpha=scale)
