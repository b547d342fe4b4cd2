"""The output head and the output loss in one, so that a batch's logits never exist at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merges.dam.objective import Objective
from merges.dam.products import linear, times, widened

# Tokens whose logits exist at a time: few enough that those of merged model and teacher take 300 MB
# of bfloat16 at a vocabulary of 262k, many enough that a matrix product is at full speed and a step
# of a tiny model is one product per dataset.
CHUNK = 256
# Logits that are widened at a time: 4 MB of float32 stay in a cache while a term goes over them,
# where a chunk's would take 268 MB a copy and be cleared by the system for every term.
WIDE = 1 << 20


@dataclass(frozen=True)
class OutputHead:
    """What maps final hidden states to logits.

    Attributes:
        weight: (vocabulary, hidden).
        bias: (vocabulary,), or None.
        finish: What the model's class makes of the product, such as a scale or a cap, from
            (tokens, vocabulary) to the logits of that shape; None for nothing.
    """

    weight: Tensor
    bias: Tensor | None = None
    finish: Callable[[Tensor], Tensor] | None = None

    def product(self, hidden: Tensor) -> Tensor:
        """Return what `finish` makes logits of, for hidden states (tokens, hidden)."""
        return linear(hidden, self.weight, self.bias)

    def finished(self, product: Tensor) -> Tensor:
        """Return the logits (tokens, vocabulary) of a product, in float32 or wider."""
        product = product.to(torch.promote_types(product.dtype, torch.float32))
        return product if self.finish is None else self.finish(product)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (tokens, vocabulary) in float32 or wider."""
        return self.finished(self.product(hidden))


@dataclass(frozen=True)
class Segment:
    """The loss tokens of one dataset in a step.

    Attributes:
        start: Where they begin among the step's loss tokens.
        stop: Where they end.
        hidden: The teacher's final hidden states at these tokens (tokens, hidden), or None where
            the objective has no need of a teacher.
        head: The teacher's output head, or None.
        count: The dataset's loss tokens in the step, where these are a part of them; None
            where these are all.
    """

    start: int
    stop: int
    hidden: Tensor | None = None
    head: OutputHead | None = None
    count: int | None = None


def _terms(
    head: OutputHead,
    product: Tensor,
    teacher: Tensor | None,
    objective: Objective,
    tokens: int,
    values: Tensor,
) -> Tensor:
    """Add the output terms of some tokens to `values`; return the loss's gradient.

    Args:
        head: The merged model's.
        product: What it makes of hidden states (tokens, hidden), before it is finished.
        teacher: The teacher's logits of the same shape, or None.
        objective: The terms and their weights.
        tokens: The number of tokens over which the terms are means.
        values: The unweighted terms so far (output terms,).

    Returns:
        The gradient with respect to the product, float32 or wider.
    """
    inner = logits = OutputHead(head.weight).finished(product)
    if head.finish is not None:
        with torch.enable_grad():
            logits = head.finish(inner.requires_grad_())
    gradient: Tensor | None = None
    for index, name in enumerate(objective.output_terms):
        value, part = objective.output_term(name)(logits.detach(), teacher)
        values[index] += value / tokens
        part.mul_(objective.weights[name] / tokens)
        gradient = part if gradient is None else gradient.add_(part)
    assert gradient is not None  # an objective has an output term
    if head.finish is not None:
        (gradient,) = torch.autograd.grad(logits, inner, gradient)
    return gradient


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right to total (rows, columns) by blocks of rows, whose products stay in cache."""
    rows, right = max(WIDE // total.shape[1], 1), widened(right)
    for own, block in zip(left.split(rows, 1), total.split(rows), strict=True):
        block += widened(own).T @ right


class OutputLoss(torch.autograd.Function):
    """Weighted output terms of the merged model as a function of hidden states and output matrix.

    The gradients are formed together with the logits, chunk by chunk, and only scaled in the
    backward: logits, the largest tensors of a step, never exist for all of a batch.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        finish: Callable[[Tensor], Tensor] | None,
        segments: Sequence[Segment],
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss and, where asked for, its gradients.

        Args:
            hidden: The merged model's final hidden states (loss tokens, hidden).
            weight: The merged output matrix (vocabulary, hidden).
            bias: As for `OutputHead`, as is finish.
            segments: The datasets' shares of the loss tokens.
            objective: The terms and their weights.

        Returns:
            The weighted sum, and the unweighted terms (output terms,) without gradient: each the
            mean over a dataset's tokens, summed over the datasets.
        """
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        values = hidden.new_zeros(len(objective.output_terms), dtype=dtype)
        head = OutputHead(weight, bias, finish)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=dtype) if ctx.needs_input_grad[1] else None
        bias_gradient = None
        if bias is not None and ctx.needs_input_grad[2]:
            bias_gradient = torch.zeros_like(bias, dtype=dtype)
        rows = max(WIDE // len(weight), 1)
        spans = [(segment.start, segment.stop) for segment in segments]
        # A large head is read once for the tokens of all datasets: few tokens take as long as many.
        spans = [(spans[0][0], spans[-1][1])] if rows < CHUNK else spans
        chunks = [
            (i, min(i + CHUNK, stop)) for first, stop in spans for i in range(first, stop, CHUNK)
        ]
        for start, stop in chunks:
            inputs = hidden[start:stop]
            product = head.product(inputs)
            for segment in segments:
                low, high = max(start, segment.start), min(stop, segment.stop)
                if low >= high:
                    continue
                theirs, tokens = None, segment.count or segment.stop - segment.start
                if segment.hidden is not None and segment.head is not None:
                    own = segment.hidden[low - segment.start : high - segment.start]
                    theirs = segment.head.product(own)
                # The gradient takes the place of the product from which it was formed.
                for begin in range(low, high, rows):
                    end, other = min(begin + rows, high), None
                    if segment.head is not None and theirs is not None:
                        other = segment.head.finished(theirs[begin - low : end - low])
                    piece = product[begin - start : end - start]
                    gradient = _terms(head, piece, other, objective, tokens, values)
                    if bias_gradient is not None:
                        bias_gradient += gradient.sum(0)
                    piece.copy_(gradient)
            hidden_gradient[start:stop] = times(product, weight)
            if weight_gradient is not None:
                _add_product(weight_gradient, product, inputs)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.dtype = weight.dtype
        weights = values.new_tensor([objective.weights[name] for name in objective.output_terms])
        total = torch.dot(values, weights)
        ctx.mark_non_differentiable(values)
        return total, values

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients formed in the forward by dL/dloss."""
        hidden, *head = ctx.saved_tensors
        scaled = (
            None if own is None else own.to(ctx.dtype, copy=True).mul_(gradient.to(ctx.dtype))
            for own in head
        )
        return hidden * gradient.to(hidden.dtype), *scaled, None, None, None


def output_loss(
    hidden: Tensor, head: OutputHead, segments: Sequence[Segment], objective: Objective
) -> tuple[Tensor, Tensor]:
    """Return what `OutputLoss` makes of a head; arguments and results as there."""
    return OutputLoss.apply(hidden, head.weight, head.bias, head.finish, segments, objective)
