"""Command line of the studies: tables and figures of what lies beyond the paper's tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import command_parser

_EXAMPLES = """examples (R stands for results/bottle):
  python -m studies dam      --config R/config.json --results R --out R/dam_study
  python -m studies cost     --config R/config.json --results R --out R/cost_study
  python -m studies ancestry --config R/config.json --results R --out R/case2b
Only score files are needed: nothing is merged or evaluated. `python -m workflow dam_study`,
`cost_study` and `case2b` make the scores."""


def _dam(given: argparse.Namespace) -> None:
    from studies.dam import files, load

    written = files.write(load.load(given.config, given.results), given.out)
    print(f"{len(written)} files of the DAM study: {given.out}")


def _cost(given: argparse.Namespace) -> None:
    from common.files import read_json
    from studies.cost import files

    written = files.write(read_json(given.config), given.results, given.out)
    print(f"{len(written)} files of the cost study: {given.out}")


def _ancestry(given: argparse.Namespace) -> None:
    from studies.ancestry import table

    written = table.write(given.config, given.results, given.out)
    print((given.out / "claim_c11.md").read_text(encoding="utf-8"), end="")
    print(f"{len(written)} files of case 2b: {given.out}")


def main(arguments: Sequence[str]) -> int:
    """Run the command line; see `python -m studies --help`."""
    parser = command_parser(
        "studies",
        "Make the tables and figures of a study from the scores in a results folder.",
        _EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="STUDY")
    for name, run, help in (
        ("dam", _dam, "what matters in DAM, over several worlds"),
        ("cost", _cost, "quality against price, over search seeds"),
        ("ancestry", _ancestry, "experts that start from different parents (claim C11)"),
    ):
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(run=run)
        made.add_argument(
            "--config", type=Path, required=True, help="the resolved configuration (config.json)"
        )
        made.add_argument("--results", type=Path, required=True, help="the results folder")
        made.add_argument("--out", type=Path, required=True, help="folder of the study's files")
        made.add_argument("--threads", type=int, default=1, help="accepted and not needed")
    given = parser.parse_args(arguments)
    given.run(given)
    return 0
