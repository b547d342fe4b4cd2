"""NuSLERP: spherical interpolation of two experts or task vectors, by weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from merges.arithmetic.combination import combine, ones_or
from merges.arithmetic.gram import arc, from_origin, gram, row_grams
from merges.engine.parameters import Weights
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.arithmetic.gram import Origin
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext

_SHORTEST = 1e-7  # norms are not divided by less, so a zero vector is perpendicular to all
_NO_TOTAL = 1e-6  # weights that sum to less in magnitude give the middle


def _position(weights: Sequence[float] | None) -> float:
    first, second = ones_or(weights, 2)
    total = first + second
    return 0.5 if abs(total) < _NO_TOTAL else second / total


def _factors(products: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn inner products [..., 2, 2] into the coefficients of the two vectors, each [...]."""
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt().clamp_min(_SHORTEST)
    cosine = products[..., 0, 1] / norms.prod(dim=-1)
    return arc(cosine.clamp(-1, 1), t)


def _wraps(context: TensorContext, rows: int, device: torch.device) -> torch.Tensor:
    """Return, for each row of a piece, its number within one entry of the first dimension."""
    first = context.start // context.shape[-1]
    period = math.prod(context.shape[1:-1])
    return torch.arange(first, first + rows, device=device) % period


def _column_products(pieces: Pieces, origin: Origin) -> torch.Tensor:
    """Sum products along the first dimension: float64 [period, columns, 2, 2]."""
    total: Any = None
    for piece in pieces:
        one, two = (v.double() for v in from_origin(piece.base, piece.experts, origin))
        if total is None:
            shape = piece.context.shape
            total = one.new_zeros(math.prod(shape[1:-1]), shape[-1], 2, 2)
        wraps = _wraps(piece.context, len(one), one.device)
        for (i, j), product in {(0, 0): one * one, (0, 1): one * two, (1, 1): two * two}.items():
            if len(total) == 1:
                total[0, :, i, j] += product.sum(dim=0)
            else:
                total[:, :, i, j].index_add_(0, wraps, product)
    return total


def coefficients(
    pieces: Pieces,
    *,
    weights: Sequence[float] | None,
    origin: Origin,
    along: Literal["tensor", "rows", "columns"],
) -> tuple[float, float] | tuple[torch.Tensor, torch.Tensor] | None:
    """Find what the two vectors of a parameter are multiplied by.

    Returns:
        Two numbers; along columns, tensors [period, columns] where the first dimension goes through
        `period` rows per entry (1 for a matrix); None along rows, which a piece holds whole.
    """
    t = _position(weights)
    if along == "rows":
        return None
    if along == "tensor" or len(pieces.parts[0].context.shape) == 1:
        near, far = _factors(torch.from_numpy(gram(pieces, origin)), t)
        return float(near), float(far)
    return _factors(_column_products(pieces, origin), t)


@method(
    title="NuSLERP",
    paper="mergekit's nuslerp",
    experts=2,
    unit="rows",
    prepare="coefficients",
)
def nuslerp(
    base: torch.Tensor | None,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    weights: Weights = None,
    origin: Literal["zero", "base"] = "zero",
    along: Literal["tensor", "rows", "columns"] = "tensor",
) -> torch.Tensor:
    """Interpolate along the arc: o + [sin((1-t) a) v_0 + sin(t a) v_1] / sin a.

    v_i = x_i - o are the experts' vectors from the origin o, a their angle, t = w_1 / (w_0 + w_1),
    or 1/2 where the weights sum to less than 1e-6. Unlike `slerp` it keeps to the arc at small
    angles. Where the angle is 0, or within 1e-4 of pi, at which the arc has no plane, it is the
    straight line. A vector shorter than 1e-7 counts as (nearly) perpendicular to the other.

    The rounding is that of `merges.arithmetic.combination.combine`; angles are computed in float64.
    Rows cost about three times as much arithmetic as the tensor at once, columns five times.

    Args:
        weights: w_0 and w_1; None for the middle. A negative one extrapolates.
        origin: o: ``zero`` is mergekit's `nuslerp` without a base model, ``base`` with one.
        along: What is one vector: the ``tensor`` (mergekit's default), each of its ``rows``
            along the last dimension (nuslerp_flatten: false), or each of its ``columns`` along the
            first (nuslerp_flatten: false, nuslerp_row_wise: true).

    Raises:
        UserError: The origin is the base and none is given.

    Source:
        mergekit's `nuslerp`; the arc: Shoemake, Animating rotation with quaternion curves, 1985.
    """
    vectors = from_origin(base, experts, origin)
    factors = context.prepared
    if along == "rows":
        factors = [f.unsqueeze(1) for f in _factors(row_grams(vectors), _position(weights))]
    elif isinstance(factors[0], torch.Tensor):
        wraps = _wraps(context, len(vectors[0]), vectors[0].device)
        factors = [factor[wraps] for factor in factors]
    merged = combine(vectors, factors)
    return merged if base is None or origin == "zero" else merged.add_(base)
