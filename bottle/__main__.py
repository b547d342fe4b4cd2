"""`python -m bottle`."""

from common.cli import run

run("bottle.cli")
