"""Command line of the studies: tables and figures beyond the paper's."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import command_parser, count
from common.errors import UserError
from common.files import read_json
from studies import NAMES, about

_IN_PARTS = ("scale",)  # studies that train their own models
_EXAMPLES = """examples (R stands for results/bottle):
  python -m studies dam --config R/config.json --results R --out R/studies/dam
  python -m studies part scale --config R/config.json --part w32-seed1 --out w32-seed1.json
Only score files are needed, but for parts: nothing is merged or evaluated. `python -m workflow
study dam` makes the scores first. What a study found: studies/NAME/README.md"""


def _add_part(commands: argparse._SubParsersAction) -> None:
    about_part = "make a part of a study that trains models in memory"
    part = commands.add_parser("part", help=about_part, description=about_part)
    part.add_argument("of", choices=_IN_PARTS, metavar="STUDY", help=", ".join(_IN_PARTS))
    about_config = "the resolved configuration (config.json)"
    part.add_argument("--config", type=Path, required=True, help=about_config)
    part.add_argument("--part", required=True, help="its name, such as w128-seed1")
    part.add_argument("--out", type=Path, required=True, help="the part's file, JSON")
    part.add_argument("--threads", type=count, default=1, metavar="N", help="CPU threads (1)")


def _part(study: str, config: Path, part: str, out: Path, threads: int) -> int:
    import torch

    resolved = _with(study, config)
    torch.set_num_threads(threads)
    importlib.import_module(f"studies.{study}.part").make(resolved, part, out)
    print(f"part {part} of the study {study}: {out}")
    return 0


def _with(study: str, path: Path) -> Mapping[str, Any]:
    """Read a configuration that has a study."""
    config: Mapping[str, Any] = read_json(path)
    if study not in config["studies"]:
        raise UserError(
            f"{path}: studies has no {study!r}; add it as in config.yaml, or give another "
            "configuration"
        )
    return config


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
    _add_part(commands)
    given = parser.parse_args(arguments)
    if given.study == "part":
        return _part(given.of, given.config, given.part, given.out, given.threads)
    config = _with(given.study, given.config)
    files = importlib.import_module(f"studies.{given.study}.files")
    written = files.write(config, given.results, given.out)
    for path in written:
        if path.suffix == ".md":
            print(path.read_text(encoding="utf-8"))
    print(f"{len(written)} files of the study {given.study}: {given.out}")
    return 0
