"""LoRE-Merging: low-rank task matrices without a base, by alternating estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from merges.arithmetic.spectral import is_matrix, top
from merges.arithmetic.task_vectors import sum_of
from merges.engine.parameters import NonNegative, PositiveCount, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext


def shrink(values: torch.Tensor, mu: float, penalty: Literal["nuclear", "squared"]) -> torch.Tensor:
    """Shrink singular values: the proximal step of mu times the penalty.

    Args:
        values: Singular values in descending order.
        mu: The penalty's weight.
        penalty: ``nuclear``: max(0, v - mu). ``squared``, for half the squared nuclear norm:
            max(0, v - mu * S), S being the sum of the result.
    """
    if penalty == "squared" and len(values):
        # S is that of the first j values, for the largest j whose last value stays positive.
        sums = values.cumsum(0) / (1 + mu * torch.arange(1, len(values) + 1).to(values))
        positive = values > mu * sums
        mu *= float(sums[int(positive.sum()) - 1])
    return (values - mu).clamp_min_(0)


@method(title="LoRE-Merging", paper="arXiv:2502.10749")
def lore(
    base: torch.Tensor | None,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    strength: Scale = 1.0,
    mu: NonNegative = 0.01,
    rounds: PositiveCount = 20,
    penalty: Literal["nuclear", "squared"] = "nuclear",
    merge: Literal["mean", "sum"] = "mean",
    svd: Literal["gram", "exact"] = "gram",
) -> torch.Tensor:
    """Estimate a common model and low-rank task matrices: t + lambda * mean_i (or sum_i) d_i.

    From d_i = 0 on, each round sets t to the mean of x_i - d_i, then each d_i to x_i - t with
    shrunken singular values. It minimises the sum of |x_i - t - d_i|^2 / 2 and of mu times the
    penalty of each d_i. Parameters that are no matrices, and embeddings, are averaged.

    Args:
        strength: lambda, a factor on the task matrices. At 0 the result is t, which is no model
            that was given.
        mu: Weight of the penalty, in the units of the weights; 0.01 in the code that was read.
        rounds: How often both are estimated; 20 in that code.
        penalty: ``nuclear``, the sum of the singular values, is what the code has; ``squared``,
            half the square of this sum, what the paper prints.
        merge: ``mean`` as in the code, or ``sum``.
        svd: As for `tsv_m`. Each round decomposes every task matrix.

    Source:
        LoRE-Merging: exploring low-rank estimation for large language model merging,
        2025. The authors' code was not available; mu, rounds and the mean are a re-implementation's
        (Long-to-Short).
    """
    common = sum_of(experts).div_(len(experts))
    if not is_matrix(context.tensor, common):
        return common
    deltas = [torch.zeros_like(common) for _ in experts]
    for _ in range(rounds):
        common = sum_of([x - d for x, d in zip(experts, deltas, strict=True)]).div_(len(experts))
        for number, expert in enumerate(experts):
            parts = top(expert - common, min(common.shape), svd)
            values = shrink(parts.values, mu, penalty)
            rank = int(values.count_nonzero())
            deltas[number] = parts.left[:, :rank] * values[:rank] @ parts.right[:, :rank].T
    share = strength / len(deltas) if merge == "mean" else strength
    return common.add_(sum_of(deltas), alpha=share)
