"""Command line of `python -m merges inspect`: how far experts moved, and what merges kept of it."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.differences import differences, not_finite, opened
from common.cli import add_values, command_parser, count, pairs
from common.errors import UserError
from common.files import write_json
from common.manifest import beside, write_manifest
from merges.inspection_text import text_of
from merges.scaling import Learned, learned, scaling

if TYPE_CHECKING:
    from checkpoints.reading import Model

_MODULES = {  # parts of a name that say which module of a layer a linear layer is in
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "feed_forward", "ffn", "experts", "moe"),
}
_DESCRIPTION = """\
Compare experts and merges with their base, layer by layer and module by module: how far each expert
moved, how alike and how much in conflict they are, and what every merge kept of each expert. Of
DAM's coefficients: how much they rescale the weights in common, and how they mix the experts. With
calibration rows: the loss on the straight lines from the base to a merge and on to the experts.
"""
_EPILOG = """\
For a group of weights (the attention of layer 3), w is the base's values, t_e an expert's task
vector (expert less base) and d what a merge changes (merge less base):
  drift        |t_e| / |w|
  cosine       t_e . t_f / (|t_e| |t_f|)
  conflict     share of the values that at least two experts changed in which their signs differ
  kept         the coefficients c_e that bring sum_e c_e t_e nearest to d (least squares)
  outside      1 - |sum_e c_e t_e|^2 / |d|^2, the share of the change along no expert
  length       |d| / |w|
A uniform soup of three experts keeps 1/3 of each and has nothing outside. A random mask with
rescaling keeps as much on average, and the noise that it adds is outside.

For merges by DAM, W = sum_i W_i diag(c_i), over the columns of a group's weights:
  sum          mean of sum_i c_i: the common rescaling, 1 is none
  spread       the standard deviation of sum_i c_i over the columns
  share of e   mean of c_e in parts of sum: the mixing
Coefficients of task vectors (AdaMerging, task_vectors=true) rescale no common part: see kept.

With --calibration, base, experts and a merge are in memory at a time, in float32:
  loss         nats a token of the answer, over the first --rows rows of an expert
  barrier      how far it rises above the higher end at 1/4, 1/2 or 3/4 of a line

example:
  python -m merges inspect --base models/base --experts ja=models/ja math=models/math \\
      --merges soup=merged/soup ties=merged/ties --out inspection.json
