"""SLERP: spherical interpolation of two experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from merges.arithmetic import patterns
from merges.arithmetic.combination import combine
from merges.arithmetic.gram import gram
from merges.engine.parameters import Fraction
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext, Values

_NEARLY_COLINEAR = 0.9995  # |cosine| above which the sphere is flat enough for a straight line
_NO_DIRECTION = 1e-8  # a norm below which a tensor has none


def coefficients(pieces: Pieces, *, t: float) -> list[float]:
    """Find what the two experts of a parameter are multiplied by; see `slerp`."""
    products = gram(pieces)
    norms = math.sqrt(products[0, 0]), math.sqrt(products[1, 1])
    if min(norms) > _NO_DIRECTION:
        cosine = products[0, 1] / (norms[0] * norms[1])
        if abs(cosine) <= _NEARLY_COLINEAR:
            angle = math.acos(cosine)
            return [math.sin(part * angle) / math.sin(angle) for part in (1.0 - t, t)]
    return [1.0 - t, t]


of_patterns = patterns.mix_prepared


@method(
    title="SLERP",
    paper="Shoemake, SIGGRAPH 1985",
    ordered=True,
    experts=2,
    unit="values",
    prepare="coefficients",
    arrays=True,
    patterns="of_patterns",
)
def slerp(
    base: Values | None,
    experts: Sequence[Values],
    context: TensorContext,
    *,
    t: Fraction = 0.5,
) -> Values:
    """Interpolate along the arc: [sin((1-t) a) x_0 + sin(t a) x_1] / sin a, a their angle.

    Each tensor is taken as one vector. Where |cos a| > 0.9995 (antipodal ones included) it is the
    straight line (1-t) x_0 + t x_1, as in mergekit and fusion_bench; experts of one base are often
    that near to each other (`nuslerp` keeps to the arc, and can take task vectors). So it is where
    a norm is at most 1e-8; mergekit takes such a tensor as perpendicular to the other.

    The rounding is that of `merges.arithmetic.combination.combine`; angles are computed in float64.

    Args:
        t: Position between the first expert (0) and the second (1). mergekit has no default;
            0.5 is the middle.

    Source:
        Shoemake, Animating rotation with quaternion curves, 1985; for weights: mergekit's `slerp`.
    """
    return combine(experts, context.prepared)
