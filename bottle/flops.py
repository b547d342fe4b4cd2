"""What a training step of a model of the bottle costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checkpoints.names import is_linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def forward_flops(model: PreTrainedModel, length: int, tokens: int, predicted: int) -> float:
    """Count the floating-point operations of a forward pass over texts of one length.

    Two for a weight of every linear layer and a token, where the output head counts only those
    tokens whose next one is predicted, and attention's two products at full length.

    Args:
        model: The model.
        length: Tokens of each text, padding included.
        tokens: Tokens of all texts.
        predicted: Tokens that the output head is asked about.
    """
    linear = {name: p.numel() for name, p in model.named_parameters() if is_linear(name)}
    head = linear.pop("lm_head.weight")
    config = model.config
    attention = 4 * config.num_hidden_layers * config.hidden_size * length
    return tokens * (2 * sum(linear.values()) + attention) + predicted * 2 * head
