"""Elements of the symmetry group, drawn at random, inverted, and applied to weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from merges.alignment.groups import RESIDUAL, Group, Slot

PARTS = ("hidden", "scales", "values", "turns", "gains", "heads", "groups", "residual", "signs")


class Move(NamedTuple):
    """A change of basis of one space: x -> T x, new unit i being blocks[i] times old order[i].

    Attributes:
        order: Old unit of each new one, (units,), int64.
        blocks: (units, size, size), float64; None for none.
    """

    order: Tensor
    blocks: Tensor | None = None

    def rows(self, values: Tensor) -> Tensor:
        """Return T values, for values of shape (units * size, ...)."""
        own = values.unflatten(0, (len(self.order), -1))[self.order]
        if self.blocks is not None:
            blocks, flat = self.blocks, own.flatten(2) if own.dim() > 2 else own[..., None]
            own = _times(blocks, flat, values).view(own.shape)
        return own.flatten(0, 1)

    def columns(self, values: Tensor) -> Tensor:
        """Return values T^-1, for values of shape (..., units * size)."""
        own = values.unflatten(-1, (len(self.order), -1))[..., self.order, :]
        if self.blocks is not None:
            turned = own.movedim(-2, 0).flatten(1, -2).mT  # (units, size, rows)
            inverse = torch.linalg.inv(self.blocks).mT
            moved = _times(inverse, turned, values).mT
            own = moved.reshape(len(self.order), *own.shape[:-2], own.shape[-1]).movedim(0, -2)
        return own.flatten(-2)

    def gain(self, values: Tensor) -> Tensor:
        """Return a norm's gain (units,) as it is moved: it has no sign, and folded ones are 1."""
        return values[self.order] if len(self.order) == len(values) else values

    def inverse(self) -> Move:
        """Return the move that undoes this one."""
        order = self.order.argsort()
        blocks = None if self.blocks is None else torch.linalg.inv(self.blocks)[order]
        return Move(order, blocks)

    def after(self, first: Move) -> Move:
        """Return the move that is first another one and then this one."""
        order, blocks = first.order[self.order], self.blocks
        if first.blocks is not None:
            earlier = first.blocks[self.order]
            blocks = earlier if blocks is None else blocks @ earlier
        return Move(order, blocks)


class Change(Protocol):
    """A `Move`, or what else acts on a space."""

    @property
    def blocks(self) -> Tensor | None: ...
    def rows(self, values: Tensor) -> Tensor: ...
    def columns(self, values: Tensor) -> Tensor: ...


Element = Mapping[str, Change]  # by space; a space that is not there is not moved


def _times(blocks: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """Multiply (units, size, size) by (units, size, n) in float64, rounded once.

    Units of one value are only scaled, so that a change of sign is exact.
    """
    wide = values.double()
    found = blocks * wide if blocks.shape[-1] == 1 else blocks @ wide
    return found.to(like.dtype)


def identity(units: int) -> Tensor:
    """Return the order that changes nothing."""
    return torch.arange(units)


def attention(
    group: Group,
    layer: int,
    groups: Tensor,
    within: Tensor,
    values: Tensor | None = None,
    keys: Tensor | None = None,
) -> dict[str, Move]:
    """Return the moves of a layer's attention.

    Args:
        group: The symmetry group.
        layer: The layer's number.
        groups: Old group of each new one, (groups,).
        within: For each new group, which of the old group's query heads each is, (groups, ratio).
        values: M of each new group, (groups, head, head).
        keys: The matrix on each new group's keys; the queries get its transposed inverse.
    """
    ratio = group.heads // group.groups
    heads = (groups[:, None] * ratio + within).flatten()

    def shared(blocks: Tensor | None) -> Tensor | None:
        return None if blocks is None else blocks.repeat_interleave(ratio, 0)

    contrary = None if keys is None else torch.linalg.inv(keys).mT
    return {
        f"keys.{layer}": Move(groups, keys),
        f"queries.{layer}": Move(heads, shared(contrary)),
        f"values.{layer}": Move(groups, values),
        f"outputs.{layer}": Move(heads, shared(values)),
    }


def mlp(layer: int, order: Tensor, scales: Tensor | None = None) -> dict[str, Move]:
    """Return the moves of a layer's MLP: an order of units, and factors of up's rows."""
    blocks = None if scales is None else scales.double()[:, None, None]
    return {f"gate.{layer}": Move(order), f"up.{layer}": Move(order, blocks)}


def turning(z: Tensor) -> Tensor:
    """Return complex numbers (..., n) as matrices on pairs (i, i + n), (..., 2 n, 2 n)."""
    real, imaginary = torch.diag_embed(z.real), torch.diag_embed(z.imag)
    rows = torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)
    return torch.cat(rows, -2).double()


