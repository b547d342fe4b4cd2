"""Layers whose weight is a learnt combination of several models' weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from merges.dam import narrow
from merges.dam.norms import NormFunction
from merges.dam.products import linear, times

# Values of a block of rows. On a CPU it stays in the cache while it is widened, multiplied and
# added; elsewhere it bounds the memory of the widened copies, and kernels stay large.
# Two bytes a value leave room for more.
CPU_BLOCK, CPU_NARROW_BLOCK, DEVICE_BLOCK = 1 << 16, 1 << 18, 1 << 25
# Weights of at most so many values are kept as one tensor: there, operations cost more than bytes.
SMALL = 1 << 16
# FLOPs of a matrix product in the time of one byte to and from memory: where `backward_by_model`
# draws the line. Measured on two kinds of CPU in float32, counted for a GPU (an H100's rates).
CPU_INTENSITY, DEVICE_INTENSITY = 5, 147


def backward_by_model(models: int, tokens: int, outputs: int, device: str) -> bool:
    """Choose the cheaper of two ways to the gradients of a merged linear layer.

    The ordinary way has two products, dL/dX and dL/dW, and reduces dL/dW against the models'
    weights, 14 M + 6 bytes a weight. By model there are M products G W_i, from which both
    gradients follow token by token, at about 34 bytes for each of M values. So few tokens go by
    model, many the ordinary way.

    Args:
        models: M.
        tokens: That pass through the layer at once.
        outputs: Its number of outputs.
        device: Type of the device.
    """
    intensity = CPU_INTENSITY if device == "cpu" else DEVICE_INTENSITY
    by_model = tokens * (2 * (models - 2) * outputs / intensity + 34 * models)
    return by_model <= (14 * models + 6) * outputs


def _matrix(tensor: Tensor) -> Tensor:
    """View (..., columns) as (rows, columns)."""
    return tensor.reshape(-1, tensor.shape[-1])


def _rows(matrix: Tensor) -> int:
    """Return the number of rows in a block."""
    size = CPU_BLOCK if matrix.element_size() > 2 else CPU_NARROW_BLOCK
    size = size if matrix.device.type == "cpu" else DEVICE_BLOCK
    return max(size // matrix.shape[1], 1)


def _blocks(tensor: Tensor, rows: int, count: int) -> Sequence[Tensor]:
    """Cut a matrix into blocks of rows; one row serves every block."""
    matrix = _matrix(tensor)
    return [matrix] * count if len(matrix) == 1 else matrix.split(rows)


class MergedWeight(torch.autograd.Function):
    """The merged weight W = sum_i c_i * W_i of one parameter, c_i broadcast over W_i.

    With one coefficient per input column this is W = sum_i W_i diag(c_i). Plain autograd would
    keep the M products. Here the graph keeps nothing but the models' own weights, and the
    gradient is reduced model by model: dL/dc_ij = sum_m (dL/dW)_mj (W_i)_mj. Both go by blocks of
    rows, so that no model's weight is ever widened at once; see also `merges.dam.narrow`.

    Source:
        Gauthier-Caron et al., arXiv:2410.08371, section 3.1.
    """

    @staticmethod
    def forward(ctx, coefficients: Tensor, *weights: Tensor) -> Tensor:
        """Build the merged weight, accumulated in the coefficients' type and rounded once.

        Args:
            coefficients: (M, ...), fp32 (fp64 for fp64 weights); each of the M broadcasts to a
                weight's shape: (1, in_features), (out_features, 1), (1, 1).
            *weights: M tensors of one shape, the models' weights.

        Returns:
            The merged weight in the weights' shape and type.
        """
        ctx.save_for_backward(*weights)
        ctx.dtype, ctx.shape = coefficients.dtype, coefficients.shape
        ctx.narrow = narrow.serves(weights, coefficients)
        if ctx.narrow:
            return narrow.merge(weights, coefficients)
        merged = torch.empty_like(weights[0])
        rows = _rows(_matrix(merged))
        results = _matrix(merged).split(rows)
        total = merged.new_empty(results[0].shape, dtype=ctx.dtype)
        blocks = zip(*(_matrix(weight).split(rows) for weight in weights), strict=True)
        factors = zip(*(_blocks(own, rows, len(results)) for own in coefficients), strict=True)
        for result, own, factor in zip(results, blocks, factors, strict=True):
            out = result if result.dtype == ctx.dtype else total[: len(result)]
            torch.mul(own[0], factor[0], out=out)
            for index in range(1, len(own)):
                out.addcmul_(own[index], factor[index])
            if out is not result:
                result.copy_(out)
        return merged

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Reduce dL/dW (a weight's shape) to dL/dc (M, ...)."""
        weights = ctx.saved_tensors
        if ctx.narrow:
            return narrow.reduce(gradient, weights, ctx.shape), *(None for _ in weights)
        gradient = _matrix(gradient)
        reduced = gradient.new_zeros(ctx.shape, dtype=ctx.dtype)
        rows = _rows(gradient)
        gradients = gradient.split(rows)
        product = gradient.new_empty(gradients[0].shape, dtype=ctx.dtype)
        blocks = zip(*(_matrix(weight).split(rows) for weight in weights), strict=True)
        sums = zip(*(_blocks(own, rows, len(gradients)) for own in reduced), strict=True)
        for upstream, own, totals in zip(gradients, blocks, sums, strict=True):
            upstream, out = upstream.to(ctx.dtype), product[: len(upstream)]
            for block, total in zip(own, totals, strict=True):
                total += torch.mul(upstream, block, out=out).sum_to_size(total.shape)
        return reduced, *(None for _ in weights)


