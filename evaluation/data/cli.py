"""Command line of `python -m evaluation data`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import command_parser
from common.errors import UserError
from evaluation.data.sources import load_sources, select_sources, with_stand_ins
from evaluation.suites import names

if TYPE_CHECKING:
    from evaluation.data.build import Converted

OUT = Path("results/evaluation/data")

_EPILOG = """\
examples:
  python -m evaluation data --list
  python -m evaluation data --suite ja8,kobest,okapi_de,sql_eval
  python -m evaluation data --suite kobest/boolq,kobest/copa --source copies --out data
  python -m evaluation data --suite ja8 --dev ja8/jcommonsenseqa,ja8/jnli --dev-items 100

Writes OUT/test/SUITE/TASK.jsonl (items), TASK.fewshot.jsonl (where few-shot examples are drawn
from) and manifest.json (hashes, revisions, licences); with --dev also OUT/dev/SUITE. A suite's
folder is replaced at once, and only when everything asked for was read; tasks of an earlier call
that are not named again stay. sql_eval's dumps go to OUT/databases/sql_eval.
"""


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "evaluation data",
        "Convert the published benchmarks to the JSON lines that the suites read: from pinned "
        "revisions on the hub, or from local copies. Runs no code of a data set.",
        _EPILOG,
    )
    # --suite is checked in main: argparse would ask for it with --list too.
    parser.add_argument("--list", action="store_true", help="show the sources and stop")
    about = "suites, or single tasks as suite/task, by commas"
    parser.add_argument("--suite", metavar="A,B", help=about)
    about = "local copies; nothing is downloaded then. --list shows the names looked for"
    parser.add_argument("--source", type=Path, metavar="DIR", help=about)
    parser.add_argument(
        "--stand-ins",
        type=Path,
        metavar="FILE",
        help="a table of files below --source that serve where a benchmark's own are missing; "
        "scores of their rows are marked and are not the benchmark's",
    )
    parser.add_argument(
        "--dev",
        default="",
        metavar="A,B",
        help="tasks that also get dev items for searches, as suite/task: rows of their training "
        "split that are no test item and no example of one",
    )
    about = "dev items of each such task (60)"
    parser.add_argument("--dev-items", type=int, default=60, metavar="N", help=about)
    about = f"the data folder ({OUT})"
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=about)
    return parser


def _list() -> None:
    for source in load_sources().values():
        revision = (source.revision or "newest")[:12]
        print(
            f"{source.name:<22} {source.repository}@{revision}  {source.access}  {source.licence}"
        )
        if source.copies_to:
            rows = sum(file.rows or 0 for file in source.files.values())
            print(f"  {len(source.files)} files, {rows} rows, to {source.copies_to}")
            continue
        for role, file in source.files.items():
            count = "?" if file.rows is None else file.rows
            names = [other.path for other in source.local.get(role, ())]
            print(f"  {role:<8} {count:>6}  {file.path}" + "".join(f"  | {n}" for n in names))


def _counts(one: Converted, dev_items: int) -> str:
    """Write a converted task's line: its rows, and what its files are not."""
    rows = one.origin["rows"]
    line = ", ".join(f"{count} {role}" for role, count in rows.items())
    if one.copies:
        line = f"{len(one.copies)} files, {sum(rows.values())} rows"
    line += f", {dev_items} dev items" if dev_items else ""
    line += "".join(
        f"; {role} is a stand-in: {why}" for role, why in one.origin["stand_in"].items()
    )
    # A local copy has no revision where its hash is not known.
    if one.source.revision is None and one.origin["revision"] is not None:
        line += f"; revision {one.origin['revision']} (not pinned)"
    return f"{one.source.name:<22} {line}"


def main(argv: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.list:
        _list()
        return 0
    if arguments.suite is None:
        raise UserError("--suite is missing; python -m evaluation data --help shows examples")
    dev = names(arguments.dev)
    if arguments.dev_items < 1:
        raise UserError("--dev-items: give 1 or more")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out {arguments.out} is no folder; give one")
    sources = select_sources(names(arguments.suite))
    if arguments.stand_ins:
        if arguments.source is None:
            raise UserError("--stand-ins names files below --source DIR; give that too")
        sources = with_stand_ins(sources, arguments.stand_ins)

    from evaluation.data.build import build

    for one in build(sources, arguments.source, arguments.out, dev, arguments.dev_items):
        print(_counts(one, arguments.dev_items if one.source.name in dev else 0))
    print(f"written below {arguments.out}")
    return 0
