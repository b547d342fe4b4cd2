"""Model Stock: between the base and the experts' average, as far as the experts agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from common.errors import UserError
from merges.arithmetic.combination import combine
from merges.arithmetic.gram import gram, row_grams
from merges.engine.parameters import NonNegative
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext

_SINGULAR = 1e-6  # mergekit's bound on 1 + (N - 1) cos a, below which the result is the base


def _ratio(
    products: torch.Tensor, average: Literal["angles", "cosines"], floor: float
) -> torch.Tensor:
    """Turn task vectors' inner products, float64 [..., N, N], into ratios t, [...]."""
    count = products.shape[-1]
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt()
    i, j = torch.triu_indices(count, count, 1, device=products.device)
    scale = (norms[..., i] * norms[..., j]).clamp_min_(floor)
    cosines = products[..., i, j] / scale.masked_fill_(scale == 0, 1.0)
    cosines.clamp_(-1, 1)
    # Angles are averaged as differences from 90 degrees, so that perpendicular stays exactly so.
    by_angle = average == "angles"
    cosine = cosines.asin_().mean(dim=-1).sin_() if by_angle else cosines.mean(dim=-1)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < _SINGULAR
    return (count * cosine / denominator.masked_fill_(singular, 1.0)).masked_fill_(singular, 0.0)


def coefficient(
    pieces: Pieces,
    *,
    along: Literal["tensor", "rows"],
    average: Literal["angles", "cosines"],
    floor: float,
) -> float | None:
    """Find t / N of a parameter; None along rows, which a piece holds whole.

    Raises:
        UserError: There is one expert only, and so no angle.
    """
    count = len(pieces.experts)
    if count < 2:
        raise UserError("method model_stock looks at angles between experts; give at least two")
    if along == "rows":
        return None
    return float(_ratio(torch.from_numpy(gram(pieces, "base")), average, floor)) / count


@method(
    title="Model Stock",
    paper="arXiv:2403.19522",
    needs={"base"},
    unit="rows",
    prepare="coefficient",
)
def model_stock(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    along: Literal["tensor", "rows"] = "tensor",
    average: Literal["angles", "cosines"] = "angles",
    floor: NonNegative = 0.0,
) -> torch.Tensor:
    """Interpolate between base and average: t * mean_i x_i + (1 - t) b.

    t = N cos a / (1 + (N - 1) cos a) for N experts whose task vectors x_i - b have the angle a to
    each other, averaged over the pairs; a zero task vector is perpendicular to the others. t is not
    bounded: angles beyond 90 degrees lead away from the experts. Where |1 + (N - 1) cos a| < 1e-6,
    t is 0.

    It is computed as b + (t / N) sum_i (x_i - b), so that experts equal to the base give the base
    exactly; its rounding is that of `merges.arithmetic.combination.combine`, angles are computed in
    float64. Rows cost N + 1 products per value more than the tensor at once.

    Args:
        along: What has an angle: the ``tensor`` (the paper's layers; fusion_bench, mergekit)
            or each of its ``rows`` (mergekit's filter_wise: true).
        average: What is averaged over pairs of more than two experts: ``angles`` as the paper's
            authors say and fusion_bench does, or ``cosines`` as mergekit does.
        floor: Least product of two norms that an inner product is divided by. The paper has none;
            mergekit's is 1e-6, which counts for task vectors shorter than 1e-3.

    Raises:
        UserError: There is one expert only.

    Source:
        Jang et al., Model Stock: all we need is just a few fine-tuned models, 2024, equation 2.
    """
    deltas = [expert.sub_(base) for expert in experts]
    if along == "rows":
        ratio = _ratio(row_grams(deltas), average, floor).unsqueeze(1)
        share = ratio / len(deltas)
    else:
        share = context.prepared
    return combine(deltas, [share] * len(deltas)).add_(base)
