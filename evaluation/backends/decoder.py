"""A small Llama or Mistral on the CPU, over packed tokens: few operations, none on padding."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.backends.packing import Look, Pass

LARGEST = 1024  # hidden size up to which overhead, and not arithmetic, is what transformers costs
_LAYER = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "before": "input_layernorm",
    "between": "post_attention_layernorm",
}
_EMBEDDING, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
Caches = list[tuple[Tensor, Tensor]]


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the numbers of heads and of heads of keys, and a head's size."""
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    return heads, config.get("num_key_value_heads") or heads, size


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the parameters of a model with this config.json, by name."""
    hidden, inner, words = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    heads, pairs, size = _heads(config)
    layer = {
        "q": (heads * size, hidden),
        "k": (pairs * size, hidden),
        "v": (pairs * size, hidden),
        "o": (hidden, heads * size),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
        "before": (hidden,),
        "between": (hidden,),
    }
    found: dict[str, tuple[int, ...]] = {_EMBEDDING: (words, hidden), _NORM: (hidden,)}
    if not config.get("tie_word_embeddings"):
        found[_HEAD] = (words, hidden)
    for number in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{number}.{_LAYER[n]}.weight": s for n, s in layer.items()}
    return found


def knows(config: Mapping[str, Any], stored: Mapping[str, Sequence[int]]) -> bool:
    """Say whether `Decoder` computes what a model of this config.json and these parameters does.

    Args:
        config: The content of config.json.
        stored: The parameters' shapes by name.
    """
    kind, window = config.get("model_type"), config.get("max_position_embeddings")
    if kind not in ("llama", "mistral") or not window or config.get("hidden_size", 0) > LARGEST:
        return False
    span = config.get("sliding_window", 4096 if kind == "mistral" else None)
    plain = (
        _rope(config).get("rope_type", "default") == "default"
        and not config.get("rope_scaling")
        and "quantization_config" not in config
        and config.get("hidden_act", "silu") == "silu"
        and not config.get("attention_bias")
        and not config.get("mlp_bias")
        and (span is None or span >= window)
    )
    wanted = shapes(config) if plain else {}
    given = {name: tuple(shape) for name, shape in stored.items()}
    return plain and {**given, **wanted} == given and given.keys() - wanted.keys() <= {_HEAD}


@functools.lru_cache
def _turns(theta: float, size: int, window: int) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines by position, [window, 1, 2, size / 2], float32."""
    steps = torch.arange(0, size, 2, dtype=torch.float32) / size
    angles = torch.outer(torch.arange(window, dtype=torch.float32), 1.0 / theta**steps)
    sines = angles.sin()
    turned = torch.stack([-sines, sines], 1)
    return torch.stack([angles.cos()] * 2, 1)[:, None], turned[:, None]


