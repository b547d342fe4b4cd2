"""Layers whose weight is a learnt combination of several models' weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MergedWeight(torch.autograd.Function):
    """The merged weight W = sum_i c_i * W_i of one parameter, c_i broadcast over W_i.

    With one coefficient per input column this is W = sum_i W_i diag(c_i). Plain autograd would
    keep the M products. Here the graph keeps nothing but the models' own weights, and the
    gradient is reduced model by model: dL/dc_ij = sum_m (dL/dW)_mj (W_i)_mj.

    Source:
        Gauthier-Caron et al., arXiv:2410.08371, section 3.1.
    """

    @staticmethod
    def forward(ctx, coefficients: Tensor, *weights: Tensor) -> Tensor:
        """Build the merged weight, accumulated in the coefficients' type and rounded once.

        Args:
            ctx: What autograd hands to the backward.
            coefficients: (M, ...), fp32 (fp64 for fp64 weights); each of the M broadcasts to a
                weight's shape: (1, in_features), (out_features, 1), (1, 1).
            *weights: M tensors of one shape, the models' weights.

        Returns:
            The merged weight in the weights' shape and type.
        """
        ctx.save_for_backward(*weights)
        ctx.dtype, ctx.shape = coefficients.dtype, coefficients.shape[1:]
        first, *others = coefficients.unbind()
        merged = weights[0].to(ctx.dtype) * first
        for weight, coefficient in zip(weights[1:], others, strict=True):
            merged.addcmul_(weight.to(ctx.dtype), coefficient)
        return merged.to(weights[0].dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Reduce dL/dW (a weight's shape) to dL/dc (M, ...)."""
        gradient = gradient.to(ctx.dtype)
        weights = ctx.saved_tensors
        result = gradient.new_empty(len(weights), *ctx.shape)
        product = torch.empty_like(gradient)
        for weight, row in zip(weights, result.unbind(), strict=True):
            torch.mul(gradient, weight.to(ctx.dtype), out=product)
            row.copy_(product.sum_to_size(ctx.shape))
        return result, *(None for _ in weights)


class MergedLayer(nn.Module):
    """What the merged layers share: frozen weights of M models, coefficients from outside.

    The coefficients are not the module's own: the trainer assigns views of one flat tensor
    before each forward, so that one optimiser update serves all layers.

    Args:
        weights: M frozen tensors of one shape.

    Attributes:
        coefficients: (M, ...), one per model and whatever they are learnt for; see `MergedWeight`.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = tuple(weights)
        self.coefficients: Tensor | None = None

    def merged_weight(self) -> Tensor:
        """Return W = sum_i c_i * W_i, in the shape of one model's weight."""
        return MergedWeight.apply(self.coefficients, *self.weights)


class MergedLinear(MergedLayer):
    """A linear layer that computes with the merged weight (and bias) of M models.

    Args:
        weights: M frozen tensors (out_features, in_features).
        biases: M frozen tensors (out_features,), or None for a layer without bias.

    Attributes:
        bias_coefficients: (M, 1), one scalar per model, where the layer has a bias.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None) -> None:
        super().__init__(weights)
        self.biases = None if biases is None else torch.stack(tuple(biases))
        self.bias_coefficients: Tensor | None = None

    def merged_bias(self) -> Tensor | None:
        """Return b = sum_i s_i b_i, (out_features,), or None for a layer without bias."""
        if self.biases is None:
            return None
        return (self.bias_coefficients * self.biases).sum(0).to(self.biases.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the merged layer to (..., in_features), giving (..., out_features)."""
        return F.linear(inputs, self.merged_weight(), self.merged_bias())


class MergedEmbedding(MergedLayer):
    """An embedding that looks up M models' rows and merges those alone.

    Its coefficients are (M, hidden) or (M, 1).
    """

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (...), giving (..., hidden)."""
        rows = (F.embedding(ids, weight) for weight in self.weights)
        return MergedWeight.apply(self.coefficients, *rows)


class _NormFunction(torch.autograd.Function):
    """RMS normalisation with a frozen gain, in half the passes over memory of the plain formula."""

    @staticmethod
    def forward(ctx, inputs: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = square.mul_(1 / wide.shape[-1]).add_(epsilon).rsqrt_()
        normal = wide * scale
        ctx.save_for_backward(normal, scale, gain)
        return normal.to(inputs.dtype) * gain

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        normal, scale, gain = ctx.saved_tensors
        wide = (gradient * gain).to(normal.dtype)
        mean = torch.linalg.vecdot(wide, normal).unsqueeze(-1).mul_(-1 / normal.shape[-1])
        return wide.addcmul_(normal, mean).mul_(scale).to(gradient.dtype), None, None


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
        return _NormFunction.apply(inputs, self.gain, self.epsilon)


class MergedRMSNorm(MergedLayer):
    """RMSNorm with the merged gain of M models.

    Its coefficients are (M, hidden) or (M, 1).

    Args:
        weights: M frozen gains (hidden,).

    Attributes:
        epsilon: Added to the mean square; the model that takes the layer in says it.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__(weights)
        self.epsilon = 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (..., hidden)."""
        ones = torch.ones_like(self.weights[0])
        return _NormFunction.apply(inputs, ones, self.epsilon) * self.merged_weight()