def draw(
    group: Group, generator: torch.Generator, parts: Collection[str] = PARTS
) -> dict[str, Move]:
    """Draw an element of the group.

    Args:
        group: The group.
        generator: Of the draws, on the CPU.
        parts: Which of `PARTS` are moved: those that the group lacks stay as they are.

    Returns:
        The element. Matrices have singular values near 1, so that no accuracy is lost.
    """

    def shuffled(units: int, part: str) -> Tensor:
        return torch.randperm(units, generator=generator) if part in parts else identity(units)

    def signs(*shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1

    def factors(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator).double() + 0.5) * signs(*shape)

    def near_rotations(count: int, size: int) -> Tensor:
        drawn = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(drawn)[0] + 0.2 * drawn / size**0.5

    # Long because each part of the group is drawn here in turn.
    count, head, rotary = group.groups, group.head, group.rotary
    found: dict[str, Move] = {}
    for layer in range(group.layers):
        order = shuffled(group.hidden, "hidden")
        scaled = group.family.gated and "scales" in parts
        found |= mlp(layer, order, factors(group.hidden) if scaled else None)
        keys = None
        if "turns" in parts and group.family.normalised:
            keys = torch.diag_embed(signs(count, head // 2).repeat(1, 2))
        elif "turns" in parts:
            keys = torch.eye(head, dtype=torch.float64).repeat(count, 1, 1)
            angle = torch.rand(count, rotary // 2, generator=generator).double() * 6.28
            size = torch.rand(count, rotary // 2, generator=generator).double() + 0.5
            keys[:, :rotary, :rotary] = turning(torch.polar(size, angle))
            if rotary < head:
                keys[:, rotary:, rotary:] = near_rotations(count, head - rotary)
        if group.family.normalised and "gains" in parts:
            size = torch.rand(head // 2, generator=generator).double() + 0.5
            one = torch.zeros(1, dtype=torch.int64)
            pairs = torch.diag_embed(size.repeat(2))[None]
            found[f"key_gain.{layer}"] = Move(one, pairs)
            found[f"query_gain.{layer}"] = Move(one, torch.linalg.inv(pairs))
        ratio = group.heads // count
        within = torch.stack([shuffled(ratio, "heads") for _ in range(count)])
        values = near_rotations(count, head) if "values" in parts else None
        found |= attention(group, layer, shuffled(count, "groups"), within, values, keys)
    signed = group.signs and "signs" in parts
    stream = signs(group.width)[:, None, None] if signed else None
    found[RESIDUAL] = Move(shuffled(group.width, "residual"), stream)
    return found


def rotation(matrix: Tensor) -> Move:
    """Return the move x -> matrix x of the residual stream, of weights with folded gains."""
    return Move(torch.zeros(1, dtype=torch.int64), matrix.double()[None])


def inverse(element: Mapping[str, Move]) -> dict[str, Move]:
    """Return the element that undoes another."""
    return {space: move.inverse() for space, move in element.items()}


def _moved(slot: Slot, element: Element, tensor: Tensor) -> Tensor:
    if (move := element.get(slot.rows or "")) is not None:
        if slot.gain:
            assert isinstance(move, Move)  # nothing else acts on a space with norms
            tensor = move.gain(tensor)
        elif slot.offset and move.blocks is not None:
            tensor = move.rows(tensor + slot.offset) - slot.offset
        else:
            tensor = move.rows(tensor)
    if (move := element.get(slot.columns or "")) is not None:
        tensor = move.columns(tensor)
    return tensor


def apply(group: Group, slots: tuple[Slot, ...], element: Element, tensor: Tensor) -> Tensor:
    """Move one tensor.

    Args:
        group: The group, for the heads of fused tensors.
        slots: The tensor's, from `Group.slots`.
        element: The element; it need not be of the group.
        tensor: The weights, in any type.

    Returns:
        The moved weights in the same type; a permutation changes no bit of a value.
    """
    if len(slots) == 1:
        return _moved(slots[0], element, tensor)
    parts = tensor.unflatten(0, (group.heads, len(slots), group.head)).unbind(1)
    moved = [
        _moved(slot, element, part.flatten(0, 1)).unflatten(0, (group.heads, group.head))
        for slot, part in zip(slots, parts, strict=True)
    ]
    return torch.stack(moved, 1).flatten(0, 2)


def apply_all(group: Group, element: Element, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move all tensors of a model; see `apply`."""
    slots = group.slots()
    return {name: apply(group, slots[name], element, own) for name, own in tensors.items()}


def fold(slots: tuple[Slot, ...], tensor: Tensor, load: Callable[[str], Tensor]) -> Tensor:
    """Return a tensor after the norms' gains went into the matrices that read them.

    Args:
        slots: The tensor's.
        tensor: The weights; a gain becomes 1.
        load: Returns a gain by its name.
    """
    slot = slots[0]
    if slot.gain:
        return torch.ones_like(tensor) - slot.offset
    if slot.reads is None:
        return tensor
    gain = load(slot.reads).double() + slot.offset
    return (tensor.double() * gain).to(tensor.dtype)