class Decoder:
    """The forward pass of a model that `knows` accepts.

    Args:
        tensors: Its parameters by name, float32; they may be overwritten later on.
        config: The content of its config.json.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self._heads, self._pairs, self._size = _heads(config)
        self._epsilon = config.get("rms_norm_eps", 1e-6)
        theta = float(_rope(config)["rope_theta"])
        self._turns = _turns(theta, self._size, config["max_position_embeddings"])
        self._layers = [
            {key: tensors[f"model.layers.{n}.{name}.weight"] for key, name in _LAYER.items()}
            for n in range(config["num_hidden_layers"])
        ]
        self._embedding, self._final = tensors[_EMBEDDING], tensors[_NORM]
        self._head = self._embedding if config.get("tie_word_embeddings") else tensors[_HEAD]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._epsilon)

    def _turned(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Apply the rotary embedding; [tokens, heads * size] gives [tokens, heads, size]."""
        halves = x.view(len(x), -1, 2, self._size // 2)
        turned = torch.addcmul(halves * turns[0], halves.flip(2), turns[1])
        return turned.view(len(x), -1, self._size)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend, queries of heads with the same keys together.

        Args:
            queries: [rows, asked, heads, size].
            keys, values: [rows, pairs, length, size].
            mask: [rows, 1, asked, length] or a shape that broadcasts to it.

        Returns:
            [rows * asked, heads * size].
        """
        rows, asked = queries.shape[:2]
        group = self._heads // self._pairs
        parts = queries.view(rows, asked, self._pairs, group, self._size).permute(0, 2, 3, 1, 4)
        parts = parts.reshape(rows, self._pairs, group * asked, self._size)
        scores = torch.matmul(parts, keys.transpose(2, 3)).mul_(self._size**-0.5)
        scores.view(rows, self._pairs, group, asked, -1).add_(mask[:, None])
        found = torch.matmul(scores.softmax(-1), values)
        found = found.view(rows, self._pairs, group, asked, self._size).permute(0, 3, 1, 2, 4)
        return found.reshape(rows * asked, self._heads * self._size)

    def _look(self, looks: Sequence[Look], queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend within packed sequences; returns [queries, heads * size]."""
        found = queries.new_empty(len(queries), self._heads * self._size)
        for look in looks:
            own_keys, own_values = (part[look.keys].transpose(1, 2) for part in (keys, values))
            attended = self._attend(queries[look.queries], own_keys, own_values, look.mask)
            found[look.nodes] = attended[look.places]
        return found

    def _rest(self, layer: Mapping[str, Tensor], x: Tensor, attended: Tensor) -> Tensor:
        """Add what a layer's attention found, then its MLP."""
        x = torch.addmm(x, attended, layer["o"].T)
        normed = self._norm(x, layer["between"])
        inner = F.silu(F.linear(normed, layer["gate"]), inplace=True)
        return torch.addmm(x, inner.mul_(F.linear(normed, layer["up"])), layer["down"].T)

    def _keys(self, layer: Mapping[str, Tensor], normed: Tensor, turns: Any) -> tuple[Tensor, ...]:
        keys = self._turned(F.linear(normed, layer["k"]), turns)
        values = F.linear(normed, layer["v"]).view(len(normed), self._pairs, self._size)
        return keys, values

    def read(self, of: Pass) -> tuple[Tensor, Caches]:
        """Read packed sequences.

        Returns:
            The logits of the read nodes, [read, vocabulary]; by layer, the keys and values of all
            nodes, [nodes, pairs, size] each.
        """
        turns = (self._turns[0][of.depths], self._turns[1][of.depths])
        x = self._embedding[of.tokens]
        caches = []
        for number, layer in enumerate(self._layers, 1):
            normed = self._norm(x, layer["before"])
            keys, values = self._keys(layer, normed, turns)
            caches.append((keys, values))
            looks = of.looks
            if number == len(self._layers):
                normed, x, looks = normed[of.read], x[of.read], of.last
                turns = (turns[0][of.read], turns[1][of.read])
            queries = self._turned(F.linear(normed, layer["q"]), turns)
            x = self._rest(layer, x, self._look(looks, queries, keys, values))
        return self.logits(x), caches

    def step(self, tokens: Tensor, places: Tensor, caches: Caches) -> Tensor:
        """Read one more token of each sequence.

        Args:
            tokens: [rows], int64.
            places: [rows], int64; their positions.
            caches: By layer, keys and values [rows, pairs, length, size]; the token's are
                written at its position.

        Returns:
            [rows, vocabulary]; the logits.
        """
        turns = (self._turns[0][places], self._turns[1][places])
        length = int(places.max()) + 1
        rows = torch.arange(len(tokens))
        mask = (torch.arange(length) > places[:, None]) * -1e30
        mask = mask[:, None, None]
        x = self._embedding[tokens]
        for layer, (keys, values) in zip(self._layers, caches, strict=True):
            normed = self._norm(x, layer["before"])
            keys[rows, :, places], values[rows, :, places] = self._keys(layer, normed, turns)
            queries = self._turned(F.linear(normed, layer["q"]), turns)[:, None]
            x = self._rest(
                layer,
                x,
                self._attend(queries, keys[:, :, :length], values[:, :, :length], mask),
            )
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Predict what follows hidden states [n, hidden]; returns [n, vocabulary]."""
        return F.linear(self._norm(x, self._final), self._head)
