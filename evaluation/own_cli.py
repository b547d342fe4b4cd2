"""Command line of `python -m evaluation tasks`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import command_parser
from common.errors import UserError
from evaluation.own_data import add_all

_EPILOG = """\
examples:
  python -m evaluation tasks quiz.yaml
  python -m evaluation tasks config.yaml --data data

CONTRIBUTING.md shows a task; docs/evaluation.md has the keys of an entry and the columns of a row.
"""


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "evaluation tasks",
        "Check your own tasks and put their items into a data folder, for `python -m evaluation` "
        "and `python -m search`.",
        _EPILOG,
    )
    parser.add_argument("file", metavar="FILE", help="a YAML with `tasks`; - reads standard input")
    data = Path("results/evaluation/data")
    parser.add_argument("--data", type=Path, default=data, metavar="DIR", help="(%(default)s)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command line; see `evaluation.own_data.add`."""
    arguments = _parser().parse_args(argv)
    if arguments.data.exists() and not arguments.data.is_dir():
        raise UserError(f"--data {arguments.data} is no folder; give one")
    path = Path("/dev/stdin") if arguments.file == "-" else Path(arguments.file)
    add_all(path, arguments.data)
    return 0
