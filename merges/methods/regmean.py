"""RegMean: the linear layers whose outputs are nearest to the experts', in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from merges.arithmetic.combination import normalized, ones_or
from merges.engine.parameters import Fraction, NonNegative, NonNegativeWeights
from merges.engine.registry import method

if TYPE_CHECKING:
    import torch

    from merges.arithmetic.regression import Inputs
    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext


def inputs_of(
    pieces: Pieces, *, alpha: float, ridge: float, weights: Sequence[float] | None
) -> Inputs | None:
    """Factorise the experts' inputs of a linear layer; None for other parameters."""
    from merges.arithmetic.regression import Inputs

    context = pieces.parts[0].context
    found = context.statistics_of(context.experts, "gram")
    if len(context.shape) != 2 or found is None:
        return None
    factors, width = factors_of(weights, len(found)), context.shape[1]
    return Inputs(found, factors, context.tensor, width, alpha, ridge)


def factors_of(weights: Sequence[float] | None, count: int) -> list[float]:
    """Divide the experts' weights by their sum."""
    return normalized(ones_or(weights, count), "regmean", "give others")


@method(
    title="RegMean",
    paper="arXiv:2212.09849",
    statistics={"experts": "gram"},
    unit="rows",
    prepare="inputs_of",
    one_by_one=True,
)
def regmean(
    base: torch.Tensor | None,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    alpha: Fraction = 0.9,
    ridge: NonNegative = 1e-6,
    origin: Literal["zero", "base"] = "zero",
    weights: NonNegativeWeights = None,
) -> torch.Tensor:
    """Minimise sum_i c_i E|(W - W_i) x|^2 over each expert's own inputs x, in closed form.

    W = (sum_i c_i W_i G_i) (sum_i c_i G_i)^-1 with G_i = E[x x^T], whose values off the diagonal
    are multiplied by alpha. A ridge keeps directions that no input has at a centre M:
    `merges.arithmetic.regression.Inputs`. Parameters that are no linear layers, and an output
    head tied to the embedding, are averaged.

    Args:
        alpha: Multiplier off the diagonal. The authors' configurations have 0.1 to 0.9, without one
            it is 1; 0 weighs each input channel by its mean square.
        ridge: r, in units of the summed Gram matrices' mean diagonal value.
        origin: M is the experts' average (``zero``), or the base (``base``: the regression is on
            task vectors).
        weights: c_i; None for 1 each.

    Raises:
        UserError: The Gram matrices are singular and ridge is 0.

    Source:
        Dataless Knowledge Fusion by Merging Weights of Language Models, 2022. Their code has no
        ridge; padding enters its Gram matrices, as in fusion_bench and MergeBench, and here there
        is none. MergeBench keeps a running mean in bfloat16 and takes a pseudo-inverse where the
        condition is above 1e8, which puts 0 where no input was.
    """
    from merges.arithmetic.regression import mean_of

    centre = base
    if centre is None or context.prepared is None:
        centre = mean_of(experts, factors_of(weights, len(experts)))
    return centre if context.prepared is None else context.prepared.regress(centre, experts)
