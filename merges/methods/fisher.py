"""Fisher merging: experts averaged with the precision that each gives a weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merges.arithmetic.combination import normalized, ones_or
from merges.arithmetic.task_vectors import sum_of
from merges.engine.parameters import Flag, NonNegative, NonNegativeWeights
from merges.engine.registry import method

if TYPE_CHECKING:
    import torch

    from merges.engine.requests import TensorContext


def _weighted(
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    floor: float,
    normalize: bool,
    weights: Sequence[float] | None,
) -> torch.Tensor:
    """Average with weights c_i max(F_i, floor * mean F_i), and evenly where all are zero."""
    import torch

    factors = normalized(ones_or(weights, len(experts)), "fisher", "give others")
    average = sum_of([f * expert for f, expert in zip(factors, experts, strict=True)])
    found = context.statistics_of(context.experts, "values")
    if found is None:
        return average
    name = context.tensor
    total, sums = torch.zeros_like(experts[0]), torch.zeros_like(experts[0])
    # One unit for all experts keeps float32 away from its smallest numbers.
    unit = max((own.mean(name) / (own.norm if normalize else 1.0) for own in found), default=0.0)
    for factor, expert, own in zip(factors, experts, found, strict=True):
        scale = 1 / unit / (own.norm if normalize else 1.0) if unit else 0.0
        fisher = context.values_of(own, expert).mul_(scale)
        fisher.clamp_min_(floor * own.mean(name) * scale).mul_(factor)
        total += fisher
        # From the average, so that equal experts give themselves.
        sums += fisher * (expert - average)
    return average + torch.where(total > 0, sums / total, 0.0)


@method(
    title="Fisher merging",
    paper="arXiv:2111.09832",
    statistics={"experts": "fisher"},
    unit="values",
)
def fisher(
    base: torch.Tensor | None,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    floor: NonNegative = 1e-6,
    normalize: Flag = True,
    weights: NonNegativeWeights = None,
) -> torch.Tensor:
    """Average with Fisher information: sum_i c_i F_i x_i / sum_i c_i F_i, entry by entry.

    F_i = E_x E_y (d log p_i(y | x) / d x_i)^2 with labels y that expert i itself predicts, drawn
    at every position, one gradient for each row of its data. Embeddings and the output head have
    no F here and are averaged.

    Args:
        floor: Least F_i, in units of its mean over the tensor; a weight that no expert's loss
            depends on is averaged.
        normalize: Whether each F_i is first divided by its length over the model, as in the
            authors' code.
        weights: c_i; None for 1 each.

    Source:
        Merging Models with Fisher-Weighted Averaging, 2021. The authors' code, for classifiers,
        takes the exact expectation over labels and floors by 1e-6. fusion_bench squares a sum over
        examples and classes, which keeps terms between them; MergeBench takes one position and
        lets an optimiser step move the weights after every batch.
    """
    return _weighted(experts, context, floor, normalize, weights)


@method(
    title="Fisher merging (empirical)",
    paper="arXiv:2111.09832",
    statistics={"experts": "empirical_fisher"},
    unit="values",
)
def fisher_empirical(
    base: torch.Tensor | None,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    floor: NonNegative = 1e-6,
    normalize: Flag = True,
    weights: NonNegativeWeights = None,
) -> torch.Tensor:
    """Average as `fisher` does, with the data's answers in place of the model's predictions.

    F_i = E_(x, y) (d log p_i(y | x) / d x_i)^2 over the rows of expert i's data, y being the
    answer's tokens: what most implementations call the Fisher information. It is small where an
    expert already predicts its data.

    Args:
        floor: As for `fisher`.
        normalize: As for `fisher`.
        weights: c_i; None for 1 each.

    Source:
        Merging Models with Fisher-Weighted Averaging, 2021; with given labels, for example, in
        the code of MaTS (arXiv:2312.04339), one example at a time, with a floor of 1e-8.
    """
    return _weighted(experts, context, floor, normalize, weights)
