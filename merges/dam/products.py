"""Products of 16-bit weights on processors without instructions for them.

Without such instructions, PyTorch's products of bfloat16 took 4 to 5 times as long as those of
float32 with widening included, and those with a transposed weight 30 to 140 times (AMD EPYC with
AVX2 alone, 64 and 512 rows by 640 x 2,048). So they go in float32 here.
"""

from __future__ import annotations

import os
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDENED = 1 << 22  # values of a block that is widened for a product


@cache
def multiplies_bfloat16() -> bool:
    """Whether matrix products of bfloat16 run at the processor's full speed.

    Not where the environment holds instructions back, so that such a run has the same bytes on
    processors with and without them.
    """
    held_back = {"ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"} & set(os.environ)
    return torch.cpu._is_avx512_bf16_supported() and not held_back


def multiplies(tensor: Tensor) -> bool:
    """Whether products of this tensor's type run at full speed where it is."""
    if tensor.device.type != "cpu" or tensor.element_size() > 2:
        return True
    return tensor.dtype == torch.bfloat16 and multiplies_bfloat16()


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 where `multiplies` says no, else as it is."""
    return tensor if multiplies(tensor) else tensor.float()


def times(left: Tensor, matrix: Tensor) -> Tensor:
    """Compute left (..., rows) times matrix (rows, columns), in the type of left.

    Where `multiplies` says no, it goes in float32 by blocks of rows.
    """
    if multiplies(matrix):
        return left @ matrix
    rows = max(WIDENED // matrix.shape[1], 1)
    total = left.new_zeros(*left.shape[:-1], matrix.shape[1], dtype=torch.float32)
    for own, block in zip(left.split(rows, -1), matrix.split(rows), strict=True):
        total += own.float() @ block.float()
    return total.to(left.dtype)


class WideLinear(torch.autograd.Function):
    """A linear layer of 16-bit weights whose products are in float32, each result rounded once."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute X W^T + b by blocks of rows of W; arguments and result as for `linear`."""
        ctx.save_for_backward(inputs, weight)
        wide, rows = inputs.float(), max(WIDENED // weight.shape[1], 1)
        outputs = inputs.new_empty(*inputs.shape[:-1], len(weight))
        for start in range(0, len(weight), rows):
            own = None if bias is None else bias[start : start + rows].float()
            block = F.linear(wide, weight[start : start + rows].float(), own)
            outputs[..., start : start + rows] = block
        return outputs

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of inputs, weight and bias, those that are asked for."""
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        outer = gradient.flatten(0, -2)
        wide = outer.float().T @ inputs.flatten(0, -2).float() if of_weight else None
        return (
            times(gradient, weight) if of_inputs else None,
            None if wide is None else wide.to(weight.dtype),
            outer.float().sum(0).to(weight.dtype) if of_bias else None,
        )


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute X W^T + b; where `multiplies` says no, by products in float32.

    Args:
        inputs: X (..., in_features).
        weight: W (out_features, in_features).
        bias: b (out_features,), or None.

    Returns:
        (..., out_features) in the inputs' type.
    """
    if multiplies(weight):
        return F.linear(inputs, weight, bias)
    return WideLinear.apply(inputs, weight, bias)


def _apply(module: nn.Module, transposed: bool, inputs: Tensor) -> Tensor:
    weight: Any = module.weight
    bias: Any = module.bias
    return linear(inputs, weight.T if transposed else weight, bias)


def widen_products(module: nn.Module) -> None:
    """Have the linear layers within a module compute as `linear` does, where this matters."""
    for own in module.modules():
        transposed = type(own).__name__ == "Conv1D"  # of GPT-2: W^T is what it keeps
        weight: Any = own.weight if transposed or type(own) is nn.Linear else None
        if weight is not None and not multiplies(weight):
            own.forward = partial(_apply, own, transposed)
