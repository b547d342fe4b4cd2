"""Entry point of `python -m report`."""

from common.cli import run

run("report.cli")