class MergedProduct(torch.autograd.Function):
    """Inputs times the merged weight, with a backward that needs neither that weight nor dL/dW.

    With the gradient G of the outputs and P_i = G W_i, dL/dX = sum_i P_i diag(c_i) and
    dL/dc_ij = sum_t X_tj (P_i)_tj. Between forward and backward no merged weight is kept.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, coefficients: Tensor, *weights: Tensor) -> Tensor:
        """Compute X W^T with W = sum_i W_i diag(c_i).

        Args:
            inputs: X, (tokens, in_features).
            coefficients: (M, 1, in_features) or (M, 1, 1), fp32 (fp64 for fp64 weights).
            *weights: M tensors (out_features, in_features).

        Returns:
            (tokens, out_features) in the weights' type.
        """
        merged = MergedWeight.forward(ctx, coefficients, *weights)
        ctx.save_for_backward(inputs, coefficients, *weights)
        return linear(inputs, merged)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Turn dL/dY (tokens, out_features) into dL/dX and dL/dc."""
        inputs, coefficients, *weights = ctx.saved_tensors
        wide = inputs.to(ctx.dtype)
        total, reduced = torch.zeros_like(wide), torch.empty_like(coefficients)
        for weight, own, factor in zip(weights, reduced, coefficients, strict=True):
            product = times(gradient, weight).to(ctx.dtype)
            total.addcmul_(product, factor)
            own.copy_(product.mul_(wide).sum_to_size(own.shape))
        return total.to(inputs.dtype), reduced, *(None for _ in weights)


class MergedLayer(nn.Module):
    """What the merged layers share: frozen weights of M models, coefficients from outside.

    The coefficients are not the module's own: the trainer assigns views of one flat tensor
    before each forward, so that one optimiser update serves all layers.

    Args:
        weights: M frozen tensors of one shape.
        biases: M frozen tensors (out_features,), or None for a layer without bias.

    Attributes:
        coefficients: (M, ...), one per model and whatever they are learnt for; see `MergedWeight`.
        bias_coefficients: (M, 1), one scalar per model, where the layer has a bias.
    """

    coefficients: Tensor
    bias_coefficients: Tensor

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.weights = tuple(weights)
        self.biases = None if biases is None else torch.stack(tuple(biases))

    def merged_weight(self) -> Tensor:
        """Return W = sum_i c_i * W_i, in the shape of one model's weight."""
        return MergedWeight.apply(self.coefficients, *self.weights)

    def merged_bias(self) -> Tensor | None:
        """Return b = sum_i s_i b_i, (out_features,), or None for a layer without bias."""
        if self.biases is None:
            return None
        return (self.bias_coefficients * self.biases).sum(0).to(self.biases.dtype)

    @property
    def weight(self) -> Tensor:
        """The merged weight, for classes that read it themselves."""
        return self.merged_weight()

    @property
    def bias(self) -> Tensor | None:
        """The merged bias, likewise."""
        return self.merged_bias()

    def replace(self, module: nn.Module) -> None:
        """Take the place of a module of the model's class."""

    def goes_by_model(self, tokens: int) -> bool:
        """Return whether the gradients of so many tokens are found by `MergedProduct`."""
        return False


