"""Attention over a packed row that keeps its samples apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merges.dam.packing import Packing
from merges.dam.products import widened

ATTENTION = "packed_samples"
# Up to this many tokens the scores of all heads are small, and plain matrix products beat the
# blockwise kernel (measured on CPU: 1.5 times faster at 28 tokens); their memory grows with the
# square of the length.
SHORT = 64
# Queries of a strip: shorter ones are more calls, longer ones compute more scores that none sees.
STRIP = 64
# Scores of a sample; the softmax of about half of them is kept, 8 MB a layer.
MOST_KEPT = 1 << 23


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend in rectangles: softmax(scale q k^T + mask) v.

    Args:
        q: (rectangles, queries, width).
        k: (rectangles, keys, width), as v.
        v: What is averaged.
        mask: (queries, keys).
        scale: Factor of the scores.

    Returns:
        The output, shaped as q, and the softmax (rectangles, queries, keys).
    """
    p = torch.baddbmm(mask, q, k.mT, alpha=scale).softmax(-1)
    return torch.bmm(p, v), p


def attend_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the gradient of `attend`'s output into those of q, k and v; p is its softmax."""
    scores = torch.bmm(gradient, v.mT)
    scores.sub_(torch.linalg.vecdot(scores, p).unsqueeze(-1)).mul_(p).mul_(scale)
    return torch.bmm(scores, k), torch.bmm(scores.mT, q), torch.bmm(p.mT, gradient)


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


def _goes_by_strips(query: Tensor, value: Tensor) -> bool:
    """Say whether strips beat torch's kernel, and are small; arguments as for `StripAttention`.

    Bfloat16 comes here on a CPU only where it has such products, see `widened`.
    """
    _, heads, length, width = query.shape
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and value.shape[-1] == width
        and heads * length**2 <= MOST_KEPT
    )


class StripAttention(torch.autograd.Function):
    """Causal attention within one sample, each strip of queries in full, for bfloat16 on a CPU.

    There, the backward of torch's blockwise kernel takes two to four times as long as the products
    that it consists of. A strip of queries meets the keys up to its end alone, so that few of the
    scores that no query sees are computed.
    """

    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        """Attend.

        Args:
            query: (1, heads, tokens, width).
            key: (1, key_value_heads, tokens, width).
            value: As key.
            mask: Added to the scores (tokens, tokens); -infinity above the diagonal.
            scale: Factor of the scores.

        Returns:
            As query.
        """
        groups, (_, heads, length, width) = key.shape[1], query.shape
        q, k, v = query.view(groups, -1, length, width), key.squeeze(0), value.squeeze(0)
        output, kept = torch.empty_like(q), []
        for start in range(0, length, STRIP):
            stop = min(start + STRIP, length)
            own = q[:, :, start:stop].reshape(groups, -1, width)
            seen = mask[start:stop, :stop].repeat(heads // groups, 1)
            found, p = attend(own, k[:, :stop], v[:, :stop], seen, scale)
            output[:, :, start:stop] = found.view(groups, -1, stop - start, width)
            kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale = scale
        return output.view(query.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        q, k, v, *kept = ctx.saved_tensors
        groups, _, length, width = q.shape
        g = gradient.reshape(q.shape)
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for start, p in zip(range(0, length, STRIP), kept, strict=True):
            stop = min(start + STRIP, length)
            own, outer = (x[:, :, start:stop].reshape(groups, -1, width) for x in (q, g))
            found = attend_backward(outer, own, k[:, :stop], v[:, :stop], p, ctx.scale)
            of_q[:, :, start:stop] = found[0].view(groups, -1, stop - start, width)
            of_k[:, :stop] += found[1]
            of_v[:, :stop] += found[2]
        shape = (1, -1, length, width)
        return of_q.view(shape), of_k.view(shape), of_v.view(shape), None, None


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
    dtype = query.dtype
    query, key, value = (widened(own) for own in (query, key, value))
    longest = packing.shape[1]
    explicit = softcap is not None or s_aux is not None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if longest <= SHORT and not explicit and query.shape[-1] == value.shape[-1]:
        mask = packing.visible(longest, sliding_window, query.dtype)
        output = ShortAttention.apply(query, key, value, packing, scale, mask)
        return output.to(dtype), None
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
        if _goes_by_strips(own, values):
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
    return torch.cat(outputs, 1).to(dtype), None
