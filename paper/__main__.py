"""Entry point of `python -m paper`."""

from common.client import run

run("paper.cli")
