"""The move that fits best, from inner products of one model's units with another's.

What is compared (rows of weights, activations) is not known here: a Gram matrix holds, for a space
of n values, the inner product of value i of the reference with value j of the model that is moved.
Each function finds the move T of largest sum of Gram * T.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from merges.alignment import moves
from merges.alignment.groups import Group
from merges.alignment.moves import Move

MOST_UNITS = 16_384  # docs/merging.md has the time and memory of an assignment this large
_PASSES = 10  # over heads and their matrices; two or three are usual

Grams = Mapping[str, Tensor]  # by space, without the layer's number, float64


def assign(gain: Tensor) -> Tensor:
    """Solve an assignment problem: return for each row its column, (n,), int64.

    Args:
        gain: What each pair adds, (n, n); the sum is made as large as possible.

    Raises:
        UserError: It has more than `MOST_UNITS` rows.
    """
    from scipy.optimize import linear_sum_assignment  # takes a third of a second

    if len(gain) > MOST_UNITS:
        raise UserError(
            f"alignment assigns at most {MOST_UNITS:,} units to each other, and a space of this "
            f"model has {len(gain):,}; merge it without --align"
        )
    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])


def _signs(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1.0, 1.0).double()


def signed(gram: Tensor) -> Move:
    """Return the best permutation with signs of single values."""
    order = assign(gram.abs())
    return Move(order, _signs(gram.gather(1, order[:, None]))[..., None])


def rotation(gram: Tensor) -> Tensor:
    """Return the best orthogonal matrix (Procrustes), in the shape of the Gram matrix."""
    left, _, right = torch.linalg.svd(gram)
    return left @ right


def residual(group: Group, gram: Tensor, gains: Tensor, rotated: bool) -> Move:
    """Return the best move of the residual stream.

    Args:
        group: The symmetry group.
        gram: Inner products that follow a change of sign, (width, width).
        gains: Those that do not: of the norms' gains.
        rotated: Whether it may be rotated, which gains that are folded allow.
    """
    if rotated:
        return moves.rotation(rotation(gram))
    if not group.signs:
        return Move(assign(gram + gains))
    order = assign(gram.abs() + gains)
    return Move(order, _signs(gram.gather(1, order[:, None]))[..., None])


def hidden(group: Group, layer: int, grams: Grams) -> dict[str, Move]:
    """Return the best moves of an MLP: an order of units, and signs where it has a gate."""
    up = grams["up"]
    if not group.family.gated:
        return moves.mlp(layer, assign(up))
    order = assign(up.abs() + grams["gate"])
    return moves.mlp(layer, order, _signs(up.gather(1, order[:, None])[:, 0]))


class _Pair(NamedTuple):
    """How one group of heads of the model becomes one of the reference."""

    score: float
    within: Tensor
    values: Tensor
    keys: Tensor


class _Heads:
    """The assignment of a layer's heads: within each pair of groups, then of groups.

    Args:
        group: The symmetry group.
        grams: Of keys, queries, values and outputs.
        rotated: Whether values are rotated and frequencies turned; otherwise they change places
            and signs.
    """

    def __init__(self, group: Group, grams: Grams, rotated: bool) -> None:
        self._group, self._rotated = group, rotated
        count, ratio, head = group.groups, group.heads // group.groups, group.head
        shared, each = (count, head), (count, ratio, head)
        self._grams = {space: grams[space].view(*shared, *shared) for space in ("keys", "values")}
        self._grams |= {space: grams[space].view(*each, *each) for space in ("queries", "outputs")}

    def _matrix(self, gram: Tensor) -> Tensor:
        """Return the best matrix on a head's values."""
        if self._rotated:
            return rotation(gram)
        move = signed(gram)
        return move.rows(torch.eye(len(gram), dtype=torch.float64))

    def _turns(self, gram: Tensor) -> Tensor:
        """Return the best matrix on a head's keys that its rotary positions allow."""
        rotary = self._group.rotary
        half = rotary // 2
        own = gram[:rotary, :rotary]
        real = own.diagonal()[:half] + own.diagonal()[half:]
        imaginary = own.diagonal(-half) - own.diagonal(half)
        z = torch.complex(real, imaginary)
        if self._rotated and not self._group.family.normalised:
            z = torch.where(z.abs() > 0, z / z.abs(), 1.0)
        else:
            z = torch.complex(_signs(real), torch.zeros_like(real))
        found = torch.eye(len(gram), dtype=torch.float64)
        found[:rotary, :rotary] = moves.turning(z)
        if rotary < len(gram):
            found[rotary:, rotary:] = self._matrix(gram[rotary:, rotary:])
        return found

    def pair(self, new: int, old: int) -> _Pair:
        """Match the heads of a group of the reference with those of a group of the model.

        Heads and matrices are improved in turn until nothing changes: each step is the best one
        for what the others are, so that the sum never falls.
        """
        keys, values = (self._grams[space][new, :, old] for space in ("keys", "values"))
        queries, outputs = (self._grams[space][new, :, :, old] for space in ("queries", "outputs"))
        turns, matrix = self._turns(keys), self._matrix(values)
        within = None
        for _ in range(_PASSES):
            gain = torch.einsum("aibj,ij->ab", queries, turns)
            gain += torch.einsum("aibj,ij->ab", outputs, matrix)
            found = assign(gain)
            if within is not None and torch.equal(found, within):
                break
            within = found
            rows = torch.arange(len(within))
            turns = self._turns(keys + queries[rows, :, within].sum(0))
            matrix = self._matrix(values + outputs[rows, :, within].sum(0))
        assert within is not None
        rows = torch.arange(len(within))
        score = (keys + queries[rows, :, within].sum(0)) * turns
        score += (values + outputs[rows, :, within].sum(0)) * matrix
        return _Pair(float(score.sum()), within, matrix, turns)

    def best(self, layer: int) -> dict[str, Move]:
        """Return the best moves of the layer's attention."""
        count = self._group.groups
        pairs = [[self.pair(new, old) for old in range(count)] for new in range(count)]
        scores = [[pair.score for pair in row] for row in pairs]
        order = assign(torch.tensor(scores, dtype=torch.float64))
        chosen = [row[old] for row, old in zip(pairs, order.tolist(), strict=True)]
        within, values, keys = (
            torch.stack([getattr(pair, field) for pair in chosen])
            for field in ("within", "values", "keys")
        )
        return moves.attention(self._group, layer, order, within, values, keys)


def heads(group: Group, layer: int, grams: Grams, rotated: bool) -> dict[str, Move]:
    """Return the best moves of a layer's attention; see `_Heads`."""
    return _Heads(group, grams, rotated).best(layer)
