"""Linear layers whose weight is a learnt combination of the experts' columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MergedWeight(torch.autograd.Function):
    """The merged weight W = sum_i W_i diag(c_i) of one linear layer.

    Plain autograd would keep the N products W_i diag(c_i). Here the graph keeps nothing but the
    experts' own weights, and the gradient is reduced expert by expert:
    dL/dc_ij = sum_m (dL/dW)_mj (W_i)_mj.

    Source:
        Gauthier-Caron et al., arXiv:2410.08371, section 3.1.
    """

    @staticmethod
    def forward(ctx, coefficients: Tensor, *weights: Tensor) -> Tensor:
        """Build the merged weight, accumulated in the coefficients' type and rounded once.

        Args:
            ctx: What autograd hands to the backward.
            coefficients: (N, in_features), fp32 (fp64 for fp64 weights).
            *weights: N tensors (out_features, in_features), the experts' weights.

        Returns:
            (out_features, in_features) in the weights' type.
        """
        ctx.save_for_backward(*weights)
        ctx.dtype = coefficients.dtype
        first, *others = coefficients.unbind()
        merged = weights[0].to(ctx.dtype) * first
        for weight, column in zip(weights[1:], others, strict=True):
            merged.addcmul_(weight.to(ctx.dtype), column)
        return merged.to(weights[0].dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Reduce dL/dW (out_features, in_features) to dL/dc (N, in_features)."""
        gradient = gradient.to(ctx.dtype)
        weights = ctx.saved_tensors
        result = gradient.new_empty(len(weights), gradient.shape[1])
        product = torch.empty_like(gradient)
        for weight, row in zip(weights, result.unbind(), strict=True):
            torch.mul(gradient, weight.to(ctx.dtype), out=product)
            torch.sum(product, 0, out=row)
        return result, *(None for _ in weights)


class MergedLinear(nn.Module):
    """A linear layer that computes with the merged weight (and bias) of N experts.

    The coefficients are not the module's own: the trainer assigns views of one flat tensor
    before each forward, so that one optimiser update serves all layers.

    Args:
        weights: N frozen tensors (out_features, in_features).
        biases: N frozen tensors (out_features,), or None for a layer without bias.

    Attributes:
        coefficients: (N, in_features), one per model and input column.
        bias_coefficients: (N,), one scalar per model, where the layer has a bias.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.weights = tuple(weights)
        self.biases = None if biases is None else torch.stack(tuple(biases))
        self.coefficients: Tensor | None = None
        self.bias_coefficients: Tensor | None = None

    @property
    def in_features(self) -> int:
        """Number of input columns, hence of coefficients per model."""
        return self.weights[0].shape[1]

    def merged_weight(self) -> Tensor:
        """Return W = sum_i W_i diag(c_i), (out_features, in_features)."""
        return MergedWeight.apply(self.coefficients, *self.weights)

    def merged_bias(self) -> Tensor | None:
        """Return b = sum_i s_i b_i, (out_features,), or None for a layer without bias."""
        if self.biases is None:
            return None
        products = self.bias_coefficients[:, None] * self.biases
        return products.sum(0).to(self.biases.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the merged layer.

        Args:
            inputs: (..., in_features).

        Returns:
            (..., out_features).
        """
        return F.linear(inputs, self.merged_weight(), self.merged_bias())
