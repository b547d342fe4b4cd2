"""Linear combinations of values, in place, and the weights that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.errors import UserError

if TYPE_CHECKING:
    import torch

    from merges.engine.requests import Values


def combine(vectors: Sequence[Values], coefficients: Sequence[float | torch.Tensor]) -> Values:
    """Compute sum_i c_i v_i, in the order given.

    With u half the distance from 1 to the next number of the vectors' type (2^-24 in float32) and
    N vectors, the error is at most (N + 1) u sum_i |c_i v_i| to first order: one rounding of the
    coefficient, one of the product, N - 1 of sums. Stored in bfloat16 or float16 the result is
    therefore correctly rounded, except where the exact value is that close to the middle between
    two neighbours.

    Args:
        vectors: v_i of one shape; the first is overwritten with the result.
        coefficients: c_i, each a number or, of tensors, a float64 tensor that broadcasts to the
            shape.
    """
    merged = vectors[0]
    if isinstance(merged, np.ndarray):
        from merges.arithmetic import kernels

        return kernels.combine(vectors, [float(coefficient) for coefficient in coefficients])
    for number, (vector, coefficient) in enumerate(zip(vectors, coefficients, strict=True)):
        if not isinstance(coefficient, float):
            coefficient = coefficient.to(vector.dtype)
        if number == 0:
            merged.mul_(coefficient)
        elif isinstance(coefficient, float):
            merged.add_(vector, alpha=coefficient)
        else:
            merged.addcmul_(vector, coefficient)
    return merged


def ones_or(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return the weights as they are, 1 for each of `count` experts where none are given."""
    return [1.0] * count if weights is None else list(weights)


def normalized(weights: Sequence[float], method: str, remedy: str) -> list[float]:
    """Divide weights by their sum.

    Args:
        weights: One per expert.
        method: The method's name, for the message.
        remedy: What the user can do.

    Raises:
        UserError: They sum to zero.
    """
    total = sum(weights)
    if total == 0:
        raise UserError(
            f"method {method}, parameter weights: they sum to 0 and cannot be normalised; {remedy}"
        )
    return [weight / total for weight in weights]
