"""EMR-Merging's unified task vector, as one checkpoint without masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from merges.arithmetic.task_vectors import sum_of
from merges.engine.parameters import Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext


@method(title="EMR unified vector", paper="arXiv:2405.17461", needs={"base"}, unit="values")
def emr_unified(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    scale: Scale = 1.0,
) -> torch.Tensor:
    """Elect a sign and take the largest magnitude that has it: b + lambda * S * max_i |d_i|.

    d_i = x_i - b, S is the sign of sum_i d_i, and the maximum is over the experts whose d_i has
    this sign. Where the sum is zero, the entry is the base's.

    Args:
        scale: lambda; 1 is the paper's unified vector.

    Source:
        EMR-Merging: tuning-free high-performance model merging, 2024, elect. The
        paper, its code and fusion_bench also keep a mask and a factor for each task, and apply
        those of the task at hand; one checkpoint for all tasks has neither. Their code counts a sum
        of zero as negative, so that of 1 and -1 it takes -1; S as a sign has 0 there.
    """
    deltas = [expert.sub_(base) for expert in experts]
    sign = sum_of(deltas).sign_()
    largest = torch.zeros_like(base)
    for delta in deltas:
        torch.maximum(largest, delta.mul_(sign), out=largest)
    return largest.mul_(sign).mul_(scale).add_(base)
