"""Multi-SLERP: barycentric interpolation of any number of experts on a sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from merges.arithmetic import patterns
from merges.arithmetic.combination import combine, normalized, ones_or
from merges.arithmetic.gram import from_origin, gram
from merges.engine.parameters import Flag, NonNegative, Weights
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.arithmetic.gram import Origin
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext, Values

_BALANCE = 1e-7  # length of a sum of unit vectors that may be the Gram matrix's rounding alone


def coefficients(
    pieces: Pieces,
    *,
    weights: Sequence[float] | None,
    normalize: bool,
    origin: Origin,
    epsilon: float,
) -> list[float]:
    """Find what the vectors of a parameter are multiplied by; see `multislerp`."""
    given = ones_or(weights, len(pieces.experts))
    if normalize:
        given = normalized(given, "multislerp", "give others, or normalize=false")
    if len(given) == 1:
        return [1.0]
    w = np.array(given)
    products = gram(pieces, origin)
    norms = np.sqrt(np.diag(products))
    padded = norms + epsilon
    to_unit = np.divide(1.0, padded, out=np.zeros_like(norms), where=padded > 0)
    # From here on all is in coordinates of the unit vectors u_i.
    products *= np.outer(to_unit, to_unit)

    def norm(point: np.ndarray) -> float:
        return math.sqrt(max(0.0, point @ products @ point))

    if norm(w) <= max(epsilon, _BALANCE * np.abs(w).sum()):
        return w.tolist()
    mean = w / norm(w)
    tangent = w - (w @ products @ mean) * mean
    angle = norm(tangent) + epsilon
    point = mean * math.cos(angle) + tangent * (math.sin(angle) / angle if angle else 1.0)
    return (point * to_unit * (w @ norms)).tolist()


def of_patterns(
    base: patterns.Patterns | None,
    experts: Sequence[patterns.Patterns],
    context: TensorContext,
    *,
    origin: Origin,
    **parameters: Any,
) -> patterns.Patterns | None:
    """Do what `multislerp` does on patterns of bfloat16."""
    return patterns.mix(experts, context.prepared, base if origin == "base" else None)


@method(
    title="Multi-SLERP",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    unit="values",
    prepare="coefficients",
    arrays=True,
    patterns="of_patterns",
)
def multislerp(
    base: Values | None,
    experts: Sequence[Values],
    context: TensorContext,
    *,
    weights: Weights = None,
    normalize: Flag = True,
    origin: Literal["zero", "base"] = "zero",
    epsilon: NonNegative = 1e-8,
) -> Values:
    """Average directions in the plane that touches the sphere at their mean, lengths linearly.

    With v_i = x_i - o, each tensor one vector from the origin o, and e the epsilon:
    u_i = v_i / (|v_i| + e); m = sum_i w_i u_i, divided by its norm;
    T = sum_i w_i (u_i - (u_i . m) m); a = |T| + e;
    result = o + (sum_i w_i |v_i|) * (m cos a + T sin(a) / a).
    The u_i are projected to the plane at m, not mapped there along the sphere; `karcher` does the
    latter, and repeats it. One expert is returned as it is, whatever its weight. Where
    |sum_i w_i u_i| <= e (all vectors zero, or in balance) the result is o + sum_i w_i v_i; mergekit
    has this rule for two experts and refuses more. In float64 a sum below 1e-7 sum_i |w_i| cannot
    be distinguished from balance.

    The rounding is that of `merges.arithmetic.combination.combine`; directions are computed in
    float64.

    Args:
        weights: w_i; None for 1 each.
        normalize: Whether to divide the weights by their sum.
        origin: o: ``zero`` is mergekit's `multislerp` without a base model, ``base`` with one.
        epsilon: e.

    Raises:
        UserError: The weights to be normalised sum to zero, or the origin is the base and none is
            given.

    Source:
        mergekit's `multislerp`, described on its author's page.
    """
    merged = combine(from_origin(base, experts, origin), context.prepared)
    if base is not None and origin == "base":
        merged += base
    return merged
