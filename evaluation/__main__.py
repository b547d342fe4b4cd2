"""Entry point of `python -m evaluation`."""

from common.cli import run

run("evaluation.cli")
