"""Entry point of `python -m evaluation`."""

from common.client import run

run("evaluation.cli")
