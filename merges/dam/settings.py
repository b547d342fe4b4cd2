"""How to train merge coefficients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from common.errors import UserError


class Parameters(SimpleNamespace):
    """How to train: the parameters of `merges.dam.method.dam`, which explains each, as attributes.

    `merges.dam.method.training_parameters` makes them. Two more are ``start``, the coefficients'
    initial value in place of 1/N (None for that), and ``title``, the method's name in messages.
    """

    def replace(self, **changes: Any) -> Parameters:
        """Return the same parameters with some changed."""
        return Parameters(**{**vars(self), **changes})


def check(parameters: Parameters) -> None:
    """Refuse betas out of range and options that exclude each other."""
    if parameters.beta1 >= 1 or parameters.beta2 >= 1:
        raise UserError("DAM: beta1 and beta2 must be below 1; the usual are 0.9 and 0.999")
    if parameters.task_vectors and parameters.base_source:
        raise UserError(
            "DAM: task_vectors gives the base what the experts' coefficients leave to 1, "
            "base_source a coefficient for itself; choose one"
        )
    trained = parameters.embeddings != "frozen" or parameters.norms != "frozen"
    if trained and parameters.teacher_embeddings == "merged":
        raise UserError(
            "DAM: teachers cannot share embeddings and norms that are being merged; "
            "use teacher_embeddings=own, or embeddings=frozen and norms=frozen"
        )
