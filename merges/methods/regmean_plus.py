"""RegMean++: RegMean whose inputs come through the layers that are merged already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merges.engine.parameters import Count, Fraction, NonNegative
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import WholeModelRequest, WholeModelResult


@method(title="RegMean++", paper="arXiv:2508.03121", needs={"base", "data"}, whole_model=True)
def regmean_plus(
    request: WholeModelRequest,
    *,
    alpha: Fraction = 0.9,
    ridge: NonNegative = 1e-6,
    rows: Count = 0,
) -> WholeModelResult:
    """Merge layer by layer as `regmean` does, each with what the merged layers before it give.

    The Gram matrices of layer l are those of expert i's layer l, on expert i's rows, fed with the
    hidden states of the merged layers below l. The layer that is merged from them makes the next
    hidden states. Embeddings and norms are merged before anything runs, the average of the
    experts' or the base's as the request says. The rows' hidden states are on disk, one layer is in
    memory at a time; the merged model is held whole.

    Args:
        request: Base, experts and calibration data; teacher signals are not needed.
        alpha: As for `regmean`. The authors' scripts have 0.95 for vision and 0.1 for language
            models.
        ridge: As for `regmean`.
        rows: Only the first so many rows of each expert; 0 for all.

    Returns:
        The merged model and the counted cost.

    Raises:
        UserError: Bad data, an architecture that statistics do not know, or NaN among activations.

    Source:
        RegMean++: Enhancing Effectiveness and Generalization of Regression Mean for Model Merging,
        2025. MergeBench's keeps the base's embedding and output head, and runs all rows.
    """
    # It imports transformers, which the registry must not.
    from merges.statistics.prefix import merge_by_prefix

    return merge_by_prefix(request, alpha, ridge, rows)
