"""SCE: select what differs between experts, calculate weights, erase minority signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from merges.arithmetic.selection import Threshold, thresholds
from merges.arithmetic.task_vectors import sum_of
from merges.engine.parameters import Density, NonNegative, Scale
from merges.engine.registry import method
from merges.methods.ties import deltas_of

if TYPE_CHECKING:
    from merges.engine.pieces import Piece, Pieces
    from merges.engine.requests import TensorContext


@dataclass(frozen=True)
class Coefficients:
    """What a parameter is merged with.

    Attributes:
        selected: Which positions are selected, by the variance over the experts; None for all.
        weights: W_i of each expert; they sum to 1.
    """

    selected: Threshold | None
    weights: list[float]


def variance(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute the population variance over the experts at each position.

    Differences from the first expert make it exactly zero where all agree.

    Args:
        deltas: d_i of one shape; left as they are.
    """
    apart = [delta - deltas[0] for delta in deltas[1:]]
    mean = torch.zeros_like(deltas[0])
    for difference in apart:
        mean += difference
    mean /= len(deltas)
    total = mean.square()
    for difference in apart:
        total += difference.sub_(mean).square_()
    return total.div_(len(deltas))


def _select(
    deltas: Sequence[torch.Tensor], selected: Threshold | None, context: TensorContext
) -> None:
    if selected is None:
        return
    mask = selected.keep(variance(deltas), context.place).sign_()
    for delta in deltas:
        delta *= mask


def _variances_of(piece: Piece) -> list[torch.Tensor]:
    return [variance(deltas_of(piece))]


def coefficients(pieces: Pieces, *, density: float, negligible: float) -> Coefficients:
    """Find which positions of a parameter are selected and how much each expert weighs.

    Args:
        pieces: The parameter.
        density: As for `sce`.
        negligible: As for `sce`.
    """
    selected = None
    if density < 1:
        varying = sum(int(_variances_of(piece)[0].count_nonzero()) for piece in pieces)
        [selected] = thresholds(pieces, _variances_of, [int(density * varying)])
    squares = [0.0] * len(pieces.experts)
    for piece in pieces:
        deltas = deltas_of(piece)
        _select(deltas, selected, piece.context)
        for number, delta in enumerate(deltas):
            squares[number] += float(delta.square_().sum(dtype=torch.float64)) / pieces.count
    total = math.fsum(squares)
    if total == 0 or total < negligible:
        return Coefficients(selected, [1.0 / len(squares)] * len(squares))
    return Coefficients(selected, [square / total for square in squares])


@method(
    title="SCE",
    paper="arXiv:2408.07990",
    needs={"base"},
    unit="values",
    prepare="coefficients",
)
def sce(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Density = 0.1,
    scale: Scale = 1.0,
    select: Literal["values", "weights"] = "values",
    negligible: NonNegative = 0.0,
) -> torch.Tensor:
    """Select by variance, weigh by energy, erase the minority's sign, average.

    Of each parameter's task vectors d_i = x_i - b the floor(density * m) positions are selected
    at which they vary most between the experts (m counts those at which they vary at all; of equal
    ones the first), and the others zeroed. W_i is the mean of d_i^2 divided by its sum over the
    experts, S the sign of sum_i d_i (plus for zero), and the result is
    b + lambda * sum_i W_i d_i [sign d_i = S] / sum_i W_i [sign d_i = S]. Where experts never differ
    (a single one, above all) and density is less than 1, nothing is selected.

    It looks through the parameter up to four times.

    Args:
        density: Share of the varying positions that is selected; mergekit's and the authors'
            `select_topk`. 0.1 is FuseChat's; mergekit's default 1 selects all, varying or not.
        scale: lambda; neither the paper nor mergekit has it.
        select: What the selection acts on: the ``values`` that are merged, and through them the
            weights, as in the paper and mergekit; or the ``weights`` alone, as in the authors'
            code, which merges whole task vectors.
        negligible: Bound below which the sum of mean squares is taken as zero (equal weights) and
            to which smaller divisors are raised; 1e-6 in mergekit, 0 in the authors' code.

    Source:
        Wan et al., FuseChat, 2024: SCE (select, calculate, erase).
    """
    prepared: Coefficients = context.prepared
    deltas = [expert.sub_(base) for expert in experts]
    if select == "values":
        _select(deltas, prepared.selected, context)
    total = sum_of(deltas)
    # Unlike `sign`, this gives a sum of zero a sign too.
    sign = torch.ones_like(total).copysign_(total)
    merged, share = torch.zeros_like(total), torch.zeros_like(total)
    for delta, weight in zip(deltas, prepared.weights, strict=True):
        agreeing = delta.mul_(sign).clamp_min_(0)
        merged.add_(agreeing, alpha=weight)
        share.add_(agreeing.sign_(), alpha=weight)
    share.clamp_min_(negligible).masked_fill_(share == 0, 1.0)
    return merged.div_(share).mul_(sign).mul_(scale).add_(base)
