"""`python -m search`: see `search.cli`."""

from common.cli import run

run("search.cli")
