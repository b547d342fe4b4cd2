"""A model's forward pass over plain rows of tokens, called with no more than it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluation.backends.base import Pair

LOGITS = 1 << 28  # values of logits that a pass may return


class Forward:
    """Calls a model with those of the arguments that its forward pass names."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._names = frozenset(inspect.signature(model.forward).parameters)

    def takes(self, name: str) -> bool:
        """Say whether the model knows an argument."""
        return name in self._names

    def __call__(self, tokens: Tensor, keep: Tensor | int, **more: Any) -> tuple[Tensor, Any]:
        """Read tokens.

        Args:
            tokens: [rows, length], any integer type.
            keep: The columns whose predictions are returned, or how many of the last.
            more: What is given where the model takes it; nothing is cached unless asked for.

        Returns:
            Logits [rows, kept, vocabulary], and all that the model returned.
        """
        given = {"use_cache": False, "logits_to_keep": keep, **more}
        given = {name: value for name, value in given.items() if name in self._names}
        found = self.model(input_ids=tokens.to(self.model.device, torch.int64), **given)
        logits = found.logits
        count = keep if isinstance(keep, int) else len(keep)
        if logits.shape[1] != count:  # not every model knows which are wanted
            logits = logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]
        return logits, found


def chosen_logprobs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targets' log-probabilities and whether each is the likeliest token.

    Args:
        logits: [n, vocabulary], any type; what follows is computed in float32.
        targets: [n], int64, on the same device.

    Returns:
        [n] float64 and [n] bool, on the CPU.
    """
    logits = logits.float()
    logprobs = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
    return logprobs.double().cpu(), (logits.argmax(1) == targets).cpu()


def padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return sequences as [rows, length], int64, zeros behind their ends.

    A model that reads from left to right predicts the same with and without what follows.
    """
    tokens = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.as_tensor(sequence)
    return tokens


def _batches(pairs: Sequence[Pair], size: int, vocabulary: int) -> Iterator[list[int]]:
    """Divide continuations, the longest first, so that a batch's logits fit the memory."""
    order = sorted(range(len(pairs)), key=lambda n: -len(pairs[n].before) - len(pairs[n].after))
    batch: list[int] = []
    first = last = 0
    for n in order:
        start, stop = len(pairs[n].before), len(pairs[n].before) + len(pairs[n].after)
        wide = max(last, stop) - min(first, start)
        if batch and (len(batch) == size or (len(batch) + 1) * wide * vocabulary > LOGITS):
            yield batch
            batch = []
        first, last = (min(first, start), max(last, stop)) if batch else (start, stop)
        batch.append(n)
    if batch:
        yield batch


@torch.inference_mode()
def score(
    forward: Forward,
    pairs: Sequence[Pair],
    size: int,
    vocabulary: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[tuple[float, bool]]:
    """Score continuations, each in a separate row, with no mask and no cache.

    Args:
        forward: The model.
        pairs: The continuations.
        size: The most rows of a pass; with 1 nothing is padded.
        vocabulary: How many logits there are for a token.
        on_progress: Called with how many were scored since its last call.

    Returns:
        In the order of `pairs`: log-likelihood (summed in float64), whether it is the greedy one.
    """
    answers: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for batch in _batches(pairs, size, vocabulary):
        first = min(len(pairs[n].before) for n in batch) - 1
        sequences = [[*pairs[n].before, *pairs[n].after][:-1] for n in batch]
        tokens = padded(sequences)
        logits, _ = forward(tokens, tokens.shape[1] - first)
        for row, n in enumerate(batch):
            after = pairs[n].after
            start = len(pairs[n].before) - 1 - first
            targets = torch.tensor(after, device=logits.device)
            values, greedy = chosen_logprobs(logits[row, start : start + len(after)], targets)
            answers[n] = (float(values.sum()), bool(greedy.all()))
        on_progress(len(batch))
    return answers
