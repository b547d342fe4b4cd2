"""All merge coefficients of a model as one flat tensor, with a view for every layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from merges.dam.layers import MergedLinear


class Coefficients:
    """The trainable coefficients of a set of merged linear layers.

    One flat tensor makes one optimiser update and one gradient norm. Layers with equally many
    input columns lie side by side, so that a penalty is a few operations for all of them.

    Args:
        layers: The merged layers by module name; their order is the order in memory.
        models: Number N of merged models.
        dtype: The coefficients' type: fp32, or fp64 for fp64 weights.

    Attributes:
        flat: Every coefficient, a leaf that requires its gradient; starts at 1/N throughout.
    """

    def __init__(
        self, layers: Mapping[str, MergedLinear], models: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self._layers = dict(layers)
        self._models = models
        self._groups: dict[int, list[str]] = {}
        for name, layer in layers.items():
            self._groups.setdefault(layer.in_features, []).append(name)
        self._biased = [name for name, layer in layers.items() if layer.biases is not None]
        self._sizes = [len(names) * models * width for width, names in self._groups.items()]
        self._sizes.append(len(self._biased) * models)
        self.flat = torch.full((sum(self._sizes),), 1 / models, dtype=dtype, requires_grad=True)

    def groups(self) -> tuple[list[Tensor], Tensor]:
        """Return the coefficients by width.

        Returns:
            The column coefficients, one tensor (layers, N, in_features) for each width that
            occurs, and the bias scalars (layers with bias, N); all views of the flat tensor.
        """
        *columns, biases = self.flat.split(self._sizes)
        shaped = [
            block.view(len(names), self._models, width)
            for block, (width, names) in zip(columns, self._groups.items(), strict=True)
        ]
        return shaped, biases.view(-1, self._models)

    def assign(self) -> list[Tensor]:
        """Give every layer its view of the current coefficients.

        Returns:
            The column coefficients by width, as `groups` returns them: penalties computed from
            these share the layers' graph.
        """
        columns, biases = self.groups()
        for block, names in zip(columns, self._groups.values(), strict=True):
            for name, view in zip(names, block.unbind(), strict=True):
                self._layers[name].coefficients = view
        for name, view in zip(self._biased, biases.unbind(), strict=True):
            self._layers[name].bias_coefficients = view
        return columns

    def named(self) -> dict[str, Tensor]:
        """Return detached copies by parameter name.

        Returns:
            (N, in_features) under ``<layer>.weight`` and (N,) under ``<layer>.bias``.
        """
        with torch.no_grad():
            columns, biases = self.groups()
            result = {
                f"{name}.weight": view.clone()
                for block, names in zip(columns, self._groups.values(), strict=True)
                for name, view in zip(names, block, strict=True)
            }
            for name, view in zip(self._biased, biases, strict=True):
                result[f"{name}.bias"] = view.clone()
        return result
