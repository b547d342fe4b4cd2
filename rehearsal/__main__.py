"""Entry point of `python -m rehearsal`."""

from common.cli import run

run("rehearsal.cli")
