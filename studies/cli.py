"""Command line of the studies: tables and figures beyond the paper's."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from common.cli import command_parser
from common.errors import UserError
from common.files import read_json
from studies import NAMES, about

_EXAMPLES = """examples (R stands for results/bottle):
  python -m studies dam --config R/config.json --results R --out R/studies/dam
Only score files are needed: nothing is merged or evaluated. `python -m workflow study dam` makes
the scores first. What a study found: studies/NAME/README.md"""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; see `python -m studies --help`."""
    parser = command_parser(
        "studies",
        "Make the tables and figures of a study from the scores in a results folder.",
        _EXAMPLES,
    )
    commands = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    for name in NAMES:
        made = commands.add_parser(name, help=about(name), description=about(name))
        made.add_argument(
            "--config", type=Path, required=True, help="the resolved configuration (config.json)"
        )
        made.add_argument("--results", type=Path, required=True, help="the results folder")
        made.add_argument("--out", type=Path, required=True, help="folder of the study's files")
        made.add_argument("--threads", type=int, default=1, help="accepted and not needed")
    given = parser.parse_args(arguments)
    config = read_json(given.config)
    if given.study not in config["studies"]:
        raise UserError(
            f"{given.config}: studies has no {given.study!r}; add it as in config.yaml, or give "
            "another configuration"
        )
    files = importlib.import_module(f"studies.{given.study}.files")
    written = files.write(config, given.results, given.out)
    for path in written:
        if path.suffix == ".md":
            print(path.read_text(encoding="utf-8"))
    print(f"{len(written)} files of the study {given.study}: {given.out}")
    return 0
