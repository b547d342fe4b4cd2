"""Optimal transport: hidden units that become mixtures of several of the other model's units.

A plan spreads each unit of the reference over units of the model that is moved, and says how much
of each it gets; with little entropy it is a permutation. Heads and the residual stream keep places
and signs: a mixture of heads is no head, and norms are not linear. The function is kept only as
far as the plan is a permutation.

The plan is found by Sinkhorn's iterations, here in ten lines. A library for it would add a compiled
dependency, and without entropy the problem between as many units as there are is the assignment
that scipy solves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from merges.alignment import solving
from merges.alignment.groups import Group

ENTROPY = 0.02  # of the largest gain
_ITERATIONS = 1000
_CLOSE = 1e-9  # of the sums of rows and columns to 1


class Mixture(NamedTuple):
    """A soft move of single units: x -> matrix x.

    Attributes:
        matrix: (units, units), float64; rows and columns of its magnitudes sum to 1.
    """

    matrix: Tensor

    @property
    def blocks(self) -> None:
        """It is no move with blocks."""

    def rows(self, values: Tensor) -> Tensor:
        """Return the mixtures of rows (or of a vector's values)."""
        return (self.matrix @ values.double()).to(values.dtype)

    def columns(self, values: Tensor) -> Tensor:
        """Return the same mixtures of columns; a permutation's undo those of its rows."""
        return (values.double() @ self.matrix.T).to(values.dtype)


def sinkhorn(gain: Tensor, entropy: float) -> Tensor:
    """Return the plan of largest gain with entropy: rows and columns sum to 1.

    Args:
        gain: What each pair adds, (n, n), float64.
        entropy: Factor of the plan's entropy, in units of the gain; above 0.

    Source:
        Sinkhorn Distances, arXiv:1306.0895, in logarithms.
    """
    scores = gain / entropy
    rows = columns = torch.zeros(len(gain), dtype=gain.dtype)
    for _ in range(_ITERATIONS):
        rows = -torch.logsumexp(scores + columns, 1)
        columns = -torch.logsumexp(scores + rows[:, None], 0)
        plan = torch.exp(scores + rows[:, None] + columns)
        if float((plan.sum(1) - 1).abs().amax()) < _CLOSE:
            break
    return plan


def soften(
    group: Group, layer: int, grams: solving.Grams, entropy: float = ENTROPY
) -> dict[str, Mixture]:
    """Return the soft moves of an MLP.

    Args:
        group: The symmetry group.
        layer: The layer's number.
        grams: Inner products of the gate's and of up's and down's units.
        entropy: As a share of the largest gain.

    Source:
        Model Fusion via Optimal Transport, arXiv:1910.05653; signs are ours.
    """
    up = grams["up"]
    gain = up.abs() + grams["gate"] if group.family.gated else up
    plan = sinkhorn(gain, entropy * float(gain.abs().amax().clamp(min=1e-300)))
    signs = torch.where(up < 0, -1.0, 1.0).double() if group.family.gated else torch.ones_like(up)
    return {f"gate.{layer}": Mixture(plan), f"up.{layer}": Mixture(plan * signs)}
