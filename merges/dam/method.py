"""Differentiable Adaptive Merging, as the registry knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from merges.parameters import (
    Flag,
    Fraction,
    LearningRate,
    NonNegative,
    Positive,
    PositiveCount,
)
from merges.registry import method

if TYPE_CHECKING:
    from merges.requests import WholeModelRequest, WholeModelResult

OBJECTIVE = {"kl": 1.0, "cosine": 0.01, "l1": 1e-6, "l2": 1e-6}


@method(title="DAM", paper="arXiv:2410.08371", needs={"base", "data"}, whole_model=True)
def dam(
    request: WholeModelRequest,
    *,
    samples: PositiveCount = 1729,
    batch_size: PositiveCount = 1,
    epochs: PositiveCount = 1,
    learning_rate: LearningRate = 2e-3,
    schedule: Literal["constant", "cosine"] = "constant",
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    weight_decay: NonNegative = 0.0,
    clip: NonNegative = 1.0,
    temperature: Positive = 2.0,
    kl_direction: Literal["teacher||merged", "merged||teacher"] = "teacher||merged",
    objective: dict[
        Literal["kl", "mse", "entropy", "cosine", "l1", "l2", "overlap"], float
    ] = OBJECTIVE,
    tokens: Literal["all", "answer"] = "all",
    merge_lm_head: Flag = True,
) -> WholeModelResult:
    """Learn a coefficient per model and input column: W = sum_i W_i diag(c_i).

    The coefficients of all linear layers start at 1/N and are trained, in fp32, so that the
    merged model predicts on each expert's data what that expert predicts:
    sum_i mean over tokens of T^2 KL(expert_i || merged), plus penalties on the coefficients.
    A bias is merged with one scalar per model. Embeddings and norms are not trained: they are
    the base's or the experts' average, as the request says.

    Args:
        request: Base, experts, calibration data, and perhaps cached teacher signals.
        samples: Rows drawn from each expert's data; one of each makes a training row.
        batch_size: Training rows per optimiser step.
        epochs: Passes over the drawn rows.
        learning_rate: Of AdamW.
        schedule: ``constant``, or ``cosine`` for half a cosine down to 0.
        beta1: Decay of AdamW's mean of gradients.
        beta2: Decay of AdamW's mean of squared gradients.
        weight_decay: Of AdamW, towards coefficients of 0.
        clip: Largest norm of the gradient over all coefficients; 0 for no limit.
        temperature: T of ``kl`` and ``entropy``.
        kl_direction: ``teacher||merged`` is the authors' code, ``merged||teacher`` the paper's
            equation.
        objective: Weight of each term. ``kl``, ``mse`` and ``entropy`` see the outputs; ``cosine``
            (between models' coefficients), ``l1``, ``l2`` and ``overlap`` the coefficients.
        tokens: Whether every position that predicts a token of its sample counts in the loss, or
            only those that predict the answer.
        merge_lm_head: Whether an untied output head is a linear layer like the others; if not it
            is treated as embeddings and norms are.

    Returns:
        The merged model with its coefficients, the log of every term and the counted cost.

    Raises:
        UserError: Bad data, parameters or teacher cache, or an objective that is not finite.

    Source:
        Gauthier-Caron et al., arXiv:2410.08371, section 3; defaults are the paper's.
    """
    # The training imports transformers, which the registry must not.
    from merges.dam.training import Parameters, train

    return train(
        request,
        Parameters(
            samples=samples,
            batch_size=batch_size,
            epochs=epochs,
            learning_rate=learning_rate,
            schedule=schedule,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            clip=clip,
            temperature=temperature,
            kl_direction=kl_direction,
            objective=objective,
            tokens=tokens,
            merge_lm_head=merge_lm_head,
        ),
    )
