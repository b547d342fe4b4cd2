"""Command line of the hub: `python -m paper.hub --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import command_parser
from common.errors import UserError
from paper.hub.lock import lock_of, locked
from paper.hub.table import TABLE, Reference, find, read_table

_DESCRIPTION = """\
Fetch the published models and data sets that paper/hub.tsv names. Where the table gives no
revision, the first download takes the newest and hub.lock.json records it with the hash of every
file; every later download must match. A cut download goes on where it stopped.
"""

_EPILOG = """\
examples:
  python -m paper.hub list
  python -m paper.hub fetch mistral_7b --out models/mistral_7b
  python -m paper.hub fetch mistral_7b --mirror /data/hub --lock mirror.lock.json --out m/mistral
  HF_TOKEN=... python -m paper.hub fetch llama3_8b_instruct --out models/llama3

A gated reference needs the token of somebody who has accepted its licence on its page.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = command_parser("hub", _DESCRIPTION, _EPILOG)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--table", type=Path, default=TABLE, metavar="TSV", help="another table than paper/hub.tsv"
    )
    commands.add_parser("list", parents=[shared], help="show the table and what is locked")
    fetch = commands.add_parser("fetch", parents=[shared], help="download one reference")
    fetch.add_argument("reference", metavar="ID")
    fetch.add_argument("--out", type=Path, required=True, metavar="DIR")
    fetch.add_argument(
        "--lock", type=Path, metavar="JSON", help="another lock than the one beside the table"
    )
    fetch.add_argument(
        "--mirror", type=Path, metavar="DIR", help="take DIR/OWNER/NAME instead of the hub's files"
    )
    return parser


def _line(reference: Reference, lock: Path) -> str:
    known = locked(lock, reference)
    revision = known.revision if known else reference.revision
    size = f"{reference.gb:.1f} GB" if reference.gb else "size unknown"
    if known:
        size = f"{sum(size for _, size in known.files.values()) / 1e9:.1f} GB"
    return (
        f"{reference.id:<20} {reference.kind:<8} {reference.repository}@"
        f"{revision[:12] if revision else 'newest'}  {size}  "
        f"{reference.licence or 'licence: see its page'}{'  gated' if reference.gated else ''}"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command line; see `python -m paper.hub --help`.

    Args:
        arguments: The arguments after the program's name.

    Returns:
        The exit code, 0.

    Raises:
        UserError: What the user can mend.
    """
    given = build_parser().parse_args(arguments)
    if given.command == "list":
        for reference in read_table(given.table).values():
            print(_line(reference, lock_of(given.table)))
        return 0
    from paper.hub.fetch import fetch
    from paper.hub.places import Mirror

    reference = find(given.reference, given.table)
    if given.out.is_file():
        raise UserError(f"{given.out} is a file; give a folder")
    place = Mirror(given.mirror) if given.mirror else None
    got = fetch(reference, given.out, given.lock or lock_of(given.table), place)
    size = sum(size for _, size in got.files.values()) / 1e9
    print(
        f"{reference.id}: {len(got.files)} files, {size:.1f} GB, of {got.repository} at "
        f"{got.revision[:12]} are in {given.out}"
    )
    return 0
