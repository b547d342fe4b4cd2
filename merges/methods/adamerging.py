"""AdaMerging: task vectors added with coefficients that make the merged model sure of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from merges.dam.method import training_parameters
from merges.engine.parameters import Flag, LearningRate, Positive, PositiveCount, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import WholeModelRequest, WholeModelResult


@method(title="AdaMerging", paper="arXiv:2310.02575", needs={"base", "data"}, whole_model=True)
def adamerging(
    request: WholeModelRequest,
    *,
    granularity: Literal["task", "layer"] = "layer",
    initial: Scale = 0.3,
    clamp: Flag = True,
    samples: PositiveCount = 1600,
    batch_size: PositiveCount = 16,
    epochs: PositiveCount = 5,
    learning_rate: LearningRate = 1e-3,
    temperature: Positive = 1.0,
    tokens: Literal["all", "answer"] = "all",
    moe_experts: Literal["mean", "base"] = "mean",
) -> WholeModelResult:
    """Learn a coefficient per task vector: W = W_0 + sum_i c_i (W_i - W_0).

    The coefficients are trained with Adam so that the merged model's own predictions on all
    experts' data have little entropy, sum_i mean over tokens of H(merged(D_i)); no label and no
    teacher says which prediction is right. Where the request asks for merged embeddings and norms
    they are merged as all else, as in the paper; with the base's they stay as they are.

    Args:
        request: Base, experts and calibration data; teacher signals are not needed.
        granularity: ``task``, one coefficient per expert, or ``layer``, one per expert and
            parameter tensor, as the authors' code has it.
        initial: All coefficients at first.
        clamp: Whether coefficients are cut to [0, 1], as in the authors' code; one that leaves the
            interval has no gradient any more.
        samples: Rows drawn from each expert's data.
        batch_size: Rows per expert in an optimiser step.
        epochs: Passes over the drawn rows; with the defaults they make the paper's 500 steps.
        learning_rate: Of Adam.
        temperature: T that divides the logits; the entropy is multiplied by its square.
        tokens: Whether every position that predicts a token of its sample counts, or only those
            that predict the answer.
        moe_experts: As for `merges.dam.method.dam`: what a mixture's experts and routers become.

    Returns:
        The merged model with its coefficients, the log of the entropy and the counted cost.

    Raises:
        UserError: Bad data or parameters, or an entropy that is not finite.

    Source:
        Yang et al., arXiv:2310.02575, equations 3 to 5; initial value, clamp, batch and steps are
        the authors' code's.
    """
    # The training imports transformers, which the registry must not.
    from merges.dam.training import train

    trained = "scalar" if request.embeddings_and_norms == "merged" else "frozen"
    return train(
        request,
        training_parameters(
            samples=samples,
            batch_size=batch_size,
            epochs=epochs,
            learning_rate=learning_rate,
            clip=0.0,
            temperature=temperature,
            objective={"entropy": 1.0},
            tokens=tokens,
            granularity="model" if granularity == "task" else "layer",
            transform="clamp" if clamp else "none",
            start=initial,
            task_vectors=True,
            embeddings=trained,
            norms=trained,
            title="AdaMerging",
            moe_experts=moe_experts,
        ),
    )
