"""Weight matching: the element of the group that brings one model's weights nearest to another's.

Given the residual stream's move, the layers' moves are independent of each other, and given all of
them, the stream's is one problem again. The two are solved in turn (Git Re-Basin's coordinate
descent with two blocks) from what the embeddings alone say of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints.checking import check_finite
from checkpoints.reading import Model
from common.progress import Progress
from merges.alignment import moves, solving, transport
from merges.alignment.groups import RESIDUAL, Group, Slot
from merges.alignment.moves import Change, Element

ROUNDS = 100
_LEAST = 1e-12  # a gain below it, as a share of all, is rounding


@dataclass
class Matching:
    """What matching found.

    Attributes:
        element: The element.
        before: Cosine of the models' weights as they are.
        after: That of the moved ones.
    """

    element: dict[str, Change]
    before: float
    after: float


def _parts(group: Group, slots: tuple[Slot, ...], tensor: Tensor) -> Iterator[tuple[Slot, Tensor]]:
    """Yield the slots of a tensor with their parts of it."""
    if len(slots) == 1:
        yield slots[0], tensor
        return
    parts = tensor.unflatten(0, (group.heads, len(slots), group.head)).unbind(1)
    for slot, part in zip(slots, parts, strict=True):
        yield slot, part.flatten(0, 1)


def _load(model: Model, name: str) -> Tensor:
    tensor = model.load(name)
    check_finite(tensor, name, model.path)
    return tensor.double()


class _Descent:
    """The state of one matching.

    Args:
        group: The symmetry group of both.
        reference: The model that stays.
        model: The model that is moved.
        rotated: Whether the group's rotations are used; otherwise places and signs alone.
    """

    def __init__(self, group: Group, reference: Model, model: Model, rotated: bool) -> None:
        self._group, self._reference, self._model = group, reference, model
        self._rotated = rotated
        self._slots = {name: group.slots()[name] for name in reference.names()}
        self.element: dict[str, Change] = {}

    def _names(self, layer: int | None) -> list[str]:
        """Return the tensors of a layer, or of none."""
        of_layer = {n for n, own in self._slots.items() if any(_layer(s) == layer for s in own)}
        return sorted(of_layer)

    def _pairs(self, names: list[str]) -> Iterator[tuple[Slot, Tensor, Tensor]]:
        for name in names:
            own, other = (_load(model, name) for model in (self._reference, self._model))
            slots = self._slots[name]
            parts = zip(
                _parts(self._group, slots, own), _parts(self._group, slots, other), strict=True
            )
            for (slot, one), (_, two) in parts:
                yield slot, one, two

    def stream(self, names: list[str]) -> None:
        """Solve for the residual stream's move, from some tensors."""
        gram = torch.zeros(self._group.width, self._group.width, dtype=torch.float64)
        gains = torch.zeros_like(gram)
        others = {space: move for space, move in self.element.items() if space != RESIDUAL}
        for slot, one, two in self._pairs(names):
            if RESIDUAL not in (slot.rows, slot.columns):
                continue
            if slot.gain:
                gains += torch.outer(one + slot.offset, two + slot.offset)
                continue
            two = moves.apply(self._group, (slot,), others, two)
            gram += _products(one, two, slot.columns == RESIDUAL)
        rotated = self._rotated and self._group.foldable
        self.element[RESIDUAL] = solving.residual(self._group, gram, gains, rotated)

    def grams(self, number: int) -> dict[str, Tensor]:
        """Return the inner products of a layer's units, given the residual stream's move."""
        stream = {RESIDUAL: self.element[RESIDUAL]}
        grams: dict[str, Tensor] = {}
        for slot, one, two in self._pairs(self._names(number)):
            two = moves.apply(self._group, (slot,), stream, two)
            for space, columns in ((slot.rows, False), (slot.columns, True)):
                if space is not None and _layer_of(space) == number and "gain" not in space:
                    kind = space.split(".")[0]
                    grams[kind] = grams.get(kind, 0) + _products(one, two, columns)
        return grams

    def layer(self, number: int) -> None:
        """Solve for a layer's moves."""
        grams = self.grams(number)
        self.element |= solving.hidden(self._group, number, grams)
        self.element |= solving.heads(self._group, number, grams, self._rotated)

    def soften(self, entropy: float) -> None:
        """Replace the moves of hidden units by mixtures."""
        for number in range(self._group.layers):
            self.element |= transport.soften(self._group, number, self.grams(number), entropy)

    def similarity(self, element: Element) -> float:
        """Return the cosine of the reference's weights and the moved ones, norms left out."""
        product = own = other = 0.0
        for name in self._slots:
            slots = self._slots[name]
            if slots[0].gain:
                continue
            one, two = (_load(model, name) for model in (self._reference, self._model))
            two = moves.apply(self._group, slots, element, two)
            product += float((one * two).sum())
            own, other = own + float(one.square().sum()), other + float(two.square().sum())
        return product / max((own * other) ** 0.5, 1e-300)

    def run(self, progress: Progress) -> Matching:
        """Alternate until the weights come no nearer."""
        before, best = self.similarity({}), -1.0
        self.stream(self._names(None))
        kept = dict(self.element)
        for _ in range(ROUNDS):
            for number in range(self._group.layers):
                self.layer(number)
            self.stream(list(self._slots))
            found = self.similarity(self.element)
            progress.step(note=f"cosine {found:.4f}")
            if found <= best + _LEAST:
                break
            kept, best = dict(self.element), found
        self.element = kept
        return Matching(kept, before, best)


def _layer_of(space: str | None) -> int | None:
    return None if space in (None, RESIDUAL) else int(str(space).split(".")[1])


def _layer(slot: Slot) -> int | None:
    found = _layer_of(slot.rows)
    return _layer_of(slot.columns) if found is None else found


def _products(one: Tensor, two: Tensor, columns: bool) -> Tensor:
    """Return the inner products of rows, or of columns, of two tensors of one shape."""
    if one.dim() == 1:
        return torch.outer(one, two)
    return one.T @ two if columns else one @ two.T


def match(
    group: Group,
    reference: Model,
    model: Model,
    rotated: bool,
    what: str,
    entropy: float | None = None,
) -> Matching:
    """Match a model's weights with a reference's.

    Args:
        group: The symmetry group of both.
        reference: The model that stays; with folded gains if rotations are allowed.
        model: The model that is moved, likewise.
        rotated: Whether rotations are used (of values, frequencies, and the residual stream
            where its gains are folded) instead of places and signs alone.
        what: What the progress line calls it.
        entropy: Of a plan by which hidden units become mixtures at the end, see
            `merges.alignment.transport.soften`; None for none.

    Source:
        Git Re-Basin: Merging Models modulo Permutation Symmetries, arXiv:2209.04836, section 3.2;
        heads nested within their groups, signs and rotations are ours.
    """
    descent = _Descent(group, reference, model, rotated)
    found = descent.run(Progress(ROUNDS, what))
    if entropy is not None:
        descent.soften(entropy)
        found = Matching(descent.element, found.before, descent.similarity(descent.element))
    return found


def compared(group: Group, reference: Model, model: Model, element: dict[str, Change]) -> Matching:
    """Return an element that was found elsewhere with the cosines before and after it."""
    descent = _Descent(group, reference, model, False)
    return Matching(element, descent.similarity({}), descent.similarity(element))