class MergedLinear(MergedLayer):
    """A linear layer that computes with the merged weight (and bias) of M models.

    Args:
        weights: M frozen tensors (out_features, in_features).
        biases: M frozen tensors (out_features,), or None for a layer without bias.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None) -> None:
        super().__init__(weights, biases)
        self._stack = torch.stack(self.weights) if weights[0].numel() <= SMALL else None

    def merged_weight(self) -> Tensor:
        """Return W = sum_i c_i * W_i, (out_features, in_features)."""
        if self._stack is None:
            return super().merged_weight()
        return (self._factors() * self._stack).sum(0).to(self._stack.dtype)

    @property
    def is_plain(self) -> bool:
        """Whether it is small, without bias, on a CPU, and float32 or wider."""
        own = self._stack
        if own is None or self.biases is not None:
            return False
        return own.device.type == "cpu" and own.element_size() > 2

    def coefficient_gradient(self, gradient: Tensor) -> Tensor:
        """Turn dL/dW (out_features, in_features) of a small layer into dL/dcoefficients."""
        assert self._stack is not None
        factors = self._factors()
        return (self._stack * gradient).sum_to_size(factors.shape).view_as(self.coefficients)

    def _factors(self) -> Tensor:
        """View the coefficients as (M, rows, columns), where each of these may be 1."""
        own = self.coefficients
        return own.reshape(len(own), -1, own.shape[-1])

    def goes_by_model(self, tokens: int) -> bool:
        """Return whether the gradients of so many tokens are found by `MergedProduct`."""
        weight = self.weights[0]
        return (
            self._stack is None
            and self.coefficients.shape[1] == 1  # rows have their coefficients behind the product
            and backward_by_model(len(self.weights), tokens, len(weight), weight.device.type)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the merged layer to (..., in_features), giving (..., out_features)."""
        flat, bias = _matrix(inputs), self.merged_bias()
        if not self.goes_by_model(len(flat)):
            return linear(inputs, self.merged_weight(), bias)
        outputs = MergedProduct.apply(flat, self.coefficients, *self.weights)
        outputs = outputs.view(*inputs.shape[:-1], -1)
        return outputs if bias is None else outputs + bias


class MergedModule(MergedLayer):
    """A module of the model's own class that computes with merged parameters.

    It serves what the class may compute in its own way: norms that add 1 to their gain or subtract
    a mean. Coefficients of a weight (..., width) are (M, width) or (M, 1).
    """

    def replace(self, module: nn.Module) -> None:
        """Compute as this module does; its own parameters go."""
        for name in list(module._parameters):
            module._parameters[name] = None
        self.own = module

    def _compute(
        self, inputs: Sequence[Any], weight: Tensor, bias: Tensor | None = None, **named: Any
    ) -> Tensor:
        given = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return functional_call(self.own, given, tuple(inputs), named)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Apply the module to (..., width), and to what else its class takes."""
        return self._compute(inputs, self.merged_weight(), self.merged_bias(), **named)


class MergedEmbedding(MergedModule):
    """An embedding that looks up M models' rows and merges those alone.

    Its coefficients are (M, hidden) or (M, 1).
    """

    def replace(self, module: nn.Module) -> None:
        """Keep the module where its class does more than look up, such as to scale."""
        if type(module) is not nn.Embedding:
            module.padding_idx = None  # type: ignore[assignment]  # it counts rows looked up here
            super().replace(module)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (...), giving (..., hidden)."""
        looked_up = (F.embedding(ids, weight) for weight in self.weights)
        rows = MergedWeight.apply(self.coefficients, *looked_up)
        if not hasattr(self, "own"):
            return rows
        places = torch.arange(ids.numel(), device=ids.device).view(ids.shape)
        return self._compute([places], _matrix(rows))


class MergedRMSNorm(MergedLayer):
    """RMSNorm with the merged gain of M models.

    Its coefficients are (M, hidden) or (M, 1).

    Args:
        weights: M frozen gains (hidden,).
        epsilon: Added to the mean square.
    """

    def __init__(self, weights: Sequence[Tensor], epsilon: float) -> None:
        super().__init__(weights)
        self.epsilon = epsilon

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (..., hidden)."""
        ones = torch.ones_like(self.weights[0])
        return NormFunction.apply(inputs, ones, self.epsilon) * self.merged_weight()
