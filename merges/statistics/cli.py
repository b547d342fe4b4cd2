"""Command line of the statistics: `python -m merges statistics --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import add_values, command_parser
from merges.statistics.kinds import KINDS

_DESCRIPTION = """\
Run a model over rows of data, one layer in memory at a time, and keep what merge methods need to
know of it. A run that was stopped resumes with its next layer. The statistics serve every merge
with the same model; one with another model or other statistics is refused."""

_EPILOG = """\
what to collect:
{kinds}

examples:
  python -m merges statistics --model models/ja --calibration data/ja.jsonl --collect gram \\
      --out statistics/ja
  python -m merges --method regmean --experts ja=models/ja math=models/math \\
      --statistics ja=statistics/ja math=statistics/math --out merged/regmean
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    kinds = "\n".join(f"  {name:17} {text}" for name, text in KINDS.items())
    parser = command_parser("merges statistics", _DESCRIPTION, _EPILOG.format(kinds=kinds))
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model folder")
    add_values(
        parser,
        "--calibration",
        required=True,
        metavar="FILE",
        help="JSON lines that the model is run on; several files go end to end",
    )
    parser.add_argument("--collect", choices=list(KINDS), default="gram", help="(gram)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--rows", type=int, default=0, metavar="N", help="only the first N rows of each file (all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the labels that fisher draws (0)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (1)")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1 ... (cpu)"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Raises:
        UserError: What the user can fix.
    """
    arguments = build_parser().parse_args(argv)
    import torch

    from checkpoints.devices import check_device
    from checkpoints.reading import Checkpoint
    from merges.statistics.collecting import Order
    from merges.statistics.files import read_rows, write_statistics

    check_device(arguments.device)
    torch.set_num_threads(arguments.threads)
    model = Checkpoint(arguments.model)
    paths = [Path(path) for path in arguments.calibration]
    data = read_rows(model, paths, arguments.model.name)
    if arguments.rows:
        data = [own.first(arguments.rows) for own in data]
    order = Order(model, data, arguments.collect, arguments.seed, arguments.device)
    made = write_statistics(order, arguments.out)
    print(
        f"{'wrote' if made else 'kept'} {arguments.collect} of {arguments.model} in {arguments.out}"
    )
    return 0
