"""Expert Merging's training: coefficients that bring the merged model's states to the experts'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merges.dam.head import Segment
from merges.dam.objective import kl_teacher_merged
from merges.dam.supervised import Composed, Term
from merges.dam.training import Trainer

if TYPE_CHECKING:
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
            weights={"kl": 1.0, "distance": stay, "hidden": hidden},
            outputs=outputs,
            penalised={"distance": distance} if stay else {},
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0)."""
        return restarted(self.parameters.learning_rate, step)

    def state_terms(self, hidden: Tensor, segments: Sequence[Segment]) -> dict[str, Tensor]:
        """Compute the mean squared difference of final hidden states, summed over datasets."""
        if not self.objective.weights["hidden"]:
            return {}
        value = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for segment in segments:
            assert segment.hidden is not None  # this objective has teachers
            gap = hidden[segment.start : segment.stop] - segment.hidden
            count = segment.count or segment.stop - segment.start
            value = value + gap.square().sum() / (count * gap.shape[1])
        return {"hidden": value}
