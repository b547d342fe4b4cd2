"""The body of a small Llama or Mistral on short samples, with its backward by hand.

Where layers are narrow and tokens few, most of a training step is the cost of calling thousands of
small operations, which transformers and autograd make of a layer. Here they are a quarter as many;
values are computed by the same products and formulas, in the same order.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merges.dam.attention import SHORT, attend, attend_backward
from merges.dam.layers import MergedLinear, MergedRMSNorm
from merges.dam.norms import FrozenRMSNorm, normalise, normalise_backward
from merges.dam.packing import Packing

_CLASSES = ("LlamaModel", "MistralModel")


class _Row:
    """A packed row: where its heads' vectors are in the rectangles of attention.

    Args:
        body: Whose heads they are.
        packing: The row's samples.
        wanted: Tokens whose final states are wanted (tokens,), None for all.

    Attributes:
        sizes: Vectors in the rectangles of queries (groups, samples, shared heads, longest), keys
            and values (groups, samples, longest).
        spread: For each of these vectors, end to end, its place among the row's (tokens, heads of
            query, key and value).
        gather: For each vector of the row, its place in the rectangles.
        outputs: For each head's output, token by token, its place in the first rectangle.
        wanted_outputs: The same for the tokens whose final states are wanted.
        shapes: The rectangles' shapes, as `attend` takes them.
        cos: Of the rotation of queries and keys, (tokens, their width).
        sin: The same, negative where the rotation subtracts.
        mask: Added to the scores, (shared heads x longest, longest).
    """

    def __init__(self, body: PlainBody, packing: Packing, wanted: Tensor | None) -> None:
        heads, groups, (samples, longest) = body.heads, body.groups, packing.shape
        shared, every = heads // groups, heads + 2 * groups
        lengths = np.array(packing.lengths)[:, None]
        cells = np.minimum(np.arange(longest), lengths - 1) + lengths.cumsum(0) - lengths
        first, group = cells * every, np.arange(groups)[:, None, None]
        query = first[:, None] + np.arange(shared)[:, None] + shared * group[..., None]
        key = first + heads + group
        spread = np.concatenate([query.ravel(), key.ravel(), (key + groups).ravel()])
        # A cell beyond its sample's end repeats the last token, whose own cell comes before it.
        gather = np.empty(packing.tokens * every, dtype=np.int64)
        gather[spread[::-1]] = np.arange(len(spread))[::-1]
        self.wanted = wanted
        self.spread, self.gather = torch.from_numpy(spread), torch.from_numpy(gather)
        places = self.gather.view(-1, every)[:, :heads]
        self.outputs = places.reshape(-1)
        self.wanted_outputs = self.outputs if wanted is None else places[wanted].view(-1)
        self.sizes = query.size, key.size, key.size
        self.shapes = [(groups * samples, n * longest, body.width) for n in (shared, 1, 1)]
        self.cos, self.sin = (
            table[packing.positions[0]].repeat(1, heads + groups) for table in body.rotation
        )
        self.mask = packing.visible(longest, None, self.cos.dtype).repeat(shared, 1)


def _rotate(vectors: Tensor, row: _Row, width: int, back: bool = False) -> None:
    """Rotate queries and keys (tokens, heads x width) in place, or the other way."""
    tokens, size = vectors.shape
    halves = (vectors * row.sin if back else vectors).view(tokens, -1, 2, width // 2)
    first, second = halves.unbind(2)
    swapped = torch.cat([second, first], -1).view(tokens, size)
    vectors.mul_(row.cos).add_(swapped if back else swapped.mul_(row.sin))


class _Attention:
    """The first half of a decoder layer: from x and its norm n to x + o(attention(q, k, v)).

    `forward` returns that and what `backward` needs, which returns the gradients of x (without
    those through n), of n, and of the merged weights. So do those of `_MLP`.
    """

    def __init__(self, layer: nn.Module) -> None:
        own: Any = layer.self_attn
        self.norm: Any = layer.input_layernorm
        self.linear = own.q_proj, own.k_proj, own.v_proj, own.o_proj
        self.width, self.scale = own.head_dim, own.scaling

    @cached_property
    def sizes(self) -> list[int]:
        """Widths of q, k and v."""
        return [linear.weights[0].shape[0] for linear in self.linear[:3]]

    def forward(self, x: Tensor, n: Tensor, row: _Row, last: bool) -> tuple[Tensor, Any]:
        *weights, output = [linear.merged_weight() for linear in self.linear]
        vectors = n.new_empty(n.shape[0], sum(self.sizes))
        for weight, part in zip(weights, vectors.split_with_sizes(self.sizes, 1), strict=True):
            torch.mm(n, weight.t(), out=part)
        _rotate(vectors[:, : -self.sizes[2]], row, self.width)
        rectangles = vectors.view(-1, self.width).index_select(0, row.spread)
        parts = rectangles.split_with_sizes(row.sizes)
        q, k, v = (part.view(shape) for part, shape in zip(parts, row.shapes, strict=True))
        attended, p = attend(q, k, v, row.mask, self.scale)
        wanted, places = None, row.outputs
        if last and row.wanted is not None:
            wanted, places = row.wanted, row.wanted_outputs
            x = x.index_select(0, wanted)
        heads = attended.view(-1, self.width).index_select(0, places).view(x.shape[0], -1)
        kept = n, weights, output, q, k, v, p, heads, places, wanted
        return x + F.linear(heads, output), kept

    def backward(self, g: Tensor, row: _Row, kept: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        n, weights, output, q, k, v, p, heads, places, wanted = kept
        spread = torch.zeros_like(q)
        outer = torch.mm(g, output).view(-1, self.width)
        spread.view(-1, self.width).index_copy_(0, places, outer)
        rectangles = attend_backward(spread, q, k, v, p, self.scale)
        vectors = torch.cat([own.view(-1, self.width) for own in rectangles])
        vectors = vectors.index_select(0, row.gather).view(n.shape[0], -1)
        _rotate(vectors[:, : -self.sizes[2]], row, self.width, back=True)
        of_q, of_k, of_v = parts = vectors.split_with_sizes(self.sizes, 1)
        # In the order in which autograd adds them.
        inputs = torch.mm(of_v, weights[2])
        inputs.add_(torch.mm(of_k, weights[1])).add_(torch.mm(of_q, weights[0]))
        of_weights = [*(torch.mm(part.t(), n) for part in parts), torch.mm(g.t(), heads)]
        if wanted is not None:
            g = torch.zeros_like(n).index_copy_(0, wanted, g)
        return g, inputs, of_weights


class _MLP:
    """The second half: from x and its norm n to x + down(silu(gate(n)) up(n))."""

    def __init__(self, layer: nn.Module) -> None:
        own: Any = layer.mlp
        self.norm: Any = layer.post_attention_layernorm
        self.linear = own.gate_proj, own.up_proj, own.down_proj

    def forward(self, x: Tensor, n: Tensor, row: _Row, last: bool) -> tuple[Tensor, Any]:
        gate, up, down = weights = [linear.merged_weight() for linear in self.linear]
        opened, passed = F.linear(n, gate), F.linear(n, up)
        active = F.silu(opened)
        inner = active * passed
        return x + F.linear(inner, down), (n, weights, opened, passed, active, inner)

    def backward(self, g: Tensor, row: _Row, kept: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        n, (gate, up, down), opened, passed, active, inner = kept
        outer = torch.mm(g, down)
        upper = outer * active
        lower = torch.ops.aten.silu_backward(outer.mul_(passed), opened)
        inputs = torch.mm(upper, up).add_(torch.mm(lower, gate))
        return (
            g,
            inputs,
            [torch.mm(left.t(), right) for left, right in ((lower, n), (upper, n), (g, inner))],
        )


class _Body(torch.autograd.Function):
    """From embeddings to the final norm."""

    @staticmethod
    def forward(ctx, body: PlainBody, row: _Row, x: Tensor, *learnt: Tensor) -> Tensor:
        """Compute final states.

        Args:
            body: The body.
            row: Of the samples.
            x: Their embeddings (tokens, hidden).
            *learnt: The norms' gains (hidden,), then the coefficients of all linear layers, which
                the layers have as well.
        """
        ctx.body, ctx.row, ctx.tape = body, row, []
        gains = learnt[: len(body.norms)]
        for half, gain in zip(body.halves, gains, strict=False):
            n, *norm = normalise(x, gain, half.norm.epsilon)
            x, kept = half.forward(x, n, row, half is body.halves[-2])
            ctx.tape.append((gain, norm, kept))
        x, *norm = normalise(x, gains[-1], body.norms[-1].epsilon)
        ctx.tape.append((gains[-1], norm, None))
        return x

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, gains and coefficients."""
        body, row, tape = ctx.body, ctx.row, ctx.tape
        _, _, of_x, *of_learnt = ctx.needs_input_grad
        gains: list[Tensor | None] = []
        coefficients: list[Tensor] = []
        for number in reversed(range(len(tape))):
            gain, (normal, divisor), kept = tape.pop()
            inputs = g
            if kept is not None:
                half = body.halves[number]
                g, inputs, weights = half.backward(g, row, kept)
                pairs = zip(half.linear, weights, strict=True)
                coefficients[:0] = [own.coefficient_gradient(weight) for own, weight in pairs]
            learnt = of_learnt[number]
            gains.insert(0, (inputs * normal).sum_to_size(gain.shape) if learnt else None)
            if number or of_x:
                inputs = normalise_backward(inputs, normal, divisor, gain)
                g = inputs if kept is None else g + inputs
        return None, None, g if of_x else None, *gains, *coefficients


