"""Command line of `python -m evaluation postgres`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli import command_parser

_EPILOG = """\
examples:
  python -m evaluation postgres start --dir /tmp/bottle-postgres
  python -m evaluation postgres status --dir /tmp/bottle-postgres
  python -m evaluation postgres stop --dir /tmp/bottle-postgres
  python -m evaluation postgres agreement --data DATA

`start` makes a cluster in the folder, with a password, and starts it on a free port of loopback;
run by root, it becomes the user postgres, who must be able to reach the folder. An evaluation
with `--postgres DIR` loads the databases there; without, it starts and stops a separate server.
`agreement` says how far SQLite and PostgreSQL agree on the gold queries.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 1 where `status` finds no server, else 0."""
    about = "Start and stop a private PostgreSQL server for SQL-Eval."
    parser = command_parser("evaluation postgres", about, _EPILOG)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("start", "make a cluster and start it"),
        ("stop", "stop it and remove its data"),
        ("status", "say whether it runs"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("--dir", type=Path, required=True, metavar="DIR")
    command = commands.add_parser("agreement", help="compare the engines on the gold queries")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="converted data")
    command.add_argument("--split", default="test")
    arguments = parser.parse_args(argv)

    if arguments.command == "agreement":
        from evaluation.sql import agreement

        print(agreement.report(arguments.data, arguments.split))
        return 0

    # psycopg is not needed to show help.
    from evaluation.sql import server

    if arguments.command == "start":
        print(server.describe(server.start(arguments.dir)))
    elif arguments.command == "stop":
        print("stopped" if server.stop(arguments.dir) else "no server ran there")
    else:
        running = server.status(arguments.dir)
        print(server.describe(running) if running else "no server runs there")
        return 0 if running else 1
    return 0
