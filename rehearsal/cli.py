"""Command line of the rehearsal: `python -m rehearsal --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import command_parser
from common.errors import UserError
from common.manifest import ROOT

_DESCRIPTION = """\
Make a folder in which the paper's configuration runs without its checkpoints: OUT/mirror with a
tiny random model for each of them, of the same architecture, kind of tokenizer and vocabulary
handling, and a small file of the same columns for each calibration data set; and OUT/config.yaml,
the paper's configuration with the mirror, few rows and few seeds. Merges and trainings go through
the same rules as in the real run. Benchmarks need their files (hub.benchmarks in the result).
"""

_EPILOG = """\
examples:
  python -m rehearsal --out rehearsal-run
  snakemake --configfile rehearsal-run/config.yaml --cores 2 \\
      results/rehearsal/case1/merges/dam_paper/manifest.json
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("rehearsal", _DESCRIPTION, _EPILOG)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, default=ROOT / "paper.yaml", metavar="FILE")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command line; see `python -m rehearsal --help`.

    Args:
        arguments: The arguments after the program's name.

    Returns:
        The exit code, 0.

    Raises:
        UserError: What the user can mend.
    """
    given = build_parser().parse_args(arguments)
    if given.out.exists() and (given.out.is_file() or any(given.out.iterdir())):
        raise UserError(f"{given.out} is not empty; give a new folder")
    from rehearsal.making import make

    make(given.config, given.out)
    print(f"{given.out}/config.yaml: the paper's configuration on stand-ins in {given.out}/mirror")
    return 0
