"""The commands `python -m paper list` and `fetch`."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import add_command
from common.errors import UserError
from paper.hub.lock import lock_of, locked
from paper.hub.table import TABLE, Reference, find, read_table

_FETCH = """\
Fetch a published model or data set that paper/hub.tsv names. Where the table gives no revision, the
first download takes the newest and hub.lock.json records it with the hash of every file; every
later download must match. A download that was cut resumes where it stopped.
"""

_EXAMPLES = """\
examples:
  python -m paper fetch mistral_7b --out models/mistral_7b
  python -m paper fetch mistral_7b --mirror /data/hub --lock mirror.lock.json --out m/mistral
  HF_TOKEN=... python -m paper fetch llama3_8b_instruct --out models/llama3

A gated reference needs the token of somebody who has accepted its licence on its page.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands ``list`` and ``fetch`` to a parser's."""
    listing = commands.add_parser("list", help="list models and data sets, and what is locked")
    listing.set_defaults(run=_list)
    about = "download one model or data set"
    fetching = add_command(commands, "fetch", help=about, description=_FETCH, epilog=_EXAMPLES)
    fetching.set_defaults(run=_fetch)
    for command in (listing, fetching):
        about = "another table than paper/hub.tsv"
        command.add_argument("--table", type=Path, default=TABLE, metavar="TSV", help=about)
    fetching.add_argument("reference", metavar="ID")
    fetching.add_argument("--out", type=Path, required=True, metavar="DIR")
    fetching.add_argument(
        "--lock", type=Path, metavar="JSON", help="another lock than the one next to the table"
    )
    fetching.add_argument(
        "--mirror", type=Path, metavar="DIR", help="take DIR/OWNER/NAME instead of the hub's files"
    )


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


def _list(given: argparse.Namespace) -> None:
    for reference in read_table(given.table).values():
        print(_line(reference, lock_of(given.table)))


def _fetch(given: argparse.Namespace) -> None:
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
