"""Entry point of `python -m hub`."""

from common.cli import run

run("hub.cli")
