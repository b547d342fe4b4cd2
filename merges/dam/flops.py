"""Floating-point operations of DAM, counted from shapes (a multiply-add is two)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from checkpoints.names import is_linear


def body_parameters(tensors: Mapping[str, Tensor], head: str) -> int:
    """Count the weights that every token passes through: linear layers without the head."""
    return sum(
        tensor.numel()
        for name, tensor in tensors.items()
        if is_linear(name) and name != head and tensor.dim() == 2
    )


def attention_flops(config: Mapping[str, Any], lengths: Sequence[int]) -> int:
    """Count scores and weighted sums of causal attention, the masked half left out."""
    heads = config["num_attention_heads"]
    width = heads * (config.get("head_dim") or config["hidden_size"] // heads)
    visible = sum(length * (length + 1) // 2 for length in lengths)
    return 4 * visible * width * config["num_hidden_layers"]


def forward_flops(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], head: str, lengths: Sequence[int]
) -> int:
    """Count one forward of the body, as far as the final hidden states.

    Args:
        config: The checkpoint's config.json.
        tensors: The checkpoint's weights.
        head: Name of the output head's parameter.
        lengths: Tokens of each sample.
    """
    linear = 2 * body_parameters(tensors, head) * sum(lengths)
    return linear + attention_flops(config, lengths)
