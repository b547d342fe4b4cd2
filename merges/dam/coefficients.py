"""All merge coefficients of a model as one flat tensor, with a view for every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from common.errors import UserError
from merges.dam.layers import MergedLayer, MergedLinear

Granularity = Literal["column", "row", "head", "layer", "model", "common_column"]
Transform = Literal["none", "tanh", "sigmoid", "relu", "clamp"]

_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda raw: raw,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "clamp": lambda raw: raw.clamp(0, 1),
}
# A sigmoid reaches 1 nowhere; a single model starts this far from it.
_MARGIN = 1e-3


@dataclass(frozen=True)
class Form:
    """What is learnt, and how it becomes the factors of the models' weights.

    Attributes:
        granularity: As for `merges.dam.method.dam`; a ``head`` has rows of q, k and v and columns
            of o.
        transform: Maps the trained values to coefficients.
        init: As for `merges.dam.method.dam`, for M models.
        start: Initial value in place of 1/M, None for 1/M.
        task_vectors: Whether the models after the first have the coefficients, and the first,
            the base, what is left to 1: W = W_0 + sum_i c_i * (W_i - W_0).
        seed: Of ``random``.
        dtype: In which values are stored and trained; None for the computation's.
    """

    granularity: Granularity = "column"
    transform: Transform = "none"
    init: Literal["uniform", "random"] = "uniform"
    start: float | None = None
    task_vectors: bool = False
    seed: int = 0
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Spread:
    """How a model's coefficients are laid out over a parameter.

    Attributes:
        count: How many there are.
        shape: That of the coefficients when they are to be broadcast to the parameter's.
        repeat: How many neighbours share one.
    """

    count: int
    shape: tuple[int, ...]
    repeat: int = 1

    def over(self, coefficients: Tensor) -> Tensor:
        """Turn (M, count) into (M, *shape)."""
        if self.repeat > 1:
            coefficients = coefficients.repeat_interleave(self.repeat, 1)
        return coefficients.reshape(len(coefficients), *self.shape)


_SCALAR = Spread(1, (1,))


def _spread(name: str, layer: MergedLayer, granularity: Granularity, head_dim: int) -> Spread:
    rows, columns = layer.weights[0].shape
    projection = name.rpartition(".")[2]
    if granularity in ("column", "common_column"):
        return Spread(columns, (1, columns))
    if granularity == "row":
        return Spread(rows, (rows, 1))
    if granularity == "head" and projection in ("q_proj", "k_proj", "v_proj"):
        return Spread(rows // head_dim, (rows, 1), head_dim)
    if granularity == "head" and projection == "o_proj":
        return Spread(columns // head_dim, (1, columns), head_dim)
    return Spread(1, (1, 1))


@dataclass
class _Slot:
    """A row of coefficients per model, and what it is for."""

    count: int
    users: list[tuple[MergedLayer, str, Spread]]


class Coefficients:
    """The trainable coefficients of a set of merged layers.

    One flat tensor makes one optimiser update and one gradient norm. Parameters with equally many
    coefficients are adjacent, so that a penalty is a few operations for all of them; those of
    biases are at the end and are not penalised.

    Args:
        layers: The merged layers by module name; their order is the order in memory.
        models: Number of models with coefficients: the layers' M, one less for task vectors.
        dtype: The computation's type: fp32, or fp64 for fp64 weights.
        form: What is learnt.
        vectors: Whether a merged embedding or norm has a coefficient per feature, not a scalar.
        head_dim: Width of an attention head.
        device: Where the layers are.

    Attributes:
        flat: Every trained value, a leaf that requires its gradient.

    Raises:
        UserError: A random start of coefficients that all models share.
    """

    def __init__(
        self,
        layers: Mapping[str, MergedLayer],
        models: int,
        dtype: torch.dtype = torch.float32,
        form: Form | None = None,
        vectors: Mapping[str, bool] | None = None,
        head_dim: int = 1,
        device: str = "cpu",
    ) -> None:
        self._form, self._models, self._dtype = form or Form(), models, dtype
        shared = self._form.granularity == "common_column"
        if shared and self._form.init == "random":
            raise UserError(
                "DAM: coefficients that all models share (granularity=common_column) have no "
                "random start; use init=uniform"
            )
        self._rows = 1 if shared else models
        weights, biases = self._slots(layers, vectors or {}, head_dim)
        groups: dict[int, dict[str, _Slot]] = {}
        for name, slot in weights.items():
            groups.setdefault(slot.count, {})[name] = slot
        # Each block holds the slots of one width, the last the biases'.
        self._blocks = [*groups.values(), biases]
        widths = [*groups, 1]
        self._shapes = [
            (len(slots), self._rows, width)
            for slots, width in zip(self._blocks, widths, strict=True)
        ]
        self._sizes = [count * rows * width for count, rows, width in self._shapes]
        self.flat = self._initial().to(device, self._form.dtype or dtype).requires_grad_()

    def _slots(
        self, layers: Mapping[str, MergedLayer], vectors: Mapping[str, bool], head_dim: int
    ) -> tuple[dict[str, _Slot], dict[str, _Slot]]:
        weights: dict[str, _Slot] = {}
        biases: dict[str, _Slot] = {}
        for name, layer in layers.items():
            users = []
            if isinstance(layer, MergedLinear):
                spread = _spread(name, layer, self._form.granularity, head_dim)
            else:
                width = layer.weights[0].shape[-1]
                spread = Spread(width, (width,)) if vectors.get(name) else _SCALAR
            if layer.biases is not None:
                users.append((f"{name}.bias", "bias_coefficients", _SCALAR, biases))
            users.append((f"{name}.weight", "coefficients", spread, weights))
            for key, attribute, own, slots in users:
                if self._form.granularity == "model" and own.count == 1:
                    key, slots = "model", weights
                slots.setdefault(key, _Slot(own.count, [])).users.append((layer, attribute, own))
        return weights, biases

    def _initial(self) -> Tensor:
        form = self._form
        if form.init == "random":
            generator = torch.Generator().manual_seed(form.seed)
            blocks = [
                torch.rand(shape, generator=generator, dtype=self._dtype).softmax(1).view(-1)
                for shape in self._shapes
            ]
            values = torch.cat(blocks)
        else:
            start = 1 / self._models if form.start is None else form.start
            values = torch.full((sum(self._sizes),), start, dtype=self._dtype)
        return values.logit(_MARGIN) if form.transform == "sigmoid" else values

    def blocks(self, values: Tensor | None = None) -> list[Tensor]:
        """Return the trained values by number of coefficients.

        Args:
            values: Something else as long as `flat` to look at, such as its gradient.

        Returns:
            (parameters, M, coefficients) for each number that occurs, and at the end the scalars
            of the biases (biases, M, 1); views. M is 1 where the models share them.
        """
        values = self.flat if values is None else values
        parts = values.split(self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _coefficients(self, block: Tensor) -> Tensor:
        block = _TRANSFORMS[self._form.transform](block)
        if self._rows != self._models:
            block = block.expand(-1, self._models, -1)
        return block

    def assign(self) -> list[Tensor]:
        """Give every layer its view of the current coefficients.

        Returns:
            The trained values by number of coefficients, without the biases': penalties computed
            from these share the layers' graph.
        """
        blocks = self.blocks(self.flat.to(self._dtype))
        for block, slots in zip(blocks, self._blocks, strict=True):
            coefficients = self._coefficients(block)
            if self._form.task_vectors:
                rest = 1 - coefficients.sum(1, keepdim=True)
                coefficients = torch.cat([rest, coefficients], 1)
            for slot, view in zip(slots.values(), coefficients.unbind(), strict=True):
                for layer, attribute, spread in slot.users:
                    setattr(layer, attribute, spread.over(view))
        return blocks[:-1]

    def named(self, values: Tensor | None = None) -> dict[str, Tensor]:
        """Return detached copies by parameter name.

        Args:
            values: None for the coefficients, as the transform leaves them; something else as
                long as `flat`, such as its gradient, is only cut into pieces.

        Returns:
            (M, coefficients) under ``<layer>.weight`` and (M,) under ``<layer>.bias``, in the
            computation's type; under ``model`` those of all parameters.
        """
        result = {}
        with torch.no_grad():
            for block, slots in zip(self.blocks(values), self._blocks, strict=True):
                block = block.to(self._dtype)
                if values is None:
                    block = self._coefficients(block)
                for name, view in zip(slots, block, strict=True):
                    copied = view.clone()
                    result[name] = copied.view(-1) if slots is self._blocks[-1] else copied
        return result
