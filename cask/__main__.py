"""`python -m cask`."""

from common.client import run

run("cask.cli")
