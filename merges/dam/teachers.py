"""Command line of the teachers' signal: `python -m merges teachers --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import add_values, command_parser, pairs

_DESCRIPTION = """\
Compute each expert's final hidden states on its own calibration data once, for all DAM trainings
that merge these experts. Logits follow exactly from them and the expert's output head. DAM
refuses the signal of another expert or of other data."""

_EPILOG = """\
examples:
  python -m merges teachers --base models/base --experts ja=models/ja math=models/math \\
      --calibration ja=data/calibration/ja.jsonl math=data/calibration/math.jsonl --out teachers
  python -m merges --method dam --base models/base --experts ja=models/ja math=models/math \\
      --calibration ja=data/calibration/ja.jsonl math=data/calibration/math.jsonl \\
      --teachers teachers --out merged/dam
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("merges teachers", _DESCRIPTION, _EPILOG)
    parser.add_argument("--base", type=Path, required=True, help="common ancestor, a model folder")
    add_values(parser, "--experts", required=True, metavar="NAME=DIR", help="the experts")
    add_values(
        parser,
        "--calibration",
        required=True,
        metavar="NAME=FILE",
        help="JSON lines from each expert's training distribution",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (1)")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1 ... (cpu)"
    )
    parser.add_argument(
        "--vocabulary",
        default="refuse",
        metavar="POLICY",
        help="where tokenizers differ, as python -m merges --help has it (refuse)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Raises:
        UserError: What the user can fix.
    """
    arguments = build_parser().parse_args(argv)
    experts = pairs(arguments.experts, "--experts")
    calibration = pairs(arguments.calibration, "--calibration")
    import torch

    from checkpoints.checking import check_compatible
    from checkpoints.devices import check_device
    from checkpoints.reading import Checkpoint
    from checkpoints.vocabulary import align
    from merges.dam.states import write_teachers

    check_device(arguments.device)
    torch.set_num_threads(arguments.threads)
    base = Checkpoint(arguments.base)
    models = {name: Checkpoint(path) for name, path in experts.items()}
    aligned = align(base, models, arguments.vocabulary)
    check_compatible(aligned.base, aligned.experts, same_tokenizer=False)
    write_teachers(aligned.base, aligned.experts, calibration, arguments.out, arguments.device)
    print(f"wrote the teachers' signal of {', '.join(experts)} to {arguments.out}")
    return 0
