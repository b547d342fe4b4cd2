"""Inner products of experts: what the methods that look at lengths and angles need of them.

A point of the space that N tensors span is N coordinates, and an inner product of two such points
needs only the tensors' N x N Gram matrix. One pass over the values finds it; what follows takes no
more than a few N x N products.

Near angle 0 the Gram matrix knows an angle a to about 1e-8 only, because its cosine is 1 - a^2/2.
That does no harm: the coefficients of every method here are smooth functions of the cosine there,
so an error of 1e-16 in it is an error of that order in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from common.errors import UserError
from merges.arithmetic import kernels, patterns

if TYPE_CHECKING:
    import torch

    from merges.engine.pieces import Pieces
    from merges.engine.requests import Values

Origin = Literal["zero", "base"]

_NO_ANGLE = 1e-16  # squared sine, at an angle near 0, below which float64 divides noise by noise
_OPPOSITE = 1e-8  # the same near pi, where what is left of the arc's plane is rounding


def from_origin(base: Values | None, experts: Sequence[Values], origin: Origin) -> list[Values]:
    """Return experts as vectors from an origin, in place.

    Args:
        base: Values of the base, None where the merge has none.
        experts: Values of the experts; overwritten for the origin ``base``.
        origin: ``zero`` for the experts as they are, ``base`` for their task vectors.

    Raises:
        UserError: There is no base to be the origin.
    """
    if origin == "zero":
        return list(experts)
    if base is None:
        raise UserError("origin=base: no base given; name the experts' common ancestor")
    for expert in experts:
        expert -= base
    return list(experts)


def _gram_of_patterns(pieces: Pieces) -> np.ndarray:
    total: Any = None
    for piece in pieces.stored():
        # Pieces of the usual size: sums are the same however the values are read.
        for start in range(0, piece.experts[0].size, pieces.step):
            product = patterns.gram([x[start : start + pieces.step] for x in piece.experts])
            total = product if total is None else total + product
    return total


def gram(pieces: Pieces, origin: Origin = "zero") -> np.ndarray:
    """Compute the inner products of whole parameters.

    Args:
        pieces: The parameters.
        origin: Where the experts' vectors begin; see `from_origin`.

    Returns:
        Float64 [N, N], products and sums in float64.

    Raises:
        UserError: As `from_origin`.
    """
    total: Any = None
    if origin == "zero" and pieces.bfloat16:
        total = _gram_of_patterns(pieces)
        if np.isfinite(total).all():
            return total
        pieces.refuse()
    wide: Any = None
    for piece in pieces:
        vectors = from_origin(piece.base, piece.experts, origin)
        if isinstance(vectors[0], np.ndarray):
            product = kernels.gram([vector.reshape(-1) for vector in vectors])
        else:
            import torch

            count = vectors[0].numel()
            if wide is None or wide.shape[1] < count:
                # One buffer for all pieces: fresh memory costs more than the arithmetic.
                wide = vectors[0].new_empty(len(vectors), count, dtype=torch.float64)
            rows = wide[:, :count]
            for row, vector in zip(rows, vectors, strict=True):
                row[:] = vector.reshape(-1)
            product = rows @ rows.T
        total = product if total is None else total + product
    return total if isinstance(total, np.ndarray) else total.cpu().numpy()


def row_grams(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute the inner products, float64 [rows, N, N], of N tensors' [rows, columns] rows."""
    wide = [vector.double() for vector in vectors]
    grams = wide[0].new_empty(len(wide[0]), len(wide), len(wide))
    for i, first in enumerate(wide):
        for j, second in enumerate(wide[: i + 1]):
            grams[:, i, j] = grams[:, j, i] = (first * second).sum(dim=1)
    return grams


def arc(cosine: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coefficients of two vectors at position t of the arc between them.

    Args:
        cosine: Cosines c of the angles a between the vectors, float64, any shape.
        t: Position; 0 is the first vector, 1 the second.

    Returns:
        sin((1-t) a) / sin a and sin(t a) / sin a; on the straight line, 1 - t and t, where the
        angle is 0 or within 1e-4 of pi, at which the arc has no plane.
    """
    import torch

    square = (1 - cosine) * (1 + cosine)
    line = (square <= _NO_ANGLE) | ((cosine < 0) & (square <= _OPPOSITE))
    angle = torch.acos(cosine.masked_fill(line, 0.0))
    sine = angle.sin()
    near, far = torch.sin((1 - t) * angle) / sine, torch.sin(t * angle) / sine
    return near.masked_fill_(line, 1 - t), far.masked_fill_(line, t)
