"""Consensus Task Arithmetic: keep the entries of the multi-task vector that several tasks use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from merges.arithmetic.task_vectors import sum_of
from merges.engine.parameters import Count, Density, NonNegatives, Scale
from merges.engine.registry import method
from merges.methods.ties import merge_agreeing, trim_thresholds

if TYPE_CHECKING:
    import torch

    from merges.arithmetic.selection import Threshold
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext


def ties_thresholds(
    pieces: Pieces, *, merge: Literal["sum", "ties"], density: float
) -> list[Threshold] | None:
    """Find the trim thresholds of a multi-task vector by TIES; the sum needs none."""
    if merge == "sum":
        return None
    return trim_thresholds(pieces, density=[density] * len(pieces.experts))


@method(
    title="Consensus Task Arithmetic",
    paper="arXiv:2405.07813",
    needs={"base"},
    unit="values",
    prepare="ties_thresholds",
)
def consensus_ta(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    scale: Scale = 0.4,
    mask_lambda: NonNegatives = 0.4,
    min_tasks: Count = 2,
    equal: Literal["dropped", "kept"] = "dropped",
    merge: Literal["sum", "ties"] = "sum",
    density: Density = 0.2,
    scope: Literal["tensor", "model"] = "tensor",
) -> torch.Tensor:
    """Drop what fewer than k tasks use: b + alpha * tau * [sum_i m_i >= k].

    With d_i = x_i - b and the multi-task vector tau = sum_i d_i, task i's TALL mask is
    m_i = [|d_i| > lambda_i * |tau - d_i|]: the entries where tau stays near enough to the task's
    own value. k = 2 drops entries that one task uses alone ("selfish") or none does
    ("catastrophic"), k = 1 the latter only, k = 0 nothing (task arithmetic), and a k above the
    number of experts everything: one expert alone needs k <= 1.

    Args:
        scale: alpha. The paper tunes it on validation data; 0.4 as for `task_arithmetic`
            (MergeBench's default is 1).
        mask_lambda: lambda_i, one for all experts or one for each. The paper tunes it for each
            task among 0.2, 0.3, ..., 0.6, of which the default is the middle; MergeBench's numbers
            are for 0.2, fusion_bench makes its TALL masks with 0.6.
        min_tasks: k; 2 in the paper, its code and MergeBench.
        equal: Entries with |d_i| = lambda_i * |tau - d_i| are ``dropped`` from the mask in the
            paper's code, fusion_bench and MergeBench, ``kept`` if the comparison is >=, as far as
            is known that of the paper's equation.
        merge: How tau is made: ``sum`` is Consensus TA; ``ties`` the paper's Consensus TIES, whose
            tau is the disjoint sum of the trimmed d_i (masks compare it with untrimmed d_i).
        density: For ``ties``, the share of each d_i that survives the trim.
        scope: For ``ties``, what the density is a share of; the paper's code trims over the
            ``model``.

    Source:
        Wang et al., Localizing task information for improved model merging and compression, 2024,
        TALL-masks and Consensus Merging; the authors' `tallmask_utils.py`.
    """
    deltas = [expert.sub_(base) for expert in experts]
    if merge == "ties":
        kept = zip(context.prepared, deltas, strict=True)
        total = merge_agreeing([t.keep(delta, context.place) for t, delta in kept], None, "sum")
    else:
        total = sum_of(deltas)
    # Signs clamped to 0 and 1 in place of comparisons, which cost torch many times as much.
    votes = base.new_zeros(base.shape)
    for delta, factor in zip(deltas, mask_lambda, strict=True):
        distance = (total - delta).abs_().mul_(factor)
        vote = delta.abs_().sub_(distance).sign_()
        votes += vote.clamp_min_(0) if equal == "dropped" else vote.add_(1).clamp_max_(1)
    consensus = votes.sub_(min_tasks - 0.5).sign_().clamp_min_(0)
    return total.mul_(consensus).mul_(scale).add_(base)
