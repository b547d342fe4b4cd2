"""Slices: which layers of which models make each layer of a merge.

A slice gives a range of layers [first, end) of one or several models; ranges of a slice are equally
long, and what one method makes of them are the next layers of the result. What comes before the
layers (the embedding) is merged from the models of the first slice, what comes after them (the
final norm, the output head) from those of the last one.

First every model is presented with as many layers as the result has, so that all that compares
models or brings them to one vocabulary sees equal names. Layers where a slice does not take the
model are placeholders that nobody reads. The method then gets columns: for each place in the
slices' lists one model whose layers come from the models at that place.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.reading import Model
from common.errors import UserError, nearest
from common.hashes import combined
from merges.engine.depth import check_class, kinds, layers_of, with_depth, with_layers
from merges.engine.stacks import Stacks, is_before, layer_of

if TYPE_CHECKING:
    import numpy as np
    import torch

BASE = "base"
Ranges = Mapping[str, tuple[int, int]]


def read_slices(items: Sequence[str]) -> list[Ranges]:
    """Read ``--slices`` options, ``NAME=FIRST:END`` with commas between the models of a slice.

    Raises:
        UserError: One is malformed, or names a model twice.
    """
    found: list[Ranges] = []
    for item in items:
        ranges: dict[str, tuple[int, int]] = {}
        for part in item.split(","):
            name, _, limits = part.partition("=")
            first, _, end = limits.partition(":")
            if not (name and first.isdecimal() and end.isdecimal() and len(first + end) < 10):
                raise UserError(f"--slices {item}: give NAME=FIRST:END, such as ja=0:16")
            if name in ranges:
                raise UserError(f"--slices {item}: {name} is there twice; keep one")
            ranges[name] = (int(first), int(end))
        found.append(ranges)
    return found


def columns_of(parts: Sequence[Ranges]) -> dict[str, list[str]]:
    """Return the columns that a method gets: for each name the models of the slices.

    Slices with the same models give a column for each of them. Otherwise columns go by the place
    in a slice, and are named after the models at it. The base is no column.

    Raises:
        UserError: The slices have unlike numbers of models.
    """
    listed = [[name for name in part if name != BASE] for part in parts]
    if all(set(names) == set(listed[0]) for names in listed):
        return {name: [name] * len(parts) for name in listed[0]}
    for number, names in enumerate(listed, 1):
        if len(names) != len(listed[0]):
            raise UserError(
                f"slice {number} merges {len(names)} models ({', '.join(names)}), the first one "
                f"{len(listed[0])} ({', '.join(listed[0])}); a method needs equally many in each"
            )
    return {"/".join(dict.fromkeys(names)): list(names) for names in zip(*listed, strict=True)}


def recorded(slices: Sequence[Sequence[Mapping[str, Any]]]) -> Slices:
    """Return the slices of a manifest, see `Slices.as_json`."""
    parts = ({item["model"]: tuple(item["layer_range"]) for item in part} for part in slices)
    return Slices(tuple(parts), {})


@dataclass(frozen=True)
class Slices:
    """The slices of a merge, checked against its models.

    Attributes:
        parts: For each slice the layers [first, end) of its models by name, in order.
        said: What the result's configuration says of each layer by itself.
    """

    parts: tuple[Ranges, ...]
    said: Mapping[str, list]

    @functools.cached_property
    def columns(self) -> dict[str, list[str]]:
        """The columns; see `columns_of`."""
        return columns_of(self.parts)

    @property
    def based(self) -> bool:
        """Whether the base's layers are among them."""
        return BASE in self.parts[0]

    @functools.cached_property
    def owners(self) -> list[int]:
        """For each layer of the result the number of its slice."""
        return [number for number, part in enumerate(self.parts) for _ in range(_length(part))]

    def part_of(self, tensor: str) -> int:
        """Return the number of the slice that a parameter of the result belongs to."""
        layer = layer_of(tensor)
        if layer is None:
            return 0 if is_before(tensor) else len(self.parts) - 1
        return self.owners[layer.number]

    def stacked(
        self, base: Model | None, experts: Mapping[str, Model]
    ) -> tuple[Model | None, dict[str, Model]]:
        """Return the base and the columns, which are what a method merges.

        Args:
            base: The base, with the result's layers and vocabulary; None without one.
            experts: The experts by name, likewise.
        """
        columns = {
            name: Column([experts[model] for model in models], self)
            for name, models in self.columns.items()
        }
        return base if self.based else None, {**columns}

    def settle(self, config: Mapping, where: Path) -> dict:
        """Return the donor's configuration with the result's layers."""
        return with_layers(config, len(self.owners), self.said, where)

    def as_json(self) -> list[list[dict[str, Any]]]:
        """Return the slices as a manifest records them; lists, since JSON sorts names."""
        return [
            [{"model": name, "layer_range": list(limits)} for name, limits in part.items()]
            for part in self.parts
        ]

    def note(self, head: bool) -> str:
        """Say in a model card where each layer comes from.

        Args:
            head: Whether the result has an output head that is not tied.
        """
        first, last = (" and ".join(f"`{name}`" for name in self.parts[n]) for n in (0, -1))
        after = "the final norm and the output head" if head else "the final norm"
        lines = [
            f"The embedding comes from {first}, {after} from {last}. The layers:\n",
            "| layers | from |\n|---|---|",
        ]
        reached = 0
        for part in self.parts:
            count = _length(part)
            whose = ", ".join(f"`{n}` {a} to {end - 1}" for n, (a, end) in part.items())
            lines.append(f"| {reached} to {reached + count - 1} | {whose} |")
            reached += count
        return "\n".join(lines)


