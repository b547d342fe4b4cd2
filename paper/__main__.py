"""Entry point of `python -m paper`."""

from common.cli import run

run("paper.cli")
