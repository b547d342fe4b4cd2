"""WIDEN: weigh every column by how far its length and its direction moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from checkpoints.names import is_embedding
from merges.arithmetic.task_vectors import from_base
from merges.engine.parameters import NonNegative, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext


def _ranks(moves: torch.Tensor) -> torch.Tensor:
    """Return each value's position in its row's ascending order, divided by the row's length."""
    order = moves.argsort(dim=-1, stable=True)
    places = torch.arange(moves.shape[-1], device=moves.device, dtype=moves.dtype)
    ranks = torch.empty_like(moves).scatter_(-1, order, places.expand_as(moves))
    return ranks / max(1, moves.shape[-1])


def _scores(moves: torch.Tensor, ratio: float, calibration: float) -> torch.Tensor:
    """Return the experts' scores: a softmax over them, `calibration` where one moved far.

    Args:
        moves: [experts, values]
        ratio: As for `widen`, as is the other.
    """
    far = moves > ratio * moves.mean(dim=-1, keepdim=True)
    return moves.softmax(dim=0).masked_fill_(far, calibration)


def _column_moves(
    base: torch.Tensor, experts: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far the columns' lengths and directions moved, each [experts, columns].

    A column of zeros is perpendicular to any other, and has the direction of one of zeros.
    """
    own = torch.linalg.vector_norm(base, dim=0)
    lengths, turns = [], []
    for expert in experts:
        new = torch.linalg.vector_norm(expert, dim=0)
        product = own * new
        cosine = (base * expert).sum(0) / product.masked_fill(product == 0, 1)
        lengths.append((new - own).abs_())
        turns.append((1 - cosine).masked_fill_((own == 0) & (new == 0), 0))
    return torch.stack(lengths), torch.stack(turns)


@method(title="WIDEN", paper="arXiv:2408.03092", needs={"base"})
def widen(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    ratio: NonNegative = 1.0,
    calibration: NonNegative = 1.0,
    scale: Scale = 1.0,
) -> torch.Tensor:
    """Disentangle columns into length and direction: b + lambda * sum_i w_i d_i, by columns.

    d_i = x_i - b. How far a column moved is | |x_i| - |b| | in length and 1 - cos(x_i, b) in
    direction. Within an expert both are replaced by their rank: the position in ascending order, of
    equal ones the first before the others, divided by the number of columns. A score is the softmax
    over the experts of the rank, or `calibration` where the rank is above `ratio` times the
    expert's mean; w_i is the mean of the two scores. The weights of a column may add up to as
    much as the number of experts. A parameter that is no matrix has a weight for each entry, from
    |d_i| without ranks. Columns of an embedding are its tokens.

    Args:
        ratio: A rank above this many times the mean counts as far; the authors' default.
        calibration: The score of a column that moved far; the authors' default.
        scale: lambda; the paper has none.

    Source:
        Extend model merging from fine-tuned to pre-trained large language models via
        weight disentanglement, 2024; the authors' code. It divides by zero for columns of zeros.
    """
    if base.ndim != 2:
        deltas = torch.stack([expert.sub_(base) for expert in experts])
        flat = deltas.abs().flatten(1)
        weights = _scores(flat, ratio, calibration).view_as(deltas)
        return from_base((weights * deltas).sum(0), scale, base)
    turned = is_embedding(context.tensor)
    own, others = (base.T, [x.T for x in experts]) if turned else (base, experts)
    lengths, turns = [_ranks(moves) for moves in _column_moves(own, others)]
    weights = (_scores(lengths, ratio, calibration) + _scores(turns, ratio, calibration)).div_(2)
    merged = torch.zeros_like(base)
    for weight, expert in zip(weights, experts, strict=True):
        merged += expert.sub_(base).mul_(weight.unsqueeze(1) if turned else weight)
    return from_base(merged, scale, base)
