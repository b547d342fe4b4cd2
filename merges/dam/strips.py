"""Causal attention of a sample by strips of queries, for bfloat16 on a CPU.

There, the backward of torch's blockwise kernel takes two to four times as long as the products that
it consists of. A strip of queries meets the keys up to its end alone, so that few of the scores
that no query sees are computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from merges.dam.layers import multiplies_bfloat16

SIZE = 64  # queries of a strip: shorter ones are more calls, longer ones compute more unseen scores
MOST = 1 << 23  # scores of a sample; the softmax of about half of them is kept, 8 MB a layer


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


def serves(query: Tensor, value: Tensor) -> bool:
    """Say whether strips are faster than torch's kernel, and small; arguments as for `forward`."""
    _, heads, length, width = query.shape
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and multiplies_bfloat16()
        and value.shape[-1] == width
        and heads * length**2 <= MOST
    )


class StripAttention(torch.autograd.Function):
    """Attention within one sample, each strip of queries in full."""

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
        for start in range(0, length, SIZE):
            stop = min(start + SIZE, length)
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
        for start, p in zip(range(0, length, SIZE), kept, strict=True):
            stop = min(start + SIZE, length)
            own, outer = (x[:, :, start:stop].reshape(groups, -1, width) for x in (q, g))
            found = attend_backward(outer, own, k[:, :stop], v[:, :stop], p, ctx.scale)
            of_q[:, :, start:stop] = found[0].view(groups, -1, stop - start, width)
            of_k[:, :stop] += found[1]
            of_v[:, :stop] += found[2]
        shape = (1, -1, length, width)
        return of_q.view(shape), of_k.view(shape), of_v.view(shape), None, None
