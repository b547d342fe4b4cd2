"""A model presented after a move, read tensor by tensor."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from checkpoints.reading import Derived, Model
from merges.alignment import moves
from merges.alignment.groups import Group
from merges.alignment.moves import Element

if TYPE_CHECKING:
    import torch

_KEPT = 8  # moved tensors in memory: the engine's threads read pieces of as many at once


class Moved(Derived):
    """A model whose weights are moved when they are read.

    Rows of an embedding or head are moved by themselves. Any other tensor is read whole.

    Args:
        origin: The model that is read.
        group: Its symmetry group.
        element: The move.
        folded: Whether the norms' gains go into the matrices first.
    """

    def __init__(self, origin: Model, group: Group, element: Element, folded: bool = False) -> None:
        self.path, self.config, self.origin = origin.path, origin.config, origin
        self.notes, self.copies = origin.notes, origin.copies
        self.group, self.element, self._folded = group, element, folded
        self._slots = group.slots()
        self._lock = threading.Lock()
        self._tensor = functools.lru_cache(maxsize=_KEPT)(self._whole)

    def _moved(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        slots = self._slots[name]
        if self._folded:
            tensor = moves.fold(slots, tensor, self.origin.load)
        return moves.apply(self.group, slots, self.element, tensor)

    def _whole(self, name: str) -> torch.Tensor:
        return self._moved(name, self.origin.load(name)).flatten()

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        shape = self.shape(name)
        if len(shape) == 2 and self._slots[name][0].rows is None:
            first, last = start // shape[1], -(-stop // shape[1])
            rows = self.origin.read(name, first * shape[1], last * shape[1]).view(-1, shape[1])
            own = self._moved(name, rows).flatten()
            return own[start - first * shape[1] :][: stop - start]
        with self._lock:
            # A copy: methods overwrite what they are given.
            return self._tensor(name)[start:stop].clone()
