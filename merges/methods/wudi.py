"""WUDI: the task matrix that interferes least with every expert's own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from checkpoints.names import is_head
from merges.arithmetic.spectral import Form, is_matrix, top
from merges.arithmetic.task_vectors import from_base, sum_of
from merges.engine.parameters import LearningRate, PositiveCount, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext


def _closed(
    deltas: Sequence[torch.Tensor], units: Sequence[torch.Tensor], svd: Form
) -> torch.Tensor:
    """Solve T (sum_i Q_i) = sum_i d_i Q_i by the decomposition P diag(s) R^T of the stacked u_i.

    sum_i Q_i is then R diag(s^2) R^T and sum_i d_i Q_i is C P diag(s) R^T with
    C = [d_1 u_1^T ... d_N u_N^T], so that T = C P diag(1/s) R^T, and no product is squared.
    """
    stacked = torch.cat(list(units))
    parts = top(stacked, min(stacked.shape), svd)
    products = torch.cat([d.double() @ u.double().T for d, u in zip(deltas, units, strict=True)], 1)
    factors = parts.left.double() / parts.values.double()
    return (products @ factors @ parts.right.double().T).to(stacked.dtype)


def _descended(
    deltas: Sequence[torch.Tensor], units: Sequence[torch.Tensor], steps: int, rate: float
) -> torch.Tensor:
    """Go a number of Adam's steps from the sum of the task matrices."""
    inputs = sum_of([unit.T @ unit for unit in units])
    target = sum_of([(d @ unit.T) @ unit for d, unit in zip(deltas, units, strict=True)])
    merged = sum_of(deltas).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=rate)
    for _ in range(steps):
        merged.grad = (merged.detach() @ inputs).sub_(target).mul_(2)
        optimizer.step()
    return merged.detach()


@method(title="WUDI", paper="arXiv:2503.08099", needs={"base"})
def wudi(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    solver: Literal["exact", "adam"] = "exact",
    steps: PositiveCount = 300,
    learning_rate: LearningRate = 0.00001,
    head: Literal["solved", "averaged"] = "averaged",
    scale: Scale = 1.0,
    svd: Literal["gram", "exact"] = "gram",
) -> torch.Tensor:
    """Minimise the interference with every expert: b + lambda * T.

    T minimises sum_i |(T - d_i) d_i^T|^2 / |d_i|^2, in which the rows of the task matrix
    d_i = x_i - b stand for the inputs of expert i. With u_i = d_i / |d_i| and Q_i = u_i^T u_i the
    minimum is T = (sum_i d_i Q_i) (sum_i Q_i)^+: RegMean with Q_i in place of the inputs' Gram
    matrix. The rows of all d_i are in the row space of sum_i Q_i, so the minimum is unique there,
    and the one nearest to the sum of the task matrices is the same. Parameters that are no
    matrices, and embeddings, get the average of the task vectors.

    Args:
        solver: ``exact`` is the minimum; ``adam`` what the authors publish: it starts at
            sum_i d_i and is stopped early, as each entry moves by at most
            steps * learning_rate = 0.003.
        steps: For ``adam``; 300 in the authors' code for language models, 400 in fusion_bench.
        learning_rate: For ``adam``; that of both.
        head: Whether the output head is ``averaged`` too, as in the code for language models.
        scale: lambda; the authors have none.
        svd: For ``exact``, how the stacked task matrices are decomposed, as for `tsv_m`. With
            [m, n] matrices, N experts and s = min(N m, n) it takes about 2 N m n s + 9 s^3
            operations; ``adam`` takes 2 m n^2 for each step.

    Source:
        Whoever started the interference should end it, 2025; fusion_bench. The closed
        form is not in the paper; it follows from the objective.
    """
    deltas = [expert.sub_(base) for expert in experts]
    averaged = head == "averaged" and is_head(context.tensor)
    if averaged or not is_matrix(context.tensor, base):
        return from_base(sum_of(deltas), scale / len(deltas), base)
    moved = [delta for delta in deltas if delta.any()]
    if not moved:
        return base
    units = [delta / torch.linalg.vector_norm(delta) for delta in moved]
    if solver == "adam":
        merged = _descended(moved, units, steps, learning_rate)
    else:
        merged = _closed(moved, units, svd)
    return from_base(merged, scale, base)
