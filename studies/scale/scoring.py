"""Scores in memory: exact answers, answer tokens and cross-entropy of one model after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bottle.training import Text

_PAD = 0


@dataclass(frozen=True)
class Score:
    """What a model scores on a task.

    Attributes:
        exact: Share of items of which every answer token is the likeliest one. Greedy decoding
            writes the answer in just these cases, so that it is the exact match without decoding.
        tokens: Share of answer tokens that are the likeliest, given the right ones before.
        loss: Cross-entropy, nats a token of the answer.
        items: Number of items.
    """

    exact: float
    tokens: float
    loss: float
    items: int


@dataclass(frozen=True)
class _Batch:
    """A task's items in one batch.

    Attributes:
        ids: [items, length], padded at the right; causal attention makes a mask unnecessary.
        rows: Item of each answer token [tokens].
        places: Position that predicts it [tokens].
        labels: The token [tokens].
    """

    ids: Tensor
    rows: Tensor
    places: Tensor
    labels: Tensor

    @classmethod
    def of(cls, texts: Sequence[Text]) -> _Batch:
        ids = torch.full((len(texts), max(len(text.ids) for text in texts)), _PAD)
        rows, places, labels = [], [], []
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            for place in range(text.prompt_length, len(text.ids)):
                rows.append(row)
                places.append(place - 1)
                labels.append(text.ids[place])
        return cls(ids, torch.tensor(rows), torch.tensor(places), torch.tensor(labels))


class Scorer:
    """Scores models of one class on fixed items, one model after another in the same memory.

    Args:
        model: A model whose weights are overwritten; its class has `model` and `lm_head`.
        items: Items by task.
    """

    def __init__(self, model: PreTrainedModel, items: Mapping[str, Sequence[Text]]) -> None:
        self._model = model
        self._batches = {task: _Batch.of(texts) for task, texts in items.items()}

    def use(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a model's weights, by parameter name."""
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(tensors[name])

    @torch.inference_mode()
    def hidden(self, task: str) -> tuple[Tensor, Tensor]:
        """Return final hidden states [tokens, hidden] where a task's answers are predicted.

        Returns:
            The states, and the item [tokens] of each.
        """
        batch = self._batches[task]
        states = self._model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        return states[batch.rows, batch.places], batch.rows

    @torch.inference_mode()
    def scores(
        self, tensors: Mapping[str, Tensor], tasks: Iterable[str] | None = None
    ) -> dict[str, Score]:
        """Score a model.

        Args:
            tensors: Its weights by parameter name.
            tasks: Names of the tasks; None for all.
        """
        self.use(tensors)
        found = {}
        for task in self._batches if tasks is None else tasks:
            states, rows = self.hidden(task)
            batch = self._batches[task]
            logits = self._model.lm_head(states)
            right = logits.argmax(-1) == batch.labels
            chances = torch.log_softmax(logits, -1).gather(1, batch.labels[:, None])
            count = len(batch.ids)
            wrong = torch.zeros(count, dtype=torch.int64).index_add_(0, rows, (~right).long())
            found[task] = Score(
                exact=float((wrong == 0).double().mean()),
                tokens=float(right.double().mean()),
                loss=-float(chances.double().mean()),
                items=count,
            )
        return found