class Column(Model):
    """A model whose parameters come from one model or another, by the slice that they belong to.

    Args:
        models: For each slice the model; all with the result's layers.
        slices: The slices.
    """

    def __init__(self, models: Sequence[Model], slices: Slices) -> None:
        self._models, self._slices = models, slices
        self.path, self.config = models[0].path, models[0].config

    def _of(self, name: str) -> Model:
        return self._models[self._slices.part_of(name)]

    def names(self) -> list[str]:
        """Return the names of all parameters, sorted."""
        return self._models[0].names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape."""
        return self._of(name).shape(name)

    def dtype(self, name: str) -> str:
        """Return the type in which a parameter is read."""
        return self._of(name).dtype(name)

    def stored(self, name: str) -> str:
        """Return the first model's type: a result is stored in one."""
        return self._models[0].stored(name)

    def path_of(self, name: str) -> Path:
        """Return the folder that a parameter comes from."""
        return self._of(name).path

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._of(name).read(name, start, stop)

    def _read_array(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._of(name).read_array(name, start, stop)

    def ahead(self, name: str) -> None:
        """Ask the system to fetch a parameter from the disk."""
        self._of(name).ahead(name)

    @property
    def folders(self) -> list[Path]:
        """The first model's."""
        return self._models[0].folders

    @property
    def shards(self) -> list[Path]:
        """The weight files of all its models."""
        return sorted({shard for model in self._models for shard in model.shards})

    def fingerprint_of(self, kind: str) -> str:
        """Hash those of its models."""
        return combined({str(n): m.fingerprint_of(kind) for n, m in enumerate(self._models)})


def _length(part: Ranges) -> int:
    first, end = next(iter(part.values()))
    return end - first


def _check(parts: Sequence[Ranges], models: Mapping[str, Model]) -> None:
    """Refuse slices that are empty, unlike in length, or of models that are not there."""
    if not parts:
        raise UserError("no slice is given; give at least one")
    for number, part in enumerate(parts, 1):
        if not set(part) - {BASE}:
            raise UserError(f"slice {number} has no expert; give a range of layers of one")
        for name, (first, end) in part.items():
            if name not in models:
                raise UserError(f"slice {number}: no model {name!r}{nearest(name, models)}")
            depth = _depth(models[name])
            if not 0 <= first < end <= depth:
                raise UserError(
                    f"slice {number}: {name} ({models[name].path}) has the layers 0:{depth}, and "
                    f"{first}:{end} is asked for; give FIRST:END within them, FIRST below END"
                )
        if len({end - first for first, end in part.values()}) > 1:
            said = ", ".join(f"{name} {first}:{end}" for name, (first, end) in part.items())
            raise UserError(
                f"slice {number}: ranges of unlike lengths ({said}); give equally many layers of "
                "each model"
            )
    if len({BASE in part for part in parts}) > 1:
        raise UserError("the base is in some slices only; give its layers in all of them or none")
    if idle := [name for name in models if not any(name in p for p in parts) and name != BASE]:
        raise UserError(f"no slice takes layers of {idle[0]}; leave the model out")


def _depth(model: Model) -> int:
    """Return the number of layers that the text passes through."""
    stacks = Stacks(model.names())
    return 1 + stacks.limits[stacks.main][1] if stacks.main else 0


def _is_whole(parts: Sequence[Ranges], models: Mapping[str, Model]) -> bool:
    """Return whether the slices are complete models, cut into pieces with separate parameters."""
    if any(set(part) != set(parts[0]) for part in parts):
        return False
    reached = 0
    for part in parts:
        if any(first != reached for first, _ in part.values()):
            return False
        reached += _length(part)
    return all(_depth(models[name]) == reached for name in parts[0])


def _said(parts: Sequence[Ranges], models: Mapping[str, Model]) -> dict[str, list]:
    """Return what the result's configuration says of each layer by itself.

    Raises:
        UserError: Layers of unlike kinds would be merged into one.
    """
    known = {name: kinds(model.config, len(layers_of(model))) for name, model in models.items()}
    keys = known[next(iter(parts[0]))].keys()
    found: dict[str, list] = {key: [] for key in keys}
    for number, part in enumerate(parts, 1):
        for key in keys:
            rows = [known[name].get(key, [])[first:end] for name, (first, end) in part.items()]
            if any(row != rows[0] for row in rows):
                raise UserError(
                    f"slice {number}: layers of unlike kinds ({key} {rows}) cannot be merged; give "
                    "ranges of one pattern"
                )
            found[key] += rows[0]
    return found


def arrange(
    base: Model | None, experts: Mapping[str, Model], parts: Sequence[Ranges]
) -> tuple[Model | None, dict[str, Model], Slices | None]:
    """Present models as a merge of slices takes them.

    Args:
        base: The base, or None. Its layers are merged where the slices name it; otherwise it is
            what configuration and tokenizer come from.
        experts: The experts by name.
        parts: The slices; see `Slices`.

    Returns:
        The base and the experts with as many layers as the result has, and the slices; the models
        as they are, and None, where the slices go through all layers of all models in order.

    Raises:
        UserError: A slice is empty, names no model, goes beyond a model's layers, has ranges of
            unlike lengths or kinds, or the models have several stacks of layers.
    """
    models = {**({} if base is None else {BASE: base}), **experts}
    _check(parts, models)
    columns_of(parts)
    if _is_whole(parts, models):
        return base, dict(experts), None
    slices = Slices(tuple(parts), _said(parts, models))
    arranged = {}
    for name, model in models.items():
        layers = []
        for part in parts:
            # Where a slice does not take this model, a layer of the same number fills the place.
            first, end = part.get(name, next(iter(part.values())))
            layers += [min(layer, _depth(model) - 1) for layer in range(first, end)]
        arranged[name] = with_depth(model, layers, slices.settle(model.config, model.path))
    column, owners = next(iter(slices.columns.items()))
    experts = {name: arranged[name] for name in experts}
    check_class(slices.stacked(None, experts)[1][column], models[owners[0]])
    return arranged.get(BASE), experts, slices
