"""Brings experts that have no common base to the basis of one model, before any merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from checkpoints.reading import Model
from common.errors import UserError, nearest
from merges.alignment.moved import Moved

if TYPE_CHECKING:
    from merges.alignment.groups import Group
    from merges.alignment.weights import Matching

# By name, what `--align` knows; `python -m merges align --list` prints it.
METHODS: Mapping[str, str] = {
    "weights": "weight matching (Git Re-Basin): places and signs of units, heads and values",
    "rotations": "weight matching with rotations of values, frequencies and the residual stream",
    "activations": "places and signs in which units answer alike on --align-rows",
    "activation-rotations": "the same with rotations",
    "transport": "weight matching whose hidden units end as mixtures (optimal transport)",
}
ROWS = 256  # of each file that activations are compared on


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


def check_method(method: str, rows: Sequence[Path]) -> None:
    """Refuse an unknown method, and rows that it lacks or has no use for.

    Raises:
        UserError: Says the nearest name, or the option that is missing or superfluous.
    """
    if method not in METHODS:
        raise UserError(f"--align {method}: unknown{nearest(method, METHODS)}")
    if method.startswith("activation") != bool(rows):
        what = "reads no rows; leave --align-rows out" if rows else "needs --align-rows FILE"
        raise UserError(f"--align {method}: it {what}")


def align_models(
    reference: Model, experts: Mapping[str, Model], method: str, rows: Sequence[Path] = ()
) -> Aligned:
    """Move experts to the basis of a reference.

    Args:
        reference: The base, or an expert in its place. It stays as it is, except that its gains
            are folded where the residual stream is rotated.
        experts: Models of its architecture, shapes and vocabulary; one with the reference's
            weights is not moved.
        method: A key of `METHODS`.
        rows: JSON lines that models are run on, for activations: the first `ROWS` of each file.

    Returns:
        The moved models, which compute what they did before (but for ``transport``).

    Raises:
        UserError: An unknown method or architecture, bad rows, or weights that are not finite.
    """
    check_method(method, rows)
    # numpy and torch are enough to look at headers; matching imports more.
    from merges.alignment import weights
    from merges.alignment.groups import group_of

    group = group_of(reference.config, reference.names(), reference.path)
    rotated = method.endswith("rotations")
    folded = rotated and group.foldable
    target = Moved(reference, group, {}, folded) if folded else reference
    moved: dict[str, Model] = {}
    notes = []
    for name, expert in experts.items():
        if expert is reference or expert.fingerprint == reference.fingerprint:
            moved[name] = target
            continue
        own = Moved(expert, group, {}, folded)
        if rows:
            found = _by_activations(group, target, own, rows, rotated)
        else:
            from merges.alignment.transport import ENTROPY

            entropy = ENTROPY if method == "transport" else None
            found = weights.match(group, target, own, rotated, f"aligning {name}", entropy)
        moved[name] = Moved(expert, group, found.element, folded)
        notes.append(
            f"expert {name} was aligned to {reference.path.name} ({method}): the cosine of their "
            f"weights was {found.before:.3f} and is {found.after:.3f}"
        )
    return Aligned(target, moved, tuple(notes))


def _by_activations(
    group: Group, reference: Model, model: Model, rows: Sequence[Path], rotated: bool
) -> Matching:
    from merges.alignment import activations, weights
    from merges.statistics.files import read_rows

    data = [own.first(ROWS) for own in read_rows(reference, rows, reference.path.name)]
    element = activations.match(group, reference, model, data, rotated)
    return weights.compared(group, reference, model, {**element})
