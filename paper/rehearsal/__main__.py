"""Entry point of `python -m paper.rehearsal`."""

from common.cli import run

run("paper.rehearsal.cli")
