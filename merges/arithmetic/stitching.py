"""Task vectors of several experts, averaged where their masks meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def stitch(deltas: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average task vectors over the experts whose masks hold an entry: sum_i m_i d_i / sum_j m_j.

    Args:
        deltas: d_i of one shape.
        masks: m_i of the same shape, truth values.

    Returns:
        A new tensor; zero where no mask holds the entry.
    """
    total, count = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta, mask in zip(deltas, masks, strict=True):
        total += delta * mask
        count += mask
    return total.div_(count.clamp_min_(1))
