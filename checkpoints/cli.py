"""Command line of the checkpoints: `python -m checkpoints --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import add_values, byte_size, pairs
from common.errors import UserError

_DESCRIPTION = "Look at models on disk, check a merge before it runs, and its result after."

_EPILOG = """\
examples:
  python -m checkpoints show models/base
  python -m checkpoints preflight --base models/base \\
      --experts ja=models/ja math=adapters/math --vocabulary union --out merged/soup
  python -m checkpoints smoke --model merged/soup --parent base=models/base ja=models/ja \\
      --out merged/soup.smoke.json
"""
_PREFLIGHT = """\
examples:
  python -m checkpoints preflight --base models/base --experts ja=models/ja math=models/math
  python -m checkpoints preflight --base models/base --experts lora=adapters/x \\
      --dtype bfloat16 --out merged/x

vocabulary policies, where tokenizers differ:
  refuse        an error that says where they differ (default)
  base          the base's tokenizer; experts' rows in its order, missing rows from the base
  union         the base's ids, then tokens that it lacks; a model's missing rows come from the
                base, or are the mean of the models that have the token
  crop-to-base  experts lose the rows beyond the base's number
"""
_SMOKE = """\
examples:
  python -m checkpoints smoke --model merged/soup --out merged/soup.smoke.json
  python -m checkpoints smoke --model merged/soup --parent ja=models/ja --text sample.txt \\
      --out merged/soup.smoke.json

Ends with an error where a logit of the model is NaN or infinite.
"""
_CONVERT = """\
examples:
  python -m checkpoints convert --model downloads/abel --out models/abel

Pickles are read as tensors alone; nothing in them is run.
"""
_SHOW = """\
examples:
  python -m checkpoints show models/base
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    raw: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        prog="python -m checkpoints", description=_DESCRIPTION, epilog=_EPILOG, **raw
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="summarise a model folder", epilog=_SHOW, **raw)
    show.add_argument("model", type=Path, metavar="DIR")
    check = commands.add_parser(
        "preflight", help="check a merge before it runs", epilog=_PREFLIGHT, **raw
    )
    check.add_argument("--base", type=Path, metavar="DIR", help="common ancestor of the experts")
    add_values(
        check, "--experts", required=True, metavar="NAME=DIR", help="models or LoRA adapters"
    )
    check.add_argument("--out", type=Path, metavar="DIR", help="the folder to be written")
    check.add_argument(
        "--dtype", metavar="TYPE", help="of the result: float32, bfloat16 ... (the base's)"
    )
    check.add_argument(
        "--shard-size",
        type=byte_size,
        default="5GB",
        metavar="SIZE",
        help="most bytes of weights in a file: 500MB, 5GB ... (5GB)",
    )
    check.add_argument(
        "--vocabulary", default="refuse", metavar="POLICY", help="see below (default: refuse)"
    )
    smoke = commands.add_parser(
        "smoke", help="finite logits, and perplexity beside the parents'", epilog=_SMOKE, **raw
    )
    smoke.add_argument("--model", type=Path, required=True, metavar="DIR", help="the merged model")
    add_values(smoke, "--parent", metavar="NAME=DIR", help="models to compare with")
    smoke.add_argument("--text", type=Path, metavar="FILE", help="what to read (a text of its own)")
    smoke.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON to write")
    convert = commands.add_parser(
        "convert", help="write pickles as safetensors, bit for bit", epilog=_CONVERT, **raw
    )
    convert.add_argument("--model", type=Path, required=True, metavar="DIR")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR")
    convert.add_argument(
        "--shard-size",
        type=byte_size,
        default=5_000_000_000,
        metavar="SIZE",
        help="of a file (5GB)",
    )
    for command in (show, check):
        command.add_argument(
            "--allow-pickle", action="store_true", help="accept pytorch_model.bin, as tensors alone"
        )
    return parser


def _show(arguments: argparse.Namespace) -> None:
    from checkpoints.preflight import amount, counted, describe
    from checkpoints.reading import Checkpoint
    from checkpoints.tokens import read_tokens

    model = Checkpoint(arguments.model, allow_pickle=arguments.allow_pickle)
    sizes = [path.stat().st_size for path in model.shards]
    print(describe(model))
    files = f"{counted(len(sizes), 'file')} ({model.shards[0].name} first)"
    print(f"weights: {amount(sum(sizes))} in {files}")
    tokens = read_tokens(model.path)
    rows = model.config.get("vocab_size", "an unknown number of")
    print(f"tokenizer: {len(tokens.ids):,} tokens" if tokens else "tokenizer: none", end="")
    print(f", {rows} rows in the configuration")


def _preflight(arguments: argparse.Namespace) -> None:
    from checkpoints.adapters import open_model
    from checkpoints.dtypes import torch_name
    from checkpoints.headers import FLOATS
    from checkpoints.preflight import check_merge
    from checkpoints.reading import Checkpoint

    pickles = arguments.allow_pickle
    base = arguments.base and Checkpoint(arguments.base, allow_pickle=pickles)
    report = check_merge(
        base,
        {
            name: open_model(path, base, allow_pickle=pickles)
            for name, path in pairs(arguments.experts, "--experts").items()
        },
        out=arguments.out,
        dtype={torch_name(kind): kind for kind in FLOATS}.get(arguments.dtype, arguments.dtype),
        shard_bytes=arguments.shard_size,
        vocabulary=arguments.vocabulary,
    )
    errors = report.errors
    report.errors = errors[1:]  # the first is told by the end of the program
    print("\n".join(report.lines()), flush=True)
    if errors:
        raise UserError(errors[0])


def _smoke(arguments: argparse.Namespace) -> None:
    # Reading a wrong argument should not cost the import of transformers.
    parents = pairs(arguments.parent, "--parent", reserved="")
    from checkpoints.smoke import TEXT, lines, smoke

    text = TEXT
    if arguments.text:
        try:
            text = arguments.text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--text {arguments.text}: cannot be read as UTF-8 ({error})") from None
    print("\n".join(lines(smoke(arguments.model, parents, arguments.out, text))))


def _convert(arguments: argparse.Namespace) -> None:
    from checkpoints.conversion import convert

    values = convert(arguments.model, arguments.out, arguments.shard_size)
    print(f"{arguments.out}: {values:,} values of {arguments.model} as safetensors")


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Args:
        argv: The arguments after the program's name.

    Returns:
        The exit code, 0.

    Raises:
        UserError: What the user can mend.
    """
    arguments = build_parser().parse_args(argv)
    commands = {"show": _show, "preflight": _preflight, "smoke": _smoke, "convert": _convert}
    commands[arguments.command](arguments)
    return 0
