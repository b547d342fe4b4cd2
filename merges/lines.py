"""The loss on the straight lines between parents and merges: is there a barrier on the way?

Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis", arXiv 1912.05671:
between W_1 and W_2 are the models (1 - t) W_1 + t W_2, and the barrier is how far the loss of one
of them rises above that of the ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.reading import Model
from common.errors import UserError
from common.progress import Progress
from merges.dam.data import make_batch
from merges.dam.sources import load_sources

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)  # t, at which losses are computed


@dataclass(frozen=True)
class End:
    """A model at the end of lines.

    Attributes:
        weights: By parameter name, float32.
        losses: Those that are known, by expert.
    """

    weights: Mapping[str, Tensor]
    losses: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> End:
        """Read a model's weights."""
        return cls({name: model.load(name).float() for name in model.names()})


class Losses:
    """Losses on the experts' answers, of one model after another in the same memory.

    Args:
        base: The experts' common ancestor, which also has tokenizer and configuration.
        experts: By name, with the base's parameters.
        calibration: Each expert's file of calibration rows.
        rows: How many of these are read, the first ones.

    Attributes:
        rows: How many were there, by expert.

    Raises:
        UserError: Rows are bad or have no answer, or the models' class is unknown; see
            `merges.dam.sources.load_sources`.
    """

    def __init__(
        self,
        base: Model,
        experts: Mapping[str, Model],
        calibration: Mapping[str, Path],
        rows: int,
    ) -> None:
        sources = load_sources(base, experts, calibration)
        self._weights = {n: w.float().clone() for n, w in sources.whole_base().items()}
        self._decoder = sources.decoder(self._weights)
        self._head = sources.output_head(self._weights)
        self._batches, self._labels, self.rows = {}, {}, {}
        for data in sources.calibrations:
            count = min(rows, len(data))
            batch = make_batch([data], [range(count)], "answer")
            if not len(batch.loss):
                raise UserError(
                    f"{data.path}: none of the first {count} rows has an answer, on which the loss "
                    "would be computed; give rows with answers"
                )
            self._batches[data.expert] = batch
            self._labels[data.expert] = data.ids[batch.sources[0] + 1]
            self.rows[data.expert] = count

    @torch.inference_mode()
    def _now(self, expert: str) -> float:
        batch, labels = self._batches[expert], self._labels[expert]
        hidden = self._decoder.hidden_states(batch.ids, batch.packing)[batch.loss]
        chances = torch.log_softmax(self._head.logits(hidden), -1).gather(1, labels[:, None])
        return -float(chances.sum(dtype=torch.float64)) / len(labels)

    def between(self, one: End, two: End, place: float, experts: Sequence[str]) -> dict[str, float]:
        """Return the losses of (1 - place) W_1 + place W_2, nats a token of the answer.

        Args:
            one: W_1.
            two: W_2.
            place: From 0 to 1.
            experts: On whose rows.
        """
        for name, weight in self._weights.items():
            torch.lerp(one.weights[name], two.weights[name], place, out=weight)
        return {expert: self._now(expert) for expert in experts}

    def line(self, one: End, two: End, experts: Sequence[str]) -> dict[str, list[float]]:
        """Return the losses at `PLACES` between two models, by expert; ends are computed once."""
        for end in (one, two):
            if unknown := [expert for expert in experts if expert not in end.losses]:
                end.losses.update(self.between(end, end, 0.0, unknown))
        inner = [self.between(one, two, place, experts) for place in PLACES[1:-1]]
        return {e: [one.losses[e], *(at[e] for at in inner), two.losses[e]] for e in experts}


def lines(
    base: Model,
    experts: Mapping[str, Model],
    merges: Mapping[str, Model],
    calibration: Mapping[str, Path],
    rows: int,
) -> dict[str, Any]:
    """Compute the losses from the base to every merge, and on from it to each expert.

    Args:
        base: As for `Losses`, as are experts, calibration and rows.
        experts: By name.
        merges: By name, with the base's parameters.
        calibration: By expert.
        rows: Of each expert.

    Returns:
        `rows`, by expert; `places`; `base`, by merge and expert the losses at these places from the
        base to the merge, on the expert's rows; `experts`, likewise from the merge to the expert. A
        merge with a loss that is not finite is left out.

    Raises:
        UserError: As `Losses`.
    """
    losses = Losses(base, experts, calibration, rows)
    origin, ends = End.of(base), {name: End.of(model) for name, model in experts.items()}
    found: dict[str, Any] = {"rows": losses.rows, "places": list(PLACES), "base": {}, "experts": {}}
    progress = Progress(len(merges), "lines to merges")
    for name, model in merges.items():
        merge = End.of(model)
        to = losses.line(origin, merge, list(ends))
        on = {expert: losses.line(merge, end, [expert])[expert] for expert, end in ends.items()}
        if all(math.isfinite(loss) for line in (*to.values(), *on.values()) for loss in line):
            found["base"][name], found["experts"][name] = to, on
        progress.step(note=name)
    return found
