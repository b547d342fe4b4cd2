"""Command line of the merges: `python -m merges --help`."""

from __future__ import annotations

import argparse
import importlib
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from merges import registry

_DESCRIPTION = """\
Merge checkpoints that were fine-tuned from one base into a single model folder: weights,
configuration, tokenizer, manifest.json (recipe and hashes) and cost.json (time, memory).
"""

_EPILOG = """\
examples:
  python -m merges --list
  python -m merges --method linear --base models/base \\
      --experts ja=models/ja math=models/math --out merged/soup
  python -m merges --method ties --base models/base \\
      --experts ja=models/ja math=models/math --set density=0.3 \\
      --set 'weights={"ja": 1, "math": 0.5}' --embeddings-and-norms base --out merged/ties
  python -m merges --method dam --base models/base \\
      --experts ja=models/ja math=models/math \\
      --calibration ja=data/ja.jsonl math=data/math.jsonl --out merged/dam
  python -m merges teachers --help

--set-layers reads a JSON list of rules; where several apply to a tensor, later ones win:
  [{"layers": [0, 1], "set": {"scale": 0.3}},
   {"match": "mlp", "set": {"scale": 0.6}}]
"layers" is [first, last], both included; "match" is a regular expression searched for in the
tensor's name.
"""


def _threads(text: str) -> int:
    threads = int(text)
    if threads < 1:
        raise argparse.ArgumentTypeError(f"{threads} threads; give at least 1")
    return threads


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m merges",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--list", action="store_true", help="show every method with its parameters, and end"
    )
    parser.add_argument("--method", metavar="NAME", help="a method's name, as --list shows it")
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="common ancestor of the experts, a model folder"
    )
    parser.add_argument(
        "--experts", nargs="+", default=[], metavar="NAME=DIR", help="the models to merge"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the method; the value is JSON or plain text (repeatable)",
    )
    parser.add_argument(
        "--set-layers",
        type=Path,
        metavar="FILE",
        help="JSON rules for parameters that differ between layers (see below)",
    )
    parser.add_argument(
        "--embeddings-and-norms",
        default="merged",
        metavar="merged|base",
        help="merge embeddings and norms too, or take the base's (default: merged)",
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="JSON lines from each expert's training distribution, for methods that need data",
    )
    parser.add_argument(
        "--teachers",
        type=Path,
        metavar="DIR",
        help="what `python -m merges teachers` wrote, for methods that learn from the experts",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn (0)")
    parser.add_argument("--threads", type=_threads, default=1, metavar="N", help="CPU threads (1)")
    return parser


def listing() -> str:
    """Return the registry as text: each method with its paper, needs and parameters."""
    lines = []
    for name, info in registry.describe().items():
        needs = [{"data": "calibration data"}.get(need, need) for need in sorted(info.needs)]
        lines.append(f"{name}: {info.title} ({info.paper})")
        lines += textwrap.wrap(info.summary, 95, initial_indent="    ", subsequent_indent="    ")
        order = ", in order" if info.ordered else ""
        experts = f"{info.experts} experts{order}" if info.experts else "any number of experts"
        lines.append(f"    needs: {', '.join([*needs, experts])}")
        for item in info.parameters.values():
            default = json.dumps(item.default, ensure_ascii=False)
            lines += textwrap.wrap(
                f"{item.name}: {item.kind.describe()} (default {default})",
                95,
                initial_indent="      ",
                subsequent_indent="          ",
            )
        lines.append("")
    return "\n".join(lines)


def pairs(items: Sequence[str], option: str) -> dict[str, Path]:
    """Read ``NAME=PATH`` arguments.

    Args:
        items: The texts.
        option: The option they belong to, for messages.

    Returns:
        Paths by name, in the order given.

    Raises:
        UserError: An item has another form, or a name is given twice or is ``base``.
    """
    found: dict[str, Path] = {}
    for item in items:
        name, separator, path = item.partition("=")
        if not separator or not name or not path:
            raise UserError(f"{option} {item}: give NAME=PATH")
        if name == "base":
            raise UserError(f"{option} {item}: 'base' is the base's name; choose another")
        if name in found:
            raise UserError(f"{option} {item}: {name!r} is given twice; choose another name")
        found[name] = Path(path)
    return found


def read_settings(items: Sequence[str]) -> dict[str, Any]:
    """Read ``--set`` options: values are JSON, or plain text where they are not.

    Args:
        items: ``name=value`` texts.

    Returns:
        Values by parameter name.

    Raises:
        UserError: An item has no ``=``, or a parameter is set twice.
    """
    settings: dict[str, Any] = {}
    for item in items:
        name, separator, text = item.partition("=")
        if not separator:
            raise UserError(f"--set {item}: give NAME=VALUE")
        if name in settings:
            raise UserError(f"--set {item}: {name} is set twice; keep one")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    return settings


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Args:
        argv: The arguments after the program's name.

    Returns:
        The exit code, 0.

    Raises:
        UserError: What the user can mend.
    """
    if argv and argv[0] == "teachers":
        return importlib.import_module("merges.dam.teachers").main(list(argv[1:]))
    arguments = build_parser().parse_args(argv)
    if arguments.list:
        print(listing())
        return 0
    for option in ("method", "experts", "out"):
        if not getattr(arguments, option):
            raise UserError(f"--{option} is missing; see python -m merges --help")
    # All that needs no tensor is checked before torch is imported: mistakes are told at once.
    settings = registry.validate(arguments.method, read_settings(arguments.set))
    experts = pairs(arguments.experts, "--experts")
    calibration = pairs(arguments.calibration, "--calibration")
    from checkpoints.reading import Checkpoint
    from merges.engine import merge_to_disk
    from merges.layers import read_rules

    rules = arguments.set_layers and read_rules(arguments.method, arguments.set_layers)
    merge_to_disk(
        arguments.out,
        arguments.method,
        arguments.base and Checkpoint(arguments.base),
        {name: Checkpoint(path) for name, path in experts.items()},
        settings,
        seed=arguments.seed,
        embeddings_and_norms=arguments.embeddings_and_norms,
        parameters_for=rules,
        calibration=calibration,
        teachers=arguments.teachers,
        threads=arguments.threads,
    )
    print(f"merged {', '.join(experts)} with {arguments.method} into {arguments.out}")
    return 0
