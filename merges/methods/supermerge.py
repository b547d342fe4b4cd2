"""SuperMerge: coefficients by layer, trained on a few labelled rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from merges.engine.parameters import LearningRate, PositiveCount, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import WholeModelRequest, WholeModelResult


@method(title="SuperMerge", paper="arXiv:2412.10416", needs={"base", "data"}, whole_model=True)
def supermerge(
    request: WholeModelRequest,
    *,
    initial: Scale = 0.3,
    samples: PositiveCount = 1000,
    batch_size: PositiveCount = 4,
    epochs: PositiveCount = 1,
    learning_rate: LearningRate = 0.01,
    tokens: Literal["all", "answer"] = "answer",
) -> WholeModelResult:
    """Learn a coefficient per expert and layer: W = W_0 + sum_i tanh(w_i) (W_i - W_0).

    They are trained with Adam on all experts' rows, so that sum_i mean over tokens of
    -log merged(token) on expert i's rows is small. Embeddings and norms are the base's or the
    experts' average, as the request says. Data use: labels, the rows' own tokens.

    Args:
        request: Base, experts and calibration data; teacher signals are not needed.
        initial: All w_i at first.
        samples: Rows drawn from each expert's data.
        batch_size: Rows per expert in an optimiser step.
        epochs: Passes over the drawn rows.
        learning_rate: Of Adam.
        tokens: Whether every position that predicts a token of its row counts, or only those that
            predict the answer.

    Returns:
        The merged model with its coefficients, the log of the loss and the counted cost.

    Raises:
        UserError: Bad data or parameters, or a loss that is not finite.

    Source:
        SUPERMERGE: an approach for gradient-based model merging, 2024. Its optimiser, rate, start
        and number of steps could not be established: the numbers here are AdaMerging's or
        were found on the bottle. Its merging of merges, which bounds the memory for many experts,
        is left out.
    """
    # The training imports transformers, which the registry must not.
    from merges.dam.method import training_parameters
    from merges.dam.sources import load_sources
    from merges.dam.supervised import LabelledTrainer, merged

    parameters = training_parameters(
        samples=samples,
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        clip=0.0,
        tokens=tokens,
        granularity="layer",
        transform="tanh",
        start=initial,
        task_vectors=True,
        title="SuperMerge",
    )
    sources = load_sources(request.base, request.experts, request.calibration, request.device)
    return merged(LabelledTrainer(request, parameters, sources), request)
