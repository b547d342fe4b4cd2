"""Floating-point operations of DAM, counted from shapes (a multiply-add is two)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from checkpoints.architecture import parsed
from merges.dam.architecture import Architecture


def body_parameters(architecture: Architecture, tensors: Mapping[str, Tensor]) -> int:
    """Count the weights that every token passes through: linear layers without the head.

    Of a mixture's experts these are as many as a token is sent to.
    """
    dense = sum(
        tensors[f"{name}.weight"].numel()
        for name in architecture.linear
        if f"{name}.weight" != architecture.head
    )
    inside = sum(tensors[name].numel() for name in architecture.experts)
    if not inside:
        return dense
    all_of_them = architecture.about("num_local_experts", "num_experts", "n_routed_experts")
    chosen = architecture.about("num_experts_per_tok")
    return dense + (inside * chosen // all_of_them if chosen and all_of_them else inside)


def attention_flops(config: Mapping[str, Any], lengths: Sequence[int]) -> int:
    """Count scores and weighted sums of causal attention, the masked half left out."""
    about = parsed(config)
    heads = getattr(about, "num_attention_heads", 0) or 0
    if about is None or not heads:  # a model without attention
        return 0
    width = heads * (getattr(about, "head_dim", None) or about.hidden_size // heads)
    visible = sum(length * (length + 1) // 2 for length in lengths)
    return 4 * visible * width * about.num_hidden_layers


def forward_flops(
    architecture: Architecture, tensors: Mapping[str, Tensor], lengths: Sequence[int]
) -> int:
    """Count one forward of the body, as far as the final hidden states.

    Args:
        architecture: The model's class.
        tensors: The checkpoint's weights.
        lengths: Tokens of each sample.
    """
    linear = 2 * body_parameters(architecture, tensors) * sum(lengths)
    return linear + attention_flops(architecture.config, lengths)
