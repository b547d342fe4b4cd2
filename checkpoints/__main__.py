"""`python -m checkpoints`."""

from common.cli import run

run("checkpoints.cli")
