"""FW-Merging: Frank-Wolfe steps from expert to expert, down a labelled loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from merges.engine.parameters import Density, PositiveCount, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import WholeModelRequest, WholeModelResult


@method(title="FW-Merging", paper="arXiv:2503.12649", needs={"base", "data"}, whole_model=True)
def fw_merging(
    request: WholeModelRequest,
    *,
    granularity: Literal["task", "layer"] = "layer",
    score: Literal["product", "cosine"] = "product",
    scale: Scale = 1.0,
    step: Density = 1.0,
    samples: PositiveCount = 100,
    steps: PositiveCount = 10,
    tokens: Literal["all", "answer"] = "answer",
) -> WholeModelResult:
    """Minimise a loss over the hull of the experts: W <- (1 - g) W + g V_k, g = 2 / (t + 2).

    The vertices are V_i = W_0 + scale (W_i - W_0), the start is their average, and in step t
    (0, 1, ...) k is the expert with the least <grad L(W), V_i>. L is sum_i mean over tokens of
    -log merged(token) on the drawn rows of expert i, all of them in each step. Embeddings and norms
    are the base's or the experts' average, as the request says. Data use: labels, the rows'
    own tokens.

    Args:
        request: Base, experts and calibration data; teacher signals are not needed.
        granularity: Whether k is one for the whole model (``task``) or one for each parameter.
        score: ``product`` is the rule above. ``cosine`` divides it by |W_i - W_0|.
        scale: How far the vertices are from the base; 1 in the paper.
        step: A factor on g. With 1 the first step goes to a vertex and forgets the start.
        samples: Rows drawn from each expert's data; 100 in the authors' code.
        steps: Of the method, each over all drawn rows.
        tokens: Whether every position that predicts a token of its row counts, or only those that
            predict the answer.

    Returns:
        The merged model with its coefficients, the log of the loss and the counted cost.

    Raises:
        UserError: Bad data or parameters, or a loss that is not finite.

    Source:
        FW-Merging: scaling model merging with Frank-Wolfe optimization, 2025, with the step that
        has a proof. The authors' code ranks by cosines between the gradient and complete
        checkpoints, where W_0, which all share, outweighs what separates experts. It adds what it
        picked by task arithmetic, 0.3 times each step; fusion_bench takes 0.1 times each step.
    """
    # The training imports transformers, which the registry must not.
    from merges.dam.frank_wolfe import FrankWolfeTrainer
    from merges.dam.method import training_parameters
    from merges.dam.sources import load_sources
    from merges.dam.supervised import merged

    parameters = training_parameters(
        samples=samples,
        batch_size=samples,
        epochs=steps,
        learning_rate=step,
        clip=0.0,
        tokens=tokens,
        granularity="model" if granularity == "task" else "layer",
        start=scale / len(request.experts),
        task_vectors=True,
        title="FW-Merging",
    )
    sources = load_sources(request.base, request.experts, request.calibration, request.device)
    trainer = FrankWolfeTrainer(request, parameters, sources, scale, score == "cosine")
    return merged(trainer, request)
