"""Command line of the alignment: `python -m merges align --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import add_values, command_parser
from common.errors import UserError
from merges.alignment.aligning import METHODS, check_method

_DESCRIPTION = """\
Write a model in the basis of another one, so that models without a common base can be merged.
"""
_EPILOG = """\
methods:
{methods}

examples:
  python -m merges align --reference models/a --model models/b --method weights --out models/b-in-a
  python -m merges align --group models/a
  python -m merges align --model models/a --disguise 7 --out models/a7

A model has many copies that compute the same: hidden units, heads and values in other places and
bases. --group says which changes of a model change nothing. --disguise writes such a copy (units,
heads and values in other places, with other signs), to try alignment with.
"""
PLACES = ("hidden", "heads", "groups", "residual", "signs")


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    methods = "\n".join(f"  {name:21} {about}" for name, about in METHODS.items())
    parser = command_parser("merges align", _DESCRIPTION, _EPILOG.format(methods=methods))
    parser.add_argument("--list", action="store_true", help="show the methods, and end")
    parser.add_argument("--group", type=Path, metavar="DIR", help="show a model's group, and end")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="the model that stays")
    parser.add_argument("--model", type=Path, metavar="DIR", help="the model that is moved")
    parser.add_argument("--method", default="weights", metavar="NAME", help="(weights)")
    about = "JSON lines that both models read, for activations"
    add_values(parser, "--align-rows", metavar="FILE", help=about)
    parser.add_argument(
        "--disguise", type=int, metavar="SEED", help="move by a random element, to no reference"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Raises:
        UserError: What the user can fix.
    """
    given = build_parser().parse_args(argv)
    if given.list:
        print("\n".join(f"{name}: {about}" for name, about in METHODS.items()))
        return 0
    from checkpoints.reading import Checkpoint
    from merges.alignment.groups import group_of

    if given.group is not None:
        model = Checkpoint(given.group)
        print("\n".join(group_of(model.config, model.names(), model.path).describe()))
        return 0
    needed = ["model", "out", *(["reference"] if given.disguise is None else [])]
    if missing := [name for name in needed if getattr(given, name) is None]:
        raise UserError(f"--{missing[0]} is missing; see python -m merges align --help")
    if given.disguise is None:
        check_method(given.method, given.align_rows)
        _align(given)
    else:
        _disguise(given)
    return 0


def _align(given: argparse.Namespace) -> None:
    from checkpoints.checking import check_compatible
    from checkpoints.conversion import write_as
    from checkpoints.reading import Checkpoint
    from merges.alignment.aligning import align_models
    from merges.engine.checks import check_output

    check_output(given.out, [given.reference, given.model])
    reference, model = Checkpoint(given.reference), Checkpoint(given.model)
    name = given.model.name
    check_compatible(reference, {name: model})
    rows = {f"rows.{n}": Path(path) for n, path in enumerate(given.align_rows)}
    found = align_models(reference, {name: model}, given.method, list(rows.values()))
    # A reference whose gains are folded is another checkpoint; merges fold it themselves.
    write_as(
        given.out.resolve(),
        found.experts[name],
        "aligned",
        {"reference": reference.fingerprint, "model": model.fingerprint, **rows},
        note=lambda text: print(f"note: {text}", file=sys.stderr, flush=True),
        code=("merges/alignment/aligning.py",),
        parameters={"align": given.method},
    )
    print("\n".join([*found.notes, f"wrote {given.out}"]))


def _disguise(given: argparse.Namespace) -> None:
    import torch

    from checkpoints.conversion import write_as
    from checkpoints.reading import Checkpoint
    from merges.alignment import moves
    from merges.alignment.groups import group_of
    from merges.alignment.moved import Moved
    from merges.engine.checks import check_output

    check_output(given.out, [given.model])
    model = Checkpoint(given.model)
    group = group_of(model.config, model.names(), model.path)
    generator = torch.Generator().manual_seed(given.disguise)
    element = moves.draw(group, generator, PLACES)
    write_as(
        given.out.resolve(),
        Moved(model, group, element),
        "aligned",
        {"model": model.fingerprint},
        note=lambda text: print(f"note: {text}", file=sys.stderr, flush=True),
        code=("merges/alignment/moves.py",),
        parameters={"disguise": given.disguise},
        seed=given.disguise,
    )
    print(f"wrote {given.out}: the same function in another basis")
