"""LED merging: what matters to an expert and to the base, and to no other expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merges.engine.parameters import Densities, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    import torch

    from merges.arithmetic.selection import Threshold
    from merges.engine.pieces import Piece, Pieces
    from merges.engine.requests import TensorContext


def _scores(piece: Piece) -> list[torch.Tensor] | None:
    """Return |W| * mean |dL/dW| of every expert, then of the base; None without gradients."""
    context = piece.context
    found = context.statistics_of((*context.experts, "base"), "values")
    if found is None:
        return None
    weights = (*piece.experts, piece.base)
    return [
        context.values_of(own, weight) * weight.abs()
        for own, weight in zip(found, weights, strict=True)
    ]


def elected(pieces: Pieces, *, density: Sequence[float]) -> list[Threshold] | None:
    """Find the thresholds of each expert's scores and, as often, of the base's."""
    from merges.arithmetic.selection import kept, thresholds

    if _scores(next(iter(pieces))) is None:
        return None

    def series(piece: Piece) -> list[torch.Tensor]:
        *own, base = _scores(piece) or []
        return [*own, *[base] * len(own)]

    counts = [kept(share, pieces.count) for share in density]
    return thresholds(pieces, series, counts * 2)


@method(
    title="LED merging",
    paper="arXiv:2502.16770",
    needs={"base"},
    statistics={"experts": "gradients", "base": "gradients"},
    unit="values",
    prepare="elected",
)
def led(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Densities = 0.4,
    scale: Scale = 0.9,
) -> torch.Tensor:
    """Locate, elect, disjoin: b + lambda * sum_i m_i d_i with masks that do not overlap.

    The score of a weight is |W| times the mean over rows of |dL/dW|, L being the mean negative
    log-probability of the answer's tokens. An expert elects what is among the top share of the
    expert's scores and of the base's, in each tensor; what two experts elect is left to
    the base. What has no score, as embeddings and the output head, gets the average of the task
    vectors.

    Args:
        density: The share, one for all experts or one for each; the authors' are 0.1 (safety), 0.4
            (mathematics) and 0.5 (code).
        scale: lambda; theirs is 0.9.

    Source:
        LED-Merging, 2025; the authors' code, which stops in a debugger as
        released and replaces one expert's scores by random numbers. There the base reads each
        expert's rows apart; here its statistics are of all rows together.
    """
    from merges.engine.pieces import Piece

    deltas = [expert - base for expert in experts]
    if context.prepared is None:
        return base + scale * sum(delta / len(deltas) for delta in deltas)
    scores = _scores(Piece(base, list(experts), context)) or []
    places, count = context.place, len(experts)
    masks = [
        (context.prepared[i].keep(scores[i], places) != 0)
        & (context.prepared[count + i].keep(scores[count], places) != 0)
        for i in range(count)
    ]
    votes = sum(mask.to(base.dtype) for mask in masks)
    alone = votes == 1
    merged = sum(delta * (mask & alone) for delta, mask in zip(deltas, masks, strict=True))
    return base + scale * merged
