"""DELLA without an election: drop by rank of magnitude, then a weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from merges.arithmetic.task_vectors import weighted_sum
from merges.engine.parameters import Densities, Flag, NonNegatives, Scale, Weights
from merges.engine.registry import method
from merges.methods.della import drop_and_rescale, rescale_factors  # noqa: F401 (prepares)

if TYPE_CHECKING:
    import torch

    from merges.engine.requests import TensorContext


@method(
    title="DELLA-linear",
    paper="arXiv:2406.11617",
    needs={"base"},
    unit="rows",
    prepare="rescale_factors",
)
def della_linear(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    density: Densities = 0.7,
    epsilon: NonNegatives = 0.07,
    scale: Scale = 1.0,
    weights: Weights = None,
    rescale: Literal["probability", "l1", "none"] = "probability",
    normalize: Flag = False,
) -> torch.Tensor:
    """Drop by rank of magnitude (MagPrune), add up: b + lambda * sum_i w_i d_i, d_i as in `della`.

    Sorting the rows takes n log n, several times what DARE takes; ``l1`` sorts them twice.

    Args:
        base: Values of b, the common ancestor, [rows, columns].
        experts: Values of x_i, shaped alike.
        context: Names, position and the seed.
        density: Mean probability that an entry is kept; 1 keeps all. The defaults are `della`'s.
        epsilon: Half the range of the probabilities.
        scale: lambda.
        weights: w_i; None for 1 each.
        rescale: As for `della`; ``l1`` is mergekit's `della_linear`.
        normalize: Whether to divide by the sum of the weights (mergekit's parameter of that name,
            which is false by default).

    Returns:
        The merged values.

    Raises:
        UserError: A probability is outside (0, 1], or the weights to be normalised sum to zero.

    Source:
        Deep et al., DELLA-Merging, 2024: MagPrune, without the election.
    """
    deltas = drop_and_rescale(base, experts, context, density, epsilon, rescale)
    return weighted_sum(deltas, weights, normalize).mul_(scale).add_(base)
