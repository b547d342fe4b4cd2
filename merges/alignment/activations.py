"""Activation matching: the basis in which two models' units answer most alike.

Both models read the same rows. What is compared is the correlation over tokens of unit i of the
reference with unit j of the model that is moved: of queries, keys, values and heads' outputs, of
hidden units before and after the gate, and of the residual stream in front of every layer.
Rotations are found from covariances.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.reading import Model
from merges.alignment import solving
from merges.alignment.groups import RESIDUAL, Group
from merges.alignment.lockstep import Lockstep, Seen
from merges.alignment.moves import Move
from merges.dam.data import Calibration

# By space, the linear layer and whether its input is looked at, or its output.
_PLACES = {
    "queries": ("self_attn.q_proj", False),
    "keys": ("self_attn.k_proj", False),
    "values": ("self_attn.v_proj", False),
    "outputs": ("self_attn.o_proj", True),
    "gate": ("mlp.gate_proj", False),
    "up": ("mlp.down_proj", True),
}


class Correlation:
    """Correlations over tokens of two models' units, added batch by batch in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._products: Tensor | None = None

    def add(self, one: Tensor, two: Tensor) -> None:
        """Add both models' activations on the same tokens, (tokens, units)."""
        both = [one.double(), two.double()]
        sums, squares = [x.sum(0) for x in both], [x.square().sum(0) for x in both]
        products = both[0].T @ both[1]
        if self._products is not None:
            sums = [a + b for a, b in zip(self._sums, sums, strict=True)]
            squares = [a + b for a, b in zip(self._squares, squares, strict=True)]
            products += self._products
        self._count += len(one)
        self._sums, self._squares, self._products = sums, squares, products

    def matrix(self, whole: bool = False) -> Tensor:
        """Return the correlations, (units, units); 0 where a unit never changes.

        Args:
            whole: Return covariances over the models' mean spread instead: a rotation mixes units,
                so that each counts as much as it varies.
        """
        assert self._products is not None
        means = [own / self._count for own in self._sums]
        covariance = self._products / self._count - torch.outer(*means)
        spread = [
            (own / self._count - mean.square()).clamp(min=0).sqrt()
            for own, mean in zip(self._squares, means, strict=True)
        ]
        if whole:
            sizes = [own.square().mean().sqrt() for own in spread]
            return covariance / (sizes[0] * sizes[1]).clamp(min=1e-300)
        scale = torch.outer(*spread)
        # What never changes has rounding alone for a spread.
        quiet = scale <= 1e-12 * scale.amax()
        return torch.where(quiet, 0.0, covariance / torch.where(quiet, 1.0, scale))


def match(
    group: Group, reference: Model, model: Model, data: Sequence[Calibration], rotated: bool
) -> dict[str, Move]:
    """Return the element that activations speak for.

    Args:
        group: The symmetry group of both.
        reference: The model that stays.
        model: The model that is moved.
        data: Rows that both read.
        rotated: Whether rotations are used, as for `merges.alignment.weights.match`.

    Raises:
        UserError: An architecture that statistics do not know, or activations that are not finite.

    Source:
        Git Re-Basin, arXiv:2209.04836, section 3.1, with correlations in place of products; heads
        nested within their groups are ours.
    """
    found: dict[str, Move] = {}
    stream = Correlation()
    with tempfile.TemporaryDirectory() as folder:
        steps = Lockstep([reference, model], data, Path(folder))
        for number in range(group.layers):
            own = {space: Correlation() for space in _PLACES}

            def see(seen: list[Seen], own: dict[str, Correlation] = own) -> None:
                stream.add(*(_normalised(each.hidden) for each in seen))
                for space, (module, enters) in _PLACES.items():
                    own[space].add(
                        *((each.inputs if enters else each.outputs)[module] for each in seen)
                    )

            steps.layer(number, see)
            units = {space: own[space].matrix() for space in ("gate", "up")}
            found |= solving.hidden(group, number, units)
            heads = {space: each.matrix(rotated) for space, each in own.items()}
            found |= solving.heads(group, number, heads, rotated)
    turned = rotated and group.foldable
    gram = stream.matrix(turned)
    found[RESIDUAL] = solving.residual(group, gram, torch.zeros_like(gram), turned)
    return found


def _normalised(hidden: Tensor) -> Tensor:
    """Give every token one length, so that no layer and no token outweighs the others."""
    wide = hidden.double()
    return wide / wide.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
