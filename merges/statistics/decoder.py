"""A decoder with one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from checkpoints.checking import check_finite
from checkpoints.reading import Model
from common.errors import UserError
from merges.dam.architecture import skeleton
from merges.dam.network import freeze_norms
from merges.dam.packing import Packing
from merges.dam.products import widen_products

# Their layers read hidden states, positions and nothing else, and their embedding is no more than
# a row of the table; tests compare each with the model of transformers.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


class LayeredDecoder:
    """The body of a decoder whose layers are read from the checkpoint, used and let go.

    Args:
        model: The checkpoint.
        device: Where a layer computes.

    Attributes:
        layers: Number of layers.
        hidden: Width of the hidden states.
        dtype: Type of the weights, in which the layers compute.

    Raises:
        UserError: The architecture is none of `ARCHITECTURES`.
    """

    def __init__(self, model: Model, device: str = "cpu") -> None:
        kind = model.config.get("model_type")
        if kind not in ARCHITECTURES:
            raise UserError(
                f"{model.path}: statistics know the architectures {', '.join(ARCHITECTURES)}, "
                f"not {kind!r}; use such a model"
            )
        whole = skeleton(model.config)
        self._model, self._device = model, device
        self._body, self._prefix = whole.base_model, f"{whole.base_model_prefix}."
        self._all: list[nn.Module] = list(self._body.layers)
        self._norm = self._body.norm
        self._body.embed_tokens, self._body.norm = nn.Identity(), nn.Identity()
        self._body.layers = nn.ModuleList()
        self._body.to(device)  # the rotary frequencies
        self.layers, self.hidden = len(self._all), model.config["hidden_size"]
        self.dtype = self._read(f"{self._prefix}norm.weight").dtype

    def _read(self, name: str) -> Tensor:
        tensor = self._model.load(name)
        check_finite(tensor, name, self._model.path)
        return tensor.to(self._device)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up tokens (tokens,), reading only the rows that occur: (tokens, hidden)."""
        name, width = f"{self._prefix}embed_tokens.weight", self.hidden
        found, places = ids.unique(return_inverse=True)
        rows = [self._model.read(name, i * width, (i + 1) * width) for i in found.tolist()]
        table = torch.stack(rows)
        check_finite(table, name, self._model.path)
        return table[places].to(self.dtype)

    def module_name(self, layer: int | None) -> str:
        """Return the name of a layer's module in the checkpoint, of the final norm for None."""
        return f"{self._prefix}norm" if layer is None else f"{self._prefix}layers.{layer}"

    def head(self, name: str) -> Tensor:
        """Read the output matrix (vocabulary, hidden)."""
        return self._read(name)

    @contextmanager
    def layer(self, number: int) -> Iterator[nn.Module]:
        """Hold a layer's weights, and let them go afterwards."""
        module = self._all[number]
        top = f"{self.module_name(number)}."
        names = [name for name, _ in module.named_parameters()]
        weights = {name: self._read(top + name) for name in names}
        module.load_state_dict(weights, assign=True)
        module.requires_grad_(False)
        plain = freeze_norms(module)
        widen_products(module)
        self._body.layers = nn.ModuleList([module])
        try:
            yield module
        finally:
            self._body.layers = nn.ModuleList()
            for name, norm in plain.items():
                module.set_submodule(name, norm)
            module.to("meta")

    @contextmanager
    def final_norm(self) -> Iterator[nn.Module]:
        """Hold the final norm."""
        weight = self._read(f"{self._prefix}norm.weight")
        self._norm.load_state_dict({"weight": weight}, assign=True)
        self._norm.requires_grad_(False)
        yield self._norm
        self._norm.to("meta")

    def run(self, hidden: Tensor, packing: Packing) -> Tensor:
        """Run the layer that is held on the packed hidden states (tokens, hidden)."""
        output = self._body(
            inputs_embeds=hidden[None],
            position_ids=packing.positions,
            use_cache=False,
            packing=packing,
        )
        return output.last_hidden_state.squeeze(0)


def batches(lengths: Sequence[int], tokens: int) -> Iterator[tuple[int, int, list[int]]]:
    """Group rows, never cutting one: yield the first token, the end, and the rows' lengths.

    Args:
        lengths: Tokens of each row.
        tokens: Most tokens of a group that has more than one row.
    """
    start = 0
    own: list[int] = []
    for length in lengths:
        if own and sum(own) + length > tokens:
            yield start, start + sum(own), own
            start, own = start + sum(own), []
        own.append(length)
    if own:
        yield start, start + sum(own), own
