"""Iso-CTS: common and task-specific directions, all with the same singular value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from merges.arithmetic.spectral import is_matrix, polar, top
from merges.arithmetic.task_vectors import sum_of
from merges.engine.parameters import Fraction, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext


def dimensions(size: int, experts: int, common: float) -> tuple[int, int]:
    """Divide the directions between the common space and the tasks.

    Args:
        size: min(m, n).
        experts: Number of tasks T.
        common: Share of the common space that is asked for.

    Returns:
        Directions k of the common space, and those s of each task, with k + s * T = size.
    """
    each = min(size // experts, round((size - int(size * common)) / experts))
    return size - each * experts, each


@method(title="Iso-CTS", paper="arXiv:2502.04959", needs={"base"})
def iso_cts(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    scale: Scale = 1.0,
    common: Fraction = 0.8,
    svd: Literal["gram", "exact"] = "gram",
) -> torch.Tensor:
    """Join common and task-specific directions: b + alpha * mean(s) * U' V'^T.

    With d_i = x_i - b, the common directions are the k leading singular components U_c, V_c of
    sum_i d_i. Each task adds the s leading ones of d_i - U_c U_c^T d_i, where T * s + k = r =
    min(m, n) and s is the whole number nearest (r - floor(r * common)) / T. All vectors side by
    side are replaced by the nearest matrices with orthonormal columns U' and V', and all singular
    values by their mean over r. Parameters that are no matrices, and embeddings, get alpha times
    the average of the task vectors. Null directions take no part (`merges.arithmetic.spectral`).
    With `common` = 1, or one expert, it is Iso-C.

    Args:
        scale: alpha. The paper tunes it on validation data; 1 is fusion_bench's default.
        common: Share of the directions that are common; 0.8 in the paper and the authors' code.
        svd: As for `tsv_m`; about (T + 1) * (2mn^2 + 9n^3) + 4Tmn^2 + 8mn^2 + 26n^3 operations
            with m >= n: 7 s for three experts of 4096 x 1536 on one core, 10 s ``exact``.

    Source:
        Marczak et al., No task left behind: isotropic model merging with common and task-specific
        subspaces, 2025, section 4.
    """
    deltas = [expert.sub_(base) for expert in experts]
    total = sum_of(deltas)
    if not is_matrix(context.tensor, base):
        return total.mul_(scale / len(deltas)).add_(base)
    size = min(base.shape)
    shared, each = dimensions(size, len(deltas), common)
    parts = [top(total, shared, svd)]
    space = parts[0].left
    # Of a task that the common space takes away wholly, some eps sqrt(m) of this is left, which is
    # rounding and no direction.
    reference = 4 * float(parts[0].values[:1].sum())
    for delta in deltas if each else ():
        rest = delta.addmm_(space, space.T @ delta, alpha=-1)
        parts.append(top(rest, each, svd, reference))
    left, _ = polar(torch.cat([part.left for part in parts], dim=1), svd)
    right, _ = polar(torch.cat([part.right for part in parts], dim=1), svd)
    even = sum(float(part.values.sum(dtype=torch.float64)) for part in parts) / size
    return torch.addmm(base, left, right.T, alpha=scale * even)
