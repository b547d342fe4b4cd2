"""What backends are compared with: transformers' forward pass of one sequence at a time."""

from __future__ import annotations

import torch

WINDOW = 96  # of the tests' models


@torch.no_grad()
def plain_score(model, before: list[int], after: list[int]) -> tuple[float, bool]:
    """One sequence, cut on the left, no batch, no sharing, float64."""
    sequence = (before + after)[-(WINDOW + 1) :]
    logprobs = model(torch.tensor([sequence[:-1]])).logits[0].double().log_softmax(-1)
    logprobs = logprobs[-len(after) :]
    value = sum(float(row[token]) for row, token in zip(logprobs, after, strict=True))
    return value, logprobs.argmax(-1).tolist() == after
