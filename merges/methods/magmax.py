"""MagMax: at each position, the task vector that is largest there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from merges.engine.parameters import Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import TensorContext


@method(title="MagMax", paper="arXiv:2407.06322", needs={"base"}, unit="values")
def magmax(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    scale: Scale = 1.0,
) -> torch.Tensor:
    """Take each entry from the expert that moved it most: b + lambda * d_i, i = argmax_j |d_j|.

    d_i = x_i - b. Of equal magnitudes the first expert's entry counts, in the order of the names.

    Args:
        scale: lambda. The paper tunes it on validation data; 1 adds the entries as they are.

    Source:
        MagMax: leveraging model merging for seamless continual learning, 2024. The
        paper fine-tunes the experts one after the other; that is the experts' training, and no part
        of the merge. fusion_bench's MagMax is the same selection.
    """
    largest, *others = [expert.sub_(base) for expert in experts]
    for delta in others:
        torch.where(delta.abs() > largest.abs(), delta, largest, out=largest)
    return largest.mul_(scale).add_(base)
