"""A training's memory: the table of embeddings stays as it is stored, and logits exist once.

On a vocabulary of 262,144 tokens the table is two thirds of the weights of a model of 270 million,
and the logits of a hundred answers take 110 MB a copy.
"""

from __future__ import annotations

import copy
import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK = 1 << 19  # weights that are widened at a time: 2 MB of float32 stay in a cache
_ROWS = 1 << 22  # logits whose softmax is computed at a time


class _Widened(torch.autograd.Function):
    """Inputs times a narrow matrix that is not trained, in the inputs' type."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor) -> Tensor:
        """Compute X W^T for X (..., columns) and W (rows, columns)."""
        ctx.save_for_backward(weight)
        outputs = inputs.new_empty(*inputs.shape[:-1], len(weight))
        blocks = weight.split(max(_BLOCK // weight.shape[1], 1))
        places = outputs.split([len(block) for block in blocks], -1)
        for block, place in zip(blocks, places, strict=True):
            place.copy_(F.linear(inputs, block.to(inputs.dtype)))
        return outputs

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """Compute dL/dX = dL/dY W."""
        (weight,) = ctx.saved_tensors
        blocks = weight.split(max(_BLOCK // weight.shape[1], 1))
        total = gradient.new_zeros(*gradient.shape[:-1], weight.shape[1])
        parts = gradient.split([len(block) for block in blocks], -1)
        for part, block in zip(parts, blocks, strict=True):
            total += part @ block.to(gradient.dtype)
        return total, None


def _look_up(module: Any, ids: Tensor) -> Tensor:
    """Embed ids as the module's class does, from the rows that they need, in float32."""
    shadow = copy.copy(module)
    shadow._parameters = {"weight": F.embedding(ids.reshape(-1), module.weight).float()}
    shadow.padding_idx = None  # it counts rows of the table
    places = torch.arange(ids.numel(), device=ids.device).view(ids.shape)
    return type(module).forward(shadow, places)


def narrow_tables(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Keep a float32 model's embeddings and output head in a narrower type.

    Both are read as float32 where they are used, so that results are as before if the type holds
    every value. They are no longer trained.

    Args:
        model: The model, which is changed.
        dtype: What its file stores them in; nothing happens for float32.
    """
    if dtype.itemsize >= 4:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        return
    for weight in {id(module.weight): module.weight for module in (embedding, head)}.values():
        weight.requires_grad_(False)
        weight.data = weight.data.to(dtype)
    embedding.forward = lambda ids: _look_up(embedding, ids)  # type: ignore[assignment, method-assign]
    bias = head.bias

    def forward(inputs: Tensor) -> Tensor:
        outputs = _Widened.apply(inputs, head.weight)
        return outputs if bias is None else outputs + bias

    head.forward = forward  # type: ignore[assignment, method-assign]


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient takes the place of the logits."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, count: int) -> Tensor:
        """Compute the sum over rows by `count`; logits (rows, vocabulary) are overwritten."""
        own, losses = logits.detach(), []
        size = max(_ROWS // logits.shape[1], 1)
        for rows, wanted in zip(own.split(size), targets.split(size), strict=True):
            shares = torch.log_softmax(rows, -1)
            losses.append(F.nll_loss(shares, wanted, reduction="sum"))
            rows.copy_(shares.exp_())
            rows[torch.arange(len(wanted), device=rows.device), wanted] -= 1.0
            rows.div_(count)
        ctx.gradient = own
        return torch.stack(losses).sum() / count

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Scale what the forward has left."""
        found, ctx.gradient = ctx.gradient, None
        return found.mul_(gradient), None, None


def cross_entropy(logits: Tensor, targets: Tensor, count: int) -> Tensor:
    """Return the cross-entropy, a scalar; the logits must not be read afterwards.

    Args:
        logits: (rows, vocabulary), float32; overwritten.
        targets: (rows,), int64.
        count: What the sum over rows is divided by.
    """
    return _CrossEntropy.apply(logits, targets, count)


def give_back() -> None:
    """Return memory that Python and libraries have freed to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)
