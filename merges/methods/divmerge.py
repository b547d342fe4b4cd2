"""DivMerge: coefficients with which the merged model diverges least from the experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from merges.dam.method import training_parameters
from merges.engine.parameters import LearningRate, Positive, PositiveCount, Scale
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import WholeModelRequest, WholeModelResult


@method(title="DivMerge", paper="arXiv:2509.02108", needs={"base", "data"}, whole_model=True)
def divmerge(
    request: WholeModelRequest,
    *,
    granularity: Literal["task", "layer"] = "layer",
    initial: Scale = 0.3,
    samples: PositiveCount = 1000,
    batch_size: PositiveCount = 4,
    epochs: PositiveCount = 1,
    learning_rate: LearningRate = 0.01,
    temperature: Positive = 1.0,
    tokens: Literal["all", "answer"] = "all",
) -> WholeModelResult:
    """Learn a coefficient per task vector: W = W_0 + sum_i c_i (W_i - W_0).

    They are trained with Adam so that sum_i mean over tokens of JS(merged, expert_i) on expert i's
    rows is small, JS(p, q) = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, in nats. No label
    is looked at, only the experts' answers to the rows. Embeddings and norms are the base's or the
    experts' average, as the request says.

    Args:
        request: Base, experts and calibration data, and perhaps cached teacher signals.
        granularity: ``task``, one coefficient per expert, or ``layer``, one per expert and linear
            layer.
        initial: All coefficients at first.
        samples: Rows drawn from each expert's data.
        batch_size: Rows per expert in an optimiser step.
        epochs: Passes over the drawn rows.
        learning_rate: Of Adam.
        temperature: T that divides the logits; the divergence is multiplied by its square.
        tokens: Whether every position that predicts a token of its row counts, or only those that
            predict the answer.

    Returns:
        The merged model with its coefficients, the log of the divergence and the counted cost.

    Raises:
        UserError: Bad data or parameters, or a divergence that is not finite.

    Source:
        DivMerge: a divergence-based model merging method for multi-tasking, 2025, with the
        Jensen-Shannon divergence. Its optimiser, start and number of steps could not be
        established: the numbers here are AdaMerging's or were found on the bottle.
    """
    # The training imports transformers, which the registry must not.
    from merges.dam.training import train

    return train(
        request,
        training_parameters(
            samples=samples,
            batch_size=batch_size,
            epochs=epochs,
            learning_rate=learning_rate,
            clip=0.0,
            temperature=temperature,
            objective={"js": 1.0},
            tokens=tokens,
            granularity="model" if granularity == "task" else "layer",
            start=initial,
            task_vectors=True,
            title="DivMerge",
        ),
    )
