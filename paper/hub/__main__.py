"""Entry point of `python -m paper.hub`."""

from common.cli import run

run("paper.hub.cli")
