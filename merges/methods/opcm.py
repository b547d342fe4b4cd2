"""OPCM: add experts one after the other, each orthogonal to what was merged before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from merges.arithmetic.spectral import Form, is_matrix, top
from merges.arithmetic.task_vectors import from_base
from merges.engine.parameters import Fraction, Scale
from merges.engine.registry import method
from merges.methods.ties import deltas_of

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext


def _projected(merged: torch.Tensor, delta: torch.Tensor, alpha: float, svd: Form) -> torch.Tensor:
    """Take from a task matrix, in place, what it shares with the merged one."""
    parts = top(merged, min(merged.shape), svd)
    if not len(parts.values):
        return delta
    shares = parts.values.cumsum(0) / parts.values.sum()
    block = int((shares <= alpha).sum())
    left, right = parts.left, parts.right
    diagonal = ((left.T @ delta) * right.T).sum(1)
    inner = left[:, :block].T @ delta @ right[:, :block]
    inner -= inner.diag().diag()  # the diagonal is taken away with the others
    delta -= (left * diagonal) @ right.T
    delta -= left[:, :block] @ inner @ right[:, :block].T
    return delta


def _accumulated(
    deltas: Sequence[torch.Tensor], tensor: str, alpha: float, svd: Form
) -> torch.Tensor:
    merged = deltas[0].clone()
    for delta in deltas[1:]:
        merged += _projected(merged, delta, alpha, svd) if is_matrix(tensor, merged) else delta
    return merged


def length_factor(pieces: Pieces, *, alpha: float, svd: Form) -> float:
    """Return the mean length of the task vectors, divided by the merged one's; 0 for no length."""
    squares, total = [0.0] * len(pieces.experts), 0.0
    for piece in pieces:
        deltas = deltas_of(piece)
        for number, delta in enumerate(deltas):
            squares[number] += float(delta.square().sum(dtype=torch.float64))
        merged = _accumulated(deltas, piece.context.tensor, alpha, svd)
        total += float(merged.square().sum(dtype=torch.float64))
    mean = math.fsum(map(math.sqrt, squares)) / len(squares)
    return mean / math.sqrt(total) if total else 0.0


@method(
    title="OPCM", paper="arXiv:2501.09522", needs={"base"}, ordered=True, prepare="length_factor"
)
def opcm(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    alpha: Fraction = 0.5,
    scale: Scale = 1.0,
    scope: Literal["tensor", "model"] = "model",
    svd: Literal["gram", "exact"] = "gram",
) -> torch.Tensor:
    """Merge continually by orthogonal projections: b + lambda * S * mean_i |d_i| / |S|.

    S begins as the first expert's d_1 = x_1 - b. For each later one, with S = U diag(s) V^T, let
    P = U^T d_i V, set its diagonal to zero and its leading q x q block too, q being the number of
    singular values whose cumulative share of their sum is at most alpha, and add U P V^T to S.
    What is added is orthogonal to S. Parameters that are no matrices, and embeddings, add d_i.
    Null directions of S take no part (`merges.arithmetic.spectral`): their vectors are arbitrary.

    Args:
        alpha: Share of the singular values' sum whose block is protected; 0.5 in the authors' code.
        scale: lambda, a factor on the result's task vector; the paper has none.
        scope: Where the lengths are taken: over the ``model`` as in the paper, or in each
            ``tensor``. Matrices are decomposed twice, as the length must be known before the
            first one is written.
        svd: As for `tsv_m`; N - 1 decompositions of [m, n], twice.

    Source:
        Merging models on the fly without retraining: a sequential approach to scalable
        continual model merging, 2025; fusion_bench. Both keep a running factor, which only the last
        expert's leaves in the result. They shuffle the order; here it is the one given.
    """
    deltas = [expert.sub_(base) for expert in experts]
    merged = _accumulated(deltas, context.tensor, alpha, svd)
    return from_base(merged, scale * context.prepared, base)
