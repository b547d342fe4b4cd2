"""A model under other names: a tied head made explicit, stacked experts taken apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from checkpoints.reading import Derived, Model

if TYPE_CHECKING:
    import torch


class Place(NamedTuple):
    """Where a parameter's values are.

    Attributes:
        name: The parameter of the original that holds them.
        shape: The shape under which they are presented.
        start: Row-major position of the first value in the original.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0


class Presented(Derived):
    """A model whose parameters are consecutive values of another's, under other names.

    Args:
        origin: The model that is read.
        places: Every parameter that is presented.
        config: The configuration that fits these parameters.
    """

    def __init__(self, origin: Model, places: Mapping[str, Place], config: dict[str, Any]) -> None:
        self.path, self.config, self.origin = origin.path, config, origin
        self._places = dict(sorted(places.items()))

    def names(self) -> list[str]:
        """Return the names of all parameters, sorted."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape."""
        return self._places[name].shape

    def dtype(self, name: str) -> str:
        """Return the type in which a parameter is read."""
        return self.origin.dtype(self._places[name].name)

    def stored(self, name: str) -> str:
        """Return the type in which a parameter of a result like this model is stored."""
        return self.origin.stored(self._places[name].name)

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        place = self._places[name]
        return self.origin.read(place.name, place.start + start, place.start + stop)

    def _read_array(self, name: str, start: int, stop: int) -> np.ndarray:
        place = self._places[name]
        return self.origin.read_array(place.name, place.start + start, place.start + stop)

    def ahead(self, name: str) -> None:
        """Ask the system to fetch a parameter from the disk while other work is done."""
        self.origin.ahead(self._places[name].name)


def whole(model: Model, names: Mapping[str, str]) -> dict[str, Place]:
    """Return places of complete parameters.

    Args:
        model: The model that is read.
        names: The original's names by the names under which they are presented.
    """
    return {new: Place(old, model.shape(old)) for new, old in names.items()}


def apart(name: str, shape: tuple[int, ...], parts: Mapping[int, list[str]]) -> dict[str, Place]:
    """Take one stacked parameter apart.

    Args:
        name: A parameter of shape [experts, parts * rows, columns].
        shape: Its shape.
        parts: For each expert the names of its parts, in their order.
    """
    experts, rows, columns = shape
    found = {}
    for expert in range(experts):
        count = len(parts[expert])
        own = (rows // count, columns)
        for number, part in enumerate(parts[expert]):
            start = (expert * count + number) * math.prod(own)
            found[part] = Place(name, own, start)
    return found
