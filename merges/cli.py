"""Command line of the merges: `python -m merges --help`."""

from __future__ import annotations

import argparse
import importlib
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import add_values, byte_size, command_parser, count, pairs
from common.errors import UserError
from merges import running
from merges.engine import registry

if TYPE_CHECKING:
    from merges.engine.requests import Statistic

_DESCRIPTION = """\
Merge checkpoints that were fine-tuned from one base into a single model folder: weights,
configuration, tokenizer, manifest.json (recipe and hashes) and cost.json (time, memory).
"""

# Words in the place of a method's options, and the modules that they run.
_COMMANDS = {
    "teachers": "merges.dam.teachers",
    "statistics": "merges.statistics.cli",
    "inspect": "merges.inspecting",
    "core-space": "merges.core_space",
    "copa": "merges.copa",
    "align": "merges.alignment.cli",
    "card": "merges.card",
}
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
  python -m merges --method passthrough --experts ja=models/ja math=models/math \\
      --slices ja=0:3 math=1:4 --out merged/stack
  python -m merges --from-mergekit config.yml --locate org/model=models/model --out merged/kit
  python -m merges --to-mergekit merged/ties --locate base=models/base ja=models/ja --out ties.yml
  python -m merges teachers --help
  python -m merges statistics --help
  python -m merges core-space --help  # LoRA adapters into one adapter
  python -m merges copa --help  # the same, factor by factor
  python -m merges align --help  # models without a common base into one basis
  python -m merges inspect --help  # what merges kept of each expert, by layer
  python -m merges card merged/ties --scores scores/ties.json  # adds scores to the model card

A folder with adapter_config.json among the experts is a LoRA adapter (PEFT); it is folded into the
base in float32 first.

--set-layers reads a JSON list of rules; where several apply to a tensor, later ones win:
  [{"layers": [0, 1], "set": {"scale": 0.3}},
   {"match": "mlp", "set": {"scale": 0.6}},
   {"match": "self_attn", "gradient": {"scale": [0.1, 0.5, 0.1]}},
   {"gradient": {"weights": {"ja": [0, 1, 0], "math": [1, 0, 1]}}}]
"layers" is [first, last], both included; "match" is a regular expression searched for in the
tensor's name. The numbers of a gradient are spread evenly over the model's layers (or over
"layers"), with straight lines between; tensors of no layer keep what is set for them.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("merges", _DESCRIPTION, _EPILOG)
    parser.add_argument(
        "--list",
        action="store_true",
        help="show every method with its parameters, or the one of --method, and end",
    )
    parser.add_argument("--method", metavar="NAME", help="a method's name, as --list shows it")
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="common ancestor of the experts, a model folder"
    )
    add_values(parser, "--experts", metavar="NAME=DIR", help="the models to merge")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write")
    add_values(
        parser,
        "--set",
        metavar="NAME=VALUE",
        help="parameters of the method; a value is JSON or plain text",
    )
    parser.add_argument(
        "--set-layers",
        type=Path,
        metavar="FILE",
        help="JSON rules for parameters that differ between layers (see below)",
    )
    add_values(
        parser,
        "--slices",
        metavar="NAME=FIRST:END",
        help="layers of the result, slice by slice: layers FIRST to END - 1 of a model, or of "
        "several with commas between (ja=0:2,math=1:3), which the method merges",
    )
    parser.add_argument(
        "--embeddings-and-norms",
        default="merged",
        metavar="merged|base",
        help="merge embeddings and norms too, or take the base's (default: merged)",
    )
    add_values(
        parser,
        "--calibration",
        metavar="NAME=FILE",
        help="JSON lines from each expert's training distribution, for methods that need data",
    )
    parser.add_argument(
        "--teachers",
        type=Path,
        metavar="DIR",
        help="what `python -m merges teachers` wrote, for methods that learn from the experts",
    )
    add_values(
        parser,
        "--statistics",
        metavar="NAME=DIR",
        help="what `python -m merges statistics` wrote of a model, for methods that ask for it",
    )
    parser.add_argument(
        "--align",
        metavar="METHOD",
        help="bring experts without a common base to the basis of the base (without one, of the "
        "first expert) before the merge; python -m merges align --list shows the methods",
    )
    about = "JSON lines that all models read, for --align activations"
    add_values(parser, "--align-rows", metavar="FILE", help=about)
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn (0)")
    parser.add_argument("--threads", type=count, default=1, metavar="N", help="CPU threads (1)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the models and estimate what the merge needs; write nothing",
    )
    parser.add_argument(
        "--vocabulary",
        choices=("refuse", "base", "union", "crop-to-base"),
        help="where tokenizers differ: refuse the models (the default), put the experts' tokens in "
        "the base's order, add the tokens that the base lacks, or cut off rows beyond the base's",
    )
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read pytorch_model.bin too, weights only"
    )
    # Rarely needed options come in groups, behind the others in --help.
    kit = parser.add_argument_group("instead of a method")
    kit.add_argument(
        "--from-mergekit",
        type=Path,
        metavar="FILE",
        help="run a mergekit configuration; an unsupported part is refused by name",
    )
    kit.add_argument(
        "--to-mergekit",
        type=Path,
        nargs="?",
        const=True,
        metavar="MERGE",
        help="write a merged folder's recipe (or that of the command line, without merging) to the "
        "file --out, as a mergekit configuration; what mergekit cannot express is refused by name",
    )
    add_values(
        kit,
        "--locate",
        metavar="NAME=DIR",
        help="folders of the models that the configuration, or the merged folder's recipe, names",
    )
    stored = parser.add_argument_group("arithmetic and output")
    stored.add_argument(
        "--compute-dtype",
        choices=("float32", "float64"),
        default="float32",
        help="type of the arithmetic (float32); results are rounded once, when stored",
    )
    stored.add_argument(
        "--dtype",
        choices=("float64", "float32", "bfloat16", "float16"),
        help="type of the stored weights (the base's, or the first expert's without a base)",
    )
    stored.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1 ... (cpu)"
    )
    long = parser.add_argument_group("methods that train")
    long.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="record the training's state here every K steps, and resume from it after a kill",
    )
    long.add_argument(
        "--save-every", type=count, default=100, metavar="K", help="steps between records (100)"
    )
    stored.add_argument(
        "--donor",
        metavar="NAME",
        help="model that configuration, tokenizer and chat template come from: base or an expert "
        "(the base, or the first expert without a base)",
    )
    stored.add_argument(
        "--shard-size",
        type=byte_size,
        default="5GB",
        metavar="SIZE",
        help="most bytes of weights in a file: 500MB, 5GB ... (5GB)",
    )
    return parser


