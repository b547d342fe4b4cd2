"""Karcher mean: the point of a sphere that is nearest to all experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from merges.arithmetic import patterns
from merges.arithmetic.combination import combine, normalized, ones_or
from merges.arithmetic.gram import gram
from merges.engine.parameters import Count, NonNegative, NonNegativeWeights
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext, Values

_OPPOSITE = -1 + 5e-9  # cosine below which, within 1e-4 of pi, no direction leads along the sphere
_KNOWN = 1e-7  # angle below which the Gram matrix in float64 does not know it


def _mean_direction(
    cosines: np.ndarray, weights: np.ndarray, max_iterations: int, tolerance: float
) -> np.ndarray:
    """Return the Karcher mean's coordinates in unit vectors of the given cosines."""

    def norm(point: np.ndarray) -> float:
        return math.sqrt(max(0.0, point @ cosines @ point))

    least = tolerance if tolerance >= _KNOWN else 0.0
    mean = weights.copy()
    if norm(mean) < tolerance:
        mean = np.eye(len(weights))[0]
    mean /= norm(mean)
    for _ in range(max_iterations):
        dots = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(dots)
        usable = (angles >= least) & (dots > _OPPOSITE)
        bent = usable & (angles >= _KNOWN)
        # Of an angle that is rounding alone it matters that a / sin a is 1, not whether it is 0.
        pull = np.where(usable, weights * np.where(bent, angles / np.sin(angles), 1.0), 0.0)
        tangent = pull - (pull @ dots) * mean
        length = norm(tangent)
        if length < max(tolerance, 1e-12):
            break
        mean = math.cos(length) * mean + math.sin(length) / length * tangent
        mean /= norm(mean)
    return mean


def coefficients(
    pieces: Pieces,
    *,
    weights: Sequence[float] | None,
    max_iterations: int,
    tolerance: float,
) -> list[float]:
    """Find what the experts' values of a parameter are multiplied by; see `karcher`."""
    w = np.array(normalized(ones_or(weights, len(pieces.experts)), "karcher", "give others"))
    products = gram(pieces)
    norms = np.sqrt(np.diag(products))
    used = (norms > tolerance) & (w > 0)
    if not used.any():
        return w.tolist()
    lengths = norms[used]
    cosines = products[np.ix_(used, used)] / np.outer(lengths, lengths)
    shares = w[used] / w[used].sum()
    found = np.zeros_like(w)
    found[used] = _mean_direction(cosines, shares, max_iterations, tolerance) / lengths
    return (found * (w @ norms)).tolist()


of_patterns = patterns.mix_prepared


@method(
    title="Karcher mean",
    paper="arXiv:2603.04972",
    unit="values",
    prepare="coefficients",
    arrays=True,
    patterns="of_patterns",
)
def karcher(
    base: Values | None,
    experts: Sequence[Values],
    context: TensorContext,
    *,
    weights: NonNegativeWeights = None,
    max_iterations: Count = 10,
    tolerance: NonNegative = 1e-5,
) -> Values:
    """Find the direction with the least sum of squared angles to the experts', and a length for it.

    Each tensor is taken as one vector, w_i are the weights divided by their sum. From the
    normalised m = sum_i w_i x_i / |x_i| on, it repeats with a_i the angle between m and x_i
    T = sum_i w_i (a_i / sin a_i) (x_i / |x_i| - m cos a_i), m <- m cos |T| + (T / |T|) sin |T|
    until |T| < tolerance. The result is (sum_i w_i |x_i|) m.

    Angles below the tolerance do not pull; neither do those within 1e-4 of pi, where every
    direction is as short. A tensor whose norm is at most the tolerance has a part in the length
    only; where all are so, the result is the weighted average (mergekit's is zero).

    The rounding is that of `merges.arithmetic.combination.combine`; the mean is found in float64,
    so that tensors in hundreds of steps cost no more than in one.

    Args:
        weights: w_i >= 0 before the division; None for 1 each, as mergekit always has.
        max_iterations: How often to repeat at most; mergekit's max_iter.
        tolerance: mergekit's tol.

    Raises:
        UserError: All weights are zero.

    Source:
        Karcher, Riemannian center of mass and mollifier smoothing, 1977; for weights: mergekit's
        `karcher`.
    """
    return combine(experts, context.prepared)
