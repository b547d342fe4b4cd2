"""`python -m cask`."""

from common.cli import run

run("cask.cli")
