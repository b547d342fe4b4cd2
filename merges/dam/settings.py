"""How to train merge coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from common.errors import UserError
from merges.dam.coefficients import Granularity, Transform
from merges.dam.data import LossTokens
from merges.dam.objective import FORMULAS, KL_DIRECTIONS
from merges.dam.optimizers import OptimizerName
from merges.dam.teaching import TeacherEmbeddings, Unmerged

Merged = Literal["frozen", "scalar", "vector"]


@dataclass(frozen=True)
class Parameters:
    """How to train; `merges.dam.method.dam` explains each.

    Attributes are the method's parameters of the same names. `start` is the coefficients' initial
    value in place of 1/N, `title` the method's name in messages.
    """

    samples: int = 1729
    batch_size: int = 1
    epochs: int = 1
    learning_rate: float = 2e-3
    schedule: Literal["constant", "cosine"] = "constant"
    optimizer: OptimizerName = "adamw"
    mofo_fraction: float = 0.3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip: float = 1.0
    temperature: float = 2.0
    kl_direction: str = KL_DIRECTIONS[0]
    formulas: str = FORMULAS[0]
    objective: Mapping[str, float] = field(
        default_factory=lambda: {"kl": 1.0, "cosine": 0.01, "l1": 1e-6, "l2": 1e-6}
    )
    tokens: LossTokens = "all"
    last_position: bool = False
    teacher_embeddings: TeacherEmbeddings = "own"
    granularity: Granularity = "column"
    transform: Transform = "none"
    init: Literal["uniform", "random"] = "uniform"
    start: float | None = None
    coefficient_dtype: Literal["float32", "bfloat16"] = "float32"
    task_vectors: bool = False
    base_source: bool = False
    merge_lm_head: bool = True
    embeddings: Merged = "frozen"
    norms: Merged = "frozen"
    unmerged: Unmerged = "policy"
    tokens_per_forward: int = 0
    recompute_activations: bool = False
    title: str = "DAM"


def check(parameters: Parameters) -> None:
    """Refuse betas out of range and options that exclude each other."""
    if parameters.beta1 >= 1 or parameters.beta2 >= 1:
        raise UserError("DAM: beta1 and beta2 must be below 1; the usual are 0.9 and 0.999")
    if parameters.task_vectors and parameters.base_source:
        raise UserError(
            "DAM: task_vectors gives the base what the experts' coefficients leave to 1, "
            "base_source a coefficient of its own; choose one"
        )
    trained = parameters.embeddings != "frozen" or parameters.norms != "frozen"
    if trained and parameters.teacher_embeddings == "merged":
        raise UserError(
            "DAM: teachers cannot share embeddings and norms that are being merged; "
            "use teacher_embeddings=own, or embeddings=frozen and norms=frozen"
        )