class PlainBody:
    """A Llama's or Mistral's body whose linear layers are merged and small.

    Args:
        body: The model's body.

    Attributes:
        halves: Attention and MLP of all layers, in turn.
        norms: All norms, in the order of use.
        heads: Heads of queries.
        groups: Heads of keys.
        width: Of a head.
    """

    def __init__(self, body: Any) -> None:
        self._body, config = body, body.config
        self.halves = [half(layer) for layer in body.layers for half in (_Attention, _MLP)]
        self.norms = [*(half.norm for half in self.halves), body.norm]
        self._linear = [linear for half in self.halves for linear in half.linear]
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = body.layers[0].self_attn.head_dim

    @classmethod
    def of(cls, body: Any) -> PlainBody | None:
        """Return a body's plain form, None where it has none: another class, or large layers."""
        if type(body).__name__ not in _CLASSES:
            return None
        config, own = body.config, cls(body)
        plain = (
            config.hidden_act == "silu"
            and (getattr(config, "sliding_window", None) or SHORT) >= SHORT
            and body.rotary_emb.rope_type == "default"
            and all(type(linear) is MergedLinear and linear.is_plain for linear in own._linear)
            and all(isinstance(norm, FrozenRMSNorm | MergedRMSNorm) for norm in own.norms)
        )
        return own if plain else None

    @cached_property
    def rotation(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine by position (SHORT, width), the sine negative in its first half."""
        weight = self._linear[0].weights[0]
        cos, sin = self._body.rotary_emb(weight, torch.arange(SHORT)[None])
        sin[..., : self.width // 2].neg_()
        return cos[0], sin[0]

    def states(self, ids: Tensor, packing: Packing, rows: Tensor | None) -> Tensor:
        """Return final states (rows, hidden), as `Decoder.states_at`; of all tokens for None."""
        gains = [
            own.gain if isinstance(own, FrozenRMSNorm) else own.merged_weight()
            for own in self.norms
        ]
        coefficients = [linear.coefficients for linear in self._linear]
        embedded = self._body.embed_tokens(ids)
        return _Body.apply(self, _Row(self, packing, rows), embedded, *gains, *coefficients)
