"""RMS normalisation with a gain that is not trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normalise(inputs: Tensor, gain: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Divide (..., width) by its root mean square, times a gain (width,).

    Args:
        inputs: What to normalise.
        gain: Of each value.
        epsilon: Added to the mean square.

    Returns:
        The result, and for `normalise_backward` the result without gain and the divisor's inverse.
    """
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    scale = square.mul_(1 / wide.shape[-1]).add_(epsilon).rsqrt_()
    normal = wide * scale
    return normal.to(inputs.dtype) * gain, normal, scale


def normalise_backward(gradient: Tensor, normal: Tensor, scale: Tensor, gain: Tensor) -> Tensor:
    """Turn the gradient of the result of `normalise` into that of its inputs."""
    wide = (gradient * gain).to(normal.dtype)
    mean = torch.linalg.vecdot(wide, normal).unsqueeze(-1).mul_(-1 / normal.shape[-1])
    return wide.addcmul_(normal, mean).mul_(scale).to(gradient.dtype)


class NormFunction(torch.autograd.Function):
    """RMS normalisation with a frozen gain, in half the passes over memory of the plain formula."""

    @staticmethod
    def forward(ctx, inputs: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        """Return the result of `normalise`, whose arguments these are."""
        outputs, normal, scale = normalise(inputs, gain, epsilon)
        ctx.save_for_backward(normal, scale, gain)
        return outputs

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the inputs."""
        return normalise_backward(gradient, *ctx.saved_tensors), None, None


class FrozenRMSNorm(nn.Module):
    """RMSNorm whose gain is not trained.

    Args:
        gain: (hidden,).
        epsilon: Added to the mean square.
    """

    def __init__(self, gain: Tensor, epsilon: float) -> None:
        super().__init__()
        self.gain, self.epsilon = gain, epsilon

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (..., hidden)."""
        return NormFunction.apply(inputs, self.gain, self.epsilon)