"""


@dataclass
class Sums:
    """What is added up over the values of a group of tensors.

    Attributes:
        products: Inner products of all differences from the base, experts first, then merges;
            float64 [N, N].
        base: Sum of the base's squares.
        values: Number of values.
        moved: Of these, how many at least two experts changed.
        conflicts: Of these, in how many the experts' signs differ.
    """

    products: np.ndarray
    base: float = 0.0
    values: int = 0
    moved: int = 0
    conflicts: int = 0

    def add(self, base: np.ndarray, deltas: np.ndarray, experts: int) -> None:
        """Add a piece of a tensor.

        Args:
            base: Its values in the base, float64 [n].
            deltas: What the other models have more, float64 [N, n].
            experts: How many of these are experts.
        """
        self.products += deltas @ deltas.T
        self.base += float(base @ base)
        self.values += len(base)
        up, down = (deltas[:experts] > 0).sum(axis=0), (deltas[:experts] < 0).sum(axis=0)
        self.moved += int((up + down > 1).sum())
        self.conflicts += int(((up > 0) & (down > 0)).sum())

    def __add__(self, other: Sums) -> Sums:
        """Put two groups together."""
        return Sums(
            self.products + other.products,
            self.base + other.base,
            self.values + other.values,
            self.moved + other.moved,
            self.conflicts + other.conflicts,
        )


@dataclass(frozen=True)
class Group:
    """Where tensors are: the number of their layer, None outside the layers, and their module."""

    layer: int | None
    module: str


def group_of(name: str) -> Group:
    """Return the group of a tensor, by its name in the checkpoint."""
    from checkpoints.names import is_embedding, is_head, kind
    from merges.engine.stacks import layer_of

    found = layer_of(name)
    if is_embedding(name) or is_head(name):
        module = "embedding" if is_embedding(name) else "head"
    elif kind(name) == "norm":
        module = "norm"
    else:
        named = (m for m, words in _MODULES.items() if any(word in name for word in words))
        module = next(named, "other")
    return Group(found.number if found else None, module)


def add_up(
    base: Model, experts: Mapping[str, Model], merges: Mapping[str, Model], go_on: bool = False
) -> tuple[dict[Group, Sums], set[str]]:
    """Read all models once, a piece at a time, and add up what `described` needs of each group.

    Args:
        base: The experts' common ancestor.
        experts: By name, with the base's parameters.
        merges: The same of merges.
        go_on: Whether a merge with NaN or infinity is only named.

    Returns:
        The sums, and the names of such merges, whose numbers mean nothing.

    Raises:
        UserError: A value is NaN or infinite.
    """
    others = {**experts, **merges}
    found: dict[Group, Sums] = {}
    broken: set[str] = set()
    for name, origin, deltas in differences(base, others):
        if wrong := set(not_finite(deltas, others)):
            if not (go_on and wrong <= set(merges)):
                raise UserError(
                    f"tensor {name}: {min(wrong)} or the base holds NaN or infinity; make it again"
                )
            broken |= wrong
            deltas[~np.isfinite(deltas)] = 0.0
        sums = found.setdefault(group_of(name), Sums(np.zeros((len(others), len(others)))))
        sums.add(origin, deltas, len(experts))
    return found, broken


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


@dataclass(frozen=True)
class Description:
    """What is printed and stored of a group of tensors; None where a length is 0.

    Attributes:
        drift: By expert, the length of its task vector in the base's.
        cosine: By two experts' names, joined by a space.
        conflict: Share of the values that at least two experts changed in which they disagree.
        kept: By merge and expert, the coefficient; None for an expert that did not move.
        outside: By merge, the share of its squared change that is along no expert.
        length: By merge, the length of its change in the base's.
        coefficients: By merge that has some, their `sum`, `spread` and `shares`.
    """

    drift: dict[str, float | None] = field(default_factory=dict)
    cosine: dict[str, float | None] = field(default_factory=dict)
    conflict: float | None = None
    kept: dict[str, dict[str, float | None]] = field(default_factory=dict)
    outside: dict[str, float | None] = field(default_factory=dict)
    length: dict[str, float | None] = field(default_factory=dict)
    coefficients: dict[str, dict[str, Any]] = field(default_factory=dict)


def described(sums: Sums, experts: Sequence[str], merges: Sequence[str]) -> Description:
    """Describe a group of tensors by its inner products; see `python -m merges inspect --help`.

    Args:
        sums: What was added up, of these models in this order.
        experts: Names.
        merges: Names.
    """
    products, origin = sums.products, math.sqrt(sums.base)
    lengths = np.sqrt(np.maximum(np.diagonal(products), 0.0))
    count = len(experts)
    found = Description(conflict=_share(sums.conflicts, sums.moved))
    for place, name in enumerate(experts):
        found.drift[name] = _share(float(lengths[place]), origin)
    for one, two in itertools.combinations(range(count), 2):
        product = float(products[one, two])
        pair = f"{experts[one]} {experts[two]}"
        found.cosine[pair] = _share(product, float(lengths[one] * lengths[two]))
    # Experts that did not move have no direction that a merge could follow.
    moved = [place for place in range(count) if lengths[place] > 0]
    among = products[np.ix_(moved, moved)]
    for place, name in enumerate(merges, count):
        along = products[moved, place]
        coefficients = np.linalg.lstsq(among, along, rcond=1e-9)[0] if moved else along
        found.kept[name] = dict.fromkeys(experts) | {
            experts[m]: float(c) for m, c in zip(moved, coefficients, strict=True)
        }
        square = float(products[place, place])
        rest = _share(square - float(coefficients @ along), square)
        found.outside[name] = None if rest is None else min(max(rest, 0.0), 1.0)
        found.length[name] = _share(float(lengths[place]), origin)
    return found


def _rounded(value: Any) -> Any:
    """Round all numbers to six digits, more than any reader can use."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _is_inner(group: Group) -> bool:
    return group.module in (*_MODULES, "other")


def _scalings(
    coefficients: Mapping[str, Learned], belongs: Callable[[Group], bool]
) -> dict[str, dict[str, Any]]:
    """Describe every merge's coefficients of the tensors whose group belongs."""
    found = {}
    for merge, own in coefficients.items():
        if tensors := [own.tensors[name] for name in own.tensors if belongs(group_of(name))]:
            found[merge] = scaling(own.models, tensors)
    return found


