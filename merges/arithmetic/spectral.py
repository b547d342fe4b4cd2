"""Singular vectors of task matrices, and the rule for parameters that are no matrices.

Singular values of at most 2 * epsilon * sqrt(max(m, n)) of the largest count as zero (epsilon is
the working type's; 1.5e-5 for 4096 rows in float32): rounding alone makes such. Their vectors,
which no arithmetic can determine, take no part. Without that, what a LoRA expert, a task vector of
zeros or two equal experts merge to would depend on the linear-algebra library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from checkpoints.names import kind

Form = Literal["gram", "exact"]

_ROWS = 1024  # rows converted to float64 at a time
_GRAM_FLOOR = 1e-7  # of the largest; what a Gram matrix in float64 surely resolves


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Return whether a parameter is merged by its singular vectors.

    Returns:
        True for two-dimensional parameters other than embeddings: projections, the output head,
        routers. Embeddings, gains, biases and stacked experts are averaged instead.
    """
    return tensor.ndim == 2 and kind(name) != "embedding"


@dataclass(frozen=True)
class Singular:
    """The leading part of a singular value decomposition, U diag(s) V^T, without null directions.

    Attributes:
        left: U, [m, c].
        values: s, [c], in descending order.
        right: V, [n, c].
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def _gram(tall: torch.Tensor) -> torch.Tensor:
    gram = tall.new_zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for rows in tall.split(_ROWS):
        block = rows.double()
        gram.addmm_(block.T, block)
    return gram


def _product(tall: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply in float64, a block of rows at a time, and round once."""
    result = tall.new_empty(tall.shape[0], right.shape[1])
    for rows, out in zip(tall.split(_ROWS), result.split(_ROWS), strict=True):
        out.copy_(rows.double() @ right)
    return result


def _rank(values: torch.Tensor, matrix: torch.Tensor, form: Form, reference: float) -> int:
    """Count the singular values (descending) that are not numerically zero."""
    if not len(values):
        return 0
    share = 2 * torch.finfo(matrix.dtype).eps * math.sqrt(max(matrix.shape))
    if form == "gram":
        share = max(share, _GRAM_FLOOR)
    largest = max(float(values[0]), reference)
    return int((values > share * largest).sum())


def _decompose(matrix: torch.Tensor, form: Form, reference: float) -> Singular:
    """Decompose a matrix with m >= n; by a Gram matrix, U is left out and V in float64."""
    if form == "exact":
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        rank = _rank(values, matrix, form, reference)
        return Singular(left[:, :rank], values[:rank], right[:rank].T)
    squares, vectors = torch.linalg.eigh(_gram(matrix))
    values, right = squares.clamp_min_(0).sqrt_().flip(0), vectors.flip(1)
    rank = _rank(values, matrix, form, reference)
    return Singular(right[:, :0], values[:rank], right[:, :rank])


def top(matrix: torch.Tensor, count: int, form: Form, reference: float = 0.0) -> Singular:
    """Find the largest singular values of a matrix and their vectors.

    With m >= n (else transposed), ``gram`` takes the eigenvectors of the n x n Gram matrix in
    float64, about 2mn^2 + 9n^3 + 2mn * count operations; squares cost half the digits, so that
    of float64 those of float32 remain. ``exact`` takes LAPACK's decomposition in the working
    type, about 6mn^2 + 20n^3.

    Args:
        matrix: [m, n], floating.
        count: How many at most.
        form: ``gram`` or ``exact``.
        reference: Magnitude against which singular values count as zero, where the matrix's own
            largest one may itself be rounding.

    Returns:
        At most `count` singular values, fewer where the numerical rank is less, with vectors in
        the matrix's type.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    found = _decompose(tall, form, reference)
    values, right = found.values[:count], found.right[:, :count]
    left = found.left[:, :count] if form == "exact" else _product(tall, right / values)
    values, right = values.to(matrix.dtype), right.to(matrix.dtype)
    return Singular(right, values, left) if wide else Singular(left, values, right)


def polar(matrix: torch.Tensor, form: Form) -> tuple[torch.Tensor, float]:
    """Find the nearest matrix with orthonormal columns (or rows): U V^T of the decomposition.

    Args:
        matrix: [m, n], floating. Its null directions stay null.
        form: As for `top`; ``gram`` costs about 4mn^2 + 11n^3 operations.

    Returns:
        U V^T, [m, n], in the matrix's type, and the sum of the singular values.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    found = _decompose(tall, form, 0.0)
    if form == "exact":
        factor = found.left @ found.right.T
    else:
        factor = _product(tall, (found.right / found.values) @ found.right.T)
    return factor.T if wide else factor, math.fsum(found.values.tolist())
