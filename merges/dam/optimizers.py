"""The optimisers of the coefficients: AdamW, and AdamW that moves only large momenta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

OptimizerName = Literal["adamw", "mofo"]
_EPSILON = 1e-8


class MofoAdamW(torch.optim.Optimizer):
    """AdamW that updates, of each vector of parameters, those with the largest momentum only.

    With g the gradient, m and v its decayed mean and mean square, and F the indicator of the
    largest values of |m| within a vector: theta <- (1 - lr w) theta - lr F m' / (sqrt(v') + eps),
    where m' and v' are m and v corrected for their start at 0. Momenta of values that do not
    move still accumulate; weight decay w shrinks everything, as in DAM's authors' code.

    Args:
        parameter: The tensor to train.
        blocks: Cuts a tensor as long as `parameter` into views whose last dimension is a vector.
        fraction: Share of a vector's parameters that move: this times their number, rounded
            down, but at least one, and all that tie with the last of them.
        lr: Learning rate.
        betas: Decay of the mean of gradients and of their squares.
        weight_decay: w.

    Source:
        Chen et al., arXiv:2407.20999, algorithm 1.
    """

    def __init__(
        self,
        parameter: Tensor,
        blocks: Callable[[Tensor], Sequence[Tensor]],
        fraction: float,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        super().__init__([parameter], {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self._blocks, self._fraction = blocks, fraction

    def _moved(self, momentum: Tensor) -> Tensor:
        moved = torch.empty_like(momentum)
        for size, mask in zip(self._blocks(momentum.abs()), self._blocks(moved), strict=True):
            if size.numel():
                kept = max(1, int(size.shape[-1] * self._fraction))
                threshold = size.topk(kept, dim=-1).values[..., -1:]
                mask.copy_(size >= threshold)
        return moved

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # there is no closure
        """Do one update from the parameter's gradient."""
        group = self.param_groups[0]
        (parameter,) = group["params"]
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        count, (beta1, beta2) = state["step"].item(), group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().div_((1 - beta2**count) ** 0.5).add_(_EPSILON)
        update = (mean / root).mul_(self._moved(mean))
        parameter.add_(update, alpha=-group["lr"] / (1 - beta1**count))


def make_optimizer(
    name: OptimizerName,
    parameter: Tensor,
    blocks: Callable[[Tensor], Sequence[Tensor]],
    *,
    fraction: float,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Make an optimiser of one tensor; arguments as for `MofoAdamW`."""
    if name == "mofo":
        return MofoAdamW(parameter, blocks, fraction, learning_rate, betas, weight_decay)
    return torch.optim.AdamW(
        [parameter],
        lr=learning_rate,
        betas=betas,
        eps=_EPSILON,
        weight_decay=weight_decay,
        fused=True,
    )


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimiser of one tensor, empty before its first step."""
    return dict(optimizer.state.get(optimizer.param_groups[0]["params"][0], {}))


def restore_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `moments` returned."""
    if tensors:
        parameter = optimizer.param_groups[0]["params"][0]
        optimizer.state[parameter] = {
            name: tensor.to(parameter.device, copy=True) for name, tensor in tensors.items()
        }
