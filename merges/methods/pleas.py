"""PLeaS: layers whose answer to the models' mean input is nearest to their mean output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merges.engine.parameters import Count, NonNegative
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import WholeModelRequest, WholeModelResult


@method(title="PLeaS", paper="arXiv:2407.02447", needs={"base", "data"}, whole_model=True)
def pleas(
    request: WholeModelRequest, *, rows: Count = 128, ridge: NonNegative = 1e-3
) -> WholeModelResult:
    """Solve each linear layer by least squares on the experts' mean inputs and outputs.

    W = argmin E |W x - y|^2 + r |W - M|^2, x = mean_i x_i, y = mean_i W_i x_i

    All experts read all rows; x_i is what enters the layer in expert i, and M the mean of the
    weights, which inputs that nobody saw keep. Embeddings, norms and biases are averaged. Meant
    for experts in one basis: `--align` first, where they have no common base. One layer of each
    expert is in memory at a time, and the merged model.

    Args:
        request: Base, experts and calibration data; teacher signals are not needed.
        rows: So many rows of each expert's data.
        ridge: r in units of the mean square of an input.

    Returns:
        The merged model and the counted cost.

    Raises:
        UserError: Bad data, an architecture that statistics do not know, or NaN among activations.

    Source:
        PLeaS: Merging Models with Permutations and Least Squares, arXiv:2407.02447, with all units
        permuted. The authors minimise the same sum by Adam; this is the closed form.
    """
    # It imports transformers, which the registry must not.
    from merges.alignment.least_squares import merge

    return merge(request, rows, ridge)
