"""What methods share that thin out task vectors d_i = x_i - b before they add them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.errors import UserError
from merges.arithmetic.combination import combine

if TYPE_CHECKING:
    import torch

    from merges.engine.pieces import Piece, Pieces
    from merges.engine.requests import TensorContext, Values

Thin = Callable[[Sequence["torch.Tensor"], "TensorContext"], Sequence["torch.Tensor"]]

NEGLIGIBLE = 1e-7  # mergekit's bound: sums below it are not divided by


def deltas_of(piece: Piece) -> list[Values]:
    """Return a piece's task vectors x_i - b, in place of the experts' values."""
    for expert in piece.experts:
        expert -= piece.base
    return piece.experts


def weighted_sum(
    deltas: Sequence[Values], weights: Sequence[float] | None, normalize: bool
) -> Values:
    """Add up task vectors: sum_i w_i d_i, divided by sum_i w_i on request.

    Args:
        deltas: d_i of one shape; overwritten.
        weights: w_i; None for 1 each.
        normalize: Whether to divide.

    Returns:
        The sum, in place of the first task vector.

    Raises:
        UserError: The weights to be normalised sum to zero.
    """
    factors = [1.0] * len(deltas) if weights is None else list(weights)
    if normalize:
        total = sum(factors)
        if abs(total) < 1e-8:
            raise UserError(
                "parameter weights: they sum to 0 and cannot be normalised; give others, or "
                "normalize=false"
            )
        factors = [factor / total for factor in factors]
    return combine(deltas, factors)


def sum_of(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Add task vectors of one shape, in the order given, into a new tensor."""
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    return total


def from_base(delta: Values, scale: float, base: Values) -> Values:
    """Compute b + scale * d in place of the task vector d."""
    delta *= scale
    delta += base
    return delta


def l1_factors(pieces: Pieces, thin: Thin) -> list[float]:
    """Find what restores the sums of magnitudes of task vectors that were thinned out.

    Args:
        pieces: A parameter, or all.
        thin: Thins out the task vectors of a piece, which it may overwrite.

    Returns:
        For each expert the sum before, divided by the sum after; 1 where either is negligible.
    """
    import torch

    before, after = [0.0] * len(pieces.experts), [0.0] * len(pieces.experts)
    for piece in pieces:
        deltas: Sequence[torch.Tensor] = [expert.sub_(piece.base) for expert in piece.experts]
        for sums in (before, after):
            for number, delta in enumerate(deltas):
                sums[number] += float(delta.abs().sum(dtype=torch.float64))
            if sums is before:
                deltas = thin(deltas, piece.context)
    return [1.0 if min(b, a) < NEGLIGIBLE else b / a for b, a in zip(before, after, strict=True)]


def only(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Zero all of a row but the values at some places, in a new tensor.

    Args:
        rows: [rows, columns].
        places: Columns that stay, int64 [rows, kept], as `order_by_magnitude` lists them.
    """
    import torch

    return torch.zeros_like(rows).scatter_(-1, places, rows.gather(-1, places))


def order_by_magnitude(rows: torch.Tensor) -> torch.Tensor:
    """Sort each row by magnitude, largest first; of equal ones the first comes first.

    It takes time n log n for rows of n values, about 10 ns a value on a CPU.

    Returns:
        Columns in this order, int64 [rows, columns].
    """
    import torch

    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return rows.abs().argsort(dim=-1, descending=True, stable=True)
    # numpy sorts integers with vector instructions, ten times as fast as torch sorts floats. The
    # bits of magnitudes are in the order of the magnitudes; the column below them settles ties.
    bits = rows.abs().contiguous().numpy().view(np.uint32)
    keys = (np.uint32(0x7FFFFFFF) - bits).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(rows.shape[-1], dtype=np.uint64)
    keys.sort(axis=-1)
    return torch.from_numpy((keys & np.uint64(0xFFFFFFFF)).astype(np.int64))
