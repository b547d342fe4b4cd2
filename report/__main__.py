"""Entry point of `python -m report`."""

from common.client import run

run("report.cli")
