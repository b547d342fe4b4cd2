"""Expert Merging: coefficients by layer that bring the merged model near every expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from merges.engine.parameters import LearningRate, NonNegative, Positive, PositiveCount
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import WholeModelRequest, WholeModelResult


@method(title="Expert Merging", paper="arXiv:2509.25712", needs={"base", "data"}, whole_model=True)
def expert_merging(
    request: WholeModelRequest,
    *,
    initial: Positive = 0.1,
    samples: PositiveCount = 5,
    batch_size: PositiveCount = 2,
    epochs: PositiveCount = 1,
    learning_rate: LearningRate = 0.5,
    temperature: Positive = 1.0,
    hidden: NonNegative = 0.0,
    stay: NonNegative = 5.0,
    tokens: Literal["all", "answer"] = "all",
) -> WholeModelResult:
    """Learn a coefficient per expert and matrix: W = W_0 + sum_i sigmoid(w_i) (W_i - W_0).

    On expert i's rows the merged model's predictions are brought to those of expert i:
    sum_i mean over tokens of T^2 KL(expert_i || merged), plus the mean squared difference of the
    final hidden states, plus the coefficients' mean distance from their start. No label is looked
    at, only the experts' answers to the rows. The rate follows half a cosine down to a tenth, in
    cycles of 50, 100, 200 ... steps. Matrices are those of linear layers, an output head apart;
    the head, embeddings and norms are the base's or the experts' average, as the request says.

    Args:
        request: Base, experts and calibration data, and perhaps cached teacher signals.
        initial: The coefficients' value at first, below 1.
        samples: Rows drawn from each expert's data; the authors' few.
        batch_size: Rows per expert in an optimiser step; the authors' steps see eight rows in all.
        epochs: Passes over the drawn rows.
        learning_rate: Of AdamW, at the start of a cycle, with a weight decay of 1e-5.
        temperature: T.
        hidden: Weight of the final hidden states, after the last norm. The paper aligns states of
            chosen layers; the authors' code has weight 1, and no layer by default.
        stay: Weight of the distance from the start.
        tokens: Whether every position that predicts a token of its row counts, or only those that
            predict the answer.

    Returns:
        The merged model with its coefficients, the log of every term and the counted cost.

    Raises:
        UserError: Bad data or parameters, or an objective that is not finite.

    Source:
        Expert Merging: model merging with unsupervised expert alignment and importance-guided
        layer chunking, 2025; numbers are those of the authors' code. Expert Merging++, with
        several coefficients for parts of important layers, is left out.
    """
    # The training imports transformers, which the registry must not.
    from common.errors import UserError
    from merges.dam.aligning import AligningTrainer
    from merges.dam.method import training_parameters
    from merges.dam.sources import load_sources
    from merges.dam.supervised import merged

    if initial >= 1:
        raise UserError(
            f"method expert_merging, parameter initial: a sigmoid is below 1, not {initial}; "
            "give a smaller one"
        )
    parameters = training_parameters(
        samples=samples,
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=1e-5,
        temperature=temperature,
        tokens=tokens,
        granularity="layer",
        transform="sigmoid",
        start=initial,
        task_vectors=True,
        merge_lm_head=False,
        title="Expert Merging",
    )
    sources = load_sources(request.base, request.experts, request.calibration, request.device)
    return merged(AligningTrainer(request, parameters, sources, hidden, stay), request)
