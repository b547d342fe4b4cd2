"""Localize-and-Stitch: few weights carry an expert's skill, and are averaged where experts meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from merges.engine.parameters import Density, NonNegative, Positive, PositiveCount
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import WholeModelRequest, WholeModelResult


@method(
    title="Localize-and-Stitch", paper="arXiv:2408.13656", needs={"base", "data"}, whole_model=True
)
def localize_and_stitch(
    request: WholeModelRequest,
    *,
    density: Density = 1e-5,
    bias: Positive = 5.0,
    samples: PositiveCount = 64,
    steps: PositiveCount = 10,
    learning_rate: Positive = 1e7,
    l1: NonNegative = 10.0,
    penalty: Literal["sparse", "binary"] = "sparse",
    tokens: Literal["all", "answer"] = "answer",
) -> WholeModelResult:
    """Learn which weights carry each expert's skill, and average where these meet.

    For each expert alone, numbers S of the shape of its linear layers are trained so that
    W_0 + sigmoid(S) d_i has little loss on the expert's rows, d_i = W_i - W_0. Each step goes down
    the gradient over all drawn rows. The mask m_i holds what sigmoid(S) rounds to 1, and the result
    is W_0 + sum_i m_i d_i / sum_j m_j. Embeddings and norms are not localized: they are the base's
    or the experts' average, as the request says.

    Data use: labels. The loss is the cross-entropy of the rows' own tokens, of few rows for each
    expert. In memory are the models and, for one expert at a time, S with its gradient.

    Args:
        request: Base, experts and calibration data; teacher signals are not needed.
        density: Share of the entries, those of largest |d_i| in all linear layers, that begin
            inside the mask.
        bias: S is this inside, and minus this outside, at first.
        samples: Rows drawn from each expert's data; 64 for each class in the paper.
        steps: Gradient steps, each over all drawn rows.
        learning_rate: eta; gradients of single weights are tiny, hence the authors' 1e7.
        l1: Weight of the penalty, which is not multiplied by eta.
        penalty: ``sparse``: the step is eta dL/dS + l1 sigmoid'(S), down the gradient of
            the paper's |sigmoid(S)|_1. ``binary``: the authors' code, in which the second term
            moves S away from 0, so that it empties no mask.
        tokens: Whether every position that predicts a token of its row counts in the loss, or only
            those that predict the answer.

    Returns:
        The merged model, the log of every expert's training, and the counted cost.

    Raises:
        UserError: Bad data or parameters, or a loss that is not finite.

    Source:
        Localize-and-Stitch: efficient model merging via sparse task arithmetic, 2024; numbers are
        those of the authors' code for language models. MergeBench's lets an optimiser
        move the weights while a mask is trained.
    """
    # The training imports transformers, which the registry must not.
    from merges.dam.localizing import localize

    return localize(
        request,
        density=density,
        bias=bias,
        samples=samples,
        steps=steps,
        learning_rate=learning_rate,
        l1=l1,
        binary=penalty == "binary",
        tokens=tokens,
    )
