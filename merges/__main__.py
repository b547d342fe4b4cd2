"""`python -m merges`."""

from common.client import run

run("merges.cli")
