"""Differentiable Adaptive Merging, as the registry knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from merges.dam.settings import Parameters
from merges.engine import registry
from merges.engine.parameters import (
    Count,
    Density,
    Flag,
    Fraction,
    LearningRate,
    NonNegative,
    Positive,
    PositiveCount,
)
from merges.engine.registry import method

if TYPE_CHECKING:
    from merges.engine.requests import WholeModelRequest, WholeModelResult

# What a parameter that is left out is without a preset: the ablation's settings, which are the
# paper's with the authors' formulas.
DEFAULTS = {
    "batch_size": 1,
    "learning_rate": 2e-3,
    "schedule": "constant",
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "temperature": 2.0,
    "kl_direction": "teacher||merged",
    "formulas": "code",
    "objective": {"kl": 1.0, "cosine": 0.01, "l1": 1e-6, "l2": 1e-6},
    "tokens": "all",
    "last_position": False,
    "transform": "none",
    "coefficient_dtype": "float32",
    "unmerged": "policy",
    "task_vectors": False,
}
PRESETS = {
    # The text: its equations, its learning rate, no function on the coefficients.
    "paper": {"kl_direction": "merged||teacher", "formulas": "paper", "last_position": True},
    # What the released code does when it runs, its training script's defaults included.
    "authors-code": {
        "learning_rate": 1e-3,
        "optimizer": "mofo",
        "weight_decay": 0.01,
        "last_position": True,
        "transform": "tanh",
        "coefficient_dtype": "bfloat16",
        "unmerged": "tanh_mean",
    },
    # What scored best on the bottle's dev items: the form in each of three worlds (studies/dam),
    # the rate of .05, .1, .2 and .4 in two others (docs/dam.md).
    "best": {
        "batch_size": 8,
        "learning_rate": 0.2,
        "schedule": "cosine",
        "temperature": 1.0,
        "tokens": "answer",
        "task_vectors": True,
    },
}


def training_parameters(
    *, start: float | None = None, title: str = "DAM", preset: str | None = None, **given: Any
) -> Parameters:
    """Complete some parameters of `dam`, which are written in its signature alone.

    Args:
        start: See `merges.dam.settings.Parameters`.
        title: See there.
        preset: As for `dam`.
        given: Others of its parameters; None for one that is left out.
    """
    values = registry.validate("dam", {"preset": preset})
    del values["preset"]
    if unknown := set(given) - set(values):
        raise TypeError(f"DAM has no parameter {sorted(unknown)[0]!r}")
    values |= {name: value for name, value in given.items() if value is not None}
    return Parameters(**values, start=start, title=title)


@method(title="DAM", paper="arXiv:2410.08371", needs={"base", "data"}, whole_model=True)
def dam(
    request: WholeModelRequest,
    *,
    preset: Literal["paper", "authors-code", "best"] | None = None,
    samples: PositiveCount = 1729,
    batch_size: PositiveCount | None = None,
    epochs: PositiveCount = 1,
    learning_rate: LearningRate | None = None,
    schedule: Literal["constant", "cosine"] | None = None,
    optimizer: Literal["adamw", "mofo"] | None = None,
    mofo_fraction: Density = 0.3,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    weight_decay: NonNegative | None = None,
    clip: NonNegative = 1.0,
    temperature: Positive | None = None,
    kl_direction: Literal["teacher||merged", "merged||teacher"] | None = None,
    formulas: Literal["code", "paper"] | None = None,
    objective: dict[Literal["kl", "js", "mse", "entropy", "cosine", "l1", "l2", "overlap"], float]
    | None = None,
    tokens: Literal["all", "answer"] | None = None,
    last_position: Flag | None = None,
    teacher_embeddings: Literal["own", "merged"] = "own",
    granularity: Literal["column", "row", "head", "layer", "model", "common_column"] = "column",
    transform: Literal["none", "tanh", "sigmoid", "relu"] | None = None,
    init: Literal["uniform", "random"] = "uniform",
    coefficient_dtype: Literal["float32", "bfloat16"] | None = None,
    task_vectors: Flag | None = None,
    base_source: Flag = False,
    merge_lm_head: Flag = True,
    embeddings: Literal["frozen", "scalar", "vector"] = "frozen",
    norms: Literal["frozen", "scalar", "vector"] = "frozen",
    unmerged: Literal["policy", "tanh_mean"] | None = None,
    moe_experts: Literal["mean", "base"] = "mean",
    tokens_per_forward: Count = 0,
    recompute_activations: Flag = False,
) -> WholeModelResult:
    """Learn a coefficient per model and input column: W = sum_i W_i diag(c_i).

    The coefficients of all linear layers start at 1/N and are trained so that the merged model
    predicts on each expert's data what that expert predicts: sum_i mean over tokens of
    T^2 KL(expert_i || merged), plus penalties on the coefficients. A bias is merged with one
    scalar per model. Embeddings and norms are not trained unless asked for: they are the base's
    or the experts' average, as the request says. Where the signature has None it is the preset's
    value, and without a preset that of DEFAULTS.

    Args:
        request: Base, experts, calibration data, and perhaps cached teacher signals.
        preset: Sets what is left out below: ``paper`` as the text (its KL direction and formulas),
            ``authors-code`` as the released code runs (tanh, bf16 coefficients, MoFO, weight
            decay 0.01, learning rate 1e-3, embeddings and norms as ``tanh_mean``), ``best`` what
            did best on the bottle's dev items (task vectors, T = 1, answer tokens, batches of 8,
            learning rate 0.2 with a cosine schedule).
        samples: Rows drawn from each expert's data; one of each makes a training row.
        batch_size: Training rows per optimiser step.
        epochs: Passes over the drawn rows.
        learning_rate: Of the optimiser.
        schedule: ``constant``, or ``cosine`` for half a cosine down to 0.
        optimizer: ``adamw``, or ``mofo`` (arXiv:2407.20999): AdamW that updates, of each model's
            coefficients of a layer, those with the largest momentum only.
        mofo_fraction: Share of the coefficients that ``mofo`` updates.
        beta1: Decay of the optimiser's mean of gradients.
        beta2: Decay of the optimiser's mean of squared gradients.
        weight_decay: Towards trained values of 0.
        clip: Largest norm of the gradient over all coefficients; 0 for no limit.
        temperature: T of ``kl``, ``js`` and ``entropy``.
        kl_direction: ``teacher||merged`` is the authors' code, ``merged||teacher`` the paper's
            equation.
        formulas: Where code and paper differ otherwise. ``code``: mse is a mean over the
            vocabulary, summed over datasets; cosine a mean over pairs of models; l2 a norm.
            ``paper``: mse is a sum over the vocabulary, mean over datasets; cosine a sum over
            pairs; l2 a squared norm.
        objective: Weight of each term. ``kl``, ``js`` (Jensen-Shannon), ``mse`` and ``entropy``
            see the outputs; ``cosine`` (between models' coefficients), ``l1``, ``l2`` and
            ``overlap`` the trained values.
        tokens: Whether every position that predicts a token of its sample counts in the loss, or
            only those that predict the answer.
        last_position: Whether each sample's last position counts too, which predicts what
            follows; the authors' code counts it.
        teacher_embeddings: Whether teachers have their ``own`` unmerged parameters (embeddings
            and norms), as the experts do, or the ``merged`` model's; the latter are computed at
            every step, because cached signals are the experts' own.
        granularity: What has a coefficient per model: each input ``column`` or output ``row`` of
            a linear layer, each attention ``head`` (and each layer without heads), each linear
            ``layer``, or the ``model``; ``common_column`` gives a column one coefficient
            for all models: it rescales their average.
        transform: Function of the trained values that gives the coefficients.
        init: ``uniform``, 1/N (1/(N + 1) with ``base_source``), or ``random``, the
            softmax over the models of uniform draws. With ``sigmoid`` it is the coefficients that
            start so, else the trained values.
        coefficient_dtype: ``bfloat16`` keeps the trained values and the optimiser's state in
            bf16, as the authors' code does: updates below half a unit in the last place are lost.
        task_vectors: Merge W_0 + sum_i (W_i - W_0) diag(c_i), with W_0 the base's weight.
        base_source: Let the base take part as one more model, without data; its
            coefficients come before the experts'.
        merge_lm_head: Whether an untied output head is a linear layer like the others; if not it
            is treated as embeddings and norms are. A tied one follows the embedding.
        embeddings: Whether the embedding is merged, with a coefficient per model (``scalar``) or
            per model and feature (``vector``).
        norms: The same for the gains of the norms.
        unmerged: What is not merged is what the request's ``policy`` for embeddings and norms
            says, or ``tanh_mean``: tanh(1/N) times the experts' sum, as in the authors' code.
        moe_experts: In a mixture of experts, what its experts' and routers' weights become: the
            ``mean`` of the merged models' or the ``base``'s. They have no coefficients, because a
            token sees few of them; all linear layers outside them have.
        tokens_per_forward: Steps with more tokens than this are computed sample by sample, or as
            many samples together as fit, and their gradients added: the same result in less
            memory. 0 for no limit.
        recompute_activations: Whether activations and merged weights are computed again in the
            backward instead of kept: the same result in less memory and more time. A merged weight
            is built once in the forward for all datasets. A layer that few tokens pass finds its
            gradients without it (`merges.dam.layers.backward_by_model`), others keep it. At 7B x 3
            and 900 tokens a step, 55 GB and 254 ms are counted, recomputed 49 GB and 368 ms
            (`benchmarks/dam.py --budget`).

    Returns:
        The merged model with its coefficients, the log of every term and the counted cost.

    Raises:
        UserError: Bad data, parameters or teacher cache, or an objective that is not finite.

    Source:
        Gauthier-Caron et al., arXiv:2410.08371, section 3, and the authors' code
        (arcee-ai/DAM).
    """
    given = {name: value for name, value in locals().items() if name != "request"}
    # The training imports transformers, which the registry must not.
    from merges.dam.training import train

    return train(request, training_parameters(**given))
