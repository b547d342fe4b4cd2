"""AdaRank: learnt choice of the singular directions of each task matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from merges.engine.parameters import Density, Fraction, LearningRate, Positive, PositiveCount, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import WholeModelRequest, WholeModelResult


@method(title="AdaRank", paper="arXiv:2503.22178", needs={"base", "data"}, whole_model=True)
def adarank(
    request: WholeModelRequest,
    *,
    origin: Literal["base", "mean"] = "base",
    initial: Scale = 0.3,
    share: Fraction = 1.0,
    held: Density = 1.0,
    temperature: Positive = 10.0,
    samples: PositiveCount = 1000,
    batch_size: PositiveCount = 4,
    epochs: PositiveCount = 20,
    learning_rate: LearningRate = 5e-5,
    tokens: Literal["all", "answer"] = "all",
) -> WholeModelResult:
    """Learn masks over singular values: W = O + sum_i lambda_i U_i diag(b_i s_i) V_i^T.

    U_i, s_i, V_i decompose W_i - O, for each linear layer. The b_i in {0, 1} and the lambda_i, one
    for each expert and layer, are trained by Adam so that the merged model's own predictions on all
    experts' rows have little entropy. b_i is sigmoid(w / T) rounded, and its gradient that of the
    sigmoid. A bias has a lambda_i alone. Embeddings and norms are the base's or the experts'
    average, as the request says.

    Data use: rows without labels or teachers. In memory are, besides the models, the vectors of all
    directions that are held, at most twice the experts' linear layers. Each step multiplies them:
    2 m n operations for each direction of a layer, and as many for the gradient.

    Args:
        request: Base, experts and calibration data; teacher signals are not needed.
        origin: O is the ``base`` or the experts' ``mean`` (the authors' CART).
        initial: All lambda_i at first. Theirs are 0.3 from the base; from the mean 1.3 or 1.6.
        share: Share of the leading directions that take part at first (w = 0.1; the others have
            -0.1). Theirs are 1 from the base; from the mean 0.01 or 0.04.
        held: Share of the directions that can take part at all; less of them is cheaper.
        temperature: T; theirs is 10.
        samples: Rows drawn from each expert's data.
        batch_size: Rows per expert in an optimiser step.
        epochs: Passes over the drawn rows; with the defaults they make the authors' 5000 steps.
        learning_rate: Of Adam, for w and lambda alike.
        tokens: Whether every position that predicts a token of its row counts, or only those that
            predict the answer.

    Returns:
        The merged model, its lambda_i and the number of directions by layer (``ranks``), the log of
        the entropy, and the counted cost.

    Raises:
        UserError: Bad data or parameters, or an entropy that is not finite.

    Source:
        AdaRank: adaptive rank pruning for enhanced model merging, 2025; numbers are those of the
        authors' code for GPT-2.
    """
    # The training imports transformers, which the registry must not.
    from merges.dam.method import training_parameters
    from merges.dam.ranks import RankTrainer
    from merges.dam.sources import load_sources
    from merges.dam.supervised import merged

    parameters = training_parameters(
        samples=samples,
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        clip=0.0,
        temperature=1.0,
        objective={"entropy": 1.0},
        tokens=tokens,
        start=initial,
        task_vectors=True,
        title="AdaRank",
    )
    sources = load_sources(request.base, request.experts, request.calibration, request.device)
    trainer = RankTrainer(
        request,
        parameters,
        sources,
        mean=origin == "mean",
        held=held,
        share=share,
        temperature=temperature,
    )
    return merged(trainer, request)
