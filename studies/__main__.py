"""Entry point of `python -m studies`."""

from common.client import run

run("studies.cli")
