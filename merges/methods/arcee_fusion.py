"""Arcee Fusion: take the expert's value where it matters unusually much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from merges.arithmetic.selection import thresholds
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext

_TINY = 1e-8  # mergekit adds it to every probability
_QUARTILES = (0.25, 0.5, 0.75)
_SMALL = 1 << 10  # so few values are sorted: at four and fewer a quartile is the smallest of all


def importance(base: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """Compute |x - b| * KL(softmax(x) || softmax(b)), the divergence being one number per row.

    Args:
        base: b, [rows, columns].
        expert: x, [rows, columns]; left as it is.

    Returns:
        A new tensor [rows, columns], not negative: roundings below zero are set to zero.
    """
    # The divergence is a small rest of terms of both signs: for an expert near its base float32
    # leaves hardly a digit of it.
    new, old = (rows.double().softmax(-1).add_(_TINY) for rows in (expert, base))
    divergence = (new * (new / old).log_()).sum(-1, keepdim=True).clamp_min_(0)
    return (expert - base).abs_().mul_(divergence.to(base.dtype))


def fence(pieces: Pieces) -> float:
    """Find median + 1.5 * (third - first quartile) of a parameter's importance.

    A quartile q is the value at position floor(q (n - 1)) of the n sorted ones.
    """
    count = pieces.count
    places = [int(q * (count - 1)) for q in _QUARTILES]
    if count <= _SMALL:
        values = [importance(piece.base, piece.experts[0]).flatten() for piece in pieces]
        if not values:
            return 0.0
        ordered = torch.cat(values).sort().values
        first, median, third = [float(ordered[place]) for place in places]
    else:
        found = thresholds(
            pieces,
            lambda piece: [importance(piece.base, piece.experts[0])] * len(places),
            [count - place for place in places],
        )
        first, median, third = [threshold.value for threshold in found]
    return median + 1.5 * (third - first)


@method(
    title="Arcee Fusion",
    paper="mergekit's arcee_fusion",
    needs={"base"},
    experts=1,
    unit="rows",
    prepare="fence",
)
def arcee_fusion(
    base: torch.Tensor, experts: Sequence[torch.Tensor], context: TensorContext
) -> torch.Tensor:
    """Take the expert's value where its importance is an outlier, the base's elsewhere.

    The importance is |x - b| * KL(softmax(x) || softmax(b)), softmax and divergence along the last
    dimension with 1e-8 added to every probability. It is an outlier from the parameter's
    median + 1.5 * (third - first quartile) on. Where the two rows are equal, nothing changes.

    Source:
        mergekit's `arcee_fusion`. mergekit finds the quartiles of parameters with more than a
        million values from a random sample, and the divergence in the type of the weights; here
        they are exact, and the divergence is computed in float64.
    """
    [expert] = experts
    return torch.where(importance(base, expert) >= context.prepared, expert, base)
