"""`python -m search`: see `search.cli`."""

from common.client import run

run("search.cli")
