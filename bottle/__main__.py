"""`python -m bottle`."""

from common.client import run

run("bottle.cli")
