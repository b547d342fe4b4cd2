"""DELLA: drop at random, small magnitudes more often, then TIES' sign election or a sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from common.errors import UserError
from merges.arithmetic.task_vectors import l1_factors, order_by_magnitude, weighted_sum
from merges.engine.parameters import (
    Densities,
    Flag,
    NonNegatives,
    NonNegativeWeights,
    Scale,
    Weights,
)
from merges.engine.registry import method
from merges.methods.ties import merge_agreeing

if TYPE_CHECKING:
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext

Rescale = Literal["probability", "l1", "none"]


def keep_probabilities(rows: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Find with which probability MagPrune keeps each value, by its rank in its row.

    Args:
        rows: Task vectors [rows, columns].
        density: Mean probability.
        epsilon: Largest difference from it.

    Returns:
        density - epsilon for a row's smallest magnitude, density + epsilon for its largest, in
        even steps between, shaped alike; density in a row of one value.
    """
    columns = rows.shape[-1]
    if columns == 1:
        return torch.full_like(rows, density)
    steps = torch.linspace(density + epsilon, density - epsilon, columns, dtype=torch.float64)
    steps = steps.to(rows.device, rows.dtype).expand_as(rows)
    return torch.empty_like(rows).scatter_(-1, order_by_magnitude(rows), steps)


def drop_by_rank(
    deltas: Sequence[torch.Tensor],
    context: TensorContext,
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: Rescale,
) -> list[torch.Tensor]:
    """Drop values of task vectors with `keep_probabilities`.

    Args:
        deltas: d_i [rows, columns]; overwritten.
        context: Names, position and the seed.
        density: As there, of each, as is epsilon; 1 keeps all.
        rescale: ``probability`` divides what is kept by its probability.
    """
    for name, delta, mean, spread in zip(context.experts, deltas, density, epsilon, strict=True):
        if mean >= 1:
            continue
        probability = keep_probabilities(delta, mean, spread)
        draws = context.uniform(name, delta)
        delta.mul_(torch.sub(probability, draws, out=draws).sign_().clamp_min_(0))
        if rescale == "probability":
            delta /= probability
    return list(deltas)


def rescale_factors(
    pieces: Pieces, *, density: Sequence[float], epsilon: Sequence[float], rescale: Rescale
) -> list[float]:
    """Find what each expert's kept values are multiplied by, and check the probabilities.

    Args:
        pieces: A parameter.
        density: As for `keep_probabilities`, of each expert, as is epsilon.
        rescale: ``l1``: what restores the parameter's own sum of magnitudes; else 1.

    Raises:
        UserError: density - epsilon is not above 0, or density + epsilon above 1.
    """
    for mean, spread in zip(density, epsilon, strict=True):
        if mean < 1 and not (mean - spread > 0 and mean + spread <= 1):
            raise UserError(
                f"parameter epsilon: the probabilities {mean:g} ± {spread:g} must be in (0, 1]; "
                f"give less than {min(mean, 1 - mean):g}"
            )
    if rescale != "l1":
        return [1.0] * len(pieces.experts)
    return l1_factors(pieces, lambda d, context: drop_by_rank(d, context, density, epsilon, "none"))


def drop_and_rescale(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: Rescale,
) -> list[torch.Tensor]:
    """Turn experts into task vectors that MagPrune has thinned out and rescaled.

    Args:
        base: Values of b [rows, columns].
        experts: Values of x_i, shaped alike; overwritten.
        context: Names, position, seed and `rescale_factors`.
        density: As for `keep_probabilities`, of each, as is epsilon.
        rescale: As for `della`.
    """
    deltas = [expert.sub_(base) for expert in experts]
    dropped = drop_by_rank(deltas, context, density, epsilon, rescale)
    return [d.mul_(factor) for d, factor in zip(dropped, context.prepared, strict=True)]


@method(
    title="DELLA",
    paper="arXiv:2406.11617",
    needs={"base"},
    unit="rows",
    prepare="rescale_factors",
)
def della(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Densities = 0.7,
    epsilon: NonNegatives = 0.07,
    scale: Scale = 1.0,
    weights: NonNegativeWeights = None,
    rescale: Literal["probability", "l1", "none"] = "probability",
    merge: Literal["mean", "sum"] = "mean",
) -> torch.Tensor:
    """Drop by rank of magnitude (MagPrune), elect a sign, merge what agrees with it.

    With r = 0 .. n - 1 the rank of |x_i - b| in its row of n values, ascending (of equal ones the
    first ranks highest), an entry is kept with p = density - epsilon + 2 epsilon r / (n - 1) and
    d_i = (x_i - b) / p, or 0 where dropped; then as in `ties`: with S the sign of sum_i w_i d_i,
    b + lambda * sum_i w_i d_i [sign d_i = S], divided for ``mean`` by sum_i w_i [sign d_i = S].
    A row is along the last dimension; a vector is one row. The draws depend on the seed, the
    expert's name, the tensor's name and the position only.

    Sorting the rows takes n log n, several times what DARE takes; ``l1`` sorts them twice.

    Args:
        density: Mean probability that an entry is kept; 1 keeps all. mergekit takes one for each
            expert. 0.7 with epsilon 0.07 is the example of the authors' repository.
        epsilon: Half the range of the probabilities: half of the authors' `window_size`; mergekit's
            parameter of that name, one for each expert, there 0.15 by default.
        scale: lambda; the paper tunes it.
        weights: w_i >= 0; None for 1 each.
        rescale: ``probability`` is the paper's and the authors' 1/p per entry; ``l1`` is mergekit's
            `della`: each tensor keeps its sum of magnitudes; ``none`` is `rescale: false` of both.
        merge: ``mean`` divides as the authors' and mergekit's `della` do (normalize: true); ``sum``
            does not.

    Raises:
        UserError: A probability is outside (0, 1].

    Source:
        Deep et al., DELLA-Merging, 2024: MagPrune, and the steps drop, elect, fuse.
    """
    deltas = drop_and_rescale(base, experts, context, density, epsilon, rescale)
    return merge_agreeing(deltas, weights, merge).mul_(scale).add_(base)


@method(
    title="DELLA-linear",
    paper="arXiv:2406.11617",
    needs={"base"},
    unit="rows",
    prepare="rescale_factors",
)
def della_linear(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Densities = 0.7,
    epsilon: NonNegatives = 0.07,
    scale: Scale = 1.0,
    weights: Weights = None,
    rescale: Literal["probability", "l1", "none"] = "probability",
    normalize: Flag = False,
) -> torch.Tensor:
    """Drop by rank of magnitude (MagPrune), add up: b + lambda * sum_i w_i d_i, d_i as in `della`.

    Sorting the rows takes n log n, several times what DARE takes; ``l1`` sorts them twice.

    Args:
        density: Mean probability that an entry is kept; 1 keeps all. The defaults are `della`'s.
        epsilon: Half the range of the probabilities.
        scale: lambda.
        weights: w_i; None for 1 each.
        rescale: As for `della`; ``l1`` is mergekit's `della_linear`.
        normalize: Whether to divide by the sum of the weights (mergekit's parameter of that name,
            which is false by default).

    Raises:
        UserError: A probability is outside (0, 1], or the weights to be normalised sum to zero.

    Source:
        Deep et al., DELLA-Merging, 2024: MagPrune, without the election.
    """
    deltas = drop_and_rescale(base, experts, context, density, epsilon, rescale)
    return weighted_sum(deltas, weights, normalize).mul_(scale).add_(base)
