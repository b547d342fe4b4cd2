"""DRM: decompose all task matrices together, renormalise, and merge in the common basis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from merges.arithmetic.spectral import Form, is_matrix, top
from merges.arithmetic.task_vectors import from_base, sum_of
from merges.engine.parameters import Density, Fraction, Scale
from merges.engine.registry import method
from merges.methods.ties import merge_agreeing

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext


def _merged(
    deltas: Sequence[torch.Tensor], density: float, floor: float, svd: Form
) -> torch.Tensor:
    """Merge task matrices [m, n], side by side."""
    joined = torch.cat(list(deltas), dim=1)
    parts = top(joined, min(joined.shape), svd)
    rank = int((parts.values >= floor * parts.values[:1]).sum())
    # [rank, experts, n]: each expert's share of each direction
    blocks = parts.right[:, :rank].T.reshape(rank, len(deltas), -1)
    norms = torch.linalg.vector_norm(blocks, dim=-1, keepdim=True)
    units = blocks / norms.masked_fill(norms == 0, 1)
    sizes = units.abs().flatten()
    if rank and (dropped := len(sizes) - max(1, int(density * len(sizes)))):
        units = units * (units.abs() > sizes.kthvalue(dropped).values)
    shares = units * norms * parts.values[:rank, None, None]
    common = merge_agreeing([shares[:, i].clone() for i in range(len(deltas))], None, "mean")
    return parts.left[:, :rank] @ common


@method(title="DRM", paper="arXiv:2505.23117", needs={"base"})
def drm(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Density = 0.2,
    along: Literal["rows", "columns"] = "rows",
    floor: Fraction = 0.01,
    scale: Scale = 1.0,
    svd: Literal["gram", "exact"] = "gram",
) -> torch.Tensor:
    """Decompose, renormalise, merge: b + lambda * U * merged(S_i V_i^T).

    The task matrices d_i = x_i - b side by side are [d_1 ... d_N] = U diag(s) V^T, without
    s < floor * s_1. V^T consists of a block for each expert; row k of block i is divided by its
    norm n_ik, of all these entries together the largest are kept, and each row is multiplied by
    s_k n_ik. The blocks are merged as in TIES: of the values with the sign of their sum, the mean.
    A row of norm zero (an expert equal to the base) stays zero; the authors' code divides by it.
    Parameters that are no matrices, and embeddings, get lambda times the average of the task
    vectors; the authors first trim these by magnitude over the model.

    Args:
        density: Share of the entries that is kept: 1 minus the authors' drop rate of 0.8. Of equal
            ones at the bound none is kept. At 1 their code returns the model unmerged; here
            nothing is dropped.
        along: ``rows`` is the authors' DRM-H, with matrices side by side; ``columns`` their
            DRM-V, with matrices one above the other.
        floor: Which singular values are left out; the authors' 1e-2.
        scale: lambda; 1 in the authors' code.
        svd: As for `tsv_m`; with ``gram`` and [m, n] matrices about 2 N m^2 n + 9 m^3 operations
            for N n >= m.

    Source:
        Decom-Renorm-Merge: model merging on the right space improves
        multitasking, 2025; the authors' code.
    """
    deltas = [expert.sub_(base) for expert in experts]
    if not is_matrix(context.tensor, base):
        return from_base(sum_of(deltas), scale / len(deltas), base)
    if along == "columns":
        merged = _merged([delta.T for delta in deltas], density, floor, svd).T
    else:
        merged = _merged(deltas, density, floor, svd)
    return from_base(merged, scale, base)
