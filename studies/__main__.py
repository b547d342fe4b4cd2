"""Entry point of `python -m studies`."""

from common.cli import run

run("studies.cli")
