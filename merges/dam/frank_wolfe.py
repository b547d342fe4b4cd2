"""Frank-Wolfe steps over merge coefficients: towards the expert that the gradient points at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merges.dam.supervised import LabelledTrainer

if TYPE_CHECKING:
    from merges.dam.settings import Parameters
    from merges.dam.sources import Sources
    from merges.engine.requests import WholeModelRequest


def towards(values: Tensor, scores: Tensor, share: float, scale: float) -> Tensor:
    """Go a share of the way to the best vertex: (1 - g) c + g scale e_k, k = argmin_i scores_i.

    Args:
        values: c, (parameters, N, 1).
        scores: Of the same shape; of equal ones the first is best.
        share: g.
        scale: Size of a vertex.
    """
    best = torch.zeros_like(values).scatter_(1, scores.argmin(1, keepdim=True), scale)
    return values * (1 - share) + share * best


class FrankWolfe(torch.optim.Optimizer):
    """Moves every row of N coefficients towards one expert; `lr` is the share of the way.

    Args:
        parameter: All coefficients.
        blocks: Cuts a tensor as long as `parameter` into (parameters, N, 1).
        scale: Size of a vertex.
        norms: What divides each coefficient's gradient first, as long as `parameter`; None for
            nothing.
    """

    def __init__(
        self,
        parameter: Tensor,
        blocks: Callable[[Tensor], Sequence[Tensor]],
        scale: float,
        norms: Tensor | None,
    ) -> None:
        super().__init__([parameter], {"lr": 1.0})
        self._blocks, self._scale, self._norms = blocks, scale, norms

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # there is no closure
        """Do one step from the coefficients' gradient."""
        group = self.param_groups[0]
        (parameter,) = group["params"]
        gradient = parameter.grad if self._norms is None else parameter.grad / self._norms
        pairs = zip(self._blocks(parameter), self._blocks(gradient), strict=True)
        for values, scores in pairs:
            if values.numel():
                values.copy_(towards(values, scores, group["lr"], self._scale))


class FrankWolfeTrainer(LabelledTrainer):
    """A training by Frank-Wolfe steps, of coefficients of task vectors.

    The gradient of a coefficient is <grad_W L, W_i - W_0>, over the parameters that share it.

    Args:
        request: As for `LabelledTrainer`.
        parameters: As there, with task vectors; its learning rate is a factor on 2 / (t + 2).
        sources: As there.
        scale: Size of a vertex.
        cosine: Whether gradients are divided by the length of W_i - W_0.
    """

    def __init__(
        self,
        request: WholeModelRequest,
        parameters: Parameters,
        sources: Sources,
        scale: float,
        cosine: bool,
    ) -> None:
        super().__init__(request, parameters, sources)
        own = self.coefficients
        self.optimizer = FrankWolfe(
            own.flat, own.blocks, scale, self._lengths() if cosine else None
        )

    def _lengths(self) -> Tensor:
        """Return |W_i - W_0| of each coefficient, or 1 for a task vector of zeros."""
        # Half the square of W(c) - W(0) has, at c_i = 1 alone, the gradient |W_i - W_0|^2.
        flat, kept = self.coefficients.flat, self.coefficients.flat.detach().clone()
        squares = torch.zeros_like(kept)
        for expert in range(len(self.sources.experts)):
            with torch.no_grad():
                flat.zero_()
                chosen = torch.zeros_like(flat)
                for block in self.coefficients.blocks(chosen):
                    block[:, expert] = 1
                flat.copy_(chosen)
            self.coefficients.assign()
            total = torch.zeros((), dtype=flat.dtype, device=flat.device)
            for layer in self.layers.values():
                total = total + _half_square(layer.merged_weight(), layer.weights[0])
                if layer.biases is not None:
                    total = total + _half_square(layer.merged_bias(), layer.biases[0])
            (gradient,) = torch.autograd.grad(total, flat)
            squares += gradient * chosen
        with torch.no_grad():
            flat.copy_(kept)
        lengths = squares.clamp_min(0).sqrt()
        return torch.where(lengths > 0, lengths, 1.0)

    def learning_rate(self, step: int) -> float:
        """Return the share of the way of a step (from 0)."""
        return min(1.0, self.parameters.learning_rate * 2 / (step + 2))


def _half_square(weight: Tensor | None, base: Tensor) -> Tensor:
    assert weight is not None  # a bias is there where its layer has one
    return (weight - base).square().sum() / 2
