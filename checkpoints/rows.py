"""A model whose rows per token are put in the order of another vocabulary while they are read."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from checkpoints.dtypes import name_of, torch_type
from checkpoints.names import has_row_per_token, with_vocabulary_size
from checkpoints.reading import Derived, Model

if TYPE_CHECKING:
    import torch

OWN, BASE, MEAN = 0, 1, 2
Holder = tuple[Model, int]  # a model and the row that it has for a token


@dataclass(frozen=True)
class Rows:
    """Where each row of a result comes from: the model itself, the base, or a mean of models.

    Attributes:
        origin: OWN, BASE or MEAN for each row, [rows].
        place: The row in that model, [rows]; of no meaning for a mean.
        means: For rows of a mean, the models with their rows.
    """

    origin: np.ndarray
    place: np.ndarray
    means: dict[int, list[Holder]] = field(default_factory=dict)

    def is_identity(self, rows: int) -> bool:
        """Return whether a model of so many rows stays as it is."""
        return (
            len(self.origin) == rows
            and not self.origin.any()
            and bool((self.place == np.arange(rows)).all())
        )

    def runs(self, first: int, last: int) -> list[tuple[int, int, int, int]]:
        """Group rows [first, last) that are consecutive: (row, count, origin, place)."""
        origin, place = self.origin[first:last], self.place[first:last]
        apart = (np.diff(origin) != 0) | (np.diff(place) != 1) | (origin[1:] == MEAN)
        begins = [0, *(np.flatnonzero(apart) + 1).tolist(), last - first]
        return [
            (first + begin, end - begin, int(origin[begin]), int(place[begin]))
            for begin, end in itertools.pairwise(begins)
            if end > begin
        ]


class Reordered(Derived):
    """A model whose rows per token are those of another vocabulary.

    Args:
        model: The model.
        base: What rows that it lacks come from.
        rows: Where each row comes from.
    """

    def __init__(self, model: Model, base: Model, rows: Rows) -> None:
        self.path = model.path
        self.config = with_vocabulary_size(model.config, len(rows.origin))
        self.origin, self._base, self._rows = model, base, rows

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape, with as many rows as the common vocabulary."""
        shape = self.origin.shape(name)
        return (len(self._rows.origin), *shape[1:]) if has_row_per_token(name) else shape

    def dtype(self, name: str) -> str:
        """Return the type in which a parameter is read; one that also holds the base's rows."""
        own = self.origin.dtype(name)
        lacking = has_row_per_token(name) and self._rows.origin.any()
        if self.origin is self._base or not lacking:
            return own
        import torch

        wide = torch.promote_types(torch_type(own), torch_type(self._base.dtype(name)))
        return name_of(wide) or own

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if not has_row_per_token(name):
            return self.origin.read(name, start, stop)
        import torch

        columns = math.prod(self.shape(name)[1:])
        first, last = start // columns, -(-stop // columns)
        values = torch.empty(last - first, columns, dtype=torch_type(self.dtype(name)))
        for row, count, origin, place in self._rows.runs(first, last):
            target = values[row - first : row - first + count]
            if origin == MEAN:
                target.copy_(self._mean(name, columns, row))
            else:
                source = self.origin if origin == OWN else self._base
                held = source.read(name, place * columns, (place + count) * columns)
                target.copy_(held.reshape(count, columns))
        return values.flatten()[start - first * columns : stop - first * columns]

    def _mean(self, name: str, columns: int, row: int) -> torch.Tensor:
        """Average a token's rows, rounded to the base's type: the same for all that lack it."""
        import torch

        total = torch.zeros(columns, dtype=torch.float64)
        holders = self._rows.means[row]
        for model, place in holders:
            total += model.read(name, place * columns, (place + 1) * columns)
        return (total / len(holders)).to(torch_type(self._base.dtype(name)))
