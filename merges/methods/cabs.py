"""CABS: experts take turns at positions, a fixed number in every group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from common.errors import UserError
from merges.arithmetic.combination import ones_or
from merges.arithmetic.task_vectors import from_base, only, order_by_magnitude
from merges.engine.parameters import PositiveCount, Scale, Weights
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext


def _largest_in_groups(delta: torch.Tensor, keep: int, group: int) -> torch.Tensor:
    """Zero all but the `keep` largest magnitudes of each `group` consecutive values."""
    flat = delta.flatten()
    padding = -len(flat) % group
    rows = torch.cat([flat, flat.new_zeros(padding)]).view(-1, group)
    kept = only(rows, order_by_magnitude(rows)[:, :keep])
    return kept.flatten()[: len(flat)].view_as(delta)


@method(title="CABS", paper="arXiv:2503.01874", needs={"base"}, ordered=True)
def cabs(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    scale: Scale = 1.0,
    weights: Weights = None,
    keep: PositiveCount | None = None,
    group: PositiveCount = 128,
) -> torch.Tensor:
    """Prune n of m without conflict: b + lambda * sum_i w_i s_i, where no two s_i overlap.

    The experts come in the order given. s_i holds, of every m consecutive entries of d_i = x_i - b
    (flattened row by row), the n of largest magnitude among those that no earlier expert holds; of
    equal ones the first. The last group of a parameter may be shorter; n of it are kept too.

    Args:
        scale: lambda.
        weights: w_i; None for 1 each.
        keep: n; None for m divided by the number of experts, so that all get as many positions.
        group: m; 128 as in the authors' script for models of 7B, whose n is 96.

    Raises:
        UserError: n is more than m.

    Source:
        CABS: conflict-aware and balanced sparsification, 2025. For n of at least m/2
        the authors' script lets the second expert also keep part of the overlap, and their script
        for RoBERTa drops shorter last groups; neither is done here.
    """
    count = max(1, group // len(experts)) if keep is None else keep
    if count > group:
        raise UserError(
            f"method cabs, parameter keep: {count} of a group of {group} cannot be kept; give at "
            f"most {group}, or a larger group"
        )
    free = torch.ones_like(base)
    merged = torch.zeros_like(base)
    for expert, weight in zip(experts, ones_or(weights, len(experts)), strict=True):
        kept = _largest_in_groups(expert.sub_(base).mul_(free), count, group)
        free.masked_fill_(kept != 0, 0)
        merged.add_(kept, alpha=weight)
    return from_base(merged, scale, base)
