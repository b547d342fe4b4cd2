"""Iso-C: the sum of the task matrices with all singular values made equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from merges.arithmetic.spectral import is_matrix, polar
from merges.arithmetic.task_vectors import sum_of
from merges.engine.parameters import Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    import torch

    from merges.engine.requests import TensorContext


@method(title="Iso-C", paper="arXiv:2502.04959", needs={"base"})
def iso_c(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    scale: Scale = 1.0,
    combine: Literal["sum", "mean"] = "sum",
    svd: Literal["gram", "exact"] = "gram",
) -> torch.Tensor:
    """Flatten the spectrum of the summed task matrices: b + alpha * mean(s) * U V^T.

    U diag(s) V^T is the singular value decomposition of sum_i (x_i - b), and the mean is over all
    min(m, n) singular values. Parameters that are no matrices, and embeddings, get alpha times the
    average of the task vectors. Null directions stay null (`merges.arithmetic.spectral`); the
    authors' code gives them, in arbitrary vectors, the mean too.

    Args:
        scale: alpha. The paper tunes it on validation data; 1 is fusion_bench's default.
        combine: ``sum`` as in the paper and fusion_bench; ``mean`` divides by the number of
            experts, as the version in the code of TSV-Merge does.
        svd: As for `tsv_m`. ``gram`` takes about 4mn^2 + 11n^3 operations with m >= n, however
            many the experts: 1.3 s for 4096 x 1536 on one core, 1.8 s ``exact``.

    Source:
        Marczak et al., No task left behind: isotropic model merging with common and task-specific
        subspaces, 2025, section 4.
    """
    total = sum_of([expert.sub_(base) for expert in experts])
    if not is_matrix(context.tensor, base):
        return total.mul_(scale / len(experts)).add_(base)
    factor, nuclear = polar(total, svd)
    even = nuclear / min(base.shape) / (len(experts) if combine == "mean" else 1)
    return factor.mul_(scale * even).add_(base)