def listing(only: str | None = None) -> str:
    """Return the registry as text: each method with its paper, needs and parameters.

    Args:
        only: The one method that is asked for; None for all.

    Raises:
        UserError: There is no such method; says the nearest.
    """
    lines = []
    for name, info in ({only: registry.info(only)} if only else registry.describe()).items():
        needs = [{"data": "calibration data"}.get(need, need) for need in sorted(info.needs)]
        needs += [f"{kind} statistics of the {whose}" for whose, kind in info.statistics.items()]
        lines.append(f"{name}: {info.title}" + (f" ({info.paper})" if info.paper else ""))
        lines += textwrap.wrap(info.summary, 95, initial_indent="    ", subsequent_indent="    ")
        order = ", in order" if info.ordered else ""
        experts = f"{info.experts} experts{order}" if info.experts else "any number of experts"
        lines.append(f"    needs: {', '.join([*needs, experts])}")
        for item in info.parameters.values():
            default = info.presets[None].get(item.name, item.default)
            default = json.dumps(default, ensure_ascii=False)
            lines += textwrap.wrap(
                f"{item.name}: {item.kind.describe()} (default {default})",
                95,
                initial_indent="      ",
                subsequent_indent="          ",
            )
        lines.append("")
    return "\n".join(lines)


def read_settings(items: Sequence[str]) -> dict[str, Any]:
    """Read ``--set`` options: values are JSON, or plain text where they are not.

    Args:
        items: ``name=value`` texts.

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
        except (ValueError, RecursionError):
            settings[name] = text
    return settings


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Raises:
        UserError: What the user can fix.
    """
    if argv and argv[0] in _COMMANDS:
        return importlib.import_module(_COMMANDS[argv[0]]).main(list(argv[1:]))
    arguments = build_parser().parse_args(argv)
    if arguments.list:
        print(listing(arguments.method))
        return 0
    if arguments.from_mergekit:
        running.merge_from_mergekit(arguments)
        return 0
    if isinstance(arguments.to_mergekit, Path):
        running.write_merge_as_mergekit(arguments)
        return 0
    for option in ("method", "experts", "out"):
        if not getattr(arguments, option):
            raise UserError(f"--{option} is missing; see python -m merges --help")
    # All that needs no tensor is checked before torch is imported: mistakes are reported at once.
    settings = registry.validate(arguments.method, read_settings(arguments.set))
    experts = pairs(arguments.experts, "--experts")
    calibration = pairs(arguments.calibration, "--calibration")
    from merges.engine.layer_rules import read_rules

    rules = arguments.set_layers and read_rules(arguments.method, arguments.set_layers)
    base, models = running.open_models(arguments.base, experts, {}, arguments.allow_pickle)
    slices = None
    if arguments.slices:
        from merges.engine.slices import arrange, read_slices

        base, models, slices = arrange(base, models, read_slices(arguments.slices))
    running.merge(
        arguments,
        arguments.method,
        base,
        models,
        settings,
        parameters_for=rules,
        slices=slices,
        calibration=calibration,
        teachers=arguments.teachers,
        statistics=open_statistics(arguments.statistics),
    )
    return 0


def open_statistics(items: Sequence[str]) -> dict[str, Statistic]:
    """Open the folders of ``--statistics`` options, ``name=folder`` texts.

    Raises:
        UserError: A folder holds no statistics, or a name is given twice.
    """
    folders = pairs(items, "--statistics", reserved="")
    if not folders:
        return {}
    from merges.statistics.files import Statistics

    return {name: Statistics(folder) for name, folder in folders.items()}
