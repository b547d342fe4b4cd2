"""Brings experts that have no common base to the basis of one model, before any merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from checkpoints.reading import Model
from common.errors import UserError, nearest
from merges.alignment.moved import Moved

# By name, what `--align` knows; `python -m merges align --list` prints it.
METHODS: Mapping[str, str] = {
    "weights": "weight matching (Git Re-Basin): places and signs of units, heads and values",
    "rotations": "weight matching with rotations of values, frequencies and the residual stream",
}


class Aligned(NamedTuple):
    """Models in one basis.

    Attributes:
        reference: The model that the others were brought to; with folded gains where the residual
            stream is rotated.
        experts: The experts by name, moved.
        notes: A sentence for each expert.
    """

    reference: Model
    experts: dict[str, Model]
    notes: tuple[str, ...]


def check_method(method: str) -> None:
    """Refuse an unknown method; a UserError names the nearest."""
    if method not in METHODS:
        raise UserError(f"--align {method}: unknown{nearest(method, METHODS)}")


def align_models(reference: Model, experts: Mapping[str, Model], method: str) -> Aligned:
    """Move experts to the basis of a reference.

    Args:
        reference: The base, or an expert in its place. It stays as it is, except that its gains
            are folded where the residual stream is rotated.
        experts: Models of its architecture, shapes and vocabulary; one with the reference's
            weights is not moved.
        method: A key of `METHODS`.

    Returns:
        The moved models, which compute what they did before.

    Raises:
        UserError: An unknown method or architecture.
    """
    check_method(method)
    # numpy and torch are enough to look at headers; matching imports more.
    from merges.alignment.groups import group_of
    from merges.alignment.weights import match

    group = group_of(reference.config, reference.names(), reference.path)
    rotated = method == "rotations"
    folded = rotated and group.foldable
    target = Moved(reference, group, {}, folded) if folded else reference
    moved: dict[str, Model] = {}
    notes = []
    for name, expert in experts.items():
        if expert is reference or expert.fingerprint == reference.fingerprint:
            moved[name] = target
            continue
        own = Moved(expert, group, {}, folded)
        found = match(group, target, own, rotated, f"aligning {name}")
        moved[name] = Moved(expert, group, found.element, folded)
        notes.append(
            f"expert {name} was aligned to {reference.path.name} ({method}): the cosine of their "
            f"weights was {found.before:.3f} and is {found.after:.3f}"
        )
    return Aligned(target, moved, tuple(notes))
