"""PCB-Merging: weigh every entry by its share in its own task and its fit with the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from merges.arithmetic.selection import Threshold, thresholds
from merges.arithmetic.task_vectors import sum_of
from merges.engine.parameters import Density, Fraction, Scale, Weights
from merges.engine.registry import method
from merges.methods.ties import deltas_of

if TYPE_CHECKING:
    from merges.engine.pieces import Piece, Pieces
    from merges.engine.requests import TensorContext

Variant = Literal["release", "vision", "paper"]

_TINY = 1e-12  # the authors' bound under the sum of the shares, by which the merge divides


def _scaled(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Map [low, high] to [0, 1] in place; a range without extent to 0."""
    return values.sub_(low).div_(high - low) if high > low else values.zero_()


@dataclass
class Released:
    """The balance of the authors' code.

    Attributes:
        vision: Whether the inter-balance is that of their script for vision.
        bounds: Of each expert, the magnitudes to which its task vector's entries are clipped.
        cuts: Of each expert, the score at which a share of 0 begins and the one whose share is 1.
    """

    vision: bool
    bounds: list[tuple[float, float]] = field(default_factory=list)
    cuts: list[tuple[float, float]] = field(default_factory=list)

    def clipped(self, deltas: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the task vectors with magnitudes brought within the bounds, zeros left."""
        pairs = zip(deltas, self.bounds, strict=True)
        return [delta.abs().clamp_(*bounds).mul_(delta.sign()) for delta, bounds in pairs]

    def scores(self, deltas: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return each expert's beta_i, of either sign."""
        pairs = zip(deltas, self.bounds, strict=True)
        sizes = [_scaled(delta.abs().clamp_(*bounds), *bounds) for delta, bounds in pairs]
        signed = zip(sizes, deltas, strict=True)
        total = sum_of([s * delta.sign() for s, delta in signed] if self.vision else deltas)
        return [
            size.square_().mul_(len(deltas)).exp_().mul_((delta * total).tanh_())
            for size, delta in zip(sizes, deltas, strict=True)
        ]

    def shares(self, deltas: Sequence[torch.Tensor], place: int) -> list[torch.Tensor]:
        """Return the entries' shares in the merge, of [0, 1]; 0 below the threshold."""
        pairs = zip(self.scores(deltas), self.cuts, strict=True)
        return [_scaled(score.clamp_min_(cut[0]), *cut) for score, cut in pairs]


@dataclass
class Printed:
    """The balance of the paper's equations.

    Attributes:
        ranges: Smallest and largest value of d_i * d_j, by (i, j) with i <= j.
        intra: Mean of exp(N * Norm(d_i * d_i)) of each expert.
        inter: Mean of exp(Norm(d_i * d_j)), by (i, j) with i <= j.
        kept: Of each expert, the threshold of the entries that stay.
    """

    ranges: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    intra: list[float] = field(default_factory=list)
    inter: dict[tuple[int, int], float] = field(default_factory=dict)
    kept: list[Threshold] = field(default_factory=list)

    def norm(self, deltas: Sequence[torch.Tensor], i: int, j: int) -> torch.Tensor:
        """Return Norm(d_i * d_j)."""
        pair = (min(i, j), max(i, j))
        return _scaled(deltas[i] * deltas[j], *self.ranges[pair])

    def scores(self, deltas: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return each expert's beta_i, times the square of the number of values."""
        scores = []
        for i in range(len(deltas)):
            intra = self.norm(deltas, i, i).mul_(len(deltas)).exp_().div_(self.intra[i])
            inter = [
                self.norm(deltas, i, j).exp_().div_(self.inter[min(i, j), max(i, j)])
                for j in range(len(deltas))
            ]
            scores.append(intra.mul_(sum_of(inter)))
        return scores

    def clipped(self, deltas: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the task vectors: the paper clips nothing."""
        return list(deltas)

    def shares(self, deltas: Sequence[torch.Tensor], place: int) -> list[torch.Tensor]:
        """Return beta_i where it is among the largest, 0 elsewhere."""
        pairs = zip(self.scores(deltas), self.kept, strict=True)
        return [threshold.keep(score, place) for score, threshold in pairs]


def _bounds(pieces: Pieces, clip: float) -> list[tuple[float, float]]:
    """Find the magnitudes at the two places of each expert's sorted magnitudes to clip to."""
    count, experts = pieces.count, len(pieces.experts)
    low_place = min(int(count * clip), count - 1)
    ranks = [count - low_place, count - max(low_place, int(count * (1 - clip) - 1))]

    def sizes(piece: Piece) -> list[torch.Tensor]:
        return [delta for delta in deltas_of(piece) for _ in ranks]

    values = [found.value for found in thresholds(pieces, sizes, ranks * experts)]
    if low_place == 0:  # to keep all takes no threshold: the smallest is found otherwise
        least = [torch.inf] * experts
        for piece in pieces:
            for i, delta in enumerate(deltas_of(piece)):
                least[i] = min(least[i], float(delta.abs_().amin()))
        places = range(2 * experts)
        values = [least[k // 2] if ranks[k % 2] == count else values[k] for k in places]
    return list(zip(values[::2], values[1::2], strict=True))


def _cuts(
    pieces: Pieces, scores: Callable[[Piece], list[torch.Tensor]], rank: int
) -> list[tuple[float, float]]:
    """For each expert, return the score with a given rank from the top and its largest score."""
    experts = len(pieces.experts)
    least, most = [torch.inf] * experts, [-torch.inf] * experts
    above, below = [0] * experts, [0] * experts
    for piece in pieces:
        for i, score in enumerate(scores(piece)):
            low, high = score.aminmax()
            least[i], most[i] = min(least[i], float(low)), max(most[i], float(high))
            sign = score.sign_()
            difference = int(sign.sum(dtype=torch.float64))
            either = int(sign.abs_().sum(dtype=torch.float64))
            above[i] += (either + difference) // 2
            below[i] += (either - difference) // 2
    if rank in (1, pieces.count):
        return list(zip(most if rank == 1 else least, most, strict=True))
    cuts = [0.0] * experts
    # The search is by magnitude: it sees only the scores on the threshold's side of zero.
    wanted = [(i, 1.0, rank) for i in range(experts) if rank <= above[i]]
    for i in range(experts):
        if rank > pieces.count - below[i]:
            wanted.append((i, -1.0, pieces.count - rank + 1))
    if wanted:

        def one_sided(piece: Piece) -> list[torch.Tensor]:
            every = scores(piece)
            return [(every[i] * side).clamp_min_(0) for i, side, _ in wanted]

        found = thresholds(pieces, one_sided, [k for _, _, k in wanted])
        for (i, side, _), threshold in zip(wanted, found, strict=True):
            cuts[i] = side * threshold.value
    return list(zip(cuts, most, strict=True))


def _released(pieces: Pieces, rank: int, clip: float, vision: bool) -> Released:
    balance = Released(vision, _bounds(pieces, clip))
    balance.cuts = _cuts(pieces, lambda piece: balance.scores(deltas_of(piece)), rank)
    return balance


def _printed(pieces: Pieces, rank: int) -> Printed:
    experts = len(pieces.experts)
    pairs = [(i, j) for i in range(experts) for j in range(i, experts)]
    balance = Printed(ranges=dict.fromkeys(pairs, (torch.inf, -torch.inf)))
    for piece in pieces:
        deltas = deltas_of(piece)
        for i, j in pairs:
            low, high = (deltas[i] * deltas[j]).aminmax()
            least, most = balance.ranges[i, j]
            balance.ranges[i, j] = min(least, float(low)), max(most, float(high))
    intra, inter = [0.0] * experts, dict.fromkeys(pairs, 0.0)
    for piece in pieces:
        deltas = deltas_of(piece)
        for i, j in pairs:
            norm = balance.norm(deltas, i, j)
            inter[i, j] += float(norm.exp().sum(dtype=torch.float64))
            if i == j:
                intra[i] += float(norm.mul_(experts).exp_().sum(dtype=torch.float64))
    # Means in place of softmax's sums: the factor is common to all and leaves the merge as it is.
    balance.intra = [value / pieces.count for value in intra]
    balance.inter = {pair: value / pieces.count for pair, value in inter.items()}

    def scores(piece: Piece) -> list[torch.Tensor]:
        return balance.scores(deltas_of(piece))

    balance.kept = thresholds(pieces, scores, [rank] * experts)
    return balance


def balance(pieces: Pieces, *, variant: Variant, density: float, clip: float) -> Released | Printed:
    """Find the ranges, normalisers and thresholds of the shares, in three passes or four."""
    rank = max(1, pieces.count - int(pieces.count * (1 - density)))
    if variant == "paper":
        return _printed(pieces, rank)
    return _released(pieces, rank, clip, variant == "vision")


@method(
    title="PCB-Merging",
    paper="arXiv:2410.02396",
    needs={"base"},
    unit="values",
    prepare="balance",
)
def pcb(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Density = 0.1,
    scale: Scale = 1.0,
    weights: Weights = None,
    variant: Literal["release", "vision", "paper"] = "release",
    clip: Fraction = 0.0001,
    scope: Literal["tensor", "model"] = "model",
) -> torch.Tensor:
    """Balance the competition of parameters: b + lambda * sum_i s_i w_i d_i / sum_i s_i.

    d_i = x_i - b, N experts, n values. A score beta_i = intra_i * inter_i says how much an entry
    matters to its own task and how well it fits the others; the shares s_i come from the largest
    of them. Norm maps an expert's range of values to [0, 1]; t_i is the score at position
    floor(n * (1 - density)) of the n sorted ones. Where all shares are zero, so is the merged
    entry; an expert whose scores are all equal, such as one equal to the base, has no shares.

    Args:
        density: Share of each expert's entries that is kept, the paper's mask ratio r. The
            authors' function has 0.1, their scripts try 0.05, 0.1 and 0.2.
        scale: lambda. The authors' scripts use 1.0, 1.2 or tune it between 0.8 and 2.2.
        weights: w_i, the task-wise coefficients that the paper searches by evolution; None for
            1 each.
        variant: ``release`` is the authors' `pcb-merging.py` and their code for language models
            (intra_i = exp(N * Norm(|d_i|)^2), inter_i = tanh(d_i * sum_j d_j),
            s_i = Norm(max(beta_i, t_i)), entries of d_i clipped); ``vision`` their script for
            vision, with inter_i = tanh(d_i * sum_j sign(d_j) Norm(|d_j|)); ``paper`` the printed
            equations (intra_i = softmax(N * Norm(d_i * d_i)), inter_i = sum_j softmax(Norm(d_i *
            d_j)), s_i = beta_i where it is among the n - floor(n * (1 - density)) largest, of
            equal ones the first). The paper leaves Norm open; the code's is taken.
        clip: But in ``paper``, magnitudes of d_i are first clipped to those at positions
            floor(n * clip) and floor(n * (1 - clip) - 1) of the sorted ones: 0.0001 in
            `pcb-merging.py`, 0.01 in the scripts for language models and for vision. The merge
            takes the clipped values too, the inter-balance does not.
        scope: What Norm and density look at: the ``model`` as in the paper, or each
            ``tensor``.

    Source:
        Du et al., Parameter competition balancing for model merging, 2024, intra-balancing,
        inter-balancing, drop and rescale. Linear in n, quadratic in N for ``paper``; the models
        are read four or five times.
    """
    deltas = [expert.sub_(base) for expert in experts]
    shares = context.prepared.shares(deltas, context.place)
    total = sum_of(shares)
    merged = torch.zeros_like(base)
    values = context.prepared.clipped(deltas)
    for share, value, weight in zip(shares, values, weights or [1.0] * len(values), strict=True):
        merged.add_(share.mul_(value), alpha=weight)
    return merged.div_(total.clamp_min_(_TINY)).mul_(scale).add_(base)
