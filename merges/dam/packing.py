"""Samples of different lengths in one row without padding, and attention that keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merges.dam.strips import StripAttention, attend, attend_backward, serves

ATTENTION = "packed_samples"
# Up to this many tokens the scores of all heads are small, and plain matrix products beat the
# blockwise kernel (measured on CPU: 1.5 times faster at 28 tokens); their memory grows with the
# square of the length.
SHORT = 64


@dataclass(frozen=True)
class Packing:
    """Where each sample is in a packed row.

    Attributes:
        lengths: Tokens of each sample, in the row's order.
        device: Where the row is.
    """

    lengths: Sequence[int]
    device: torch.device | str = "cpu"

    @property
    def tokens(self) -> int:
        """Length of the packed row."""
        return sum(self.lengths)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples and length of the longest."""
        return len(self.lengths), max(self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its own sample, (1, tokens)."""
        each = [torch.arange(length) for length in self.lengths]
        return torch.cat(each)[None].to(self.device)

    @cached_property
    def _ends(self) -> Tensor:
        return torch.tensor(self.lengths).cumsum(0)

    @cached_property
    def to_padded(self) -> Tensor:
        """Row index for each cell of the (samples, longest) rectangle, flattened.

        A cell beyond its sample's end repeats the last token; no query sees it, for it is in
        the future of all, and what it computes itself is dropped.
        """
        lengths = torch.tensor(self.lengths)[:, None]
        cells = torch.arange(max(self.lengths))[None]
        starts = self._ends[:, None] - lengths
        return (starts + torch.minimum(cells, lengths - 1)).view(-1).to(self.device)

    @cached_property
    def to_packed(self) -> Tensor:
        """Index in the flattened (samples, longest) rectangle for each token of the row."""
        lengths = torch.tensor(self.lengths)
        sample = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return sample.to(self.device) * max(self.lengths) + self.positions[0]

    @cached_property
    def _visible(self) -> dict[tuple, Tensor]:
        return {}

    def visible(self, length: int, sliding_window: int | None, dtype: torch.dtype) -> Tensor:
        """Return what causal attention adds to a sample's scores, (length, length).

        Args:
            length: Tokens of the sample.
            sliding_window: Number of last positions, its own included, that a token sees; None
                for all.
            dtype: The scores' type.

        Returns:
            0 where the column is visible from the row, -infinity elsewhere.
        """
        key = length, sliding_window, dtype
        if key not in self._visible:
            hidden = torch.ones(length, length, dtype=torch.bool, device=self.device).triu(1)
            if sliding_window is not None:
                hidden |= torch.ones_like(hidden).tril(-sliding_window)
            mask = torch.zeros(length, length, dtype=dtype, device=self.device)
            self._visible[key] = mask.masked_fill_(hidden, float("-inf"))
        return self._visible[key]


class ShortAttention(torch.autograd.Function):
    """Softmax attention within samples of a packed row, scores in full.

    Queries of the heads that share a key head are stacked, so that grouped-query attention needs
    no repeated keys. Cells of the rectangle beyond a sample's end receive no gradient, hence
    gathering the true tokens is the exact adjoint of spreading them.
    """

    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, mask: Tensor
    ) -> Tensor:
        """Attend.

        Args:
            query: (1, heads, tokens, head_dim).
            key: (1, key_value_heads, tokens, head_dim).
            value: As key.
            packing: The row's samples.
            scale: Factor of the scores.
            mask: Added to the scores, (longest, longest).

        Returns:
            (1, tokens, heads, head_dim).
        """
        groups, (samples, longest) = key.shape[1], packing.shape
        shared, width = query.shape[1] // groups, query.shape[3]
        ctx.packing, ctx.scale = packing, scale
        ctx.shape = groups, shared, samples, longest, width
        q, k, v = (x.squeeze(0).index_select(1, packing.to_padded) for x in (query, key, value))
        q = q.view(groups, shared, samples, longest, width).transpose(1, 2)
        q = q.reshape(groups * samples, shared * longest, width)
        k, v = (x.view(groups * samples, longest, width) for x in (k, v))
        output, p = attend(q, k, v, mask.repeat(shared, 1), scale)
        ctx.save_for_backward(q, k, v, p)
        output = output.view(groups, samples, shared, longest, width)
        output = output.permute(1, 3, 0, 2, 4).reshape(samples * longest, groups * shared, width)
        return output.index_select(0, packing.to_packed).unsqueeze(0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        q, k, v, p = ctx.saved_tensors
        groups, shared, samples, longest, width = ctx.shape
        rows = ctx.packing.to_packed
        g = gradient.new_zeros(samples * longest, groups * shared, width)
        g.index_copy_(0, rows, gradient.squeeze(0))
        g = g.view(samples, longest, groups, shared, width).permute(2, 0, 3, 1, 4)
        g = g.reshape(groups * samples, shared * longest, width)
        query, key, value = attend_backward(g, q, k, v, p, ctx.scale)
        query = query.view(groups, samples, shared, longest, width)
        query = query.transpose(1, 2).reshape(groups * shared, samples * longest, width)
        key, value = (x.view(groups, samples * longest, width) for x in (key, value))
        packed = (x.index_select(1, rows).unsqueeze(0) for x in (query, key, value))
        return *packed, None, None, None


def _explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with scores in full: c tanh(s / c) caps them, a sink takes its share of the softmax.

    Args:
        query: (1, heads, tokens, head_dim).
        key: (1, key_value_heads, tokens, head_dim).
        value: As key.
        mask: Added to the scores, (tokens, tokens).
        scale: Factor of the scores.
        softcap: c, None for no cap.
        sinks: A score for each head (heads,), None for none.

    Returns:
        (1, heads, tokens, head_dim).
    """
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
    scores = query @ key.mT * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        own = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, own.to(scores.dtype)], -1)
    return scores.softmax(-1)[..., : mask.shape[1]] @ value


