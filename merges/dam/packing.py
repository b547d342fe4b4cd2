"""Samples of different lengths in one row without padding, and attention that keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION = "packed_samples"


@dataclass(frozen=True)
class Packing:
    """Where each sample lies in a packed row.

    Attributes:
        lengths: Tokens of each sample, in the row's order.
    """

    lengths: Sequence[int]

    @property
    def tokens(self) -> int:
        """Length of the packed row."""
        return sum(self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its own sample, (1, tokens)."""
        return torch.cat([torch.arange(length) for length in self.lengths])[None]

    @cached_property
    def _ends(self) -> Tensor:
        return torch.tensor(self.lengths).cumsum(0)

    @cached_property
    def to_padded(self) -> Tensor:
        """Row index for each cell of the (samples, longest) rectangle, flattened.

        A cell beyond its sample's end repeats the last token; no query sees it, for it lies in
        the future of all, and what it computes itself is dropped.
        """
        lengths = torch.tensor(self.lengths)[:, None]
        cells = torch.arange(max(self.lengths))[None]
        starts = self._ends[:, None] - lengths
        return (starts + torch.minimum(cells, lengths - 1)).view(-1)

    @cached_property
    def to_packed(self) -> Tensor:
        """Index in the flattened (samples, longest) rectangle for each token of the row."""
        lengths = torch.tensor(self.lengths)
        sample = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return sample * max(self.lengths) + self.positions[0]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    packing: Packing,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention within each sample of a packed row.

    Only here do the samples take a rectangle's shape; projections, norms and the MLP, nearly all
    of the work, see no padding.

    Args:
        module: The attention module that calls.
        query: (1, heads, tokens, head_dim).
        key: (1, key_value_heads, tokens, head_dim).
        value: As key.
        attention_mask: None; the packing says all.
        packing: The row's samples.
        scaling: Factor of the scores; 1 / sqrt(head_dim) where None.
        sliding_window: Number of last positions, its own included, that a token sees; None for
            all.

    Returns:
        The output (1, tokens, heads, head_dim), and None in place of attention weights.
    """
    samples, longest = len(packing.lengths), max(packing.lengths)

    def rectangle(row: Tensor) -> Tensor:
        tokens = row.squeeze(0).transpose(0, 1).index_select(0, packing.to_padded)
        return tokens.unflatten(0, (samples, longest)).transpose(1, 2)

    window = None
    if sliding_window is not None and longest > sliding_window:
        cells = torch.ones(longest, longest, dtype=torch.bool, device=query.device)
        window = cells.tril().triu(1 - sliding_window)
    output = F.scaled_dot_product_attention(
        rectangle(query),
        rectangle(key),
        rectangle(value),
        attn_mask=window,
        is_causal=window is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    output = output.transpose(1, 2).flatten(0, 1)
    return output.index_select(0, packing.to_packed)[None], None
