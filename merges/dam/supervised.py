"""Training of merge coefficients with other objectives than DAM's, such as the data's own answers.

`merges.dam.training.Trainer` takes an objective, a signal and an optimiser; what is here takes
their places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.progress import Progress
from merges.dam.objective import Objective
from merges.dam.training import Trainer

if TYPE_CHECKING:
    from merges.dam.data import Batch
    from merges.dam.settings import Parameters
    from merges.dam.sources import Sources
    from merges.engine.requests import WholeModelRequest, WholeModelResult

Term = Callable[[Tensor, Any], tuple[Tensor, Tensor]]
Penalty = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Composed(Objective):
    """A weighted sum of any terms.

    Attributes:
        outputs: Terms of logits by name, functions as `Objective.output_term` returns them.
        penalised: Terms of the trained values by name, functions from the blocks that the
            coefficients' `assign` returns to a scalar.
    """

    outputs: Mapping[str, Term] = field(default_factory=dict)
    penalised: Mapping[str, Penalty] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check nothing: a method's own file names the terms."""

    @property
    def output_terms(self) -> list[str]:
        """Names of the terms of logits."""
        return list(self.outputs)

    def output_term(self, name: str) -> Term:
        """Return a term of logits."""
        return self.outputs[name]

    def penalties(self, columns: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compute the terms of the trained values."""
        return {name: penalty(columns) for name, penalty in self.penalised.items()}


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute -log p(label), summed over tokens, and its gradient p - [label].

    Args:
        logits: (tokens, vocabulary).
        labels: (tokens, 1), int64.

    Returns:
        The sum and its gradient with respect to the logits.
    """
    log_p = torch.log_softmax(logits, -1)
    value = -log_p.gather(-1, labels).sum()
    gradient = log_p.exp_()
    return value, gradient.scatter_add_(-1, labels, torch.full_like(labels, -1, dtype=log_p.dtype))


class _Given:
    """An output head that has its logits already."""

    weight = torch.empty(0)  # nothing asks for its device

    def product(self, hidden: Tensor) -> Tensor:
        return hidden

    def finished(self, product: Tensor) -> Tensor:
        return product


class Labels:
    """The tokens that follow the loss positions, in place of a teacher's states.

    Args:
        sources: Whose data it is.
    """

    def __init__(self, sources: Sources) -> None:
        self._data, self.computed_flops = sources.calibrations, 0
        self.heads = [_Given() for _ in self._data]

    def states(self, index: int, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Return the labels (loss tokens, 1) of one dataset in a batch."""
        ids = self._data[index].ids
        return ids[batch.sources[index] + 1].unsqueeze(1).to(batch.ids.device)


class LabelledTrainer(Trainer):
    """A training of merge coefficients on the data's own next tokens.

    Args:
        request: As for `Trainer`.
        parameters: As there; the objective in them is not looked at.
        sources: As there.
        penalised: Further terms by name, each with its weight.
    """

    def __init__(
        self,
        request: WholeModelRequest,
        parameters: Parameters,
        sources: Sources,
        penalised: Mapping[str, tuple[float, Penalty]] | None = None,
    ) -> None:
        super().__init__(request, parameters.replace(objective={"entropy": 1.0}), sources)
        more = penalised or {}
        self.objective = Composed(
            weights={"cross_entropy": 1.0, **{name: weight for name, (weight, _) in more.items()}},
            outputs={"cross_entropy": cross_entropy},
            penalised={name: penalty for name, (_, penalty) in more.items()},
        )
        self.teachers = Labels(sources)  # type: ignore[assignment]  # it has what a step asks for

    def _count(self, batch: Batch) -> None:
        super()._count(batch)
        # It counted a product with a teacher's head, which labels do without.
        head = self.sources.base[self.sources.head].numel()
        self.counted["flops"] -= 2 * head * len(batch.loss)


def run(trainer: Trainer, request: WholeModelRequest) -> None:
    """Do all steps of a training, or those that are left of one that is resumed."""
    title = trainer.parameters.title
    progress = Progress(trainer.steps - len(trainer.log), f"{title}: training step")
    while len(trainer.log) < trainer.steps:
        progress.step(note=f"loss {trainer.step():.4f}")
    if request.resuming is not None:
        request.resuming.path.unlink(missing_ok=True)


def merged(trainer: Trainer, request: WholeModelRequest) -> WholeModelResult:
    """Do all steps of a training and return what it merges to."""
    run(trainer, request)
    return trainer.result()
