"""The output head and the output loss in one, so that a batch's logits never exist at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from merges.dam.layers import times
from merges.dam.objective import Objective

# Tokens whose logits exist at a time: few enough that two fp32 copies of a 128k vocabulary stay
# below 300 MB, many enough that a step of a tiny model is one matrix product per dataset.
CHUNK = 256


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
        return F.linear(hidden, self.weight, self.bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (tokens, vocabulary) in float32 or wider."""
        product = self.product(hidden)
        product = product.to(torch.promote_types(product.dtype, torch.float32))
        return product if self.finish is None else self.finish(product)


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
        names = objective.output_terms
        terms = [objective.output_term(name) for name in names]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        values = hidden.new_zeros(len(names), dtype=dtype)
        head = OutputHead(weight, bias)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=dtype) if ctx.needs_input_grad[1] else None
        bias_gradient = None
        if bias is not None and ctx.needs_input_grad[2]:
            bias_gradient = torch.zeros_like(bias, dtype=dtype)
        for segment in segments:
            tokens = segment.count or segment.stop - segment.start
            for start in range(segment.start, segment.stop, CHUNK):
                chunk = slice(start, min(start + CHUNK, segment.stop))
                inputs = hidden[chunk]
                logits = product = head.logits(inputs)
                if finish is not None:
                    with torch.enable_grad():
                        logits = finish(product.requires_grad_())
                teacher = None
                if segment.hidden is not None and segment.head is not None:
                    own = segment.hidden[start - segment.start : chunk.stop - segment.start]
                    teacher = segment.head.logits(own)
                gradient = None
                for index, (name, term) in enumerate(zip(names, terms, strict=True)):
                    value, part = term(logits.detach(), teacher)
                    values[index] += value / tokens
                    part.mul_(objective.weights[name] / tokens)
                    gradient = part if gradient is None else gradient.add_(part)
                assert gradient is not None  # an objective has an output term
                if finish is not None:
                    (gradient,) = torch.autograd.grad(logits, product, gradient)
                if bias_gradient is not None:
                    bias_gradient += gradient.sum(0)
                gradient = gradient.to(hidden.dtype)
                hidden_gradient[chunk] = times(gradient, weight)
                if weight_gradient is not None:
                    weight_gradient += gradient.T @ inputs
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.dtype = weight.dtype
        weights = values.new_tensor([objective.weights[name] for name in names])
        total = torch.dot(values, weights)
        ctx.mark_non_differentiable(values)
        return total, values

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients formed in the forward by dL/dloss."""
        hidden, *head = ctx.saved_tensors
        scaled = (
            None if own is None else own.to(ctx.dtype) * gradient.to(ctx.dtype) for own in head
        )
        return hidden * gradient.to(hidden.dtype), *scaled, None, None, None


def output_loss(
    hidden: Tensor, head: OutputHead, segments: Sequence[Segment], objective: Objective
) -> tuple[Tensor, Tensor]:
    """Return what `OutputLoss` makes of a head; arguments and results as there."""
    return OutputLoss.apply(hidden, head.weight, head.bias, head.finish, segments, objective)