def inspected(
    base: Model,
    experts: Mapping[str, Model],
    merges: Mapping[str, Model],
    go_on: bool = False,
    coefficients: Mapping[str, Learned] | None = None,
) -> dict[str, Any]:
    """Compare models with their base; what `python -m merges inspect` writes.

    Args:
        base: The experts' common ancestor.
        experts: By name, with the base's parameters.
        merges: The same of merges.
        go_on: Whether a merge with NaN or infinity is left out.
        coefficients: By merge, what it learnt.

    Returns:
        `experts` and `merges`, their names; `all`, the `Description` of all linear layers between
        embedding and head; `groups`, that of each group with `layer`, `module` and `values`.
    """
    found, broken = add_up(base, experts, merges, go_on)
    kept = [n for n, name in enumerate([*experts, *merges]) if name not in broken]
    for sums in found.values():
        sums.products = sums.products[np.ix_(kept, kept)]
    names = list(experts), [name for name in merges if name not in broken]
    own = {name: each for name, each in (coefficients or {}).items() if name in names[1]}
    inner = [sums for group, sums in found.items() if _is_inner(group)]
    whole = sum(inner[1:], inner[0]) if inner else Sums(np.zeros((1, 1)))
    order = sorted(found, key=lambda group: (group.layer is None, group.layer or 0, group.module))
    groups = [
        {"layer": group.layer, "module": group.module, "values": found[group].values}
        | vars(described(found[group], *names))
        | {"coefficients": _scalings(own, group.__eq__)}
        for group in order
    ]
    about = {"experts": names[0], "merges": names[1]}
    together = vars(described(whole, *names)) | {"coefficients": _scalings(own, _is_inner)}
    return _rounded(about | {"all": together, "groups": groups})


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("merges inspect", _DESCRIPTION, _EPILOG)
    parser.add_argument("--base", type=Path, required=True, metavar="DIR")
    add_values(parser, "--experts", required=True, metavar="NAME=DIR", help="fine-tuned from it")
    add_values(parser, "--merges", metavar="NAME=DIR", help="of these experts; none if absent")
    about = "leave out merges that hold NaN or have other parameters than the base"
    parser.add_argument("--go-on", action="store_true", help=about)
    about = "rows of each expert, for the lines; none are computed if absent"
    add_values(parser, "--calibration", metavar="NAME=FILE", help=about)
    parser.add_argument("--rows", type=count, default=48, metavar="N", help="of each (48)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write")
    parser.add_argument("--threads", type=int, default=1, help="accepted and not needed")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Raises:
        UserError: What the user can fix.
    """
    given = build_parser().parse_args(argv)
    experts, merges = pairs(given.experts, "--experts"), pairs(given.merges, "--merges")
    if twice := set(experts) & set(merges):
        raise UserError(f"--merges {min(twice)}: an expert has this name; give another")
    optional = frozenset(merges if given.go_on else ())
    base, models = opened(given.base, {**experts, **merges}, optional)
    kept = {name: models[name] for name in merges if name in models}
    parents = {name: models[name] for name in experts}
    own = {name: has for name in kept if (has := learned(Path(merges[name])))}
    found = inspected(base, parents, kept, go_on=given.go_on, coefficients=own)
    if rows := pairs(given.calibration, "--calibration"):
        from merges.lines import lines  # takes seconds to import

        sound = {name: model for name, model in kept.items() if name in found["merges"]}
        found["lines"] = _rounded(lines(base, parents, sound, rows, given.rows))
    for name in sorted(set(kept) - set(found["merges"])):
        print(f"note: {name} is left out: it holds NaN or infinity")
    if given.out:
        write_json(given.out, found)
        read = {"base": base, **models}
        write_manifest(
            beside(given.out),
            kind="inspection",
            parameters={"rows": given.rows} if rows else {},
            inputs={name: model.fingerprint for name, model in read.items()}
            | {f"calibration.{name}": path for name, path in rows.items()},
            outputs={given.out.name: given.out},
            code=("merges/inspecting.py",),
        )
    print(text_of(found))
    return 0