# What classes hand on that changes no attention over packed samples.
_WITHOUT_EFFECT = ("position_ids", "cache_position", "use_cache", "is_causal", "return_dict")


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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Causal attention within each sample of a packed row.

    Short samples go together, as a rectangle; from `SHORT` tokens on each goes alone, so that none
    pays for the length of another.

    Args:
        module: The attention module that calls.
        query: As for `ShortAttention`, as are key, value and packing.
        attention_mask: None; the packing replaces it.
        scaling: Factor of the scores; 1 / sqrt(head_dim) where None.
        sliding_window: As for `Packing.visible`.
        softcap: As for `_explicit_attention`, as is s_aux, its sinks.
        others: What else the class hands on.

    Returns:
        The output (1, tokens, heads, head_dim), and None in place of attention weights.

    Raises:
        ValueError: The class asks for something that is not known here.
    """
    unknown = [
        name
        for name, value in others.items()
        if name not in _WITHOUT_EFFECT and value is not None and value is not False and value != 0
    ]
    if unknown or attention_mask is not None:
        raise ValueError(f"attention with {', '.join(unknown) or 'a mask of its own'}")
    longest = packing.shape[1]
    explicit = softcap is not None or s_aux is not None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if longest <= SHORT and not explicit and query.shape[-1] == value.shape[-1]:
        mask = packing.visible(longest, sliding_window, query.dtype)
        return ShortAttention.apply(query, key, value, packing, scale, mask), None
    outputs = []
    samples = zip(
        *(row.split(list(packing.lengths), 2) for row in (query, key, value)), strict=True
    )
    for length, (own, keys, values) in zip(packing.lengths, samples, strict=True):
        if explicit:
            mask = packing.visible(length, sliding_window, query.dtype)
            output = _explicit_attention(own, keys, values, mask, scale, softcap, s_aux)
            outputs.append(output.transpose(1, 2))
            continue
        if serves(own, values):
            mask = packing.visible(length, sliding_window, query.dtype)
            output = StripAttention.apply(own, keys, values, mask, scale)
            outputs.append(output.transpose(1, 2))
            continue
        # Without a mask the kernel takes its fast causal path.
        window = None
        if sliding_window is not None and length > sliding_window:
            window = packing.visible(length, sliding_window, query.dtype)
        output = F.scaled_dot_product_attention(
            own,
            keys,
            values,
            attn_mask=window,
            is_causal=window is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, 1), None
