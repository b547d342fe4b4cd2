"""AIM: a merged model, drawn back to the base where the base's activations are large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merges.engine.parameters import Fraction
from merges.engine.registry import method

if TYPE_CHECKING:
    import torch

    from merges.engine.pieces import Pieces
    from merges.engine.requests import TensorContext


def column_factors(pieces: Pieces, *, omega: float, peak: float) -> torch.Tensor | None:
    """Return 1 - (1 - omega) * min(1, a_j / peak of a) for each input channel, None without a."""
    import torch

    context = pieces.parts[0].context
    found = context.statistics["base"]
    if len(context.shape) != 2 or not found.has(context.tensor, "mean_abs"):
        return None
    activity = found.read(context.tensor, "mean_abs").double()
    top = torch.quantile(activity, peak)
    if not top > 0:
        return None
    return 1 - (1 - omega) * (activity / top).clamp_max_(1)


@method(
    title="AIM",
    paper="arXiv:2502.02421",
    needs={"base"},
    experts=1,
    unit="rows",
    prepare="column_factors",
    statistics={"base": "channels"},
)
def aim(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: TensorContext,
    *,
    omega: Fraction = 0.4,
    peak: Fraction = 1.0,
) -> torch.Tensor:
    """Draw any merged model back: W = W_0 + (W_m - W_0) (1 - (1 - omega) a_j / max a).

    The one expert is a model W_m that another method has merged. a_j is the mean of |x_j| over
    tokens that the base reads, for input channel j of each linear layer. What is no linear layer
    stays as merged.

    Args:
        omega: Share that stays in the channel with the largest activation; the authors advise 0.2
            to 0.6.
        peak: Quantile of a in place of the largest, 1 in the paper. One massive activation makes
            nearly all factors 1; channels above the quantile count as at it.

    Source:
        Activation-Informed Merging of Large Language Models, 2025. The authors' code also scales
        gains of norms by their inputs.
    """
    expert = experts[0]
    if context.prepared is None:
        return expert
    return base + (expert - base) * context.prepared.to(expert)
