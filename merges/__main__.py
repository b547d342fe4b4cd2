"""`python -m merges`."""

from common.cli import run

run("merges.cli")
