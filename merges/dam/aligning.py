"""Expert Merging's training: coefficients that bring the merged model's states to the experts'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merges.dam.objective import kl_teacher_merged
from merges.dam.supervised import Composed, Term
from merges.dam.training import Trainer

if TYPE_CHECKING:
    from merges.dam.data import Batch
    from merges.dam.settings import Parameters
    from merges.dam.sources import Sources
    from merges.engine.requests import WholeModelRequest

_FIRST, _FLOOR = 50, 0.1  # steps of the first cycle; the least rate, as a share of the largest
_SAME = 1e-6  # coefficients as near as this are the same


def restarted(rate: float, step: int) -> float:
    """Return a step's learning rate: half a cosine to a tenth, again and again, twice as long.

    Args:
        rate: That of the first step.
        step: The step, from 0.
    """
    length = _FIRST
    while step >= length:
        step, length = step - length, 2 * length
    return rate * (_FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * step / length)) / 2)


class _Watched:
    """Keeps what one function of an object returned last, by its first argument."""

    def __init__(self, watched: Any, name: str) -> None:
        self._watched, self._name = watched, name
        self.seen: dict[int | None, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._watched, name)
        return self._keep if name == self._name else found

    def _keep(self, first: Any, *others: Any) -> Any:
        key = first if isinstance(first, int) else None
        self.seen[key] = getattr(self._watched, self._name)(first, *others)
        return self.seen[key]


class AligningTrainer(Trainer):
    """A training of sigmoid coefficients towards logits, final hidden states, and their start.

    Args:
        request: As for `Trainer`.
        parameters: As there; ``start`` is the coefficients' initial value, ``temperature`` that of
            the logits, and the objective is not looked at.
        sources: As there.
        hidden: Weight of the hidden states' mean squared difference.
        stay: Weight of the coefficients' mean distance from their start.
    """

    def __init__(
        self,
        request: WholeModelRequest,
        parameters: Parameters,
        sources: Sources,
        hidden: float,
        stay: float,
    ) -> None:
        super().__init__(request, parameters.replace(objective={"kl": 1.0}), sources)
        start = parameters.start

        def distance(blocks: Sequence[Tensor]) -> Tensor:
            moved = torch.cat([(block.sigmoid() - start).view(-1) for block in blocks])
            # At the start the slope is 0, and not the sign of a rounding error.
            return torch.where(moved.abs() < _SAME, 0.0, moved).abs().mean()

        def alike(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
            return kl_teacher_merged(logits, teacher, parameters.temperature)

        outputs: dict[str, Term] = {"kl": alike}
        self.objective = Composed(
            weights={"kl": 1.0, "distance": stay},
            outputs=outputs,
            penalised={"distance": distance} if stay else {},
        )
        self._hidden = hidden
        if hidden:
            self.decoder = _Watched(self.decoder, "hidden_states")  # type: ignore[assignment]  # it has all of a decoder
            self.teachers = _Watched(self.teachers, "states")  # type: ignore[assignment]  # likewise

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0)."""
        return restarted(self.parameters.learning_rate, step)

    def loss(
        self,
        batch: Batch,
        rows: Sequence[Sequence[int]],
        counts: Sequence[int] | None = None,
        penalties: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the objective on a batch; arguments and results as for `Trainer.loss`."""
        total, terms = super().loss(batch, rows, counts, penalties)
        if self._hidden:
            ours = self.decoder.seen[None].index_select(0, batch.loss)  # type: ignore[attr-defined]
            value = total.new_zeros(())
            for index, (start, stop) in enumerate(batch.segments):
                count = stop - start if counts is None else counts[index]
                gap = ours[start:stop] - self.teachers.seen[index]  # type: ignore[union-attr]
                value = value + gap.square().sum() / (count * gap.shape[1])
            total = total + self._hidden * value
            terms["hidden"] = value.detach()
        return total, terms
