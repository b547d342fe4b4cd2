"""SLERP: spherical interpolation of two experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from merges.parameters import Fraction
from merges.registry import method

if TYPE_CHECKING:
    from merges.requests import TensorContext

_NEARLY_COLINEAR = 0.9995  # |cosine| above which the sphere is flat enough for a straight line
_NO_DIRECTION = 1e-8  # a norm below which a tensor has none
_CHUNK = 1 << 20


def _dot(first: torch.Tensor, second: torch.Tensor) -> float:
    """Sum products in float64, in chunks, so that no copy of the tensors is made."""
    pairs = zip(first.flatten().split(_CHUNK), second.flatten().split(_CHUNK), strict=True)
    return math.fsum(float(torch.dot(a.double(), b.double())) for a, b in pairs)


@method(title="SLERP", paper="Shoemake, SIGGRAPH 1985", ordered=True, experts=2)
def slerp(
    base: torch.Tensor | None,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    t: Fraction = 0.5,
) -> torch.Tensor:
    """Interpolate along the arc: [sin((1-t) a) x_0 + sin(t a) x_1] / sin a, a their angle.

    Each tensor is taken as one vector. Where |cos a| > 0.9995 (antipodal ones included) or a norm
    is below 1e-8, it is the straight line (1-t) x_0 + t x_1, as in mergekit; experts of one base
    are often that near to each other.

    Args:
        base: Not used.
        experts: Two tensors x_0 and x_1 of one shape.
        context: Names.
        t: Position between the first expert (0) and the second (1). mergekit has no default;
            0.5 is the middle.

    Returns:
        The interpolated tensor.

    Source:
        Shoemake, Animating rotation with quaternion curves, 1985; for weights: mergekit's `slerp`.
    """
    first, second = experts
    norms = math.sqrt(_dot(first, first)), math.sqrt(_dot(second, second))
    near, far = 1.0 - t, t
    if min(norms) > _NO_DIRECTION:
        cosine = _dot(first, second) / (norms[0] * norms[1])
        if abs(cosine) <= _NEARLY_COLINEAR:
            angle = math.acos(cosine)
            near = math.sin((1.0 - t) * angle) / math.sin(angle)
            far = math.sin(t * angle) / math.sin(angle)
    return (first * near).add_(second, alpha=far)
