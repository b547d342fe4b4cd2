"""MaTS: match the experts in the subspace that their data use, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from merges.arithmetic.task_vectors import from_base, sum_of
from merges.engine.parameters import Count, Fraction, NonNegative, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    import torch

    from merges.engine.requests import TensorContext


def descend(
    start: torch.Tensor,
    residual: torch.Tensor,
    apply: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    tolerance: float,
) -> torch.Tensor:
    """Solve A(X) = B for a symmetric positive A by conjugate gradients.

    Args:
        start: X_0; overwritten.
        residual: B - A(X_0); overwritten.
        apply: A.
        steps: At most so many.
        tolerance: Ends where the residual's length is at most this share of its first.
    """
    direction = residual.clone()
    square = float(residual.square().sum())
    goal = tolerance**2 * square
    for _ in range(steps):
        if square <= goal or square == 0:
            break
        image = apply(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:  # rounding is all that is left
            break
        step = square / curvature
        start.add_(direction, alpha=step)
        residual.sub_(image, alpha=step)
        before, square = square, float(residual.square().sum())
        direction.mul_(square / before).add_(residual)
    return start


@method(title="MaTS", paper="arXiv:2312.04339", needs={"base"}, statistics={"experts": "kronecker"})
def mats(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    steps: Count = 100,
    initial: Scale = 0.3,
    alpha: Fraction = 1.0,
    tolerance: NonNegative = 1e-5,
) -> torch.Tensor:
    """Minimise sum_i |B_i^(1/2) (W - W_i) G_i^(1/2)|^2 by conjugate gradients from task arithmetic.

    G_i = E[x x^T] is the Gram matrix of expert i's inputs and B_i that of the gradients of its
    answers' log-probability at the layer's outputs: their Kronecker product stands for the Fisher
    information. The solution has sum_i B_i W G_i = sum_i B_i W_i G_i; few steps keep W near its
    start b + initial * sum_i (W_i - b). Parameters that are no linear layers, and the output head,
    are averaged. All experts' matrices of one tensor are in memory.

    Args:
        steps: Most conjugate gradient steps; 100 in the authors' code for whole models. They tune
            the number, for it regularises.
        initial: Factor of the task vectors' sum at the start; 0.3 in the authors' code.
        alpha: Multiplier of both kinds of Gram matrices off their diagonals; theirs is 1.
        tolerance: Ends earlier where the residual's length falls to this share.

    Source:
        Merging by Matching Models in Task Parameter Subspaces, 2023; the authors' code (mats).
    """
    import torch

    # Long because of its two small functions, which both need the experts' matrices.
    deltas = [expert.sub_(base) for expert in experts]
    name = context.tensor
    found = context.statistics_of(context.experts, "gram", "output_gram")
    if found is None:
        return from_base(sum_of(deltas), 1 / len(deltas), base)

    def shrunk(matrix: torch.Tensor) -> torch.Tensor:
        matrix = matrix.to(base.device, torch.float64)
        return alpha * matrix + (1 - alpha) * torch.diag(matrix.diagonal())

    inputs = [shrunk(own.matrix(name, "gram")) for own in found]
    outputs = [shrunk(own.matrix(name, "output_gram")) for own in found]

    def apply(weights: Sequence[torch.Tensor]) -> torch.Tensor:
        parts = zip(outputs, weights, inputs, strict=True)
        return sum_of([left @ weight @ right for left, weight, right in parts])

    wide = [delta.double() for delta in deltas]
    start = initial * sum_of(wide)
    residual = apply([delta - start for delta in wide])
    merged = descend(start, residual, lambda w: apply([w] * len(wide)), steps, tolerance)
    return base + merged.to(base)
